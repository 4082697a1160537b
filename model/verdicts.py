"""Every rule of a verdict: calibration, cuts, and when one look is enough; and how they are fitted.

A logit becomes a probability by Platt scaling, a probability a verdict by two cuts. All constants
here are chosen on data and live in the checkpoint (`VerdictRules`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.errors import ModelError

Labels = NDArray[np.int64]  # [n], 1 = AI
Scores = NDArray[np.float64]  # [n], of the same images; before calibration they are logits


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Verdict(StrEnum):
    """What is said of an image."""

    AI_GENERATED = "ai_generated"
    REAL = "real"
    UNCERTAIN = "uncertain"


class Thresholds(_Strict):
    """Cuts on the calibrated score; between them the verdict is `uncertain`."""

    real_below: float = Field(ge=0.0, le=1.0)
    ai_above: float = Field(ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.real_below > self.ai_above:
            raise ValueError("real_below must not exceed ai_above")
        return self

    @classmethod
    def single(cls, cut: float) -> "Thresholds":
        """One cut that leaves no doubt: a client's own."""
        return cls(real_below=cut, ai_above=cut)

    def verdict(self, score: float) -> Verdict:
        """`ai_generated` from `ai_above` on, `real` under `real_below`, `uncertain` between."""
        if score >= self.ai_above:
            return Verdict.AI_GENERATED
        return Verdict.REAL if score < self.real_below else Verdict.UNCERTAIN


class Calibration(_Strict):
    """Platt scaling: score = sigmoid(slope * logit + intercept)."""

    slope: float = Field(gt=0.0)
    intercept: float
    fitted_on: str = Field(description="which held-out logits gave the two numbers")

    def odds(self, logit: float) -> float:
        """Log-odds of AI generation."""
        return self.slope * logit + self.intercept

    def score(self, logit: float) -> float:
        """Calibrated probability of AI generation."""
        return 0.5 + 0.5 * math.tanh(0.5 * self.odds(logit))

    def scores(self, logits: Scores) -> Scores:
        """`score` of each logit: float64 [n] -> float64 [n]."""
        return 0.5 + 0.5 * np.tanh(0.5 * (self.slope * logits + self.intercept))


class Calibrations(_Strict):
    """One calibration for each kind of evidence: a glance is less sure than all there is to see."""

    first: Calibration = Field(description="of the logit after the first look alone")
    all: Calibration = Field(description="of the logit from every canvas")


class Margins(_Strict):
    """Log-odds that the first look must lie from a cut for it to be enough."""

    clearing: float = Field(ge=0.0, description="from `real_below`, on either side")
    accusing: float = Field(
        ge=0.0,
        description="below `ai_above`: nothing nearer is settled, so one look accuses nobody",
    )


class VerdictRules(_Strict):
    """How a logit becomes a verdict; stored in the checkpoint."""

    calibrations: Calibrations
    thresholds: Thresholds
    margins: Margins

    def score(self, logit: float, *, glance: bool) -> float:
        """Calibrated probability of AI generation.

        Args:
            logit: an image's, combined from its canvases (`ViewPlan.combine`).
            glance: it stands on the first of several looks.
        """
        return (self.calibrations.first if glance else self.calibrations.all).score(logit)

    def settled(self, logit: float) -> bool:
        """Whether the first look is enough, by its logit.

        It is where the further looks would hardly change the verdict. Nothing near an accusation is
        ever settled: no photograph is accused by one look.
        """
        odds = self.calibrations.first.odds(logit)
        real, ai = (_odds_of(cut) for cut in (self.thresholds.real_below, self.thresholds.ai_above))
        return odds < ai - self.margins.accusing and abs(odds - real) > self.margins.clearing

    def verdict(self, score: float, *, glance: bool, cut: float | None = None) -> Verdict:
        """The verdict of a score.

        Args:
            score: by `score`.
            glance: see `score`.
            cut: a client's own, instead of the checkpoint's two. The image was looked at as the
                checkpoint's cuts need it. A glance accuses nobody, by whichever cuts.
        """
        cuts = self.thresholds if cut is None else Thresholds.single(cut)
        verdict = cuts.verdict(score)
        return Verdict.UNCERTAIN if glance and verdict is Verdict.AI_GENERATED else verdict


