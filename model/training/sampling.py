"""How often each sample is drawn."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from model.data.manifest import Row

_LARGEST = 0.03  # an owner's share of its class


def sample_weights(rows: Sequence[Row], members: Tensor) -> Tensor:
    """Sampling weight of each feature: classes equal, groups by the root of their size.

    No owner has more than 3 % of its class, or than an even share where there are so few: what is
    published together is alike.

    Args:
        rows: the manifest.
        members: int64 [n], the row of each feature.

    Returns:
        float64 [n], summing to 1.
    """
    drawn = [rows[index] for index in members.tolist()]
    sizes = Counter((row.label, row.group) for row in drawn)
    weights = torch.tensor(
        [1 / math.sqrt(sizes[row.label, row.group]) for row in drawn], dtype=torch.float64
    )
    labels = torch.tensor([row.label for row in drawn])
    names = {name: index for index, name in enumerate(sorted({row.owner for row in drawn}))}
    owners = torch.tensor([names[row.owner] for row in drawn])
    classes = {row.label for row in drawn}
    for label in classes:
        of = labels == label
        weights[of] = _capped(weights[of], owners[of]) / len(classes)
    return weights


def _capped(weights: Tensor, owners: Tensor) -> Tensor:
    """Scaled to sum to 1, the owners above the largest share down to it, the others up.

    Args:
        weights: float64 [n].
        owners: int64 [n].
    """
    each = torch.unique(owners, return_inverse=True)[1]
    totals = torch.zeros(int(each.max()) + 1, dtype=torch.float64).index_add_(0, each, weights)
    largest = max(_LARGEST, 1 / len(totals))
    capped = torch.zeros(len(totals), dtype=torch.bool)
    while True:
        free = 1 - largest * int(capped.sum())
        shares = torch.where(
            capped, largest, totals * free / totals[~capped].sum().clamp_min(1e-300)
        )
        above = (shares > largest * (1 + 1e-9)) & ~capped
        if not above.any():
            return weights * (shares / totals)[each]
        capped |= above
