"""Reading image files out of a request, in memory only."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from app.errors import ApiError


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file; the name is only ever given back to whoever sent it."""

    data: bytes
    filename: str | None


# Boundaries and headers of a form around its one file.
_FORM_BYTES = 65536


class _InMemoryParser(MultiPartParser):
    # Uploads never touch the disk. BodyLimit bounds the memory.
    spool_max_size = 1 << 62

    finished = False

    def on_end(self) -> None:
        self.finished = True


async def read_one(request: Request, most_bytes: int) -> Upload:
    """Read the image of a `/detect` request: multipart field `file`, or a raw `image/*` body.

    Args:
        request: its body is not read yet.
        most_bytes: of the image; no more than that is read into memory.

    Raises:
        ApiError: malformed_multipart, missing_file, payload_too_large, too_many_files,
            unsupported_media_type.
    """
    kind = _media_type(request)
    if kind.startswith("image/"):
        return Upload(await _body(request, most_bytes), None)
    if kind != "multipart/form-data":
        raise ApiError(
            "unsupported_media_type", "Send multipart/form-data with a field `file`, or image/*."
        )
    stream = _bounded(request, most_bytes + _FORM_BYTES)
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


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, up to `most` bytes."""
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > most:
            raise ApiError(
                "payload_too_large",
                "The image has more bytes than one may have; GET /model names the limit.",
                headers={"Connection": "close"},  # or the rest would have to be read
            )
        yield chunk


async def _body(request: Request, most: int) -> bytes:
    try:
        return b"".join([chunk async for chunk in _bounded(request, most)])
    except ClientDisconnect:
        raise ApiError("bad_request", "The body ended early.") from None


async def _files(
    request: Request, stream: AsyncGenerator[bytes, None], name: str, *, most: int
) -> list[Upload]:
    form = await _parse(request, stream, most)
    try:
        found = [part for part in form.getlist(name) if isinstance(part, UploadFile)]
        if not found:
            raise ApiError("missing_file", f"The form has no file in a field named `{name}`.")
        uploads = []
        for part in found:
            uploads.append(Upload(await part.read(), _name(part)))
            await asyncio.sleep(0)  # a read from memory never waits: others have their turn
        return uploads
    finally:
        await form.close()


def _name(part: UploadFile) -> str | None:
    # A form may declare a charset that yields lone surrogates: no JSON could carry them back.
    return (part.filename or "").encode("utf-8", "replace").decode() or None


async def _parse(request: Request, stream: AsyncGenerator[bytes, None], most: int) -> FormData:
    parser = _InMemoryParser(
        request.headers, stream, max_files=most + 1, max_fields=16, max_part_size=65536
    )
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise ApiError("bad_request", "The body ended early.") from None
    except MultiPartException as error:
        # The parser's own message is the only sign of which limit was hit.
        if error.message.startswith("Too many files"):
            raise _too_many(most) from None
        raise ApiError("malformed_multipart", "The multipart body breaks RFC 7578.") from None
    files = sum(isinstance(part, UploadFile) for _, part in form.multi_items())
    if files > most:
        await form.close()
        raise _too_many(most)
    if not parser.finished:
        await form.close()
        raise ApiError("malformed_multipart", "The multipart body ends before its last boundary.")
    return form


def _too_many(most: int) -> ApiError:
    if most == 1:
        return ApiError("too_many_files", "Send one file, or several to /detect/batch.")
    return ApiError("too_many_files", f"A request may carry {most} files.")
