"""The pixel rule: what one decoded image means in sRGB, for training and serving alike."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from model.images import boxes, icc, jpeg
from model.images.content import has_content
from model.images.orientation import empty_upright, orientation, points
from model.images.picture import Facts, Picture

_PAGE = (255, 255, 255)
# Pixels converted at a time: every step of a conversion makes a copy of what it is given.
_STRIP = 1 << 18
_BOXES = ("AVIF", "HEIF")
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")


def to_rgb(image: Image.Image, data: bytes = b"", frames: int = 1) -> Picture:
    """Convert any Pillow image by one rule.

    Of an animation, the first frame with content is read, else the first one; of several pages or
    pictures the first, or what the file calls its primary one; each with a warning. The EXIF
    orientation is applied; broken metadata have none. 16-bit grey is scaled to 8 bits, never
    clipped: v / 257, rounded; 12-bit grey likewise; 32-bit integer grey above 255 counts as 16-bit;
    floating-point grey up to 1.0 is scaled by 255, up to 255 taken as is, above it as 16-bit. An
    embedded ICC profile that is not sRGB is converted to sRGB (relative colorimetric), one that
    cannot be applied, or leaves nothing to be seen, ignored with a warning; likewise code points of
    high dynamic range. A PNG's gamma is applied where it has nothing better. Alpha is composited
    onto white, as a page shows it.

    Args:
        image: opened; its pixels are decoded here, in full (no `draft` mode: it changes pixels).
        data: the file that it was opened from, where at hand: a JPEG that needs nothing else is
            then decoded to the same bits in half to a third of the time.
        frames: how many of an animation are looked at.

    Raises:
        Exception: whatever Pillow's plugins raise of corrupt pixel data.
        MemoryError: there is not enough for this image.
    """
    warnings = []
    pixels = _plain_jpeg(image, data)
    if pixels is None:
        _leave_default(image)
        pixels, ignored = _convert(image)
        if ignored or (image.format in _BOXES and boxes.is_hdr(data)):
            warnings.append("profile_ignored")
    if _has_more(image):
        moving = image.format in _MOVING
        warnings.insert(0, "animation" if moving else "first_page")
        if moving:
            pixels = _with_content(image, pixels, frames)
    height, width = pixels.shape[:2]
    return Picture(pixels, Facts(image.format or "", width, height, tuple(warnings)))


def _has_more(image: Image.Image) -> bool:
    """Whether there are more frames or pages; not how many: that takes a walk through all."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 (what follows the first frame is broken, and not needed)
        return False


