"""GIF: the size that its frames come to, which need not be the size that it declares."""

import re
import struct
from collections.abc import Iterator

from model.images.picture import Limits

_SCREEN = struct.Struct("<6xHHB")
_FRAME = struct.Struct("<xHHHHB")
_BLOCK = re.compile(rb"[!,;]")  # extension, image, trailer; Pillow skips all else


def versions(gif: bytes, limits: Limits) -> Iterator[bytes]:
    """The file, when the canvas that all its frames need is within the limits.

    Pillow enlarges the canvas to each frame's extent, and keeps a copy of what a frame covers.

    Raises:
        ImageError: too_many_pixels.
    """
    if len(gif) >= 13:
        width, height = 0, 0
        for right, bottom in _extents(gif):
            width, height = max(width, right), max(height, bottom)
            limits.check_pixels(width, height)
    yield gif


def _extents(gif: bytes) -> Iterator[tuple[int, int]]:
    """Right and bottom edge of the screen and of each frame, as far as they can be read."""
    width, height, flags = _SCREEN.unpack_from(gif)
    yield width, height
    at = 13 + _table(flags)
    while (block := _BLOCK.search(gif, at)) and block.start() + _FRAME.size <= len(gif):
        at = block.start()
        match block[0]:
            case b"!":
                at = _after_blocks(gif, at + 2)
            case b",":
                left, top, width, height, flags = _FRAME.unpack_from(gif, at)
                yield left + width, top + height
                at = _after_blocks(gif, at + 10 + _table(flags) + 1)
            case _:
                return


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _after_blocks(gif: bytes, at: int) -> int:
    while at < len(gif) and gif[at]:
        at += gif[at] + 1
    return at + 1
