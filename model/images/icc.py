"""Embedded colour profiles: which are applied, and how."""

import io
import itertools
import re
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_BYTES = 4 << 20  # of a profile; printers' tables have two megabytes

_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError)

# Colours that sRGB leaves alone, be it under whatever name: dark ones tell a curve of 2.2 from it.
_PROBES = Image.frombytes(
    "RGB",
    (27, 1),
    bytes(itertools.chain.from_iterable(itertools.product((24, 128, 232), repeat=3))),
)
_NEAR = 2  # levels: writers round the same primaries and curve each in its own way
_CACHED_BYTES = 1 << 16  # sRGB profiles have 500 to 61,000

_GAMMA = 0.45455  # of sRGB, as a PNG gives it
_GAMMA_TOLERANCE = 0.05

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
        applied: whether a profile was; likewise.
    """

    def __init__(self, profile: object, gamma: object = None) -> None:
        """Take what Pillow has of a file: the types are as a hostile one made them.

        Args:
            profile: ICC, bytes.
            gamma: exponent from light to values, a float; counts where there is no profile.
        """
        self._profile = profile
        self._curve = None if profile else _curve(gamma)
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}
        self.ignored = False
        self.applied = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB from any mode without alpha, relative colorimetric."""
        if self._profile and image.mode not in ("RGB", "L", "CMYK", "LAB"):
            image = _rgb(image)
        if image.mode not in self._transforms:
            self._transforms[image.mode] = self._transform(image.mode)
        transform = self._transforms[image.mode]
        if transform is None:
            return _rgb(image).point(self._curve * 3) if self._curve else _rgb(image)
        return ImageCms.applyTransform(image, transform) or image

    def _transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        # An identity transform would still round some pixels off by one.
        if self._profile and (mode == "CMYK" or not is_srgb(self._profile)):
            try:
                transform = _build(_open(self._profile), mode)
            except _BROKEN:
                self.ignored = True
            else:
                self.applied = True
                return transform
        return _build(_LAB, mode) if mode == "LAB" else None


def _build(
    source: ImageCms.ImageCmsProfile, mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> ImageCms.ImageCmsTransform:
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(source, _SRGB, mode, "RGB", renderingIntent=intent, flags=flags)


def is_srgb(profile: object) -> bool:
    """Whether a profile leaves colours as they are, or there is none. Its name says nothing."""
    if not profile:
        return True
    if isinstance(profile, bytes) and len(profile) <= _CACHED_BYTES:
        return _leaves_colours(profile)
    return _leaves_colours.__wrapped__(profile)


@lru_cache(maxsize=32)
def _leaves_colours(profile: object) -> bool:
    try:
        source = _open(profile)
        mode = "L" if source.profile.xcolor_space == "GRAY" else "RGB"
        probes = _PROBES.convert(mode)
        # Viewers differ in what they make of the black of a screen that some of sRGB's carry.
        transform = _build(source, mode, ImageCms.Flags.BLACKPOINTCOMPENSATION)
        converted = ImageCms.applyTransform(probes, transform)
    except _BROKEN:
        return False
    before = np.asarray(probes.convert("RGB"), np.int16)
    return bool(np.abs(np.asarray(converted, np.int16) - before).max() <= _NEAR)


def _curve(gamma: object) -> list[int] | None:
    """From values of 8 bits to those of sRGB; None where they are the same, or nothing is said."""
    if not isinstance(gamma, float) or gamma <= 0:
        return None
    if abs(gamma / _GAMMA - 1) <= _GAMMA_TOLERANCE:
        return None
    return [round(255 * (value / 255) ** (_GAMMA / gamma)) for value in range(256)]


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
