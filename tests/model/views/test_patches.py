import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ImageTooSmallError
from model.views.patches import FLAT_STD, PatchRule, grid, select_patches, spectral_entropy


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def reference_entropy(grey: Tensor) -> float:
    """The formula as written: full FFT, p, -sum p log p."""
    magnitude = torch.fft.fft2(grey - grey.mean()).abs()
    p = (magnitude / magnitude.sum()).flatten()
    return float(-(p[p > 0] * p[p > 0].log()).sum())


@pytest.mark.parametrize("size", [16, 17, 32, 56])
def test_entropy_is_the_formula_over_the_full_spectrum(size: int) -> None:
    grey = torch.rand(3, size, size, generator=torch.Generator().manual_seed(size)) * 255
    expected = [reference_entropy(patch) for patch in grey]
    assert spectral_entropy(grey).tolist() == pytest.approx(expected, abs=1e-4)


def test_entropy_orders_flat_wave_noise() -> None:
    x = torch.arange(32.0)
    wave = torch.sin(2 * math.pi * 4 * x / 32).repeat(32, 1) * 100 + 128
    flat = torch.full((32, 32), 77.0)
    rough = noise(32, 32)[0, 0].float()
    entropies = spectral_entropy(torch.stack([flat, wave, rough]))
    assert entropies[0] == 0
    # A pure wave is two conjugate peaks of equal height: S = log 2.
    assert float(entropies[1]) == pytest.approx(math.log(2), abs=1e-3)
    assert entropies[2] > 6


def test_entropy_ignores_brightness() -> None:
    grey = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) * 50
    assert float(spectral_entropy(grey)) == pytest.approx(
        float(spectral_entropy(grey + 200)), abs=1e-3
    )


@pytest.mark.parametrize("patch_size", [32, 56, 112, 224])
def test_canvases_hold_the_pixels_that_the_boxes_name(patch_size: int) -> None:
    rule = PatchRule(patch_size=patch_size, canvases=2)
    image = noise(700, 933)
    selection = select_patches(image, rule)
    assert selection.canvases.shape == (1, 2, 3, 224, 224)
    assert selection.canvases.dtype == torch.uint8
    side = 224 // patch_size
    for canvas in range(2):
        for patch in range(rule.patches_per_canvas):
            left, top, right, bottom = selection.boxes[0, canvas, patch].tolist()
            y, x = divmod(patch, side)
            tile = selection.canvases[
                0,
                canvas,
                :,
                y * patch_size : (y + 1) * patch_size,
                x * patch_size : (x + 1) * patch_size,
            ]
            assert torch.equal(tile, image[0, :, top:bottom, left:right])


def test_canvases_of_one_image_share_no_patch() -> None:
    selection = select_patches(noise(448, 448), PatchRule(patch_size=32, canvases=3))
    boxes = selection.boxes.view(-1, 4).tolist()
    assert len({tuple(box) for box in boxes}) == len(boxes) == 3 * 49


