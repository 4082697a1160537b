"""What the frozen tower computed is kept whole, or computed again."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data import copies
from model.data.copies import CLEAN, DEGRADED, EQUALISED, Canvas, Copy, canvases_of
from model.data.degrade import Augmentation
from model.data.manifest import AI, Row
from model.engines import base
from model.errors import ModelError
from model.tower.sources import Backbone, load_backbone
from model.tower.tokens import TowerSpec, block_tokens, continue_tokens, normalise
from model.training import features
from model.training.features import Features, tower_features
from tests.conftest import CPU, PLAN, TINY
from tests.images import photo

KINDS = (CLEAN, EQUALISED, DEGRADED)
LENGTH = 5


@pytest.fixture
def tower(tiny_tower: Path) -> Backbone:
    return load_backbone(TINY, path=tiny_tower)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for seed in range(5):
        photo(150, 130, seed).save(tmp_path / f"{seed}.png")
    return [Row(tmp_path / f"{seed}.png", AI, "g", "r") for seed in range(5)]


def computed(
    rows: list[Row],
    tower: Backbone,
    cache: Path,
    *,
    depth: int = 3,
    frozen: int | None = 1,
    pooled_after: int = 0,
    pool_frozen: bool = False,
    kinds: Sequence[Copy] = KINDS,
    **runtime: Any,
) -> Features:
    return tower_features(
        rows,
        tower,
        PLAN,
        kinds,
        Augmentation(),
        cache,
        spec=TowerSpec((depth,), pooled_after),
        runtime=replace(CPU, **runtime),
        frozen=frozen,
        pool_frozen=pool_frozen,
    )


def canvases(rows: list[Row], kinds: Sequence[Copy] = KINDS) -> list[Canvas]:
    return [
        canvas
        for index, row in enumerate(rows)
        for canvas in canvases_of(index, row, PLAN, kinds, Augmentation())
    ]


def number(pixels: Tensor) -> Tensor:
    """Of each canvas, uint8 [n, 3, S, S], one number that float16 holds."""
    return (pixels.long().flatten(1).sum(dim=1) % 2039).half()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tower that gives each canvas's number for its tokens and its states; which were read."""
    read: list[str] = []

    def runner(visual: Any, spec: TowerSpec, *_: Any, **__: Any) -> features.Run:
        width = visual.positional_embedding.shape[1]

        def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
            given = number(pixels)[:, None, None]
            return given.expand(-1, spec.depth, width), given.expand(-1, LENGTH, width)

        return run

    def noted(index: int, row: Row, *rest: Any) -> list[Canvas]:
        read.append(row.path.name)
        return canvases_of(index, row, *rest)

    monkeypatch.setattr(features, "_runner", runner)
    monkeypatch.setattr(copies, "canvases_of", noted)
    return read


def check(given: Features, rows: list[Row], kinds: Sequence[Copy] = KINDS) -> None:
    """Each canvas has its own tokens, states and quality, as the counting tower gives them."""
    expected = canvases(rows, kinds)
    numbers = number(torch.stack([canvas.pixels for canvas in expected]))
    assert given.row.tolist() == [canvas.row for canvas in expected]
    assert given.kind.tolist() == [canvas.kind for canvas in expected]
    assert torch.equal(given.quality, torch.tensor([canvas.quality for canvas in expected]))
    assert bool((given.tokens == numbers[:, None, None]).all())
    assert given.hidden is not None
    assert bool((given.hidden[given.place] == numbers[:, None, None]).all())


def test_a_longer_list_computes_what_is_new_and_a_shorter_one_nothing(
    rows: list[Row], tower: Backbone, tmp_path: Path, counting: list[str]
) -> None:
    cache = tmp_path / "cache"
    check(computed(rows[1:3], tower, cache), rows[1:3])
    for asked, new in (
        (rows[::-1], {"0.png", "3.png", "4.png"}),
        ([rows[3], rows[1]], set()),
        (rows, set()),
    ):
        counting.clear()
        check(computed(asked, tower, cache), asked)
        assert set(counting) == new


def test_every_canvas_has_its_own_states_when_an_image_has_changed(
    rows: list[Row], tower: Backbone, tmp_path: Path, counting: list[str]
) -> None:
    cache = tmp_path / "cache"
    kinds = (*Copy, DEGRADED)  # of some images two canvases more than of others
    check(computed(rows, tower, cache, kinds=kinds), rows, kinds)
    photo(150, 130, 99).save(rows[1].path)
    again = computed(rows, tower, cache, kinds=kinds)
    check(again, rows, kinds)
    assert counting.count("1.png") == 2
    assert len(counting) == 6
    assert again.hidden is not None
    assert len(again.hidden) > len(again.tokens)


