"""What a file's own bytes say of the cost to open it, read before any decoder walks them.

Pillow parses headers in Python, and C decoders repeat work as often as a file asks for: a few
kilobytes can keep a core busy for hours. The limits here are far above what any real file has.
Whatever else is wrong with a file is left to its decoder, which knows what is forgiven.
"""

import io
import itertools
import re
import struct
from collections.abc import Iterator

from model.errors import ImageError, ImageTooSmallError
from model.images.picture import Limits


class Metered(io.BytesIO):
    """A file in memory that may be read in so many pieces only.

    Pillow takes at least one step in Python, and one read, for every chunk, block, segment, tag or
    junk byte of a header. To count reads bounds them all as Pillow itself sees them.

    Raises:
        ImageError: corrupt_image, from `read`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # Of real files, GIF is read in the smallest pieces: two for 255 bytes of pixels.
        self.reads_left = 50_000 + len(data) // 100

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's own, until the reads are used up."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise _corrupt("The file consists of far too many pieces.")
        return super().read(size)


def check_size(width: int, height: int, limits: Limits) -> None:
    """Hold the size of an image against `max_pixels`, `max_aspect` and `min_side`.

    Raises:
        ImageError: too_many_pixels, image_too_small, validation_error (aspect).
    """
    if width * height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels", f"An image may have {limits.max_pixels} pixels at most."
        )
    if min(width, height) < limits.min_side:
        raise ImageTooSmallError(width, height, limits.min_side)
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(
            "validation_error", f"The longer side may be {limits.max_aspect:g} x the shorter one."
        )


def _corrupt(detail: str) -> ImageError:
    return ImageError("corrupt_image", detail)


# Each may unpack to a megabyte; real files have a handful.
_PACKED_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")
_MOST_PACKED_CHUNKS = 250
_CHUNKS = 150_000  # more than `Metered` lets pass; an upload in chunks of 8 kB has 4,000


def check_png(data: bytes) -> None:
    """Bound what Pillow does in Python for the chunks.

    Raises:
        ImageError: corrupt_image.
    """
    at = 8
    chunks = packed = 0
    while kind := data[at + 4 : at + 8]:
        chunks += 1
        packed += kind in _PACKED_CHUNKS
        if chunks > _CHUNKS or packed > _MOST_PACKED_CHUNKS:
            raise _corrupt("The PNG has far too many chunks.")
        at += 12 + int.from_bytes(data[at : at + 4])


# As libjpeg accepts them. Five fixed bytes: the video in a "motion photo" does not match by chance.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
# Encoders write some ten scans; libtiff and libvips also stop at a hundred. Each is a pass over the
# image, so of more than four megapixels there may be fewer, 25 at least: seconds for the largest.
_SCANS = (25, 100)
_SCANNED_PIXELS = 400_000_000
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
# Depth maps and content credentials come in segments of 64 kB, which fill an upload with 512.
_SEGMENTS = 1_000
# Of frame and tables; four quantisation and eight Huffman tables of the largest kind are 3 kB.
_TABLE_BYTES = 1 << 16
_EXIF_BYTES = 1 << 18  # one segment of 64 kB, but for a few odd writers
_PHOTOSHOP_BLOCKS = 10_000  # Photoshop writes some thirty


def check_scans(jpeg: bytes, pixels: int) -> None:
    """Count the scans, anywhere in the file: so no decoder can find more.

    Args:
        jpeg: the file.
        pixels: width x height of the image.

    Raises:
        ImageError: corrupt_image.
    """
    few, many = _SCANS
    most = max(few, min(many, _SCANNED_PIXELS // pixels))
    if sum(1 for _ in itertools.islice(_SCAN.finditer(jpeg), most + 1)) > most:
        raise _corrupt(f"A JPEG of this size may have {most} scans at most.")


def check_jpeg(data: bytes) -> None:
    """Bound what Pillow does in Python before the first scan.

    Raises:
        ImageError: corrupt_image.
    """
    tables = exif = end = 0
    for count, (marker, start, end) in enumerate(_segments(data), 1):
        if marker < 0xE0:
            tables += end - start
        elif data.startswith(b"Exif\0\0", start + 4):
            exif += end - start
        if count > _SEGMENTS or tables > _TABLE_BYTES or exif > _EXIF_BYTES:
            raise _corrupt("The JPEG's header has far too many parts.")
    if data.count(b"8BIM", 0, end) > _PHOTOSHOP_BLOCKS:
        raise _corrupt("The JPEG's header has far too many parts.")


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment before the first scan, as Pillow takes them."""
    at = 2
    while match := _MARKER.search(jpeg, at):
        marker, start, at = match[1][0], match.start(), match.end()
        if marker == 0xDA or marker < 0xC0:
            return
        # The others have no length, for Pillow.
        if marker != 0xC8 and not 0xD0 <= marker <= 0xD9 and not 0xF0 <= marker <= 0xFD:
            at += max(2, int.from_bytes(jpeg[at : at + 2]))
        yield marker, start, at


