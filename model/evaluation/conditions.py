"""What happens to images on their way to a detector, as named, deterministic transformations."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from model.training.augment import Rng, equalise, recompress, resize

Condition = Callable[[Image.Image, Rng], Image.Image]


def name_rng(name: str) -> Rng:
    """The generator of a file's name: an image's copies do not depend on the rest of the set."""
    return np.random.default_rng(list(name.encode()))


def _clean(image: Image.Image, _: Rng) -> Image.Image:
    return image


def _jpeg(quality: int) -> Condition:
    return lambda image, _: recompress(image, "JPEG", quality)


def _resize50(image: Image.Image, _: Rng) -> Image.Image:
    return resize(image, 0.5, Image.Resampling.LANCZOS)


def _blur1(image: Image.Image, _: Rng) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.0))


def _screenshot(image: Image.Image, _: Rng) -> Image.Image:
    # What a browser shows of a web JPEG; kept losslessly, so the last step leaves no JPEG grid.
    return resize(recompress(image, "JPEG", 80), 0.75, Image.Resampling.BICUBIC)


def _crop10(image: Image.Image, rng: Rng) -> Image.Image:
    width, height = (max(1, round(0.9 * side)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


CONDITIONS: dict[str, Condition] = {
    "clean": _clean,
    "equalised": equalise,
    "jpeg60": _jpeg(60),
    "jpeg40": _jpeg(40),
    "resize50": _resize50,
    "blur1": _blur1,
    "screenshot": _screenshot,
    "crop10": _crop10,
}
"""In the report's order. Each takes an RGB image and a generator, and returns an RGB image."""
