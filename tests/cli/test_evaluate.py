"""`nsnet evaluate` and `nsnet calibrate` on a tiny checkpoint, in this process: it knows TINY."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from cli.evaluate import calibrate, evaluate
from model.checkpoint import Metadata, read_checkpoint
from model.detector import Detector
from model.errors import ModelError
from model.hardware import Runtime
from model.network import NSNet, NSNetConfig
from model.verdicts import Verdict
from tests.conftest import TINY

app = typer.Typer()
app.command()(evaluate)
app.command()(calibrate)


RATES = "--accused 0.2 --missed 0.2"


def nsnet(line: str) -> Result:
    return CliRunner().invoke(app, line.split(), env={"COLUMNS": "250"})


def on(tower: Path) -> str:
    return f"--backbone {tower} --dtype float32"


def float32(checkpoint: Path, tower: Path) -> Detector:
    return Detector.load(checkpoint, runtime=Runtime.resolve(dtype="float32"), backbone=tower)


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dark photographs and bright AI images; one file is broken."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for index in range(14):
        label, group = ("real", "camera") if index % 2 else ("ai", f"gan{index % 4}")
        low = 0 if index % 2 else 180
        pixels = rng.integers(low, low + 76, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png,{label},{group},val")
    (tmp_path / "broken.png").write_bytes(b"no image")
    path = tmp_path / "data.csv"
    path.write_text("\n".join([*lines, "broken.png,real,camera,val", "0.png,ai,gan0,train"]))
    return path


def test_evaluate_writes_report_scores_groups_and_plots(
    checkpoint: Path, tiny_tower: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "report"
    done = nsnet(
        f"evaluate {checkpoint} {data} --to {out} --conditions clean,jpeg40 {on(tiny_tower)}"
    )
    assert done.exit_code == 0, done.output
    assert "jpeg40" in done.output
    report = json.loads((out / "report.json").read_text())
    assert report["checkpoint"]["sha256"] == read_checkpoint(checkpoint).sha256
    assert report["data"]["images"] == {"real": 8, "made": 0, "ai": 7}
    assert report["conditions"]["clean"]["overall"]["images"] == {"real": 7, "made": 0, "ai": 7}
    assert report["conditions"]["clean"]["overall"]["skipped"] == {"unsupported_media_type": 1}
    assert report["conditions"]["clean"]["groups"].keys() == {"real", "made", "ai"}
    assert set(report["conditions"]["clean"]["groups"]["ai"]) == {"gan0", "gan2"}
    assert report["checkpoint"]["sha256"] in (out / "report.md").read_text()
    with (out / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 28
    first = lines[0]
    [detection] = float32(checkpoint, tiny_tower).detect(
        [np.asarray(Image.open(data.parent / first["file"]))]
    )
    assert float(first["score"]) == pytest.approx(detection.score, abs=1e-5)
    assert (first["label"], first["condition"]) == ("ai", "clean")
    assert first["verdict"] == detection.verdict
    with (out / "groups.csv").open(newline="") as file:
        groups = list(csv.DictReader(file))
    assert [(g["condition"], g["group"], g["label"], g["kind"], g["images"]) for g in groups] == [
        (condition, *group)
        for condition in ("clean", "jpeg40")
        for group in (("camera", "real", "", "7"), ("gan0", "ai", "", "4"), ("gan2", "ai", "", "3"))
    ]
    shares = [sum(float(g[verdict]) for verdict in Verdict) for g in groups]
    assert shares == pytest.approx([1] * 6, abs=1e-3)
    of_camera = [float(line["score"]) for line in lines if line["group"] == "camera"][:7]
    assert float(groups[0]["mean_score"]) == pytest.approx(np.mean(of_camera), abs=1e-4)
    for name in ("roc", "reliability", "groups"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 200


@pytest.fixture
def art(data: Path) -> Path:
    """Another list, without AI images: drawings, and the first list's photographs once more."""
    rng = np.random.default_rng(1)
    lines = ["path,label,group,split,kind"]
    for index in range(8):
        pixels = rng.integers(180, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data.parent / f"art-{index}.png")
        lines.append(f"art-{index}.png,real,painter,{'val' if index % 2 else 'test'},art")
    path = data.parent / "art.csv"
    path.write_text("\n".join([*lines, "1.png,real,camera,val,"]))
    return path


