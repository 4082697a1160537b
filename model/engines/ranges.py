"""What the tower's linear layers read: the ranges that int8 with fixed scales needs.

CLIP's activations have outlier channels: one scale for all channels of a layer, from its largest
value, leaves the others a few levels. SmoothQuant (arXiv 2211.10438, eq. 3-4) divides each channel
by a factor before it is rounded, and multiplies the weights that read it by the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model.tower.tokens import TowerSpec, block_tokens, normalise

LAYERS = ("in_proj", "out_proj", "c_fc", "c_proj")
# How much of a channel's spread goes into the weights.
_ALPHA = 0.8
_BATCH = 8

Ranges = Mapping[str, Tensor]


@torch.inference_mode()
def activation_ranges(
    visual: VisionTransformer, canvases: Tensor, spec: TowerSpec
) -> dict[str, Tensor]:
    """Least and greatest value of every channel that a linear layer reads.

    Args:
        visual: the tower, float32, on the CPU.
        canvases: uint8 [n, 3, S, S], as in service; a few dozen of many kinds of images.
        spec: what is run of it.

    Returns:
        By `LAYERS`: float32 [depth, 2, channels].
    """
    ends: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    batch: dict[str, list[Tensor]] = {}

    def record(layer: str, values: Tensor) -> None:
        batch[layer].append(torch.stack(values.flatten(0, -2).aminmax(dim=0)))

    def attend(attention: Any, normed: Tensor) -> None:
        record("in_proj", normed)
        record("out_proj", _mixed(attention, normed))

    hooks = []
    for block in visual.transformer.resblocks[: spec.depth]:
        for module, keep in (
            (block.ln_1, lambda normed, block=block: attend(block.attn, normed)),
            (block.ln_2, lambda normed: record("c_fc", normed)),
            (block.mlp.gelu, lambda hidden: record("c_proj", hidden)),
        ):
            hooks.append(module.register_forward_hook(lambda _, __, out, keep=keep: keep(out)))
    try:
        for chunk in torch.split(canvases, _BATCH):
            batch = {layer: [] for layer in LAYERS}
            block_tokens(visual, normalise(chunk), spec)
            for layer in LAYERS:
                ends[layer].append(torch.stack(batch[layer]))  # [depth, 2, channels]
    finally:
        for hook in hooks:
            hook.remove()
    chunks = {layer: torch.stack(parts) for layer, parts in ends.items()}
    return {
        layer: torch.stack([of[:, :, 0].amin(dim=0), of[:, :, 1].amax(dim=0)], dim=1)
        for layer, of in chunks.items()
    }


def ranges_shapes(visual: VisionTransformer, depth: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what `activation_ranges` gives for `depth` blocks of a tower, by `LAYERS`."""
    block: Any = visual.transformer.resblocks[0]
    width, hidden = block.attn.embed_dim, block.mlp.c_fc.out_features
    return {layer: (depth, 2, hidden if layer == "c_proj" else width) for layer in LAYERS}


def _mixed(attention: nn.MultiheadAttention, normed: Tensor) -> Tensor:
    """What attention gives its output projection: [n, l, width] -> the same shape."""
    heads = attention.num_heads
    fused = nn.functional.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    split = fused.view(*normed.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def smooth(weight: Tensor, ranges: Tensor) -> tuple[Tensor, float, float]:
    """Factors that even out the channels of a layer's input.

    Args:
        weight: float [out, channels], of the layer.
        ranges: float32 [2, channels], of what it reads.

    Returns:
        Factors [channels] to divide the input by and multiply the weight's columns by; the least
        and the greatest value of the divided input.
    """
    spread = ranges.abs().amax(dim=0).clamp_min(1e-5)
    factors = spread**_ALPHA / weight.abs().amax(dim=0).clamp_min(1e-5) ** (1 - _ALPHA)
    low, high = ranges / factors
    return factors, float(low.min()), float(high.max())
