"""Embedded colour profiles: which are applied, and how."""

import io
import re

from PIL import Image, ImageCms

MAX_BYTES = 4 << 20  # of a profile; printers' tables have two megabytes

_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError)

# Little CMS makes room for a name in as many languages as are announced, be it half a gigabyte.
_TRANSLATIONS = re.compile(rb"mluc(?=.{4}(.{4}))", re.DOTALL)
# It runs every one of these for every point of its tables, and searches the segments of every curve
# in them, for minutes.
_ELEMENTS = re.compile(rb"mpet(?=.{8}(.{4}))", re.DOTALL)
_MOST_ELEMENTS = 8
_MOST_BYTES_OF_ELEMENTS = 1 << 16


class ToSRGB:
    """From an image's own colours to sRGB, strip by strip.

    Attributes:
        ignored: whether there is a profile that cannot be applied; known after the first strip.
    """

    def __init__(self, profile: object) -> None:
        """Take the profile as Pillow has it: bytes, nothing, or what a hostile file made of it."""
        self._profile = profile
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}
        self.ignored = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB from any mode without alpha, relative colorimetric."""
        if self._profile and image.mode not in ("RGB", "L", "CMYK", "LAB"):
            image = _rgb(image)
        if image.mode not in self._transforms:
            self._transforms[image.mode] = self._transform(image.mode)
        transform = self._transforms[image.mode]
        if transform is None:
            return _rgb(image)
        return ImageCms.applyTransform(image, transform) or image

    def _transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        # An identity transform would still round some pixels off by one.
        if self._profile and (mode == "CMYK" or not is_srgb(self._profile)):
            try:
                return _build(_open(self._profile), mode)
            except _BROKEN:
                self.ignored = True
        return _build(_LAB, mode) if mode == "LAB" else None


def _build(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source, _SRGB, mode, "RGB", renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC
    )


def is_srgb(profile: object) -> bool:
    """Whether a profile says so, or there is none."""
    if not profile:
        return True
    try:
        return "srgb" in ImageCms.getProfileDescription(_open(profile)).lower()
    except _BROKEN:
        return False


def _open(profile: object) -> ImageCms.ImageCmsProfile:
    """Read a profile's header.

    Raises:
        _BROKEN: it is none, or one that would cost too much to apply.
    """
    if not isinstance(profile, bytes) or len(profile) > MAX_BYTES:
        raise ValueError("not a profile of a common size")
    for match in _TRANSLATIONS.finditer(profile):
        if 12 * int.from_bytes(match[1]) > len(profile):
            raise ValueError("more translations than the profile can hold")
    for match in _ELEMENTS.finditer(profile):
        if int.from_bytes(match[1]) > _MOST_ELEMENTS or len(profile) > _MOST_BYTES_OF_ELEMENTS:
            raise ValueError("too many elements")
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow's own `convert` copies an image that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")
