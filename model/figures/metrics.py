"""Figures over scores and verdicts, with their intervals, and the one list of what is quoted.

To quote another figure is to add a row to `FIGURES`: reports, tables, training's and the ablation's
figures are all made from it. The figures themselves are NumPy only, so that anyone can check them.

Everywhere, labels are int64 [n], 1 = AI; scores float64 [n], the higher the likelier AI, calibrated
where a cut or a bin is laid against them; verdicts str [n].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import AI, REAL
from model.verdicts import Labels, Scores, Verdict

CUT = 0.5
_BINS = 10

Measure = Callable[[Labels, NDArray[Any]], float]


def both_classes(labels: Labels) -> bool:
    """Whether there are images of both."""
    return bool(0 < labels.sum() < len(labels))


def auc(labels: Labels, scores: Scores) -> float:
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


def average_precision(labels: Labels, scores: Scores) -> float:
    """Area under the precision-recall curve as a step function (AP); NaN without AI images.

    Equal scores enter at once, so their order decides nothing. AP depends on the share of AI
    images in the set.
    """
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of its equal scores
    hits = np.cumsum(labels[order] == 1)[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def r_acc(labels: Labels, scores: Scores, cut: float) -> float:
    """Share of the photographs below the cut (the paper's R.Acc); NaN without any."""
    real = scores[labels == 0]
    return float((real < cut).mean()) if len(real) else float("nan")


def f_acc(labels: Labels, scores: Scores, cut: float) -> float:
    """Share of the AI images at or above the cut (the paper's F.Acc); NaN without any."""
    fake = scores[labels == 1]
    return float((fake >= cut).mean()) if len(fake) else float("nan")


def balanced_accuracy(labels: Labels, scores: Scores, cut: float) -> float:
    """Mean of real accuracy and fake accuracy (the paper's Acc) at one cut."""
    return (r_acc(labels, scores, cut) + f_acc(labels, scores, cut)) / 2


def recall_at_fpr(labels: Labels, scores: Scores, rate: float) -> float:
    """Share of AI images above the cut that `rate` of the photographs exceed; NaN without both."""
    if not both_classes(labels):
        return float("nan")
    cut = np.quantile(scores[labels == 0], 1 - rate, method="higher")
    return float((scores[labels == 1] > cut).mean())


@dataclass(frozen=True, slots=True)
class Bins:
    """Images in equal-width bins of their scores, empty ones left out.

    The classes weigh the same, whatever the set's mixture: the score is calibrated for equal shares
    (`verdicts.fit_calibration`).

    Attributes:
        images: int64 [n], how many.
        weight: float64 [n], their weight; of all, 1.
        score: float64 [n], mean score.
        ai: float64 [n], share of AI images.
    """

    images: NDArray[np.int64]
    weight: NDArray[np.float64]
    score: NDArray[np.float64]
    ai: NDArray[np.float64]

    @classmethod
    def of(cls, labels: Labels, scores: Scores) -> Self:
        """Sort images into their bins; an absent class has no weight."""
        weights = 0.5 / np.bincount(labels)[labels]
        place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
        inside = np.unique(place)[:, None] == place
        weight = inside @ weights
        score, ai = inside @ (weights * scores) / weight, inside @ (weights * labels) / weight
        return cls(inside.sum(axis=1), weight, score, ai)


def calibration_error(labels: Labels, scores: Scores) -> float:
    """Expected calibration error where the classes are equally frequent; NaN without both."""
    if not both_classes(labels):
        return float("nan")
    bins = Bins.of(labels, scores)
    return float((bins.weight * abs(bins.ai - bins.score)).sum())


def called(labels: Labels, verdicts: NDArray[np.str_], label: int, verdict: Verdict) -> float:
    """Share of a class's images that have the verdict; NaN without any."""
    own = verdicts[labels == label]
    return float((own == verdict).mean()) if len(own) else float("nan")


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
    values: NDArray[Any],
    measure: Measure,
    *,
    units: Sequence[str],
    repeats: int = 1000,
) -> tuple[float, float]:
    """95 % interval of a figure; NaN where a class is absent.

    Whole units are drawn: images of one generator or camera are alike, and drawing images alone
    would promise too much. A class of one unit is drawn by image.

    Args:
        labels: int64 [n], 1 = AI.
        values: [n], scores or verdicts.
        measure: the figure, of labels and values.
        units: what each image is of, see `Row.unit`.
        repeats: bootstrap samples.
    """
    if not both_classes(labels):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    names = np.asarray(units)
    classes = [
        [np.flatnonzero((labels == c) & (names == u)) for u in np.unique(names[labels == c])]
        for c in (0, 1)
    ]
    figures = []
    for _ in range(repeats):
        drawn: list[NDArray[np.int64]] = []
        for members in classes:
            if len(members) == 1:
                drawn.append(rng.choice(members[0], len(members[0])))
            else:
                drawn += [members[i] for i in rng.integers(len(members), size=len(members))]
        index = np.concatenate(drawn)
        figure = measure(labels[index], values[index])
        if np.isfinite(figure):
            figures.append(figure)
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure that is quoted.

    Attributes:
        key: its name in reports; its interval's is `KEY_95`.
        title: its column in tables.
        measure: of labels [n] and values [n]; NaN where there is no such figure.
        reads: what the values are: `order`, scores of which the order alone counts, so logits do as
            well; `scores`, calibrated ones; `verdicts`.
        trials: the class whose images are its trials, for a share with Wilson's interval, which
            takes images as independent and so promises more; None: the interval is a bootstrap over
            whole units.
        overall: whether it is a column of the table over all images.
        groups: whether it is one of the tables of groups, and has a mean over generators.
    """

    key: str
    title: str
    measure: Measure
    reads: Literal["order", "scores", "verdicts"]
    trials: int | None = None
    overall: bool = True
    groups: bool = False

    def interval(
        self, labels: Labels, values: NDArray[Any], *, units: Sequence[str], repeats: int = 1000
    ) -> tuple[float, float]:
        """Of 95 %; NaN where a class is absent.

        Args:
            labels: int64 [n], 1 = AI.
            values: [n], see `reads`.
            units: what each image is of, see `Row.unit`.
            repeats: bootstrap samples.
        """
        if self.trials is None:
            return bootstrap(labels, values, self.measure, units=units, repeats=repeats)
        total = int((labels == self.trials).sum())
        return wilson(round(self.measure(labels, values) * total) if total else 0, total)


FIGURES: tuple[Metric, ...] = (
    Metric("auc", "AUC", auc, "order", groups=True),
    Metric("ap", "AP", average_precision, "order", groups=True),
    Metric("r_acc", "R.Acc", partial(r_acc, cut=CUT), "scores", overall=False, groups=True),
    Metric("f_acc", "F.Acc", partial(f_acc, cut=CUT), "scores", overall=False, groups=True),
    Metric("acc", "Acc", partial(balanced_accuracy, cut=CUT), "scores", groups=True),
    Metric(
        "recall_at_1_percent_fpr", "recall at 1 % FPR", partial(recall_at_fpr, rate=0.01), "order"
    ),
    Metric(
        "recall_at_3_percent_fpr", "recall at 3 % FPR", partial(recall_at_fpr, rate=0.03), "order"
    ),
    Metric("ece", "ECE", calibration_error, "scores"),
    Metric(
        "real_called_ai",
        "real called AI",
        partial(called, label=REAL, verdict=Verdict.AI_GENERATED),
        "verdicts",
        trials=REAL,
    ),
    Metric(
        "ai_called_ai",
        "AI called AI",
        partial(called, label=AI, verdict=Verdict.AI_GENERATED),
        "verdicts",
    ),
    Metric(
        "ai_called_real",
        "AI called real",
        partial(called, label=AI, verdict=Verdict.REAL),
        "verdicts",
    ),
)


def quote(
    metrics: Sequence[Metric],
    labels: Labels,
    values: Mapping[str, NDArray[Any]],
    *,
    units: Sequence[str],
    repeats: int = 1000,
) -> dict[str, Any]:
    """Figures by key, each followed by its interval.

    Args:
        metrics: which of `FIGURES`.
        labels: int64 [n], 1 = AI.
        values: [n] each, by what `Metric.reads`.
        units: what each image is of, see `Row.unit`.
        repeats: bootstrap samples.

    Returns:
        Numbers, `KEY_95` two of them; None where a figure does not exist (one class alone has no
        AUC).
    """
    quoted: dict[str, Any] = {}
    for metric in metrics:
        own = values[metric.reads]
        quoted[metric.key] = number(metric.measure(labels, own))
        interval = metric.interval(labels, own, units=units, repeats=repeats)
        quoted[f"{metric.key}_95"] = [number(end) for end in interval]
    return quoted


def number(value: float) -> float | None:
    """A figure as reports hold it: six digits, None where there is no such figure."""
    return round(float(value), 6) if np.isfinite(value) else None
