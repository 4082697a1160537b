"""Every rule of a verdict: calibration, cuts, reasons to hold it back, when one look is enough.

A logit becomes a probability by Platt scaling, a probability a verdict by two cuts, and a reason in
the pixels holds it back. All constants here are chosen on data and live in the checkpoint
(`VerdictRules`); how they are chosen stands below.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

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

    first: Calibration = Field(
        description="of the logit after the first look alone: where the plan begins with it, of "
        "the whole image alone"
    )
    all: Calibration = Field(description="of the logit from every canvas")
    window: Calibration | None = Field(None, description="of one native window alone")
    reduced_window: Calibration | None = Field(
        None, description="of one window anywhere in a copy of 448 px on the short side"
    )


class Quality(NamedTuple):
    """What a picture's pixels say of the traces that can be left in it (`views.quality`).

    Attributes:
        short_side: pixels.
        sharpness: energy of second over that of first differences, of the sharpest tile of the
            middle: 3 for white noise, about 2 for a sharp photograph, 0 where all is smooth.
        blockiness: mean step at the edges of 8 x 8 blocks over the mean step elsewhere, at
            whichever phase it is largest: 1 without blocks.
    """

    short_side: float
    sharpness: float
    blockiness: float


class Reason(StrEnum):
    """Why a verdict is held back, whatever the score; the answer warns of it by this word."""

    LOW_QUALITY = "low_quality"  # it is not `ai_generated`
    NO_CONTENT = "no_content"  # it is neither


class QualityRule(_Strict):
    """What tells a picture whose traces are gone: it is accused by no cut."""

    min_side: float = Field(ge=0.0, description="of the shorter side, pixels")
    min_sharpness: float = Field(
        ge=0.0,
        description="energy of second over that of first differences, of the sharpest tile of the "
        "middle: 3 for white noise, 0 where all is smooth",
    )
    max_blockiness: float = Field(
        ge=1.0,
        description="mean step at the edges of 8 x 8 blocks over the mean step elsewhere: 1 "
        "without blocks",
    )

    def low(self, quality: Quality) -> bool:
        """Whether any of its measurements is out of bounds."""
        return bool(self.low_of(np.array([quality]))[0])

    def low_of(self, quality: NDArray[np.float64]) -> NDArray[np.bool_]:
        """`low` of many: float64 [n, 3] -> bool [n]."""
        side, sharpness, blockiness = quality.T
        low: NDArray[np.bool_] = (
            (side < self.min_side)
            | (sharpness < self.min_sharpness)
            | (blockiness > self.max_blockiness)
        )
        return low


class Accused(_Strict):
    """Shares of held-out images that one cut calls `ai_generated`."""

    photographs_accused: float = Field(ge=0.0, le=1.0, description="share of photographs")
    made_accused: float | None = Field(
        ge=0.0,
        le=1.0,
        description="share of drawings, renders and screenshots that people made; null: there were "
        "none",
    )
    ai_found: float = Field(ge=0.0, le=1.0, description="share of AI images")


class Cut(_Strict):
    """What a client's own cut would do to held-out images; none of low quality is accused."""

    cut: float = Field(ge=0.0, le=1.0, description="on the score, as `threshold` takes it")
    conditions: dict[str, Accused] = Field(
        description="by what became of the images before: `clean`, as they were published; "
        "`equalised`, resized and saved as JPEG 75; `jpeg60`, saved so"
    )


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
    quality: QualityRule | None = Field(None, description="None: nothing is held back")

    def reasons(self, quality: Quality, *, content: bool = True) -> tuple[Reason, ...]:
        """What holds back a verdict on a picture.

        Args:
            quality: of its pixels.
            content: whether there is anything to see in it (`images.has_content`).
        """
        if not content:
            return (Reason.NO_CONTENT,)
        if self.quality is not None and self.quality.low(quality):
            return (Reason.LOW_QUALITY,)
        return ()

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

    def verdict(
        self,
        score: float,
        *,
        glance: bool,
        reasons: Collection[Reason] = (),
        cut: float | None = None,
    ) -> Verdict:
        """The verdict of a score.

        Args:
            score: by `score`.
            glance: see `score`.
            reasons: by `reasons`; a picture of low quality is never `ai_generated`, one without
                content is not `real` either.
            cut: a client's own, instead of the checkpoint's two. The image was looked at as the
                checkpoint's cuts need it. A glance accuses nobody, by whichever cuts.
        """
        if Reason.NO_CONTENT in reasons:
            return Verdict.UNCERTAIN
        cuts = self.thresholds if cut is None else Thresholds.single(cut)
        verdict = cuts.verdict(score)
        held = glance or Reason.LOW_QUALITY in reasons
        return Verdict.UNCERTAIN if held and verdict is Verdict.AI_GENERATED else verdict


