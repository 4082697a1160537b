"""What cuts of a client's own would do to images that the network was not trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.figures.crossfit import promised
from model.figures.metrics import number
from model.figures.predictions import classes
from model.verdicts import Logits, Quality, Reason, VerdictRules

ACCUSED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
_GRID = np.arange(10_001) / 10_000
_FIGURES = {"real": "photographs_accused", "made": "made_accused", "ai": "ai_found"}


def cuts(conditions: Mapping[str, Logits], rules: VerdictRules) -> list[dict[str, Any]]:
    """Cuts on the calibrated score, and what each does, as `verdicts.Cut` in JSON values.

    Args:
        conditions: left-out logits by name; of those in `PROMISED`, one at least.
        rules: whose scores are cut, and whose low quality is never accused.

    Returns:
        For each share of `ACCUSED` the lowest cut of four digits at which no promised condition has
        more of its photographs accused; strictly increasing, so that fewer of them may be left.
    """
    found = {name: _found(part, rules) for name, part in promised(conditions).items()}
    accused = np.max([of["photographs_accused"] for of in found.values()], axis=0)
    places = {_first(accused <= share) for share in ACCUSED}
    return [
        {
            "cut": float(_GRID[place]),
            "conditions": {
                name: {figure: number(share[place]) for figure, share in of.items()}
                for name, of in found.items()
            },
        }
        for place in sorted(places)
    ]


def _found(part: Logits, rules: VerdictRules) -> dict[str, NDArray[np.float64]]:
    """The share of each class that each cut of the grid calls `ai_generated`; NaN without any."""
    reasons = [rules.reasons(Quality(*own)) for own in part.quality.tolist()]
    low = [Reason.LOW_QUALITY in of for of in reasons]
    scores = np.where(low, -1.0, rules.calibrations.all.scores(part.all))
    shares = {}
    for of, own in classes(part.labels, part.made).items():
        below = np.searchsorted(np.sort(scores[own]), _GRID)
        shares[_FIGURES[of]] = 1 - below / own.sum() if own.any() else np.full(len(_GRID), np.nan)
    return shares


def _first(allowed: NDArray[np.bool_]) -> int:
    """The lowest allowed place; the highest of all, where none is."""
    return int(np.argmax(allowed)) if allowed.any() else len(allowed) - 1
