"""Every rule of a verdict, and how the rules are chosen."""

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from model.errors import ModelError
from model.verdicts import (
    Calibration,
    Calibrations,
    Labels,
    Margins,
    Promise,
    Scores,
    Thresholds,
    Verdict,
    VerdictRules,
    fit_calibration,
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
    "wrong",
    [
        {"thresholds": {"real_below": 0.8, "ai_above": 0.7}},
        {"thresholds": {"real_below": 0.3, "ai_above": 1.1}},
        {"margins": {"clearing": -0.1, "accusing": 0.75}},
        {"margins": {"clearing": 0.25, "accusing": math.inf}},
        {"calibrations": {"first": PLAIN.model_dump()}},
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


def test_cuts_hold_under_the_worst_condition() -> None:
    conditions: Mapping[str, tuple[Labels, Scores]] = {}
    for name, shift, seed in (("clean", 2.0, 1), ("equalised", 1.0, 2)):
        labels, x = sample(4000, shift, seed)
        conditions = {**conditions, name: (labels, sigmoid(x))}
    cuts = fit_thresholds(conditions, accused=0.01, missed=0.05)
    assert cuts.real_below < cuts.ai_above
    for labels, scores in conditions.values():
        assert (scores[labels == 0] >= cuts.ai_above).mean() <= 0.01
        assert (scores[labels == 1] < cuts.real_below).mean() <= 0.05


def test_cuts_never_cross() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    cuts = fit_thresholds({"clean": (labels, scores)}, accused=0.01, missed=0.5)
    assert cuts.real_below <= cuts.ai_above <= 1


def test_the_first_look_is_calibrated_on_its_own_logits_and_the_cuts_are_of_all_canvases() -> None:
    logits = {}
    for name, shift, seed in (("clean", 1.5, 1), ("equalised", 1.0, 2)):
        labels, every = sample(4000, shift, seed)
        logits[name] = (labels, every / 4 + 1, every)
    margins = Margins(clearing=0.1, accusing=0.2)
    fitted = fit_rules(logits, "a test", Promise(0.01, 0.05, margins))
    glance, whole = fitted.calibrations.first, fitted.calibrations.all
    assert glance.slope == pytest.approx(4 * whole.slope, rel=0.01)
    assert glance.odds(1.25) == pytest.approx(whole.odds(1.0), rel=0.01)
    scored = {name: (y, whole.scores(z)) for name, (y, _, z) in logits.items()}
    assert fitted.thresholds == fit_thresholds(scored, accused=0.01, missed=0.05)
    assert fitted.margins == margins
