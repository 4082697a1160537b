import pytest
import torch
from open_clip.transformer import VisionTransformer

from model.errors import ModelError
from model.tower.adapters import merge_lora
from model.tower.sources import random_backbone
from model.training.lora import LoraOptions, attach, deltas
from tests.conftest import TINY

BLOCKS = LoraOptions(blocks=(2, 3), rank=4, alpha=8)


@pytest.fixture
def visual(tiny_tower: object) -> VisionTransformer:
    return random_backbone(TINY, seed=1).visual.eval()


def stir(visual: VisionTransformer) -> None:
    """Give every adapter an effect, as training would."""
    generator = torch.Generator().manual_seed(0)
    for name, p in visual.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.1


def test_adapters_reach_attention_and_mlp_of_the_named_blocks_and_nothing_else_is_trained(
    visual: VisionTransformer,
) -> None:
    attach(visual, BLOCKS)
    layers = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    expected = {f"transformer.resblocks.{i}.{name}" for i in (1, 2) for name in layers}
    assert deltas(visual).keys() == expected
    assert all(p.requires_grad == ("lora_" in n) for n, p in visual.named_parameters())
    visual(torch.randn(2, 3, 64, 64)).sum().backward()
    reached = [n for n, p in visual.named_parameters() if p.grad is not None]
    assert len(reached) == 16


def test_new_adapters_have_no_effect(visual: VisionTransformer) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    before = visual(pixels)
    attach(visual, BLOCKS)
    assert torch.allclose(visual(pixels), before, atol=1e-6)


def test_merged_deltas_give_what_the_adapters_gave(visual: VisionTransformer) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    before = visual(pixels)
    attach(visual, BLOCKS)
    stir(visual)
    adapted = visual(pixels)
    assert not torch.allclose(adapted, before, atol=1e-2)
    plain = random_backbone(TINY, seed=1).visual.eval()
    merge_lora(plain, deltas(visual))
    assert torch.allclose(plain(pixels), adapted, atol=1e-4)


def test_only_attention_or_only_mlp(visual: VisionTransformer) -> None:
    attach(visual, BLOCKS.model_copy(update={"mlp": False}))
    assert {name.split(".")[3] for name in deltas(visual)} == {"attn"}
    other = random_backbone(TINY, seed=1).visual
    attach(other, BLOCKS.model_copy(update={"attention": False}))
    assert {name.split(".")[3] for name in deltas(other)} == {"mlp"}


@pytest.mark.parametrize("change", [{"blocks": (4,)}, {"attention": False, "mlp": False}])
def test_what_cannot_be_adapted_is_a_clear_error(
    visual: VisionTransformer, change: dict[str, object]
) -> None:
    with pytest.raises(ModelError, match="LoRA"):
        attach(visual, BLOCKS.model_copy(update=change))
