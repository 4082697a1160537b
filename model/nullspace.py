"""The null-space projector that takes text semantics out of image features (paper, section 3.3).

V (n x d) holds text features; V = U S W^T. Columns of W with large singular values span what
captions talk about; P projects onto the rest. "Singular value = 0" alone leaves nothing once
n > d, so the removed rank is chosen (by energy or directly) and recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError

PROMPTS = ("a photo of a {}.", "a picture of the {}.", "a close-up of a {}.")


@dataclass(frozen=True, slots=True)
class NullSpace:
    """An orthogonal projector P = I - B B^T, kept as the basis B of what it removes.

    Attributes:
        basis: float32 [d, r], orthonormal columns: the removed text directions.
        energy: share of ||V||_F^2 that they hold.
        residual: ||V P||_F / ||V||_F, what text is left.
    """

    basis: Tensor
    energy: float
    residual: float

    @property
    def rank(self) -> int:
        """r: the number of directions removed; the null space has d - r dimensions."""
        return self.basis.shape[1]

    def matrix(self) -> Tensor:
        """P, float32 [d, d]: symmetric and idempotent."""
        return torch.eye(self.basis.shape[0]) - self.basis @ self.basis.T


def project(features: Tensor, basis: Tensor) -> Tensor:
    """F P = F - (F B) B^T for features [..., d], as two thin products instead of a d x d one."""
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
    """
    return text_features @ proj.T.to(text_features)


def read_text_features(
    source: Path,
    encode: Callable[[Sequence[str]], Tensor],
    templates: Sequence[str] | None = None,
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
            return torch.from_numpy(np.load(source, allow_pickle=False).astype(np.float32))
        lines = [line.strip() for line in source.read_text().splitlines() if line.strip()]
    except (OSError, ValueError):
        raise ModelError(f"{source} holds neither features nor text") from None
    if not lines:
        raise ModelError(f"{source} is empty")
    if templates is None:
        return encode(lines)
    return torch.stack([encode([t.format(name) for t in templates]).mean(dim=0) for name in lines])
