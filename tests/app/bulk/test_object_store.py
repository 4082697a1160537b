"""Images in S3, rows to S3."""

from typing import Any

import pytest

from app.bulk.local import local_engine
from app.bulk.parts import Parts
from app.bulk.pipeline import run_bulk
from app.bulk.sources import Place, Sources, Span
from app.bulk.store import BulkError
from app.settings import Settings
from model.images import ImageError, Limits
from tests.app.bulk.test_parts import ROW
from tests.app.bulk.test_pipeline import grey
from tests.app.bulk.test_shards import shard
from tests.fakes import FakeDetector

LIMITS = Limits(max_bytes=5000)


def test_folders_globs_and_shards_are_listed_in_order(s3: Any) -> None:
    data = shard(*((f"{n}.png", bytes([n]) * 4000) for n in range(5)))
    for name in ("b/2.jpg", "b/1.jpg", "a.jpg", "notes.txt", "empty.png"):
        s3.pipe_file(f"album/in/{name}", b"" if name == "empty.png" else name.encode())
    s3.pipe_file("album/in/", b"")  # a folder, as consoles make one
    s3.pipe_file("album/in/s.tar", data)
    s3.pipe_file("album/in/t.tar", data[:20_000])
    entries = list(Sources(["s3://album/in"]).entries(LIMITS))
    inside = [f"tar://{n}.png::s3://album/in/s.tar" for n in range(5)]
    names = [f"s3://album/in/{name}" for name in ("a.jpg", "b/1.jpg", "b/2.jpg", "empty.png")]
    assert [entry.path for entry in entries[:9]] == [*names, *inside]
    assert [entry.read() for entry in entries[:4]] == [b"a.jpg", b"b/1.jpg", b"b/2.jpg", b""]
    assert [entry.read() for entry in entries[4:9]] == [bytes([n]) * 4000 for n in range(5)]
    assert entries[-1].path == "s3://album/in/t.tar"
    done = [Span(Place(0), Place(4, 3), entries[6].span.listed)]
    left = list(Sources(["s3://album/in"]).entries(LIMITS, done))
    assert [entry.path for entry in left[:2]] == inside[3:]
    [one] = Sources(["s3://album/*/b/1*"]).entries(LIMITS)
    assert one.path == "s3://album/in/b/1.jpg"


def test_a_prefix_without_a_name_has_a_row(s3: Any) -> None:
    """Nothing here lists what is below it: images would be missing, and nobody told."""
    for key in ("in/", "in/a.jpg", "in//b.jpg"):
        s3.call_s3("put_object", Bucket="album", Key=key, Body=b"")
    for name, path in (("s3://album/in", "s3://album/in/"), ("s3://album/**", "s3://album/in//")):
        nameless, image = Sources([name]).entries(LIMITS)
        assert (nameless.path, image.path) == (path, "s3://album/in/a.jpg")
        with pytest.raises(ImageError, match="cannot be read"):
            nameless.read()
    [image] = Sources(["s3://album/in/*"]).entries(LIMITS)
    assert image.path == "s3://album/in/a.jpg"
    s3.call_s3("delete_object", Bucket="album", Key="in//b.jpg")  # `rm` cannot


def test_a_part_is_one_object_and_no_bucket_is_made(s3: Any) -> None:
    span = Span(Place(0), Place(1), "x")
    parts = Parts("s3://album/out", {"model": "m"}, {})
    other = Parts("s3://album/out", {"model": "m"}, {})
    parts.write([ROW], span)
    assert s3.ls("album/out") == ["album/out/part-0000000000-0000000000.parquet"]
    assert Parts("s3://album/out", {"model": "m"}, {}).spans == [span]
    with pytest.raises(BulkError, match="another run writes"):
        other.write([ROW], span)
    with pytest.raises(BulkError, match=r"^s3://nobody/out cannot be written to: \w+$"):
        Parts("s3://nobody/out", {"model": "m"}, {}).write([ROW], span)
    with pytest.raises(BulkError, match=r"^there is nothing at s3://nobody/in$"):
        Sources(["s3://nobody/in"])


@pytest.mark.process
def test_a_missing_object_has_a_row(s3: Any) -> None:
    s3.pipe_file("album/a.png", grey(100))
    s3.pipe_file("album/e.png", b"")
    s3.pipe_file("album/list.csv", b"path\na.png\ns3://album/none.png\ne.png\n")
    said = run_bulk(
        Sources(["s3://album/list.csv"]),
        "s3://album/out",
        Settings(decode_workers=1),
        factory=local_engine(lambda _: FakeDetector()),
    ).said
    assert said == {"uncertain": 1, "not_found": 1, "empty_file": 1}
