import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score

from model.figures.metrics import (
    FIGURES,
    Bins,
    auc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    calibration_error,
    called,
    f_acc,
    quote,
    r_acc,
    recall_at_fpr,
    wilson,
)
from model.verdicts import Verdict


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
@settings(deadline=None)
def test_auc_agrees_with_scikit_learn_ties_included(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([int(label) for label, _ in pairs])
    scores = np.array([float(score) for _, score in pairs])
    if len(set(labels)) == 1:
        assert np.isnan(auc(labels, scores))
    else:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=60))
@settings(deadline=None)
def test_average_precision_agrees_with_scikit_learn_ties_included(
    pairs: list[tuple[bool, int]],
) -> None:
    labels = np.array([int(label) for label, _ in pairs])
    scores = np.array([float(score) for _, score in pairs])
    if not labels.any():
        assert np.isnan(average_precision(labels, scores))
    else:
        expected = average_precision_score(labels, scores)
        assert average_precision(labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 40), (7, 1000)])
def test_wilson_agrees_with_scipy(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_class_accuracies_at_the_cut() -> None:
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.5, 0.2, 0.5, 0.4])
    assert r_acc(labels, scores, 0.5) == pytest.approx(2 / 3)
    assert f_acc(labels, scores, 0.5) == pytest.approx(1 / 2)


@pytest.mark.filterwarnings("error")
def test_an_absent_class_gives_nan_not_an_error() -> None:
    labels, scores = np.zeros(3, dtype=np.int64), np.array([0.1, 0.2, 0.3])
    for figure in (f_acc, balanced_accuracy, recall_at_fpr):
        assert np.isnan(figure(labels, scores, 0.5))
    assert np.isnan(bootstrap(labels, scores, auc, units=["a", "b", "c"])).all()
    assert np.isnan(calibration_error(labels, scores))
    assert np.isnan(r_acc(labels + 1, scores, 0.5))
    assert np.isnan(wilson(0, 0)).all()


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.5])
    assert balanced_accuracy(labels, scores, 0.5) == pytest.approx((0.75 + 1.0) / 2)


def test_recall_at_fpr_counts_above_the_worst_allowed_photograph() -> None:
    labels = np.array([0] * 100 + [1] * 4)
    scores = np.array([i / 100 for i in range(100)] + [0.975, 0.985, 0.995, 0.2])
    assert recall_at_fpr(labels, scores, 0.01) == pytest.approx(0.25)
    assert recall_at_fpr(labels, scores, 0.03) == pytest.approx(0.75)


def test_calibration_error_of_a_calibrated_and_of_a_boastful_score() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=20_000)
    labels = (rng.uniform(size=20_000) < scores).astype(np.int64)
    assert calibration_error(labels, scores) < 0.02
    assert calibration_error(labels, np.where(scores > 0.5, 1.0, 0.0)) > 0.2


def test_calibration_is_judged_at_the_prior_that_it_is_for() -> None:
    """Whatever the set's mixture, here 1 in 10: the score is right where classes are equal."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=40_000)
    labels = (rng.uniform(size=40_000) < scores).astype(np.int64)
    kept = (labels == 0) | (rng.uniform(size=40_000) < 1 / 9)
    labels, scores = labels[kept], scores[kept]
    assert labels.mean() < 0.11
    assert calibration_error(labels, scores) < 0.02
    bins = Bins.of(labels, scores)
    assert bins.ai == pytest.approx(bins.score, abs=0.05)
    assert bins.weight.sum() == pytest.approx(1)
    assert bins.images.sum() == len(labels)


def test_intervals_over_groups_are_wider_than_over_images() -> None:
    rng = np.random.default_rng(1)
    groups, labels, scores = [], [], []
    for index in range(20):  # each group has an offset of its own
        label = index % 2
        offset = rng.normal(label, 1)
        for _ in range(50):
            groups.append(str(index))
            labels.append(label)
            scores.append(rng.normal(offset, 0.1))
    y, s = np.array(labels), np.array(scores)
    by_image = bootstrap(y, s, auc, units=["one"] * len(y), repeats=200)
    by_group = bootstrap(y, s, auc, units=groups, repeats=200)
    assert by_image[0] <= auc(y, s) <= by_image[1]
    assert by_group[1] - by_group[0] > 2 * (by_image[1] - by_image[0])


def test_shares_of_verdicts_are_of_one_class() -> None:
    labels = np.array([0, 0, 1, 1])
    verdicts = np.array([Verdict.REAL, Verdict.AI_GENERATED, Verdict.UNCERTAIN, Verdict.REAL])
    assert called(labels, verdicts, 0, Verdict.AI_GENERATED) == 0.5
    assert called(labels, verdicts, 1, Verdict.AI_GENERATED) == 0
    assert np.isnan(called(labels[:2], verdicts[:2], 1, Verdict.REAL))


def test_every_figure_is_quoted_with_its_interval() -> None:
    assert len({metric.key for metric in FIGURES}) == len(FIGURES)
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = rng.uniform(size=400) * 0.6 + 0.4 * labels
    verdicts = np.where(scores > 0.7, Verdict.AI_GENERATED, Verdict.REAL).astype(np.str_)
    values = {"order": 5 * scores, "scores": scores, "verdicts": verdicts}
    units = [str(index // 20) for index in range(400)]
    quoted = quote(FIGURES, labels, values, units=units, repeats=50)
    for metric in FIGURES:
        low, high = quoted[f"{metric.key}_95"]
        assert low <= quoted[metric.key] <= high
    count = int((verdicts[labels == 0] == Verdict.AI_GENERATED).sum())
    assert quoted["real_called_ai_95"] == pytest.approx(wilson(count, 200), abs=1e-6)
    ranks = [metric for metric in FIGURES if metric.reads == "order"]
    assert quote(ranks, labels, {"order": scores}, units=units, repeats=50) == {
        key: quoted[key] for metric in ranks for key in (metric.key, f"{metric.key}_95")
    }