def test_an_image_that_cannot_be_used_is_tried_again_when_it_has_changed(
    rows: list[Row],
    tower: Backbone,
    tmp_path: Path,
    counting: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    rows[1].path.write_bytes(b"no image")
    absent = rows[4].path.read_bytes()
    rows[4].path.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            given = computed(rows, tower, cache)
            assert sorted(set(given.row.tolist())) == [0, 2, 3]
    assert "2 of 5 images cannot be used" in caplog.text
    assert "1 of 1 images cannot be used: 1 unreadable" in caplog.text  # said every time
    rows[4].path.write_bytes(absent)
    photo(150, 130, 1).save(rows[1].path)
    counting.clear()
    check(computed(rows, tower, cache), rows)
    assert counting == ["1.png", "4.png"]


@torch.no_grad()
def test_hidden_states_go_on_to_what_the_whole_tower_gives(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    given = computed(rows, tower, tmp_path / "cache")
    expected = canvases(rows)
    assert given.row.tolist() == [c.row for c in expected]
    assert given.kind.tolist() == [c.kind for c in expected]
    pixels = normalise(torch.stack([c.pixels for c in expected]))
    whole = block_tokens(tower.visual, pixels, TowerSpec((1, 2, 3)))
    assert torch.allclose(given.tokens.float(), whole, atol=5e-3)
    assert given.hidden is not None
    assert given.hidden.dtype == torch.float16
    above = TowerSpec((2, 3))
    continued = continue_tokens(tower.visual, given.hidden.float(), 1, above)
    assert torch.allclose(continued, whole[:, 1:], atol=5e-3)


@torch.no_grad()
@pytest.mark.parametrize(("frozen", "pooled_after", "pool"), [(1, 0, True), (2, 1, False)])
def test_pooled_hidden_states_go_on_to_what_the_pooled_tower_gives(
    rows: list[Row], tower: Backbone, tmp_path: Path, frozen: int, pooled_after: int, pool: bool
) -> None:
    given = computed(
        rows, tower, tmp_path, frozen=frozen, pooled_after=pooled_after, pool_frozen=pool
    )
    pooled = computed(rows, tower, tmp_path, frozen=None, pooled_after=1)
    assert given.hidden is not None
    assert given.hidden.shape[1] == 5  # of 17
    last = TowerSpec((3,))
    continued = continue_tokens(tower.visual, given.hidden.float(), frozen, last)
    assert torch.allclose(continued, pooled.tokens[:, 2:].float(), atol=5e-3)
    whole = computed(rows, tower, tmp_path, frozen=None)
    assert torch.equal(given.tokens, whole.tokens if pool else pooled.tokens)
    assert not torch.equal(whole.tokens, pooled.tokens)


@pytest.mark.parametrize("frozen", [1, None])
@pytest.mark.parametrize(
    "meanwhile", ["nothing", "hidden states cut off", "a part cut off", "an image edited"]
)
def test_an_extraction_that_was_killed_goes_on(
    rows: list[Row],
    tower: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: str,
    frozen: int | None,
) -> None:
    """To what it would have been; only what is not as it was is computed again."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(features, "_SAVED", 2)
    rows[1].path.write_bytes(b"no image")
    read: list[int] = []

    def counted(index: int, row: Row, *rest: Any) -> list[Any]:
        read.append(rows.index(row))
        if row is killer:
            raise KeyboardInterrupt
        return canvases_of(index, row, *rest)

    monkeypatch.setattr(copies, "canvases_of", counted)
    killer: Row | None = rows[4]
    with pytest.raises(KeyboardInterrupt):
        computed(rows, tower, cache, frozen=frozen)
    [folder] = cache.iterdir()
    assert {path.name for path in folder.glob("*.*")} == {"0.safetensors", "1.safetensors"}
    killer, expected = None, [4]
    if meanwhile == "hidden states cut off" and frozen:
        (folder / "hidden").write_bytes((folder / "hidden").read_bytes()[:-1])
        expected = [2, 3, 4]
    elif meanwhile == "a part cut off":
        (folder / "0.safetensors").unlink()
        expected = [0, 1, 2, 3, 4]
    elif meanwhile == "an image edited":
        photo(150, 130, 99).save(rows[3].path)
        expected = [3, 4]
    read.clear()
    again = computed(rows, tower, cache, frozen=frozen)
    assert sorted(read) == expected
    whole = computed(rows, tower, tmp_path / "whole", frozen=frozen)
    assert sorted(set(again.row.tolist())) == [0, 2, 3, 4]
    assert torch.equal(again.row, whole.row)
    assert torch.equal(again.kind, whole.kind)
    # An image may have shared a batch with others, which moves last digits.
    assert torch.allclose(again.tokens.float(), whole.tokens.float(), atol=2e-3)
    if frozen:
        assert again.hidden is not None
        assert whole.hidden is not None
        states, expected_states = again.hidden[again.place], whole.hidden[whole.place]
        assert torch.allclose(states.float(), expected_states.float(), atol=2e-3)


def test_hidden_states_that_were_deleted_are_computed_again(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    first = computed(rows, tower, tmp_path / "cache")
    assert first.hidden is not None
    kept = first.hidden.clone()
    next((tmp_path / "cache").glob("*/hidden")).unlink()
    again = computed(rows, tower, tmp_path / "cache")
    assert again.hidden is not None
    assert torch.equal(again.hidden, kept)


def test_what_decides_the_features_decides_the_folder(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    changes: dict[str, Any]
    for changes in (
        {},
        {"frozen": None},
        {"frozen": 2},
        {"dtype": torch.bfloat16},
        {"kinds": (CLEAN, DEGRADED)},
        {"pool_frozen": True},
    ):
        computed(rows, tower, tmp_path / "cache", **changes)
    computed(rows[:4], tower, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_other_images_of_the_same_names_are_computed_beside_them(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = computed(rows, tower, cache)
    assert first.hidden is not None
    kept = first.tokens.clone(), first.hidden.clone()
    (tmp_path / "other").mkdir()
    others = [Row(tmp_path / "other" / row.path.name, AI, "g", "r") for row in rows]
    for seed, row in enumerate(others):
        photo(150, 130, seed + 100).save(row.path)
    second = computed(others, tower, cache)
    alone = computed(others, tower, tmp_path / "alone")
    assert torch.equal(second.tokens, alone.tokens)
    assert not torch.equal(second.tokens, kept[0])
    assert torch.equal(first.hidden, kept[1])  # which a run under way still reads
    rows[0].path.write_bytes(others[0].path.read_bytes())  # edited in place
    edited = computed(rows, tower, cache)
    assert torch.allclose(edited.tokens[0].float(), second.tokens[0].float(), atol=2e-3)
    assert torch.equal(edited.tokens[-1], kept[0][-1])
    rows[1].path.unlink()  # one that is gone says nothing; those that are there are looked at
    assert torch.equal(computed(rows, tower, cache).tokens, edited.tokens)
    os.utime(rows[2].path, ns=(0, 0))
    assert sorted(set(computed(rows, tower, cache).row.tolist())) == [0, 1, 2, 3, 4]


def test_an_extraction_that_fails_takes_nothing_away(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    kept = computed(rows, tower, cache, depth=1).tokens.clone()
    for row in rows:
        row.path.unlink()
    with pytest.raises(ModelError, match="no image could be read"):
        computed(rows, tower, cache, depth=3)
    assert torch.equal(computed(rows, tower, cache, depth=1).tokens, kept)


def test_another_engine_gives_the_same_tokens_in_a_folder_of_its_own(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    cache = tmp_path / "cache"
    torch_s = computed(rows, tower, cache, frozen=None).tokens.float()
    other = computed(rows, tower, cache, frozen=None, engine="openvino").tokens.float()
    assert other.shape == torch_s.shape
    assert torch.allclose(other, torch_s, atol=0.02)
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(ModelError, match="'nonsense' is not one of auto, torch, openvino"):
        computed(rows, tower, cache, frozen=None, engine="nonsense")
    with pytest.raises(ModelError, match="adapters learn from what torch or openvino computes"):
        computed(rows, tower, cache, engine="openvino", precision="int8")


@pytest.mark.parametrize(
    ("frozen", "pooled_after", "pool"), [(1, 0, False), (1, 0, True), (2, 1, False), (3, 0, False)]
)
def test_another_engine_gives_the_same_hidden_states(
    rows: list[Row],
    tower: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frozen: int,
    pooled_after: int,
    pool: bool,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(base, "CPU_TOKENS", 3 * tower.visual.positional_embedding.shape[0])
    kept: dict[str, Any] = {"frozen": frozen, "pooled_after": pooled_after, "pool_frozen": pool}
    ours = computed(rows, tower, tmp_path, **kept)
    theirs = computed(rows, tower, tmp_path, **kept, engine="openvino")
    assert ours.hidden is not None
    assert theirs.hidden is not None
    assert theirs.hidden.shape == ours.hidden.shape
    assert torch.allclose(theirs.hidden.float(), ours.hidden.float(), atol=0.02)
    assert torch.allclose(theirs.tokens.float(), ours.tokens.float(), atol=0.02)


def test_what_is_deeper_serves_a_shallower_need_and_not_the_other_way(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert computed(rows, tower, cache, frozen=None, depth=1).tokens.shape[1] == 1
    deep = computed(rows, tower, cache, frozen=None, depth=3)
    assert deep.tokens.shape[1] == 3
    for row in rows:
        row.path.unlink()  # what follows can only be read back
    shallow = computed(rows, tower, cache, frozen=None, depth=2)
    assert torch.equal(shallow.tokens, deep.tokens[:, :2])
