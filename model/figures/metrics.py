"""Figures over scores and verdicts, with their intervals, and the one list of what is quoted.

To quote another figure is to add a row to `FIGURES`: reports, tables, training's and the ablation's
figures are all made from it. The figures themselves are NumPy only, so that anyone can check them.

Everywhere, labels are int64 [n], 1 = AI; scores float64 [n], the higher the likelier AI, calibrated
where a cut or a bin is laid against them; verdicts str [n]. Weights are float64 [..., n], how often
each image counts in each of several samples; a figure is float64 [...], one a sample, and NaN where
a class that it needs has no weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import AI, REAL
from model.figures.predictions import classes
from model.verdicts import Labels, Scores, Verdict

CUT = 0.5
REPEATS = 1000
"""Bootstrap samples."""
_BINS = 10
_AT_ONCE = 10  # bootstrap samples: of ten thousand images they stay in a core's cache
_Z = 1.959964  # of 95 %

Weights = NDArray[np.float64]
Figure = NDArray[np.float64]
Measure = Callable[[Labels, NDArray[Any], Weights], Figure]

_undefined_is_nan = np.errstate(divide="ignore", invalid="ignore")


def auc(labels: Labels, scores: Scores) -> float:
    """`roc_area` of the images as they are."""
    return float(roc_area(labels, scores, np.ones(len(labels))))


@_undefined_is_nan
def roc_area(labels: Labels, scores: Scores, weights: Weights) -> Figure:
    """Area under the ROC curve: P(score of an AI image > score of a photograph), ties half."""
    ai, real = _curve(labels, scores, weights)
    above = real - _steps(real) / 2
    lost = (_steps(ai) * above).sum(axis=-1)
    return np.asarray(1 - lost / (ai[..., -1] * real[..., -1]))


@_undefined_is_nan
def average_precision(labels: Labels, scores: Scores, weights: Weights) -> Figure:
    """Area under the precision-recall curve as a step function (AP).

    Equal scores enter at once, so their order decides nothing. AP depends on the share of AI
    images in the set.
    """
    ai, real = _curve(labels, scores, weights)
    found = ai + real
    precision = ai / np.where(found > 0, found, 1)
    return np.asarray((_steps(ai) * precision).sum(axis=-1) / ai[..., -1])


@_undefined_is_nan
def recall_at_fpr(labels: Labels, scores: Scores, weights: Weights, rate: float) -> Figure:
    """Share of AI images above the cut that at most `rate` of the photographs exceed."""
    ai, real = _curve(labels, scores, weights)
    others = real[..., -1:] - 1
    allowed = others - np.ceil(others * (1 - rate))
    found = np.where(real <= allowed, ai, 0).max(axis=-1)
    return np.where(real[..., -1] > 0, found / ai[..., -1], np.nan)


def _curve(labels: Labels, scores: Scores, weights: Weights) -> tuple[Weights, Weights]:
    """Weight of AI images, and of photographs, at or above each score that occurs.

    Returns:
        float64 [..., scores] each, the highest score's first.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of its equal scores
    ordered = weights[..., order]
    ai = np.cumsum(ordered * labels[order], axis=-1)[..., last]
    return ai, np.cumsum(ordered, axis=-1)[..., last] - ai


def _steps(curve: Weights) -> Weights:
    return np.diff(curve, axis=-1, prepend=0.0)


@_undefined_is_nan
def called(
    labels: Labels, values: NDArray[Any], weights: Weights, label: int, value: Any
) -> Figure:
    """Share of a class's images that have the value, a verdict for example."""
    own = labels == label
    hits = own & (values == value)
    return np.asarray((weights @ hits.astype(float)) / (weights @ own.astype(float)))


def accuracy(labels: Labels, scores: Scores, weights: Weights, cut: float) -> Figure:
    """Mean of the shares of photographs below one cut, and of AI images at or above it."""
    accused = scores >= cut
    real, ai = (called(labels, accused, weights, label, label == AI) for label in (REAL, AI))
    return (real + ai) / 2


