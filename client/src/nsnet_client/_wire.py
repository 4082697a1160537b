"""What both clients share: requests, answers, retries. Nothing here reads or writes a socket."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, TypeVar

import httpx
import tenacity

from nsnet_client.errors import ApiError, TransportError
from nsnet_client.models import Item, ItemError, ItemOk, Limits, Problem, build

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""An image: the path of its file, its bytes, or a binary file that is open."""

Heatmap: TypeAlias = Literal["png", "none"]

T = TypeVar("T")

RETRIED: Final = (429, 503)
"""Statuses by which a server asks to come again."""

_NDJSON = "application/x-ndjson"
_PART_BYTES = 512  # of a form around each file: its boundary and headers take less
_MOST_BYTES = 16 << 20  # of an answer, of a batch's a line: far above what is said of one image
_BACKOFF: Final = tenacity.wait_exponential(multiplier=0.1, max=4) + tenacity.wait_random(0, 1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image in memory."""

    index: int
    filename: str | None
    data: bytes = field(repr=False)


def options(base_url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of the HTTP client.

    Raises:
        ValueError: the URL is none, or the key none that a header can carry.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("base_url is http://HOST[:PORT][/PATH], or https")
    # Nothing packed, and nothing unpacked: no bound holds of what a few bytes unpack to.
    headers = {
        b"User-Agent": f"nsnet-client/{version('nsnet-client')}".encode(),
        b"Accept-Encoding": b"identity",
    }
    if api_key is not None:
        key = api_key.strip()
        if not key or not key.isprintable():  # HTTP would refuse it, and quote it
            raise ValueError("api_key is empty or no printable text")
        headers[b"Authorization"] = b"Bearer " + key.encode()
    return {"base_url": url, "headers": headers, "timeout": timeout}


def load(image: ImageLike) -> bytes:
    """An image's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return image.read()


def _name_of(image: ImageLike) -> str | None:
    """A file's name without its folder."""
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "name", None)
    # Of a file that has no path it is missing, or a number.
    return Path(name).name if isinstance(name, str | os.PathLike) else None


# --- requests -----------------------------------------------------------------------------------


def detect_request(
    data: bytes, threshold: float | None, explain: bool, heatmap: Heatmap | None
) -> dict[str, Any]:
    """Arguments of the request for one image; no name is sent."""
    params: dict[str, Any] = {"threshold": threshold, "heatmap": heatmap}
    params = {name: value for name, value in params.items() if value is not None}
    if explain:
        params["explain"] = "true"
    return {
        "method": "POST",
        "url": "detect",
        "params": params,
        "content": data,
        "headers": {"Content-Type": "application/octet-stream"},
    }


class Batch:
    """The images of one request to `/detect/batch`, and which of them have no answer yet.

    Attributes:
        missing: by their index among all that the caller gave.
    """

    def __init__(self, images: Iterable[Loaded], threshold: float | None) -> None:
        self.missing = {image.index: image for image in images}
        self._params = {} if threshold is None else {"threshold": threshold}
        self._sent: dict[int, Loaded] = {}
        self._line = bytearray()  # so far, without its end

    def request(self) -> dict[str, Any]:
        """Arguments of a request for what is missing; no name is sent."""
        self._sent = dict(enumerate(self.missing.values()))
        self._line.clear()
        return {
            "method": "POST",
            "url": "detect/batch",
            "params": self._params,
            "files": [("files", (None, image.data)) for image in self._sent.values()],
            "headers": {"Accept": _NDJSON},
        }

    def take(self, part: bytes) -> Iterator[Item]:
        """Take what came of the answer next.

        Yields:
            Each item whose line is whole now.

        Raises:
            TransportError: a line is cut off.
            ApiError: `unexpected_answer`.
        """
        *ends, rest = part.split(b"\n")
        for end in ends:
            line = bytes(self._line + end)
            self._line.clear()
            item = self._item(line) if line else None
            if item is not None:
                yield item
        self._line += rest
        if len(self._line) > _MOST_BYTES:
            raise _unexpected(200, None)

    def _item(self, line: bytes) -> Item | None:
        """What a line holds; None of the summary, which is the last."""
        with _expected(200):
            try:
                value = json.loads(line)
            except ValueError:
                raise broken_off() from None
            if isinstance(value, dict) and "summary" in value:
                return None
            kind = {"ok": ItemOk, "error": ItemError}[value["status"]]
            sent = self._sent[value["index"]]
            item: Item = build(kind, value | {"index": sent.index, "filename": sent.filename})
            del self.missing[sent.index]  # a second answer to the same is not expected
        return item


