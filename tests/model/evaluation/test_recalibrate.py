"""`nsnet calibrate`: both calibrations and the cuts, and figures of images that chose neither."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import Metadata, read_checkpoint
from model.data.copies import PROMISED
from model.data.manifest import REAL, Row
from model.detector import Detector, Look
from model.errors import ModelError
from model.evaluation.evaluate import evaluate
from model.evaluation.recalibrate import _folds, _windows, recalibrate
from model.images import read_picture
from model.verdicts import Verdict, fit_calibration
from tests.conftest import CPU
from tests.images import photo


@pytest.fixture
def every(telling: Path, tiny_tower: Path) -> Detector:
    return Detector.load(telling, backbone=tiny_tower, runtime=CPU, canvases="all")


def calibrated(telling: Path, rows: list[Row], detector: Detector, **changes: Any) -> Metadata:
    shares = {
        "accused": 0.2,
        "accused_images": 0.2,
        "accused_made": 0.2,
        "missed": 0.2,
        "held_back": 0.01,
    }
    arguments: dict[str, Any] = {"data": "a set", **shares} | changes
    return recalibrate(
        telling, telling.parent / "calibrated.safetensors", rows, detector, **arguments
    )


def test_each_look_is_calibrated_by_its_own_logits(
    telling: Path, toned: list[Row], every: Detector
) -> None:
    metadata = calibrated(telling, toned, every)
    stored, old = (
        read_checkpoint(telling.parent / "calibrated.safetensors"),
        read_checkpoint(telling),
    )
    assert stored.metadata == metadata
    assert metadata.format == 2
    assert all(torch.equal(old.tensors[name], stored.tensors[name]) for name in old.tensors)
    assert metadata.training == old.metadata.training
    assert metadata.verdicts.margins == old.metadata.verdicts.margins
    first, full = metadata.verdicts.calibrations.first, metadata.verdicts.calibrations.all
    assert "a set (32 images" in first.fitted_on
    assert "clean, equalised, jpeg60 copies" in full.fitted_on
    assert first != full

    looks = [every.look(read_picture(row.path).pixels) for row in toned]
    wholes = [dataclasses.replace(look, canvases=look.canvases[:1]) for look in looks]
    labels = np.array([row.label for row in toned])
    # On clean copies alone: near what all three give.
    for calibration, seen in ((first, wholes), (full, looks)):
        logits = np.array([score.logit for score in every.predict(seen)])
        expected = fit_calibration(labels, logits, "clean")
        assert calibration.odds(float(logits.mean())) == pytest.approx(
            expected.odds(float(logits.mean())), abs=0.7
        )


def test_the_promise_holds_on_the_images_and_is_quoted_on_others(
    telling: Path, toned: list[Row], every: Detector, tiny_tower: Path
) -> None:
    metadata = calibrated(telling, toned, every)
    said = metadata.evaluation["cross_fitted"]
    assert said["folds"] == "4: photographs by owner, AI images by owner"
    new = Detector.load(
        telling.parent / "calibrated.safetensors", backbone=tiny_tower, runtime=CPU, canvases="all"
    )
    for name, part in evaluate(toned, new, conditions=PROMISED).items():
        accused = [
            verdict is Verdict.AI_GENERATED
            for verdict, label in zip(part.verdicts, part.labels, strict=True)
            if label == REAL
        ]
        assert np.mean(accused) <= 0.2
        figures = said[name]
        assert figures["images"] == {"real": 16, "made": 0, "ai": 16}
        assert figures["auc"] > 0.8
        assert figures["real_called_ai"] is not None
        assert len(figures["real_called_ai_95"]) == 2
    groups = said["clean"]["groups"]
    assert set(groups["real"]) == {f"camera{index}" for index in range(4)}
    assert set(groups["ai"]["gan0"]) == {"images", "ai_generated", "real", "uncertain"}


def test_a_class_of_one_source_is_split_by_image(
    telling: Path, toned: list[Row], every: Detector
) -> None:
    rows = [
        dataclasses.replace(row, group="camera", owner="camera") if row.label == REAL else row
        for row in toned
    ]
    said = calibrated(telling, rows, every).evaluation["cross_fitted"]
    assert said["folds"] == "4: photographs by image, AI images by owner"
    assert list(said["clean"]["groups"]["real"]) == ["camera"]


def test_windows_are_calibrated_by_what_they_say_alone(
    telling: Path, toned: list[Row], every: Detector
) -> None:
    """The plan looks at the whole and at two windows."""
    calibrations = calibrated(telling, toned, every).verdicts.calibrations
    assert calibrations.window is not None
    assert calibrations.reduced_window is None
    looks = [every.look(read_picture(row.path).pixels) for row in toned]
    glances = [dataclasses.replace(look, canvases=look.canvases[:1]) for look in looks]
    windows = [dataclasses.replace(look, canvases=look.canvases[1:]) for look in looks]
    first, both, logits = (
        np.array([score.logit for score in every.predict(seen)])
        for seen in (glances, looks, [_apart(look, i) for look in windows for i in (0, 1)])
    )
    logits = logits.reshape(-1, 2).mean(axis=1)
    plan = read_checkpoint(telling).metadata.views
    assert _windows(first, both, plan) == pytest.approx(logits, abs=1e-3)
    expected = fit_calibration(np.array([row.label for row in toned]), logits, "clean")
    # On clean copies alone: near what all three give.
    assert calibrations.window.odds(float(logits.mean())) == pytest.approx(
        expected.odds(float(logits.mean())), abs=0.7
    )


def _apart(look: Look, index: int) -> Look:
    return dataclasses.replace(look, canvases=look.canvases[index : index + 1])


def test_a_plan_without_the_whole_image_has_no_calibration_of_windows(
    checkpoint: Path, toned: list[Row], tiny_tower: Path
) -> None:
    detector = Detector.load(checkpoint, backbone=tiny_tower, runtime=CPU, canvases="all")
    rows = toned
    if _correlation(detector, rows) < 0:
        rows = [dataclasses.replace(row, label=1 - row.label) for row in toned]
    assert calibrated(checkpoint, rows, detector).verdicts.calibrations.window is None


def _correlation(detector: Detector, rows: list[Row]) -> float:
    logits = [
        score.logit
        for score in detector.predict(
            [detector.look(read_picture(row.path).pixels) for row in rows]
        )
    ]
    return float(np.corrcoef(logits, [row.label for row in rows])[0, 1])


def test_quality_is_that_of_the_looks(telling: Path, toned: list[Row], every: Detector) -> None:
    """Of the photographs', clean; too small is what does not fill a canvas."""
    small = toned[0].path.with_name("small.png")
    Image.open(toned[0].path).crop((0, 0, 90, 80)).save(small)
    rows = [*toned, dataclasses.replace(toned[0], path=small)]
    assert toned[0].label == REAL
    verdicts = calibrated(telling, rows, every, held_back=0.04).verdicts
    qualities = [every.look(read_picture(row.path).pixels).quality for row in rows]
    own = [quality for quality, row in zip(qualities, rows, strict=True) if row.label == REAL]
    assert verdicts.quality is not None
    assert verdicts.quality.min_side == read_checkpoint(telling).metadata.views.canvas_size
    assert verdicts.quality.min_sharpness == pytest.approx(min(q.sharpness for q in own))
    assert verdicts.quality.max_blockiness == pytest.approx(max(q.blockiness for q in own))


