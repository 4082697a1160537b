"""Parts: whole or absent, and of one run."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from app.bulk.parts import SCHEMA, Parts, Row
from app.bulk.sources import Place, Span
from app.bulk.store import BulkError

RUN = {"sources": "s" * 64, "model": "m" * 64, "tower": "t" * 64}
ROW = Row("a.jpg", "0" * 64, "real", 0.1, 0.3, 0.7, "f" * 64, ("few_patches",), "camera", None)
FAILED = Row("b.jpg", None, None, None, 0.3, 0.7, "f" * 64, (), None, "not_found")


def span(start: int, stop: int) -> Span:
    return Span(Place(start), Place(stop), f"{stop}")


def parts(out: object, **run: str) -> Parts:
    return Parts(str(out), RUN | run, {"device": "cpu"})


@pytest.fixture(params=["folder", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield str(tmp_path / "deep" / "out") if request.param == "folder" else "memory://out"
    memory.store.clear()


def test_what_was_written_is_read_and_covered(out: str) -> None:
    one = parts(out)
    assert one.spans == []
    one.write([FAILED], span(10, 11))
    one.write([ROW, FAILED], span(0, 2))
    again = parts(out)
    assert again.spans == [span(0, 2), span(10, 11)]
    fs, path = fsspec.core.url_to_fs(out)
    names = sorted(Path(name).name for name in fs.ls(path, detail=False))
    assert names == [f"part-{n:010}-0000000000.parquet" for n in (0, 10)]
    table = ds.dataset(path, filesystem=fs).to_table()
    assert table.schema.equals(SCHEMA)
    rows = [dataclasses.asdict(row) for row in (ROW, FAILED, FAILED)]
    assert table.to_pylist() == [row | {"warnings": [*row["warnings"]]} for row in rows]


def test_where_a_part_begins_another_one_ends(out: str) -> None:
    parts(out).write([ROW], span(10, 20))
    again = parts(out)
    assert again.between(Place(3), Place(11))
    assert again.between(Place(10), Place(11))
    assert not again.between(Place(3), Place(10))
    assert not again.between(Place(20), Place(30))


def test_a_part_that_does_not_say_which_tower_is_gone_on_with(out: str) -> None:
    earlier = {name: RUN[name] for name in ("sources", "model")}
    Parts(out, earlier, {}).write([ROW], span(0, 1))
    assert parts(out).spans == [span(0, 1)]


@pytest.mark.parametrize("name", ["sources", "model", "tower"])
def test_another_run_is_refused_by_one_line(name: str, out: str) -> None:
    parts(out).write([ROW], span(0, 1))
    with pytest.raises(BulkError) as error:
        parts(out, **{name: "other"})
    before = RUN[name]
    assert str(error.value) == (
        f"{out} was begun with other {name} ({before}, now other): give another --to"
    )


def test_two_runs_at_once_are_noticed(out: str) -> None:
    one, other = parts(out), parts(out)
    one.write([ROW], span(0, 1))
    with pytest.raises(BulkError, match=f"^another run writes to {out}$"):
        other.write([ROW], span(0, 1))
    other.write([ROW, ROW], span(5, 7))
    one.write([ROW, ROW], span(6, 8))
    with pytest.raises(BulkError, match="overlap"):
        parts(out)


def test_what_is_no_part_is_not_written_over(tmp_path: Path) -> None:
    part = tmp_path / "part-0000000000-0000000000.parquet"
    part.write_bytes(b"half")
    with pytest.raises(BulkError, match=f"^{part} is no part of such a run: ArrowInvalid$"):
        parts(tmp_path)
    pq.write_table(SCHEMA.empty_table(), part)
    with pytest.raises(BulkError, match="is no part of such a run"):
        parts(tmp_path)


def test_other_files_there_do_not_matter(tmp_path: Path) -> None:
    for name in ("a.jpg", "other.parquet", ".part-0000000000-0000000000.parquet.tmp"):
        (tmp_path / name).write_bytes(b"half")
    one = parts(tmp_path)
    one.write([ROW], span(0, 1))  # over what a kill has left
    assert parts(tmp_path).spans == [span(0, 1)]


def test_a_part_that_cannot_be_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BulkError, match="cannot be written to: No space left on device"):
        parts(tmp_path).write([ROW], span(0, 1))
    assert parts(tmp_path).spans == []
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    row = dataclasses.replace(ROW, path=os.fsdecode(b"/\xff.jpg"))
    parts(tmp_path).write([row], span(0, 1))
    table: Any = pq.read_table(tmp_path)
    assert table["path"].to_pylist() == ["/\\udcff.jpg"]


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BulkError, match=r"file/out cannot be listed: Not a directory$"):
        parts(tmp_path / "file" / "out")


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(BulkError, match=f"^{tmp_path} cannot be written to$"):
        parts(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {"start": [0, 1]},  # and its name says otherwise
        {"start": ["0", 0]},
        {"start": []},
        {"start": [0.0, 0]},
        {"start": [-1, 0]},
        {"stop": [0, 0]},
        {"stop": [10**6, True]},
        {"rows": 2},
        {"rows": None},
    ],
)
def test_a_part_that_says_what_none_says_covers_nothing(
    said: dict[str, Any], tmp_path: Path
) -> None:
    parts(tmp_path).write([ROW], span(0, 1))
    part = tmp_path / "part-0000000000-0000000000.parquet"
    table = pq.read_table(part)
    about = json.loads(table.schema.metadata[b"nsnet"]) | said
    pq.write_table(table.replace_schema_metadata({b"nsnet": json.dumps(about)}), part)
    with pytest.raises(BulkError, match=r"is no part of such a run: \w+$"):
        parts(tmp_path)


def test_a_copy_of_a_part_covers_nothing(tmp_path: Path) -> None:
    """Or what it is named after would never be scored."""
    parts(tmp_path).write([ROW], span(0, 1))
    part = tmp_path / "part-0000000000-0000000000.parquet"
    (tmp_path / "part-0000000007-0000000000.parquet").write_bytes(part.read_bytes())
    with pytest.raises(BulkError, match="is no part of such a run"):
        parts(tmp_path)


def test_two_runs_that_write_a_part_at_once_leave_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins to write while the other is about to put its own in place, and is killed."""
    one, other = parts(tmp_path), parts(tmp_path)
    sync = os.fsync

    class Killed(BaseException):
        pass

    def killed(_: int) -> None:
        raise Killed

    def late(file: int) -> None:
        sync(file)
        monkeypatch.setattr(os, "fsync", killed)
        with pytest.raises(Killed):
            other.write([FAILED] * 1000, span(0, 1000))

    monkeypatch.setattr(os, "fsync", late)
    one.write([ROW], span(0, 1))
    assert parts(tmp_path).spans == [span(0, 1)]
    table: Any = pq.read_table(tmp_path / "part-0000000000-0000000000.parquet")
    assert table["path"].to_pylist() == ["a.jpg"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Of somebody who knows how the file will be called, where others may write too."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_bytes(b"precious")
    (out / ".part-0000000000-0000000000.parquet.tmp").symlink_to(victim)
    parts(out).write([ROW], span(0, 1))
    assert victim.read_bytes() == b"precious"
