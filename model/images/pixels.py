"""The pixel rule: what one decoded image means in sRGB, for training and serving alike."""

import contextlib
import io
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from model.images.picture import Facts, Picture

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow gives the same pixels, later
    simplejpeg = None

_PAGE = (255, 255, 255)
_SRGB = ImageCms.createProfile("sRGB")
_BROKEN_PROFILE = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_rgb(image: Image.Image, data: bytes = b"") -> Picture:
    """Convert any Pillow image by one rule.

    Of several frames the first is read, with a warning. The EXIF orientation is applied; broken
    metadata have none. 16-bit grey is scaled to 8 bits, never clipped: v / 257, rounded; 32-bit
    integer grey above 255 counts as 16-bit; floating-point grey up to 1.0 is scaled by 255, up to
    255 taken as is, above it as 16-bit. An embedded ICC profile that is not sRGB is converted to
    sRGB (relative colorimetric), a broken one ignored with a warning. Alpha is composited onto
    white, as a page shows it.

    Args:
        image: opened; its pixels are decoded here, in full (no `draft` mode: it changes pixels).
            Closed where it has to be turned.
        data: the file that it was opened from, where at hand: a JPEG that needs nothing else is
            then decoded to the same bits in half to a third of the time.

    Raises:
        OSError, ValueError, SyntaxError: the pixel data are corrupt, as Pillow says so.
    """
    name = image.format or ""
    warnings: tuple[str, ...] = ()
    if getattr(image, "is_animated", False):
        # Not `n_frames`: to count them, it would walk every frame of a hostile file.
        warnings = ("first_frame_only",)
    pixels = _plain_jpeg(image, data)
    if pixels is None:
        pixels, more = _convert(image)
        warnings += more
    height, width = pixels.shape[:2]
    return Picture(pixels, Facts(name, width, height, warnings))


def _convert(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Pixels of any image, and what has to be said of them."""
    if isinstance(image, TiffImageFile):
        turn = _turn(image)
        _forget_exif(image)
        image.load()
    else:
        image.load()  # first: a PNG's metadata may follow its pixels
        turn = _turn(image)
    profile = image.info.get("icc_profile")
    if turn is not None:
        turned = image.transpose(turn)
        image.close()  # else its pixels stay until the caller lets go of it
        image = turned
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_8_bit(image))
    alpha = None
    if image.mode in ("PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.has_transparency_data and image.mode in ("1", "L", "RGB"):
        # A tRNS key: one colour of an opaque mode is see-through.
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image, warnings = _to_srgb(image, profile)
    if alpha is not None:
        page = Image.new("RGB", image.size, _PAGE)
        page.paste(image, mask=alpha)
        image = page
    return np.array(image), warnings


def _plain_jpeg(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """Pixels of a JPEG of three channels, upright and in sRGB; None of any other.

    By the library that Pillow uses as well, without its copies. (To turn or convert what it gives
    would cost them again.) Whatever this finds wrong with a file is left to Pillow, which says what
    is forgiven.
    """
    if simplejpeg is None or not data or image.mode != "RGB":
        return None
    if image.format not in ("JPEG", "MPO"):  # of an MPO, the first image is at its beginning
        return None
    if _turn(image) is not None:
        return None
    if not _is_srgb(image.info.get("icc_profile")):
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # limits were checked on Pillow's reading of the header
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return pixels


_ORIENTATION = ExifTags.Base.Orientation
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the metadata ask for to set the image upright; nothing where they are broken.

    Pillow's `getexif` is avoided: on hostile bytes it raises what it likes, or unpacks one tag into
    millions of objects.
    """
    if image.format == "HEIF":  # turned by its decoder, which by the format's rules ignores EXIF
        return None
    value: Any
    if isinstance(image, TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION)
    else:
        value = _exif_orientation(image.info.get("exif") or _raw_profile(image))
    if value is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
        if isinstance(xmp, str):
            xmp = xmp.encode(errors="replace")
        match = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
        value = int(match[1]) if match else None
    return _TURNS.get(value)  # by ==, as Pillow has swapped a TIFF's sides


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
            if tag == _ORIENTATION:
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


def _forget_exif(image: TiffImageFile) -> None:
    """Keep a TIFF's `load` from reading its EXIF directories, and from turning it by them.

    Where they are broken, it would refuse the image; and it would unpack every tag.
    """
    image.info.pop("xmp", None)
    with contextlib.suppress(Exception):  # the first call reads, and may fail
        image.getexif()
    image.getexif().load(b"")


_STRIP = 64  # rows


def _grey_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W] from 16-bit, 32-bit or floating-point grey."""
    values = np.asarray(image)
    top = np.max(values, initial=0, where=np.isfinite(values))
    if image.mode.startswith("I;16") or top > 255:
        scale = 1 / 257
    else:
        scale = 255.0 if image.mode == "F" and top <= 1 else 1.0
    grey = np.empty(values.shape, np.uint8)
    # In strips: in float64, the whole of a large image would take gigabytes.
    for row in range(0, len(values), _STRIP):
        strip = np.nan_to_num(values[row : row + _STRIP].astype(np.float64), posinf=0, neginf=0)
        grey[row : row + _STRIP] = (strip * scale).round().clip(0, 255)
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB from any mode without alpha, through the embedded profile where there is one."""
    # An identity transform would still round some pixels off by one.
    if not profile or (image.mode != "CMYK" and _is_srgb(profile)):
        return _rgb(image), ()
    try:
        source = _read_profile(profile)
        if image.mode not in ("RGB", "L", "CMYK", "LAB"):
            image = _rgb(image)
        converted = ImageCms.profileToProfile(
            image,
            source,
            _SRGB,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except _BROKEN_PROFILE:
        return _rgb(image), ("icc_profile_ignored",)
    return (converted or _rgb(image)), ()


def _is_srgb(profile: bytes | None) -> bool:
    """Whether a profile says so, or there is none."""
    if not profile:
        return True
    try:
        source = _read_profile(profile)
        return "srgb" in ImageCms.getProfileDescription(source).lower()
    except _BROKEN_PROFILE:
        return False


_TRANSLATIONS = re.compile(rb"mluc.{4}(.{4})", re.DOTALL)


def _read_profile(profile: bytes) -> ImageCms.ImageCmsProfile:
    """A profile's header.

    Raises:
        _BROKEN_PROFILE: it is none.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    # Little CMS makes room for a name in as many languages as are announced, be it half a gigabyte.
    for match in _TRANSLATIONS.finditer(profile):
        if 12 * int.from_bytes(match[1]) > len(profile):
            raise ValueError("more translations than the profile can hold")
    return source


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow's own `convert` copies an image that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")