def textured(height: int, width: int) -> Tensor:
    """Smooth on the left, rough on the right."""
    image = torch.full((1, 3, height, width), 100, dtype=torch.uint8)
    ramp = (torch.sin(torch.arange(width // 2) / 9) * 40 + 100).to(torch.uint8)
    image[..., : width // 2] = ramp
    image[..., width // 2 :] = noise(height, width - width // 2)
    return image


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, {"rough"}), (0.0, {"smooth"}), (0.5, {"rough", "smooth"})]
)
def test_the_share_decides_which_extremes_are_taken(share: float, expected: set[str]) -> None:
    rule = PatchRule(patch_size=224, canvases=2, high_share=share)
    boxes = select_patches(textured(448, 896), rule).boxes.view(-1, 4)
    assert {"rough" if left >= 448 else "smooth" for left in boxes[:, 0].tolist()} == expected


def test_flat_patches_are_the_last_resort() -> None:
    image = torch.full((1, 3, 224, 448), 255, dtype=torch.uint8)  # a white page ...
    image[..., :224] = noise(224, 224) // 4  # ... with half a picture: 49 patches, one canvas
    for share in (0.0, 0.5, 1.0):
        selection = select_patches(image, PatchRule(patch_size=32, high_share=share))
        assert selection.boxes[..., 0].max() < 224
        assert selection.canvases.float().std() > FLAT_STD
    blank = torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)
    assert select_patches(blank, PatchRule(patch_size=32)).canvases.min() == 255


def test_selection_is_deterministic_and_ties_keep_raster_order() -> None:
    tile = noise(32, 32)
    image = tile.repeat(1, 1, 10, 10)  # 100 equal patches
    first = select_patches(image, PatchRule(patch_size=32))
    again = select_patches(image, PatchRule(patch_size=32))
    assert torch.equal(first.boxes, again.boxes)
    tops = first.boxes[0, 0, :25, 1].tolist()
    assert tops == sorted(tops)


def test_training_varies_position_and_is_seeded() -> None:
    image, rule = noise(500, 500), PatchRule(patch_size=32)

    def boxes(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return select_patches(image, rule, generator=generator).boxes

    assert torch.equal(boxes(1), boxes(1))
    assert not torch.equal(boxes(1), boxes(2))
    selection = select_patches(image, rule, generator=torch.Generator().manual_seed(1))
    left, top, right, bottom = selection.boxes[0, 0, 0].tolist()
    assert torch.equal(selection.canvases[0, 0, :, :32, :32], image[0, :, top:bottom, left:right])


def test_a_batch_gives_what_its_images_give_alone() -> None:
    images = noise(300, 260, batch=3)
    together = select_patches(images, PatchRule(patch_size=56))
    for index in range(3):
        alone = select_patches(images[index : index + 1], PatchRule(patch_size=56))
        assert torch.equal(together.canvases[index], alone.canvases[0])
        assert torch.equal(together.boxes[index], alone.boxes[0])


def test_small_images_are_mirrored_or_repeated_and_say_so() -> None:
    narrow = noise(150, 224)
    selection = select_patches(narrow, PatchRule(patch_size=224))
    assert selection.sparse
    canvas = selection.canvases[0, 0]
    assert torch.equal(canvas[:, 37:187], narrow[0])
    assert torch.equal(canvas[:, 36], narrow[0, :, 1])  # mirrored about the edge pixel
    assert selection.boxes.tolist() == [[[[0, 0, 224, 150]]]]
    few = select_patches(noise(128, 128), PatchRule(patch_size=32, canvases=4))
    assert few.sparse
    assert few.canvases.shape[1] == 1  # more canvases would only repeat the same patches
    assert not select_patches(noise(224, 224), PatchRule(patch_size=32)).sparse


def test_too_small_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(ImageTooSmallError, match="112") as caught:
        select_patches(noise(111, 500), PatchRule())
    assert caught.value.min_side == 112


def test_patches_must_tile_the_canvas() -> None:
    with pytest.raises(ValueError, match="divide"):
        PatchRule(patch_size=100)


@given(
    height=st.integers(32, 20_000),
    width=st.integers(32, 20_000),
    patch=st.sampled_from([32, 56, 112, 224]),
    limit=st.integers(1, 800),
)
@settings(deadline=None)
def test_the_grid_covers_the_image_within_its_limit(
    height: int, width: int, patch: int, limit: int
) -> None:
    height, width = max(height, patch), max(width, patch)
    tops, lefts = grid(height, width, patch, limit)
    assert 1 <= len(tops) * len(lefts) <= limit
    for offsets, side in ((tops, height), (lefts, width)):
        assert all(0 <= offset <= side - patch for offset in offsets)
        assert offsets == sorted(set(offsets))
        if len(offsets) > 1:
            assert (offsets[0], offsets[-1]) == (0, side - patch)
    if math.ceil(height / patch) * math.ceil(width / patch) <= limit:
        gaps = [b - a for a, b in pairwise(tops)]
        assert all(gap <= patch for gap in gaps)


@given(
    height=st.integers(32, 300),
    width=st.integers(32, 300),
    share=st.floats(0, 1),
    canvases=st.integers(1, 4),
    seed=st.none() | st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_any_image_gives_full_canvases_with_boxes_inside_it(
    height: int, width: int, share: float, canvases: int, seed: int | None
) -> None:
    rule = PatchRule(patch_size=32, canvas_size=64, canvases=canvases, high_share=share)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    selection = select_patches(noise(height, width), rule, generator=generator)
    count = selection.canvases.shape[1]
    assert 1 <= count <= canvases
    assert selection.canvases.shape == (1, count, 3, 64, 64)
    assert selection.entropies.shape == (1, count, 4)
    left, top, right, bottom = selection.boxes.view(-1, 4).T
    assert bool((left >= 0).all() and (top >= 0).all())
    assert bool((left < right).all() and (top < bottom).all())
    assert int(right.max()) <= width
    assert int(bottom.max()) <= height
