"""What the rules of a verdict do to images that did not choose them.

The rules that are chosen on all images keep their promise on those by construction, whatever the
network is worth: noise does, too. So each fold's are chosen on the other folds, and those are
quoted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import Row
from model.errors import ModelError
from model.figures.metrics import both_classes
from model.figures.predictions import Predictions
from model.figures.tables import overall, verdicts_by_group
from model.verdicts import Labels, Promise, Scores, VerdictRules, fit_rules


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits under one condition, of images that the network was not trained on.

    Attributes:
        row: int64 [n], index of each image in the list.
        labels: int64 [n], 1 = AI.
        first: float64 [n], after the first look alone.
        all: float64 [n], of all canvases.
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    row: NDArray[np.int64]
    labels: Labels
    first: Scores
    all: Scores
    skipped: dict[str, int] = field(default_factory=dict)


def rules_of(conditions: Mapping[str, Logits], fitted_on: str, promise: Promise) -> VerdictRules:
    """The rules chosen on all images; see `verdicts.fit_rules`.

    Raises:
        ModelError: a class is absent, or the logits are no better than chance.
    """
    for name, part in conditions.items():
        if not both_classes(part.labels):
            raise ModelError(f"{name}: images of one class alone could be scored")
    logits = {name: (part.labels, part.first, part.all) for name, part in conditions.items()}
    return fit_rules(logits, fitted_on, promise)


def cross_fit(
    rows: Sequence[Row], fold: Sequence[int], conditions: Mapping[str, Logits], promise: Promise
) -> dict[str, Predictions]:
    """Scores and verdicts of each fold's images, all canvases seen, by rules of the other folds.

    Args:
        rows: the list.
        fold: of each row.
        conditions: the logits, by name.
        promise: of the rules.

    Raises:
        ModelError: as `rules_of`, of the images outside of a fold.
    """
    folds = {name: np.asarray(fold)[part.row] for name, part in conditions.items()}
    scores = {name: np.empty(len(part.all)) for name, part in conditions.items()}
    verdicts = {name: np.empty(len(part.all), dtype=object) for name, part in conditions.items()}
    for held in np.unique(np.concatenate(list(folds.values()))):
        others = {name: _where(part, folds[name] != held) for name, part in conditions.items()}
        if not all(both_classes(part.labels) for part in others.values()):
            raise ModelError(
                f"outside of fold {held} there are images of one class alone: nothing to choose "
                "its rules on"
            )
        rules = rules_of(others, "the other folds", promise)
        for name, part in conditions.items():
            inside = np.flatnonzero(folds[name] == held)
            scores[name][inside] = rules.calibrations.all.scores(part.all[inside])
            for index in inside:
                score = float(scores[name][index])
                verdicts[name][index] = rules.verdict(score, glance=False)
    return {
        name: Predictions(
            rows=[rows[index] for index in part.row],
            labels=part.labels,
            logits=part.all,
            scores=scores[name],
            verdicts=list(verdicts[name]),
            skipped=part.skipped,
        )
        for name, part in conditions.items()
    }


def cross_fitted_figures(
    rows: Sequence[Row], fold: Sequence[int], conditions: Mapping[str, Logits], promise: Promise
) -> dict[str, dict[str, Any]]:
    """What is quoted of `cross_fit`: by condition, `tables.overall`, and `groups` with verdicts.

    AUC and its like are of the logits: the scores are of a calibration a fold.

    Raises:
        ModelError: as `cross_fit`.
    """
    fitted = cross_fit(rows, fold, conditions, promise)
    return {
        name: {**overall(part, ranks=part.logits), "groups": verdicts_by_group(part)}
        for name, part in fitted.items()
    }


def _where(part: Logits, mask: NDArray[np.bool_]) -> Logits:
    return Logits(part.row[mask], part.labels[mask], part.first[mask], part.all[mask])
