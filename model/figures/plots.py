"""Figures as PNG, drawn through matplotlib's objects: no global state, no display."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.figures.metrics import Bins
from model.figures.predictions import Predictions
from model.figures.tables import verdicts_by_group, weakest

_COLOURS = mpl.colormaps["tab10"]
_FEWEST = 10  # images; a bin with fewer says nothing


def write_plots(conditions: Mapping[str, Predictions], folder: Path) -> None:
    """Write `roc.png`, `reliability.png` and `groups.png` into an existing folder."""
    roc(conditions).savefig(folder / "roc.png", dpi=150)
    reliability(conditions).savefig(folder / "reliability.png", dpi=150)
    weakest_groups(conditions).savefig(folder / "groups.png", dpi=150)


def roc(conditions: Mapping[str, Predictions]) -> Figure:
    """ROC per condition on a log axis: users live with the low false-positive end."""
    figure, axes = _figure(6.5, 5)
    for index, (name, part) in enumerate(conditions.items()):
        real, ai = (np.sort(part.scores[part.classes[of]]) for of in ("real", "ai"))
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
    most = max(int(part.classes["real"].sum()) for part in conditions.values())
    axes.set(
        xscale="log",
        xlim=(max(0.5 / max(most, 1), 1e-4), 1),
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
    """Share of AI images against the mean score, AI images and photographs weighing the same."""
    figure, axes = _figure(5.5, 5)
    axes.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="calibrated")
    for index, (name, part) in enumerate(conditions.items()):
        own = ~part.made
        labels, scores = part.labels[own], part.scores[own]
        bins = Bins.of(labels, scores, np.ones(len(labels)))
        shown = (bins.images >= _FEWEST) & (bins.weight > 0)  # without a class it is NaN
        axes.plot(
            bins.score[shown] / bins.weight[shown],
            bins.ai[shown] / bins.weight[shown],
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


def weakest_groups(conditions: Mapping[str, Predictions]) -> Figure:
    """Share called `ai_generated` of the groups of `tables.weakest`, by the first condition.

    A bar is of that condition, a dot of the one under which the group does worst.
    """
    every = {name: verdicts_by_group(part) for name, part in conditions.items()}
    first, *_ = conditions
    chosen = weakest(every[first])
    bars = [(of, group) for of in ("real", "ai") for group in chosen[of]]
    figure, axes = _figure(7, 1.4 + 0.22 * len(bars))
    places = range(len(bars))
    shares = {
        (of, group): [
            groups[of][group]["ai_generated"] for groups in every.values() if group in groups[of]
        ]
        for of, group in bars
    }
    for label, colour, name in (
        ("ai", _COLOURS(1), "AI images"),
        ("real", _COLOURS(0), "photographs"),
    ):
        members = [place for place in places if bars[place][0] == label]
        axes.barh(
            members,
            [shares[bars[place]][0] for place in members],
            color=colour,
            alpha=0.75,
            label=f"{name}, {first}",
        )
    if len(conditions) > 1:
        dots = [(min if bar[0] == "ai" else max)(shares[bar]) for bar in bars]
        axes.plot(dots, places, "k.", ms=5, label="worst condition")
    axes.set_yticks(places, [group for _, group in bars], fontsize=7)
    axes.set(xlim=(0, 1.01), ylim=(-0.7, max(len(bars), 1) - 0.3), xlabel="called ai_generated")
    axes.grid(visible=True, axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
