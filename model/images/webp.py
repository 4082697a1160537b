"""WebP: every size that is declared, and a file cut in its metadata."""

import struct
from collections.abc import Iterator

from model.images.picture import Limits

_HEAD = struct.Struct("<4sI")
# What a picture needs; all else may be missing at the end.
_FRAME_HEADER = 16


def versions(webp: bytes, limits: Limits) -> Iterator[bytes]:
    """The file, up to its last whole chunk.

    The decoder makes its canvases before any pixel is read, and refuses a file that ends early.

    Raises:
        ImageError: too_many_pixels.
    """
    end = 8 + int.from_bytes(webp[4:8], "little")
    at = 12
    while at + 8 <= min(end, len(webp)):
        kind, size = _HEAD.unpack_from(webp, at)
        limits.check_pixels(*_size(kind, webp[at + 8 : at + 24]))
        # The chunks of a frame follow its header.
        after = at + 8 + (_FRAME_HEADER if kind == b"ANMF" else size + size % 2)
        if after > len(webp):
            break
        at = after
    else:
        if end <= len(webp):
            yield webp
            return
    yield b"".join((webp[:4], (at - 8).to_bytes(4, "little"), memoryview(webp)[8:at]))


def _size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height that a chunk declares, 0 x 0 where it declares none."""
    match kind:
        case b"VP8X":
            return 1 + _number(body, 4, 3), 1 + _number(body, 7, 3)
        case b"ANMF":
            return 1 + _number(body, 6, 3), 1 + _number(body, 9, 3)
        case b"VP8 ":
            return _number(body, 6, 2) & 0x3FFF, _number(body, 8, 2) & 0x3FFF
        case b"VP8L":
            bits = _number(body, 1, 4)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def _number(body: bytes, at: int, length: int) -> int:
    return int.from_bytes(body[at : at + length], "little")
