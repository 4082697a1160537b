"""`nsnet bulk`, mostly in this process: it knows TINY."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.bulk import pipeline
from app.bulk.store import StuckError
from model.network import NSNetConfig
from tests.cli.conftest import Here
from tests.conftest import TINY
from tests.images import jpeg


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(jpeg(100, 120, seed=number))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_all_have_a_row_and_that_is_success(here: Here, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, shown, told = here("bulk", str(album), "--to", str(out), "--part-rows", "4")
    assert (status, shown) == (0, "")
    lines = told.splitlines()
    assert lines[0].startswith("4 images, ")
    assert lines[-1].startswith("6 rows: ")
    assert "1 unsupported_media_type" in lines[-1]
    assert str(album) not in told
    table = pq.read_table(out)
    assert table["path"].to_pylist() == sorted(map(str, album.iterdir()))
    # The same as one after another.
    _, shown, _ = here("detect", *table["path"].to_pylist()[:5])
    scores = [float(line.split()[1]) for line in shown.splitlines()]
    assert table["score"].to_pylist()[:5] == pytest.approx(scores, abs=1e-3)
    assert here("bulk", str(album), "--to", str(out), "--quiet") == (0, "", "")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}/none", "there is nothing at {}/none"),
        ("{}", "no images in {}"),
        ("nope://key:secret@x/y", "nope://x/y cannot be opened: ValueError"),
    ],
)
def test_where_nothing_can_be_listed_one_line_says_so(
    source: str, said: str, here: Here, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, shown, told = here("bulk", source.format(empty), "--to", str(tmp_path / "out"))
    assert (status, shown) == (1, "")
    assert told == f"nsnet: {said.format(empty)}\n"


def test_where_a_thread_hangs_the_process_does_not_wait_for_it(
    here: Here, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*_: object, **__: object) -> None:
        raise StuckError("it hangs")

    monkeypatch.setattr(pipeline, "run_bulk", stuck)
    monkeypatch.setattr("os._exit", sys.exit)
    status, _, told = here("bulk", str(album), "--to", str(tmp_path / "out"))
    assert (status, told) == (1, "nsnet: it hangs\n")


def test_without_the_extra_it_names_it(
    here: Here, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("app.bulk", "pyarrow"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, told = here("bulk", str(album), "--to", str(tmp_path / "out"))
    assert (status, told) == (1, "nsnet: pyarrow is not installed: pip install 'nsnet[bulk]'\n")


def test_without_ray_it_names_that_extra(
    here: Here, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "app.bulk.ray_data", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, told = here("bulk", str(album), "--to", str(tmp_path / "out"), "--engine", "ray")
    assert (status, told) == (1, "nsnet: ray is not installed: pip install 'nsnet[ray]'\n")


@pytest.mark.parametrize("option", ["--actors", "--gpus-per-actor"])
def test_what_is_for_ray_alone_is_refused_elsewhere(
    option: str, here: Here, album: Path, tmp_path: Path
) -> None:
    status, _, told = here("bulk", str(album), "--to", str(tmp_path / "out"), option, "1")
    assert (status, told) == (1, "nsnet: --actors and --gpus-per-actor are for --engine ray\n")
