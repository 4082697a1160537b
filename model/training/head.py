"""Training the head on frozen features (paper, section 3.4).

Loss = (1 - lambda) * supervised contrast + lambda * binary cross-entropy.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor

from model.errors import ModelError
from model.nsnet import Head
from model.training.manifest import Row


class HeadOptions(BaseModel):
    """How the head is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bce_share: float = Field(0.5, ge=0.0, le=1.0, description="the paper's lambda")
    temperature: float = Field(0.1, gt=0.0, description="of the supervised contrast")
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(512, ge=8)
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.1, ge=0.0)
    dropout: float = Field(0.3, ge=0.0, lt=1.0, description="of input features")
    smoothing: float = Field(0.05, ge=0.0, lt=0.5, description="of labels")
    seed: int = 0


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


def train_head(
    features: Tensor, labels: Tensor, weights: Tensor, options: HeadOptions, *, hidden: int
) -> Head:
    """Fit a head.

    Args:
        features: float [n, F], null-space features.
        labels: int64 [n], 1 = AI.
        weights: float [n], how often each is drawn.
        options: see `HeadOptions`.
        hidden: width of the embedding (`NSNetConfig.hidden`).

    Raises:
        ModelError: the loss is not finite.
    """
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    head = Head(features.shape[1], hidden)
    head.mean.copy_(features.float().mean(dim=0))
    head.scale.copy_(1 / features.float().std(dim=0).clamp_min(1e-4))
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    steps = options.epochs * math.ceil(len(features) / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=steps, pct_start=0.1
    )
    contrast = SupConLoss(temperature=options.temperature)
    for _ in range(steps):
        drawn = torch.multinomial(weights, options.batch_size, replacement=True,
                                  generator=generator)  # fmt: skip
        x, y = features[drawn].float(), labels[drawn]
        # Dropped features fall back to the mean, which the head's standardisation makes zero.
        kept = torch.rand(x.shape, generator=generator) >= options.dropout
        x = torch.where(kept, x, head.mean)
        logits, embedding = head(x)
        target = y.float() * (1 - 2 * options.smoothing) + options.smoothing
        loss = options.bce_share * torch.nn.functional.binary_cross_entropy_with_logits(
            logits, target
        )
        if options.bce_share < 1:
            loss = loss + (1 - options.bce_share) * contrast(embedding, y)
        if not torch.isfinite(loss):
            raise ModelError("the training loss is not finite; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return head.eval().requires_grad_(False)
