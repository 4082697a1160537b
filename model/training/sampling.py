"""How often each sample is drawn."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from model.data.manifest import Row


def sample_weights(rows: Sequence[Row], members: Tensor) -> Tensor:
    """Sampling weight of each feature: classes equal, groups by the root of their size.

    Args:
        rows: the manifest.
        members: int64 [n], the row of each feature.

    Returns:
        float64 [n], summing to 1.
    """
    key = [(rows[i].label, rows[i].group) for i in members.tolist()]
    sizes = Counter(key)
    roots: dict[int, float] = {}
    for (label, _), size in sizes.items():
        roots[label] = roots.get(label, 0.0) + math.sqrt(size)
    weights = [1 / (len(roots) * roots[k[0]] * math.sqrt(sizes[k])) for k in key]
    return torch.tensor(weights, dtype=torch.float64)
