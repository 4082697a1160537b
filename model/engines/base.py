"""What the engines share: their protocol, and what their graphs are made of."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from model.backbone import MEAN, STD
from model.errors import ModelError

Array = NDArray[np.float32]

# In one forward on a CPU: more at once is no faster, and takes memory with it.
CPU_TOKENS = 8 * 197


class EngineError(ModelError):
    """The engine cannot be had here, or does not know the tower."""


class Engine(Protocol):
    """A tower ready to run."""

    name: str

    def __call__(self, canvases: Tensor) -> Tensor:
        """ln_post of the CLS tokens of the blocks read.

        Args:
            canvases: uint8 [n, 3, S, S].

        Returns:
            float [n, blocks, width], on the device that computed it.
        """


def cpu_has(*features: str) -> bool:
    """Whether the CPU has any of these instruction sets, by torch's names."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in features)


def chunk_of(visual: VisionTransformer) -> int:
    """Canvases that a CPU takes in one forward."""
    length: int = visual.positional_embedding.shape[0]
    return max(1, CPU_TOKENS // length)


def in_parts(run: Callable[[Tensor], Tensor], canvases: Tensor, size: int) -> Tensor:
    """Tokens of canvases [n, 3, S, S], `run` on at most `size` of them at once."""
    found = [run(part) for part in torch.split(canvases, size)]
    return found[0] if len(found) == 1 else torch.cat(found)


def check_tower(visual: VisionTransformer, blocks: Iterable[Any]) -> None:
    """Refuse a tower with parts that the graphs do not draw: its tokens would be wrong.

    Raises:
        EngineError: it has such a part.
    """
    known = (
        visual.conv1.bias is None
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and all(
            isinstance(block.ls_1, nn.Identity)
            and isinstance(block.ls_2, nn.Identity)
            and isinstance(block.attn, nn.MultiheadAttention)
            and isinstance(block.mlp.gelu, (QuickGELU, nn.GELU))
            for block in blocks
        )
    )
    if not known:
        raise EngineError("no engine's graph draws this tower; use NSNET_ENGINE=torch")


def numpy_of(tensor: Tensor) -> Array:
    """float32, on the CPU."""
    array: Array = tensor.detach().float().cpu().numpy()
    return array


def embedding(visual: VisionTransformer) -> tuple[Array, Array, Array]:
    """Weights that embed pixels as they come, 0 to 255, with CLIP's normalisation in them.

    Returns:
        The convolution's, [width, 3, patch, patch]; CLS with its position, [width]; what is added
        to the patches, [patches, width].
    """
    mean, std = (255 * np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    weight = numpy_of(visual.conv1.weight) / std
    positions = numpy_of(visual.positional_embedding)
    start = numpy_of(visual.class_embedding) + positions[0]
    return weight, start, positions[1:] - (weight * mean).sum(axis=(1, 2, 3))


def int8_rows(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Round a matrix to int8 with one scale per row, symmetrically.

    Returns:
        int8 [out, in] and the scales float32 [out, 1]: their product is nearest to the weight.
    """
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.round(weight / scales).astype(np.int8), scales
