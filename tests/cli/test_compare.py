"""`nsnet compare` on tiny checkpoints, in this process: it knows TINY."""

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from cli.compare import compare
from cli.environment import UsageError
from model.errors import ModelError
from model.network import NSNetConfig
from tests.conftest import TINY
from tests.model.test_checkpoint import rewrite

app = typer.Typer()
app.command()(compare)


def nsnet(line: str) -> Result:
    return CliRunner().invoke(app, line.split(), env={"COLUMNS": "250"})


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8)


def set_cuts(metadata: dict[str, Any], cut: float) -> None:
    metadata["verdicts"]["thresholds"].update(real_below=cut, ai_above=cut)


@pytest.fixture
def checkpoints(checkpoint: Path, tmp_path: Path) -> str:
    """The old one calls every image real, the new one ai_generated; their scores are the same."""
    new = tmp_path / "new.safetensors"
    new.write_bytes(checkpoint.read_bytes())
    rewrite(checkpoint, metadata=partial(set_cuts, cut=1.0))
    rewrite(new, metadata=partial(set_cuts, cut=0.0))
    return f"{checkpoint} {new}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photograph, a drawing, an AI image, one that no manifest lists, and a broken file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    for name in ("photo", "art", "ai", "deep/other"):
        pixels = rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "data.csv").write_text(
        "path,label,group,kind\nalbum/photo.png,real,camera,photo\nalbum/art.png,real,shop,art\n"
        "album/ai.png,ai,gan,photo\n"
    )
    return folder


def cells(output: str) -> list[list[str]]:
    """Of each row of the tables, its cells."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in output.splitlines()
        if line.startswith("│")
    ]


def test_a_folder_of_any_layout_is_compared(
    checkpoints: str, folder: Path, tiny_tower: Path, tmp_path: Path
) -> None:
    to = tmp_path / "a" / "changes"
    done = nsnet(f"{checkpoints} {folder} --to {to} --backbone {tiny_tower} --dtype float32")
    assert done.exit_code == 0, done.output
    assert ["no label", "real", "0", "0", "4"] in cells(done.output)
    assert ["", "uncertain", "0", "0", "0"] in cells(done.output)
    assert ["no label", "4", "100.00 %", "100.00 %", "0.0000"] in cells(done.output)
    assert "left out: 1 unsupported media type" in done.output
    assert "old: tiny 0.0.1, sha256 " in done.output
    with (to / "changes.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [
        str(folder / name) for name in ("ai.png", "art.png", "deep/other.png", "photo.png")
    ]
    for line in lines:
        assert (line["label"], line["group"], line["kind"]) == ("", "", "")
        assert (line["old_verdict"], line["new_verdict"]) == ("real", "ai_generated")
        assert line["old_score"] == line["new_score"]
        assert 0 < float(line["old_score"]) < 1
        assert line["old_warnings"] == line["new_warnings"]


def test_names_that_are_no_text_are_escaped(
    checkpoints: str, folder: Path, tiny_tower: Path, tmp_path: Path
) -> None:
    (folder / "photo.png").rename(folder / "[b]\udcff.png")
    to = tmp_path / "changes"
    done = nsnet(f"{checkpoints} {folder} --to {to} --backbone {tiny_tower} --dtype float32")
    assert done.exit_code == 0, done.output
    lines = list(csv.DictReader((to / "changes.csv").read_text(encoding="utf-8").splitlines()))
    assert str(folder / r"[b]\udcff.png") in [line["file"] for line in lines]


def test_a_manifest_tells_classes_apart(
    checkpoints: str, folder: Path, tiny_tower: Path, tmp_path: Path
) -> None:
    old, new = checkpoints.split()
    manifest, to = tmp_path / "data.csv", tmp_path / "changes"
    line = f"{manifest} {folder} --to {to} --backbone {tiny_tower} --dtype float32"
    done = nsnet(f"{old} {new} {line}")
    assert done.exit_code == 0, done.output
    for name, number in (
        ("all", 4),
        ("photographs", 1),
        ("art, renders, screens", 1),
        ("AI images", 1),
        ("no label", 1),
    ):
        assert [name, "real", "0", "0", str(number)] in cells(done.output)
        assert [name, str(number), "100.00 %", "100.00 %", "0.0000"] in cells(done.output)

    def written() -> list[tuple[str, ...]]:
        with (to / "changes.csv").open(newline="") as file:
            keys = ("label", "group", "kind")
            return [tuple(line[key] for key in keys) for line in csv.DictReader(file)]

    every = [
        ("real", "camera", "photo"),
        ("real", "shop", "art"),
        ("ai", "gan", "photo"),
        ("",) * 3,
    ]
    assert written() == every
    assert nsnet(f"{old} {old} {line}").exit_code == 0
    assert written() == []  # no verdict has changed
    assert nsnet(f"{old} {old} {line} --all").exit_code == 0
    assert written() == every


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{old} {new} none.csv", "no manifest"),
        ("{old} {new} {empty}", "holds no images"),
        ("none.safetensors {new} {folder}", "no checkpoint"),
        ("{old} none.safetensors {folder}", "no checkpoint"),
        ("{old} {new} {folder} --to {old}", "no folder can be made"),
        ("{old} {new} {folder} --canvases x", "not one of all"),
        ("{old} {new} {folder} --all", "--to"),
        (f"{{old}} {{new}} {{folder}} --backbone-sha256 {'0' * 64}", "is another tower than"),
    ],
)
def test_a_mistake_is_one_clear_line(
    line: str, message: str, checkpoints: str, folder: Path, tiny_tower: Path, tmp_path: Path
) -> None:
    old, new = checkpoints.split()
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"old": old, "new": new, "folder": folder, "empty": empty}
    done = nsnet(f"{line.format(**places)} --backbone {tiny_tower}")
    assert isinstance(done.exception, ModelError | UsageError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
