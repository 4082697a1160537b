"""The network: image tower -> features -> null-space projection -> head (paper, section 3).

One code path serves the paper's configuration and the default; they differ in `NSNetConfig` only.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from open_clip.transformer import VisionTransformer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model.backbone import MEAN, STD
from model.errors import CheckpointError
from model.nullspace import project
from model.patches import PAPER_RULE, PatchRule

Logit = TypeVar("Logit", float, Tensor)


class NSNetConfig(BaseModel):
    """What is built; stored in the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="open_clip architecture name")
    features: Literal["joint", "blocks"] = Field(
        description="the joint-space feature, as in the paper, or the CLS tokens of chosen blocks"
    )
    blocks: tuple[int, ...] = Field((), description="blocks read, counted from 1, rising")
    pooled_after: int = Field(
        0, ge=0, description="block, from 1, after which the patch tokens are averaged in squares "
        "of 2 x 2: the blocks above it cost a quarter; 0: none",
    )  # fmt: skip
    hidden: int = Field(128, ge=1, description="width of the embedding that the contrast acts on")
    patches: PatchRule = PatchRule()
    whole_share: float = Field(
        0.5, gt=0, le=1, description="weight of the whole image in its logit, where the rule "
        "begins with it; the windows share the rest",
    )  # fmt: skip

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

    def combine(self, logits: Sequence[Logit]) -> Logit:
        """An image's logit from those of its canvases, in their order."""
        if not self.patches.whole or len(logits) == 1:
            return _mean(logits)
        return self.whole_share * logits[0] + (1 - self.whole_share) * _mean(logits[1:])


def _mean(logits: Sequence[Logit]) -> Logit:
    total = logits[0]
    for logit in logits[1:]:
        total = total + logit
    return total / len(logits)


PRESETS: Mapping[str, NSNetConfig] = {
    "paper": NSNetConfig(backbone="ViT-L-14-quickgelu", features="joint", patches=PAPER_RULE),
    # Middle blocks carry the artefacts, native windows stay in the frozen tower's domain, the whole
    # image is the surer of the two, and pooling costs little once the blocks above have learned to
    # live with it: see the ablation in weights/MODEL_CARD.md.
    "default": NSNetConfig(
        backbone="ViT-B-16-quickgelu",
        features="blocks",
        blocks=(6, 7, 8, 9, 10, 11),
        pooled_after=6,
        patches=PatchRule(patch_size=224, canvases=2, high_share=1.0, whole=True),
        whole_share=0.75,
    ),
}


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
        """[n, F] -> logits [n], embeddings [n, hidden]."""
        embedding = self.embed((features - self.mean) * self.scale)
        return self.classify(nn.functional.gelu(embedding)).squeeze(-1), embedding


class NSNet(nn.Module):
    """The detector network.

    Args:
        config: what is read from the tower.
        visual: the image tower, at least `config.depth` blocks of it.
        basis: removed text directions [d, r], orthonormal: in the joint space for `joint`
            features, pulled back to the tower's width for `blocks` (`nullspace.pull_back`).
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
        if config.patches.canvas_size != visual.image_size[0]:
            raise CheckpointError(
                f"canvases are {config.patches.canvas_size} px, the tower takes "
                f"{visual.image_size[0]} px"
            )
        self.config = config
        self.visual = visual
        self.head = Head(width * max(1, len(config.blocks)), config.hidden)
        self.register_buffer("basis", basis.float())

    @property
    def reads(self) -> tuple[int, ...]:
        """The blocks whose CLS tokens are read, from 1; the joint space is read after the last."""
        return self.config.blocks or (len(self.visual.transformer.resblocks),)

    def tokens(self, canvases: Tensor) -> Tensor:
        """What the tower sees: uint8 [n, 3, S, S] -> `block_tokens` of `reads`, in its dtype."""
        pixels = normalise(canvases).to(self.visual.conv1.weight.dtype)
        return block_tokens(self.visual, pixels, self.reads, self.config.pooled_after)

    def release_tower(self) -> None:
        """Let go of the memory that only `tokens` needs, where an engine gives them instead."""
        rest = nn.Module()
        rest.register_buffer("proj", self.visual.proj.detach().clone())
        self.visual = rest

    def decouple(self, tokens: Tensor) -> Tensor:
        """Null-space features of tokens: [n, blocks, width] -> float32 [n, F]."""
        f = tokens.float()
        if self.config.features == "joint":
            f = nn.functional.normalize(f @ self.visual.proj.float(), dim=-1)
        return project(f, self.basis).flatten(1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logit of each canvas: [n, blocks, width] -> float32 [n]."""
        logits: Tensor
        logits, _ = self.head(self.decouple(tokens))
        return logits

    def forward(self, canvases: Tensor, counts: Sequence[int]) -> Tensor:
        """Logits of images: uint8 [n, 3, S, S], counts of n in all -> float32 [len(counts)]."""
        logits = self.logits(self.tokens(canvases))
        each = torch.split(logits, list(counts))
        return torch.stack([self.config.combine(of.unbind()) for of in each])


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