def _odds_of(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


# --- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits under one condition, of images that the network was not trained on.

    Attributes:
        row: int64 [n], index of each image in the list.
        labels: int64 [n], 1 = AI.
        made: bool [n], real, but made without a camera (`manifest.Row.made`).
        owners: str [n], who published each.
        first: float64 [n], after the first look alone.
        all: float64 [n], of all canvases.
        window: float64 [n], the mean of native windows alone; NaN where there is none.
        quality: float64 [n, 3], see `Quality`.
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    row: NDArray[np.int64]
    labels: Labels
    made: NDArray[np.bool_]
    owners: NDArray[np.str_]
    first: Scores
    all: Scores
    window: Scores
    quality: NDArray[np.float64]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def photographs(self) -> NDArray[np.bool_]:
        """Bool [n]."""
        real: NDArray[np.bool_] = self.labels == 0
        return real & ~self.made

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Logits":
        """Some of the images: a mask, bool [n], or indices."""
        arrays = {f: getattr(self, f)[chosen] for f in _PER_IMAGE}
        return Logits(**arrays, skipped=self.skipped)

    @classmethod
    def joined(cls, parts: Sequence["Logits"]) -> "Logits":
        """Those of several lists of images, one after the other; at least one."""
        skipped: Counter[str] = Counter()
        for part in parts:
            skipped.update(part.skipped)
        arrays = {f: np.concatenate([getattr(part, f) for part in parts]) for f in _PER_IMAGE}
        return cls(**arrays, skipped=dict(skipped))


_PER_IMAGE = ("row", "labels", "made", "owners", "first", "all", "window", "quality")


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


@dataclass(frozen=True, slots=True)
class Promise:
    """What rules are to hold to, under the worst of several conditions.

    Attributes:
        accused: largest share of photographs that may be called `ai_generated`, a mean over their
            owners, each counting once: what another owner is to expect.
        accused_images: likewise, of all photographs, whoever published them.
        accused_made: likewise of all pictures that people made without a camera.
        missed: largest share of AI images that may be called `real`.
        held_back: largest share of ordinary photographs, clean, that are of low quality by
            sharpness, and likewise by blockiness.
        min_side: of the shorter side, pixels: what is smaller is of low quality.
        margins: taken as they are.
    """

    accused: float
    accused_images: float
    accused_made: float
    missed: float
    held_back: float
    min_side: float
    margins: Margins


def _calibration_if_any(labels: Labels, logits: Scores, fitted_on: str) -> Calibration | None:
    """Of evidence that no verdict stands on: None where it has one class, or tells none apart."""
    if len(np.unique(labels)) < 2:
        return None
    try:
        return fit_calibration(labels, logits, fitted_on)
    except ModelError:
        return None


def fit_thresholds(
    conditions: Sequence[tuple[Logits, Scores]], quality: QualityRule, promise: Promise
) -> Thresholds:
    """Choose the cuts on held-out calibrated scores, under the worst of several conditions.

    Args:
        conditions: of each its logits, photographs and AI images among them, and float64 [n]
            calibrated scores.
        quality: whose low pictures are accused by no cut.
        promise: see `Promise`.
    """
    above, below = [0.0], [1.0]
    for part, scores in conditions:
        accusing = np.where(quality.low_of(part.quality), 0.0, scores)
        once = _once(part.owners, part.photographs)
        for weights, share in (
            (once, promise.accused),
            (part.photographs.astype(float), promise.accused_images),
            (part.made.astype(float), promise.accused_made),
        ):
            if weights.any():
                above.append(_exceeded(accusing, weights, share))
        below.append(float(np.quantile(scores[part.labels == 1], promise.missed, method="lower")))
    # A score equal to a cut is on its upper side; the worst photograph must stay below it.
    ai_above = min(1.0, float(np.nextafter(max(above), 2)))
    return Thresholds(real_below=min(*below, ai_above), ai_above=ai_above)


def _once(owners: NDArray[np.str_], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights by which each owner counts once: float64 [n], 0 for images that are not chosen."""
    weights = np.zeros(len(chosen))
    if chosen.any():
        _, unit, images = np.unique(owners[chosen], return_inverse=True, return_counts=True)
        weights[chosen] = 1 / images[unit]
    return weights


def _exceeded(scores: Scores, weights: NDArray[np.float64], share: float) -> float:
    """The lowest score that images of no more than this share of the weight lie above."""
    order = np.argsort(-scores)
    order = order[weights[order] > 0]
    until = np.cumsum(weights[order])
    place = np.searchsorted(until, share * until[-1] * (1 + 1e-9), side="right")
    return float(scores[order][min(place, len(order) - 1)])


def fit_quality(clean: Logits, promise: Promise) -> QualityRule:
    """Bounds that so many ordinary photographs are out of, by sharpness and by blockiness.

    Args:
        clean: photographs as they were published among them.
        promise: see `Promise`.

    Raises:
        ModelError: there is no photograph.
    """
    if not clean.photographs.any():
        raise ModelError("no photograph among the held-out images: quality has no bounds")
    _, sharpness, blockiness = clean.quality[clean.photographs].T
    share = promise.held_back
    return QualityRule(
        min_side=promise.min_side,
        min_sharpness=float(np.quantile(sharpness, share, method="lower")),
        # At least 1 by its definition, which rounding does not know.
        max_blockiness=max(1.0, float(np.quantile(blockiness, 1 - share, method="higher"))),
    )


def fit_rules(
    conditions: Mapping[str, Logits],
    fitted_on: str,
    promise: Promise,
    *,
    reduced: Logits | None = None,
) -> VerdictRules:
    """Calibrations over all conditions together, then cuts on the scores of all canvases.

    Args:
        conditions: the logits by name, `clean` among them.
        fitted_on: see `fit_calibration`.
        promise: see `Promise`.
        reduced: of one window of a reduced copy; None, or of one class alone: no calibration for
            those.

    Raises:
        ModelError: as `fit_calibration`, or as `fit_quality`.
    """
    labels = np.concatenate([part.labels for part in conditions.values()])
    first, every, window = (
        np.concatenate([getattr(part, name) for part in conditions.values()])
        for name in ("first", "all", "window")
    )
    seen = np.isfinite(window)
    calibrations = Calibrations(
        first=fit_calibration(labels, first, fitted_on),
        all=fit_calibration(labels, every, fitted_on),
        window=_calibration_if_any(labels[seen], window[seen], fitted_on),
        reduced_window=None
        if reduced is None
        else _calibration_if_any(reduced.labels, reduced.all, fitted_on),
    )
    scored = [(part, calibrations.all.scores(part.all)) for part in conditions.values()]
    quality = fit_quality(conditions["clean"], promise)
    return VerdictRules(
        calibrations=calibrations,
        thresholds=fit_thresholds(scored, quality, promise),
        margins=promise.margins,
        quality=quality,
    )


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
