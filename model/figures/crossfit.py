"""What the rules of a verdict do to images that did not choose them.

The rules that are chosen on all images keep their promise on those by construction, whatever the
network is worth: noise does, too. So each fold's are chosen on the other folds, and those are
quoted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.data.copies import PROMISED
from model.data.manifest import Row
from model.errors import ModelError
from model.figures.predictions import Predictions
from model.figures.tables import consistency, overall, verdicts_by_group, worst
from model.verdicts import Logits, Promise, Quality, Reason, VerdictRules, fit_rules


def rules_of(
    conditions: Mapping[str, Logits],
    fitted_on: str,
    promise: Promise,
    *,
    reduced: Logits | None = None,
) -> VerdictRules:
    """The rules chosen on all images of the promised conditions; see `verdicts.fit_rules`.

    Args:
        conditions: the logits by name, `clean` among them; those not in `PROMISED` choose nothing.
        fitted_on: see `fit_rules`.
        promise: of the rules.
        reduced: see `fit_rules`.

    Raises:
        ModelError: no photographs or no AI images, or the logits are no better than chance.
    """
    chosen = promised(conditions)
    for name, part in chosen.items():
        if not _both_classes(part):
            raise ModelError(f"{name}: no photographs or no AI images could be scored")
    return fit_rules(chosen, fitted_on, promise, reduced=reduced)


def rules_of_others(
    fold: Sequence[int],
    conditions: Mapping[str, Logits],
    promise: Promise,
    *,
    reduced: Logits | None = None,
) -> dict[int, VerdictRules]:
    """For each fold the rules chosen on the images outside of it.

    Args:
        fold: of each image of the list.
        conditions: see `rules_of`.
        promise: of the rules.
        reduced: see `rules_of`.

    Raises:
        ModelError: as `rules_of`, of the images outside of a fold.
    """
    folds = np.asarray(fold)
    rules = {}
    for held in np.unique(np.concatenate([folds[part.row] for part in conditions.values()])):
        others = {
            name: part.where(folds[part.row] != held) for name, part in promised(conditions).items()
        }
        if not all(_both_classes(part) for part in others.values()):
            raise ModelError(
                f"outside of fold {held} there are no photographs or no AI images: nothing to "
                "choose its rules on"
            )
        few = None if reduced is None else reduced.where(folds[reduced.row] != held)
        rules[int(held)] = rules_of(others, "the other folds", promise, reduced=few)
    return rules


def cross_fit(
    rows: Sequence[Row], fold: Sequence[int], conditions: Mapping[str, Logits], promise: Promise
) -> dict[str, Predictions]:
    """Scores and verdicts of each fold's images, all canvases seen, by rules of the other folds.

    Args:
        rows: the list.
        fold: of each row.
        conditions: see `rules_of`; all of them are judged.
        promise: of the rules.

    Raises:
        ModelError: as `rules_of_others`.
    """
    folds = {name: np.asarray(fold)[part.row] for name, part in conditions.items()}
    scores = {name: np.empty(len(part.all)) for name, part in conditions.items()}
    verdicts = {name: np.empty(len(part.all), dtype=object) for name, part in conditions.items()}
    low = {name: np.empty(len(part.all), dtype=bool) for name, part in conditions.items()}
    for held, rules in rules_of_others(fold, conditions, promise).items():
        for name, part in conditions.items():
            inside = np.flatnonzero(folds[name] == held)
            scores[name][inside] = rules.calibrations.all.scores(part.all[inside])
            for index in inside:
                reasons = rules.reasons(Quality(*part.quality[index].tolist()))
                score = float(scores[name][index])
                verdicts[name][index] = rules.verdict(score, glance=False, reasons=reasons)
                low[name][index] = Reason.LOW_QUALITY in reasons
    return {
        name: Predictions(
            rows=[rows[index] for index in part.row],
            labels=part.labels,
            logits=part.all,
            scores=scores[name],
            verdicts=list(verdicts[name]),
            low_quality=low[name],
            skipped=part.skipped,
        )
        for name, part in conditions.items()
    }


def cross_fitted_figures(
    rows: Sequence[Row], fold: Sequence[int], conditions: Mapping[str, Logits], promise: Promise
) -> dict[str, dict[str, Any]]:
    """What is quoted of `cross_fit`: by condition, `tables.overall`, `worst` and `consistency`.

    AUC and its like are of the logits: the scores are of a calibration a fold. `groups` with their
    verdicts are those of clean copies: a checkpoint that keeps them is to stay small.

    Raises:
        ModelError: as `cross_fit`.
    """
    figures = {}
    fitted = cross_fit(rows, fold, conditions, promise)
    for name, part in fitted.items():
        groups = verdicts_by_group(part)
        figures[name] = {**overall(part, ranks=part.logits), "worst": worst(groups)}
        if name == "clean":
            figures[name]["groups"] = groups
        else:
            figures[name]["consistency"] = consistency(fitted["clean"], part)
    return figures


def promised(conditions: Mapping[str, Logits]) -> dict[str, Logits]:
    """Those by which rules are chosen (`copies.PROMISED`)."""
    return {name: conditions[name] for name in PROMISED if name in conditions}


def _both_classes(part: Logits) -> bool:
    """Whether there are photographs and AI images."""
    return bool(part.photographs.any() and part.labels.any())
