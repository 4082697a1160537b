"""`nsnet bulk --engine ray` as a user runs it, with the real network: killed, and gone on with."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.app.bulk.test_shards import shard
from tests.e2e.test_bulk import ended, parts, rows, started, tower
from tests.images import jpeg

__all__ = ["tower"]  # a fixture

COUNT = 200
PART = 20

# A cluster takes its time to start, and where others use the cores, a long one.
pytestmark = [pytest.mark.backbone, pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:03}.jpg").write_bytes(jpeg(240, 200, seed=number))
    (folder / "050-bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(4000))
    (folder / "060-gone.jpg").symlink_to("nowhere")
    images = [(f"{number}.jpg", jpeg(240, 200, seed=1000 + number)) for number in range(50)]
    (folder / "070.tar").write_bytes(shard(*images))
    return folder


def killed_after(process: subprocess.Popen[str], out: Path, least: int) -> None:
    """Kill it once so many parts are there, and leave it no time for a last word."""
    end = time.monotonic() + 300
    while len(parts(out)) < least:
        assert time.monotonic() < end
        assert process.poll() is None, ended(process)
        time.sleep(0.01)
    process.kill()
    process.wait(20)


def test_rows_are_those_of_this_machine_also_after_a_kill(album: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    images = COUNT + 52
    assert ended(started(album, "--part-rows", PART, "--to", here, "--quiet")) == (0, "")

    command = (album, "--part-rows", PART, "--engine", "ray", "--to", there)
    killed_after(started(*command), there, images // PART // 3)
    kept = mtimes(there)
    assert 0 < len(kept) < images // PART
    assert ended(started(*command, "--quiet")) == (0, "")
    assert {path: at for path, at in mtimes(there).items() if path in kept} == kept

    assert len(rows(here)) == len(rows(there)) == images
    for one, other in zip(rows(here), rows(there), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        assert {**one, "score": None} == {**other, "score": None}
    errors = [row["error"] for row in rows(there) if row["error"]]
    assert errors == ["corrupt_image", "not_found"]


def mtimes(out: Path) -> dict[str, int]:
    return {path: Path(path).stat().st_mtime_ns for path in parts(out)}
