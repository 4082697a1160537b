"""What is quoted of left-out images is of images that chose nothing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from model.data.manifest import AI, REAL, Row, folds
from model.figures.crossfit import rules_of
from model.figures.metrics import FIGURES
from model.training.heldout import RANKING, _halved, held_out_figures, ranking_figures
from model.training.options import preset
from model.verdicts import Logits, Scores

OPTIONS = preset("default").model_copy(update={"folds": 4, "accused": 0.05, "accused_images": 0.05})


def listed(owners: int, images: int) -> list[Row]:
    """So many sources of photographs and generators, of so many images each."""
    return [
        Row(Path(f"{name}-{owner}-{image}"), label, f"{name}{owner}", f"{name}{owner}")
        for label, name in ((REAL, "real"), (AI, "ai"))
        for owner in range(owners)
        for image in range(images)
    ]


def of(rows: list[Row], every: Scores, first: Scores | None = None) -> Logits:
    return Logits(
        row=np.arange(len(rows)),
        labels=np.array([row.label for row in rows]),
        owners=np.array([row.owner for row in rows]),
        made=np.array([row.made for row in rows]),
        first=every if first is None else first,
        all=every,
        window=np.full(len(rows), np.nan),
        quality=np.tile([1000.0, 2.0, 1.0], (len(rows), 1)),
    )


def logits(rows: list[Row], shift: float = 0.0, of_owners: float = 0.0, seed: int = 0) -> Logits:
    """Noise, by image and by owner, to which `shift` is added where the image is AI."""
    rng = np.random.default_rng(seed)
    labels = np.array([row.label for row in rows])
    owners, owner = np.unique([row.owner for row in rows], return_inverse=True)
    every = rng.normal(shift * labels, 1.0) + rng.normal(0, of_owners, len(owners))[owner]
    return of(rows, every, every + rng.normal(0, 0.3, len(rows)))


def measured(part: Logits, fold: list[int], folds_measured: int) -> Logits:
    """What `Experiment.held_out` gives where not every fold was trained without."""
    return part.where(np.array(fold)[part.row] < folds_measured)


def accused_by_own_cuts(part: Logits) -> float:
    rules = rules_of({"clean": part}, "these", OPTIONS.promise)
    scores = rules.calibrations.all.scores(part.all[part.labels == REAL])
    return float((scores >= rules.thresholds.ai_above).mean())


@pytest.mark.parametrize(("folds_measured", "shift"), [(4, 0.0), (1, 1.0)])
def test_the_promise_is_not_kept_by_construction(folds_measured: int, shift: float) -> None:
    """Logits of noise, or little else, keep it on the images that made it; those are not quoted."""
    rows = listed(owners=24, images=10)
    fold = folds(rows, 4)
    options = OPTIONS.model_copy(update={"measured_folds": folds_measured})
    shares = []
    for seed in range(12):  # most noise has a slope that is negative somewhere: not calibrated
        part = measured(logits(rows, shift, of_owners=2.0, seed=seed), fold, folds_measured)
        figures = held_out_figures(rows, fold, {"clean": part}, options)
        if "no_verdicts" not in figures:
            assert accused_by_own_cuts(part) <= OPTIONS.accused
            shares.append(figures["clean"]["real_called_ai"])
    assert len(shares) > 1
    assert np.mean(shares) > 1.5 * OPTIONS.accused


def test_figures_are_by_source_and_condition_and_say_how_they_came_about() -> None:
    rows = listed(owners=8, images=20)
    fold = folds(rows, 4)
    conditions = {"clean": logits(rows, 6.0), "equalised": logits(rows, 5.0, seed=1)}
    figures = held_out_figures(rows, fold, conditions, OPTIONS)
    assert figures.pop("folds") == (
        "4 of 4 folds of left-out owners; each one's cuts chosen on the others"
    )
    assert set(figures.pop("ece")) == {"first", "all", "window", "reduced_window"}
    assert set(figures.pop("second_looks")) == {"real", "made", "ai"}
    assert figures.keys() == {"clean", "equalised"}
    for part in figures.values():
        assert {metric.key for metric in FIGURES} <= part.keys()
    groups = figures["clean"]["groups"]
    assert groups["real"].keys() == {f"real{owner}" for owner in range(8)}
    assert groups["ai"].keys() == {f"ai{owner}" for owner in range(8)}
    assert groups["real"]["real3"]["images"] == 20
    json.dumps(figures)


def test_one_measured_fold_is_halved_by_owners() -> None:
    rows = listed(owners=16, images=10)
    fold = folds(rows, 4)
    part = measured(logits(rows, 6.0), fold, 1)
    options = OPTIONS.model_copy(update={"measured_folds": 1})
    figures = held_out_figures(rows, fold, {"clean": part}, options)
    assert figures["folds"] == (
        "1 of 4 folds of left-out owners; its owners halved, each half's cuts chosen on the other"
    )
    assert figures["clean"]["images"] == {"real": 40, "made": 0, "ai": 40}
    assert figures["clean"]["real_called_ai"] < 0.2
    assert sum(own["images"] for own in figures["clean"]["groups"]["real"].values()) == 40


def test_where_nothing_is_left_to_choose_cuts_on_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = listed(owners=4, images=10)  # one of each class in a fold
    fold = folds(rows, 4)
    part = measured(logits(rows, 3.0), fold, 1)
    options = OPTIONS.model_copy(update={"measured_folds": 1})
    with caplog.at_level(logging.WARNING):
        figures = held_out_figures(rows, fold, {"clean": part}, options)
    assert "nothing to choose its rules on" in figures["no_verdicts"]
    assert "no figures of verdicts on left-out owners" in caplog.text
    assert figures["clean"]["auc"] > 0.9
    assert "real_called_ai" not in figures["clean"]


def test_an_owner_of_both_classes_is_not_halved() -> None:
    rows = [
        Row(Path(f"{label}-{owner}-{image}"), label, f"{label}{owner}", f"owner{owner}")
        for label in (REAL, AI)
        for owner in range(8)
        for image in range(10)
    ]
    options = OPTIONS.model_copy(update={"measured_folds": 1})
    part = logits(rows, 6.0)
    halves = _halved(rows, [0] * len(rows))
    assert set(halves) == {0, 1}
    assert len({(row.owner, half) for row, half in zip(rows, halves, strict=True)}) == 8
    assert "no_verdicts" not in held_out_figures(rows, [0] * len(rows), {"clean": part}, options)


def test_figures_of_the_order_have_intervals_over_owners_of_photographs() -> None:
    """Eight groups, but two owners: one is always accused, the other never."""
    rows = [Row(Path(str(i)), REAL, f"group{i // 5}", f"site{i // 20}") for i in range(40)]
    rows += [Row(Path(str(i)), AI, "gan", "lab") for i in range(5)]
    rows += [Row(Path(str(i)), REAL, "painter", "site0", "art") for i in range(5)]
    part = of(rows, np.repeat([0.9, 0.0, 0.5, 0.9], [20, 20, 5, 5]))
    figures = ranking_figures(rows, part)
    assert figures["auc"] == 0.5  # the drawings are no photographs
    assert figures["auc_95"] == [0, 1]
    assert figures["images"] == {"real": 40, "made": 5, "ai": 5}
    assert {metric.key for metric in RANKING} <= figures.keys()
    assert "real_called_ai" not in figures
