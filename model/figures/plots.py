"""Figures as PNG, drawn through matplotlib's objects: no global state, no display."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.data.manifest import AI, REAL
from model.figures.metrics import CUT, Bins
from model.figures.predictions import Predictions

_COLOURS = mpl.colormaps["tab10"]
_FEWEST = 10  # images; a bin with fewer says nothing


def write_plots(conditions: Mapping[str, Predictions], folder: Path) -> None:
    """Write `roc.png`, `reliability.png` and `groups.png` into an existing folder."""
    roc(conditions).savefig(folder / "roc.png", dpi=150)
    reliability(conditions).savefig(folder / "reliability.png", dpi=150)
    group_accuracy(conditions).savefig(folder / "groups.png", dpi=150)


def roc(conditions: Mapping[str, Predictions]) -> Figure:
    """ROC per condition on a log axis: users live with the low false-positive end."""
    figure, axes = _figure(6.5, 5)
    for index, (name, part) in enumerate(conditions.items()):
        real = np.sort(part.scores[part.labels == REAL])
        ai = np.sort(part.scores[part.labels == AI])
        if not len(real) or not len(ai):
            continue
        cuts = np.unique(part.scores)[::-1]
        fpr = 1 - np.searchsorted(real, cuts) / len(real)
        tpr = 1 - np.searchsorted(ai, cuts) / len(ai)
        # Zero has no logarithm: the curve starts at the axis's left end.
        axes.plot(
            np.maximum(fpr, 1e-4),
            tpr,
            label=name,
            color=_COLOURS(index),
            lw=1.4,
            drawstyle="steps-post",
        )
    fewest = max(int((part.labels == REAL).sum()) for part in conditions.values())
    axes.set(
        xscale="log",
        xlim=(max(0.5 / max(fewest, 1), 1e-4), 1),
        ylim=(0, 1.01),
        xlabel="photographs above the cut (false positives)",
        ylabel="AI images above the cut",
        title="ROC",
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    if axes.lines:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def reliability(conditions: Mapping[str, Predictions]) -> Figure:
    """Share of AI images against the mean score, the classes weighing the same (`Bins`)."""
    figure, axes = _figure(5.5, 5)
    axes.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="calibrated")
    for index, (name, part) in enumerate(conditions.items()):
        bins = Bins.of(part.labels, part.scores)
        shown = bins.images >= _FEWEST
        axes.plot(
            bins.score[shown],
            bins.ai[shown],
            marker="o",
            ms=3.5,
            lw=1.2,
            color=_COLOURS(index),
            label=name,
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="mean score",
        ylabel="share of AI images, both classes weighing the same",
        title=f"Reliability (bins of {_FEWEST} images or more)",
    )
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def group_accuracy(conditions: Mapping[str, Predictions]) -> Figure:
    """Per group, the share right at 0.5: a bar for the first condition, a dot for the worst."""
    first, *_ = conditions
    accuracy = {name: _accuracies(part) for name, part in conditions.items()}
    bars = sorted(accuracy[first], key=lambda bar: (bar[0], accuracy[first][bar]))
    figure, axes = _figure(7, 1.4 + 0.22 * len(bars))
    places = range(len(bars))
    for label, colour, name in ((AI, _COLOURS(1), "AI images"), (REAL, _COLOURS(0), "photographs")):
        members = [i for i in places if bars[i][0] == label]
        axes.barh(
            members,
            [accuracy[first][bars[i]] for i in members],
            color=colour,
            alpha=0.75,
            label=f"{name}, {first}",
        )
    if len(conditions) > 1:
        worst = [min(of[bar] for of in accuracy.values() if bar in of) for bar in bars]
        axes.plot(worst, places, "k.", ms=5, label="worst condition")
    axes.set_yticks(places, [group for _, group in bars], fontsize=7)
    axes.set(
        xlim=(0, 1.01), ylim=(-0.7, len(bars) - 0.3), xlabel=f"share on the right side of {CUT}"
    )
    axes.grid(visible=True, axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _accuracies(part: Predictions) -> dict[tuple[int, str], float]:
    right = (part.scores >= CUT) == (part.labels == AI)
    groups = part.groups
    return {
        (label, group): float(right[(part.labels == label) & (groups == group)].mean())
        for label, group in {(row.label, row.group) for row in part.rows}
    }


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
