"""Images in tar archives, as WebDataset writes them; archives may be hostile, or cut off."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from model.images import SUFFIXES

SUFFIX = ".tar"
_HEADER = 1 << 20  # bytes of a member's headers at most, all that come before it
_AHEAD = 1 << 20  # bytes that a buffer may read beyond an image
_NAME = 4096  # characters of a member's name: a row holds it
_GLOBALS = 100  # headers of the whole archive, by each of which every member is gone through


class Member(NamedTuple):
    """An image of a shard.

    Attributes:
        number: its place among the shard's images.
        name: within the shard.
        data: the file; of one too large no more than shows it. None: the shard is cut off in it.
    """

    number: int
    name: str
    data: bytes | None


def members(stream: IO[bytes], wanted: Callable[[int], bool], max_bytes: int) -> Iterator[Member]:
    """The images of a shard, in its order: files with an image's suffix, hidden ones left out.

    Args:
        stream: of the shard; one that can seek.
        wanted: whether to read the image of this number.
        max_bytes: of an image.

    Raises:
        tarfile.TarError: what follows cannot be read; and whatever else a broken archive makes
            `tarfile`, or the stream, raise.
    """
    bounded = _Bounded(stream)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
        number = end = 0
        while (member := _next(archive, bounded)) is not None:
            if archive.offset <= end:  # a size below zero would lead back, again and again
                raise tarfile.ReadError("a member does not move on")
            if len(member.name) > _NAME or len(archive.pax_headers) > _GLOBALS:
                raise tarfile.ReadError("headers are too large")
            end = archive.offset
            archive.members.clear()  # it keeps all it has seen
            if not _is_image(member):
                continue
            if wanted(number):
                bounded.left = max_bytes + _AHEAD
                yield Member(number, member.name, _data(archive, member, max_bytes))
            number += 1
    # It takes whatever is no header for the end.
    bounded.left = tarfile.BLOCKSIZE
    bounded.seek(archive.offset)
    if bounded.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the archive ends before its end")


def _next(archive: tarfile.TarFile, bounded: "_Bounded") -> tarfile.TarInfo | None:
    bounded.left = _HEADER
    return archive.next()


def _is_image(member: tarfile.TarInfo) -> bool:
    path = PurePosixPath(member.name)
    return member.isreg() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | None:
    file = archive.extractfile(member)
    assert file is not None  # noqa: S101  (it is a regular file)
    try:
        return file.read(max_bytes + 1)
    except tarfile.ReadError:
        return None


class _Bounded:
    """A stream of which only `left` bytes are read: headers say how long they are, and how many."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.left = _HEADER
        self.seek: Callable[..., int] = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("headers are too large")
        self.left -= size
        return self._stream.read(size)

    def seekable(self) -> Any:
        return self._stream.seekable()
