"""From held-out logits to a probability and two cuts."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from model.checkpoint import Calibration, Thresholds
from model.errors import ModelError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def platt(labels: Labels, logits: Array, fitted_on: str) -> Calibration:
    """Fit score = sigmoid(slope * logit + intercept), classes weighted equally (prior 1/2).

    Args:
        labels: int [n], 1 = AI.
        logits: float [n], of images whose group was left out of training.
        fitted_on: what the logits were, for the record.

    Raises:
        ModelError: the logits are no better than chance.
    """
    fit = LogisticRegression(class_weight="balanced", C=1e6).fit(logits[:, None], labels)
    if fit.coef_[0, 0] <= 0:
        raise ModelError("the held-out logits do not tell the classes apart: nothing to calibrate")
    return Calibration(
        slope=float(fit.coef_[0, 0]), intercept=float(fit.intercept_[0]), fitted_on=fitted_on
    )


def thresholds(
    conditions: list[tuple[Labels, Array]], *, accused: float, missed: float
) -> Thresholds:
    """Choose the cuts on held-out calibrated scores, under the worst of several conditions.

    Args:
        conditions: (labels, scores) pairs, e.g. of clean and of equalised copies.
        accused: largest share of photographs that may be called `ai_generated`.
        missed: largest share of AI images that may be called `real`.
    """
    ai_above = max(
        float(np.quantile(scores[labels == 0], 1 - accused, method="higher"))
        for labels, scores in conditions
    )
    real_below = min(
        float(np.quantile(scores[labels == 1], missed, method="lower"))
        for labels, scores in conditions
    )
    # A score equal to a cut is on its upper side; the worst photograph must stay below it.
    ai_above = min(1.0, float(np.nextafter(ai_above, 2)))
    return Thresholds(real_below=min(real_below, ai_above), ai_above=ai_above)


def calibrate(
    conditions: list[tuple[Labels, Array]], fitted_on: str, *, accused: float, missed: float
) -> tuple[Calibration, Thresholds]:
    """`platt` over all conditions together, then `thresholds` on the calibrated scores.

    Args:
        conditions: (labels, logits) pairs, e.g. of clean and of equalised copies.
        fitted_on: see `platt`.
        accused: see `thresholds`.
        missed: see `thresholds`.

    Raises:
        ModelError: as `platt`.
    """
    labels, logits = (np.concatenate(part) for part in zip(*conditions, strict=True))
    calibration = platt(labels, logits, fitted_on)
    scored = [(y, calibration.scores(torch.from_numpy(z)).numpy()) for y, z in conditions]
    return calibration, thresholds(scored, accused=accused, missed=missed)