def batches(
    images: Iterable[ImageLike], limits: Limits, threshold: float | None
) -> Iterator[Batch | ItemError]:
    """Put together requests of what the server takes; of an image that it would not, its error.

    No more images are in memory than those of one request, and the next.
    """
    most = min(limits.max_upload_bytes, limits.max_request_bytes - 2 * _PART_BYTES)
    held: list[Loaded] = []
    size = _PART_BYTES
    for index, image in enumerate(images):
        filename = _name_of(image)
        try:
            data = load(image)
        except (OSError, ValueError) as error:  # the latter: no name that a file can have
            reason = getattr(error, "strerror", None) or type(error).__name__
            detail = f"The file cannot be read: {reason}."
            yield _own_error(index, filename, 400, "unreadable", detail)
            continue
        if len(data) > most:
            detail = f"One image may have {most} bytes at most."
            yield _own_error(index, filename, 413, "payload_too_large", detail)
            continue
        needed = len(data) + _PART_BYTES
        if held and (len(held) == limits.max_files or size + needed > limits.max_request_bytes):
            yield Batch(held, threshold)
            held, size = [], _PART_BYTES
        held.append(Loaded(index, filename, data))
        size += needed
        del data
    if held:
        yield Batch(held, threshold)


def _own_error(index: int, filename: str | None, status: int, code: str, detail: str) -> ItemError:
    title = "The image was not sent"
    problem = Problem(f"urn:nsnet:problem:{code}", title, status, detail, "", code, "")
    return ItemError(index, filename, "error", problem)


# --- answers ------------------------------------------------------------------------------------


class Answer:
    """The answer to a request, as far as it has come.

    Attributes:
        status: of the answer.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self._retry_after = _retry_after(response)
        self._request_id = response.headers.get("X-Request-ID")
        self._body = bytearray()

    def take(self, part: bytes) -> None:
        """Take what came next.

        Raises:
            ApiError: `unexpected_answer`, as it is too long.
        """
        self._body += part
        if len(self._body) > _MOST_BYTES:
            raise _unexpected(self.status, self._retry_after)

    def parse(self, kind: type[T]) -> T:
        """What the whole of it says.

        Raises:
            ApiError: it is an error, or not what was expected.
        """
        if self.status != 200:
            raise self.error()
        with _expected(self.status):
            return build(kind, json.loads(self._body))

    def error(self) -> ApiError:
        """What the whole of it says is wrong."""
        with _expected(self.status, self._retry_after):
            problem = json.loads(self._body)
            code, detail = str(problem["code"]), str(problem["detail"])
        request_id = problem.get("request_id") or self._request_id
        return ApiError(self.status, code, detail, request_id, self._retry_after)


@contextlib.contextmanager
def _expected(status: int, retry_after: float | None = None) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        raise _unexpected(status, retry_after) from None


def _unexpected(status: int, retry_after: float | None) -> ApiError:
    detail = "Whoever answered does not speak as NS-Net does: a proxy, or another server?"
    return ApiError(status, "unexpected_answer", detail, None, retry_after)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, of either form that RFC 9110 has: a number, or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    when = when.replace(tzinfo=when.tzinfo or UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


# --- retries ------------------------------------------------------------------------------------


@contextlib.contextmanager
def transport_errors() -> Iterator[None]:
    """Turn the HTTP library's errors into this package's; they would hold on to the request."""
    try:
        yield
    except httpx.RequestError as error:
        raise TransportError(f"{type(error).__name__}: {error}") from None


def broken_off() -> TransportError:
    """The stream of a batch's answers ended before the last."""
    return TransportError("The answer broke off.")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and for how long, a request that anybody may repeat is tried again.

    Attributes:
        most: repetitions after the first attempt.
        for_s: seconds after which none begins.
    """

    most: int
    for_s: float

    def arguments(self) -> dict[str, Any]:
        """Arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        enough = tenacity.stop_after_attempt(self.most + 1) | tenacity.stop_before_delay(self.for_s)
        return {
            "retry": tenacity.retry_if_exception(_passing),
            "wait": _wait,
            "stop": enough,
            "reraise": True,
        }


def _passing(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, ApiError):
        return error.status in RETRIED
    return isinstance(error, TransportError)


def _wait(attempt: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: as many as the server asks for."""
    error = attempt.outcome and attempt.outcome.exception()
    asked = error.retry_after if isinstance(error, ApiError) else None
    return _BACKOFF(attempt) if asked is None else asked
