from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from model.data.manifest import AI, REAL
from model.figures.metrics import (
    FIGURES,
    Bins,
    Measure,
    accuracy,
    auc,
    average_precision,
    calibration_error,
    called,
    quote,
    recall_at_fpr,
    roc_area,
    uncertain,
)
from model.verdicts import Labels, Verdict

PAIRS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60)


def plain(measure: Measure, labels: Labels, values: Any) -> float:
    """The figure of the images as they are."""
    return float(measure(labels, values, np.ones(len(labels))))


def arrays(pairs: list[tuple[bool, int]]) -> tuple[Labels, Any]:
    return np.array([int(label) for label, _ in pairs]), np.array([float(s) for _, s in pairs])


@given(PAIRS)
@settings(deadline=None)
def test_auc_agrees_with_scikit_learn_ties_included(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = arrays(pairs)
    if len(set(labels)) == 1:
        assert np.isnan(auc(labels, scores))
    else:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(PAIRS)
@settings(deadline=None)
def test_average_precision_agrees_with_scikit_learn_ties_included(
    pairs: list[tuple[bool, int]],
) -> None:
    labels, scores = arrays(pairs)
    if not labels.any():
        assert np.isnan(plain(average_precision, labels, scores))
    else:
        expected = average_precision_score(labels, scores)
        assert plain(average_precision, labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.2])
def test_recall_at_fpr_is_above_the_quantile_of_the_photographs(rate: float) -> None:
    rng = np.random.default_rng(0)
    for size in (5, 101, 400):
        labels = rng.integers(0, 2, size)
        scores = rng.integers(0, 30, size) / 30 + 0.2 * labels
        cut = np.quantile(scores[labels == REAL], 1 - rate, method="higher")
        expected = float((scores[labels == AI] > cut).mean())
        recall = plain(partial(recall_at_fpr, rate=rate), labels, scores)
        assert recall == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measure", "reads"),
    [(metric.measure, metric.reads) for metric in FIGURES],
    ids=[metric.key for metric in FIGURES],
)
def test_a_weight_is_how_often_an_image_is_there(measure: Measure, reads: str) -> None:
    """Several samples at once give what each gives with its images repeated."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    scores = rng.integers(0, 12, 80) / 12
    values = _values(scores, rng.random(80) < 0.2)[reads]
    weights = rng.integers(0, 3, (4, 80)).astype(float)
    figures = measure(labels, values, weights)
    assert figures.shape == (4,)
    for figure, times in zip(figures, weights.astype(int), strict=True):
        drawn = np.repeat(np.arange(80), times)
        assert figure == pytest.approx(plain(measure, labels[drawn], values[drawn]))


def _values(scores: Any, low: Any) -> dict[str, Any]:
    between = np.where(scores < 0.3, Verdict.REAL, Verdict.UNCERTAIN)
    return {
        "order": 5 * scores,
        "scores": scores,
        "verdicts": np.where(scores > 0.7, Verdict.AI_GENERATED, between).astype(np.str_),
        "low_quality": low,
    }


def test_accuracy_is_the_mean_over_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.5])
    assert plain(partial(accuracy, cut=0.5), labels, scores) == pytest.approx((0.75 + 1.0) / 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "measure",
    [
        roc_area,
        calibration_error,
        partial(accuracy, cut=0.5),
        partial(recall_at_fpr, rate=0.01),
        uncertain,
    ],
)
@pytest.mark.parametrize("label", [REAL, AI])
def test_an_absent_class_gives_nan_not_an_error(measure: Measure, label: int) -> None:
    labels, scores = np.full(3, label), np.array([0.1, 0.2, 0.3])
    assert np.isnan(plain(measure, labels, scores))


def test_calibration_error_of_a_calibrated_and_of_a_boastful_score() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=20_000)
    labels = (rng.uniform(size=20_000) < scores).astype(np.int64)
    assert plain(calibration_error, labels, scores) < 0.02
    assert plain(calibration_error, labels, np.where(scores > 0.5, 1.0, 0.0)) > 0.2


def test_calibration_is_judged_at_the_prior_that_it_is_for() -> None:
    """Whatever the set's mixture, here 1 in 10: the score is right where classes are equal."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=40_000)
    labels = (rng.uniform(size=40_000) < scores).astype(np.int64)
    kept = (labels == 0) | (rng.uniform(size=40_000) < 1 / 9)
    labels, scores = labels[kept], scores[kept]
    assert labels.mean() < 0.11
    assert plain(calibration_error, labels, scores) < 0.02
    bins = Bins.of(labels, scores, np.ones(len(labels)))
    assert bins.ai / bins.weight == pytest.approx(bins.score / bins.weight, abs=0.05)
    assert bins.weight.sum() == pytest.approx(1)
    assert bins.images.sum() == len(labels)


def test_shares_of_verdicts_are_of_one_class() -> None:
    labels = np.array([0, 0, 1, 1])
    verdicts = np.array([Verdict.REAL, Verdict.AI_GENERATED, Verdict.UNCERTAIN, Verdict.REAL])
    for label, expected in ((REAL, 0.5), (AI, 0.0)):
        accused = partial(called, label=label, value=Verdict.AI_GENERATED)
        assert plain(accused, labels, verdicts) == expected
    assert plain(uncertain, labels, verdicts) == 0.25


# --- what is quoted, and its intervals ----------------------------------------------------------


def quoted(
    labels: Any, scores: Any, owners: list[str], *, made: Any = None, repeats: int = 300
) -> dict[str, Any]:
    made = np.zeros(len(labels), dtype=bool) if made is None else made
    values = _values(np.asarray(scores), np.zeros(len(labels), dtype=bool))
    return quote(FIGURES, np.asarray(labels), values, made=made, owners=owners, repeats=repeats)


