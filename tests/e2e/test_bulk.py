"""`nsnet bulk` as a user runs it, with the real network: killed, gone on with, and on S3."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from model.tower.sources import fetch
from tests.app.bulk.conftest import s3, s3_endpoint, s3_environment
from tests.images import jpeg

__all__ = ["s3", "s3_endpoint", "s3_environment"]  # fixtures

ROOT = Path(__file__).parent.parent.parent
COUNT = 36

pytestmark = [pytest.mark.backbone, pytest.mark.process]


@pytest.fixture(scope="module", autouse=True)
def tower() -> None:
    fetch()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(240, 200, seed=number))
    return folder


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "bulk", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=200)
    return process.returncode, told


def parts(out: Path) -> list[str]:
    return sorted(map(str, out.glob("part-*.parquet")))


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(parts(out)).to_table().to_pylist()
    return found


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    return iter(process.stderr)


def test_a_kill_loses_no_row_and_doubles_none(album: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = (album, "--part-rows", 4, "--to")
    first = started(*command, out)
    end = time.monotonic() + 150
    while len(parts(out)) < COUNT // 4 // 3:
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait(20)
    kept = parts(out)
    assert 0 < len(kept) < COUNT // 4
    written = {path: Path(path).stat().st_mtime_ns for path in kept}

    second = started(*command, out)
    line = next(lines(second))
    second.send_signal(signal.SIGINT)
    status, told = ended(second)
    assert status == 130, line + told
    assert "run it again to go on" in told

    assert ended(started(*command, out))[0] == 0
    assert {path: Path(path).stat().st_mtime_ns for path in kept} == written
    assert [row["path"] for row in rows(out)] == sorted(map(str, album.iterdir()))
    assert all(row["error"] is None for row in rows(out))
    status, told = ended(started(*command, out))
    assert (status, told) == (0, "0 rows\n")

    assert ended(started(*command, whole, "--quiet")) == (0, "")
    for one, other in zip(rows(out), rows(whole), strict=True):
        assert one["sha256"] == other["sha256"]
        assert one["score"] == pytest.approx(other["score"], abs=0.02)  # batches differ


def test_from_s3_to_s3(album: Path, s3: Any, s3_environment: dict[str, str]) -> None:
    s3.put(f"{album}/", "album/in/", recursive=True)
    process = started("s3://album/in", "--to", "s3://album/out", "--part-rows", 20)
    status, told = ended(process)
    assert status == 0, told
    assert not any(secret in told for secret in s3_environment.values())
    table = ds.dataset("album/out", filesystem=s3).to_table()
    assert table["path"].to_pylist() == [f"s3://album/in/{n:02}.jpg" for n in range(COUNT)]
    assert table["error"].null_count == COUNT
    assert len(s3.ls("album/out", refresh=True)) == 2