def without_metadata(jpeg: bytes) -> bytes:
    """A JPEG without its application segments and comments; Adobe's stays, it says what is stored.

    Args:
        jpeg: passed by `check_jpeg`.
    """
    parts, at = [jpeg[:2]], 2
    for marker, start, end in _segments(jpeg):
        if marker < 0xE0 or marker == 0xEE:
            parts.append(jpeg[start:end])
        at = end
    return b"".join([*parts, jpeg[at:]])


_WIDTH, _LENGTH, _STRIPS, _SAMPLES, _ROWS_PER_STRIP = 256, 257, 273, 277, 278
_PLANAR, _TILE_WIDTH, _TILE_LENGTH, _TILES = 284, 322, 323, 324
_SCALARS = {_WIDTH, _LENGTH, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_LENGTH}
_TIFF_TAGS = 1_000  # raw files of cameras have a hundred
# Pillow makes an object of each number in a tag. The largest tables known, colour maps and transfer
# curves of 16 bits, have 200,000.
_TIFF_NUMBERS = 1_000_000
_SMALL_TILE = 16  # the format's own minimum
_LARGE_TILE = 1 << 22  # pixels; small levels of a pyramid keep the tiles of the large ones
_SPARE_PIECES = 1_000  # some writers leave more offsets than are needed


def check_tiff(data: bytes, limits: Limits) -> None:
    """Hold the first directory's tiles, strips and tables against the size of its image.

    Raises:
        ImageError: corrupt_image, unsupported_media_type; those of `check_size`.
    """
    if data.startswith(b"MM\0+"):
        # Pillow would read it as a classic TIFF, and libtiff then as what it is.
        raise ImageError("unsupported_media_type", "A BigTIFF in big-endian order is not read.")
    order, big = ("<" if data.startswith(b"II") else ">"), data[2] == 43
    try:
        (start,) = struct.unpack_from(f"{order}8xQ" if big else f"{order}4xI", data)
        (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
    except (struct.error, OverflowError):  # no directory, and no image for Pillow either
        return
    if count > _TIFF_TAGS:
        raise _corrupt("The TIFF has far too many tags.")
    entry = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHI4s")
    start += 8 if big else 2
    directory = data[start : start + count * entry.size]
    tags: dict[int, int] = {}
    pieces = numbers = 0
    for at in range(0, len(directory) - entry.size + 1, entry.size):
        tag, kind, length, value = entry.unpack_from(directory, at)
        if tag in _SCALARS:
            code = {3: "H", 4: "I", 16: "Q" if big else ""}.get(kind)
            if not code or length != 1:
                raise _corrupt("The TIFF's size is not given as a number.")
            tags.setdefault(tag, struct.unpack_from(order + code, value)[0])  # the first one counts
        elif tag in (_STRIPS, _TILES):
            pieces = max(pieces, length)
        # Bytes and text stay bytes and text; what exceeds the file is skipped.
        elif kind not in (1, 2, 7) and length <= len(data):
            numbers += length
    if numbers > _TIFF_NUMBERS:
        raise _corrupt("The TIFF's tags are far too long.")
    if _WIDTH in tags and _LENGTH in tags:
        check_size(tags[_WIDTH], tags[_LENGTH], limits)
        _check_pieces(tags, pieces, limits)


def _check_pieces(tags: dict[int, int], pieces: int, limits: Limits) -> None:
    """Hold tiles and strips against the size of the image, which is within the limits.

    Args:
        tags: the first directory's `_SCALARS`.
        pieces: how many offsets of tiles or strips are given.
        limits: `max_pixels`.
    """
    width, height = tags[_WIDTH], tags[_LENGTH]
    tile_width, tile_length = tags.get(_TILE_WIDTH, width), tags.get(_TILE_LENGTH, height)
    if _TILE_WIDTH in tags or _TILE_LENGTH in tags:
        most = max(_LARGE_TILE, min(4 * width * height, limits.max_pixels))
        if tile_width * tile_length > most:
            raise _corrupt("The TIFF's tiles are far larger than its image.")
    tiles = -(-width // max(tile_width, _SMALL_TILE)) * -(-height // max(tile_length, _SMALL_TILE))
    strips = -(-height // max(1, tags.get(_ROWS_PER_STRIP, height)))
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR) == 2 else 1
    if pieces > max(tiles, strips) * min(planes, 6) + _SPARE_PIECES:  # Pillow reads six at most
        raise _corrupt("The TIFF has far more tiles or strips than its size needs.")