def width(figures: dict[str, Any], key: str) -> float:
    low, high = figures[f"{key}_95"]
    return float(high - low)


def test_intervals_over_owners_are_wider_than_over_images() -> None:
    rng = np.random.default_rng(1)
    owners, labels, scores = [], [], []
    for index in range(20):  # each owner has an offset of its own
        label = index % 2
        offset = rng.normal(0.3 + 0.2 * label, 0.2)
        for _ in range(50):
            owners.append(str(index))
            labels.append(label)
            scores.append(float(np.clip(rng.normal(offset, 0.02), 0, 1)))
    by_image = quoted(labels, scores, ["one"] * len(labels))  # a class of one owner: by image
    by_owner = quoted(labels, scores, owners)
    assert by_image["auc_95"][0] <= by_image["auc"] <= by_image["auc_95"][1]
    for key in ("auc", "ap", "acc"):
        assert width(by_owner, key) > 2 * width(by_image, key) > 0


def test_an_owner_of_both_classes_is_drawn_whole() -> None:
    """Where everyone's photographs score as their AI images do, no sample takes them apart."""
    owners = [str(index) for index in range(20) for _ in range(2)]
    labels = [REAL, AI] * 20
    calls = [0.9 if index % 2 else 0.1 for index in range(20) for _ in range(2)]
    together = quoted(labels, calls, owners)
    # In every sample as many photographs as AI images are called so: their shares are the same.
    assert together["real_called_ai_95"] == together["ai_called_ai_95"]
    assert together["acc"] == 0.5
    assert together["acc_95"] == [0.5, 0.5]
    apart = quoted(labels, calls, [f"{owner}-{i % 2}" for i, owner in enumerate(owners)])
    assert width(apart, "acc") > 0.1


def test_pictures_made_without_a_camera_count_under_their_own_figure_alone() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0, 1)
    owners = [str(index // 20) for index in range(400)]
    without = quoted(labels, scores, owners)
    assert without["made_called_ai"] is None
    assert without["made_called_ai_95"] == [None, None]
    # All of them called AI, by photographs' owners, so that the same owners are drawn.
    with_made = quoted(
        np.append(labels, [REAL] * 100),
        np.append(scores, [0.99] * 75 + [0.1] * 25),
        [*owners, *(str(index % 20) for index in range(100))],
        made=np.arange(500) >= 400,
    )
    made = [key for key in with_made if key.startswith("made")]
    assert len(made) == 4
    assert {k: v for k, v in with_made.items() if k not in made} == {
        k: v for k, v in without.items() if k not in made
    }
    assert with_made["made_called_ai"] == 0.75


def test_a_share_of_none_or_all_has_wilsons_interval_of_the_owners() -> None:
    """All samples agree on it: a bootstrap would promise that it is never otherwise."""
    labels = np.repeat([REAL, AI], 200)
    owners = [*(f"r{index // 10}" for index in range(200)), *(f"a{i // 40}" for i in range(200))]
    figures = quoted(labels, np.repeat([0.0, 1.0], 200), owners)
    none = binomtest(0, 20).proportion_ci(method="wilson").high
    every = binomtest(5, 5).proportion_ci(method="wilson").low
    for key in ("real_called_ai", "real_called_ai_by_owner"):
        assert figures[key] == 0
        assert figures[f"{key}_95"] == pytest.approx([0, none], abs=1e-4)
    assert figures["ai_called_ai"] == 1
    assert figures["ai_called_ai_95"] == pytest.approx([every, 1], abs=1e-4)
    assert figures["uncertain_95"][1] == pytest.approx(1 - every, abs=1e-4)  # the fewer owners'
    assert figures["auc_95"] == [1, 1]  # no share of images


def test_by_owner_each_owner_counts_once() -> None:
    """One of three has nearly all the photographs, and all that are accused."""
    owners = ["large"] * 90 + ["a"] * 5 + ["b"] * 5 + ["gan"] * 10 + ["flux"] * 30
    labels = np.repeat([REAL, AI], [100, 40])
    scores = np.repeat([0.9, 0.1, 0.9, 0.5], [90, 10, 10, 30])
    figures = quoted(labels, scores, owners)
    assert figures["real_called_ai"] == 0.9
    assert figures["real_called_ai_by_owner"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["ai_called_ai"] == 0.25
    assert figures["ai_called_ai_by_owner"] == 0.5
    assert figures["uncertain_by_owner"] == 0.25
    low, high = figures["real_called_ai_by_owner_95"]
    assert low < 1 / 3 < high


def test_every_figure_is_quoted_with_its_interval() -> None:
    assert len({metric.key for metric in FIGURES}) == len(FIGURES)
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = rng.uniform(size=400) * 0.6 + 0.4 * labels
    values = _values(scores, rng.random(400) < 0.1)
    made = (labels == REAL) & (np.arange(400) < 100)
    owners = [str(index // 20) for index in range(400)]
    figures = quote(FIGURES, labels, values, made=made, owners=owners, repeats=50)
    by_owner = [metric.by_owner for metric in FIGURES if metric.by_owner]
    assert by_owner == [
        f"{key}_by_owner"
        for key in (
            "real_called_ai",
            "made_called_ai",
            "ai_called_ai",
            "ai_called_real",
            "uncertain",
        )
    ]
    for key in [*(metric.key for metric in FIGURES), *by_owner]:
        low, high = figures[f"{key}_95"]
        assert 0 <= low <= figures[key] <= high <= 1
    ranks = [metric for metric in FIGURES if metric.reads == "order"]
    order = {"order": scores}
    assert quote(ranks, labels, order, made=made, owners=owners, repeats=50) == {
        key: figures[key] for metric in ranks for key in (metric.key, f"{metric.key}_95")
    }
