"""Logits of images that a network was not trained on: of their canvases, then of each image."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.data.copies import JUDGED, canvases_ahead
from model.data.degrade import Augmentation
from model.data.manifest import Row
from model.figures.crossfit import Logits
from model.training.trainee import Trainee
from model.views.plan import ViewPlan


def logits_of_samples(
    trainee: Trainee, samples: Tensor, members: Tensor, batch: int, device: torch.device
) -> Tensor:
    """Logits of what was computed before.

    Args:
        trainee: enters the network where the samples do.
        samples: float [N, ...].
        members: int64 [n], which of them.
        batch: how many at once.
        device: where the network runs.

    Returns:
        float32 [n].
    """
    trainee.eval().to(device)
    with torch.inference_mode():
        parts = [
            trainee(samples[part].float().to(device))[0].cpu()
            for part in torch.split(members, batch)
        ]
    return torch.cat(parts)


def logits_of_images(
    trainee: Trainee, rows: Sequence[Row], plan: ViewPlan, how: Augmentation, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the `JUDGED` copies, through the whole tower.

    Args:
        trainee: entered by canvases.
        rows: the images.
        plan: what of a copy is looked at.
        how: of degraded copies.
        device: where the network runs.

    Returns:
        Of each canvas its row and its kind, int64 [n], and its logit, float32 [n].
    """
    trainee.eval().to(device)
    places, logits = [], []
    for canvases in canvases_ahead(rows, plan, tuple(JUDGED.values()), how):
        if canvases:
            pixels = torch.stack([canvas.pixels for canvas in canvases])
            with torch.inference_mode():
                logits.append(trainee(pixels.to(device))[0].cpu())
            places += [(canvas.row, canvas.kind) for canvas in canvases]
    row, kind = torch.tensor(places).T
    return row, kind, torch.cat(logits)


def logits_by_image(
    row: Tensor,
    logits: Tensor,
    labels: Tensor,
    plan: ViewPlan,
    *,
    canvases: int | None,
    skipped: int,
) -> Logits:
    """Each image's logit after the first look, and of all its canvases.

    Args:
        row: int64 [n], of each canvas; an image's follow one another, in the plan's order.
        logits: float32 [n].
        labels: int64 [rows].
        plan: what was looked at.
        canvases: how many count, the first ones; None: all.
        skipped: images that could not be used; the log of their extraction says why.
    """
    unique, counts = torch.unique_consecutive(row, return_counts=True)
    each = [of[:canvases].unbind() for of in torch.split(logits, counts.tolist())]
    return Logits(
        row=unique.numpy(),
        labels=labels[unique].numpy(),
        first=torch.stack([plan.combine(of[: plan.first]) for of in each]).double().numpy(),
        all=torch.stack([plan.combine(of) for of in each]).double().numpy(),
        skipped={"unusable": skipped} if skipped else {},
    )


def joined(parts: Sequence[Logits]) -> Logits:
    """Those of several folds, one after the other."""
    skipped: Counter[str] = Counter()
    for part in parts:
        skipped.update(part.skipped)
    return Logits(
        row=np.concatenate([part.row for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        first=np.concatenate([part.first for part in parts]),
        all=np.concatenate([part.all for part in parts]),
        skipped=dict(skipped),
    )
