"""What an adapted tower was adapted to, and what heads are then fitted to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from model.data.copies import Copy, canvases_of
from model.data.manifest import AI, Row
from model.network import NSNetConfig
from model.tower.adapters import Deltas, merge_lora
from model.tower.sources import Backbone, load_backbone
from model.tower.tokens import TowerSpec, block_tokens, hidden_states, normalise, pool_tokens
from model.training import adapted
from model.training.adapted import distilled, frozen_features
from model.training.distil import DistilOptions, distil
from model.training.lora import LoraOptions
from model.training.options import TrainOptions
from model.training.trainee import TensorSource
from model.training.trainer import FitOptions
from tests.conftest import CPU, PLAN, TINY
from tests.images import photo

SPEC = TowerSpec((1, 3), pooled_after=1)
FEW = FitOptions(steps=3, batch_size=4, lora_learning_rate=1e-2)
OPTIONS = TrainOptions(
    network=NSNetConfig(backbone=TINY, features="blocks", blocks=(1, 3), pooled_after=1, hidden=8),
    views=PLAN,
    distil=DistilOptions(lora=LoraOptions(blocks=(2, 3), rank=2), images=3, fit=FEW),
)


@pytest.fixture(autouse=True)
def _known(tiny_tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.tower.sources.cached_path", lambda *_: tiny_tower)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for seed in range(7):
        photo(150, 130, seed).save(tmp_path / f"{seed}.png")
    return [Row(tmp_path / f"{seed}.png", AI, "g", "r") for seed in range(7)]


@dataclass(slots=True)
class Learned:
    """What was learned from."""

    hidden: TensorSource
    tokens: Tensor
    spec: TowerSpec


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Learned]:
    """Of each time that a tower was distilled."""
    noted: list[Learned] = []

    def note(
        visual: Any, hidden: TensorSource, tokens: Tensor, spec: TowerSpec, *rest: Any, **by: Any
    ) -> None:
        noted.append(Learned(hidden, tokens.clone(), spec))
        distil(visual, hidden, tokens, spec, *rest, **by)

    monkeypatch.setattr(adapted, "distil", note)
    return noted


def adapt(rows: list[Row], cache: Path) -> tuple[Backbone, Deltas]:
    accelerator = Accelerator(cpu=True)
    tower = load_backbone(TINY)
    return distilled(rows, tower, SPEC, OPTIONS, cache, CPU, accelerator=accelerator, run=None)


@torch.no_grad()
def check(learned: Learned, rows: list[Row]) -> None:
    """Beside each canvas's pooled states, what the whole tower gives for that very canvas."""
    canvases = [
        canvas.pixels
        for row in rows
        for canvas in canvases_of(0, row, PLAN, (Copy.ANY,), OPTIONS.augmentation)
    ]
    assert len(canvases) == len(rows) == len(learned.hidden) == len(learned.tokens)
    whole = load_backbone(TINY).visual
    pixels = normalise(torch.stack(canvases))
    pooled = pool_tokens(hidden_states(whole, pixels, TowerSpec((1,)))[0])
    hidden = learned.hidden.read(torch.arange(len(canvases)), 0)
    assert torch.allclose(hidden, pooled, atol=5e-3)
    tokens = block_tokens(whole, pixels, TowerSpec((3,)))
    assert torch.allclose(learned.tokens.float(), tokens, atol=5e-3)
    assert learned.spec == TowerSpec((3,), pooled_after=1)


def test_a_tower_learns_from_one_canvas_of_some_images_all_over_the_list(
    rows: list[Row], tmp_path: Path, learned: list[Learned]
) -> None:
    adapt(rows, tmp_path / "cache")
    check(learned[0], rows[::2])
    photo(150, 130, 99).save(rows[2].path)  # its states come after all others
    adapt(rows, tmp_path / "cache")
    check(learned[1], rows[::2])


def test_heads_are_fitted_to_what_the_adapted_tower_gives(rows: list[Row], tmp_path: Path) -> None:
    plain = load_backbone(TINY)
    tower, deltas = adapt(rows, tmp_path / "cache")
    assert tower.sha256 != plain.sha256
    assert adapt(rows, tmp_path / "cache")[0].sha256 == tower.sha256
    given = frozen_features(rows, tower, SPEC, OPTIONS, tmp_path / "cache", CPU)
    assert given.hidden is None
    merge_lora(plain.visual, deltas)
    pixels = torch.stack(
        [
            canvas.pixels
            for index, row in enumerate(rows)
            for canvas in canvases_of(index, row, PLAN, OPTIONS.kinds, OPTIONS.augmentation)
        ]
    )
    with torch.inference_mode():
        expected = block_tokens(plain.visual, normalise(pixels), SPEC)
    assert torch.allclose(given.tokens[:, [0, 2]].float(), expected, atol=5e-3)
    kinds = {Copy(kind) for kind in given.kind.tolist()}
    assert kinds == {*Copy} - {Copy.ANY}
