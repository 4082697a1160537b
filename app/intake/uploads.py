"""Reading image files out of a request, in memory only."""

import hashlib
import io
import math
from collections.abc import AsyncGenerator, Iterator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError

# Smaller chunks are gathered: an object for every byte of a hostile sender would cost forty.
_SMALL_CHUNK = 65536


class Upload:
    """One uploaded file, kept in the chunks in which it arrived.

    To join or to digest them takes milliseconds, which the event loop has not got: that is for
    other threads.

    Args:
        filename: only ever given back to whoever sent it.
    """

    def __init__(self, filename: str | None = None) -> None:
        self.filename = filename
        self._chunks: list[bytes] = []
        self._gathered = bytearray()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._gathered and len(data) >= _SMALL_CHUNK:
            self._chunks.append(data)
            return
        self._gathered += data
        if len(self._gathered) >= _SMALL_CHUNK:
            self._close_chunk()

    def digest(self) -> str:
        """The file's sha256, in hexadecimal."""
        self._close_chunk()
        digest = hashlib.sha256()
        for chunk in self._chunks:
            digest.update(chunk)  # without the GIL where it is long
        return digest.hexdigest()

    @property
    def empty(self) -> bool:
        """Whether no byte of it is here."""
        return not self._chunks and not self._gathered

    def moved(self) -> "Upload":
        """An upload that has the file now, while this one has it no longer."""
        other = Upload(self.filename)
        other._chunks, other._gathered = self._chunks, self._gathered
        self.discard()
        return other

    def parts(self) -> Iterator[bytes]:
        """The file, once: what was given is not kept here any longer."""
        self._close_chunk()
        chunks, self._chunks = self._chunks[::-1], []
        while chunks:
            yield chunks.pop()

    def discard(self) -> None:
        """Let go of the file: its request holds this until its last image is answered."""
        self._chunks = []
        self._gathered = bytearray()

    def _close_chunk(self) -> None:
        if self._gathered:
            self._chunks.append(bytes(self._gathered))
            self._gathered.clear()


# Types of a body whose sender has said nothing of it: the second is curl's for `--data-binary`.
_UNSAID = ("", "application/x-www-form-urlencoded")

# Boundaries, headers and other fields of a form around its one file.
_FORM_BYTES = 65536
_MOST_FIELDS = 16


class _Part(UploadFile):
    """A file of a form: Starlette's own would copy it as it grows, and again when it is read."""

    def __init__(self, filename: str | None) -> None:
        super().__init__(io.BytesIO(), filename=filename)
        self.upload = Upload(filename or None)

    async def write(self, data: bytes) -> None:
        self.upload.add(data)

    async def seek(self, offset: int) -> None:
        """Nothing to go back in."""


