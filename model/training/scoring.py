"""Logits of images that a network was not trained on: of their canvases, then of each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.data.copies import NO_PIXELS, SCORED, Canvas, Copy, canvases_ahead
from model.data.degrade import Augmentation
from model.data.manifest import Row
from model.training.trainee import Trainee
from model.verdicts import Logits
from model.views.plan import ViewPlan


@dataclass(frozen=True, slots=True)
class Scored:
    """Canvases and their logits; an image's follow one another, in the plan's order.

    Attributes:
        row: int64 [n], of each canvas.
        kind: int64 [n], of its copy.
        quality: float32 [n, 3], of its copy.
        logits: float32 [n].
    """

    row: Tensor
    kind: Tensor
    quality: Tensor
    logits: Tensor

    def of(self, kind: Copy) -> "Scored":
        """Those of one kind of copies."""
        chosen = self.kind == kind
        return Scored(
            self.row[chosen], self.kind[chosen], self.quality[chosen], self.logits[chosen]
        )


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
) -> Scored:
    """Logits of the `SCORED` copies, through the whole tower.

    Args:
        trainee: entered by canvases.
        rows: the images.
        plan: what of a copy is looked at.
        how: of degraded copies.
        device: where the network runs.
    """
    trainee.eval().to(device)
    seen: list[Canvas] = []
    logits = []
    for canvases in canvases_ahead(rows, plan, tuple(SCORED.values()), how):
        if canvases:
            pixels = torch.stack([canvas.pixels for canvas in canvases])
            with torch.inference_mode():
                logits.append(trainee(pixels.to(device))[0].cpu())
            seen += [replace(canvas, pixels=NO_PIXELS) for canvas in canvases]
    return Scored(
        row=torch.tensor([canvas.row for canvas in seen]),
        kind=torch.tensor([int(canvas.kind) for canvas in seen]),
        quality=torch.tensor([tuple(canvas.quality) for canvas in seen]),
        logits=torch.cat(logits),
    )


def logits_by_image(
    scored: Scored, rows: Sequence[Row], plan: ViewPlan, *, canvases: int | None, skipped: int
) -> Logits:
    """Each image's logit after the first look, of all its canvases, and of its windows alone.

    Args:
        scored: canvases of one kind of copies, of one image at least.
        rows: the list.
        plan: what was looked at.
        canvases: of an image, how many count, the first ones; None: all.
        skipped: images that could not be used; the log of their extraction says why.
    """
    unique, counts = torch.unique_consecutive(scored.row, return_counts=True)
    each = [of[:canvases] for of in torch.split(scored.logits.double(), counts.tolist())]
    ends = counts.cumsum(0) - 1
    chosen = [rows[index] for index in unique.tolist()]
    none = torch.tensor(math.nan, dtype=torch.float64)
    windows = [of[plan.first :] if plan.whole else of[:0] for of in each]
    return Logits(
        row=unique.numpy(),
        labels=np.array([row.label for row in chosen], dtype=np.int64),
        made=np.array([row.made for row in chosen]),
        owners=np.array([row.owner for row in chosen]),
        first=torch.stack([plan.combine(of[: plan.first].unbind()) for of in each]).numpy(),
        all=torch.stack([plan.combine(of.unbind()) for of in each]).numpy(),
        window=torch.stack([of.mean() if len(of) else none for of in windows]).numpy(),
        quality=scored.quality[ends].double().numpy(),
        skipped={"unusable": skipped} if skipped else {},
    )
