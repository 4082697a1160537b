"""Every rule of a verdict, and how the rules are chosen."""

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from model.errors import ModelError
from model.verdicts import (
    Calibration,
    Calibrations,
    Labels,
    Logits,
    Margins,
    Promise,
    Quality,
    QualityRule,
    Reason,
    Scores,
    Thresholds,
    Verdict,
    VerdictRules,
    fit_calibration,
    fit_quality,
    fit_rules,
    fit_thresholds,
    rules_of_format_1,
)

PLAIN = Calibration(slope=1.0, intercept=0.0, fitted_on="nothing")
SURER = Calibration(slope=2.0, intercept=0.5, fitted_on="nothing")
RULES = VerdictRules(
    calibrations=Calibrations(first=PLAIN, all=SURER),
    thresholds=Thresholds(real_below=0.3, ai_above=0.7),
    margins=Margins(clearing=0.25, accusing=0.75),
)
BOUNDS = QualityRule(min_side=256, min_sharpness=0.5, max_blockiness=1.25)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def rules(**changes: Any) -> VerdictRules:
    return VerdictRules.model_validate(RULES.model_dump() | changes)


# --- applied ------------------------------------------------------------------------------------


def test_a_score_is_the_sigmoid_of_the_odds_and_never_overflows() -> None:
    values = np.array([-2000.0, -3.0, 0.0, 1.5, 2000.0])
    with np.errstate(over="raise", under="ignore"):
        scores = SURER.scores(values)
    assert scores == pytest.approx([SURER.score(value) for value in values.tolist()], abs=1e-15)
    assert SURER.score(1.5) == pytest.approx(1 / (1 + math.exp(-3.5)))
    assert SURER.score(-2000.0) == 0.0
    assert SURER.score(2000.0) == 1.0


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.REAL),
        (0.2999, Verdict.REAL),
        (0.3, Verdict.UNCERTAIN),
        (0.6999, Verdict.UNCERTAIN),
        (0.7, Verdict.AI_GENERATED),
        (1.0, Verdict.AI_GENERATED),
    ],
)
def test_a_score_equal_to_a_cut_is_on_its_upper_side(score: float, verdict: Verdict) -> None:
    assert RULES.thresholds.verdict(score) is verdict
    assert RULES.verdict(score, glance=False) is verdict


def test_each_kind_of_evidence_has_a_calibration_of_its_own() -> None:
    assert RULES.score(1.0, glance=True) == PLAIN.score(1.0)
    assert RULES.score(1.0, glance=False) == SURER.score(1.0)


def test_one_look_is_enough_where_no_further_one_would_change_much() -> None:
    real, ai = logit(0.3), logit(0.7)
    assert RULES.settled(real - 0.26)
    assert not RULES.settled(real - 0.24)
    assert not RULES.settled(real + 0.24)
    assert RULES.settled(real + 0.26)
    assert RULES.settled(ai - 0.76)
    assert not RULES.settled(ai - 0.74)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.25, 0.75), (3.0, 0.0)])
