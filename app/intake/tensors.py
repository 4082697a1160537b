"""Reading image files out of an Open Inference Protocol request, in memory only.

The files are the elements of one BYTES tensor. As JSON alone they are base64; by the binary
extension the tensor follows the JSON, each element behind its length in four bytes, little-endian.
"""

import asyncio
import binascii
import re

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from app.errors import ApiError
from app.intake.uploads import Upload
from app.oip import HEAD_LENGTH, InferenceRequest

MAX_HEAD_BYTES = 65536
"""JSON before a tensor: it is parsed on the event loop."""
MAX_JSON_BYTES = 8 << 20
"""JSON that holds its images: while it is parsed, no other thread gets on."""
MAX_JSON_VALUES = 4096
"""Values in it, by the characters that come before one: each costs tens of times its bytes."""

_LENGTH = re.compile(r"[0-9]{1,9}", re.ASCII)
_LENGTH_BYTES = 4
_BASE64_PIECE = 1 << 18  # decoded at once: whole quanta, in less than a millisecond
_CLOSE = {"Connection": "close"}  # or the rest would have to be read


async def read_images(
    request: Request, most: int, most_bytes: int
) -> tuple[InferenceRequest, list[Upload]]:
    """Read an inference request, and the images that it brings.

    Args:
        request: its body is not read yet.
        most: images.
        most_bytes: of one image; no more than that is read into memory.

    Raises:
        ApiError: bad_request, missing_file, payload_too_large, too_many_files,
            unsupported_media_type, validation_error.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(
            "unsupported_media_type",
            "Compressed requests are not read: images are compressed already.",
            headers={"Accept-Encoding": "identity"},
        )
    head_bytes = _head_bytes(request)
    reader = TensorReader(head_bytes, most, most_bytes)
    try:
        async for chunk in request.stream():
            reader.feed(chunk)
    except ClientDisconnect:
        raise ApiError("bad_request", "The body ended early.") from None
    if head_bytes is not None:
        return reader.finish()
    return await asyncio.to_thread(reader.finish)


class TensorReader:
    """Takes a body as it arrives, in whatever pieces; linear in its bytes.

    Args:
        head_bytes: that are JSON, where a tensor follows; None: all of it.
        most: images.
        most_bytes: of one image.
    """

    def __init__(self, head_bytes: int | None, most: int, most_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._most = most
        self._most_bytes = most_bytes
        self._head = bytearray()
        self._values = 0
        self._request: InferenceRequest | None = None
        self._uploads: list[Upload] = []
        self._images = 0
        self._length = bytearray()  # of the next element, as far as it is here
        self._left = 0  # bytes to come of the element that is open
        self._unclaimed = 0  # bytes of the tensor that belong to no element yet

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            ApiError: bad_request, missing_file, payload_too_large, too_many_files,
                validation_error.
        """
        at = 0
        if self._request is None:
            at = len(data) if self._head_bytes is None else self._head_bytes - len(self._head)
            self._gather(data[:at])
            if len(self._head) != self._head_bytes:
                return
            self._parse()
        while at < len(data):
            at = self._take(data, at)

    def finish(self) -> tuple[InferenceRequest, list[Upload]]:
        """What the body was; JSON alone takes tens of milliseconds.

        Raises:
            ApiError: bad_request, missing_file, payload_too_large, too_many_files,
                validation_error.
        """
        if self._request is None and self._head_bytes is None:
            self._parse()
        request = self._request
        if request is None:
            raise ApiError("bad_request", "The body ends before its JSON does.")
        if self._left or self._length or self._unclaimed or len(self._uploads) < self._images:
            raise ApiError("bad_request", "The tensor ends before its last element does.")
        return request, self._uploads

    def _gather(self, data: bytes) -> None:
        self._head += data
        self._values += sum(map(data.count, (b",", b"[", b"{")))
        if len(self._head) > MAX_JSON_BYTES or self._values > MAX_JSON_VALUES:
            raise ApiError(
                "payload_too_large",
                f"JSON may have {MAX_JSON_BYTES} bytes and {MAX_JSON_VALUES} values: send larger "
                "images by the binary tensor data extension.",
                headers=_CLOSE,
            )

    def _parse(self) -> None:
        """Read the JSON, and what it says of the tensor."""
        self._request = request = _request_of(self._head)
        self._head = bytearray()
        [tensor] = request.inputs
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if (size is None) == (tensor.data is None):
            raise ApiError(
                "validation_error",
                f"An input has either `data` or `binary_data_size`, with {HEAD_LENGTH}.",
            )
        self._images, *inner = tensor.shape
        if inner not in ([], [1]):
            raise ApiError("validation_error", "The shape of `image` is [n] or [n, 1].")
        if not self._images:
            raise ApiError("missing_file", "The tensor has no element.")
        if self._images > self._most:
            raise ApiError("too_many_files", f"A request may carry {self._most} files.")
        if tensor.data is None:
            self._unclaimed = size or 0
            return
        texts = [one if isinstance(one, str) else one[0] for one in tensor.data]
        tensor.data = None  # it would be held until the answer
        if len(texts) != self._images:
            raise ApiError("bad_request", "`data` has not as many elements as `shape` says.")
        self._uploads = [self._from_base64(text) for text in texts]

    def _from_base64(self, text: str) -> Upload:
        if len(text) // 4 * 3 > self._most_bytes + 2:
            raise self._too_large()
        upload = Upload()
        try:
            if text.find("=", 0, -2) >= 0:
                raise ValueError  # noqa: TRY301  (padding ends a piece, which need not be the last)
            for at in range(0, len(text), _BASE64_PIECE):
                piece = text[at : at + _BASE64_PIECE]
                upload.add(binascii.a2b_base64(piece, strict_mode=True))
        except ValueError:
            raise ApiError(
                "bad_request",
                "An element of `data` is not base64; files as they are want the binary tensor "
                "data extension.",
            ) from None
        return upload

    def _take(self, data: bytes, at: int) -> int:
        """Take from `data` what belongs to one length or one element; where that ends."""
        if self._left:
            end = min(len(data), at + self._left)
            whole = at == 0 and end == len(data)
            self._uploads[-1].add(data if whole else data[at:end])
            self._left -= end - at
            return end
        end = min(len(data), at + _LENGTH_BYTES - len(self._length))
        self._length += data[at:end]
        if len(self._length) == _LENGTH_BYTES:
            self._open(int.from_bytes(self._length, "little"))
            self._length.clear()
        return end

    def _open(self, size: int) -> None:
        """Begin with the next element."""
        self._unclaimed -= _LENGTH_BYTES + size
        if self._unclaimed < 0:
            raise ApiError("bad_request", "An element ends beyond its tensor.", headers=_CLOSE)
        if len(self._uploads) == self._images:
            raise ApiError(
                "bad_request", "The tensor has more elements than `shape` says.", headers=_CLOSE
            )
        if size > self._most_bytes:
            raise self._too_large()
        self._left = size
        self._uploads.append(Upload())

    def _too_large(self) -> ApiError:
        return ApiError(
            "payload_too_large",
            f"One image may have {self._most_bytes} bytes at most.",
            headers=_CLOSE,
        )


def _head_bytes(request: Request) -> int | None:
    """How many bytes of the body are JSON, where that is said."""
    said = request.headers.getlist(HEAD_LENGTH)
    if not said:
        return None
    if len(said) > 1 or not _LENGTH.fullmatch(said[0]):
        raise ApiError("bad_request", f"{HEAD_LENGTH} is no number of bytes.")
    if int(said[0]) > MAX_HEAD_BYTES:
        raise ApiError(
            "payload_too_large", f"JSON before a tensor may have {MAX_HEAD_BYTES} bytes."
        )
    return int(said[0])


def _request_of(text: bytearray) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(text)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_context=False, include_input=False)
        if first["type"] == "json_invalid":
            raise ApiError("bad_request", "The JSON cannot be parsed.") from None
        # Of names of our own and numbers: what a model does not know is ignored.
        where = ".".join(map(str, first["loc"]))
        what = f"`{where}`" if where else "The JSON object"
        raise ApiError(
            "validation_error",
            f"{what} is missing, or is not what the model takes and gives: its metadata say it.",
        ) from None
