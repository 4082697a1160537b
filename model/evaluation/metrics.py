"""Figures over scores, with bootstrap intervals; NumPy only, so that anyone can check them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

_BINS = 10


def auc(labels: Labels, scores: Array) -> float:
    """Area under the ROC curve: P(score of an AI image > score of a photograph), ties half."""
    order = np.argsort(scores, kind="stable")
    values = scores[order]
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    positive = labels[order] == 1
    count = int(positive.sum())
    other = len(labels) - count
    if not count or not other:
        return float("nan")
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * other))


def average_precision(labels: Labels, scores: Array) -> float:
    """Area under the precision-recall curve as a step function (AP); NaN without AI images.

    Equal scores enter at once, so their order decides nothing. AP depends on the share of AI
    images in the set.
    """
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of its equal scores
    found = np.cumsum(labels[order] == 1)[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def r_acc(labels: Labels, scores: Array, cut: float) -> float:
    """Share of the photographs below the cut (the paper's R.Acc); NaN without any."""
    real = scores[labels == 0]
    return float((real < cut).mean()) if len(real) else float("nan")


def f_acc(labels: Labels, scores: Array, cut: float) -> float:
    """Share of the AI images at or above the cut (the paper's F.Acc); NaN without any."""
    fake = scores[labels == 1]
    return float((fake >= cut).mean()) if len(fake) else float("nan")


def balanced_accuracy(labels: Labels, scores: Array, cut: float) -> float:
    """Mean of real accuracy and fake accuracy (the paper's Acc) at one cut."""
    return (r_acc(labels, scores, cut) + f_acc(labels, scores, cut)) / 2


def recall_at_fpr(labels: Labels, scores: Array, rate: float) -> float:
    """Share of AI images above the cut that `rate` of the photographs exceed; NaN without both."""
    if not 0 < labels.sum() < len(labels):
        return float("nan")
    cut = np.quantile(scores[labels == 0], 1 - rate, method="higher")
    return float((scores[labels == 1] > cut).mean())


@dataclass(frozen=True, slots=True)
class Bins:
    """Images in equal-width bins of their scores, empty ones left out.

    The classes weigh the same, whatever the set's mixture: the score is calibrated for equal shares
    (`calibrate.platt`).

    Attributes:
        images: int64 [n], how many.
        weight: float64 [n], their weight; of all, 1.
        score: float64 [n], mean score.
        ai: float64 [n], share of AI images.
    """

    images: Labels
    weight: Array
    score: Array
    ai: Array

    @classmethod
    def of(cls, labels: Labels, scores: Array) -> Self:
        """Sort images into their bins; an absent class has no weight."""
        weights = 0.5 / np.bincount(labels)[labels]
        place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
        inside = np.unique(place)[:, None] == place
        weight = inside @ weights
        score, ai = inside @ (weights * scores) / weight, inside @ (weights * labels) / weight
        return cls(inside.sum(axis=1), weight, score, ai)


def calibration_error(labels: Labels, scores: Array) -> float:
    """Expected calibration error where the classes are equally frequent; NaN without both."""
    if not 0 < labels.sum() < len(labels):
        return float("nan")
    bins = Bins.of(labels, scores)
    return float((bins.weight * abs(bins.ai - bins.score)).sum())


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, taking the trials as independent; NaN without any."""
    if not total:
        return float("nan"), float("nan")
    z = 1.959964
    share, spread = count / total, z * z / total
    middle = share + spread / 2
    half = np.sqrt(share * (1 - share) * spread + spread * spread / 4)
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return max(0.0, float(low)), min(1.0, float(high))


def bootstrap(
    labels: Labels,
    scores: Array,
    figure: Callable[[Labels, Array], float],
    *,
    units: Sequence[str],
    repeats: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a figure; NaN where a class is absent.

    Whole units are drawn: images of one generator or camera are alike, and drawing images alone
    would promise too much. A class of one unit is drawn by image.

    Args:
        labels: int [n], 1 = AI.
        scores: float [n].
        figure: of labels and scores.
        units: what each image is of, see `Row.unit`.
        repeats: bootstrap samples.
        seed: of the draws.
    """
    if not 0 < labels.sum() < len(labels):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    names = np.asarray(units)
    classes = [
        [np.flatnonzero((labels == c) & (names == u)) for u in np.unique(names[labels == c])]
        for c in (0, 1)
    ]
    found = []
    for _ in range(repeats):
        drawn: list[NDArray[np.int64]] = []
        for members in classes:
            if len(members) == 1:
                drawn.append(rng.choice(members[0], len(members[0])))
            else:
                drawn += [members[i] for i in rng.integers(len(members), size=len(members))]
        index = np.concatenate(drawn)
        value = figure(labels[index], scores[index])
        if np.isfinite(value):
            found.append(value)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