def test_several_lists_and_splits_are_one_set(
    checkpoint: Path, tiny_tower: Path, data: Path, art: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    line = f"evaluate {checkpoint} {data} {art} --to {out} --conditions clean {on(tiny_tower)}"
    done = nsnet(line)
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["name"] == "data.csv and art.csv, split val"
    assert report["data"]["images"] == {"real": 8, "made": 4, "ai": 7}
    assert "4 art, renders and screens of 1 groups" in (out / "report.md").read_text()
    with (out / "groups.csv").open(newline="") as file:
        groups = {(g["group"], g["kind"]): g["images"] for g in csv.DictReader(file)}
    assert groups["painter", "art"] == "4"
    assert nsnet(f"{line} --split val,test").exception is not None  # no AI image is of `test`
    data.write_text(data.read_text().replace("0.png,ai,gan0,train", "2.png,ai,gan0,test"))
    assert nsnet(f"{line} --split val,test").exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["images"] == {"real": 8, "made": 8, "ai": 7}


def test_calibrate_promises_of_pictures_that_people_made_too(
    telling: Path, tiny_tower: Path, data: Path, art: Path, tmp_path: Path
) -> None:
    """They are as bright as the AI images, so that few of either are accused."""
    cuts = {}
    for share in (0.3, 0.9):
        to = tmp_path / f"{share}.safetensors"
        promise = f"--accused 0.2 --accused-made {share} --missed 0.2"
        done = nsnet(f"calibrate {telling} {data} {art} --to {to} {promise} {on(tiny_tower)}")
        assert done.exit_code == 0, done.output
        cuts[share] = read_checkpoint(to).metadata.verdicts.thresholds.ai_above
    assert cuts[0.3] > cuts[0.9]


@pytest.fixture
def telling(network: NSNet, metadata: Metadata, checkpoint: Path, tiny_tower: Path) -> Path:
    """The checkpoint, its head turned until bright images have the higher logits."""
    from model.checkpoint import save_checkpoint

    detector = float32(checkpoint, tiny_tower)
    dark, bright = (np.full((100, 120, 3), v, np.uint8) for v in (30, 220))
    low, high = (answer.logit for answer in detector.detect([dark, bright]))
    assert low != high
    if low > high:
        with torch.no_grad():
            network.head.classify.weight.neg_()
            network.head.classify.bias.neg_()
        save_checkpoint(checkpoint, network, metadata)
    return checkpoint


def test_calibrate_keeps_the_tensors_and_holds_the_rates(
    telling: Path, tiny_tower: Path, data: Path, tmp_path: Path
) -> None:
    to = tmp_path / "new" / "calibrated.safetensors"
    done = nsnet(f"calibrate {telling} {data} --to {to} {RATES} {on(tiny_tower)}")
    assert done.exit_code == 0, done.output
    old, new = read_checkpoint(telling), read_checkpoint(to)
    assert old.tensors.keys() == new.tensors.keys()
    assert all(torch.equal(old.tensors[name], new.tensors[name]) for name in old.tensors)
    before, after = old.metadata.verdicts, new.metadata.verdicts
    assert "data.csv, split val (15 images" in after.calibrations.all.fitted_on
    assert "clean, equalised, jpeg60 copies" in after.calibrations.all.fitted_on
    assert after.calibrations.all.slope != before.calibrations.all.slope
    assert after.margins == before.margins
    assert new.metadata.training == old.metadata.training
    assert {"clean", "equalised", "jpeg60"} <= new.metadata.evaluation["cross_fitted"].keys()
    out = tmp_path / "report"
    nsnet(
        f"evaluate {to} {data} --to {out} --conditions clean,equalised --canvases all "
        f"{on(tiny_tower)}"
    )
    report = json.loads((out / "report.json").read_text())
    for name in ("clean", "equalised"):
        figures = report["conditions"][name]["overall"]
        assert figures["auc"] > 0.9
        assert figures["real_called_ai"] <= 0.2
        assert figures["verdicts"]["ai"]["real"] <= 0.2


def set_thresholds(metadata: dict[str, Any], cuts: dict[str, float]) -> None:
    metadata["verdicts"]["thresholds"].update(cuts)


def test_calibration_does_not_depend_on_the_thresholds_before(
    telling: Path, tiny_tower: Path, data: Path, tmp_path: Path
) -> None:
    """They decide which images are in doubt, and so are looked at in full: here, all must be."""
    from tests.model.test_checkpoint import rewrite

    fitted = []
    for cuts in ({"real_below": 0.0, "ai_above": 1.0}, {"real_below": 0.5, "ai_above": 0.5}):
        rewrite(telling, metadata=partial(set_thresholds, cuts=cuts))
        to = tmp_path / "calibrated.safetensors"
        nsnet(f"calibrate {telling} {data} --to {to} {RATES} {on(tiny_tower)}")
        fitted.append(read_checkpoint(to).metadata.verdicts)
    assert fitted[0] == fitted[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate {checkpoint} none.csv --to {out}", "no "),
        ("evaluate none.safetensors {data} --to {out}", "no checkpoint"),
        ("evaluate {checkpoint} {data} --to {data}", "no folder can be made"),
        ("evaluate {checkpoint} {data} --to {out} --conditions x", "no condition"),
        ("evaluate {checkpoint} {data} --to {out} --engine int8", "not one of auto"),
        ("calibrate {checkpoint} {data} --to {out} --accused 2", "accused is 2"),
        ("calibrate {checkpoint} {data} --to {out} --accused-made 2", "accused_made is 2"),
        ("calibrate {checkpoint} {data} --to {out} --held-back 0", "held_back is 0"),
    ],
)
def test_a_mistake_is_one_clear_line(
    line: str, message: str, checkpoint: Path, tiny_tower: Path, data: Path
) -> None:
    places = {"checkpoint": checkpoint, "data": data, "out": data.parent / "out"}
    done = nsnet(f"{line.format(**places)} --backbone {tiny_tower}")
    assert isinstance(done.exception, ModelError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.fixture
def fitted(checkpoint: Path, data: Path) -> Path:
    """The checkpoint, as if it had been trained on the split `val`."""
    from model.data.manifest import digest, read_dataset
    from tests.model.test_checkpoint import rewrite

    seen = digest(read_dataset(data, "val"))
    rewrite(checkpoint, metadata=lambda m: m["training"].update(data_sha256=seen))
    return checkpoint


def test_calibrating_on_the_training_images_is_refused(
    fitted: Path, tiny_tower: Path, data: Path
) -> None:
    done = nsnet(f"calibrate {fitted} {data} --to {data.parent / 'x'} {on(tiny_tower)}")
    assert isinstance(done.exception, ModelError)
    assert "trained on these images" in str(done.exception)


def test_evaluating_on_the_training_images_is_said_everywhere(
    fitted: Path, tiny_tower: Path, data: Path, tmp_path: Path
) -> None:
    said = "trained on these very images"
    for source, expected in ((data, True), (tmp_path / "other.csv", False)):
        if not expected:  # one image less
            lines = data.read_text().splitlines()
            source.write_text("\n".join(lines[:1] + lines[2:]))
        out = tmp_path / source.stem
        done = nsnet(f"evaluate {fitted} {source} --to {out} --conditions clean {on(tiny_tower)}")
        assert done.exit_code == 0, done.output
        warnings = [line for line in done.stderr.splitlines() if said in line]
        assert len(warnings) == expected
        assert json.loads((out / "report.json").read_text())["data"]["trained_on"] is expected
        assert (said in (out / "report.md").read_text()) is expected
