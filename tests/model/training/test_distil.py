"""A pooled tower learns to give what the whole one gives."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from model.backbone import load_backbone
from model.errors import ModelError
from model.nsnet import block_tokens, hidden_states, merge_lora, normalise, pool_tokens
from model.training import lora
from model.training.distil import DistilOptions, distil
from model.training.lora import LoraOptions
from model.training.trainer import FitOptions
from tests.conftest import TINY
from tests.model.test_nsnet import canvases

OPTIONS = DistilOptions(
    lora=LoraOptions(blocks=(2, 3), rank=8),
    fit=FitOptions(steps=80, batch_size=32, lora_learning_rate=1e-2, weight_decay=0.0, ema=0.9),
)


def test_adapters_make_up_for_pooled_tokens(tiny_tower: Path) -> None:
    """Of images that were not learned from, too, and as the tower gives them once merged."""
    whole = load_backbone(TINY, path=tiny_tower).visual
    pixels = normalise(canvases(240))
    with torch.inference_mode():
        tokens = block_tokens(whole, pixels, (2, 3)).half()
        hidden = pool_tokens(hidden_states(whole, pixels, (1,))[0]).half()
        plain = block_tokens(whole, pixels, (2, 3), pooled_after=1)
    seen, unseen = slice(0, 200), slice(200, None)
    student = load_backbone(TINY, path=tiny_tower).visual
    given = distil(
        student, hidden[seen], tokens[seen], 1, (2, 3), OPTIONS, accelerator=Accelerator(cpu=True)
    )
    adapted = load_backbone(TINY, path=tiny_tower).visual
    merge_lora(adapted, lora.deltas(student))
    with torch.inference_mode():
        found = block_tokens(adapted, pixels, (2, 3), pooled_after=1)
    assert torch.allclose(found[seen], given.float(), atol=1e-2)

    def error(these: torch.Tensor, where: slice) -> float:
        return float((these[where] - tokens[where].float()).square().mean())

    assert error(found, seen) < 0.7 * error(plain, seen)
    assert error(found, unseen) < 0.8 * error(plain, unseen)


def test_a_tower_that_is_not_read_above_its_pooled_tokens_is_refused(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    nothing = torch.zeros(4, 0, 32)
    with pytest.raises(ModelError, match="no block that is read"):
        distil(
            visual, torch.zeros(4, 5, 32), nothing, 1, (), OPTIONS,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip
