"""What the engines share: what an engine is, and what their graphs are made of."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from model.errors import ModelError
from model.tower.sources import MEAN, STD

Weights = NDArray[np.float32]

# What a CPU takes in one forward, as many as eight canvases make for ViT-B/16: more at once is no
# faster, and takes memory with it.
CPU_TOKENS = 8 * 197


class EngineError(ModelError):
    """The engine cannot be had here, or does not know the tower."""


class Fetched(Protocol):
    """Numbers on their way from the device."""

    @property
    def ready(self) -> bool:
        """Whether `values` would not wait."""

    def values(self) -> list[float]:
        """Wait for them.

        Raises:
            RuntimeError: the device failed.
        """


class Engine(ABC):
    """A tower ready to run; as it stands, on the CPU with weights of its own.

    Attributes:
        name: as in `Runtime.engine`.
        precision: what the tower's products multiply in: `int8`, or a float type's name.
        owns_weights: whether the network's own tower is not needed any more.
    """

    name: str
    precision: str
    owns_weights = True

    @abstractmethod
    def __call__(self, canvases: Tensor) -> Tensor:
        """ln_post of the CLS tokens of the blocks read.

        Args:
            canvases: uint8 [n, 3, S, S].

        Returns:
            float [n, reads, width], on the device that computed it.
        """

    def torch_threads(self, threads: int) -> int:  # noqa: ARG002  (others give them all)
        """How many of torch's threads should help, of as many as the engine was given.

        Beside an engine of its own threads, one: torch's others spin on for a millisecond after
        each operation, and the engine's wait for the cores.
        """
        return 1

    def upload(self, pixels: Tensor) -> Tensor:
        """Pixels, of any shape and dtype, where views are cut: on the engine's device."""
        return pixels

    def beside(self) -> AbstractContextManager[object]:
        """Around what a thread does beside the forward, such as cutting views."""
        return contextlib.nullcontext()

    def fetch(self, values: Tensor) -> Fetched:
        """Bring float32 [n] to the host; a CPU has them by then."""
        return _Here(values)


class _Here:
    """Numbers that are there."""

    ready = True

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def values(self) -> list[float]:
        numbers: list[float] = self._values.tolist()
        return numbers


def chunk_of(visual: VisionTransformer) -> int:
    """Canvases that a CPU takes in one forward."""
    length: int = visual.positional_embedding.shape[0]
    return max(1, CPU_TOKENS // length)


def in_parts(run: Callable[[Tensor], Tensor], canvases: Tensor, size: int) -> Tensor:
    """What `run` gives for canvases [n, 3, S, S], at most `size` at once: [n, ...]."""
    tokens = [run(part) for part in torch.split(canvases, size)]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


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


def numpy_of(tensor: Tensor) -> Weights:
    """Values of any shape and float type, as float32 on the CPU."""
    array: Weights = tensor.detach().float().cpu().numpy()
    return array


def embedding(visual: VisionTransformer) -> tuple[Weights, Weights, Weights]:
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


def int8_rows(weight: Weights) -> tuple[NDArray[np.int8], Weights]:
    """Round a matrix to int8 with one scale per row, symmetrically.

    Returns:
        int8 [out, in] and the scales float32 [out, 1]: their product is nearest to the weight.
    """
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.round(weight / scales).astype(np.int8), scales
