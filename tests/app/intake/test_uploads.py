"""An uploaded file, in the chunks in which it arrives."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from app.intake.uploads import Upload


@given(st.lists(st.integers(0, 200_000), max_size=8))
def test_a_file_is_what_was_sent(sizes: list[int]) -> None:
    sent = [bytes([index]) * size for index, size in enumerate(sizes)]
    upload = Upload()
    for data in sent:
        upload.add(data)
    whole = b"".join(sent)
    assert upload.digest() == hashlib.sha256(whole).hexdigest()
    assert b"".join(upload.parts()) == whole


def test_a_file_in_one_large_chunk_is_never_copied() -> None:
    data, upload = bytes(100_000), Upload("a.jpg")
    upload.add(data)
    assert next(upload.parts()) is data


def test_a_file_that_comes_in_crumbs_is_not_kept_in_crumbs() -> None:
    """At two bytes each, an object per chunk would be twenty times the file."""
    upload = Upload()
    for _ in range(200_000):
        upload.add(b"ab")
    assert len(upload._chunks) < 10
    assert b"".join(upload.parts()) == b"ab" * 200_000


def test_what_is_given_is_not_kept() -> None:
    upload = Upload()
    upload.add(bytes(100_000))
    upload.add(b"rest")
    assert len(b"".join(upload.parts())) == 100_004
    assert b"".join(upload.parts()) == b""


def test_what_is_moved_is_in_one_place() -> None:
    upload = Upload("a.jpg")
    upload.add(bytes(100_000))
    upload.add(b"rest")
    other = upload.moved()
    assert other.filename == "a.jpg"
    assert b"".join(upload.parts()) == b""
    assert len(b"".join(other.parts())) == 100_004
