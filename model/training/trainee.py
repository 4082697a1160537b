"""What is trained, and what it reads: a network entered at any stage, and its samples."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model.network import Head, NSNet
from model.tower.tokens import continue_tokens


class Source(Protocol):
    """What the trained part reads."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, members: Tensor, step: int) -> Tensor:
        """Inputs of the samples int64 [n], [n, ...]; `step` seeds what is drawn anew each time."""


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Samples held in memory, or in a memory-mapped file.

    Attributes:
        samples: [n, ...], any float type; read as float32.
        members: int64 [m], the samples that count.
    """

    samples: Tensor
    members: Tensor

    def __len__(self) -> int:
        return len(self.members)

    def read(self, members: Tensor, step: int) -> Tensor:  # noqa: ARG002  (the protocol's)
        """See `Source`."""
        return self.samples[self.members[members]].float()


@contextlib.contextmanager
def tower_arithmetic(visual: VisionTransformer, device: torch.device) -> Iterator[torch.dtype]:
    """Compute in the tower's dtype, while the adapters' weights stay float32.

    Args:
        visual: the tower.
        device: where it is.

    Yields:
        The dtype.
    """
    dtype = visual.conv1.weight.dtype
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield dtype


class Trainee(nn.Module):
    """A network with dropout before its head, read from any stage.

    Args:
        network: the network.
        dropout: share of features that are dropped in training.
        entry: what its inputs are: null-space `features` [n, F], `hidden` states [n, L, width],
            as block `done + 1` reads them, or `canvases` uint8 [n, 3, S, S].
        done: the last block, from 1, that hidden states have passed.
    """

    def __init__(
        self,
        network: NSNet,
        dropout: float,
        entry: Literal["features", "hidden", "canvases"],
        done: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.dropout = dropout
        self.entry = entry
        self.done = done
        if entry == "features":
            network.visual.requires_grad_(False)

    def features(self, inputs: Tensor) -> Tensor:
        """Null-space features float32 [n, F] of inputs [n, ...], by `entry`."""
        if self.entry == "features":
            return inputs
        visual, spec = self.network.visual, self.network.spec
        with tower_arithmetic(visual, inputs.device) as dtype:
            if self.entry == "hidden":
                tokens = continue_tokens(visual, inputs.to(dtype), self.done, spec)
            else:
                tokens = self.network.tokens(inputs)
        return self.network.decouple(tokens)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...], by `entry` -> logits [n], embeddings [n, hidden], float32."""
        x, head = self.features(inputs), self.network.head
        if self.training and self.dropout:
            # Dropped features fall back to the mean, which the head's standardisation makes zero.
            kept = torch.rand_like(x) >= self.dropout
            x = torch.where(kept, x, head.mean)
        logits, embedding = head(x)
        return logits, embedding


def standardise(head: Head, features: Tensor) -> None:
    """Set the head's standardisation to the statistics of features, float [n, F]; in place."""
    head.mean.copy_(features.float().mean(dim=0))
    head.scale.copy_(1 / features.float().std(dim=0).clamp_min(1e-4))
