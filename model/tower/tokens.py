"""What is read from a CLIP image tower: CLS tokens of chosen blocks, the rest of it not run."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from model.tower.sources import MEAN, STD


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """What is read of a tower, and so how much of it is run.

    Attributes:
        reads: blocks whose CLS tokens are read, counted from 1, rising.
        pooled_after: block, from 1, after which the patch tokens are averaged in squares of 2 x 2;
            0: none.
    """

    reads: tuple[int, ...]
    pooled_after: int = 0

    @property
    def depth(self) -> int:
        """Blocks that are run."""
        return self.reads[-1]


@functools.cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's mean and deviation for 0..255, each [3, 1, 1]; copied to a device once."""
    with torch.inference_mode(mode=False):
        mean, std = (255 * torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    return mean, std


def normalise(canvases: Tensor) -> Tensor:
    """CLIP's input from canvases: uint8 [n, 3, S, S] -> float32 of the same shape."""
    mean, std = _pixel_statistics(canvases.device)
    return (canvases - mean) / std


def pool_tokens(hidden: Tensor) -> Tensor:
    """Average the patch tokens in squares of 2 x 2; CLS, the first, stays as it is.

    [n, 1 + g * g, width] -> [n, 1 + g * g / 4, width].
    """
    cls, patches = hidden[:, :1], hidden[:, 1:]
    half = math.isqrt(patches.shape[1]) // 2
    squares = patches.unflatten(1, (half, 2, half, 2))  # type: ignore[no-untyped-call]
    return torch.cat([cls, squares.mean(dim=(2, 4)).flatten(1, 2)], dim=1)


def hidden_states(visual: VisionTransformer, pixels: Tensor, spec: TowerSpec) -> list[Tensor]:
    """All tokens after each block that is read, CLS first, as the next block reads them.

    Args:
        visual: the tower.
        pixels: float [n, 3, S, S], normalised.
        spec: the blocks.

    Returns:
        [n, L, width] each; past `pooled_after`, L is that of `pool_tokens`.
    """
    stop = min(spec.pooled_after or spec.depth, spec.depth)
    first = sorted({*(b for b in spec.reads if b < stop), stop})
    out: dict[str, list[Tensor]] = visual.forward_intermediates(
        pixels,
        indices=[b - 1 for b in first],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
    states = dict(zip(first, (torch.cat(pair, dim=1) for pair in pairs), strict=True))
    if stop == spec.pooled_after:
        states[stop] = pool_tokens(states[stop])
    states |= _onward(visual, states[stop], stop, spec)
    return [states[block] for block in spec.reads]


def _onward(
    visual: VisionTransformer, hidden: Tensor, done: int, spec: TowerSpec
) -> dict[int, Tensor]:
    """The states after each block past `done`, from what block `done + 1` reads."""
    states = {}
    for number in range(done + 1, spec.depth + 1):
        hidden = visual.transformer.resblocks[number - 1](hidden)
        if number == spec.pooled_after:
            hidden = pool_tokens(hidden)
        states[number] = hidden
    return states


def block_tokens(visual: VisionTransformer, pixels: Tensor, spec: TowerSpec) -> Tensor:
    """ln_post of the CLS token after each block that is read: [n, len(reads), width].

    ln_post brings every block into the space that the tower's projection reads, where the
    pulled-back text directions live; after the last block it is what CLIP itself projects.

    Args:
        visual: the tower.
        pixels: float [n, 3, S, S], normalised.
        spec: the blocks.
    """
    return _read(visual, hidden_states(visual, pixels, spec))


def continue_tokens(
    visual: VisionTransformer, hidden: Tensor, done: int, spec: TowerSpec
) -> Tensor:
    """`block_tokens`, of blocks all past `done`, from what block `done + 1` reads.

    Args:
        visual: the tower.
        hidden: float [n, L, width], all tokens, CLS first.
        done: the last block, from 1, that they have passed.
        spec: the blocks.

    Returns:
        [n, len(reads), width].
    """
    states = _onward(visual, hidden, done, spec)
    return _read(visual, [states[block] for block in spec.reads])


def _read(visual: VisionTransformer, states: Sequence[Tensor]) -> Tensor:
    return torch.cat([visual.ln_post(hidden[:, :1]) for hidden in states], dim=1)
