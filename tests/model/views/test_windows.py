import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.views.patches import PatchRule
from model.views.windows import cut_windows

RULE = PatchRule(patch_size=32, canvas_size=32)  # so that images may be small
MOST = 14


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@settings(deadline=None)
@given(st.integers(16, 700), st.integers(16, 700))
def test_windows_cover_every_pixel_of_any_image(height: int, width: int) -> None:
    windows = cut_windows(noise(height, width), RULE, MOST)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for view in windows.views:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        covered[top:bottom, left:right] = True
    assert bool(covered.all())
    assert windows.canvases.shape == (len(windows.views), 3, 32, 32)
    assert windows.canvases.dtype == torch.uint8
    assert 1 <= len(windows.views) <= MOST


@pytest.mark.parametrize("size", [(448, 448), (448, 600), (700, 500)])
def test_what_is_not_reduced_is_cut_as_it_is(size: tuple[int, int]) -> None:
    image = noise(*size)
    windows = cut_windows(image, PatchRule(), MOST)
    for view, canvas in zip(windows.views, windows.canvases, strict=True):
        left, top, right, bottom = view.box
        if not windows.reduced:
            assert torch.equal(canvas, image[0, :, top:bottom, left:right])
    assert windows.reduced == (min(size) > 448)
    assert min(windows.size) == 448


def test_large_images_are_reduced_to_a_side_that_there_is_a_calibration_for() -> None:
    windows = cut_windows(noise(1200, 1600), PatchRule(), MOST)
    assert (windows.reduced, windows.size, len(windows.views)) == (True, (448, 597), 12)
    assert windows.views[0].box == (0, 0, 601, 600)
    assert windows.views[-1].box == (999, 600, 1600, 1200)


def test_long_images_are_reduced_until_the_windows_reach() -> None:
    windows = cut_windows(noise(300, 9000), PatchRule(), MOST)
    assert (windows.reduced, len(windows.views)) == (True, MOST)
    assert min(windows.size) < 448


def test_neighbours_share_half_of_themselves_where_that_takes_few() -> None:
    windows = cut_windows(noise(448, 448), PatchRule(), MOST)
    assert [view.box[:2] for view in windows.views] == [
        (left, top) for top in (0, 112, 224) for left in (0, 112, 224)
    ]
    # Nearer ones would see nearly the same.
    assert len(cut_windows(noise(230, 230), PatchRule(), MOST).views) == 4


def test_a_window_tells_of_its_entropy() -> None:
    image = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    image[..., 64:] = noise(64, 64)
    entropies = [view.entropy for view in cut_windows(image, RULE, MOST).views]
    assert entropies[0] == 0
    assert entropies[-1] is not None
    assert entropies[-1] > 3


def test_one_window_shows_all_of_a_small_image_mirrored() -> None:
    image = noise(20, 24)
    windows = cut_windows(image, RULE, MOST)
    assert [view.box for view in windows.views] == [(0, 0, 24, 20)]
    assert torch.equal(windows.canvases[0, :, 6:26, 4:28], image[0])


@pytest.mark.parametrize("size", [(600, 800), (448, 797), (500, 2000), (300, 9000)])
def test_neighbours_share_an_eighth_at_least(size: tuple[int, int]) -> None:
    boxes = [view.box for view in cut_windows(noise(*size), PatchRule(), MOST).views]
    lefts, rights = (sorted({box[side] for box in boxes}) for side in (0, 2))
    assert len(lefts) > 1
    for right, left in zip(rights, lefts[1:], strict=False):
        assert right - left >= (rights[0] - lefts[0]) / 8 - 2