@pytest.mark.parametrize("cuts", [(0.3, 0.7), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_no_single_look_accuses(margins: tuple[float, float], cuts: tuple[float, float]) -> None:
    """Whatever a checkpoint's margins are, and with cuts at the ends of the scale."""
    clearing, accusing = margins
    real_below, ai_above = cuts
    some = rules(
        margins={"clearing": clearing, "accusing": accusing},
        thresholds={"real_below": real_below, "ai_above": ai_above},
    )
    for value in np.linspace(-12, 12, 400).tolist():
        if some.settled(value):
            score = some.score(value, glance=True)
            assert some.verdict(score, glance=True) is not Verdict.AI_GENERATED


def test_the_margins_are_the_checkpoints() -> None:
    near = logit(0.3) + 0.3
    assert RULES.settled(near)
    assert not rules(margins={"clearing": 0.4, "accusing": 0.75}).settled(near)
    assert not rules(margins={"clearing": 0.25, "accusing": 1.5}).settled(near)


def test_a_clients_cut_accuses_by_all_canvases_and_never_by_a_glance() -> None:
    assert RULES.verdict(0.25, glance=False, cut=0.2) is Verdict.AI_GENERATED
    assert RULES.verdict(0.25, glance=True, cut=0.2) is Verdict.UNCERTAIN
    for glance in (True, False):
        assert RULES.verdict(0.19, glance=glance, cut=0.2) is Verdict.REAL
    assert RULES.verdict(0.6, glance=False, cut=0.6) is Verdict.AI_GENERATED
    # Without one, the checkpoint's two decide.
    assert RULES.verdict(0.25, glance=True) is Verdict.REAL


def test_no_cut_of_the_checkpoints_accuses_by_a_glance_either() -> None:
    """At `ai_above` = 1 a large first logit is settled, and its score is 1.0."""
    cuts = Thresholds(real_below=0.3, ai_above=1.0)
    rules = RULES.model_copy(update={"thresholds": cuts})
    score = rules.score(1e3, glance=True)
    assert (rules.settled(1e3), score) == (True, 1.0)
    assert rules.verdict(score, glance=True) is Verdict.UNCERTAIN
    assert rules.verdict(score, glance=False) is Verdict.AI_GENERATED


@pytest.mark.parametrize(
    ("quality", "reasons"),
    [
        (Quality(256, 0.5, 1.25), ()),  # at every bound
        (Quality(255, 2.0, 1.0), (Reason.LOW_QUALITY,)),
        (Quality(4000, 0.49, 1.0), (Reason.LOW_QUALITY,)),
        (Quality(4000, 2.0, 1.26), (Reason.LOW_QUALITY,)),
        (Quality(112, 0.0, 3.0), (Reason.LOW_QUALITY,)),
    ],
)
def test_one_measurement_out_of_bounds_is_low_quality(
    quality: Quality, reasons: tuple[Reason, ...]
) -> None:
    assert rules(quality=BOUNDS).reasons(quality) == reasons
    assert RULES.reasons(quality) == ()  # without a rule
    assert BOUNDS.low_of(np.array([quality] * 2)).tolist() == [bool(reasons)] * 2


@given(st.floats(0, 1), st.none() | st.floats(0, 1), st.booleans())
def test_of_a_picture_without_content_nothing_is_said(
    score: float, own: float | None, glance: bool
) -> None:
    """Black was `ai_generated`, and white `real`."""
    reasons = rules(quality=BOUNDS).reasons(Quality(112, 0.0, 3.0), content=False)
    assert reasons == RULES.reasons(Quality(4000, 2.0, 1.0), content=False) == (Reason.NO_CONTENT,)
    assert RULES.verdict(score, glance=glance, reasons=reasons, cut=own) is Verdict.UNCERTAIN


UNIT = st.floats(0, 1)
MEASURED = st.builds(Quality, st.integers(1, 8000), st.floats(0, 4), st.floats(1, 8))


@given(
    rule=st.builds(
        QualityRule,
        min_side=st.floats(0, 8000),
        min_sharpness=st.floats(0, 4),
        max_blockiness=st.floats(1, 8),
    ),
    quality=MEASURED,
    cuts=st.tuples(UNIT, UNIT).map(sorted),
    score=UNIT,
    own=st.none() | UNIT,
    glance=st.booleans(),
)
def test_a_picture_of_low_quality_is_accused_by_no_cut(
    rule: QualityRule,
    quality: Quality,
    cuts: list[float],
    score: float,
    own: float | None,
    glance: bool,
) -> None:
    """And nothing else is changed by it."""
    real_below, ai_above = cuts
    some = rules(
        quality=rule.model_dump(), thresholds={"real_below": real_below, "ai_above": ai_above}
    )
    reasons = some.reasons(quality)
    held = some.verdict(score, glance=glance, reasons=reasons, cut=own)
    freely = some.verdict(score, glance=glance, cut=own)
    assert bool(reasons) == rule.low(quality) == bool(rule.low_of(np.array([quality]))[0])
    if reasons and freely is Verdict.AI_GENERATED:
        assert held is Verdict.UNCERTAIN
    else:
        assert held is freely


@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": {"real_below": 0.8, "ai_above": 0.7}},
        {"thresholds": {"real_below": 0.3, "ai_above": 1.1}},
        {"margins": {"clearing": -0.1, "accusing": 0.75}},
        {"margins": {"clearing": 0.25, "accusing": math.inf}},
        {"calibrations": {"first": PLAIN.model_dump()}},
        {"quality": {"min_side": 256, "min_sharpness": 0.5, "max_blockiness": 0.9}},
        {"quality": {"min_side": 256, "min_sharpness": math.nan, "max_blockiness": 1.5}},
        {"calibrations": {"first": PLAIN, "all": {"slope": -1, "intercept": 0, "fitted_on": ""}}},
    ],
)
def test_rules_that_contradict_themselves_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rules(**wrong)


