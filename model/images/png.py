"""PNG: Pillow gets the chunks that pixels need, and no broken or huge text can cost the image."""

import struct
import zlib
from collections.abc import Iterator

from PIL import PngImagePlugin

from model.images import icc
from model.images.picture import Limits

# What a compressed profile or text may unpack to; Pillow refuses the image for a larger one.
PngImagePlugin.MAX_TEXT_CHUNK = icc.MAX_BYTES

_HEAD = struct.Struct(">I4s")
_HEADER_SIZE = struct.Struct(">II")
_COLOUR_TYPE = 25  # where it stands in the file
_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_PROFILE = b"iCCP"
_CODE_POINTS = b"cICP"
_COLOURS = (_PROFILE, _CODE_POINTS, b"sRGB", b"gAMA")
_COLOURS_BEFORE = (b"PLTE", b"IDAT")  # elsewhere nobody heeds them
_KEPT = (*_COLOURS, b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_SRGB_CODE_POINTS = bytes((1, 13, 0, 1))
# How long a tRNS chunk may be: of grey, RGB, a palette.
_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
_XMP = b"XML:com.adobe.xmp\0"
_RAW_EXIF = b"Raw profile type exif\0"


def versions(png: bytes, limits: Limits) -> Iterator[bytes]:
    """The file as Pillow is to have it: the same bytes where nothing has to go.

    Kept are the critical chunks (what is wrong with them is for Pillow to say), transparency, an
    animation that is in order, what colours mean, and what may say which side is up.

    Raises:
        ImageError: those of `Limits.check_size`.
    """
    if len(png) > _COLOUR_TYPE and png[12:16] == b"IHDR":
        limits.check_size(*_HEADER_SIZE.unpack_from(png, 16))
    animated = _animated(png)
    view, kept, seen = memoryview(png), 0, set[bytes]()
    parts: list[bytes | memoryview] = []
    colours = True
    for kind, start, end in _chunks(png):
        colours = colours and kind not in _COLOURS_BEFORE
        if not kind[0] & 32 or (kind in _FRAMES and animated):  # critical ones are in upper case
            continue
        purpose = _purpose(png, kind, start, end) if colours or kind not in _COLOURS else None
        if purpose and purpose not in seen and kind != _CODE_POINTS:
            seen.add(purpose)
            continue
        if start > kept:
            parts.append(view[kept:start])
        if kind == _PROFILE and colours and kind not in seen:
            seen.add(kind)
            parts.append(_NO_PROFILE)
        elif purpose == _CODE_POINTS and _PROFILE not in seen:
            # Pillow does not know it. A profile that follows says the same, and replaces this one.
            is_srgb = png[start + 8 : end - 4] == _SRGB_CODE_POINTS
            parts.append(_SRGB if is_srgb else _NO_PROFILE)
        kept = end
    yield b"".join([*parts, view[kept:]]) if kept else png


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk, up to the last; an end may lie beyond the file's."""
    at, kind = 8, b""
    while at + 8 <= len(png) and kind != b"IEND":
        length, kind = _HEAD.unpack_from(png, at)
        yield kind, at, at + 12 + length
        at += 12 + length


def _whole(png: bytes, start: int, end: int) -> bool:
    """Whether a chunk's checksum is right."""
    return zlib.crc32(memoryview(png)[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end])


def _purpose(png: bytes, kind: bytes, start: int, end: int) -> bytes | None:
    """What an ancillary chunk is kept for, where it is whole; None where it has to go."""
    if kind not in _KEPT or end > len(png) or end - start > icc.MAX_BYTES:
        return None
    if not _whole(png, start, end):
        return None
    body = png[start + 8 : end - 4]
    match kind:
        case _ if kind == _PROFILE:
            packed = body.partition(b"\0")[2]
            return kind if packed[:1] == b"\0" and _unpacks(packed[1:]) else None
        case b"tRNS":
            return (
                kind
                if len(body)
                in _TRANSPARENCY.get(int.from_bytes(png[_COLOUR_TYPE : _COLOUR_TYPE + 1]), ())
                else None
            )
        case b"eXIf":
            return kind
        case b"gAMA" | b"cICP":
            return kind if len(body) == 4 else None
        case b"sRGB":
            return kind if len(body) == 1 else None
        case b"tEXt" if body.startswith(_RAW_EXIF):
            return _RAW_EXIF
        case b"zTXt" if body.startswith(_RAW_EXIF + b"\0"):
            return _RAW_EXIF if _unpacks(body[len(_RAW_EXIF) + 1 :]) else None
        case b"iTXt" if body.startswith(_XMP):
            flag, text = body[len(_XMP) :][:2], body[len(_XMP) + 2 :].split(b"\0", 2)[-1]
            return _XMP if flag[:1] == b"\0" or (flag[1:] == b"\0" and _unpacks(text)) else None
    return None


def _unpacks(packed: bytes) -> bool:
    """Whether Pillow can unpack it, within its limit."""
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, icc.MAX_BYTES)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _animated(png: bytes) -> bool:
    """Whether there is an animation, with whole chunks in order; Pillow would refuse any other.

    Where no frame has pixels, what is before them is the image.
    """
    announced, framed, shown, sequence = False, False, False, 0
    for kind, start, end in _chunks(png):
        shown = shown or (framed and kind in (b"IDAT", b"fdAT"))
        if kind not in _FRAMES:
            continue
        length = end - start - 12
        if end > len(png) or (kind != b"fdAT" and not _whole(png, start, end)):
            return False
        if kind == b"acTL":
            if announced or length != 8 or not any(png[start + 8 : start + 12]):
                return False
            announced = True
            continue
        if length < 4 or int.from_bytes(png[start + 8 : start + 12]) != sequence:
            return False
        sequence += 1
        framed = framed or kind == b"fcTL"
        if kind == b"fcTL" and (length != 26 or not _inside(png, start + 12)):
            return False
    return announced and shown


def _inside(png: bytes, at: int) -> bool:
    """Whether a frame lies within the image."""
    width, height, left, top = struct.unpack_from(">IIII", png, at)
    across, down = _HEADER_SIZE.unpack_from(png, 16)
    return bool(0 < width <= across - left and 0 < height <= down - top)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((_HEAD.pack(len(body), kind), body, zlib.crc32(kind + body).to_bytes(4)))


# Stands for a profile that is not handed on: where profiles are applied, its loss is noticed.
_NO_PROFILE = _chunk(_PROFILE, b"ignored\0\0" + zlib.compress(b"?"))
_SRGB = _chunk(b"sRGB", b"\0")
