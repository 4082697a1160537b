"""What is measured of a picture: against the definition, and against what became of it."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from model.verdicts import Quality
from model.views.quality import measure_quality
from tests.model.views.test_patches import noise, textured


def tensor(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W], as the detector has it: a view of rows of pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def photograph(name: str = "astronaut") -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def reference(image: Tensor) -> Quality:
    """The definition in plain loops, in double precision."""
    _, height, width = image[0].shape
    top, left = max(0, height - 384) // 2, max(0, width - 384) // 2
    pixels = image[0, :, top : top + 384, left : left + 384].numpy().astype(np.float64)
    grey = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    side = min(64, *grey.shape)
    sharpest = 0.0
    for y in range(0, grey.shape[0] - side + 1, side):
        for x in range(0, grey.shape[1] - side + 1, side):
            # Each pixel's differences to those after it, where there are such.
            first, second = (
                sum(
                    float((np.diff(grey, order, axis)[y : y + side, x : x + side] ** 2).sum())
                    for axis in (0, 1)
                )
                for order in (1, 2)
            )
            sharpest = max(sharpest, second / side**2 / max(first / side**2, 4.0))
    ratios = []
    for axis in (0, 1):
        steps = np.minimum(np.abs(np.diff(grey, 1, axis)), 32).mean(axis=1 - axis)
        steps = steps[: len(steps) // 8 * 8]
        phases = [float(steps[phase::8].mean()) for phase in range(8)]
        rest = (sum(phases) - max(phases)) / 7
        ratios.append((max(phases) + 0.1) / (rest + 0.1))
    return Quality(min(height, width), sharpest, min(ratios))


@pytest.mark.parametrize(
    "image",
    [
        noise(112, 112),
        noise(113, 900, seed=1),
        textured(127, 130),
        textured(500, 383),
        tensor(photograph()),
        tensor(photograph("rocket")).contiguous(),
        tensor(jpeg(photograph("coffee"), 30)),
        torch.arange(200).byte().expand(1, 3, 150, 200),
    ],
)
def test_it_is_the_definition(image: Tensor) -> None:
    before = image.clone()
    assert measure_quality(image) == pytest.approx(reference(image), rel=1e-4, abs=1e-6)
    assert torch.equal(image, before)


@pytest.mark.parametrize("size", [(112, 112), (112, 3000), (1000, 385)])
@pytest.mark.parametrize("grey", [0, 77, 255])
def test_a_flat_picture_is_smooth_and_has_no_blocks(size: tuple[int, int], grey: int) -> None:
    flat = torch.full((1, 3, *size), grey, dtype=torch.uint8)
    assert measure_quality(flat) == Quality(min(size), 0.0, 1.0)


def test_white_noise_is_three_times_as_rough_once_more_differentiated() -> None:
    short_side, sharpness, blockiness = measure_quality(noise(700, 500))
    assert short_side == 500
    assert sharpness == pytest.approx(3, abs=0.1)
    assert blockiness == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
@pytest.mark.parametrize(
    "softened",
    [
        lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
        lambda image: image.reduce(3).resize(image.size, Image.Resampling.BICUBIC),
    ],
    ids=["blurred", "enlarged"],
)
def test_what_was_blurred_or_enlarged_is_less_sharp(
    name: str, softened: Callable[[Image.Image], Image.Image]
) -> None:
    image = photograph(name)
    sharp, soft = (measure_quality(tensor(of)) for of in (image, softened(image)))
    assert soft.sharpness < 0.5 * sharp.sharpness


def test_one_sharp_tile_is_enough() -> None:
    """A portrait before a blurred background is no blurred picture."""
    pixels: NDArray[np.uint8] = np.array(photograph().filter(ImageFilter.GaussianBlur(4)))
    soft = measure_quality(tensor(Image.fromarray(pixels))).sharpness
    pixels[192:320, 192:320] = np.asarray(photograph())[192:320, 192:320]
    assert measure_quality(tensor(Image.fromarray(pixels))).sharpness > 4 * soft


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
@pytest.mark.parametrize("offset", range(8))
def test_heavy_jpeg_shows_its_blocks_wherever_their_edges_lie(name: str, offset: int) -> None:
    image = photograph(name)
    light, heavy = (
        measure_quality(tensor(jpeg(image, quality))[..., offset:, 7 - offset :]).blockiness
        for quality in (95, 30)
    )
    assert 1 <= light < 1.1
    assert heavy > 1.25


def test_only_the_middle_is_read() -> None:
    image = noise(2000, 1500)
    framed = torch.zeros_like(image)
    framed[..., 808:1192, 558:942] = image[..., 808:1192, 558:942]
    assert measure_quality(framed) == measure_quality(image)


@pytest.mark.parametrize("size", [(9, 9), (15, 40), (63, 64), (32, 400)])
def test_small_pictures_have_numbers_too(size: tuple[int, int]) -> None:
    assert all(math.isfinite(figure) for figure in measure_quality(noise(*size)))
