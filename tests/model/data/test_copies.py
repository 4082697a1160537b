"""Copies of images: the same ones every time, whoever else is in the data."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.data.copies import (
    CLEAN,
    DEGRADED,
    EQUALISED,
    JUDGED,
    PROMISED,
    Canvas,
    CanvasSource,
    Copy,
    canvases_ahead,
    canvases_of,
    copy_of,
    usable,
)
from model.data.degrade import CONDITIONS, Augmentation, cut_corner, resize, rng_of, seed_of
from model.data.manifest import AI, Row
from model.errors import ImageError, ModelError
from model.views.patches import PatchRule
from model.views.plan import ViewPlan
from model.views.quality import measure_quality
from tests.conftest import PLAN
from tests.images import photo

HOW = Augmentation()
KINDS = (CLEAN, EQUALISED, DEGRADED, DEGRADED)
ALL = (*Copy, DEGRADED)
RARE = (Copy.RESIZE50, Copy.REDUCED)
THIRD = [name for name in (f"{i}.png" for i in range(40)) if seed_of(name) % 3 == 0]
WHOLE = ViewPlan(
    whole=True, patches=PatchRule(patch_size=64, canvas_size=64, canvases=2, high_share=1.0)
)
SHARES = (1, 1, 2)


def row(folder: Path, name: str, width: int = 150, height: int = 130, seed: int = 0) -> Row:
    photo(width, height, seed).save(folder / name)
    return Row(folder / name, AI, "g", "r")


def pixels(canvases: list[Canvas], kind: int) -> list[Tensor]:
    return [canvas.pixels for canvas in canvases if canvas.kind == kind]


def test_copies_are_drawn_by_the_files_name_alone(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    here, there = row(tmp_path, "a.png"), row(tmp_path / "moved", "a.png")
    other = row(tmp_path, "b.png")
    first = canvases_of(0, here, PLAN, KINDS, HOW)
    again = canvases_of(7, there, PLAN, KINDS, HOW)
    renamed = canvases_of(0, other, PLAN, KINDS, HOW)
    assert {canvas.row for canvas in again} == {7}
    for kind in (CLEAN, EQUALISED, DEGRADED):
        same = zip(pixels(first, kind), pixels(again, kind), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    one, another = pixels(first, DEGRADED)  # one canvas of each
    assert not torch.equal(one, pixels(renamed, DEGRADED)[0])
    assert not torch.equal(one, another)


def test_the_clean_copy_is_cut_from_the_image_as_in_service(tmp_path: Path) -> None:
    clean = pixels(canvases_of(0, row(tmp_path, "a.png"), PLAN, KINDS, HOW), CLEAN)
    assert torch.equal(torch.stack(clean), PLAN.select(tensor(photo(150, 130))).canvases[0])


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("plan", [PLAN, WHOLE], ids=["patches", "whole"])
@pytest.mark.parametrize("condition", JUDGED)
def test_training_and_evaluation_make_the_same_copies(
    condition: str, plan: ViewPlan, tmp_path: Path
) -> None:
    """By one seed rule: what is promised on the one holds on the other."""
    name, kind = THIRD[0], JUDGED[condition]
    copy = tensor(CONDITIONS[condition](photo(150, 130), rng_of(name)))
    canvases = pixels(canvases_of(0, row(tmp_path, name), plan, ALL, HOW), kind)
    expected = plan.select(copy).canvases[0]
    if kind == Copy.CORNER:  # the first look alone
        expected = expected[: plan.first]
    assert torch.equal(torch.stack(canvases), expected)


def test_a_promise_is_made_of_copies_that_are_judged_of_every_image() -> None:
    assert {*PROMISED} <= JUDGED.keys()
    assert not {JUDGED[name] for name in PROMISED} & {*RARE, Copy.CORNER}


@pytest.mark.parametrize("name", THIRD[:2])
def test_a_copy_does_not_depend_on_which_others_are_asked_for(name: str, tmp_path: Path) -> None:
    here = row(tmp_path, name)
    every = canvases_of(0, here, WHOLE, ALL, HOW)
    for kind in Copy:
        alone = canvases_of(0, here, WHOLE, [kind], HOW)
        same = [canvas for canvas in every if canvas.kind == kind][: len(alone)]
        assert alone
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone, same, strict=True))
    backwards = canvases_of(0, here, WHOLE, ALL[::-1], HOW)
    for kind in Copy:
        pairs = zip(pixels(every, kind), pixels(backwards, kind), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_rare_copies_are_made_of_every_third_image_by_its_name(tmp_path: Path) -> None:
    assert 5 < len(THIRD) < 25
    for name in (f"{i}.png" for i in range(8)):
        made = {canvas.kind for canvas in canvases_of(0, row(tmp_path, name), PLAN, ALL, HOW)}
        assert made == ({*Copy} if name in THIRD else {*Copy} - {*RARE})


def test_a_smaller_copy_that_is_too_small_costs_the_image_nothing(tmp_path: Path) -> None:
    here = row(tmp_path, THIRD[0], 90, 60)  # half of it is 30 px high, of 32
    assert {canvas.kind for canvas in canvases_of(0, here, PLAN, ALL, HOW)} == {*Copy} - {
        Copy.RESIZE50
    }
    # Nor is a corner cut off that leaves too little.
    low = canvases_of(0, row(tmp_path, "low.png", 90, 33), PLAN, (CLEAN, Copy.CORNER), HOW)
    assert {canvas.kind for canvas in low} == {CLEAN}


def places(canvas: Tensor, image: Image.Image) -> list[tuple[int, int]]:
    """Where in an image a window was cut."""
    side, array = canvas.shape[-1], tensor(image)[0]
    begins = (array == canvas[:, :1, :1]).all(dim=0)
    return [
        (top, left)
        for top, left in begins.nonzero().tolist()
        if torch.equal(array[:, top : top + side, left : left + side], canvas)
    ]


def test_a_reduced_copy_gives_one_window_from_anywhere(tmp_path: Path) -> None:
    patches = PatchRule(patch_size=224, canvas_size=224, canvases=2, high_share=1.0)
    plan = ViewPlan(whole=True, patches=patches)
    found = []
    for name in THIRD[:4]:
        image = photo(480, 900, seed=7)
        image.save(tmp_path / name)
        here = Row(tmp_path / name, AI, "g", "o")
        [canvas] = canvases_of(0, here, plan, (Copy.REDUCED,), HOW)
        reduced = resize(image, 448 / 480, Image.Resampling.LANCZOS)
        assert reduced.size == (448, 840)
        found += places(canvas.pixels, reduced)
        assert canvas.quality.short_side == 224
    assert len(found) == len({top for top, _ in found}) == len({left for _, left in found}) == 4


def test_what_is_small_is_not_reduced_and_its_window_is_what_there_is(tmp_path: Path) -> None:
    here, low = row(tmp_path, THIRD[0]), row(tmp_path, THIRD[1], 70, 40)
    [canvas] = canvases_of(0, here, WHOLE, (Copy.REDUCED,), HOW)
    assert len(places(canvas.pixels, photo(150, 130))) == 1
    [mirrored] = canvases_of(0, low, WHOLE, (Copy.REDUCED,), HOW)
    assert mirrored.pixels.shape == (3, 64, 64)
    assert mirrored.quality.short_side == 40


def test_any_copy_is_one_canvas_of_a_clean_an_equalised_or_a_degraded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Copy] = []

    def noted(image: Image.Image, kind: Copy, *arguments: Any) -> tuple[Image.Image, ViewPlan]:
        drawn.append(kind)
        return copy_of(image, kind, *arguments)

    monkeypatch.setattr("model.data.copies.copy_of", noted)
    wholes = 0
    for index in range(30):
        here = row(tmp_path, f"{index}.png", 80, 70, seed=index)
        [canvas] = canvases_of(0, here, WHOLE, (Copy.ANY,), HOW)
        assert canvas.kind == Copy.ANY
        if drawn[-1] == CLEAN:
            whole = WHOLE.select(tensor(photo(80, 70, index))).canvases[0, 0]
            wholes += bool(torch.equal(canvas.pixels, whole))
    assert all(drawn.count(kind) >= 5 for kind in (CLEAN, EQUALISED, DEGRADED))
    assert 0 < wholes < drawn.count(CLEAN)


def test_every_canvas_carries_the_quality_of_its_copy(tmp_path: Path) -> None:
    canvases = canvases_of(0, row(tmp_path, THIRD[0]), WHOLE, ALL, HOW)
    for condition, kind in JUDGED.items():
        copy = tensor(CONDITIONS[condition](photo(150, 130), rng_of(THIRD[0])))
        own = [canvas for canvas in canvases if canvas.kind == kind]
        assert {canvas.quality for canvas in own} == {measure_quality(copy)}
    [corner] = [canvas for canvas in canvases if canvas.kind == Copy.CORNER]
    assert corner.quality.short_side == min(cut_corner(photo(150, 130)).size)


def test_what_a_step_draws_depends_on_its_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(tmp_path, f"{i}.png", seed=i) for i in range(3)]
    members = torch.tensor([2, 0, 2])
    first = CanvasSource(rows, PLAN, SHARES, HOW).read(members, 5)
    monkeypatch.setattr("model.hardware.cores", lambda: 4)
    several = CanvasSource(rows, PLAN, SHARES, HOW)
    several.read(members, 4)
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(several.read(members, 5), first)
    assert torch.equal(several.read(members[:2], 5), first[:2])
    assert not torch.equal(several.read(members, 6)[1], first[1])
    assert not torch.equal(first[0], first[2])  # one image twice in a step: two draws


def test_copies_are_drawn_as_often_as_their_shares_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def noted(image: Image.Image, kind: int, *arguments: Any) -> tuple[Image.Image, ViewPlan]:
        drawn.append(kind)
        return copy_of(image, CLEAN, *arguments)

    monkeypatch.setattr("model.data.copies.copy_of", noted)
    source = CanvasSource([row(tmp_path, "a.png")], PLAN, (6, 0, 2), HOW)
    source.read(torch.zeros(400, dtype=torch.long), 0)
    assert drawn.count(EQUALISED) == 0
    assert 250 < drawn.count(CLEAN) < 350


def test_images_that_a_step_could_stumble_over_are_found_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        row(tmp_path, "good.png"),
        row(tmp_path, "damaged.png"),
        row(tmp_path, "none.png"),
        row(tmp_path, "small.png", 20, 200),
        row(tmp_path, "long.png", 2000, 90),
    ]
    rows[1].path.write_bytes(rows[0].path.read_bytes()[:2000])  # its header is whole
    rows[2].path.unlink()
    with caplog.at_level(logging.WARNING):
        assert usable(rows, PLAN).tolist() == [True, False, False, False, False]
    # The long one is high enough; its equalised copy, 46 px before its edges are cut, is not.
    assert (
        "4 of 5 images cannot be used: 1 corrupt_image, 2 image_too_small, 1 unreadable"
        in caplog.text
    )
    with pytest.raises(ModelError, match="no image"):
        usable(rows[1:], PLAN)


def test_what_is_skipped_is_counted_by_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(tmp_path, "good.png"), row(tmp_path, "flat.png", 400, 9), row(tmp_path, "text.png")]
    rows[2].path.write_text("no image")
    with caplog.at_level(logging.WARNING):
        results = list(canvases_ahead(rows, PLAN, KINDS, HOW))
    assert [result is None for result in results] == [False, True, True]
    assert (
        "2 of 3 images cannot be used: 1 unsupported_media_type, 1 validation_error" in caplog.text
    )


def test_training_refuses_what_the_service_refuses(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        canvases_of(0, row(tmp_path, "flat.png", 400, 9), PLAN, KINDS, HOW)
    assert refused.value.code == "validation_error"  # the aspect ratio


@pytest.mark.parametrize("size", [(64, 64), (40, 33), (300, 40), (1200, 60)])
def test_every_copy_of_a_usable_image_can_be_cut(size: tuple[int, int], tmp_path: Path) -> None:
    plan = ViewPlan(patches=PatchRule(patch_size=32, canvas_size=64))
    rows = [row(tmp_path, "a.png", *size)]
    assert usable(rows, plan).all()
    source = CanvasSource(rows, plan, SHARES, HOW)
    for step in range(12):
        assert source.read(torch.tensor([0, 0]), step).shape == (2, 3, 64, 64)


def test_one_canvas_of_a_copy_is_the_whole_image_as_often_as_in_service(tmp_path: Path) -> None:
    """In what is drawn anew at every step, and in degraded copies."""
    here = row(tmp_path, "a.png")
    canvases = canvases_of(0, here, WHOLE, (CLEAN, DEGRADED, DEGRADED), HOW)
    assert [canvas.kind for canvas in canvases] == [CLEAN] * 3 + [DEGRADED] * 2
    source = CanvasSource([here], WHOLE, (1, 0, 0), HOW)
    wholes = sum(
        bool(torch.equal(drawn, canvases[0].pixels))
        for step in range(10)
        for drawn in source.read(torch.tensor([0, 0, 0]), step)
    )
    assert 3 <= wholes <= 17
