import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.detector import Detector
from model.errors import ModelError
from model.evaluation.conditions import CONDITIONS
from model.evaluation.evaluate import evaluate
from model.evaluation.report import build_report, overall_table, to_markdown
from model.nsnet import NSNetConfig
from model.training.manifest import AI, REAL, Row
from tests.conftest import RULE, TINY
from tests.images import photo


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8, patches=RULE)


@pytest.fixture
def detector(checkpoint: Path, tiny_tower: Path) -> Detector:
    return Detector.load(checkpoint, backbone=tiny_tower, device="cpu", dtype="float32")


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    found = []
    for index in range(20):
        path = tmp_path / f"{index}.png"
        photo(100, 90, index).save(path)
        found.append(Row(path, index % 2, ("camera", "flux")[index % 2], "r"))
    return found


def test_scores_are_those_of_the_detector(rows: list[Row], detector: Detector) -> None:
    scored = evaluate(rows, detector)
    assert list(scored) == list(CONDITIONS)
    clean = scored["clean"]
    assert clean.rows == rows
    alone = [detector.detect([np.asarray(Image.open(row.path))])[0] for row in rows]
    assert clean.scores == pytest.approx([found.score for found in alone], abs=1e-5)
    assert clean.verdicts == [found.verdict for found in alone]
    assert clean.labels.tolist() == [REAL, AI] * 10
    assert not np.allclose(scored["jpeg40"].scores, clean.scores)


def test_a_copy_does_not_depend_on_the_rest_of_the_set(rows: list[Row], detector: Detector) -> None:
    whole = evaluate(rows, detector, conditions=["crop10"])["crop10"]
    part = evaluate(rows[7:], detector, conditions=["crop10"])["crop10"]
    assert part.scores == pytest.approx(whole.scores[7:], abs=1e-5)


def test_what_cannot_be_used_is_counted(
    rows: list[Row], detector: Detector, tmp_path: Path
) -> None:
    small, broken = tmp_path / "small.png", tmp_path / "broken.png"
    photo(40, 90).save(small)  # large enough itself, half of it is not
    broken.write_bytes(rows[0].path.read_bytes()[:500])
    extra = [Row(path, REAL, "camera", "r") for path in (small, broken, tmp_path / "none.png")]
    scored = evaluate([*extra, *rows], detector, conditions=["clean", "resize50"])
    assert scored["clean"].skipped == {"unreadable": 2}
    assert scored["clean"].rows == [extra[0], *rows]
    assert scored["resize50"].skipped == {"unreadable": 2, "too_small": 1}
    assert scored["resize50"].rows == rows
    report = build_report(rows, scored, detector, data="a set", command="nsnet", seen=False)
    assert "resize50: 1 too small, 2 unreadable" in to_markdown(report)


def test_mistakes_are_one_line(detector: Detector, rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no condition 'sepia'; there are clean, "):
        evaluate(rows, detector, conditions=["sepia"])
    missing = [Row(tmp_path / "none.png", REAL, "camera", "r")]
    with pytest.raises(ModelError, match="no image could be scored under 'clean'"):
        evaluate(missing, detector, conditions=["clean"])


def test_the_report_says_what_was_judged(rows: list[Row], detector: Detector) -> None:
    scored = evaluate(rows, detector, conditions=["clean", "jpeg60"])
    report = build_report(
        rows, scored, detector, data="a set", command="nsnet evaluate x", seen=False
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["data"]["images"] == {"real": 10, "ai": 10}
    assert list(report["consistency"]) == ["jpeg60"]
    text = to_markdown(report)
    for said in (
        detector.sha256,
        "nsnet evaluate x",
        "10 photographs of 1 groups",
        "| flux |",
        "photographs: ai_generated",
    ):
        assert said in text
    header, cells = overall_table(report)
    assert [row[0] for row in cells] == ["clean", "jpeg60"]
    assert all(len(row) == len(header) for row in cells)
    auc = report["conditions"]["clean"]["overall"]["auc"]
    assert cells[0][header.index("AUC")].startswith(f"{100 * auc:.1f} (")
