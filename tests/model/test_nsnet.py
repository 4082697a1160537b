from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError

from model.backbone import load_backbone, random_backbone
from model.errors import CheckpointError
from model.nsnet import (
    PRESETS,
    NSNet,
    NSNetConfig,
    block_tokens,
    continue_tokens,
    hidden_states,
    merge_lora,
    pool_tokens,
)
from model.nullspace import null_space
from model.patches import PatchRule
from tests.conftest import RULE, TINY


def canvases(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


def test_logits_are_the_means_of_each_images_canvases(network: NSNet) -> None:
    pixels = canvases(5)
    with torch.inference_mode():
        alone = [network(pixels[i : i + 1], [1]) for i in range(5)]
        together = network(pixels, [2, 3])
    expected = [torch.cat(alone[:2]).mean(), torch.cat(alone[2:]).mean()]
    assert torch.allclose(together, torch.stack(expected), atol=1e-5)


def test_the_whole_image_counts_by_its_share() -> None:
    rule = PatchRule(canvases=3, high_share=1.0, whole=True)
    config = NSNetConfig(
        backbone=TINY, features="blocks", blocks=(1,), patches=rule, whole_share=0.7
    )
    logits = [2.0, -1.0, 3.0]
    assert config.combine(logits) == pytest.approx(0.7 * 2 + 0.3 * 1)
    assert config.combine(logits[:1]) == 2
    assert float(config.combine(torch.tensor(logits).unbind())) == pytest.approx(1.7)
    windows = config.model_copy(update={"patches": PatchRule(canvases=3)})
    assert windows.combine(logits) == pytest.approx(4 / 3)


def test_features_hold_no_text_direction(network: NSNet) -> None:
    with torch.inference_mode():
        features = network.decouple(network.tokens(canvases(3))).view(-1, network.basis.shape[0])
    assert features.norm(dim=1).min() > 0.05
    assert float((features @ network.basis).abs().max()) < 1e-4


def test_block_tokens_are_the_towers_own(tiny_tower: Path) -> None:
    """Block 3 of 3, projected, is the joint-space feature: the same numbers by another way."""
    visual = load_backbone(TINY, path=tiny_tower).visual
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = block_tokens(visual, pixels, (1, 3))
        assert torch.allclose(tokens[:, 1] @ visual.proj, visual(pixels), atol=1e-5)


def test_a_truncated_tower_gives_the_same_block_tokens(tiny_tower: Path) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = load_backbone(TINY, path=tiny_tower).visual
    short = load_backbone(TINY, path=tiny_tower, depth=2).visual
    assert len(short.transformer.resblocks) == 2
    with torch.inference_mode():
        expected = block_tokens(whole, pixels, (1, 2))
        assert torch.equal(block_tokens(short, pixels, (1, 2)), expected)


def test_patch_tokens_are_averaged_in_squares() -> None:
    """Four by four, row by row, after CLS."""
    tokens = torch.arange(17.0).view(1, 17, 1).expand(2, 17, 3) - 1
    pooled = pool_tokens(tokens)
    assert pooled.shape == (2, 5, 3)
    assert pooled[1, :, 2].tolist() == [-1, 2.5, 4.5, 10.5, 12.5]


@torch.inference_mode()
def test_a_pooled_tower_is_the_whole_one_up_to_the_pooling(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second, third = hidden_states(visual, pixels, (1, 2, 3), pooled_after=2)
    assert [len(state[0]) for state in (first, second, third)] == [17, 5, 5]
    whole = hidden_states(visual, pixels, (1, 2))
    assert torch.equal(first, whole[0])
    assert torch.equal(second, pool_tokens(whole[1]))
    assert torch.allclose(third, visual.transformer.resblocks[2](second), atol=1e-6)
    tokens = block_tokens(visual, pixels, (2, 3), pooled_after=2)
    assert torch.allclose(tokens[:, 0], block_tokens(visual, pixels, (2,))[:, 0], atol=1e-6)
    assert torch.allclose(tokens[:, 1], visual.ln_post(third[:, 0]), atol=1e-6)
    assert torch.allclose(continue_tokens(visual, first, 1, (2, 3), 2), tokens, atol=1e-6)
    assert torch.allclose(continue_tokens(visual, second, 2, (3,), 2), tokens[:, 1:], atol=1e-6)


def test_patches_that_make_no_squares_are_not_pooled() -> None:
    config = {"embed_dim": 24, "vision_cfg": {"image_size": 48, "layers": 2, "width": 32,
              "patch_size": 16, "head_width": 16}}  # fmt: skip
    network = NSNetConfig(
        backbone="three by three", features="blocks", blocks=(2,), pooled_after=1,
        patches=PatchRule(patch_size=48, canvas_size=48),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="no squares"):
        NSNet(network, random_backbone(config).visual, torch.eye(32)[:, :4])


def test_lora_is_merged_into_fused_attention_and_mlp(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    name = "transformer.resblocks.1.attn.in_proj_weight"
    before = visual.get_parameter(name).clone()
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    merge_lora(visual, {name: (down, up)})
    assert torch.allclose(visual.get_parameter(name), before + up @ down, atol=1e-6)
    for bad in (
        {name: (torch.randn(2, 31), up)},
        {"transformer.resblocks.9.mlp.c_fc.weight": (down, up)},
    ):
        with pytest.raises(CheckpointError, match="does not fit"):
            merge_lora(visual, bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "blocks"}, "if and only if"),
        ({"features": "joint", "blocks": (1,)}, "if and only if"),
        ({"features": "blocks", "blocks": (2, 1)}, "rising"),
        ({"features": "blocks", "blocks": (0, 1)}, "from 1"),
        ({"features": "blocks", "blocks": (1, 2), "pooled_after": 2}, "no block that is read"),
    ],
)
def test_contradictory_configurations_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NSNetConfig.model_validate({"backbone": TINY, **options})


def test_a_network_that_does_not_fit_its_tower_is_refused(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    basis = torch.eye(32)[:, :4]
    good = NSNetConfig(backbone=TINY, features="blocks", blocks=(1, 2), hidden=8, patches=RULE)
    for change, given, message in (
        ({}, torch.eye(24)[:, :4], "basis"),
        ({}, torch.eye(32), "basis"),
        ({"blocks": (4,)}, basis, "no block 4"),
        ({"patches": {"canvas_size": 96, "patch_size": 32}}, basis, "96 px"),
    ):
        config = NSNetConfig.model_validate(good.model_dump() | change)
        with pytest.raises(CheckpointError, match=message):
            NSNet(config, visual, given)


def test_the_papers_preset_runs_end_to_end_on_vit_l_14() -> None:
    config = PRESETS["paper"]
    settings = open_clip.get_model_config(config.backbone)
    # Two of its 24 blocks: the full width, patch size and joint space, in seconds.
    settings["vision_cfg"]["layers"] = 2
    tower = random_backbone({"embed_dim": 768, "quick_gelu": True,
                             "vision_cfg": settings["vision_cfg"]})  # fmt: skip
    V = torch.randn(100, 768, generator=torch.Generator().manual_seed(0))
    network = NSNet(config, tower.visual, null_space(V, rank=64).basis).eval()
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert bool(torch.isfinite(network(image, [1, 1])).all())