def _with_content(image: Image.Image, first: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """Pixels of the first of so many frames in which there is something to see."""
    pixels = first
    start = image.tell() + 1
    for frame in range(start, start + frames - 1):
        if has_content(pixels):
            return pixels
        try:
            image.seek(frame)
            pixels, _ = _convert(image)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 (there are no more, or no more that can be read)
            break
    return pixels if has_content(pixels) else first


def _leave_default(image: Image.Image) -> None:
    """Go to the first frame of an animated PNG whose default image is not of the animation.

    Viewers that play it never show that image, and begin with an empty page in its place.
    """
    if not getattr(image, "default_image", False):
        return
    image.load()
    empty = "#fff0" if image.mode in ("L", "LA", "RGB", "RGBA") else 0
    image.paste(empty, (0, 0, *image.size))
    image.seek(1)


def _convert(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    """Pixels of any image, and whether its profile is ignored."""
    if isinstance(image, TiffImageFile):
        turn = orientation(image)
        _forget_exif(image)
        image.load()
    else:
        image.load()
        turn = orientation(image)
    gamma = None if "srgb" in image.info else image.info.get("gamma")
    to_srgb = icc.ToSRGB(image.info.get("icc_profile"), gamma)
    pixels = _upright(image, turn, to_srgb)
    if to_srgb.applied and not has_content(pixels):
        # No profile hides a picture.
        plain = _upright(image, turn, icc.ToSRGB(None))
        if has_content(plain):
            return plain, True
    return pixels, to_srgb.ignored


def _upright(image: Image.Image, turn: int, to_srgb: icc.ToSRGB) -> NDArray[np.uint8]:
    """Pixels of a loaded image, converted strip by strip."""
    grey = _grey_rule(image)
    width, height = image.im.size  # `image.size` may be that of a TIFF turned upright
    upright, stored = empty_upright(width, height, turn)
    for top, strip in _strips(image):
        rgb = np.asarray(_on_page(strip, grey, to_srgb))
        stored[top : top + strip.height] = points(rgb)
    return upright


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in pieces of its full width, each with its first row."""
    width, height = image.im.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


@dataclass(frozen=True, slots=True)
class _Grey:
    """From 16-bit, 12-bit, 32-bit or floating-point grey to 8 bits.

    Attributes:
        scale: of the values.
        inverted: whether 0 is white.
    """

    scale: float
    inverted: bool

    def __call__(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """uint8 [H, W]; what is no number is 0."""
        finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        grey = (finite * self.scale).round().clip(0, 255).astype(np.uint8)
        return 255 - grey if self.inverted else grey


def _grey_rule(image: Image.Image) -> _Grey | None:
    """How an image of one channel of more than 8 bits is scaled; None for any other."""
    if not image.mode.startswith("I") and image.mode != "F":
        return None
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    # Pillow turns the values of the smaller modes round itself.
    inverted = isinstance(image, TiffImageFile) and not tags.get(PHOTOMETRIC_INTERPRETATION)
    if tags.get(BITSPERSAMPLE) == (12,):
        return _Grey(255 / 4095, inverted)
    if image.mode.startswith("I;16"):
        return _Grey(1 / 257, inverted)
    strips = (np.asarray(strip) for _, strip in _strips(image))
    top = max(float(np.max(strip, initial=0, where=np.isfinite(strip))) for strip in strips)
    if top > 255:
        return _Grey(1 / 257, inverted)
    return _Grey(255.0 if image.mode == "F" and top <= 1 else 1.0, inverted)


def _on_page(strip: Image.Image, grey: _Grey | None, to_srgb: icc.ToSRGB) -> Image.Image:
    """RGB from any mode."""
    if grey is not None:
        strip = Image.fromarray(grey(np.asarray(strip)))
    if strip.mode in ("PA", "La", "RGBa") or (strip.mode == "P" and "transparency" in strip.info):
        strip = strip.convert("LA" if strip.mode == "La" else "RGBA")
    elif strip.has_transparency_data and strip.mode in ("1", "L", "RGB"):
        # A tRNS key: one colour of an opaque mode is see-through.
        strip = strip.convert("LA" if strip.mode in ("1", "L") else "RGBA")
    if strip.mode not in ("LA", "RGBA"):
        return to_srgb(strip)
    alpha = strip.getchannel("A")
    opaque = to_srgb(strip.convert("L" if strip.mode == "LA" else "RGB"))
    if alpha.getextrema() == (255, 255):
        return opaque
    page = Image.new("RGB", strip.size, _PAGE)
    page.paste(opaque, mask=alpha)
    return page


def _plain_jpeg(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """Pixels of a JPEG of three channels in sRGB; None of any other."""
    if not data or image.mode != "RGB" or image.format not in ("JPEG", "MPO"):
        return None
    if not icc.is_srgb(image.info.get("icc_profile")):
        return None
    pixels = jpeg.decode_rgb(data, image.size)  # of an MPO, the first image is at its beginning
    turn = orientation(image)
    if pixels is None or turn == 1:
        return pixels
    upright, stored = empty_upright(image.width, image.height, turn)
    stored[:] = points(pixels)
    return upright


def _forget_exif(image: TiffImageFile) -> None:
    """Keep a TIFF's `load` from reading its EXIF directories, and from turning it by them.

    Where they are broken, it would refuse the image; and it would unpack every tag.
    """
    image.info.pop("xmp", None)
    with contextlib.suppress(Exception):  # the first call reads, and may fail
        image.getexif()
    image.getexif().load(b"")