def uncertain(labels: Labels, verdicts: NDArray[np.str_], weights: Weights) -> Figure:
    """Mean of both classes' shares of `uncertain`."""
    real, ai = (called(labels, verdicts, weights, c, Verdict.UNCERTAIN) for c in (REAL, AI))
    return (real + ai) / 2


@dataclass(frozen=True, slots=True)
class Bins:
    """Images in equal-width bins of their scores.

    The classes weigh the same, whatever the set's mixture: the score is calibrated for equal shares
    (`verdicts.fit_calibration`).

    Attributes:
        images: float64 [..., bins], how many.
        weight: float64 [..., bins], of the bin's images; over all bins 1.
        score: float64 [..., bins], sum of their scores by weight.
        ai: float64 [..., bins], weight of those that are AI.
    """

    images: Weights
    weight: Weights
    score: Weights
    ai: Weights

    @classmethod
    @_undefined_is_nan
    def of(cls, labels: Labels, scores: Scores, weights: Weights) -> Self:
        """Sort images into their bins."""
        place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
        inside = place[:, None] == np.arange(_BINS)
        images, weight, score = [], [], []
        for label in (REAL, AI):
            own = inside * (labels == label)[:, None]
            of = weights @ own.astype(float)
            total = 2 * of.sum(axis=-1, keepdims=True)
            images.append(of)
            weight.append(of / total)
            score.append(weights @ (own * scores[:, None]) / total)
        return cls(images[0] + images[1], weight[0] + weight[1], score[0] + score[1], weight[AI])


def calibration_error(labels: Labels, scores: Scores, weights: Weights) -> Figure:
    """Expected calibration error where the classes are equally frequent."""
    bins = Bins.of(labels, scores, weights)
    return np.asarray(abs(bins.ai - bins.score).sum(axis=-1))


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure that is quoted.

    Attributes:
        key: its name in reports; its interval's is `KEY_95`.
        title: its column in tables.
        measure: of labels, values and weights.
        reads: what the values are: `order`, scores of which the order alone counts, so logits do as
            well; `scores`, calibrated ones; `verdicts`, whose shares are also quoted as
            `KEY_by_owner`, a mean over owners, each counting once; `low_quality`, bool.
        real: which of the images that are not AI it is of.
        trials: of a share, the classes whose images are its trials.
    """

    key: str
    title: str
    measure: Measure
    reads: Literal["order", "scores", "verdicts", "low_quality"]
    real: Literal["photographs", "made"] = "photographs"
    trials: tuple[int, ...] = ()

    @property
    def by_owner(self) -> str | None:
        """The key of the mean over owners, where there is one."""
        return f"{self.key}_by_owner" if self.reads == "verdicts" else None


def _called(label: int, value: Any) -> Measure:
    return partial(called, label=label, value=value)


FIGURES: tuple[Metric, ...] = (
    Metric("auc", "AUC", roc_area, "order"),
    Metric("ap", "AP", average_precision, "order"),
    Metric("acc", "Acc", partial(accuracy, cut=CUT), "scores", trials=(REAL, AI)),
    Metric(
        "recall_at_1_percent_fpr",
        "recall at 1 % FPR",
        partial(recall_at_fpr, rate=0.01),
        "order",
        trials=(AI,),
    ),
    Metric(
        "recall_at_3_percent_fpr",
        "recall at 3 % FPR",
        partial(recall_at_fpr, rate=0.03),
        "order",
        trials=(AI,),
    ),
    Metric("ece", "ECE", calibration_error, "scores"),
    Metric(
        "real_called_ai",
        "real called AI",
        _called(REAL, Verdict.AI_GENERATED),
        "verdicts",
        trials=(REAL,),
    ),
    Metric(
        "made_called_ai",
        "art called AI",
        _called(REAL, Verdict.AI_GENERATED),
        "verdicts",
        real="made",
        trials=(REAL,),
    ),
    Metric(
        "ai_called_ai", "AI called AI", _called(AI, Verdict.AI_GENERATED), "verdicts", trials=(AI,)
    ),
    Metric("ai_called_real", "AI called real", _called(AI, Verdict.REAL), "verdicts", trials=(AI,)),
    Metric("uncertain", "uncertain", uncertain, "verdicts", trials=(REAL, AI)),
    Metric("held_back", "held back", _called(REAL, True), "low_quality", trials=(REAL,)),
)


def quote(
    metrics: Sequence[Metric],
    labels: Labels,
    values: Mapping[str, NDArray[Any]],
    *,
    made: NDArray[np.bool_],
    owners: Sequence[str],
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Figures by key, each followed by its 95 % interval: a bootstrap over owners.

    Whole owners are drawn, of whatever classes their images are: one's images are alike, and
    drawing images alone would promise too much. A class that is all of one owner is drawn by image.
    Where a share is 0 or 1 all samples agree; its interval then ends where Wilson's does, of as
    many trials as there are owners.

    Args:
        metrics: which of `FIGURES`.
        labels: int64 [n], 1 = AI.
        values: [n] each, by what `Metric.reads`.
        made: bool [n], see `Row.made`.
        owners: whose each image is.
        repeats: bootstrap samples.

    Returns:
        Numbers, `KEY_95` two of them; None where a figure does not exist (one class alone has no
        AUC).
    """
    unit, once = _units(labels, made, owners)
    counted = {"photographs": (~made).astype(float), "made": (made | (labels == AI)).astype(float)}
    wanted: dict[str, tuple[Metric, Weights]] = {}
    for metric in metrics:
        wanted[metric.key] = metric, counted[metric.real]
        if metric.by_owner:
            wanted[metric.by_owner] = metric, counted[metric.real] * once
    drawn: dict[str, list[Figure]] = {key: [] for key in wanted}
    for sample in _samples(unit, repeats):
        for key, (metric, weights) in wanted.items():
            figures = metric.measure(labels, values[metric.reads], sample * weights)
            drawn[key].append(figures)
    quoted: dict[str, Any] = {}
    for key, (metric, weights) in wanted.items():
        figure = float(metric.measure(labels, values[metric.reads], weights))
        quoted[key] = number(figure)
        if metric.trials and figure in (0.0, 1.0):
            trials = min(len(np.unique(unit[(labels == c) & (weights > 0)])) for c in metric.trials)
            end = _Z**2 / (trials + _Z**2)
            ends = (0.0, end) if figure == 0 else (1 - end, 1.0)
        else:
            ends = _interval(figure, np.concatenate(drawn[key]))
        quoted[f"{key}_95"] = [number(end) for end in ends]
    return quoted


