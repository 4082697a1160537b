import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from model.errors import ImageError
from model.images import Limits, decode
from model.images.headers import Metered
from tests.images import chunk, encoded, jpeg_with, photo, png_with, segment, tiff

LIMITS = Limits(max_pixels=4_000_000, min_side=64)


def outcome(data: bytes) -> str:
    """The error's code, or the format."""
    try:
        return decode(data, LIMITS).facts.format
    except ImageError as error:
        return error.code


def test_reads_are_metered() -> None:
    file = Metered(bytes(1000))
    file.reads_left = 2
    assert (file.read(1), file.read()) == (b"\0", bytes(999))
    with pytest.raises(ImageError) as caught:
        file.read(1)
    assert caught.value.code == "corrupt_image"


def gif_with(block: bytes) -> bytes:
    data = encoded(photo(), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 128 else 13
    return data[:at] + block + data[at:]


def bitmap(width: int, height: int, compression: int, body: bytes) -> bytes:
    """A run-length encoded BMP: 1 of bytes, 2 of half bytes."""
    bits, palette = (8, 1024) if compression == 1 else (4, 64)
    header = (40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    start = struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 54 + palette, *header)
    return start + bytes(range(64)) * (palette // 64) + body


BOMBS: dict[str, Callable[[], bytes]] = {
    "jpeg: segments": lambda: jpeg_with(segment(0xE5, b"") * 1_000_000),
    "jpeg: markers": lambda: jpeg_with(b"\xff\xd0" * 2_000_000),
    "jpeg: filling": lambda: jpeg_with(b"\xff" * 4_000_000),
    "jpeg: escaped": lambda: jpeg_with(b"\xff\0" * 2_000_000),
    "jpeg: junk": lambda: jpeg_with(segment(0xE5, b""), bytes(4_000_000)),
    "jpeg: components": lambda: jpeg_with(segment(0xC0, b"\x08" + bytes(60_000)) * 60),
    "jpeg: tables": lambda: jpeg_with(segment(0xDB, bytes(65) * 1000) * 60),
    "jpeg: exif": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 60),
    "jpeg: photoshop": lambda: jpeg_with(
        segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5000) * 60
    ),
    "png: chunks": lambda: png_with(chunk(b"abCd", b"") * 300_000),
    "png: no pixels": lambda: png_with(chunk(b"IDAT", b"") * 300_000),
    "png: profiles": lambda: png_with(
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 1000
    ),
    "png: damaged texts": lambda: png_with(
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000))[:-4] + b"junk") * 1000
    ),
    "gif: comments": lambda: gif_with(b"!\xfe" + b"\1a" * 2_000_000 + b"\0"),
    "gif: extensions": lambda: gif_with(b"!\xf0\0\0" * 1_000_000),
    "gif: junk": lambda: gif_with(b"x" * 4_000_000),
    "gif: pixels": lambda: encoded(photo(), "GIF")[:-2] + b"\1a" * 2_000_000 + b"\0;",
    "bmp: no progress": lambda: bitmap(1000, 1000, 1, bytes(8_000_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_headers_that_take_ages_to_walk_are_refused(name: str) -> None:
    """All but the last are fine images; at the largest size allowed, each took many seconds."""
    assert outcome(BOMBS[name]()) == "corrupt_image"


def test_a_file_of_too_many_pieces_is_told_so() -> None:
    """Not that it is damaged, as of every other ValueError while a plugin reads."""
    for name in ("gif: junk", "bmp: no progress"):
        with pytest.raises(ImageError, match="far too many pieces"):
            decode(BOMBS[name](), LIMITS)


def test_what_real_files_have_many_of_is_read() -> None:
    profiles = [segment(0xE2, b"FPXR\0" + bytes(60_000)) for _ in range(400)]
    assert outcome(jpeg_with(*profiles)) == "JPEG"
    assert outcome(jpeg_with(segment(0xE5, b""), b"\xff" * 10_000, bytes(10_000))) == "JPEG"
    data = encoded(photo(300, 300), "PNG")
    text = [chunk(b"tEXt", b"key%d\0value" % index) for index in range(1000)]
    assert outcome(data[:33] + b"".join(text) + data[33:]) == "PNG"
    rows = np.zeros((300, 901), np.uint8)
    rows[:, 1:] = np.asarray(photo(300, 300)).reshape(300, 900)
    pixels = zlib.compress(rows.tobytes())
    parts = [chunk(b"IDAT", pixels[at : at + 100]) for at in range(0, len(pixels), 100)]
    assert outcome(data[:33] + b"".join(parts) + chunk(b"IEND", b"")) == "PNG"
    assert outcome(bitmap(1024, 768, 1, (b"\x80a\x80b" * 4 + b"\0\0") * 768 + b"\0\1")) == "BMP"


def test_a_gif_is_read_by_the_smallest_pieces_and_stays_within_them() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1800, 2000), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "GIF", save_all=True, append_images=[photo()])
    file = Metered(data)
    allowed = file.reads_left - 50_000  # those that depend on its length
    with Image.open(file, formats=["GIF"]) as image:
        assert image.is_animated  # type: ignore[attr-defined]
        image.load()
    assert 50_000 - (file.reads_left - allowed) < allowed
    assert outcome(data) == "GIF"


@pytest.mark.parametrize("compression", [1, 2])
def test_large_run_length_encoded_bitmaps_are_refused(compression: int) -> None:
    assert outcome(bitmap(1025, 1024, compression, b"\xff\x12" * 4000)) == "too_many_pixels"


SCAN = re.compile(rb"\xff\xda")


