"""What evidence is worth: the arithmetic, and all of it on a tiny network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faithfulness import (
    deletion,
    explained,
    orange,
    pairs_of,
    pointing,
    show,
    stands_out,
    without,
)
from model.data.manifest import AI, REAL, Row
from model.detector import Detector
from model.evidence import Evidence, Judged
from model.views.view import View
from tests.conftest import CPU
from tests.images import jpeg


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Two owners of photographs, two of generated images."""
    made = []
    for index, (label, owner) in enumerate([(REAL, "a"), (REAL, "b"), (AI, "c"), (AI, "d")]):
        path = tmp_path / f"{index}.jpg"
        path.write_bytes(jpeg(420, 360, index))
        made.append(Row(path, label, f"group-{owner}", owner))
    return made


def test_what_is_removed_leaves_no_trace_in_its_filling() -> None:
    pixels = np.full((200, 200, 3), 90, np.uint8)
    pixels[60:120, 60:120] = 250
    filled = without(pixels, (50, 50, 130, 130))
    assert filled.shape == pixels.shape
    assert np.abs(filled.astype(int) - 90).max() <= 3


def test_what_is_not_removed_stays() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    filled = without(pixels, (0, 0, 100, 100))
    assert np.array_equal(filled[:, 120:], pixels[:, 120:])
    assert not np.array_equal(filled[:80, :80], pixels[:80, :80])


def test_of_a_pair_half_is_of_each(rows: list[Row]) -> None:
    pairs = list(pairs_of(rows[:2], rows[2:], 5))
    assert len(pairs) == 5
    for pair in pairs:
        assert pair.pixels.shape[:2] == pair.generated.shape
        assert pair.generated.mean() == pytest.approx(0.5, abs=0.01)
        assert (pair.photograph.label, pair.ai.label) == (REAL, AI)


def test_pointing_counts_what_lies_in_the_generated_half(
    rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = list(pairs_of(rows[:2], rows[2:], 4))
    judged = []
    for pair in pairs:
        down, across = np.nonzero(pair.generated)
        half = (int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1)
        down, across = np.nonzero(~pair.generated)
        rest = (int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1)
        windows = (Judged(View(half, None), 3.0), Judged(View(rest, None), -3.0))
        judged.append(Evidence((), "", windows, mapped=True))
    pointing(pairs, judged)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # of all, and of those with a map: two figures each
    assert all("| 4 | 2 | 1.000 (1.000-1.000) |" in line for line in lines)


def test_figures_are_means_with_intervals_over_owners(capsys: pytest.CaptureFixture[str]) -> None:
    table = np.array([[1.0, 0.5], [1.0, 0.5], [0.0, 0.5], [0.0, 0.5]])
    show("a", "share", table[:, :1], ["x", "x", "y", "y"])
    show("", "ratio", table, ["x", "x", "y", "y"])
    share, ratio = capsys.readouterr().out.splitlines()
    assert share == "| a | share | 4 | 2 | 0.500 (0.000-1.000) |"
    assert ratio == "|  | ratio | 4 | 2 | 1.000 (0.000-2.000) |"


def test_the_whole_of_it_on_a_tiny_network(
    rows: list[Row], checkpoint: Path, tiny_tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = Detector.load(checkpoint, backbone=tiny_tower, runtime=CPU, canvases="all")
    whole = [(np.asarray(Image.open(row.path)), row) for row in rows[2:]]
    deletion(detector, "generated", whole)
    pairs = list(pairs_of(rows[:2], rows[2:], 2))
    judged = [explained(detector, pair.pixels) for pair in pairs]
    pointing(pairs, judged)
    ordinary = [(row, explained(detector, np.asarray(Image.open(row.path)))) for row in rows]
    stands_out(ordinary, pairs, judged)
    orange(ordinary, 0.0)
    printed = capsys.readouterr().out
    assert printed.count("\n") >= 10
    assert "nan" not in printed