def _units(
    labels: Labels, made: NDArray[np.bool_], owners: Sequence[str]
) -> tuple[NDArray[np.int64], Weights]:
    """What is drawn whole.

    Returns:
        Of each image its unit, int64 [n], and one over the number of its unit's images of its
        class, float64 [n].
    """
    _, unit = np.unique(np.asarray(owners), return_inverse=True)
    masks = [mask for mask in classes(labels, made).values() if mask.any()]
    for mask in masks:
        if len(np.unique(unit[mask])) == 1:
            unit[mask] = len(labels) + np.flatnonzero(mask)
    _, unit = np.unique(unit, return_inverse=True)
    once = np.ones(len(labels))
    for mask in masks:
        once[mask] = 1 / np.bincount(unit[mask])[unit[mask]]
    return unit, once


def _samples(unit: NDArray[np.int64], repeats: int) -> Iterator[Weights]:
    """How often each image is drawn: float64 [samples, n], a few samples at a time.

    Args:
        unit: int64 [n], from 0: as many are drawn as there are.
        repeats: samples in all.
    """
    rng = np.random.default_rng(0)
    units = int(unit.max()) + 1
    for start in range(0, repeats, _AT_ONCE):
        size = min(_AT_ONCE, repeats - start)
        times = rng.multinomial(units, np.full(units, 1 / units), size=size)
        yield times.astype(float)[:, unit]


def _interval(figure: float, samples: Figure) -> tuple[float, float]:
    """Of 95 %; NaN where there is no figure."""
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(figure) or not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def number(value: float) -> float | None:
    """A figure as reports hold it: four digits, None where there is no such figure."""
    return round(float(value), 4) if np.isfinite(value) else None
