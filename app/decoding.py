"""The upload policy: which bytes are decoded at all, and at what cost at most.

Everything that can be refused is refused from the header, before a pixel is decoded.
"""

import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.errors import ApiError
from app.settings import Settings
from model.pixels import to_rgb

pillow_heif.register_heif_opener()

# No other Pillow plugin ever sees an upload; MPO comes with JPEG's, APNG with PNG's.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "HEIF")
# What begins so and still is not identified is a damaged file of that format.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_BRANDS = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1")
# Our own limit is checked first, from the header, with an error of its own.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd EXIF data and the like; no client can see it. Set once: `catch_warnings`
# around each image would race between the decoding threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# At the level debug it would log every tag of an upload: captions, places, owners.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# What Pillow's plugins raise on hostile bytes; anything else is a bug worth a 500.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError, KeyError, TypeError,
    MemoryError, RuntimeError, AttributeError, ZeroDivisionError, NotImplementedError,
    Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded upload.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB, upright.
        format: `JPEG`, `PNG`, ...
        width: pixels, after the EXIF orientation.
        height: likewise.
        warnings: `first_frame_only`, `icc_profile_ignored`.
    """

    pixels: NDArray[np.uint8]
    format: str
    width: int
    height: int
    warnings: tuple[str, ...]


def decode(data: bytes, limits: Settings, *, min_side: int) -> Decoded:
    """Decode an upload by its content; its name and declared type are never looked at.

    Args:
        data: the file.
        limits: `max_upload_bytes`, `max_pixels`, `max_aspect`.
        min_side: smallest side that the detector takes, pixels.

    Raises:
        ApiError: empty_file, payload_too_large, unsupported_media_type, too_many_pixels,
            image_too_small, validation_error (aspect), corrupt_image.
    """
    if not data:
        raise ApiError("empty_file", "The file has no bytes.")
    if len(data) > limits.max_upload_bytes:
        raise ApiError(
            "payload_too_large", f"One image may have {limits.max_upload_bytes} bytes at most."
        )
    with _open(data) as image:
        _check_size(image.width, image.height, limits, min_side)
        name = image.format or ""
        try:
            # Not `n_frames`: to count them, it would walk every frame of a hostile file.
            notes = ("first_frame_only",) if getattr(image, "is_animated", False) else ()
            found = to_rgb(image, data)
        except _DAMAGED:
            raise ApiError("corrupt_image", "The image data are damaged or cut off.") from None
    height, width = found.pixels.shape[:2]
    return Decoded(found.pixels, name, width, height, (*notes, *found.warnings))


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_SIGNATURES) or data[4:12] in _BRANDS:
            raise ApiError("corrupt_image", "The image's header is damaged.") from None
        raise ApiError(
            "unsupported_media_type",
            "Send JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF or BMP: the content decides.",
        ) from None
    except _DAMAGED:
        raise ApiError("corrupt_image", "The image's header is damaged.") from None


def _check_size(width: int, height: int, limits: Settings, min_side: int) -> None:
    if width * height > limits.max_pixels:
        raise ApiError("too_many_pixels", f"An image may have {limits.max_pixels} pixels at most.")
    if min(width, height) < min_side:
        raise ApiError(
            "image_too_small", f"Both sides must have {min_side} pixels or more to be judged."
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ApiError(
            "validation_error", f"The longer side may be {limits.max_aspect:g} x the shorter one."
        )
