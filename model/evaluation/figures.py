"""What is quoted of scored images: overall, per group, and from one condition to another.

Every function returns a plain dict with stable keys: shares between 0 and 1, None where a figure
does not exist (one class alone has no AUC). `NAME_95` is the 95 % interval of `NAME`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import Verdict
from model.evaluation.evaluate import Scored
from model.evaluation.metrics import (
    Array,
    Labels,
    auc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    calibration_error,
    f_acc,
    r_acc,
    recall_at_fpr,
    wilson,
)
from model.training.manifest import AI, REAL

CUT = 0.5
FIGURES: dict[str, Callable[[Labels, Array], float]] = {
    "auc": auc,
    "ap": average_precision,
    "r_acc": partial(r_acc, cut=CUT),
    "f_acc": partial(f_acc, cut=CUT),
    "acc": partial(balanced_accuracy, cut=CUT),
    "recall_at_1_percent_fpr": partial(recall_at_fpr, rate=0.01),
    "recall_at_3_percent_fpr": partial(recall_at_fpr, rate=0.03),
    "ece": calibration_error,
}
PER_GROUP = ("r_acc", "f_acc", "acc", "ap", "auc")


def overall(scored: Scored, *, repeats: int = 1000) -> dict[str, Any]:
    """Figures over all images of one condition, with intervals.

    The figures of `FIGURES` have bootstrap intervals over whole units (`Row.unit`); `verdicts`
    holds each class's share of each verdict; `real_called_ai`, the share of falsely accused
    photographs, has a Wilson interval, which takes images as independent and so promises more.

    Args:
        scored: the images.
        repeats: bootstrap samples.
    """
    labels, scores, units = scored.labels, scored.scores, [row.unit for row in scored.rows]
    verdicts = np.array(scored.verdicts)
    found: dict[str, Any] = {
        "images": {"real": int((labels == REAL).sum()), "ai": int((labels == AI).sum())},
        "skipped": scored.skipped,
    }
    for name, figure in FIGURES.items():
        low, high = bootstrap(labels, scores, figure, units=units, repeats=repeats)
        found[name] = _number(figure(labels, scores))
        found[f"{name}_95"] = [_number(low), _number(high)]
    found["verdicts"] = {
        name: {
            verdict.value: _number(_share(verdicts[labels == label] == verdict))
            for verdict in Verdict
        }
        for name, label in (("real", REAL), ("ai", AI))
    }
    accused = verdicts[labels == REAL] == Verdict.AI_GENERATED
    found["real_called_ai"] = _number(_share(accused))
    found["real_called_ai_95"] = [_number(v) for v in wilson(int(accused.sum()), len(accused))]
    return found


def per_group(scored: Scored) -> dict[str, dict[str, Any]]:
    """R.Acc, F.Acc, Acc, AP and AUC of each group as the paper's tables have them.

    A group with both classes is judged on its own images; a group of AI images alone against all
    photographs of the set; a group of photographs alone has R.Acc only. Cut 0.5.
    """
    groups, labels, scores = scored.groups, scored.labels, scored.scores
    found = {}
    for name in sorted(set(groups.tolist())):
        own = groups == name
        real, ai = int((labels[own] == REAL).sum()), int((labels[own] == AI).sum())
        used = own if real else own | (labels == REAL)
        found[name] = {
            "images": {"real": real, "ai": ai},
            "median_score": _number(float(np.median(scores[own]))),
            **{figure: _number(FIGURES[figure](labels[used], scores[used]))
               for figure in (PER_GROUP if ai else PER_GROUP[:1])},
        }  # fmt: skip
    return found


def generator_mean(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean over the groups that hold AI images, each counting once.

    Args:
        groups: what `per_group` returned.
    """
    ai = [figures for figures in groups.values() if figures["images"]["ai"]]
    found = {}
    for name in PER_GROUP:
        values = [figures[name] for figures in ai if figures[name] is not None]
        found[name] = _number(float(np.mean(values))) if values else None
    return found


def consistency(clean: Scored, other: Scored) -> dict[str, Any]:
    """Shares of the images of both conditions whose verdict differs from the clean copy's."""
    before = dict(zip(clean.rows, clean.verdicts, strict=True))
    changes = Counter(
        frozenset((before[row], verdict))
        for row, verdict in zip(other.rows, other.verdicts, strict=True)
        if row in before
    )
    images = changes.total()
    reversed_ = changes[frozenset((Verdict.REAL, Verdict.AI_GENERATED))]
    doubted = sum(n for pair, n in changes.items() if len(pair) == 2 and Verdict.UNCERTAIN in pair)
    shares = {
        "changed": reversed_ + doubted,
        "real<->ai_generated": reversed_,
        "to or from uncertain": doubted,
    }
    return {
        "images": images,
        **{name: _number(count / images) if images else None for name, count in shares.items()},
    }


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else float("nan")


def _number(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None
