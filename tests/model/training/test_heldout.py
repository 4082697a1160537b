"""What is quoted of left-out images is of images that chose nothing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from model.data.manifest import AI, REAL, Row, folds
from model.figures.crossfit import Logits, rules_of
from model.figures.metrics import FIGURES
from model.training.heldout import RANKING, held_out_figures, ranking_figures
from model.training.options import preset

OPTIONS = preset("default").model_copy(update={"folds": 4, "accused": 0.05})


def listed(units: int, images: int) -> list[Row]:
    """So many sources of photographs and generators, of so many images each."""
    return [
        Row(Path(f"{name}-{unit}-{image}"), label, f"{name}{unit}", f"{name}{unit}")
        for label, name in ((REAL, "real"), (AI, "ai"))
        for unit in range(units)
        for image in range(images)
    ]


def logits(rows: list[Row], shift: float = 0.0, of_units: float = 0.0, seed: int = 0) -> Logits:
    """Noise, by image and by unit, to which `shift` is added where the image is AI."""
    rng = np.random.default_rng(seed)
    labels = np.array([row.label for row in rows])
    units, unit = np.unique([row.unit for row in rows], return_inverse=True)
    every = rng.normal(shift * labels, 1.0) + rng.normal(0, of_units, len(units))[unit]
    return Logits(np.arange(len(rows)), labels, every + rng.normal(0, 0.3, len(rows)), every)


def measured(part: Logits, fold: list[int], folds_measured: int) -> Logits:
    """What `Experiment.held_out` gives where not every fold was trained without."""
    inside = np.flatnonzero(np.array(fold)[part.row] < folds_measured)
    return Logits(part.row[inside], part.labels[inside], part.first[inside], part.all[inside])


def accused_by_own_cuts(part: Logits) -> float:
    rules = rules_of({"these": part}, "these", OPTIONS.promise)
    scores = rules.calibrations.all.scores(part.all[part.labels == REAL])
    return float((scores >= rules.thresholds.ai_above).mean())


@pytest.mark.parametrize(("folds_measured", "shift"), [(4, 0.0), (1, 1.0)])
def test_the_promise_is_not_kept_by_construction(folds_measured: int, shift: float) -> None:
    """Logits of noise, or little else, keep it on the images that made it; those are not quoted."""
    rows = listed(units=24, images=10)
    fold = folds(rows, 4)
    options = OPTIONS.model_copy(update={"measured_folds": folds_measured})
    shares = []
    for seed in range(12):  # most noise has a slope that is negative somewhere: not calibrated
        part = measured(logits(rows, shift, of_units=2.0, seed=seed), fold, folds_measured)
        figures = held_out_figures(rows, fold, {"clean": part}, options)
        if "no_verdicts" not in figures:
            assert accused_by_own_cuts(part) <= OPTIONS.accused
            shares.append(figures["clean"]["real_called_ai"])
    assert len(shares) > 1
    assert np.mean(shares) > 1.5 * OPTIONS.accused


def test_figures_are_by_source_and_condition_and_say_how_they_came_about() -> None:
    rows = listed(units=8, images=20)
    fold = folds(rows, 4)
    conditions = {"clean": logits(rows, 6.0), "equalised": logits(rows, 5.0, seed=1)}
    figures = held_out_figures(rows, fold, conditions, OPTIONS)
    assert figures.pop("folds") == (
        "4 of 4 folds of left-out groups; each one's cuts chosen on the others"
    )
    assert figures.keys() == {"clean", "equalised"}
    for part in figures.values():
        assert {metric.key for metric in FIGURES} <= part.keys()
        assert part["groups"]["real"].keys() == {f"real{unit}" for unit in range(8)}
        assert part["groups"]["ai"].keys() == {f"ai{unit}" for unit in range(8)}
        assert part["groups"]["real"]["real3"]["images"] == 20
    json.dumps(figures)


def test_one_measured_fold_is_halved_by_units() -> None:
    rows = listed(units=16, images=10)
    fold = folds(rows, 4)
    part = measured(logits(rows, 6.0), fold, 1)
    options = OPTIONS.model_copy(update={"measured_folds": 1})
    figures = held_out_figures(rows, fold, {"clean": part}, options)
    assert figures["folds"] == (
        "1 of 4 folds of left-out groups; its units halved, each half's cuts chosen on the other"
    )
    assert figures["clean"]["images"] == {"real": 40, "ai": 40}
    assert figures["clean"]["real_called_ai"] < 0.2
    assert sum(of["images"] for of in figures["clean"]["groups"]["real"].values()) == 40


def test_where_nothing_is_left_to_choose_cuts_on_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = listed(units=4, images=10)  # one of each class in a fold
    fold = folds(rows, 4)
    part = measured(logits(rows, 3.0), fold, 1)
    options = OPTIONS.model_copy(update={"measured_folds": 1})
    with caplog.at_level(logging.WARNING):
        figures = held_out_figures(rows, fold, {"clean": part}, options)
    assert "nothing to choose its rules on" in figures["no_verdicts"]
    assert "no figures of verdicts on left-out groups" in caplog.text
    assert figures["clean"]["auc"] > 0.9
    assert "real_called_ai" not in figures["clean"]


def test_figures_of_the_order_have_intervals_over_repositories_of_photographs() -> None:
    """Eight groups, but two pipelines: one is always accused, the other never."""
    rows = [Row(Path(str(i)), REAL, f"group{i // 5}", f"site{i // 20}") for i in range(40)]
    rows += [Row(Path(str(i)), AI, "gan", "site0") for i in range(5)]
    scores = np.repeat([0.9, 0.0, 0.5], [20, 20, 5])
    labels = np.array([row.label for row in rows])
    figures = ranking_figures(rows, Logits(np.arange(45), labels, scores, scores))
    assert figures["auc"] == 0.5
    assert figures["auc_95"] == [0, 1]
    assert figures["images"] == {"real": 40, "ai": 5}
    assert {metric.key for metric in RANKING} <= figures.keys()
    assert "real_called_ai" not in figures
