"""A run around a detector in the tests' hands: every image one row, in order, whatever happens."""

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from PIL import Image

from app.bulk import local
from app.bulk.engine import EngineFactory
from app.bulk.local import local_engine
from app.bulk.pipeline import Done, run_bulk
from app.bulk.sources import Sources
from app.bulk.store import BulkError, StuckError
from app.settings import Settings
from model.detector import Look
from tests.app.bulk.test_shards import shard
from tests.app.provenance.files import sourced, with_metadata
from tests.fakes import BLURRED, DOUBTFUL, POISON, SPOILT, FakeDetector, FakePending
from tests.images import encoded

pytestmark = pytest.mark.process
SETTINGS = Settings(decode_workers=2)


def grey(level: int) -> bytes:
    return encoded(Image.new("L", (80, 80), level), "PNG")


def run(
    out: Path,
    *names: Path | str,
    fake: FakeDetector | None = None,
    told: Callable[[Done], object] = lambda _: None,
    part_rows: int = 4,
    settings: Settings = SETTINGS,
    factory: EngineFactory | None = None,
) -> Done:
    return run_bulk(
        Sources([*map(str, names)]),
        str(out),
        settings,
        part_rows=part_rows,
        told=told,
        factory=factory or local_engine(lambda _: fake or FakeDetector()),
    )


def rows(out: Path) -> list[dict[str, Any]]:
    parts = sorted(map(str, out.glob("*.parquet")))
    found: list[dict[str, Any]] = ds.dataset(parts).to_table().to_pylist() if parts else []
    return found


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(grey(100 + number))
    return folder


def names_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir())]


def test_every_image_has_a_row_in_order(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fake = FakeDetector()
    told: list[int] = []
    done = run(out, album, fake=fake, told=lambda done: told.append(done.rows))
    found = rows(out)
    assert [row["path"] for row in found] == names_of(album)
    assert [round(255 * row["score"]) for row in found] == list(range(100, 130))
    assert {row["verdict"] for row in found} == {"uncertain"}
    for path, row in zip(sorted(album.iterdir()), found, strict=True):
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["real_below"], row["ai_above"]) == (0.3, 0.7)
        assert row["model_sha256"] == fake.about.sha256
        assert (row["declares"], row["warnings"], row["error"]) == ("nothing", [], None)
    assert (done.rows, dict(done.said), done.files, done.parts) == (30, {"uncertain": 30}, 30, 8)
    assert sorted(told) == told
    assert max(fake.batches) > 1


def test_whatever_is_wrong_with_an_image_it_has_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    files = {
        "doubtful": grey(DOUBTFUL),
        "blurred": grey(BLURRED),
        "poison": grey(POISON),
        "spoilt": grey(SPOILT),
        "tiny": encoded(Image.new("L", (20, 20)), "PNG"),
        "broken": grey(100)[:60],
        "empty": b"",
        "text": b"no image",
        "large": bytes(20_000),
        "declared": with_metadata("JPEG", xmp=sourced()),
    }
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "z.tar").write_bytes(shard(("a.png", grey(10)), ("b.png", grey(250)))[:1800])
    out = tmp_path / "out"
    done = run(out, folder, settings=Settings(decode_workers=2, max_upload_bytes=15_000))
    found = {Path(row["path"]).stem: row for row in rows(out)}
    assert found["doubtful"]["verdict"] == "ai_generated"
    assert found["doubtful"]["score"] == pytest.approx(200 / 255)
    assert (found["blurred"]["verdict"], found["blurred"]["warnings"]) == (
        "uncertain",
        ["low_quality"],
    )
    assert found["declared"]["declares"] == "ai_generated"
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors == {
        "poison": "inference_failed",
        "spoilt": "inference_failed",
        "tiny": "image_too_small",
        "broken": "corrupt_image",
        "empty": "empty_file",
        "text": "unsupported_media_type",
        "large": "payload_too_large",
        "gone": "not_found",
        "z": "unreadable",
    }
    for name, row in found.items():
        assert (row["verdict"] is None) == (row["score"] is None) == (name in errors)
        whole = name not in ("large", "gone", "z")  # of others there is no digest
        assert (row["sha256"] is not None) == whole
    assert done.rows == len(rows(out)) == sum(done.said.values()) == len(files) + 4


def test_what_is_listed_again_much_later_is_scored_again(album: Path, tmp_path: Path) -> None:
    """As on a cluster, whose machines keep no results either."""
    others = tmp_path / "others"  # so many that the first is not under way any more
    others.mkdir()
    for number in range(40):
        (others / f"{number}.png").write_bytes(grey(150 + number))
    fake = FakeDetector()
    run(tmp_path / "out", album / "00.png", others, album / "00.png", fake=fake)
    assert sum(fake.batches) == len(rows(tmp_path / "out")) == 42


def test_settings_of_the_server_are_not_used(album: Path, tmp_path: Path) -> None:
    settings = Settings(
        decode_workers=1,
        provenance=False,
        audit_log=str(tmp_path / "audit"),
        api_keys_file=tmp_path / "none",
    )
    run(tmp_path / "out", album / "00.png", settings=settings)
    [row] = rows(tmp_path / "out")
    assert row["declares"] is None
    assert not (tmp_path / "audit").exists()