def test_an_owner_of_both_classes_is_in_one_fold(toned: list[Row]) -> None:
    rows = [dataclasses.replace(row, owner=row.group[-1]) for row in toned]
    fold, how = _folds(rows)
    assert how == "4: photographs by owner, AI images by owner"
    assert len({(row.owner, own) for row, own in zip(rows, fold, strict=True)}) == 4
    # Photographs of one owner are split, whoever made the drawings.
    rows = [
        dataclasses.replace(row, owner="a" if index % 3 else "b", kind="" if index % 3 else "art")
        if row.label == REAL
        else row
        for index, row in enumerate(rows)
    ]
    assert _folds(rows)[1] == "4: photographs by image, AI images by owner"


def test_the_rules_before_have_no_say(telling: Path, toned: list[Row], tiny_tower: Path) -> None:
    """They decide which images are in doubt, and so are looked at in full: here, all must be."""
    from model.checkpoint import write_checkpoint
    from model.verdicts import Thresholds

    rules = []
    for cuts in ((0.0, 1.0), (0.5, 0.5)):
        stored = read_checkpoint(telling)
        thresholds = Thresholds(real_below=cuts[0], ai_above=cuts[1])
        verdicts = stored.metadata.verdicts.model_copy(update={"thresholds": thresholds})
        metadata = stored.metadata.model_copy(update={"verdicts": verdicts})
        write_checkpoint(telling, stored.tensors, metadata)
        detector = Detector.load(telling, backbone=tiny_tower, runtime=CPU, canvases="all")
        rules.append(calibrated(telling, toned, detector).verdicts)
    assert rules[0] == rules[1]


def test_what_is_skipped_is_counted(telling: Path, toned: list[Row], every: Detector) -> None:
    small = telling.parent / "small.png"
    photo(20, 90).save(small)
    rows = [*toned, Row(small, REAL, "camera0", "camera0")]
    said = calibrated(telling, rows, every).evaluation["cross_fitted"]
    assert said["clean"]["skipped"] == {"image_too_small": 1}
    assert said["equalised"]["skipped"] == {}  # enlarged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accused": 0.0}, "accused is 0.0"),
        ({"accused_made": 1.5}, "accused_made is 1.5"),
        ({"missed": 1.0}, "missed is 1.0"),
        ({"held_back": 0.0}, "held_back is 0.0"),
    ],
)
def test_shares_that_are_none_are_refused(
    changes: dict[str, float], message: str, telling: Path, toned: list[Row], every: Detector
) -> None:
    with pytest.raises(ModelError, match=message):
        calibrated(telling, toned, every, **changes)


def test_too_few_images_are_refused(telling: Path, toned: list[Row], every: Detector) -> None:
    photographs = [row for row in toned if row.label == REAL]
    ai = [row for row in toned if row.label != REAL]
    with pytest.raises(ModelError, match="a class of one image"):
        calibrated(telling, [*photographs, ai[0]], every)
    with pytest.raises(ModelError, match="no photographs or no AI images"):
        calibrated(telling, photographs, every)


def test_a_detector_that_looks_at_less_than_all_is_refused(
    telling: Path, toned: list[Row], tiny_tower: Path
) -> None:
    adaptive = Detector.load(telling, backbone=tiny_tower, runtime=CPU)
    with pytest.raises(ModelError, match="canvases"):
        calibrated(telling, toned, adaptive)
