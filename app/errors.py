"""Every error a client can get, and the one place that turns it into `application/problem+json`.

A detail is written for the client by hand: exception texts, paths and inputs are never echoed.
"""

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.responses import JSONResponse

from model.images import ImageError

MEDIA_TYPE = "application/problem+json"

_FORMS = ("/detect", "/detect/batch")
_OIP_MODEL = "/v2/models/{name}"
_IMAGES = (*_FORMS, f"{_OIP_MODEL}/infer")
_KEYED = (*_IMAGES, "/model", _OIP_MODEL)
_OF_A_MODEL = (_OIP_MODEL, f"{_OIP_MODEL}/ready", f"{_OIP_MODEL}/infer")
_READY = ("/readyz", "/v2/health/ready", f"{_OIP_MODEL}/ready")
_PROBES = ("/livez", "/healthz", "/v2/health/live", *_READY)
_ALL = (*_KEYED, *_PROBES, "/metrics", "/v2")


class Row(NamedTuple):
    """One kind of error.

    Attributes:
        status: of the answer.
        title: what it says whatever the case (RFC 9457).
        routes: paths of the routes that document it; an image of a batch has its errors in its
            item, by the same codes.
    """

    status: int
    title: str
    routes: tuple[str, ...] = _IMAGES


CATALOGUE: Final[Mapping[str, Row]] = {
    "malformed_multipart": Row(400, "The multipart body cannot be parsed", _FORMS),
    "missing_file": Row(400, "No image was sent"),
    "empty_file": Row(400, "The image file is empty"),
    "bad_request": Row(400, "The request cannot be understood"),
    "unauthorized": Row(401, "An API key is needed", _KEYED),
    "not_found": Row(404, "There is no such resource", _OF_A_MODEL),
    "method_not_allowed": Row(405, "The resource does not take this method", ()),
    "request_timeout": Row(408, "The request did not arrive in time"),
    "payload_too_large": Row(413, "The body is too large"),
    "too_many_files": Row(413, "Too many images in one request"),
    "too_many_pixels": Row(413, "The image has too many pixels"),
    "too_expensive": Row(413, "The image would cost too much to decode"),
    "unsupported_media_type": Row(415, "This is not an image format that is read here"),
    "corrupt_image": Row(422, "The image is damaged"),
    "unsupported_variant": Row(422, "This variant of the format is not read"),
    "image_too_small": Row(422, "The image is too small"),
    "validation_error": Row(422, "The request is not valid"),
    "unknown_host": Row(421, "The host name is not served here", ()),
    "headers_too_large": Row(431, "The header lines are too large or too many", ()),
    "queue_full": Row(429, "The server is busy"),
    "rate_limited": Row(429, "Too many requests", _KEYED),
    "internal_error": Row(500, "Something went wrong here", _ALL),
    "inference_failed": Row(500, "The image could not be scored"),
    "not_ready": Row(503, "The model is not loaded yet", (*_KEYED, *_PROBES)),
    "draining": Row(503, "The server is shutting down", (*_IMAGES, *_READY)),
    "overloaded": Row(503, "The server is out of memory"),
    "deadline_exceeded": Row(504, "The deadline has passed"),
}


class ApiError(Exception):
    """An error with its place in the contract.

    Args:
        code: a key of CATALOGUE.
        detail: one sentence for the client.
        retry_after: seconds, for 429 and 503.
        headers: further response headers.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        row = CATALOGUE[code]
        self.status, self.title = row.status, row.title
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process is told the same."""
        return _again, (self.code, self.detail, self.headers)

    def problem(self, request_id: str) -> dict[str, Any]:
        """Build the RFC 9457 object."""
        return {
            "type": f"urn:nsnet:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:nsnet:request:{request_id}",
            "code": self.code,
            "request_id": request_id,
        }

    def response(self, request_id: str) -> JSONResponse:
        """Build the HTTP answer."""
        return JSONResponse(
            self.problem(request_id), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def _again(code: str, detail: str, headers: Mapping[str, str]) -> ApiError:
    return ApiError(code, detail, headers=headers)


_BY_STATUS = {
    400: ("bad_request", "The request cannot be understood."),
    404: ("not_found", "No route matches this path; GET /docs lists them."),
    405: ("method_not_allowed", "The Allow header names the methods of this resource."),
}


def from_status(status: int, headers: Mapping[str, str] | None = None) -> ApiError:
    """Translate what the framework itself raises, by status."""
    code, detail = _BY_STATUS.get(status, ("internal_error", "The request could not be handled."))
    return ApiError(code, detail, headers=headers)


_NO_MEMORY = re.compile(r"OutOfMemory|bad_alloc|allocate memory")


def overloaded() -> ApiError:
    """What a client is told where this machine is out of memory: no fault of the image's."""
    return ApiError(
        "overloaded", "The server has no memory left for this image now.", retry_after=5
    )


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error says: Python's, torch's or CUDA's."""
    text = f"{type(error).__name__} {error}" if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(text))


def from_image(error: ImageError) -> ApiError:
    """Translate why an image is not read or not judged: its code is one of the catalogue's."""
    _let_go(error)
    return ApiError(error.code, str(error))


def unexpected(log: logging.Logger, error: Exception, identifier: str) -> ApiError:
    """What a client is told of a bug, or of no memory, at one image."""
    log_unexpected(log, error, identifier)
    if out_of_memory(error):
        return overloaded()
    return ApiError("internal_error", "The image could not be handled.")


def log_unexpected(log: logging.Logger, error: Exception, identifier: str) -> None:
    """Log a bug by its type alone: its message may quote the request."""
    log.error("unexpected %s, request %s", type(error).__name__, identifier)
    log.debug("%s", "".join(traceback.format_tb(error.__traceback__)))
    _let_go(error)


def _let_go(error: BaseException) -> None:
    """Empty the frames of an error and of those it came from: they hold files and pixels.

    Python's context managers may tie frames and errors into a cycle, which only a search for
    garbage would free.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__
