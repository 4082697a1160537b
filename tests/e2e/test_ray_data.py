"""Runs on Ray, around a detector in the tests' hands."""

import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from PIL import Image
from ray.exceptions import RaySystemError

from app.bulk import cluster, ray_data
from app.bulk.cluster import SHM
from app.bulk.pipeline import Done
from app.bulk.ray_data import RayOptions, _list, _Pace, ray_engine
from app.bulk.sources import Sources
from app.bulk.stages import FILES
from app.bulk.store import BulkError
from app.local import Loader
from app.settings import Settings
from model.detector import Look
from tests.app.bulk.test_pipeline import Failing, grey, rows, run
from tests.app.bulk.test_shards import shard
from tests.app.provenance.files import sourced, with_metadata
from tests.fakes import BLURRED, DOUBTFUL, POISON, SPOILT, FakeDetector, FakePending
from tests.images import encoded

SETTINGS = Settings(decode_workers=2, max_upload_bytes=15_000)


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A cluster; it is started once, for that takes its time."""
    with cluster.cluster(SETTINGS, store_bytes=200 << 20):
        yield


@pytest.fixture
def joined(running: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "cluster", lambda *_: nullcontext())


def ray_run(
    out: Path,
    *names: Path | str,
    load: Loader = lambda _: FakeDetector(),
    told: Callable[[Done], object] = lambda _: None,
    part_rows: int = 4,
    settings: Settings = SETTINGS,
    options: RayOptions | None = None,
) -> Done:
    engine = ray_engine(options, load)
    return run(out, *names, told=told, part_rows=part_rows, settings=settings, factory=engine)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """One of each kind."""
    folder = tmp_path / "album"
    folder.mkdir()
    files = {
        "blurred": grey(BLURRED),
        "broken": grey(100)[:60],
        "declared": with_metadata("JPEG", xmp=sourced()),
        "doubtful": grey(DOUBTFUL),
        "empty": b"",
        "large": bytes(20_000),
        "poison": grey(POISON),
        "spoilt": grey(SPOILT),
        "text": b"no image",
        "tiny": encoded(Image.new("L", (20, 20)), "PNG"),
    }
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
    for number in range(2 * FILES):
        (folder / f"g{number:02}.png").write_bytes(grey(100 + number))
    (folder / "gone.png").symlink_to("nowhere")
    images = [(f"{number:02}.png", grey(100 + number)) for number in range(50)]
    (folder / "s.tar").write_bytes(shard(*images))
    (folder / "t.tar").write_bytes(shard())
    (folder / "z.tar").write_bytes(shard(*images[:2])[:1800])
    return folder


def descendants() -> Iterator[Path]:
    """Of this process, in /proc."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text()
        except OSError:
            continue
        parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    for number in parents:
        at = number
        while at in parents and at != os.getpid():
            at = parents[at]
        if at == os.getpid() != number:
            yield Path("/proc", str(number))