def progressive(width: int, height: int, scans: int) -> bytes:
    data = encoded(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    starts = [found.start() for found in SCAN.finditer(data)]
    return data[:-2] + data[starts[-1] : -2] * (scans - len(starts)) + data[-2:]


@pytest.mark.parametrize(("side", "most"), [(100, 100), (2000, 100), (4000, 25), (8000, 25)])
def test_the_scans_of_a_jpeg_are_counted(side: int, most: int) -> None:
    """Some 60 kB of them stopped a decoder for seconds."""
    limits = Limits(max_pixels=64_000_000, min_side=64)
    if side <= 2000:
        assert decode(progressive(side, side, most), limits).facts.width == side
    with pytest.raises(ImageError) as caught:
        decode(progressive(side, side, most + 1), limits)
    assert caught.value.code == "corrupt_image"


def test_scans_are_not_found_in_what_follows_by_chance() -> None:
    """A "motion photo" is followed by a video."""
    video = np.random.default_rng(0).integers(0, 256, 12_000_000, dtype=np.uint8).tobytes()
    assert len(SCAN.findall(video)) > 100
    assert outcome(jpeg_with() + video) == "JPEG"


def short(tag: int, value: int) -> tuple[int, int, int, bytes]:
    return tag, 3, 1, struct.pack("<HH", value, 0)


def long(tag: int, value: int) -> tuple[int, int, int, bytes]:
    return tag, 4, 1, struct.pack("<I", value)


def grey(
    *entries: tuple[int, int, int, bytes],
    offsets: int,
    count: int,
    size: int = 200,
    pixels: bytes = bytes(40_000),
    compression: int = 1,
) -> bytes:
    """A TIFF of `count` tiles or strips, which are all the same.

    Args:
        entries: further tags.
        offsets: the tag of the offsets; that of the lengths follows it, or comes after five more.
        count: how many.
        size: of either side.
        pixels: of one.
        compression: 1 none, 8 Deflate.
    """
    head = [
        long(256, size),
        long(257, size),
        short(258, 8),
        short(259, compression),
        short(262, 1),
        short(277, 1),
    ]
    at = 14 + 12 * (len(head) + len(entries) + 2)
    lengths = 325 if offsets == 324 else 279
    if count > 1:
        places = [
            (offsets, 4, count, struct.pack("<I", at)),
            (lengths, 4, count, struct.pack("<I", at + 4 * count)),
        ]
        table = struct.pack("<I", at + 8 * count) * count + struct.pack("<I", len(pixels)) * count
    else:
        places, table = [long(offsets, at), long(lengths, len(pixels))], b""
    return tiff(*sorted([*head, *entries, *places]), then=table + pixels)


def tiles(side: int, count: int, **options: object) -> bytes:
    return grey(long(322, side), long(323, side), offsets=324, count=count, **options)  # type: ignore[arg-type]


def test_tiffs_of_tiles_and_strips_are_read() -> None:
    deflated = zlib.compress(bytes(2048 * 2048))
    assert outcome(tiles(16, 169, pixels=bytes(256))) == "TIFF"
    assert outcome(tiles(2048, 1, pixels=deflated, compression=8)) == "TIFF"
    assert outcome(grey(long(278, 1), offsets=273, count=200)) == "TIFF"
    assert outcome(grey(long(278, 2**32 - 1), offsets=273, count=1)) == "TIFF"
    assert outcome(encoded(photo(), "TIFF", big_tiff=True)) == "TIFF"


@pytest.mark.parametrize(
    "data",
    [
        tiles(4096, 1, pixels=zlib.compress(bytes(4096 * 4096)), compression=8),
        tiles(16, 200_000, pixels=bytes(256)),  # 77 s for 32 MiB
        tiles(1, 40_000, pixels=bytes(1)),
        grey(long(278, 1), offsets=273, count=100_000),
        grey(
            long(278, 1),
            (700, 4, 2_000_000, bytes(4)),
            offsets=273,
            count=200,
            pixels=bytes(8_000_000),
        ),
        grey(*(short(40_000 + index, 1) for index in range(1000)), offsets=273, count=1),
        grey((278, 5, 1, bytes(4)), offsets=273, count=1),
        struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**40) + bytes(1000),
    ],
)
def test_tiffs_of_too_large_or_too_many_parts_are_refused(data: bytes) -> None:
    assert outcome(data) == "corrupt_image"


def test_a_tiffs_size_is_checked_before_its_strips() -> None:
    data = grey(long(278, 1), offsets=273, count=100_000, size=100_000)
    assert outcome(data) == "too_many_pixels"


def test_a_bigtiff_that_pillow_reads_otherwise_than_libtiff_is_not_read() -> None:
    assert outcome(b"MM\0+" + bytes(100)) == "unsupported_media_type"


@pytest.mark.parametrize("length", [4, 8, 9, 12, 15, 30])
@pytest.mark.parametrize("order", [b"II*\0", b"MM\0*", b"II+\0"])
def test_cut_tiffs_are_left_to_pillow(order: bytes, length: int) -> None:
    assert outcome((order + b"\x08" + bytes(60))[:length]) == "corrupt_image"


def test_metadata_that_pillow_stumbles_over_do_not_cost_the_image() -> None:
    plain = outcome_pixels(jpeg_with())
    for broken in (
        segment(0xE0, b"JFIF"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0x"),
    ):
        assert np.array_equal(outcome_pixels(jpeg_with(broken)), plain)
    assert (
        outcome(jpeg_with(segment(0xEE, b"Adobe"))) == "corrupt_image"
    )  # it says what the colours are


def outcome_pixels(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels
