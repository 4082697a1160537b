"""Listings: whole, in one order, and gone on with."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from app.bulk.sources import Entry, Place, Sources, Span
from app.bulk.store import BulkError
from model.images import ImageError, Limits
from tests.app.bulk.test_shards import shard

LIMITS = Limits(max_bytes=1000)


def entries(*names: str | Path, done: list[Span] | None = None) -> list[Entry]:
    return list(Sources([*map(str, names)]).entries(LIMITS, done or []))


def paths(*names: str | Path) -> list[str]:
    return [entry.path for entry in entries(*names)]


def fault(entry: Entry) -> str:
    with pytest.raises(ImageError) as error:
        entry.read()
    return error.value.code


def span(first: Entry, last: Entry) -> Span:
    return Span(first.span.start, last.span.stop, last.span.listed)


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


# --- folders and globs --------------------------------------------------------------------------


def test_a_folder_is_listed_in_one_order_and_its_images_alone(tmp_path: Path) -> None:
    names = ("b/2.jpg", "b/10.PNG", "a.jpg", "c/d/e.webp", "b.jpg")
    make(tmp_path, *names, "notes.txt", "list.csv", ".x.jpg", ".y/z.jpg", "c/.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "c" / "back").symlink_to("..")
    (tmp_path / "linked").symlink_to("c/d")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    found = entries(tmp_path)
    expected = ("a.jpg", "b/10.PNG", "b/2.jpg", "b.jpg", "c/d/e.webp", "gone.jpg", "linked/e.webp")
    assert [entry.path for entry in found] == [str(tmp_path / name) for name in expected]
    assert [entry.span.start for entry in found] == [Place(number) for number in range(len(found))]
    assert found[0].read() == b"a.jpg"
    assert fault(found[5]) == "not_found"


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "to").symlink_to("../b")
    (tmp_path / "b" / "to").symlink_to("../a")
    assert len(paths(tmp_path)) == 4


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.jpg"))
    path.write_bytes(b"x")
    [entry] = entries(tmp_path)
    assert entry.path == str(path)
    assert entry.read() == b"x"


def test_a_glob_takes_what_it_matches_and_lists_no_folder_it_cannot_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "2024/a/1", "2024/b/2.jpg", "2025/a/3", "2024/a/deep/4", "2024/5")
    listed = []
    ls = LocalFileSystem.ls

    def watched(self: LocalFileSystem, path: str, **options: Any) -> Any:
        listed.append(Path(path).relative_to(tmp_path))
        return ls(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", watched)
    assert paths(tmp_path / "2024/*/*") == [
        str(tmp_path / name) for name in ("2024/a/1", "2024/b/2.jpg")
    ]
    assert set(map(str, listed)) == {"2024", "2024/a", "2024/b"}
    assert len(paths(f"{tmp_path}/**/*.jpg")) == 1
    assert len(paths(f"{tmp_path}/202?/[ab]/?")) == 2


def test_a_name_that_is_there_is_no_glob(tmp_path: Path) -> None:
    make(tmp_path, "[1].jpg", "1.jpg")
    assert paths(tmp_path / "[1].jpg") == [str(tmp_path / "[1].jpg")]


def test_another_store_is_listed_by_its_urls(memory: Any) -> None:
    for name in ("/b/p/2.jpg", "/b/p/q/1.jpg", "/b/3.jpg", "/c/4.jpg", "/b/p/notes.txt"):
        memory.pipe_file(name, name.encode())
    assert paths("memory://b") == [f"memory://b/{n}" for n in ("3.jpg", "p/2.jpg", "p/q/1.jpg")]
    assert paths("memory://b/p/") == ["memory://b/p/2.jpg", "memory://b/p/q/1.jpg"]
    assert paths("memory://b/*/*") == ["memory://b/p/2.jpg", "memory://b/p/notes.txt"]
    [entry] = entries("memory://c/4.jpg")
    assert entry.read() == b"/c/4.jpg"


def test_a_folder_that_vanishes_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    ls = LocalFileSystem.ls

    def vanishing(self: LocalFileSystem, path: str, **options: Any) -> Any:
        if path == str(tmp_path / "b"):
            raise FileNotFoundError(path)
        if path == str(tmp_path / "c"):
            raise PermissionError(path)
        return ls(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", vanishing)
    first, second, third = entries(tmp_path)
    assert first.read() == b"a/1.jpg"
    assert (second.path, fault(second)) == (str(tmp_path / "b"), "not_found")
    assert (third.path, fault(third)) == (str(tmp_path / "c"), "unreadable")
    with pytest.raises(BulkError, match="cannot be listed"):
        paths(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}/none", "there is nothing at {}/none"),
        ("{}/none.tar", "there is nothing at {}/none.tar"),
        ("memory://x/none", "there is nothing at memory://x/none"),
        ("", "a source has no name"),
        ("{}/a**b", "{}/a**b is no glob: ** stands alone between slashes"),
        ("{}", "no images in {}"),
        ("{}/*.jpg", "no images in {}/*.jpg"),
    ],
)
def test_where_nothing_can_be_listed_one_line_says_so(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BulkError) as error:
        entries(name.format(tmp_path))
    assert str(error.value) == said.format(tmp_path)


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_list_names_files_in_its_order_as_often_as_it_likes(
    separator: str, tmp_path: Path, memory: Any
) -> None:
    make(tmp_path, "deep/1.jpg", "2", "odd,name.jpg")
    memory.pipe_file("/m/3.jpg", b"3")
    named = ["2", "deep/1.jpg", str(tmp_path / "2"), "memory://m/3.jpg", "none.jpg", "2"]
    rows = [f'x{separator}"{path}"' for path in [*named, "odd,name.jpg"]]
    text = "\r\n".join([f"id{separator}path", *rows[:2], "", *rows[2:], "short", f"x{separator}"])
    (tmp_path / "list.csv").write_text("\ufeff" + text, encoding="utf-8")
    found = entries(tmp_path / "list.csv")
    assert [entry.path for entry in found] == [*named, "odd,name.jpg", "", ""]
    assert [entry.read() for entry in found[:4]] == [b"2", b"deep/1.jpg", b"2", b"3"]
    assert [fault(entry) for entry in (found[4], found[-1])] == ["not_found", "not_found"]


def test_a_list_may_be_parquet_and_lie_in_a_store_and_be_matched_by_a_glob(memory: Any) -> None:
    for name in ("/m/1.jpg", "/m/2.jpg"):
        memory.pipe_file(name, name.encode())
    table = pa.table({"path": ["2.jpg", None, "memory://m/1.jpg", "nope://x"]})
    with memory.open("/m/list.parquet", "wb") as file:
        pq.write_table(table, file)
    for name in ("memory://m/list.parquet", "memory://m/*.parquet"):
        found = entries(name)
        assert [entry.path for entry in found] == ["2.jpg", "", "memory://m/1.jpg", "nope://x"]
        assert (found[0].read(), found[2].read()) == (b"/m/2.jpg", b"/m/1.jpg")
        assert fault(found[3]) == "unreadable"


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1.jpg", None], pa.large_string()),
        pa.array(["1.jpg", None], pa.string_view()),
        pa.array([b"1.jpg", None]),
        pa.array(["1.jpg", None]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_whatever_a_parquet_list_calls_text_is_text(column: Any, tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    pq.write_table(pa.table({"path": column}), tmp_path / "list.parquet")
    found = entries(tmp_path / "list.parquet")
    assert [entry.path for entry in found] == ["1.jpg", ""]
    assert found[0].read() == b"1.jpg"


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([["a.jpg"]]), pa.array([{"x": "a"}])])
def test_a_list_of_what_is_no_path_is_one_line(column: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": column}), tmp_path / "list.parquet")
    with pytest.raises(BulkError, match=r"list.parquet has no text in its column path$"):
        entries(tmp_path / "list.parquet")


def test_a_glob_of_images_reads_no_list_beside_them(tmp_path: Path) -> None:
    """Parts of a run are such lists: a folder for them that the glob leads to would be scored."""
    make(tmp_path, "1.jpg", "deep/2.jpg")
    pq.write_table(pa.table({"path": ["../1.jpg"]}), tmp_path / "deep" / "part.parquet")
    (tmp_path / "list.csv").write_text("path\n1.jpg\n")
    images = [str(tmp_path / name) for name in ("1.jpg", "deep/2.jpg")]
    assert paths(f"{tmp_path}/**") == images
    assert paths(f"{tmp_path}/*") == images[:1]
    assert paths(f"{tmp_path}/*.csv", f"{tmp_path}/**/*.parquet") == ["1.jpg", "../1.jpg"]


def test_a_list_without_lines_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "a," * (3 << 19))
    with pytest.raises(BulkError, match=r"list.csv cannot be read: Error$"):
        entries(tmp_path / "list.csv")


def test_no_password_of_a_source_is_in_its_row(web: str) -> None:
    [entry] = entries(web.replace("://", "://user:secret@") + "/small?id=5")
    assert entry.path == f"{web}/small?id=5"  # which may be all that tells two images apart
    assert entry.read() == b"x"


def test_a_list_without_paths_or_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\na.jpg,ai\n")
    pq.write_table(pa.table({"file": ["a.jpg"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(BulkError, match=rf"{name} has no column path"):
            entries(tmp_path / name)
    (tmp_path / "b.parquet").write_bytes(b"junk" * 100)
    (tmp_path / "b.csv").write_text("path\n" + 'a"' * 200_000)
    for name in ("b.csv", "b.parquet"):
        with pytest.raises(BulkError, match=rf"{name} cannot be read: \w+$"):
            entries(tmp_path / name)


# --- shards -------------------------------------------------------------------------------------

SHARD = shard(("a.jpg", b"A"), ("a.json", b"{}"), ("b/b.png", b"B"), ("c.jpg", b"C" * 2000))


def test_a_shards_images_are_entries_by_urls_that_open(tmp_path: Path) -> None:
    make(tmp_path, "0.jpg", "2.jpg")
    (tmp_path / "1.tar").write_bytes(SHARD)
    found = entries(tmp_path)
    inside = [f"tar://{name}::{tmp_path}/1.tar" for name in ("a.jpg", "b/b.png", "c.jpg")]
    assert [entry.path for entry in found[1:4]] == inside
    assert [entry.span.start for entry in found] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [entry.span.stop for entry in found] == [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    assert [entry.read() for entry in found[1:4]] == [b"A", b"B", b"C" * 1001]
    with fsspec.open(inside[1]) as file:
        assert file.read() == b"B"


def test_a_shard_that_is_cut_off_has_a_row_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, "2.jpg")
    (tmp_path / "1.tar").write_bytes(SHARD[:3000])
    first, second, cut, last = entries(tmp_path)
    assert (first.read(), second.read(), last.read()) == (b"A", b"B", b"2.jpg")
    assert (cut.path, cut.span.start, cut.span.stop) == (str(tmp_path / "1.tar"), (0, 2), (1, 0))
    assert fault(cut) == "unreadable"
    (tmp_path / "1.tar").write_bytes(SHARD[:4200])
    *_, image, cut, last = entries(tmp_path)
    assert image.path.startswith("tar://c.jpg::")
    assert (fault(image), fault(cut)) == ("unreadable", "unreadable")
    assert (image.span.start, cut.span.start) == ((0, 2), (0, 3))


@pytest.mark.parametrize("kind", ["empty", "junk", "pipe", "none"])
def test_what_is_no_shard_has_a_row(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "empty" | "junk":
            path.write_bytes(b"" if kind == "empty" else b"junk" * 1000)
    (tmp_path / "list.csv").write_text("path\na.tar\n")
    [entry] = entries(tmp_path / "list.csv")
    assert entry.path == "a.tar"
    assert fault(entry) == ("not_found" if kind in ("pipe", "none") else "unreadable")


# --- going on -----------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    make(tmp_path, "0.jpg", "2.jpg", "3.jpg")
    (tmp_path / "1.tar").write_bytes(SHARD)
    (tmp_path / "4.tar").write_bytes(SHARD)
    return tmp_path


def test_wherever_it_was_left_nothing_is_lost_or_doubled(mixed: Path) -> None:
    found = entries(mixed)
    for start in range(len(found)):
        for stop in range(start, len(found)):
            done = [span(found[start], found[stop])]
            left = [*found[:start], *found[stop + 1 :]]
            rest = entries(mixed, done=done)
            assert [e.span.start for e in rest] == [e.span.start for e in left]
            assert [e.span.listed for e in rest] == [e.span.listed for e in left]


def test_what_is_done_is_not_opened(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = entries(mixed)
    done = [span(found[0], found[2]), span(found[3], found[4])]
    monkeypatch.setattr(LocalFileSystem, "open", lambda *_, **__: pytest.fail("opened"))
    first = next(Sources([str(mixed)]).entries(LIMITS, done))
    assert first.path == str(mixed / "3.jpg")


def test_more_files_behind_those_that_are_done_are_gone_on_with(mixed: Path) -> None:
    found = entries(mixed)
    done = [span(found[0], found[-1])]
    assert entries(mixed, done=done) == []
    make(mixed, "5.jpg")
    assert [e.path for e in entries(mixed, done=done)] == [str(mixed / "5.jpg")]


@pytest.mark.parametrize("change", ["added", "removed", "all but one", "renamed"])
def test_other_files_than_before_are_refused(change: str, mixed: Path) -> None:
    found = entries(mixed)
    done = [span(found[0], found[2]), span(found[3], found[5])]
    match change:
        case "added":
            make(mixed, "00.jpg")
        case "removed":
            (mixed / "0.jpg").unlink()
        case "renamed":
            (mixed / "2.jpg").rename(mixed / "22.jpg")
        case _:
            for name in ("1.tar", "2.jpg", "3.jpg", "4.tar"):
                (mixed / name).unlink()
    with pytest.raises(BulkError, match="other files than before"):
        entries(mixed, done=done)
