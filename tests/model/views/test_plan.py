import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from model.views import plan
from model.views.patches import (
    Candidates,
    PatchRule,
    Selection,
    choose_patches,
    cut_candidates,
    select_patches,
)
from model.views.plan import ViewPlan
from model.views.quality import measure_quality
from tests.model.views.test_patches import noise, textured

WINDOW = PatchRule(patch_size=64, canvas_size=64, canvases=1, high_share=1.0)
BOTH = ViewPlan(whole=True, whole_share=0.75, patches=WINDOW)


@pytest.mark.parametrize("size", [(500, 300), (300, 501), (230, 1200), (150, 160)])
def test_the_whole_image_comes_first_as_clip_would_see_it(size: tuple[int, int]) -> None:
    width, height = size
    image = textured(height, width)
    patches = PatchRule(canvases=2, high_share=1.0)
    views = ViewPlan(whole=True, patches=patches).select(image)
    windows = select_patches(image, patches)
    assert torch.equal(views.canvases[:, 1:], windows.canvases)
    assert torch.equal(views.boxes[:, 1:], windows.boxes)
    assert views.sparse == windows.sparse
    left, top, right, bottom = views.boxes[0, 0, 0].tolist()
    assert right - left == bottom - top == min(size)
    assert abs(left + right - width) <= 1
    assert abs(top + bottom - height) <= 1
    square = Image.fromarray(image[0, :, top:bottom, left:right].permute(1, 2, 0).numpy())
    expected = np.array(square.resize((224, 224), Image.Resampling.BICUBIC))
    difference = views.canvases[0, 0].permute(1, 2, 0).int() - torch.from_numpy(expected).int()
    assert difference.abs().max() <= 2

    alone = ViewPlan(whole=True, patches=PatchRule(canvases=0)).select(image)
    assert torch.equal(alone.canvases, views.canvases[:, :1])


def test_the_whole_image_does_not_go_with_mosaics() -> None:
    with pytest.raises(ValidationError, match="not with mosaics"):
        ViewPlan(whole=True, patches=PatchRule(patch_size=32))


def test_a_plan_looks_at_something() -> None:
    with pytest.raises(ValidationError, match="needs the whole image, or"):
        ViewPlan(patches=PatchRule(canvases=0))


def test_the_whole_image_counts_by_its_share() -> None:
    views = ViewPlan(whole=True, whole_share=0.7, patches=PatchRule(canvases=2, high_share=1.0))
    logits = [2.0, -1.0, 3.0]
    assert views.combine(logits) == pytest.approx(0.7 * 2 + 0.3 * 1)
    assert views.combine(logits[:1]) == 2
    assert float(views.combine(torch.tensor(logits).unbind())) == pytest.approx(1.7)
    assert ViewPlan(patches=PatchRule(canvases=3)).combine(logits) == pytest.approx(4 / 3)


def test_a_window_is_chosen_only_once_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, chosen = [], []

    def cut_out(images: torch.Tensor, rule: PatchRule) -> Candidates:
        cut.append(tuple(images.shape[2:]))
        return cut_candidates(images, rule)

    def choose(candidates: Candidates, rule: PatchRule) -> Selection:
        chosen.append(tuple(candidates.patches.shape))
        return choose_patches(candidates, rule)

    monkeypatch.setattr(plan, "cut_candidates", cut_out)
    monkeypatch.setattr(plan, "choose_patches", choose)
    large, small = (
        BOTH.look(noise(2000, 300), adaptive=True),
        BOTH.look(noise(40, 40), adaptive=True),
    )
    assert (cut, chosen) == ([(2000, 300)], [])
    assert large.canvases.shape == (1, 3, 64, 64)
    assert (large.warnings, small.warnings) == ((), ("few_patches",))
    for look, image in ((large, noise(2000, 300)), (small, noise(40, 40))):
        assert look.more is not None
        assert torch.equal(look.more().canvases[0], BOTH.select(image).canvases[0, 1:])
    assert chosen == [(1, 10, 1, 3, 64, 64), (1, 1, 1, 3, 64, 64)]


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (2000, 3000)])
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_look_keeps_no_pixel_array(size: tuple[int, int], adaptive: bool) -> None:
    """What waits for the network is canvases and copies of windows, never the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    gone = weakref.ref(pixels)
    look = BOTH.look(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0), adaptive=adaptive)
    del pixels
    gc.collect()
    assert gone() is None
    assert (look.more is not None) == adaptive
    if look.more is not None:
        assert look.more().canvases.shape == (1, 1, 3, 64, 64)


@pytest.mark.parametrize("size", [(64, 80), (2000, 300)])
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_look_says_what_the_whole_picture_is_worth(size: tuple[int, int], adaptive: bool) -> None:
    """Measured at native resolution, not on the canvases."""
    image = textured(*size)
    assert BOTH.look(image, adaptive=adaptive).quality == measure_quality(image)


def test_plans_without_the_whole_image_look_at_everything() -> None:
    views = ViewPlan(patches=PatchRule(patch_size=32, canvas_size=64, canvases=2))
    look = views.look(noise(200, 300), adaptive=True)
    assert (len(look.canvases), look.more) == (2, None)


def test_training_draws_the_views_in_their_proportion() -> None:
    views = ViewPlan(whole=True, patches=PatchRule(canvases=2, high_share=1.0))
    rng = np.random.default_rng(0)
    drawn = [views.drawn(rng) for _ in range(300)]
    assert {of.canvases for of in drawn} == {1}
    assert 70 < sum(of.whole for of in drawn) < 130
    shares = {of.patches.high_share for of in (views.degraded(rng) for _ in range(50))}
    assert shares == {0.0, 1.0}
    mosaic = ViewPlan(patches=PatchRule(patch_size=32))
    assert mosaic.degraded(rng) == mosaic
