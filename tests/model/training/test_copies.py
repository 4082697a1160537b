"""Copies of images: the same ones every time, whoever else is in the data."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.errors import ModelError
from model.patches import PatchRule, select_patches
from model.training.augment import Augmentation
from model.training.copies import (
    CLEAN,
    DEGRADED,
    EQUALISED,
    Canvas,
    CanvasSource,
    canvases_of,
    copy_of,
    one_canvas,
    usable,
)
from model.training.manifest import AI, Row
from tests.conftest import RULE
from tests.images import photo

HOW = Augmentation()
KINDS = (CLEAN, EQUALISED, DEGRADED, DEGRADED)
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
    found = canvases_of(0, here, RULE, KINDS, HOW)
    again = canvases_of(7, there, RULE, KINDS, HOW)
    renamed = canvases_of(0, other, RULE, KINDS, HOW)
    assert {canvas.row for canvas in again} == {7}
    for kind in (CLEAN, EQUALISED, DEGRADED):
        same = zip(pixels(found, kind), pixels(again, kind), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(pixels(found, DEGRADED)[0], pixels(renamed, DEGRADED)[0])
    first, second = pixels(found, DEGRADED)  # one canvas of each
    assert not torch.equal(first, second)


def test_the_clean_copy_is_cut_from_the_image_as_in_service(tmp_path: Path) -> None:
    clean = pixels(canvases_of(0, row(tmp_path, "a.png"), RULE, KINDS, HOW), CLEAN)
    image = torch.from_numpy(np.array(photo(150, 130))).permute(2, 0, 1)[None]
    assert torch.equal(torch.stack(clean), select_patches(image, RULE).canvases[0])


def test_what_a_step_draws_depends_on_its_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(tmp_path, f"{i}.png", seed=i) for i in range(3)]
    members = torch.tensor([2, 0, 2])
    first = CanvasSource(rows, RULE, SHARES, HOW).read(members, 5)
    monkeypatch.setattr("model.cores.cores", lambda: 4)
    several = CanvasSource(rows, RULE, SHARES, HOW)
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

    def noted(image: Image.Image, kind: int, *arguments: Any) -> tuple[Image.Image, PatchRule]:
        drawn.append(kind)
        return copy_of(image, CLEAN, *arguments)

    monkeypatch.setattr("model.training.copies.copy_of", noted)
    source = CanvasSource([row(tmp_path, "a.png")], RULE, (6, 0, 2), HOW)
    source.read(torch.zeros(400, dtype=torch.long), 0)
    assert drawn.count(EQUALISED) == 0
    assert 250 < drawn.count(CLEAN) < 350


def test_images_that_a_step_could_stumble_over_are_found_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(tmp_path, "good.png"), row(tmp_path, "damaged.png"), row(tmp_path, "none.png"),
            row(tmp_path, "small.png", 20, 200), row(tmp_path, "long.png", 2000, 90)]  # fmt: skip
    rows[1].path.write_bytes(rows[0].path.read_bytes()[:2000])  # its header is whole
    rows[2].path.unlink()
    with caplog.at_level(logging.WARNING):
        assert usable(rows, RULE).tolist() == [True, False, False, False, False]
    assert "4 of 5 images" in caplog.text
    # The long one is high enough; its equalised copy, 46 px before its edges are cut, is not.
    with pytest.raises(ModelError, match="no image"):
        usable(rows[1:], RULE)


@pytest.mark.parametrize("size", [(64, 64), (40, 33), (300, 40), (1200, 60)])
def test_every_copy_of_a_usable_image_can_be_cut(size: tuple[int, int], tmp_path: Path) -> None:
    rule = PatchRule(patch_size=32, canvas_size=64)
    rows = [row(tmp_path, "a.png", *size)]
    assert usable(rows, rule).all()
    source = CanvasSource(rows, rule, SHARES, HOW)
    for step in range(12):
        assert source.read(torch.tensor([0, 0]), step).shape == (2, 3, 64, 64)


def test_one_canvas_of_a_copy_is_the_whole_image_as_often_as_in_service(tmp_path: Path) -> None:
    """In what is drawn anew at every step, and in degraded copies."""
    rule = PatchRule(patch_size=64, canvas_size=64, canvases=3, whole=True, high_share=1.0)
    rng = np.random.default_rng(0)
    drawn = [one_canvas(rule, rng) for _ in range(600)]
    assert {cut.canvases for cut in drawn} == {1}
    assert 160 < sum(cut.whole for cut in drawn) < 240

    here = row(tmp_path, "a.png")
    found = canvases_of(0, here, rule, (CLEAN, DEGRADED, DEGRADED), HOW)
    assert [canvas.kind for canvas in found] == [CLEAN] * 3 + [DEGRADED] * 2
    image = torch.from_numpy(np.array(photo(150, 130))).permute(2, 0, 1)[None]
    assert torch.equal(found[0].pixels, select_patches(image, rule).canvases[0, 0])
    source = CanvasSource([here], rule, (1, 0, 0), HOW)
    wholes = sum(
        bool(torch.equal(pixels, found[0].pixels))
        for step in range(10)
        for pixels in source.read(torch.tensor([0, 0, 0]), step)
    )
    assert 3 <= wholes <= 17
