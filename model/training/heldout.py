"""What is quoted of images that were left out of training; every figure is of `metrics.FIGURES`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from model.data.manifest import Row, folds
from model.errors import ModelError
from model.figures.crossfit import Logits, cross_fitted_figures
from model.figures.metrics import FIGURES, quote
from model.figures.tables import count_images
from model.training.options import TrainOptions

log = logging.getLogger(__name__)

# What needs neither calibration nor cuts.
RANKING = tuple(metric for metric in FIGURES if metric.reads == "order")


def held_out_figures(
    rows: Sequence[Row],
    fold: Sequence[int],
    conditions: Mapping[str, Logits],
    options: TrainOptions,
) -> dict[str, Any]:
    """Figures by condition, and in `folds` how they came about.

    Each fold's calibrations and cuts are chosen on the other folds: on the images that chose them,
    they would keep their promise whatever the network is worth. Where one fold alone was measured,
    its units are halved. Where that leaves nothing to choose on, `no_verdicts` says so, and figures
    of the order alone are quoted.

    Args:
        rows: the images.
        fold: of each image.
        conditions: their logits, of the measured folds.
        options: what they were trained by.
    """
    measured = options.measured
    if measured == 1:
        fold, how = _halved(rows, fold), "its units halved, each half's cuts chosen on the other"
    else:
        how = "each one's cuts chosen on the others"
    figures: dict[str, Any] = {
        "folds": f"{measured} of {options.folds} folds of left-out groups; {how}"
    }
    try:
        return figures | cross_fitted_figures(rows, fold, conditions, options.promise)
    except ModelError as error:
        log.warning("no figures of verdicts on left-out groups: %s", error)
        figures["no_verdicts"] = str(error)
    return figures | {name: ranking_figures(rows, part) for name, part in conditions.items()}


def ranking_figures(rows: Sequence[Row], part: Logits) -> dict[str, Any]:
    """Figures of the images' order alone, with the number of images of each class."""
    units = [rows[index].unit for index in part.row]
    return {
        "images": count_images(part.labels),
        "skipped": part.skipped,
        **quote(RANKING, part.labels, {"order": part.all}, units=units),
    }


def _halved(rows: Sequence[Row], fold: Sequence[int]) -> list[int]:
    """The first fold in two, by units of each class; the others' images were not scored."""
    inside = [index for index, own in enumerate(fold) if own == 0]
    halves = [-1] * len(rows)
    for index, half in zip(inside, folds([rows[i] for i in inside], 2), strict=True):
        halves[index] = half
    return halves