# --- going on -----------------------------------------------------------------------------------


class Failing(FakeDetector):
    """Its device is gone after so many images."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def submit(self, looks: Sequence[Look]) -> FakePending:
        self.left -= len(looks)
        self.broken = self.left < 0
        return super().submit(looks)


def test_a_device_that_is_gone_ends_it_and_no_row_says_so(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BulkError, match="do not answer any more"):
        run(out, album, fake=Failing(11))
    before = rows(out)
    assert len(before) < 30
    assert all(row["error"] is None for row in before)
    run(out, album)
    assert [row["path"] for row in rows(out)] == names_of(album)
    assert all(row["error"] is None for row in rows(out))


def test_a_device_that_hangs_ends_it(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WATCH_S", 0.05)
    monkeypatch.setattr(Settings, "stuck_after_s", 0.2)
    fake = FakeDetector()
    fake.gate.clear()
    with pytest.raises(StuckError, match="do not answer any more"):
        run(tmp_path / "out", album, fake=fake)
    fake.gate.set()
    assert rows(tmp_path / "out") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_that_was_begun(
    number: signal.Signals, album: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = Settings(decode_workers=1, max_batch=1)  # few are under way at once
    for copy in range(3):
        for path in sorted(album.glob("??.png")):
            (album / f"{path.stem}-{copy}.png").write_bytes(path.read_bytes())

    def told(done: Done) -> None:
        if done.rows == 6 and done.ended_by is None:
            os.kill(os.getpid(), number)

    done = run(out, album, told=told, settings=settings)
    assert done.ended_by == number
    assert 6 <= done.rows == len(rows(out)) < 120
    again = run(out, album)
    assert again.rows == 120 - done.rows
    assert sorted(row["path"] for row in rows(out)) == names_of(album)


def test_a_part_that_was_taken_away_is_made_again(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, album)
    before = rows(out)
    for number in (8, 12, 28):
        (out / f"part-{number:010}-0000000000.parquet").unlink()
    assert run(out, album, part_rows=100).rows == 10
    assert rows(out) == before
    assert len([*out.iterdir()]) == 7  # two gaps in a row are one part
    assert run(out, album).rows == 0


def test_a_shard_is_gone_on_with_in_its_middle(tmp_path: Path) -> None:
    images = [(f"{number:02}.png", grey(100 + number)) for number in range(10)]
    (tmp_path / "a.tar").write_bytes(shard(*images))
    out = tmp_path / "out"
    run(out, tmp_path / "a.tar")
    before = rows(out)
    assert [row["path"] for row in before] == [f"tar://{n}::{tmp_path}/a.tar" for n, _ in images]
    for part in sorted(out.iterdir())[1:]:
        part.unlink()
    assert run(out, tmp_path / "a.tar").rows == 6
    assert rows(out) == before


def test_another_run_in_the_same_folder_is_refused(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, album)
    other = FakeDetector()
    other.about = type(other.about)(
        **{f: getattr(other.about, f) for f in other.about.__slots__} | {"sha256": "e" * 64}
    )
    with pytest.raises(BulkError, match=r"with other model \(f{64}, now e{64}\)"):
        run(out, album, fake=other)
    with pytest.raises(BulkError, match="with other sources"):
        run(out, album, album)
    with pytest.raises(BulkError, match="with other provenance"):
        run(out, album, settings=Settings(provenance=False))


def test_what_came_before_a_list_that_ends_in_nonsense_is_written(
    album: Path, tmp_path: Path
) -> None:
    lines = ["path", *(f"album/{number:02}.png" for number in range(6)), 'x"' * 200_000]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    with pytest.raises(BulkError, match="cannot be read: Error"):
        run(out, tmp_path / "list.csv")
    assert [row["path"] for row in rows(out)] == lines[1:7]


def test_a_store_that_is_gone_is_no_fault_of_its_files(album: Path, tmp_path: Path) -> None:
    """Say a token has expired: a million rows would say so, and nobody would go on."""
    lines = ["path", *(f"album/{number:02}.png" for number in range(5)), *["nope://x"] * 109]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    with pytest.raises(BulkError, match="none of the last 100 files could be read"):
        run(out, tmp_path / "list.csv")
    assert [row["error"] for row in rows(out)] == [*[None] * 5, *["unreadable"] * 3]


def test_few_files_that_cannot_be_read_do_not_end_a_run_of_short_parts(
    album: Path, tmp_path: Path
) -> None:
    """One such file, with one row a part, ended each run where the one before had."""
    (tmp_path / "list.csv").write_text("path\nalbum/00.png\nnope://x\nalbum/01.png\nnope://x\n")
    run(tmp_path / "out", tmp_path / "list.csv", part_rows=1)
    said = [row["error"] for row in rows(tmp_path / "out")]
    assert said == [None, "unreadable", None, "unreadable"]