def _odds_of(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


# --- fitting ------------------------------------------------------------------------------------


def fit_calibration(labels: Labels, logits: Scores, fitted_on: str) -> Calibration:
    """Fit score = sigmoid(slope * logit + intercept), classes weighted equally (prior 1/2).

    Args:
        labels: int64 [n], 1 = AI.
        logits: float64 [n], of images whose group was left out of training.
        fitted_on: what the logits were, for the record.

    Raises:
        ModelError: the logits are no better than chance.
    """
    from sklearn.linear_model import LogisticRegression  # a service takes verdicts without it

    fit = LogisticRegression(class_weight="balanced", C=1e6).fit(logits[:, None], labels)
    if fit.coef_[0, 0] <= 0:
        raise ModelError("the held-out logits do not tell the classes apart: nothing to calibrate")
    return Calibration(
        slope=float(fit.coef_[0, 0]), intercept=float(fit.intercept_[0]), fitted_on=fitted_on
    )


def fit_thresholds(
    conditions: Mapping[str, tuple[Labels, Scores]], *, accused: float, missed: float
) -> Thresholds:
    """Choose the cuts on held-out calibrated scores, under the worst of several conditions.

    Args:
        conditions: by name, e.g. of clean and of equalised copies: labels int64 [n], 1 = AI, and
            float64 [n] calibrated scores; both classes are there.
        accused: largest share of photographs that may be called `ai_generated`.
        missed: largest share of AI images that may be called `real`.
    """
    ai_above = max(
        float(np.quantile(scores[labels == 0], 1 - accused, method="higher"))
        for labels, scores in conditions.values()
    )
    real_below = min(
        float(np.quantile(scores[labels == 1], missed, method="lower"))
        for labels, scores in conditions.values()
    )
    # A score equal to a cut is on its upper side; the worst photograph must stay below it.
    ai_above = min(1.0, float(np.nextafter(ai_above, 2)))
    return Thresholds(real_below=min(real_below, ai_above), ai_above=ai_above)


@dataclass(frozen=True, slots=True)
class Promise:
    """What rules are to hold to, and what of them is chosen rather than fitted.

    Attributes:
        accused: see `fit_thresholds`.
        missed: see `fit_thresholds`.
        margins: taken as they are.
    """

    accused: float
    missed: float
    margins: Margins


def fit_rules(
    logits: Mapping[str, tuple[Labels, Scores, Scores]], fitted_on: str, promise: Promise
) -> VerdictRules:
    """Calibrations over all conditions together, then cuts on the scores of all canvases.

    Args:
        logits: by condition: labels int64 [n], and float64 [n] logits of the same images after the
            first look and of all canvases.
        fitted_on: see `fit_calibration`.
        promise: see `Promise`.

    Raises:
        ModelError: as `fit_calibration`.
    """
    labels, first, every = (np.concatenate(part) for part in zip(*logits.values(), strict=True))
    calibrations = Calibrations(
        first=fit_calibration(labels, first, fitted_on),
        all=fit_calibration(labels, every, fitted_on),
    )
    scored = {name: (y, calibrations.all.scores(z)) for name, (y, _, z) in logits.items()}
    cuts = fit_thresholds(scored, accused=promise.accused, missed=promise.missed)
    return VerdictRules(calibrations=calibrations, thresholds=cuts, margins=promise.margins)


# The rules of checkpoints that were written before they had them: one calibration served both
# looks, and the margins stood in the code.
_FORMAT_1_MARGINS = Margins(clearing=0.25, accusing=0.75)


def rules_of_format_1(calibration: Any, thresholds: Any) -> dict[str, Any]:
    """`VerdictRules`, unvalidated, of a checkpoint in format 1."""
    return {
        "calibrations": {"first": calibration, "all": calibration},
        "thresholds": thresholds,
        "margins": _FORMAT_1_MARGINS,
    }
