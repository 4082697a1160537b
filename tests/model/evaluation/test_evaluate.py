import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import Metadata, read_checkpoint, write_checkpoint
from model.data.degrade import CONDITIONS
from model.data.manifest import AI, REAL, Row, digest, read_dataset
from model.detector import Detector
from model.errors import ModelError
from model.evaluation.evaluate import evaluate, trained_on
from model.evaluation.report import build_report, summary, to_markdown
from model.images import read_picture
from model.verdicts import QualityRule, Thresholds, Verdict
from tests.conftest import CPU
from tests.images import photo


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    rows = []
    for index in range(20):
        path = tmp_path / f"{index}.png"
        photo(100, 90, index).save(path)
        rows.append(Row(path, index % 2, ("camera", "flux")[index % 2], f"owner{index // 4}"))
    return rows


def test_scores_are_those_of_the_detector(rows: list[Row], detector: Detector) -> None:
    predictions = evaluate(rows, detector)
    assert list(predictions) == list(CONDITIONS)
    clean = predictions["clean"]
    assert clean.rows == rows
    alone = [detector.detect([np.asarray(Image.open(row.path))])[0] for row in rows]
    assert clean.scores == pytest.approx([detection.score for detection in alone], abs=1e-5)
    assert clean.verdicts == [detection.verdict for detection in alone]
    assert clean.labels.tolist() == [REAL, AI] * 10
    assert not np.allclose(predictions["jpeg40"].scores, clean.scores)


def test_images_are_looked_at_as_often_as_in_service(
    toned: list[Row], telling: Path, tiny_tower: Path
) -> None:
    detector = Detector.load(telling, backbone=tiny_tower, runtime=CPU)
    scores = detector.predict([detector.look(read_picture(row.path).pixels) for row in toned])
    assert {score.glance for score in scores} == {True, False}
    clean = evaluate(toned, detector, conditions=["clean"])["clean"]
    assert clean.scores == pytest.approx([score.value for score in scores], abs=1e-5)
    assert clean.verdicts == [detector.verdict(score) for score in scores]


def test_a_copy_does_not_depend_on_the_rest_of_the_set(rows: list[Row], detector: Detector) -> None:
    whole = evaluate(rows, detector, conditions=["crop10"])["crop10"]
    part = evaluate(rows[7:], detector, conditions=["crop10"])["crop10"]
    assert part.scores == pytest.approx(whole.scores[7:], abs=1e-5)


def test_what_the_service_reads_is_evaluated(tmp_path: Path, detector: Detector) -> None:
    """HEIC and AVIF, which a folder used to be read without, uncounted."""
    for name in ("0_real/a.heic", "0_real/b.avif", "1_fake/c.png", "1_fake/d.HEIC"):
        path = tmp_path / "gan" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(100, 90).save(path, {"heic": "HEIF"}.get(path.suffix[1:].lower()))
    rows = read_dataset(tmp_path)
    assert len(rows) == 4
    for part in evaluate(rows, detector, conditions=["clean", "jpeg60"]).values():
        assert part.rows == rows
        assert part.skipped == {}


def test_what_cannot_be_used_is_counted_by_its_reason(
    rows: list[Row], detector: Detector, tmp_path: Path
) -> None:
    small, broken, text = (tmp_path / name for name in ("small.png", "broken.png", "text.png"))
    photo(40, 90).save(small)  # large enough itself, half of it is not
    broken.write_bytes(rows[0].path.read_bytes()[:500])
    text.write_text("no image")
    extra = [Row(p, REAL, "camera", "r") for p in (small, broken, text, tmp_path / "none.png")]
    predictions = evaluate([*extra, *rows], detector, conditions=["clean", "resize50"])
    unread = {"corrupt_image": 1, "unreadable": 1, "unsupported_media_type": 1}
    assert predictions["clean"].skipped == unread
    assert predictions["clean"].rows == [extra[0], *rows]
    assert predictions["resize50"].skipped == {**unread, "image_too_small": 1}
    assert predictions["resize50"].rows == rows
    report = build_report(rows, predictions, detector, data="a set", command="nsnet", seen=False)
    assert (
        "resize50: 1 corrupt image, 1 image too small, 1 unreadable, 1 unsupported media type"
        in to_markdown(report)
    )


