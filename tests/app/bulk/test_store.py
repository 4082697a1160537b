"""Names, and what may be shown of them; files wherever they lie."""

from pathlib import Path

import fsspec
import pytest

from app.bulk.store import BulkError, locate, public, read
from model.images import ImageError, Limits

LIMITS = Limits(max_bytes=2000)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/a/b@c?d.jpg", "/a/b@c?d.jpg"),
        ("s3://bucket/a?.jpg", "s3://bucket/a?.jpg"),
        ("s3://key:secret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://key:half/secret@bucket/a@b.jpg", "s3://b.jpg"),
        ("sftp://user:secret@host/a", "sftp://host/a"),
        ("sftp://host:22/a@b.jpg", "sftp://host:22/a@b.jpg"),
        ("hf://datasets/user/name@main/a.jpg", "hf://datasets/user/name@main/a.jpg"),
        ("tar://a.jpg::https://u:half/secret@host/a.tar", "tar://a.jpg::https://host/a.tar"),
        ("https://host/a.jpg?X-Amz-Signature=secret", "https://host/a.jpg"),
        ("tar://a.jpg::https://u:secret@host/a.tar?sig=secret", "tar://a.jpg::https://host/a.tar"),
    ],
)
def test_no_secret_of_a_name_is_shown(name: str, shown: str) -> None:
    assert public(name) == shown


def test_a_url_that_nothing_opens_is_one_line_without_its_secrets() -> None:
    with pytest.raises(BulkError, match=r"^nope://host/a cannot be opened: ValueError$"):
        locate("nope://user:secret@host/a")
    with pytest.raises(BulkError, match="nstall gcsfs"):  # the package that is missing
        locate("gs://bucket/a")


def test_a_file_is_read_as_far_as_shows_that_it_is_too_large(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for size, expected in ((0, 0), (1999, 1999), (2001, 2001), (9000, 2001)):
        data = bytes(range(250)) * 40
        (tmp_path / "a").write_bytes(data[:size])
        memory.pipe_file("/store/a", data[:size])
        for name in (str(tmp_path / "a"), "memory://store/a"):
            assert read(*locate(name), LIMITS) == data[:expected]


@pytest.mark.parametrize("name", ["{}/none", "memory://store/none"])
def test_what_is_not_there_is_told_apart_from_what_cannot_be_read(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError) as error:
        read(*locate(name.format(tmp_path)), LIMITS)
    assert error.value.code == "not_found"
    for path in (tmp_path, tmp_path / "a\0b"):
        with pytest.raises(ImageError) as error:
            read(*locate(str(path)), LIMITS)
        assert error.value.code == "unreadable"


@pytest.mark.parametrize(
    "name", ["simplecache::{}", "tar://a.jpg::filecache::{}", "blockcache://x"]
)
def test_no_cache_puts_images_on_a_disk(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"image")
    with pytest.raises(BulkError, match=r"such a cache would keep images on a disk$"):
        locate(name.format(f"file://{tmp_path}/a"))


def test_of_a_server_no_more_is_taken_than_shows_that_a_file_is_too_large(web: str) -> None:
    assert read(*locate(f"{web}/small"), LIMITS) == b"x"
    assert read(*locate(f"{web}/empty"), LIMITS) == b""
    for path in ("large", "packed"):
        assert read(*locate(f"{web}/{path}"), LIMITS) == bytes(2001)
    for path, code in (("none", "not_found"), ("half", "unreadable")):
        with pytest.raises(ImageError) as error:
            read(*locate(f"{web}/{path}"), LIMITS)
        assert error.value.code == code
