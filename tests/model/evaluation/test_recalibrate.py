"""`nsnet calibrate`: both calibrations and the cuts, and figures of images that chose neither."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Metadata, read_checkpoint
from model.data.manifest import REAL, Row
from model.detector import Detector
from model.errors import ModelError
from model.evaluation.evaluate import evaluate
from model.evaluation.recalibrate import recalibrate
from model.images import read_picture
from model.verdicts import Verdict, fit_calibration
from tests.conftest import CPU
from tests.images import photo


@pytest.fixture
def every(telling: Path, tiny_tower: Path) -> Detector:
    return Detector.load(telling, backbone=tiny_tower, runtime=CPU, canvases="all")


def calibrated(telling: Path, rows: list[Row], detector: Detector, **changes: Any) -> Metadata:
    arguments: dict[str, Any] = {"data": "a set", "accused": 0.2, "missed": 0.2} | changes
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
    assert "clean and equalised" in full.fitted_on
    assert first != full

    looks = [every.look(read_picture(row.path).pixels) for row in toned]
    wholes = [dataclasses.replace(look, canvases=look.canvases[:1]) for look in looks]
    labels = np.array([row.label for row in toned])
    # On clean copies alone: near what clean and equalised ones give.
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
    assert said["folds"] == "4: photographs by repository, AI images by generator"
    new = Detector.load(
        telling.parent / "calibrated.safetensors", backbone=tiny_tower, runtime=CPU, canvases="all"
    )
    for name, part in evaluate(toned, new, conditions=["clean", "equalised"]).items():
        accused = [
            verdict is Verdict.AI_GENERATED
            for verdict, label in zip(part.verdicts, part.labels, strict=True)
            if label == REAL
        ]
        assert np.mean(accused) <= 0.2
        figures = said[name]
        assert figures["images"] == {"real": 16, "ai": 16}
        assert figures["auc"] > 0.8
        assert figures["real_called_ai"] is not None
        assert len(figures["real_called_ai_95"]) == 2
        assert set(figures["groups"]["real"]) == {f"camera{index}" for index in range(4)}
        assert set(figures["groups"]["ai"]["gan0"]) == {
            "images",
            "ai_generated",
            "real",
            "uncertain",
        }


def test_a_class_of_one_source_is_split_by_image(
    telling: Path, toned: list[Row], every: Detector
) -> None:
    rows = [
        dataclasses.replace(row, group="camera", repository="camera") if row.label == REAL else row
        for row in toned
    ]
    said = calibrated(telling, rows, every).evaluation["cross_fitted"]
    assert said["folds"] == "4: photographs by image, AI images by generator"
    assert list(said["clean"]["groups"]["real"]) == ["camera"]


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
    [({"accused": 0.0}, "accused is 0.0"), ({"missed": 1.0}, "missed is 1.0")],
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
    with pytest.raises(ModelError, match="one class alone"):
        calibrated(telling, photographs, every)


def test_a_detector_that_looks_at_less_than_all_is_refused(
    telling: Path, toned: list[Row], tiny_tower: Path
) -> None:
    adaptive = Detector.load(telling, backbone=tiny_tower, runtime=CPU)
    with pytest.raises(ModelError, match="canvases"):
        calibrated(telling, toned, adaptive)
