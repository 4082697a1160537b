"""The null-space projector that takes text semantics out of image features (paper, section 3.3).

V (n x d) holds text features; V = U S W^T. Columns of W with large singular values span what
captions talk about; P projects onto the rest. "Singular value = 0" alone leaves nothing once
n > d, so the removed rank is chosen (by energy or directly) and recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model.errors import ModelError
from model.tensorfile import parse_tensors, write_tensors
from model.tower.sources import encode_texts, load_backbone

PROMPTS = ("a photo of a {}.", "a picture of the {}.", "a close-up of a {}.")

Space = Literal["joint", "blocks"]

_KEY = "nsnet-projector"


@dataclass(frozen=True, slots=True)
class NullSpace:
    """An orthogonal projector P = I - B B^T, kept as the basis B of what it removes.

    Attributes:
        basis: float32 [d, r], orthonormal columns: the removed text directions.
        energy: share of ||V||_F^2 that they hold.
        residual: ||V P||_F / ||V||_F, what text is left.
        singular_values: float32 [min(n, d)], all of V's, falling.
    """

    basis: Tensor
    energy: float
    residual: float
    singular_values: Tensor

    @property
    def rank(self) -> int:
        """r: the number of directions removed; the null space has d - r dimensions."""
        return self.basis.shape[1]

    def residuals(self) -> Tensor:
        """||V P||_F / ||V||_F had the rank been 0, 1, ..., min(n, d): float64 [min(n, d) + 1]."""
        squares = self.singular_values.double().square()
        left = squares.flip(0).cumsum(0).flip(0) / squares.sum()
        return torch.cat([left, left.new_zeros(1)]).sqrt()


def project(features: Tensor, basis: Tensor) -> Tensor:
    """F P = F - (F B) B^T, as two thin products instead of a d x d one.

    Args:
        features: F, float [..., d].
        basis: B, float [d, r], orthonormal columns.

    Returns:
        float [..., d].
    """
    return features - (features @ basis) @ basis.transpose(-1, -2)


def null_space(
    text_features: Tensor, *, rank: int | None = None, energy: float | None = None
) -> NullSpace:
    """Compute the projector from text features.

    Rows are L2-normalised, not centred: the mean prompt is a text direction like any other, and
    the leading one.

    Args:
        text_features: V, [n, d], finite.
        rank: r, the number of leading directions to remove; 0 removes none.
        energy: instead of `rank`, the smallest r that holds this share of ||V||_F^2.

    Raises:
        ModelError: V is not a finite matrix, or neither or both of rank and energy were given, or
            the rank leaves no null space.
    """
    if text_features.ndim != 2 or not torch.isfinite(text_features).all():
        raise ModelError("text features must be a finite [n, d] matrix")
    if (rank is None) == (energy is None):
        raise ModelError("choose either a rank or an energy")
    V = torch.nn.functional.normalize(text_features.double(), dim=1)
    _, S, Wt = torch.linalg.svd(V, full_matrices=False)
    held = S.square().cumsum(0) / S.square().sum()
    if rank is None:
        assert energy is not None  # noqa: S101  (narrows the type; checked above)
        rank = int((held < energy - 1e-12).sum()) + 1
    if not 0 <= rank <= min(len(S), V.shape[1] - 1):
        raise ModelError(
            f"rank {rank} is outside 0..{min(len(S), V.shape[1] - 1)}: {V.shape[0]} texts of "
            f"{V.shape[1]} dimensions allow no more"
        )
    basis = Wt[:rank].T.contiguous()
    residual = torch.linalg.norm(project(V, basis)) / torch.linalg.norm(V)
    return NullSpace(
        basis=basis.float(),
        energy=float(held[rank - 1]) if rank else 0.0,
        residual=float(residual),
        singular_values=S.float(),
    )


def pull_back(text_features: Tensor, proj: Tensor) -> Tensor:
    """Text directions in the tower's own width, where its blocks live.

    The joint-space feature of a hidden state h is ln_post(h) @ proj, so its inner product with a
    text feature t is that of ln_post(h) with proj @ t.

    Args:
        text_features: V, [n, d].
        proj: the tower's projection, [width, d].

    Returns:
        [n, width].

    Raises:
        ModelError: the texts are of another width than the projection.
    """
    if text_features.shape[1] != proj.shape[1]:
        raise ModelError(
            f"text features have {text_features.shape[1]} dimensions, the tower's joint space has "
            f"{proj.shape[1]}"
        )
    return text_features @ proj.T.to(text_features)


def read_text_features(
    source: Path, encode: Callable[[Sequence[str]], Tensor], templates: Sequence[str] | None = None
) -> Tensor:
    """V from any of its sources.

    Args:
        source: `.npy` holds features [n, d]; any other file is text, one caption or class name a
            line.
        encode: the text tower: n strings -> [n, d].
        templates: prompts with one `{}` for class names (e.g. `PROMPTS`), whose features are
            averaged per class; None takes the lines as captions.

    Returns:
        float32 [n, d].

    Raises:
        ModelError: unreadable or empty.
    """
    try:
        if source.suffix == ".npy":
            V = torch.from_numpy(np.load(source, allow_pickle=False).astype(np.float32))
            if V.ndim != 2 or not V.numel():
                raise ModelError(f"{source} holds {list(V.shape)} numbers, not a matrix [n, d]")
            return V
        lines = [line.strip() for line in source.read_text().splitlines() if line.strip()]
    except (OSError, ValueError):
        raise ModelError(f"{source} holds neither features nor text") from None
    if not lines:
        raise ModelError(f"{source} is empty")
    if templates is None:
        return encode(lines)
    # All in one call: `encode` may load the text tower.
    prompts = encode([template.format(name) for name in lines for template in templates])
    return prompts.view(len(lines), len(templates), -1).mean(dim=1)


# --- the projector file -------------------------------------------------------------------------


class _Info(BaseModel):
    """What a projector file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: Space
    backbone: str
    rank: int = Field(ge=0)
    energy: float = Field(ge=0.0, le=1.0)
    residual: float = Field(ge=0.0, le=1.0)
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredProjector:
    """A null space and what it belongs to.

    Attributes:
        null_space: the projector.
        space: `joint` (d is the backbone's joint space) or `blocks` (d is its width; the texts
            were pulled back by `pull_back`), as in `NSNetConfig.features`.
        backbone: open_clip architecture name.
        sources: names of what V was computed from.
    """

    null_space: NullSpace
    space: Space
    backbone: str
    sources: tuple[str, ...]


def projector_of_texts(
    sources: Sequence[Path],
    *,
    backbone: str,
    space: Space,
    rank: int | None = None,
    energy: float | None = None,
    prompts: bool = False,
    weights: Path | None = None,
) -> StoredProjector:
    """Compute the projector of one backbone from text files.

    Args:
        sources: each as in `read_text_features`; V is all of them, one below the other.
        backbone: open_clip architecture name.
        space: see `StoredProjector`.
        rank: see `null_space`.
        energy: see `null_space`.
        prompts: text files hold class names, to be put into `PROMPTS`.
        weights: a safetensors file of the whole CLIP, instead of the cache and the hub. The text
            tower is not asked for where all sources are features, nor the image tower for `joint`.

    Raises:
        ModelError: a source is unreadable or of another width, a tower cannot be had, or as
            `null_space`.
    """
    templates = PROMPTS if prompts else None
    parts = [
        read_text_features(
            source, lambda lines: encode_texts(lines, backbone, path=weights), templates
        )
        for source in sources
    ]
    for source, part in zip(sources, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise ModelError(
                f"{source} has {part.shape[1]} dimensions, {sources[0]} {parts[0].shape[1]}"
            )
    V = torch.cat(parts)
    if space == "blocks":
        V = pull_back(V, load_backbone(backbone, path=weights, depth=1).visual.proj)
    names = tuple(source.name for source in sources)
    return StoredProjector(null_space(V, rank=rank, energy=energy), space, backbone, names)


def save_projector(path: Path, projector: StoredProjector) -> None:
    """Write a projector: safetensors `basis` and `singular_values`, the rest in the metadata."""
    space = projector.null_space
    info = _Info(
        space=projector.space,
        backbone=projector.backbone,
        rank=space.rank,
        # Rounding may carry either a little past 1.
        energy=min(space.energy, 1.0),
        residual=min(space.residual, 1.0),
        sources=projector.sources,
    )
    tensors = {"basis": space.basis, "singular_values": space.singular_values}
    write_tensors(path, tensors, _KEY, info)


def read_projector(path: Path) -> StoredProjector:
    """Read and validate what `save_projector` wrote.

    Raises:
        ModelError: unreadable, not a projector, or its tensors are not what it says.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise ModelError(f"no projector can be read at {path}") from None
    tensors, info = parse_tensors(data, path, _KEY, _Info, "a projector")
    if tensors.keys() != {"basis", "singular_values"}:
        raise ModelError(f"{path} holds {sorted(tensors)}, not basis and singular_values")
    basis, S = tensors["basis"].float(), tensors["singular_values"].float()
    if basis.ndim != 2 or basis.shape[1] != info.rank:
        raise ModelError(f"{path}: the basis is {list(basis.shape)}, not [d, {info.rank}]")
    gram = basis.T @ basis
    if not torch.allclose(gram, torch.eye(info.rank), atol=1e-4):  # false for NaN, too
        raise ModelError(f"{path}: the basis is not orthonormal")
    if S.ndim != 1 or not info.rank <= len(S) <= len(basis) or not (S.diff() <= 0).all():
        raise ModelError(f"{path}: the singular values are not min(n, d) falling numbers")
    space = NullSpace(basis, info.energy, info.residual, S)
    return StoredProjector(space, info.space, info.backbone, info.sources)