class Watch(threading.Thread):
    """Which files are mapped to be written by this process's children, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mapped: set[str] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for process in descendants():
                try:
                    lines = (process / "maps").read_text().splitlines()
                except OSError:
                    continue
                fields = [line.split(maxsplit=5) for line in lines]
                self.mapped |= {f[5] for f in fields if len(f) == 6 and f[1].startswith("rw-s")}


@pytest.mark.process
@pytest.mark.slow
def test_no_image_touches_a_disk_where_the_store_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures fit into it: others spill, and one that never fits falls back."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "album"
    folder.mkdir()
    level = 157
    for number in range(10):
        picture = Image.new("L", (4500, 3500), level)
        (folder / f"{number}.png").write_bytes(encoded(picture, "PNG"))
    (folder / "z.png").write_bytes(encoded(Image.new("L", (7500, 6000), level), "PNG"))
    left = SHM / "nsnet-bulk-left"
    left.mkdir(exist_ok=True)
    watch = Watch()
    watch.start()
    done = ray_run(
        tmp_path / "out",
        folder,
        load=slow,
        settings=Settings(decode_workers=2),
        options=RayOptions(store_bytes=100 << 20),
    )
    watch.ended.set()
    watch.join()
    assert dict(done.said) == {"uncertain": 11}
    files = [path for path in watch.mapped if path.startswith("/")]
    assert [path for path in files if not path.startswith((f"{SHM}/", "/memfd:"))] == []
    assert [path for path in files if path.startswith(f"{SHM}/nsnet-bulk-")]  # it was needed
    *_, session = sorted(Path(tempfile.gettempdir(), "ray").glob(f"session_*_{os.getpid()}"))
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert logs
    for path in logs:
        assert bytes([level]) * 1024 not in path.read_bytes(), path
        assert str(folder).encode() not in path.read_bytes(), path
    assert not left.exists()  # of a run that was killed


def slow(_: Settings) -> FakeDetector:
    fake = FakeDetector()
    fake.before_look = lambda _: time.sleep(0.5)
    return fake


def without_scores(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name != "score"} for row in found]


@pytest.mark.process
@pytest.mark.slow
def test_what_is_asked_after_it_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster.cluster(SETTINGS, store_bytes=100 << 20):
        assert ray.get(ray.put(1)) == 1
    with pytest.raises(RaySystemError):
        ray.put(1)
    assert not ray.is_initialized()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_rows_are_those_of_this_machine(album: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run(here, album, settings=SETTINGS)
    told: list[int] = []
    done = ray_run(there, album, told=lambda done: told.append(done.rows))
    assert without_scores(rows(there)) == without_scores(rows(here))
    for one, other in zip(rows(here), rows(there), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert done.rows == len(rows(here)) > 100
    assert sorted(told) == told
    before = rows(there)
    for part in sorted(there.iterdir())[3:20:4]:
        part.unlink()
    assert ray_run(there, album).rows == 20
    assert rows(there) == before


class Dying(AbstractFileSystem):  # type: ignore[misc]
    """Files on this machine; whoever reads the one called so, dies of it, once."""

    protocol = "dying"
    name = "g40.png"
    _local = LocalFileSystem()

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._local.ls(path, detail)

    def info(self, path: str, **_: Any) -> Any:
        return self._local.info(path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> Any:
        if path.endswith(self.name):
            die_once(Path(path).parents[1] / "reader")
        return self._local.cat_file(path, start, end)


def die_once(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(FakeDetector):
    """Dies of the first image of one grey."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def submit(self, looks: Sequence[Look]) -> FakePending:
        if any(round(float(look.canvases.mean())) == 120 for look in looks):
            die_once(self._marker)
        return super().submit(looks)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_processes_that_die_cost_and_double_no_row(album: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("dying", Dying, clobber=True)
    (album / "gone.png").unlink()  # of links, it does not know what they lead to
    run(tmp_path / "here", album, settings=SETTINGS)
    marker = tmp_path / "actor"
    ray_run(tmp_path / "there", f"dying://{album}", load=lambda _: Mortal(marker))
    assert marker.exists()
    assert (tmp_path / "reader").exists()
    here, there = without_scores(rows(tmp_path / "here")), without_scores(rows(tmp_path / "there"))
    for row in there:
        row["path"] = row["path"].replace("dying://", "")
    assert there == here


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_a_listing_waits_for_the_rows(tmp_path: Path) -> None:
    """Or ten million files would be held."""
    (tmp_path / "list.csv").write_text("path\n" + "a.png\n" * FILES * 10)
    pace: Any = ray.remote(num_cpus=0)(_Pace).remote()
    listing = _list(Sources([str(tmp_path / "list.csv")]), [], pace, 3)
    seen: list[object] = []
    thread = threading.Thread(target=lambda: [*map(seen.append, listing)], daemon=True)
    thread.start()
    for behind in (0, 1, 4):
        pace.move.remote(behind)
        time.sleep(2)
        assert len(seen) == behind + 3
    pace.move.remote(100)
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_a_device_that_is_gone_ends_it_and_no_row_says_so(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BulkError, match="do not answer any more"):
        ray_run(out, *[album / f"g{number:02}.png" for number in range(60)] * 4, load=failing)
    assert all(row["error"] is None for row in rows(out))
    assert len(rows(out)) < 240


def failing(_: Settings) -> FakeDetector:
    return Failing(100)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_ends_it_with_the_rows_there_are(
    number: signal.Signals, album: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def told(done: Done) -> None:
        if done.rows == 6 and done.ended_by is None:
            os.kill(os.getpid(), number)

    done = ray_run(out, *[album] * 20, told=told)
    assert done.ended_by == number
    assert 6 <= done.rows == len(rows(out)) < 20 * 100
    entries = Sources([str(album)] * 20).entries(SETTINGS.limits(64))
    paths = [entry.path for entry in itertools.islice(entries, done.rows)]
    assert [row["path"] for row in rows(out)] == paths