class _InMemoryParser(MultiPartParser):
    """Uploads never touch the disk; `BodyLimit` bounds the memory.

    A part is a file by its file name, or by its field's: not every client gives it the former. Of
    all other fields the number is bounded, and nothing kept.

    Args:
        boundary: between the parts.
        stream: the body.
        field: that holds files.
        most: files.
    """

    finished = False

    def __init__(
        self, boundary: str, stream: AsyncGenerator[bytes, None], field: str, most: int
    ) -> None:
        # Not the client's own header: a name of a charset would be looked up, and each one that
        # there is not is remembered for good.
        headers = Headers({"Content-Type": f'multipart/form-data; boundary="{boundary}"'})
        super().__init__(headers, stream, max_files=math.inf, max_fields=math.inf)
        self._field = field
        self._most = most
        self._files = self._texts = 0

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None or part.field_name == self._field:
            part.file = _Part(part.file.filename if part.file is not None else None)
            self._files += 1
        else:
            self._texts += 1
        if self._files > self._most:
            raise _too_many(self._most)
        if self._texts > _MOST_FIELDS:
            raise ApiError(
                "payload_too_large", f"A form may have {_MOST_FIELDS} fields beside its files."
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self.finished = True


async def read_one(request: Request, most_bytes: int) -> Upload:
    """Read the image of a `/detect` request: multipart field `file`, or a raw body.

    A raw body is of a type `image/*`, or of one that says nothing: what it is, its content tells.

    Args:
        request: its body is not read yet.
        most_bytes: of the image; no more than that is read into memory.

    Raises:
        ApiError: malformed_multipart, missing_file, payload_too_large, too_many_files,
            unsupported_media_type.
    """
    kind = _media_type(request)
    if kind.startswith("image/") or kind in (*_UNSAID, "application/octet-stream"):
        upload = await _body(request, most_bytes)
        if upload.empty and kind in _UNSAID:
            raise ApiError(
                "missing_file", "Send the image as the field `file` of a form, or as the body."
            )
        return upload
    if kind != "multipart/form-data":
        raise ApiError(
            "unsupported_media_type",
            "Send multipart/form-data with a field `file`, or the image itself as image/* or "
            "application/octet-stream.",
        )
    stream = _bounded(request, most_bytes, around=_FORM_BYTES)
    files = await _files(request, stream, "file", most=1)
    return files[0]


async def read_many(request: Request, most: int) -> list[Upload]:
    """Read the repeated field `files` of a `/detect/batch` request.

    Raises:
        ApiError: malformed_multipart, missing_file, too_many_files, unsupported_media_type.
    """
    if _media_type(request) != "multipart/form-data":
        raise ApiError(
            "unsupported_media_type", "Send multipart/form-data with a repeated field `files`."
        )
    return await _files(request, request.stream(), "files", most=most)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _bounded(
    request: Request, most_bytes: int, around: int = 0
) -> AsyncGenerator[bytes, None]:
    """The body as it arrives: an image, and a form of so many bytes around it."""
    form = f", and the form around it {around}" if around else ""
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > most_bytes + around:
            raise ApiError(
                "payload_too_large",
                f"One image may have {most_bytes} bytes at most{form}.",
                headers={"Connection": "close"},  # or the rest would have to be read
            )
        yield chunk


async def _body(request: Request, most_bytes: int) -> Upload:
    upload = Upload()
    try:
        async for chunk in _bounded(request, most_bytes):
            upload.add(chunk)
    except ClientDisconnect:
        raise ApiError("bad_request", "The body ended early.") from None
    return upload


async def _files(
    request: Request, stream: AsyncGenerator[bytes, None], name: str, *, most: int
) -> list[Upload]:
    _, parameters = parse_options_header(request.headers["content-type"])
    boundary = parameters.get(b"boundary", b"").decode("latin-1")
    if not boundary or '"' in boundary or "\\" in boundary:
        raise ApiError("malformed_multipart", "The Content-Type header names no boundary.")
    parser = _InMemoryParser(boundary, stream, name, most)
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise ApiError("bad_request", "The body ended early.") from None
    except MultiPartException:
        raise ApiError(
            "malformed_multipart",
            "The multipart body breaks RFC 7578, or a part of it has too many or too long headers.",
        ) from None
    if not parser.finished:
        raise ApiError("malformed_multipart", "The multipart body ends before its last boundary.")
    uploads = [part.upload for part in form.getlist(name) if isinstance(part, _Part)]
    if not uploads:
        raise ApiError("missing_file", f"The form has no file in a field named `{name}`.")
    return uploads


def _too_many(most: int) -> ApiError:
    if most == 1:
        return ApiError("too_many_files", "Send one file, or several to /detect/batch.")
    return ApiError("too_many_files", f"A request may carry {most} files.")


class BodyLimit:
    """ASGI middleware: refuses a body above the limit by its declared length, or as it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what `receive` gives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise self._refusal()
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._refusal()
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> ApiError:
        # Closing is the only way not to read the rest.
        return ApiError(
            "payload_too_large",
            f"A request may have {self.max_bytes} bytes at most.",
            headers={"Connection": "close"},
        )
