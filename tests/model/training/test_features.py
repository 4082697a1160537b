"""What the frozen tower computed is kept whole, or computed again."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data import copies
from model.data.copies import CLEAN, DEGRADED, EQUALISED, canvases_of
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
    **runtime: Any,
) -> Features:
    return tower_features(
        rows,
        tower,
        PLAN,
        KINDS,
        Augmentation(),
        cache,
        spec=TowerSpec((depth,), pooled_after),
        runtime=replace(CPU, **runtime),
        frozen=frozen,
        pool_frozen=pool_frozen,
    )


@torch.no_grad()
def test_hidden_states_go_on_to_what_the_whole_tower_gives(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    given = computed(rows, tower, tmp_path / "cache")
    canvases = [
        canvas
        for index, row in enumerate(rows)
        for canvas in canvases_of(index, row, PLAN, KINDS, Augmentation())
    ]
    assert given.row.tolist() == [c.row for c in canvases]
    assert given.kind.tolist() == [c.kind for c in canvases]
    pixels = normalise(torch.stack([c.pixels for c in canvases]))
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
    caplog: pytest.LogCaptureFixture,
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
    [parts] = cache.iterdir()
    assert {path.suffix for path in parts.iterdir()} <= {".safetensors", ""}
    killer, expected = None, [4]
    caplog.clear()
    if meanwhile == "hidden states cut off" and frozen:
        (parts / "hidden").write_bytes((parts / "hidden").read_bytes()[:-1])
        expected = [2, 3, 4]
    elif meanwhile == "a part cut off":
        (parts / "0.safetensors").unlink()
        expected = [0, 1, 2, 3, 4]
    elif meanwhile == "an image edited":
        photo(150, 130, 99).save(rows[3].path)
        expected = [2, 3, 4]
    read.clear()
    again = computed(rows, tower, cache, frozen=frozen)
    assert sorted(read) == expected
    before = f"1 of the first {expected[0]} images, done before, cannot be used"
    assert (before in caplog.text) == (expected[0] > 1)  # else it is read, and counted, again
    whole = computed(rows, tower, tmp_path / "whole", frozen=frozen)
    assert sorted(set(again.row.tolist())) == [0, 2, 3, 4]
    for name in ("tokens", "row", "kind", *(["hidden"] if frozen else [])):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    suffixes = {".hidden", ".safetensors"} if frozen else {".safetensors"}
    assert {path.suffix for path in cache.iterdir()} == suffixes


def test_hidden_states_that_were_deleted_are_computed_again(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    first = computed(rows, tower, tmp_path / "cache")
    assert first.hidden is not None
    kept = first.hidden.clone()
    next((tmp_path / "cache").glob("*.hidden")).unlink()
    again = computed(rows, tower, tmp_path / "cache")
    assert again.hidden is not None
    assert torch.equal(again.hidden, kept)


def test_what_decides_the_features_decides_the_file(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    changes: dict[str, Any]
    for changes in ({}, {"frozen": None}, {"frozen": 2}, {"dtype": torch.bfloat16}):
        computed(rows, tower, tmp_path / "cache", **changes)
    computed(rows[:4], tower, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5


def test_other_images_of_the_same_names_are_computed_anew(
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
    assert torch.equal(edited.tokens[0], second.tokens[0])
    assert torch.equal(edited.tokens[-1], kept[0][-1])
    rows[1].path.unlink()  # one that is gone says nothing; those that are there are looked at
    assert torch.equal(computed(rows, tower, cache).tokens, edited.tokens)
    os.utime(rows[2].path, ns=(0, 0))
    assert sorted(set(computed(rows, tower, cache).row.tolist())) == [0, 2, 3, 4]


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


def test_another_engine_gives_the_same_tokens_in_a_file_of_its_own(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    cache = tmp_path / "cache"
    torch_s = computed(rows, tower, cache, frozen=None).tokens.float()
    other = computed(rows, tower, cache, frozen=None, engine="openvino").tokens.float()
    assert other.shape == torch_s.shape
    assert torch.allclose(other, torch_s, atol=0.02)
    assert len(list(cache.glob("*.safetensors"))) == 2
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


def test_a_deeper_file_serves_a_shallower_need_and_not_the_other_way(
    rows: list[Row], tower: Backbone, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert computed(rows, tower, cache, frozen=None, depth=1).tokens.shape[1] == 1
    deep = computed(rows, tower, cache, frozen=None, depth=3)
    assert deep.tokens.shape[1] == 3
    for row in rows:
        row.path.unlink()  # what follows can only be read back
    assert torch.equal(computed(rows, tower, cache, frozen=None, depth=2).tokens, deep.tokens)
