"""The network: image tower -> features -> null-space projection -> head (paper, section 3).

One code path serves the paper's configuration and the default; they differ in `NSNetConfig` only.
"""

from typing import Literal

import torch
from open_clip.transformer import VisionTransformer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model.errors import CheckpointError
from model.nullspace import project
from model.tower.tokens import TowerSpec, block_tokens, normalise


class NSNetConfig(BaseModel):
    """What is built; stored in the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="open_clip architecture name")
    features: Literal["joint", "blocks"] = Field(
        description="the joint-space feature, as in the paper, or the CLS tokens of chosen blocks"
    )
    blocks: tuple[int, ...] = Field((), description="blocks read, counted from 1, rising")
    pooled_after: int = Field(
        0,
        ge=0,
        description="block, from 1, after which the patch tokens are averaged in squares of 2 x 2: "
        "the blocks above it cost a quarter; 0: none",
    )
    hidden: int = Field(128, ge=1, description="width of the embedding that the contrast acts on")

    @model_validator(mode="after")
    def _blocks_fit_the_features(self) -> "NSNetConfig":
        if (self.features == "blocks") != bool(self.blocks):
            raise ValueError("blocks are named if and only if features = 'blocks'")
        if list(self.blocks) != sorted(set(self.blocks)) or any(b < 1 for b in self.blocks):
            raise ValueError("blocks are counted from 1, rising, without repeats")
        if self.blocks and self.pooled_after >= self.blocks[-1]:
            raise ValueError("pooled_after: no block that is read comes after it")
        return self

    @property
    def depth(self) -> int | None:
        """Blocks of the tower that are run; None for all."""
        return self.blocks[-1] if self.blocks else None

    def spec(self, visual: VisionTransformer) -> TowerSpec:
        """What is read from a tower; the joint space is read after its last block."""
        reads = self.blocks or (len(visual.transformer.resblocks),)
        return TowerSpec(reads, self.pooled_after)


class Head(nn.Module):
    """Standardise -> linear embedding -> GELU -> logit.

    The supervised contrast acts on the embedding, binary cross-entropy on the logit (paper,
    section 3.4).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.embed = nn.Linear(features, hidden)
        self.classify = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Null-space features float32 [n, F] -> logits [n], embeddings [n, hidden]."""
        embedding = self.embed((features - self.mean) * self.scale)
        return self.classify(nn.functional.gelu(embedding)).squeeze(-1), embedding


class NSNet(nn.Module):
    """The detector network.

    Args:
        config: what is read from the tower.
        visual: the image tower, at least `config.depth` blocks of it.
        basis: removed text directions [d, r], orthonormal: in the joint space for `joint`
            features, pulled back to the tower's width for `blocks` (`nullspace.pull_back`).

    Attributes:
        spec: what is read from the tower.

    Raises:
        CheckpointError: basis or tower are not what the configuration needs.
    """

    basis: Tensor

    def __init__(self, config: NSNetConfig, visual: VisionTransformer, basis: Tensor) -> None:
        super().__init__()
        width = visual.proj.shape[0] if config.features == "blocks" else visual.proj.shape[1]
        if basis.ndim != 2 or basis.shape[0] != width or basis.shape[1] >= width:
            raise CheckpointError(
                f"the projector's basis is {list(basis.shape)}; {config.features} features of "
                f"{config.backbone} need [{width}, r] with r < {width}"
            )
        if (config.depth or 0) > len(visual.transformer.resblocks):
            raise CheckpointError(f"{config.backbone} has no block {config.depth}")
        if config.pooled_after >= len(visual.transformer.resblocks):
            raise CheckpointError(f"{config.backbone} has no block after {config.pooled_after}")
        if config.pooled_after and any(side % 2 for side in visual.grid_size):
            raise CheckpointError(f"{config.backbone}'s {visual.grid_size} patches have no squares")
        self.config = config
        self.spec = config.spec(visual)
        self.visual = visual
        self.head = Head(width * max(1, len(config.blocks)), config.hidden)
        self.register_buffer("basis", basis.float())

    def tokens(self, canvases: Tensor) -> Tensor:
        """What the tower sees: uint8 [n, 3, S, S] -> `block_tokens`, in the tower's dtype."""
        pixels = normalise(canvases).to(self.visual.conv1.weight.dtype)
        return block_tokens(self.visual, pixels, self.spec)

    def release_tower(self) -> None:
        """Let go of the memory that only `tokens` needs, where an engine gives them instead."""
        rest = nn.Module()
        rest.register_buffer("proj", self.visual.proj.detach().clone())
        self.visual = rest

    def decouple(self, tokens: Tensor) -> Tensor:
        """Null-space features of tokens: [n, reads, width] -> float32 [n, F]."""
        f = tokens.float()
        if self.config.features == "joint":
            f = nn.functional.normalize(f @ self.visual.proj.float(), dim=-1)
        return project(f, self.basis).flatten(1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logit of each canvas: [n, reads, width] -> float32 [n]."""
        logits: Tensor
        logits, _ = self.head(self.decouple(tokens))
        return logits
