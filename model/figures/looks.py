"""What each kind of look is worth: how well its score is calibrated, and how often it is enough."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.figures.crossfit import promised, rules_of_others
from model.figures.metrics import calibration_error, number
from model.figures.predictions import classes
from model.verdicts import Calibrations, Labels, Logits, Promise, Scores


def look_figures(
    fold: Sequence[int], conditions: Mapping[str, Logits], reduced: Logits | None, promise: Promise
) -> dict[str, Any]:
    """Figures of images that did not choose the rules, nor trained the network.

    Args:
        fold: of each image; each one's rules are chosen on the others.
        conditions: the logits by name, see `rules_of`.
        reduced: see `rules_of`.
        promise: of the rules.

    Returns:
        `ece`, the calibration error over all promised conditions by kind of look (`Calibrations`),
        AI images against photographs and all else that is real; and `second_looks`, the share of
        each class's clean images for which the first look is not enough. None where a figure does
        not exist.

    Raises:
        ModelError: as `rules_of_others`.
    """
    kinds: dict[str, list[tuple[Labels, Scores]]] = {name: [] for name in Calibrations.model_fields}
    again: dict[str, list[bool]] = {}
    folds = np.asarray(fold)
    parts = promised(conditions)
    for held, rules in rules_of_others(fold, conditions, promise, reduced=reduced).items():
        for part in parts.values():
            inside = part.where(folds[part.row] == held)
            for name, logits in (
                ("first", inside.first),
                ("all", inside.all),
                ("window", inside.window),
            ):
                scores = _scores(rules.calibrations, name, logits)
                kinds[name].append((inside.labels, scores))
        if reduced is not None:
            inside = reduced.where(folds[reduced.row] == held)
            scores = _scores(rules.calibrations, "reduced_window", inside.all)
            kinds["reduced_window"].append((inside.labels, scores))
        clean = parts["clean"].where(folds[parts["clean"].row] == held)
        for of, own in classes(clean.labels, clean.made).items():
            asked = [not rules.settled(logit) for logit in clean.first[own].tolist()]
            again[of] = again.get(of, []) + asked
    return {
        "ece": {name: _error(pairs) for name, pairs in kinds.items()},
        "second_looks": {
            of: number(float(np.mean(asked))) if asked else None for of, asked in again.items()
        },
    }


def _scores(calibrations: Calibrations, kind: str, logits: Scores) -> Scores:
    """By the calibration of that kind of look, float64 [n] -> [n]; NaN where there is none."""
    calibration = getattr(calibrations, kind)
    if calibration is None:
        return np.full(len(logits), np.nan)
    scores: Scores = calibration.scores(logits)
    return scores


def _error(pairs: Sequence[tuple[Labels, Scores]]) -> float | None:
    if not pairs:
        return None
    labels, scores = (np.concatenate(of) for of in zip(*pairs, strict=True))
    seen = np.isfinite(scores)
    if len(np.unique(labels[seen])) < 2:
        return None
    ones = np.ones(int(seen.sum()))
    return number(float(calibration_error(labels[seen], scores[seen], ones)))
