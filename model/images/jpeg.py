"""JPEG: the quick decoder, and files whose pixels are whole though their rest is not."""

import itertools
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model.errors import ImageError
from model.images.picture import Limits

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow gives the same pixels, later
    simplejpeg = None

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_PROFILE = b"ICC_PROFILE\0"

# As libjpeg accepts them. Five fixed bytes: the video in a "motion photo" does not match by chance.
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
# Encoders write some ten; libtiff and libvips stop at a hundred. Each is a pass over the image, be
# there nothing in it, so of more than four megapixels there may be fewer.
_FEW_SCANS, _MANY_SCANS = 25, 100
_SCANNED_PIXELS = 400_000_000
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the markers of frames


def versions(jpeg: bytes, _limits: Limits) -> Iterator[bytes]:
    """The file; where it is cut after its last pixel, with an end; without broken metadata.

    Raises:
        ImageError: corrupt_image, of far more scans than files have.
    """
    _check_scans(jpeg)
    yield jpeg
    if _END not in jpeg[-2:] and _is_whole(ended := jpeg + _END):
        yield ended
    if len(rest := _without_metadata(jpeg)) < len(jpeg):
        yield rest


def decode_rgb(jpeg: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Pixels of a JPEG of three channels, by the library that Pillow uses as well.

    The same bits without Pillow's copies, in half to a third of the time. What it finds wrong with
    a file is left to Pillow, which says what is forgiven.

    Args:
        jpeg: the file.
        size: width and height that the limits were held against.

    Returns:
        uint8 [H, W, 3]; None where this decoder is not installed, or does not like the file.
    """
    if simplejpeg is None:
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if (width, height) != size:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB")
    except ValueError:
        return None
    return pixels


def _check_scans(jpeg: bytes) -> None:
    """Count the scans, anywhere in the file: so no decoder can find more.

    Raises:
        ImageError: corrupt_image.
    """
    count = sum(1 for _ in itertools.islice(_SCAN.finditer(jpeg), _MANY_SCANS + 1))
    if count <= _FEW_SCANS:
        return
    most = max(_FEW_SCANS, min(_MANY_SCANS, _SCANNED_PIXELS // _declared_pixels(jpeg)))
    if count > most:
        raise ImageError("corrupt_image", f"A JPEG of this size may have {most} scans at most.")


def _declared_pixels(jpeg: bytes) -> int:
    """Width x height, the largest that a frame declares; 1 where none does."""
    sizes = (
        (int.from_bytes(jpeg[start + 5 : start + 7]), int.from_bytes(jpeg[start + 7 : start + 9]))
        for marker, start, _ in _segments(jpeg)
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME
    )
    return max([1, *(height * width for height, width in sizes)])


def _is_whole(jpeg: bytes) -> bool:
    """Whether all pixels are there: this decoder objects where data end early, Pillow fills up."""
    if simplejpeg is None:
        return False
    try:
        _, _, space, _ = simplejpeg.decode_jpeg_header(jpeg)
        simplejpeg.decode_jpeg(jpeg, "CMYK" if space in ("CMYK", "YCCK") else "RGB")
    except ValueError:
        return False
    return True


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


def _without_metadata(jpeg: bytes) -> bytes:
    """The file without the segments that Pillow may stumble over and pixels do not need.

    EXIF and a profile stay, and Adobe's segment, which says what is stored.
    """
    parts, at = [jpeg[:2]], 2
    for marker, start, end in _segments(jpeg):
        is_profile = marker == 0xE2 and jpeg.startswith(_PROFILE, start + 4) and end - start >= 18
        if marker < 0xE0 or marker in (0xE1, 0xEE) or is_profile:
            parts.append(jpeg[start:end])
        at = end
    return b"".join([*parts, jpeg[at:]])
