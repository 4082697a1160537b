"""What is quoted of predictions, and the tables that show it.

The figures are plain dicts with stable keys: shares between 0 and 1, None where a figure does not
exist (one class alone has no AUC). `NAME_95` is the 95 % interval of `NAME`, `NAME_by_owner` its
mean over owners. Classes are `real`, of photographs, `made` and `ai`. Tables are in percent.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import AI
from model.figures.metrics import FIGURES, REPEATS, number, quote
from model.figures.predictions import Predictions, classes
from model.verdicts import Labels, Scores, Verdict

Key = TypeVar("Key", str, tuple[str, str, str])

TITLES = {"real": "photographs", "made": "art, renders and screens", "ai": "AI"}
_WEAKEST, _FEWEST = 10, 10  # so many groups are named, of so many images or more
_ACCUSED, _ACCUSED_OF = 0.1, 20  # a source is named that has more accused, of so many or more
_CHANGES = ("changed", "real<->ai_generated", "to or from uncertain")


def overall(
    part: Predictions, *, ranks: Scores | None = None, repeats: int = REPEATS
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
        "low_quality": part.low_quality,
    }
    quoted = quote(
        FIGURES, part.labels, values, made=part.made, owners=part.owners, repeats=repeats
    )
    return {
        "images": count_images(part.labels, part.made),
        "skipped": part.skipped,
        **quoted,
        "verdicts": {name: _shares(verdicts[own]) for name, own in part.classes.items()},
    }


def verdicts_by_group(part: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each class, by generator or source: `images`, and shares of verdicts."""
    verdicts = np.array(part.verdicts)
    groups = np.array([row.group for row in part.rows])
    return {
        of: {
            name: {"images": len(inside), **_shares(verdicts[own][inside])}
            for name, inside in _members(groups[own].tolist()).items()
        }
        for of, own in part.classes.items()
    }


def group_rows(part: Predictions) -> list[dict[str, Any]]:
    """Every group, its labels and kinds apart, each a row of a spreadsheet by column."""
    keys = [(row.group, "ai" if row.label == AI else "real", row.kind) for row in part.rows]
    verdicts = np.array(part.verdicts)
    return [
        {
            "group": group,
            "label": label,
            "kind": kind,
            "images": len(inside),
            **_shares(verdicts[inside]),
            "mean_score": number(float(part.scores[inside].mean())),
        }
        for (group, label, kind), inside in _members(keys).items()
    ]


def weakest(
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The generators that are found least, and the sources of photographs that are accused most.

    Args:
        groups: what `verdicts_by_group` returned.

    Returns:
        Of `ai` and `real`, ten groups of at least ten images, the weakest first.
    """
    chosen = {}
    for of, sign in (("ai", 1), ("real", -1)):
        large = [name for name, own in groups[of].items() if own["images"] >= _FEWEST]
        large.sort(key=lambda name: sign * groups[of][name]["ai_generated"])
        chosen[of] = {name: groups[of][name] for name in large[:_WEAKEST]}
    return chosen


def worst(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Sources of at least twenty photographs of which more than a tenth is accused, worst first.

    Args:
        groups: what `verdicts_by_group` returned.
    """
    named = [
        {"group": name, "images": own["images"], "accused": own["ai_generated"]}
        for name, own in groups["real"].items()
        if own["images"] >= _ACCUSED_OF and own["ai_generated"] > _ACCUSED
    ]
    return sorted(named, key=lambda source: -source["accused"])


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


def count_images(labels: Labels, made: NDArray[np.bool_]) -> dict[str, int]:
    """How many images each class has, by its name; see `predictions.classes`."""
    return {name: int(own.sum()) for name, own in classes(labels, made).items()}


def _members(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The places of each key, the keys sorted."""
    places: defaultdict[Key, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return dict(sorted(places.items()))


def _shares(verdicts: NDArray[np.str_]) -> dict[str, float | None]:
    """Of each verdict, by its name; None without images."""
    return {
        verdict.value: number(float((verdicts == verdict).mean())) if len(verdicts) else None
        for verdict in Verdict
    }


# --- tables -------------------------------------------------------------------------------------


def overall_table(conditions: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the figures over all images, one row per condition.

    Args:
        conditions: what `overall` returned, by condition.
    """
    shown = [(metric.title, metric.key) for metric in FIGURES]
    cells = [
        [name, str(sum(figures["images"].values())), *(_quoted(figures, key) for _, key in shown)]
        for name, figures in conditions.items()
    ]
    return ["condition", "images", *(title for title, _ in shown)], cells


def owner_table(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """Shares of verdicts as means over owners, Markdown; see `overall_table`."""
    shown = [(metric.title, metric.by_owner) for metric in FIGURES if metric.by_owner]
    cells = [
        [name, *(_quoted(figures, key) for _, key in shown)] for name, figures in conditions.items()
    ]
    return markdown(["condition", *(title for title, _ in shown)], cells)


def verdict_table(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """Each class's shares of the verdicts, Markdown; see `overall_table`."""
    columns = [(of, title, verdict.value) for of, title in TITLES.items() for verdict in Verdict]
    cells = [
        [name, *(percent(figures["verdicts"][of][verdict]) for of, _, verdict in columns)]
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
    """One class's groups, as `verdicts_by_group` and `weakest` have them, as Markdown."""
    cells = [
        [name, str(own["images"]), *(percent(own[verdict]) for verdict in Verdict)]
        for name, own in groups.items()
    ]
    return markdown(["group", "images", *(verdict.value for verdict in Verdict)], cells)


def worst_table(conditions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What `worst` returned, by condition, as Markdown."""
    cells = [
        [name, source["group"], str(source["images"]), percent(source["accused"])]
        for name, sources in conditions.items()
        for source in sources
    ]
    return markdown(["condition", "source", "photographs", "called AI"], cells)


def _quoted(figures: Mapping[str, Any], key: str) -> str:
    return percent(figures[key], figures[f"{key}_95"])


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
