"""Which side of an image is up, as its metadata say; nothing where they are broken.

Pillow's `getexif` is avoided: on hostile bytes it raises what it likes, or unpacks one tag into
millions of objects.
"""

import contextlib
import re
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

Points: TypeAlias = NDArray[np.void]

ORIENTATION = ExifTags.Base.Orientation
# From upright points to a view of them as they are stored. The last four swap the sides.
_AS_STORED: dict[int, Callable[[Points], Points]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
_SWAPPED = (5, 6, 7, 8)
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(image: Image.Image) -> int:
    """The EXIF value, 2 to 8, of an image that has to be turned; 1 of any other.

    Args:
        image: a TIFF before its pixels are loaded, as Pillow takes the tag away then; any other
            afterwards, as a PNG's metadata may follow its pixels.
    """
    if image.format == "HEIF":  # turned by its decoder, which by the format's rules ignores EXIF
        return 1
    value: Any
    if isinstance(image, TiffImageFile):
        value = image.tag_v2.get(ORIENTATION)
    else:
        value = _exif_orientation(image.info.get("exif") or _raw_profile(image))
    if value is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
        if isinstance(xmp, str):
            xmp = xmp.encode(errors="replace")
        match = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
        value = int(match[1]) if match else None
    return value if isinstance(value, int) and value in _AS_STORED else 1


def points(pixels: NDArray[np.uint8]) -> Points:
    """Pixels as one value each, which numpy moves several times faster than three.

    Args:
        pixels: uint8 [H, W, 3], contiguous.

    Returns:
        A view of them, [H, W].
    """
    return pixels.view("V3")[..., 0]


def empty_upright(width: int, height: int, value: int) -> tuple[NDArray[np.uint8], Points]:
    """Room for an image's pixels, and a view of it in which they lie as they are stored.

    Args:
        width: of the image as it is stored, pixels.
        height: likewise.
        value: its `orientation`.

    Returns:
        uint8 [H, W, 3], upright and contiguous; and its `points`, [height, width].
    """
    shape = (width, height) if value in _SWAPPED else (height, width)
    upright = np.empty((*shape, 3), np.uint8)
    stored = points(upright)
    return upright, _AS_STORED[value](stored) if value in _AS_STORED else stored


def _exif_orientation(exif: object) -> int | None:
    """The orientation tag's value, if there is one that can be read."""
    if not isinstance(exif, bytes):
        return None
    # `Exif` twice: a mistake that Pillow forgives.
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(f"{order}4xI", tiff)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, at)
            if tag == ORIENTATION:
                code = {3: "H", 4: "I", 8: "h", 9: "i"}.get(kind) if length == 1 else None
                return struct.unpack_from(order + code, tiff, at + 8)[0] if code else None
    except struct.error:
        pass
    return None


def _raw_profile(image: Image.Image) -> bytes | None:
    """EXIF as ImageMagick writes it into a PNG: text of hexadecimal digits, after three lines."""
    text = image.info.get("Raw profile type exif")
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            return bytes.fromhex("".join(text.split("\n")[3:]))
    return None
