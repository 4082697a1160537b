"""What the default checkpoint says of known pictures; see `tests.golden`."""

import json
from typing import Any

import pytest
from PIL import Image

from model.detector import Detector
from model.hardware import Runtime
from model.verdicts import Verdict
from tests.golden import (
    ACCUSED,
    FILE,
    NATIVE_INT8,
    PHOTOGRAPHS,
    engines,
    log_odds,
    pictures,
    score,
    swapped,
)

pytestmark = pytest.mark.backbone

GOLDEN: dict[str, Any] = json.loads(FILE.read_text())


def tolerance(name: str) -> float:
    """A quarter of what swapped channels change by any engine, in log-odds."""
    scores, wrong = GOLDEN[name]["scores"], GOLDEN[name]["swapped"]
    return min(abs(log_odds(scores[e]) - log_odds(wrong[e])) for e in scores) / 4


def away(name: str, engine: str, value: float) -> float:
    """In log-odds; of int8 on a CPU without its instructions, from the float score if nearer."""
    scores = GOLDEN[name]["scores"]
    known = {scores[engine]}
    if "int8" in engine and not NATIVE_INT8:
        known.add(scores["torch float"])
    return min(abs(log_odds(value) - log_odds(score)) for score in known)


@pytest.mark.parametrize(("engine", "runtime"), engines(), ids=lambda of: str(of)[:20])
def test_known_pictures_keep_their_scores(engine: str, runtime: Runtime) -> None:
    detector = Detector.load(runtime=runtime)
    for name, picture in pictures().items():
        assert away(name, engine, score(detector, picture)) < tolerance(name), name
        assert away(name, engine, score(detector, swapped(picture))) > tolerance(name), name


def test_no_photograph_is_accused_and_the_made_picture_is() -> None:
    detector = Detector.load()
    verdicts = {name: detector.about.thresholds.verdict(s) for name, s in default_scores(detector)}
    assert verdicts.pop(ACCUSED) == Verdict.AI_GENERATED
    assert verdicts == dict.fromkeys(PHOTOGRAPHS, Verdict.REAL)


def default_scores(detector: Detector) -> list[tuple[str, float]]:
    drawn: dict[str, Image.Image] = pictures()
    return [(name, score(detector, picture)) for name, picture in drawn.items()]


def test_a_network_that_always_says_the_same_would_be_noticed() -> None:
    for constant in (0.01, 0.02, 0.5, 0.97):
        wrong = [away(name, "torch float", constant) > tolerance(name) for name in GOLDEN]
        assert sum(wrong) >= 3