def hidden_states(
    visual: VisionTransformer, pixels: Tensor, blocks: Sequence[int], pooled_after: int = 0
) -> list[Tensor]:
    """All tokens after each of `blocks` (from 1), CLS first, as the next block reads them.

    The blocks past the last one named are not run.

    Args:
        visual: the tower.
        pixels: float [n, 3, S, S], normalised.
        blocks: counted from 1, rising.
        pooled_after: see `NSNetConfig`.

    Returns:
        [n, L, width] each; past `pooled_after`, L is that of `pool_tokens`.
    """
    stop = min(pooled_after or blocks[-1], blocks[-1])
    first = sorted({*(b for b in blocks if b < stop), stop})
    out: dict[str, list[Tensor]] = visual.forward_intermediates(
        pixels,
        indices=[b - 1 for b in first],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
    found = dict(zip(first, (torch.cat(pair, dim=1) for pair in pairs), strict=True))
    if stop == pooled_after:
        found[stop] = pool_tokens(found[stop])
    found |= _onward(visual, found[stop], stop, blocks[-1], pooled_after)
    return [found[b] for b in blocks]


def _onward(
    visual: VisionTransformer, hidden: Tensor, done: int, last: int, pooled_after: int
) -> dict[int, Tensor]:
    """The states after each block past `done`, up to `last`, from what block `done + 1` reads."""
    found = {}
    for number in range(done + 1, last + 1):
        hidden = visual.transformer.resblocks[number - 1](hidden)
        if number == pooled_after:
            hidden = pool_tokens(hidden)
        found[number] = hidden
    return found


def block_tokens(
    visual: VisionTransformer, pixels: Tensor, blocks: Sequence[int], pooled_after: int = 0
) -> Tensor:
    """ln_post of the CLS token after each of `blocks` (from 1): [n, len(blocks), width].

    ln_post brings every block into the space that the tower's projection reads, where the
    pulled-back text directions live; after the last block it is what CLIP itself projects.
    """
    return _read(visual, hidden_states(visual, pixels, blocks, pooled_after))


def continue_tokens(
    visual: VisionTransformer,
    hidden: Tensor,
    done: int,
    blocks: Sequence[int],
    pooled_after: int = 0,
) -> Tensor:
    """`block_tokens` of `blocks`, all past `done`, from what block `done + 1` reads."""
    found = _onward(visual, hidden, done, blocks[-1], pooled_after)
    return _read(visual, [found[b] for b in blocks])


def _read(visual: VisionTransformer, states: Sequence[Tensor]) -> Tensor:
    return torch.cat([visual.ln_post(hidden[:, :1]) for hidden in states], dim=1)


@torch.no_grad()
def merge_lora(visual: VisionTransformer, deltas: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add low-rank deltas to the tower's weights in place: W <- W + up @ down.

    Args:
        visual: the tower.
        deltas: parameter name -> (down [r, in], up [out, r]), any scaling already in `up`.

    Raises:
        CheckpointError: no such parameter, or shapes that do not fit.
    """
    parameters = dict(visual.named_parameters())
    for name, (down, up) in deltas.items():
        weight = parameters.get(name)
        if weight is None or (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise CheckpointError(f"the LoRA delta for {name} does not fit the tower")
        # A new tensor: the loaded one may be a read-only view of the file.
        weight.data = weight + (up @ down).to(weight)
