"""What was said of images under one condition: the values that every figure is of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import Row
from model.verdicts import Labels, Scores, Verdict


@dataclass(frozen=True, slots=True)
class Predictions:
    """The images that could be scored under one condition.

    Attributes:
        rows: n of them, in the order of the data set.
        labels: int64 [n], 1 = AI.
        logits: float64 [n], before calibration.
        scores: float64 [n], calibrated.
        verdicts: n of them.
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    rows: list[Row]
    labels: Labels
    logits: Scores
    scores: Scores
    verdicts: list[Verdict]
    skipped: dict[str, int]

    @property
    def groups(self) -> NDArray[np.str_]:
        """Str [n], the group of each image."""
        return np.array([row.group for row in self.rows], dtype=np.str_)

    @property
    def units(self) -> list[str]:
        """What each image is of, for intervals (`Row.unit`)."""
        return [row.unit for row in self.rows]
