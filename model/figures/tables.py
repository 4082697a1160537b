"""What is quoted of predictions, and the tables that show it.

The figures are plain dicts with stable keys: shares between 0 and 1, None where a figure does not
exist (one class alone has no AUC). `NAME_95` is the 95 % interval of `NAME`. Tables are in percent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import CLASSES, REAL
from model.figures.metrics import FIGURES, called, number, quote
from model.figures.predictions import Predictions
from model.verdicts import Labels, Scores, Verdict

_OVERALL = tuple(metric for metric in FIGURES if metric.overall)
_GROUPS = tuple(metric for metric in FIGURES if metric.groups)
_CHANGES = ("changed", "real<->ai_generated", "to or from uncertain")


def overall(
    part: Predictions, *, ranks: Scores | None = None, repeats: int = 1000
) -> dict[str, Any]:
    """Figures over all images of one condition, with their intervals.

    Args:
        part: the images.
        ranks: float64 [n], what orders them where their scores do not, as those of several
            calibrations.
        repeats: bootstrap samples.
    """
    verdicts = np.array(part.verdicts)
    values = {
        "order": part.scores if ranks is None else ranks,
        "scores": part.scores,
        "verdicts": verdicts,
    }
    return {
        "images": count_images(part.labels),
        "skipped": part.skipped,
        **quote(FIGURES, part.labels, values, units=part.units, repeats=repeats),
        "verdicts": {
            name: _verdict_shares(part.labels, verdicts, label) for name, label in CLASSES.items()
        },
    }


def per_group(part: Predictions) -> dict[str, dict[str, Any]]:
    """The figures of each group, as the paper's tables have them.

    A group with both classes is judged on its own images; a group of AI images alone against all
    photographs of the set; of a group of photographs alone there is R.Acc only.
    """
    groups, labels, scores = part.groups, part.labels, part.scores
    figures = {}
    for name in sorted(set(groups.tolist())):
        own = groups == name
        images = count_images(labels[own])
        used = own if images["real"] else own | (labels == REAL)
        values = {metric.key: metric.measure(labels[used], scores[used]) for metric in _GROUPS}
        figures[name] = {
            "images": images,
            "median_score": number(float(np.median(scores[own]))),
            **{key: number(value) for key, value in values.items() if np.isfinite(value)},
        }
    return figures


def verdicts_by_group(part: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each class, by generator or source of photographs: `images`, and shares of verdicts."""
    groups, verdicts = part.groups, np.array(part.verdicts)
    return {
        of: {
            name: {
                "images": int((part.labels[groups == name] == label).sum()),
                **_verdict_shares(part.labels[groups == name], verdicts[groups == name], label),
            }
            for name in sorted(set(groups[part.labels == label].tolist()))
        }
        for of, label in CLASSES.items()
    }


def generator_mean(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean over the groups that hold AI images, each counting once.

    Args:
        groups: what `per_group` returned.
    """
    ai = [figures for figures in groups.values() if figures["images"]["ai"]]
    mean = {}
    for metric in _GROUPS:
        values = [figures[metric.key] for figures in ai if metric.key in figures]
        mean[metric.key] = number(float(np.mean(values))) if values else None
    return mean


def consistency(clean: Predictions, other: Predictions) -> dict[str, Any]:
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
    counts = dict(zip(_CHANGES, (reversed_ + doubted, reversed_, doubted), strict=True))
    return {
        "images": images,
        **{name: number(count / images) if images else None for name, count in counts.items()},
    }


def count_images(labels: Labels) -> dict[str, int]:
    """How many images each class has, by its name; labels are int64 [n]."""
    return {name: int((labels == label).sum()) for name, label in CLASSES.items()}


def _verdict_shares(
    labels: Labels, verdicts: NDArray[np.str_], label: int
) -> dict[str, float | None]:
    return {verdict.value: number(called(labels, verdicts, label, verdict)) for verdict in Verdict}


# --- tables -------------------------------------------------------------------------------------


def overall_table(conditions: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the figures over all images, one row per condition.

    Args:
        conditions: what `overall` returned, by condition.
    """
    header = ["condition", "images", *(metric.title for metric in _OVERALL)]
    cells = [
        [
            name,
            str(sum(figures["images"].values())),
            *(percent(figures[m.key], figures[f"{m.key}_95"]) for m in _OVERALL),
        ]
        for name, figures in conditions.items()
    ]
    return header, cells


def verdict_table(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """Each class's shares of the verdicts, Markdown; see `overall_table`."""
    columns = [
        (key, title, verdict.value)
        for key, title in (("real", "photographs"), ("ai", "AI"))
        for verdict in Verdict
    ]
    cells = [
        [name, *(percent(figures["verdicts"][key][verdict]) for key, _, verdict in columns)]
        for name, figures in conditions.items()
    ]
    return markdown(["condition", *(f"{title}: {verdict}" for _, title, verdict in columns)], cells)


def consistency_table(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """What `consistency` returned, by condition, as Markdown."""
    cells = [
        [name, str(shares["images"]), *(percent(shares[change]) for change in _CHANGES)]
        for name, shares in conditions.items()
    ]
    return markdown(["condition", "images", *_CHANGES], cells)


def group_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """What `per_group` returned, and its `generator_mean`, as Markdown."""
    cells = [
        [
            name,
            *(str(figures["images"][key]) for key in CLASSES),
            *(percent(figures.get(metric.key)) for metric in _GROUPS),
        ]
        for name, figures in groups.items()
    ]
    mean = generator_mean(groups)
    cells.append(["**mean**", "", "", *(percent(mean[metric.key]) for metric in _GROUPS)])
    return markdown(["group", "real", "AI", *(metric.title for metric in _GROUPS)], cells)


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column of words and the others of numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (header, rule, *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def percent(share: float | None, interval: Sequence[float | None] | None = None) -> str:
    """A share, and its interval where there is one, in percent; `-` where there is no share."""
    shown = "-" if share is None else f"{100 * share:.1f}"
    if interval is None:
        return shown
    low, high = (percent(end) for end in interval)
    return f"{shown} ({low}-{high})"
