"""The upload policy: which bytes are decoded at all, and at what cost at most.

Everything that can be refused is refused from the header, before a pixel is decoded.
"""

import logging
import re
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.avif import check_coded_size
from app.errors import ApiError
from app.headers import Metered, check, check_scans, check_size, without_metadata
from app.settings import Settings
from model.pixels import to_rgb

pillow_heif.register_heif_opener()

# No other Pillow plugin ever sees an upload; MPO comes with JPEG's, APNG with PNG's.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "HEIF")
# What begins so and still is not identified is a damaged file of that format.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"II+\0")
_BRANDS = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1")
_AVIF = (b"avif", b"avis", b"mif1", b"msf1")
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)
# Pillow decodes these in Python, 0.4 us a pair of bytes. They date from screens of a megapixel.
_RUN_LENGTH = (1, 2)
_RUN_LENGTH_PIXELS = 1 << 20
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
    struct.error, zlib.error, Image.DecompressionBombError,
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
    check(data, limits, min_side=min_side)
    file = Metered(_without_exif(data) if data[8:12] in _AVIF else data)
    with _open(file) as image:
        check_size(image.width, image.height, limits, min_side)
        name = image.format or ""
        if name in ("JPEG", "MPO"):
            check_scans(data, image.width * image.height)
        if name == "AVIF":
            check_coded_size(data, limits.max_pixels)
        if name == "BMP" and image.info["compression"] in _RUN_LENGTH:
            if image.width * image.height > _RUN_LENGTH_PIXELS:
                raise ApiError(
                    "too_many_pixels",
                    f"A run-length encoded BMP may have {_RUN_LENGTH_PIXELS} pixels at most.",
                )
            file.reads_left = _RUN_LENGTH_PIXELS
        try:
            # Not `n_frames`: to count them, it would walk every frame of a hostile file.
            notes = ("first_frame_only",) if getattr(image, "is_animated", False) else ()
            found = to_rgb(image, data)
        except _DAMAGED:
            raise ApiError("corrupt_image", "The image data are damaged or cut off.") from None
    height, width = found.pixels.shape[:2]
    return Decoded(found.pixels, name, width, height, (*notes, *found.warnings))


def _without_exif(avif: bytes) -> bytes:
    """The file with its EXIF item renamed, so that nobody reads it.

    Pillow parses it to open the file, at any cost, and refuses the image where it is broken. It
    says nothing that is needed: an AVIF is turned by properties of its own.
    """
    return _EXIF_ITEM.sub(rb"\1free", avif)


def _open(file: Metered) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        data = file.getvalue()  # shared, not copied
        if data.startswith(b"\xff\xd8\xff") and len(bare := without_metadata(data)) < len(data):
            # Pillow refuses a JPEG for a profile or a density cut short; its pixels may be intact.
            return _open(Metered(bare))
        if data.startswith(_SIGNATURES) or data[4:12] in _BRANDS:
            raise ApiError("corrupt_image", "The image's header is damaged.") from None
        raise ApiError(
            "unsupported_media_type",
            "Send JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF or BMP: the content decides.",
        ) from None
    except _DAMAGED:
        raise ApiError("corrupt_image", "The image's header is damaged.") from None
