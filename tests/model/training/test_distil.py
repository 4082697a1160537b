"""A pooled tower learns to give what the whole one gives."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from model.errors import ModelError
from model.tower.adapters import merge_lora
from model.tower.sources import load_backbone
from model.tower.tokens import TowerSpec, block_tokens, hidden_states, normalise, pool_tokens
from model.training import lora
from model.training.distil import DistilOptions, distil
from model.training.lora import LoraOptions
from model.training.trainee import TensorSource
from model.training.trainer import FitOptions
from tests.conftest import TINY
from tests.model.test_network import canvases

POOLED = TowerSpec((2, 3), pooled_after=1)
OPTIONS = DistilOptions(
    lora=LoraOptions(blocks=(2, 3), rank=8),
    fit=FitOptions(steps=80, batch_size=32, lora_learning_rate=1e-2, weight_decay=0.0, ema=0.9),
)


def test_adapters_make_up_for_pooled_tokens(tiny_tower: Path) -> None:
    """Of images that were not learned from, too, and as the tower gives them once merged."""
    whole = load_backbone(TINY, path=tiny_tower).visual
    pixels = normalise(canvases(240))
    with torch.inference_mode():
        tokens = block_tokens(whole, pixels, TowerSpec((2, 3))).half()
        hidden = pool_tokens(hidden_states(whole, pixels, TowerSpec((1,)))[0]).half()
        plain = block_tokens(whole, pixels, POOLED)
    seen, unseen = slice(40, None), slice(0, 40)
    student = load_backbone(TINY, path=tiny_tower).visual
    learned_from = TensorSource(hidden, torch.arange(240)[seen])
    distil(student, learned_from, tokens[seen], POOLED, OPTIONS, accelerator=Accelerator(cpu=True))
    adapted = load_backbone(TINY, path=tiny_tower).visual
    merge_lora(adapted, lora.deltas(student))
    with torch.inference_mode():
        learned = block_tokens(adapted, pixels, POOLED)

    def error(these: torch.Tensor, where: slice) -> float:
        return float((these[where] - tokens[where].float()).square().mean())

    assert error(learned, seen) < 0.7 * error(plain, seen)
    assert error(learned, unseen) < 0.8 * error(plain, unseen)


def test_a_tower_that_is_not_read_above_its_pooled_tokens_is_refused(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    hidden = TensorSource(torch.zeros(4, 5, 32), torch.arange(4))
    nothing, none = torch.zeros(4, 0, 32), TowerSpec((), 1)
    with pytest.raises(ModelError, match="no block that is read"):
        distil(visual, hidden, nothing, none, OPTIONS, accelerator=Accelerator(cpu=True))
