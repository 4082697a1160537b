import numpy as np
import pytest

from model.errors import ModelError
from model.training.calibrate import platt, thresholds


def sample(count: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return labels, rng.normal(np.where(labels == 1, shift, -shift), 1.0)


def test_platt_recovers_the_true_posterior() -> None:
    """Two unit Gaussians at +-s: log-odds of x are 2 s x."""
    labels, x = sample(40_000, 1.0, 0)
    fitted = platt(labels, x / 3 + 1, "a test")  # logits off by a scale and a shift
    assert fitted.slope == pytest.approx(6.0, rel=0.05)
    assert fitted.intercept == pytest.approx(-6.0, rel=0.05)


def test_platt_ignores_how_many_of_each_class_there_were() -> None:
    labels, x = sample(40_000, 1.0, 0)
    keep = (labels == 0) | (np.arange(len(labels)) % 10 == 1)
    fitted = platt(labels[keep], x[keep], "a test")
    assert fitted.intercept == pytest.approx(0.0, abs=0.1)


def test_logits_worse_than_chance_cannot_be_calibrated() -> None:
    labels, x = sample(1000, 1.0, 0)
    with pytest.raises(ModelError, match="do not tell"):
        platt(labels, -x, "a test")


def test_cuts_hold_under_the_worst_condition() -> None:
    conditions = []
    for shift, seed in ((2.0, 1), (1.0, 2)):
        labels, x = sample(4000, shift, seed)
        conditions.append((labels, 1 / (1 + np.exp(-x))))
    cuts = thresholds(conditions, accused=0.01, missed=0.05)
    assert cuts.real_below < cuts.ai_above
    for labels, scores in conditions:
        assert (scores[labels == 0] >= cuts.ai_above).mean() <= 0.01
        assert (scores[labels == 1] < cuts.real_below).mean() <= 0.05


def test_cuts_never_cross() -> None:
    labels = np.array([0, 0, 1, 1])
    cuts = thresholds([(labels, np.array([0.1, 0.2, 0.8, 0.9]))], accused=0.01, missed=0.5)
    assert cuts.real_below <= cuts.ai_above <= 1
