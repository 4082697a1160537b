from pathlib import Path

import torch

from model.tower.sources import load_backbone
from model.tower.tokens import TowerSpec, block_tokens, continue_tokens, hidden_states, pool_tokens
from tests.conftest import TINY


def test_block_tokens_are_the_towers_own(tiny_tower: Path) -> None:
    """Block 3 of 3, projected, is the joint-space feature: the same numbers by another way."""
    visual = load_backbone(TINY, path=tiny_tower).visual
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = block_tokens(visual, pixels, TowerSpec((1, 3)))
        assert torch.allclose(tokens[:, 1] @ visual.proj, visual(pixels), atol=1e-5)


def test_a_truncated_tower_gives_the_same_block_tokens(tiny_tower: Path) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = load_backbone(TINY, path=tiny_tower).visual
    short = load_backbone(TINY, path=tiny_tower, depth=2).visual
    assert len(short.transformer.resblocks) == 2
    with torch.inference_mode():
        expected = block_tokens(whole, pixels, TowerSpec((1, 2)))
        assert torch.equal(block_tokens(short, pixels, TowerSpec((1, 2))), expected)


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
    first, second, third = hidden_states(visual, pixels, TowerSpec((1, 2, 3), 2))
    assert [len(state[0]) for state in (first, second, third)] == [17, 5, 5]
    whole = hidden_states(visual, pixels, TowerSpec((1, 2)))
    assert torch.equal(first, whole[0])
    assert torch.equal(second, pool_tokens(whole[1]))
    assert torch.allclose(third, visual.transformer.resblocks[2](second), atol=1e-6)
    spec = TowerSpec((2, 3), 2)
    tokens = block_tokens(visual, pixels, spec)
    alone = block_tokens(visual, pixels, TowerSpec((2,)))
    assert torch.allclose(tokens[:, 0], alone[:, 0], atol=1e-6)
    assert torch.allclose(tokens[:, 1], visual.ln_post(third[:, 0]), atol=1e-6)
    assert torch.allclose(continue_tokens(visual, first, 1, spec), tokens, atol=1e-6)
    last = continue_tokens(visual, second, 2, TowerSpec((3,), 2))
    assert torch.allclose(last, tokens[:, 1:], atol=1e-6)
