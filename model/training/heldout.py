"""What is quoted of images that were left out of training; every figure is of `metrics.FIGURES`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from model.data.manifest import Row, folds
from model.errors import ModelError
from model.figures.crossfit import cross_fitted_figures
from model.figures.looks import look_figures
from model.figures.metrics import FIGURES, quote
from model.figures.tables import count_images
from model.training.options import TrainOptions
from model.verdicts import Logits

log = logging.getLogger(__name__)

# What needs neither calibration nor cuts.
RANKING = tuple(metric for metric in FIGURES if metric.reads == "order")


def held_out_figures(
    rows: Sequence[Row],
    fold: Sequence[int],
    conditions: Mapping[str, Logits],
    options: TrainOptions,
    *,
    reduced: Logits | None = None,
) -> dict[str, Any]:
    """Figures by condition, in `folds` how they came about, and `look_figures`.

    Each fold's calibrations and cuts are chosen on the other folds: on the images that chose them,
    they would keep their promise whatever the network is worth. Where one fold alone was measured,
    its owners are halved. Where that leaves nothing to choose on, `no_verdicts` says so, and
    figures of the order alone are quoted.

    Args:
        rows: the images.
        fold: of each image.
        conditions: their logits, of the measured folds.
        options: what they were trained by.
        reduced: see `look_figures`.
    """
    measured = options.measured
    if measured == 1:
        fold, how = _halved(rows, fold), "its owners halved, each half's cuts chosen on the other"
    else:
        how = "each one's cuts chosen on the others"
    figures: dict[str, Any] = {
        "folds": f"{measured} of {options.folds} folds of left-out owners; {how}"
    }
    try:
        return (
            figures
            | cross_fitted_figures(rows, fold, conditions, options.promise)
            | look_figures(fold, conditions, reduced, options.promise)
        )
    except ModelError as error:
        log.warning("no figures of verdicts on left-out owners: %s", error)
        figures["no_verdicts"] = str(error)
    return figures | {name: ranking_figures(rows, part) for name, part in conditions.items()}


def ranking_figures(rows: Sequence[Row], part: Logits) -> dict[str, Any]:
    """Figures of the images' order alone, with the number of images of each class."""
    owners = [rows[index].owner for index in part.row]
    return {
        "images": count_images(part.labels, part.made),
        "skipped": part.skipped,
        **quote(RANKING, part.labels, {"order": part.all}, made=part.made, owners=owners),
    }


def _halved(rows: Sequence[Row], fold: Sequence[int]) -> list[int]:
    """The first fold in two, by owner; the others' images were not scored."""
    inside = [index for index, own in enumerate(fold) if own == 0]
    halves = [-1] * len(rows)
    for index, half in zip(inside, folds([rows[i] for i in inside], 2), strict=True):
        halves[index] = half
    return halves
