from pathlib import Path

import pytest
import torch

from model.errors import CheckpointError
from model.tower.adapters import merge_lora
from model.tower.sources import load_backbone
from tests.conftest import TINY


def test_lora_is_merged_into_fused_attention_and_mlp(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    name = "transformer.resblocks.1.attn.in_proj_weight"
    before = visual.get_parameter(name).clone()
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    merge_lora(visual, {name: (down, up)})
    assert torch.allclose(visual.get_parameter(name), before + up @ down, atol=1e-6)
    merge_lora(visual, {name: (-down.double(), up.double())})  # the pair need not be float32
    assert torch.allclose(visual.get_parameter(name), before, atol=1e-5)
    for bad in (
        {name: (torch.randn(2, 31), up)},
        {name: (down, torch.randn(96, 3))},  # of two pairs
        {name: (torch.randn(32), up)},
        {name: (down.int(), up)},
        {name: (down, up.to(torch.complex64))},
        {"transformer.resblocks.9.mlp.c_fc.weight": (down, up)},
    ):
        with pytest.raises(CheckpointError, match="does not fit"):
            merge_lora(visual, bad)
