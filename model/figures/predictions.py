"""What was said of images under one condition: the values that every figure is of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.manifest import AI, REAL, Row
from model.verdicts import Labels, Scores, Verdict


def classes(labels: Labels, made: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """The images of each class that figures tell apart, by its name in reports.

    Args:
        labels: int64 [n], 1 = AI.
        made: bool [n], see `Row.made`.

    Returns:
        Masks, bool [n] each: of `real`, which are photographs, `made` and `ai`.
    """
    return {"real": (labels == REAL) & ~made, "made": made, "ai": labels == AI}


@dataclass(frozen=True, slots=True)
class Predictions:
    """The images that could be scored under one condition.

    Attributes:
        rows: n of them, in the order of the data set.
        labels: int64 [n], 1 = AI.
        logits: float64 [n], before calibration.
        scores: float64 [n], calibrated.
        verdicts: n of them.
        low_quality: bool [n], accused by no score (`Reason.LOW_QUALITY`).
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    rows: list[Row]
    labels: Labels
    logits: Scores
    scores: Scores
    verdicts: list[Verdict]
    low_quality: NDArray[np.bool_]
    skipped: dict[str, int]

    @property
    def made(self) -> NDArray[np.bool_]:
        """Bool [n], see `Row.made`."""
        return np.array([row.made for row in self.rows], dtype=np.bool_)

    @property
    def classes(self) -> dict[str, NDArray[np.bool_]]:
        """Bool [n] each, see `classes`."""
        return classes(self.labels, self.made)

    @property
    def owners(self) -> list[str]:
        """Whose each image is: what intervals keep whole."""
        return [row.owner for row in self.rows]
