"""Figures as PNG, drawn through matplotlib's objects: no global state, no display."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.evaluation.evaluate import Scored
from model.evaluation.figures import CUT
from model.evaluation.metrics import Bins
from model.training.manifest import AI, REAL

_COLOURS = mpl.colormaps["tab10"]
_FEWEST = 10  # images; a bin with fewer says nothing


def write_plots(scored: Mapping[str, Scored], folder: Path) -> None:
    """Write `roc.png`, `reliability.png` and `groups.png` into an existing folder."""
    roc(scored).savefig(folder / "roc.png", dpi=150)
    reliability(scored).savefig(folder / "reliability.png", dpi=150)
    group_accuracy(scored).savefig(folder / "groups.png", dpi=150)


def roc(scored: Mapping[str, Scored]) -> Figure:
    """ROC per condition on a log axis: users live with the low false-positive end."""
    figure, axes = _figure(6.5, 5)
    for index, (name, part) in enumerate(scored.items()):
        real = np.sort(part.scores[part.labels == REAL])
        ai = np.sort(part.scores[part.labels == AI])
        if not len(real) or not len(ai):
            continue
        cuts = np.unique(part.scores)[::-1]
        fpr = 1 - np.searchsorted(real, cuts) / len(real)
        tpr = 1 - np.searchsorted(ai, cuts) / len(ai)
        # Zero has no logarithm: the curve starts at the axis's left end.
        axes.plot(np.maximum(fpr, 1e-4), tpr, label=name, color=_COLOURS(index), lw=1.4,
                  drawstyle="steps-post")  # fmt: skip
    fewest = max(int((part.labels == REAL).sum()) for part in scored.values())
    axes.set(xscale="log", xlim=(max(0.5 / max(fewest, 1), 1e-4), 1), ylim=(0, 1.01),
             xlabel="photographs above the cut (false positives)",
             ylabel="AI images above the cut", title="ROC")  # fmt: skip
    axes.grid(visible=True, which="both", alpha=0.25)
    if axes.lines:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def reliability(scored: Mapping[str, Scored]) -> Figure:
    """Share of AI images against the mean score, the classes weighing the same (`Bins`)."""
    figure, axes = _figure(5.5, 5)
    axes.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="calibrated")
    for index, (name, part) in enumerate(scored.items()):
        bins = Bins.of(part.labels, part.scores)
        shown = bins.images >= _FEWEST
        axes.plot(bins.score[shown], bins.ai[shown],
                  marker="o", ms=3.5, lw=1.2, color=_COLOURS(index), label=name)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean score",
             ylabel="share of AI images, both classes weighing the same",
             title=f"Reliability (bins of {_FEWEST} images or more)")  # fmt: skip
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def group_accuracy(scored: Mapping[str, Scored]) -> Figure:
    """Per group, the share right at 0.5: a bar for the first condition, a dot for the worst."""
    first, *_ = scored
    accuracy = {name: _accuracies(part) for name, part in scored.items()}
    units = sorted(accuracy[first], key=lambda unit: (unit[0], accuracy[first][unit]))
    figure, axes = _figure(7, 1.4 + 0.22 * len(units))
    places = range(len(units))
    for label, colour, name in ((AI, _COLOURS(1), "AI images"), (REAL, _COLOURS(0), "photographs")):
        members = [i for i in places if units[i][0] == label]
        axes.barh(members, [accuracy[first][units[i]] for i in members], color=colour, alpha=0.75,
                  label=f"{name}, {first}")  # fmt: skip
    if len(scored) > 1:
        worst = [min(a[unit] for a in accuracy.values() if unit in a) for unit in units]
        axes.plot(worst, places, "k.", ms=5, label="worst condition")
    axes.set_yticks(places, [group for _, group in units], fontsize=7)
    axes.set(xlim=(0, 1.01), ylim=(-0.7, len(units) - 0.3),
             xlabel=f"share on the right side of {CUT}")  # fmt: skip
    axes.grid(visible=True, axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _accuracies(part: Scored) -> dict[tuple[int, str], float]:
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