def test_the_one_calibration_of_format_1_serves_both_looks() -> None:
    """And the margins are those that stood in the code then."""
    fields = rules_of_format_1(SURER.model_dump(), RULES.thresholds.model_dump())
    old = VerdictRules.model_validate(fields)
    assert old.calibrations == Calibrations(first=SURER, all=SURER)
    assert old.thresholds == RULES.thresholds
    assert old.margins == Margins(clearing=0.25, accusing=0.75)
    assert old.quality is None


@pytest.mark.process
def test_verdicts_are_taken_without_torch_and_without_scikit_learn() -> None:
    code = "import sys, model.verdicts; print({'torch', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- fitted -------------------------------------------------------------------------------------


def sample(count: int, shift: float, seed: int) -> tuple[Labels, Scores]:
    """Two unit Gaussians at +-shift."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return labels, rng.normal(np.where(labels == 1, shift, -shift), 1.0)


def sigmoid(x: Scores) -> Scores:
    scores: NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return scores


def test_calibration_recovers_the_true_posterior() -> None:
    """Two unit Gaussians at +-s: log-odds of x are 2 s x."""
    labels, x = sample(40_000, 1.0, 0)
    fitted = fit_calibration(labels, x / 3 + 1, "a test")  # logits off by a scale and a shift
    assert fitted.slope == pytest.approx(6.0, rel=0.05)
    assert fitted.intercept == pytest.approx(-6.0, rel=0.05)
    assert fitted.fitted_on == "a test"


def test_calibration_ignores_how_many_of_each_class_there_were() -> None:
    labels, x = sample(40_000, 1.0, 0)
    keep = (labels == 0) | (np.arange(len(labels)) % 10 == 1)
    fitted = fit_calibration(labels[keep], x[keep], "a test")
    assert fitted.intercept == pytest.approx(0.0, abs=0.1)


def test_logits_worse_than_chance_cannot_be_calibrated() -> None:
    labels, x = sample(1000, 1.0, 0)
    with pytest.raises(ModelError, match="do not tell"):
        fit_calibration(labels, -x, "a test")


MARGINS = Margins(clearing=0.1, accusing=0.2)
PROMISE = Promise(
    accused=0.01,
    accused_images=0.01,
    accused_made=0.03,
    missed=0.05,
    held_back=0.02,
    min_side=224,
    margins=MARGINS,
)
GOOD = Quality(512, 2.0, 1.0)
NO_BOUNDS = QualityRule(min_side=0, min_sharpness=0, max_blockiness=100)


def logits_of(labels: Labels, every: Scores, **changes: Any) -> Logits:
    """Of photographs and AI images of good quality, whose window says as much as all does."""
    count = len(labels)
    plain = Logits(
        row=np.arange(count),
        labels=labels,
        made=np.zeros(count, dtype=np.bool_),
        owners=np.arange(count).astype(str),
        first=every / 4 + 1,
        all=every,
        window=every,
        quality=np.tile(np.array(GOOD, dtype=np.float64), (count, 1)),
    )
    return replace(plain, **changes)


def drawn(count: int, shift: float, seed: int, **changes: Any) -> Logits:
    labels, every = sample(count, shift, seed)
    return logits_of(labels, every, **changes)


def test_photographs_are_what_is_real_and_was_not_made() -> None:
    part = logits_of(
        np.array([0, 0, 1, 1]), np.arange(4.0), made=np.array([False, True, False, False])
    )
    assert part.photographs.tolist() == [True, False, False, False]
    some = part.where(np.array([True, True, False, False]))
    assert (some.row.tolist(), some.made.tolist()) == ([0, 1], [False, True])
    assert some.quality.shape == (2, 3)
    assert part.where(np.array([3, 0])).all.tolist() == [3.0, 0.0]


def test_cuts_hold_under_the_worst_condition() -> None:
    parts = [drawn(4000, 2.0, 1), drawn(4000, 1.0, 2)]
    conditions = [(part, sigmoid(part.all)) for part in parts]
    cuts = fit_thresholds(conditions, NO_BOUNDS, PROMISE)
    assert cuts.real_below < cuts.ai_above
    for part, scores in conditions:
        assert (scores[part.labels == 0] >= cuts.ai_above).mean() <= 0.01
        assert (scores[part.labels == 1] < cuts.real_below).mean() <= 0.05
    # The worse one is used up.
    part, scores = conditions[1]
    assert (scores[part.labels == 0] >= cuts.ai_above).mean() > 0.008
    assert (scores[part.labels == 1] < cuts.real_below).mean() > 0.045


def test_what_people_made_has_a_promise_of_its_own() -> None:
    rng = np.random.default_rng(3)
    part = drawn(6000, 2.0, 1)
    made = (part.labels == 0) & (rng.random(6000) < 0.5)
    harder = replace(part, made=made, all=part.all + 2.5 * made)
    scores = sigmoid(harder.all)

    def accused(cut: float) -> tuple[float, float]:
        photographs, drawings = scores[harder.photographs], scores[made]
        return float((photographs >= cut).mean()), float((drawings >= cut).mean())

    cuts = fit_thresholds([(harder, scores)], NO_BOUNDS, PROMISE)
    photographs, drawings = accused(cuts.ai_above)
    assert photographs < 0.005
    assert 0.025 < drawings <= 0.03
    # Were they left out, photographs would choose the cut.
    lax = fit_thresholds([(harder, scores)], NO_BOUNDS, replace(PROMISE, accused_made=0.9))
    photographs, drawings = accused(lax.ai_above)
    assert 0.008 < photographs <= 0.01
    assert drawings > 0.1


def test_photographs_are_accused_by_owner_and_by_image() -> None:
    """One owner of many images, hard ones all; a hundred of ten easy ones each."""
    owners = np.array(["hard"] * 40 + [f"easy{i // 10}" for i in range(1000)] + ["ai"] * 100)
    labels = (owners == "ai").astype(np.int64)
    scores = np.concatenate([np.linspace(0.6, 0.9, 40), np.linspace(0.0, 0.5, 1000), np.ones(100)])
    part = logits_of(labels, scores, owners=owners)

    def cut(accused: float, accused_images: float) -> float:
        promise = replace(PROMISE, accused=accused, accused_images=accused_images)
        return fit_thresholds([(part, scores)], NO_BOUNDS, promise).ai_above

    # One owner in 101 is hard: all of its images may go, each owner counting once.
    assert cut(accused=0.01, accused_images=0.5) < 0.61
    # Of the images four in a hundred are: most may not.
    alone = cut(accused=0.5, accused_images=0.01)
    assert (scores[(labels == 0) & (scores >= alone)]).size == 10
    assert cut(accused=0.01, accused_images=0.01) == alone


def test_photographs_that_are_held_back_are_not_accused() -> None:
    """The cut need not lie above them: the rule keeps the promise."""
    part = drawn(4000, 2.0, 1)
    blurred = part.photographs & (np.arange(4000) % 20 == 0)
    quality = np.where(blurred[:, None], Quality(512, 0.1, 1.0), np.array(GOOD))
    part = replace(part, quality=quality, all=np.where(blurred, 9.0, part.all))
    scores = sigmoid(part.all)
    cuts = fit_thresholds([(part, scores)], BOUNDS, PROMISE)
    sharp = part.photographs & ~blurred
    assert 0.008 < (scores[sharp] >= cuts.ai_above).sum() / part.photographs.sum() <= 0.01
    assert (scores[blurred] >= cuts.ai_above).all()
    assert fit_thresholds([(part, scores)], NO_BOUNDS, PROMISE).ai_above > 0.999


def test_cuts_never_cross() -> None:
    part = logits_of(np.array([0, 0, 1, 1]), np.zeros(4))
    lax = replace(PROMISE, missed=0.5)
    for scores in ([0.1, 0.2, 0.8, 0.9], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
        cuts = fit_thresholds([(part, np.array(scores))], NO_BOUNDS, lax)
        assert 0 <= cuts.real_below <= cuts.ai_above <= 1


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("count", [60, 1001, 5000])
def test_bounds_of_quality_hold_back_no_more_photographs_than_promised(
    count: int, share: float
) -> None:
    rng = np.random.default_rng(count)
    quality = np.stack(
        [
            rng.integers(200, 4000, count).astype(np.float64),
            rng.gamma(8, 0.2, count),
            1 + rng.exponential(0.1, count),
        ],
        axis=1,
    )
    clean = drawn(count, 1.0, 0, made=np.arange(count) % 6 == 2, quality=quality)
    promise = replace(PROMISE, held_back=share)
    bounds = fit_quality(clean, promise)
    assert bounds.min_side == PROMISE.min_side
    _, sharpness, blockiness = quality[clean.photographs].T
    photographs = len(sharpness)
    for low in (sharpness < bounds.min_sharpness, blockiness > bounds.max_blockiness):
        assert low.sum() <= share * photographs
        assert low.sum() >= share * photographs - 2
    large = clean.photographs & (quality[:, 0] >= PROMISE.min_side)
    assert bounds.low_of(quality[large]).sum() <= 2 * share * photographs
    # Others have no say.
    others = np.where(clean.photographs[:, None], quality, 0.0)
    assert fit_quality(replace(clean, quality=others), promise) == bounds


def test_pictures_without_blocks_have_a_bound_too() -> None:
    """Of a slope, as float32 has it, the ratio is a little below 1."""
    quality = np.tile(np.array([512, 0.0, 1 - 1e-7]), (10, 1))
    assert fit_quality(drawn(10, 1.0, 0, quality=quality), PROMISE).max_blockiness == 1


def test_without_a_photograph_there_are_no_bounds() -> None:
    part = drawn(10, 1.0, 0)
    with pytest.raises(ModelError, match="no photograph"):
        fit_quality(replace(part, made=part.labels == 0), PROMISE)


def test_each_kind_of_evidence_is_calibrated_on_its_own_logits_and_the_cuts_are_of_all() -> None:
    conditions = {}
    for name, shift, seed in (("clean", 1.5, 1), ("equalised", 1.0, 2)):
        part = drawn(4000, shift, seed)
        window = np.where(np.arange(4000) % 4 == 0, np.nan, part.all / 2)
        conditions[name] = replace(part, window=window)
    # A copy of low quality says nothing of the bounds.
    conditions["equalised"].quality[:] = Quality(100, 0.0, 9.0)
    fitted = fit_rules(conditions, "a test", PROMISE)
    glance, whole = fitted.calibrations.first, fitted.calibrations.all
    assert glance.slope == pytest.approx(4 * whole.slope, rel=0.01)
    assert glance.odds(1.25) == pytest.approx(whole.odds(1.0), rel=0.01)
    alone = fitted.calibrations.window
    assert alone is not None
    assert alone.slope == pytest.approx(2 * whole.slope, rel=0.05)
    assert fitted.calibrations.reduced_window is None
    assert fitted.quality == fit_quality(conditions["clean"], PROMISE)
    assert fitted.quality == QualityRule(min_side=224, min_sharpness=2.0, max_blockiness=1.0)
    scored = [(part, whole.scores(part.all)) for part in conditions.values()]
    assert fitted.thresholds == fit_thresholds(scored, fitted.quality, PROMISE)
    assert fitted.margins == MARGINS

    none = np.full(4000, np.nan)
    without = {name: replace(part, window=none) for name, part in conditions.items()}
    reduced = drawn(2000, 1.0, 4, window=none[:2000])
    again = fit_rules(without, "a test", PROMISE, reduced=reduced)
    assert again.calibrations.window is None
    assert again.calibrations.reduced_window == fit_calibration(
        reduced.labels, reduced.all, "a test"
    )
    assert again.calibrations.all == whole
    alone_of_ai = reduced.where(reduced.labels == 1)  # of a short list, a third may be so
    once_more = fit_rules(without, "a test", PROMISE, reduced=alone_of_ai)
    assert once_more.calibrations.reduced_window is None
