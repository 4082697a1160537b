"""What the web does to images: at random to train on, and by name to be judged under.

Real sets are mostly JPEG and generated ones mostly PNG, with sizes of their own; a detector learns
that unless every image, of either class, is re-saved, rescaled and cut the same way.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from pydantic import BaseModel, ConfigDict, Field

Rng = np.random.Generator
Condition = Callable[[Image.Image, Rng], Image.Image]

EQUALISED_MIN_SIDE = 240
EQUALISED_MAX_SIDE = 1024
EQUALISED_CUT = 15
CORNER_CUT = 0.06
_SHARED_SIDES = (1024, 2048)
_WEBP_MAX_SIDE, _JPEG_MAX_SIDE = 16_383, 65_500
_RESAMPLINGS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


def seed_of(name: str) -> int:
    """A seed from a file's name, below 2^64: an image's copies do not depend on the others."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def rng_of(name: str, *draw: int) -> Rng:
    """The generator of a file's copies, in training and in evaluation.

    Args:
        name: the file's, without its folders.
        draw: numbers that tell its draws apart, where a file is drawn from more than once.
    """
    return np.random.default_rng([seed_of(name), *draw])


class Augmentation(BaseModel):
    """The distribution of `degrade`: what happens to an image on its way through the web."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: float = Field(0.8, ge=0, le=1, description="share resized by 0.5-1.5")
    blur: float = Field(0.1, ge=0, le=1, description="share blurred, sigma 0.3-1.2")
    noise: float = Field(0.1, ge=0, le=1, description="share with noise of 1-6 grey levels")
    save: float = Field(0.9, ge=0, le=1, description="share saved as JPEG 40-100 or WebP 50-100")
    save_again: float = Field(0.2, ge=0, le=1, description="share of those saved a second time")
    corner: float = Field(0.5, ge=0, le=1, description="share without its bottom right corner")


def recompress(image: Image.Image, codec: str, quality: int, subsampling: int = -1) -> Image.Image:
    """Save and read back; JPEG's chroma subsampling is 0 (4:4:4), 2 (4:2:0) or -1 (its default)."""
    buffer = io.BytesIO()
    if codec == "JPEG":
        image.save(buffer, codec, quality=quality, subsampling=subsampling)
    else:
        image.save(buffer, codec, quality=quality, method=2)
    return Image.open(buffer).convert("RGB")


def resize(image: Image.Image, scale: float, resampling: Image.Resampling) -> Image.Image:
    """Scale both sides; never below one pixel."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, resampling)


def cut_corner(image: Image.Image) -> Image.Image:
    """Cut 6 % off bottom and right, where generators stamp their logo."""
    width, height = (max(1, round((1 - CORNER_CUT) * side)) for side in image.size)
    return image.crop((0, 0, width, height))


def equalise(image: Image.Image, rng: Rng) -> Image.Image:
    """A copy in which nothing of an image's format, size or JPEG grid is left.

    Rescaled by 0.6-0.95 (short side >= 240 px, long side <= 1024 px), 0-15 px cut from top and
    left, saved as JPEG 75.
    """
    width, height = image.size
    scale = rng.uniform(0.6, 0.95)
    scale = max(scale, EQUALISED_MIN_SIDE / min(width, height))
    scale = min(scale, EQUALISED_MAX_SIDE / max(width, height))
    image = resize(image, scale, Image.Resampling.LANCZOS)
    left, top = (int(v) for v in rng.integers(0, EQUALISED_CUT + 1, 2))
    image = image.crop((left, top, image.width, image.height))
    return recompress(image, "JPEG", 75)


def degrade(
    image: Image.Image, rng: Rng, *, min_side: int, how: Augmentation | None = None
) -> Image.Image:
    """One random history of a shared image, the same distribution for both classes.

    A cut of the bottom right corner, resize, a random cut of up to 15 px and a flip, blur,
    sensor-like noise, then one or two rounds of JPEG or WebP, each with the chance that `how` gives
    it. What would be larger than sites show is resized to what they do: 1,024-2,048 px.

    Args:
        image: RGB.
        rng: the only source of randomness.
        min_side: the result's sides are not taken below this, where the original's were not.
        how: the chances; the default ones without.
    """
    how = how or Augmentation()
    if rng.random() < how.corner and min(cut_corner(image).size) >= min_side:
        image = cut_corner(image)
    if rng.random() < how.resize:
        scale = float(np.exp(rng.uniform(np.log(0.5), np.log(1.5))))
        if scale * max(image.size) > _SHARED_SIDES[1]:
            scale = float(rng.uniform(*_SHARED_SIDES)) / max(image.size)
        scale = max(scale, (min_side + 16) / min(image.size))
        scale = min(scale, _JPEG_MAX_SIDE / max(image.size))
        image = resize(image, scale, _RESAMPLINGS[rng.integers(len(_RESAMPLINGS))])
    room = max(0, min(15, min(image.size) - min_side))
    left, top = (int(v) for v in rng.integers(0, room + 1, 2))
    image = image.crop((left, top, image.width, image.height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < how.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < how.noise:
        pixels = np.asarray(image, dtype=np.float64)
        noisy = pixels + rng.normal(0.0, rng.uniform(1.0, 6.0), pixels.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if rng.random() < how.save:
        image = _shared(image, rng)
        if rng.random() < how.save_again:
            image = _shared(image, rng)
    return image


def _shared(image: Image.Image, rng: Rng) -> Image.Image:
    if rng.random() < 0.75 or max(image.size) > _WEBP_MAX_SIDE:
        subsampling = (0, 2)[int(rng.random() < 0.8)]
        return recompress(image, "JPEG", int(rng.integers(40, 101)), subsampling)
    return recompress(image, "WEBP", int(rng.integers(50, 101)))


# --- by name ------------------------------------------------------------------------------------


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
    "webp50": lambda image, _: recompress(image, "WEBP", 50),
    "resize50": _resize50,
    "blur1": _blur1,
    "screenshot": _screenshot,
    "crop10": _crop10,
    "corner": lambda image, _: cut_corner(image),
}
"""In the report's order. Each takes an RGB image and a generator, and returns an RGB image."""