def test_mistakes_are_one_line(detector: Detector, rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no condition 'sepia'; there are clean, "):
        evaluate(rows, detector, conditions=["sepia"])
    missing = [Row(tmp_path / "none.png", REAL, "camera", "r")]
    with pytest.raises(ModelError, match="no image could be scored under 'clean'"):
        evaluate(missing, detector, conditions=["clean"])


def test_a_condition_is_a_row_of_its_list(
    rows: list[Row], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONDITIONS, "upside down", lambda image, _: image.rotate(180))
    predictions = evaluate(rows, detector, conditions=["upside down"])
    report = build_report(rows, predictions, detector, data="a set", command="nsnet", seen=False)
    assert "| upside down | 20 |" in to_markdown(report)
    assert "ten images or more, upside down copies" in to_markdown(report)


def test_whether_a_checkpoint_has_seen_the_images(rows: list[Row], metadata: Metadata) -> None:
    training = metadata.training.model_copy(update={"data_sha256": digest(rows)})
    seen = metadata.model_copy(update={"training": training})
    assert trained_on(seen, rows)
    assert not trained_on(seen, rows[1:])


def test_the_report_says_what_was_judged(rows: list[Row], detector: Detector) -> None:
    predictions = evaluate(rows, detector, conditions=["clean", "jpeg60"])
    report = build_report(
        rows, predictions, detector, data="a set", command="nsnet evaluate x", seen=False
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["data"]["images"] == {"real": 10, "made": 0, "ai": 10}
    assert report["data"]["owners"] == 5
    assert list(report["consistency"]) == ["jpeg60"]
    text = to_markdown(report)
    for said in (
        detector.about.sha256,
        "nsnet evaluate x",
        "10 photographs of 1 groups, 10 AI images of 1 groups; of 5 owners",
        "run by torch, products in float32, all else in float32, on cpu, adaptive canvases",
        "| flux | 10 |",
        "photographs: ai_generated",
        "groups.csv",
    ):
        assert said in text
    header, cells = summary(report)
    assert [row[0] for row in cells] == ["clean", "jpeg60"]
    assert all(len(row) == len(header) for row in cells)
    auc = report["conditions"]["clean"]["overall"]["auc"]
    assert cells[0][header.index("AUC")].startswith(f"{100 * auc:.1f} (")


def test_what_people_made_is_told_apart_from_photographs(
    rows: list[Row], detector: Detector
) -> None:
    rows = [
        dataclasses.replace(row, kind="art") if row.label == REAL and index < 8 else row
        for index, row in enumerate(rows)
    ]
    predictions = evaluate(rows, detector, conditions=["clean"])
    report = build_report(rows, predictions, detector, data="a set", command="nsnet", seen=False)
    assert report["data"]["images"] == {"real": 6, "made": 4, "ai": 10}
    clean = report["conditions"]["clean"]
    assert clean["overall"]["images"] == report["data"]["images"]
    assert clean["groups"]["made"]["camera"]["images"] == 4
    text = to_markdown(report)
    assert "6 photographs of 1 groups, 4 art, renders and screens of 1 groups, 10 AI" in text
    assert "art called AI" in text


def test_pictures_of_low_quality_are_marked_and_not_accused(
    rows: list[Row], detector: Detector, telling: Path, tiny_tower: Path
) -> None:
    stored = read_checkpoint(telling)
    verdicts = stored.metadata.verdicts.model_copy(
        update={
            "quality": QualityRule(min_side=95, min_sharpness=0, max_blockiness=1000),
            "thresholds": Thresholds(real_below=0, ai_above=0),
        }
    )
    metadata = stored.metadata.model_copy(update={"verdicts": verdicts})
    write_checkpoint(telling, stored.tensors, metadata)
    strict = Detector.load(telling, backbone=tiny_tower, runtime=CPU, canvases="all")
    large = rows[0].path.with_name("large.png")
    photo(100, 96).save(large)
    part = evaluate(
        [*rows, dataclasses.replace(rows[0], path=large)], strict, conditions=["clean"]
    )["clean"]
    assert part.low_quality.tolist() == [True] * 20 + [False]  # of 90 px
    assert part.verdicts == [Verdict.UNCERTAIN] * 20 + [Verdict.AI_GENERATED]
