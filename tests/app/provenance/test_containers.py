"""What a file says of itself is found in every format, and never at any price."""

import struct
import time
import zlib

import pytest

from app.provenance.containers import Blobs, blobs
from tests.app.provenance.files import (
    camera,
    international_chunk,
    packed_chunk,
    packet,
    text_chunk,
    with_metadata,
)
from tests.images import chunk, encoded, jpeg_with, photo, png_with, segment

_LARGEST = 32 << 20  # bytes of an upload
_MOST_S = 0.25  # of a core: some 50 ms on one that has nothing else to do


def timed(data: bytes) -> Blobs:
    start = time.process_time()
    found = blobs(data)
    assert time.process_time() - start < _MOST_S
    return found


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_exif_and_xmp_are_found_in_every_format(codec: str) -> None:
    found = blobs(with_metadata(codec, exif=camera(), xmp=packet()))
    assert b"Panasonic" in found.exif
    assert found.exif[:2] in (b"II", b"MM")
    assert found.xmp.strip(b"\0") == packet()
    assert not found.c2pa


def test_xmp_is_found_in_a_gif() -> None:
    assert blobs(with_metadata("GIF", xmp=packet())).xmp == packet()


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP"])
def test_where_nothing_is_nothing_is_found(codec: str) -> None:
    found = blobs(encoded(photo(), codec))
    assert (found.xmp, found.texts, found.c2pa) == (b"", {}, False)
    assert codec == "TIFF" or not found.exif  # its tags are of the same kind


def test_every_kind_of_text_is_found() -> None:
    found = blobs(
        png_with(
            text_chunk("a", "plain"),
            packed_chunk("b", zlib.compress(b"packed")),
            international_chunk("c", "\u706f\u53f0"),
            international_chunk("d", "\u706f\u53f0 packed", packed=True),
            text_chunk("a", "a second one of the name"),
        )
    )
    assert found.texts == {
        "a": "plain",
        "b": "packed",
        "c": "\u706f\u53f0",
        "d": "\u706f\u53f0 packed",
    }


def test_texts_after_the_pixels_are_found() -> None:
    data = encoded(photo(), "PNG")
    found = blobs(data[:-12] + text_chunk("parameters", "late") + data[-12:])
    assert found.texts == {"parameters": "late"}


def test_a_comment_of_a_jpeg_is_found_behind_junk_and_padding() -> None:
    junk = segment(0xE3, bytes(9)) + b"\xff\xff\xff"
    assert blobs(jpeg_with(junk + segment(0xFE, b"a comment"))).texts == {"": "a comment"}


def test_a_text_that_unpacks_to_more_than_is_read_is_left_out() -> None:
    bomb = zlib.compress(bytes(8 << 20), 9)
    found = blobs(png_with(packed_chunk("parameters", bomb), text_chunk("b", "after it")))
    assert found.texts == {"b": "after it"}


def test_a_broken_packing_is_left_out() -> None:
    packed = zlib.compress(b"text" * 100)
    broken = [packed_chunk("a", b"nonsense")] * 9 + [packed_chunk("b", packed[:-9])]
    assert blobs(png_with(*broken, packed_chunk("c", packed))).texts == {"c": "text" * 100}


def _webp_chunks(kind: bytes) -> bytes:
    body = (kind + struct.pack("<I", 0)) * (_LARGEST // 8)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _heic(*, items: int, extents: int) -> bytes:
    """As many EXIF items as there is room for, each a megabyte of the file."""
    entries = b"".join(
        struct.pack(">I4sBBHHH4s", 20, b"infe", 2, 0, 0, item, 0, b"Exif") for item in range(items)
    )
    iinf = struct.pack(">I4sIH", 14 + len(entries), b"iinf", 0, min(items, 65535)) + entries
    place = struct.pack(">HHH", 0, 0, extents) + struct.pack(">II", 0, 1 << 20) * extents
    iloc = struct.pack(">I4sIHH", 16 + len(place) * items, b"iloc", 0, 0x4400, items) + b"".join(
        struct.pack(">H", item) + place[2:] for item in range(items)
    )
    meta = struct.pack(">I4sI", 12 + len(iinf) + len(iloc), b"meta", 0) + iinf + iloc
    return struct.pack(">I4s4sI", 16, b"ftyp", b"heic", 0) + meta + bytes(2 << 20)


HOSTILE = {
    "chunks of a PNG": b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"k\0v") * (_LARGEST // 15),
    "empty chunks": b"\x89PNG\r\n\x1a\n" + chunk(b"abCd", b"") * (_LARGEST // 12),
    "bombs in a PNG": b"\x89PNG\r\n\x1a\n"
    + packed_chunk("k", zlib.compress(bytes(16 << 20), 9)) * 2000,
    "packings that break at their ends": b"\x89PNG\r\n\x1a\n"
    + packed_chunk("k", zlib.compress(bytes((1 << 20) - 100), 9)[:-4] + b"0000") * 9000,
    "short ones": b"\x89PNG\r\n\x1a\n"
    + packed_chunk("k", zlib.compress(b"", 9)[:-4] + b"0000") * 20_000,
    "packings of nothing": b"\x89PNG\r\n\x1a\n"
    + packed_chunk("k", b"\x78\x9c" + b"\0\0\0\xff\xff" * 100_000) * 64,
    "segments of a JPEG": b"\xff\xd8\xff" + segment(0xE1, b"") * (_LARGEST // 4),
    "markers of a JPEG": b"\xff\xd8\xff" + b"\xff\x01" * (_LARGEST // 2),
    "padding of a JPEG": b"\xff\xd8" + b"\xff" * _LARGEST,
    "zeros of a JPEG": b"\xff\xd8\xff" + bytes(_LARGEST),
    "chunks of a WebP": _webp_chunks(b"EXIF"),
    "boxes": struct.pack(">I4s4sI", 16, b"ftyp", b"heic", 0)
    + struct.pack(">I4s", 8, b"meta") * (_LARGEST // 8),
    "items": _heic(items=10_000, extents=1),
    "extents": _heic(items=100, extents=2000),
    "a GIF's beginnings of XMP": b"GIF89a" + b"!\xff\x0bXMP DataXMP" * (_LARGEST // 14),
    "a TIFF's tags": b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 700, 7, 1 << 20, 8) * 70_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_file_is_long_looked_at(case: str) -> None:
    found = timed(HOSTILE[case])
    assert sum(map(len, found.texts.values())) < 4 << 20


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF"])
def test_a_file_that_ends_anywhere_is_read_to_there(codec: str) -> None:
    data = with_metadata(codec, exif=camera(), xmp=packet())
    for end in {*range(0, min(len(data), 2000), 3), *range(0, len(data), 97)}:
        blobs(data[:end])


def test_what_is_no_image_has_nothing() -> None:
    for data in (b"", b"nonsense", b"II", b"\xff\xd8\xff", b"RIFF", b"    ftyp"):
        assert not blobs(data).texts
