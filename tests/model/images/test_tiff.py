import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.errors import ImageError
from model.images import Limits, decode
from tests.images import encoded, photo, tiff

LIMITS = Limits(max_pixels=4_000_000, min_side=64)
Entry = tuple[int, int, int, bytes]


def short(tag: int, value: int) -> Entry:
    return tag, 3, 1, struct.pack("<HH", value, 0)


def long(tag: int, value: int) -> Entry:
    return tag, 4, 1, struct.pack("<I", value)


def outcome(data: bytes) -> str:
    """The error's code, or the format."""
    try:
        return decode(data, LIMITS).facts.format
    except ImageError as error:
        return error.code


def grey(
    *entries: Entry,
    size: int = 80,
    bits: int = 8,
    photometric: int = 1,
    values: bytes = b"",
    samples: int = 1,
    compression: int = 1,
) -> bytes:
    """A TIFF of one strip.

    Args:
        entries: further tags, or others in place of these.
        size: of either side.
        bits: of a sample.
        photometric: 0 white is zero, 1 black is.
        values: of the pixels.
        samples: of a pixel.
        compression: 1 none, 8 Deflate.
    """
    pixels = values or bytes(size * size * bits * samples // 8)
    pixels = zlib.compress(pixels) if compression == 8 else pixels
    entries_of = {
        entry[0]: entry
        for entry in (
            long(256, size),
            long(257, size),
            short(258, bits),
            short(259, compression),
            short(262, photometric),
            short(277, samples),
            long(278, size),
            long(279, len(pixels)),
            *entries,
        )
    }
    entries_of[273] = long(273, 14 + 12 * (len(entries_of) + (273 not in entries_of)))
    return tiff(*(entries_of[tag] for tag in sorted(entries_of)), then=pixels)


def with_page(data: bytes, *entries: Entry) -> bytes:
    """A TIFF with one more directory after its last one."""
    at = struct.unpack_from("<I", data, 4)[0]
    while True:
        at += 2 + 12 * struct.unpack_from("<H", data, at)[0]
        if not (place := struct.unpack_from("<I", data, at)[0]):
            break
        at = place
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI4s", *entry) for entry in entries
    )
    return data[:at] + struct.pack("<I", len(data)) + data[at + 4 :] + directory + bytes(4)


def with_sub_directory(data: bytes, *entries: Entry) -> bytes:
    """A TIFF whose tag 330, there already, leads to a directory of these."""
    at = data.index(struct.pack("<HHI", 330, 4, 1)) + 8
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI4s", *entry) for entry in entries
    )
    return data[:at] + struct.pack("<I", len(data)) + data[at + 4 :] + directory + bytes(4)


def test_tiffs_of_tiles_and_strips_are_read() -> None:
    assert outcome(grey()) == "TIFF"
    assert outcome(grey(long(278, 2**32 - 1))) == "TIFF"
    assert outcome(grey(long(322, 80), long(323, 80), long(324, 14 + 12 * 13), long(325, 6400)))
    assert outcome(encoded(photo(), "TIFF", big_tiff=True)) == "TIFF"
    for compression in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate"):
        assert outcome(encoded(photo(), "TIFF", compression=compression)) == "TIFF"


def test_every_size_is_held_against_the_limit() -> None:
    assert outcome(grey(long(256, 50_000), long(257, 50_000))) == "too_many_pixels"
    assert outcome(grey(long(322, 50_000), long(323, 50_000))) == "too_many_pixels"
    # Of a tag that is given twice, Pillow takes the last one, libtiff the first.
    twice = grey(long(65_000, 0))
    for tag in (256, 257):
        data = twice.replace(
            struct.pack("<HHII", 65_000, 4, 1, 0), struct.pack("<HHII", tag, 4, 1, 2**31)
        )
        assert outcome(data) == "too_many_pixels"
    big = encoded(photo(), "TIFF", big_tiff=True)
    at = big.index(struct.pack("<HHQ", 256, 4, 1)) + 12
    assert outcome(big[:at] + struct.pack("<Q", 10**9) + big[at + 8 :]) == "too_many_pixels"


@pytest.mark.parametrize("length", [4, 8, 9, 12, 15, 30])
@pytest.mark.parametrize("order", [b"II*\0", b"MM\0*", b"II+\0"])
def test_cut_tiffs_are_left_to_pillow(order: bytes, length: int) -> None:
    assert outcome((order + b"\x08" + bytes(60))[:length]) == "corrupt_image"


CFA = short(262, 32803)
LINEAR_RAW = short(262, 34892)
SUB = long(330, 0)
RAW = {
    "reduced": grey(long(254, 1)),
    "reduced, of old": grey(short(255, 2)),
    "larger elsewhere": with_sub_directory(grey(SUB), long(256, 640), long(257, 480)),
    "sensor data elsewhere": with_sub_directory(grey(SUB), long(256, 8), long(257, 8), CFA),
    "sensor data": grey(CFA),
    "sensor data on a page": with_page(grey(), long(256, 640), CFA),
    "linear sensor data on a page": with_page(with_page(grey(), long(256, 8)), LINEAR_RAW),
    "a mask": grey(long(254, 4)),
    "linear sensor data": grey(LINEAR_RAW),
    "DNG": grey((50706, 1, 4, b"\1\4\0\0")),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + tiff()[8:],
}


@pytest.mark.parametrize("name", RAW)
def test_no_preview_is_read_in_place_of_a_cameras_raw_image(name: str) -> None:
    assert outcome(RAW[name]) == "unsupported_media_type"


def test_smaller_levels_and_further_pages_are_no_reason() -> None:
    pyramid = with_sub_directory(grey(SUB), long(254, 1), long(256, 40), long(257, 40))
    assert outcome(pyramid) == "TIFF"
    cloud_optimised = encoded(photo(), "TIFF", save_all=True, append_images=[photo(48, 40)])
    assert decode(cloud_optimised, LIMITS).facts.warnings[0] == "first_page"
    for subtype in (1, 4):
        assert outcome(with_page(grey(), long(254, subtype), long(256, 40))) == "TIFF"
    for place in (8, 2**32 - 1):  # the next is the first, or nowhere
        end = 10 + 12 * struct.unpack_from("<H", grey(), 8)[0]
        circle = grey()[:end] + struct.pack("<I", place) + grey()[end + 4 :]
        assert outcome(circle) == "TIFF"
    # A circle of directories, or one that is nowhere.
    data = grey(SUB)
    at = data.index(struct.pack("<HHI", 330, 4, 1)) + 8
    for place in (8, 2**32 - 1):
        assert outcome(data[:at] + struct.pack("<I", place) + data[at + 4 :]) == "TIFF"


@pytest.mark.parametrize(
    "data",
    [
        b"MM\0+" + bytes(100),  # Pillow would read it otherwise than libtiff
        grey((258, 3, 2, struct.pack("<HH", 16, 16)), short(338, 2), samples=2, bits=16),
        grey(short(339, 3), bits=32, photometric=2, samples=3),
        grey(short(259, 34712)),  # JPEG 2000
    ],
)
def test_valid_variants_that_are_not_read_are_not_called_damaged(data: bytes) -> None:
    assert outcome(data) == "unsupported_variant"


RAMP = np.linspace(0, 1, 80)[None].repeat(80, axis=0)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_where_white_is_zero_the_picture_is_not_its_negative(bits: int, compression: int) -> None:
    more = [short(339, 3)] if bits == 32 else []

    def values(picture: np.ndarray) -> bytes:
        if bits == 1:
            return np.packbits(picture > 0.5, axis=1).tobytes()
        scale, kind = {8: (255, "u1"), 16: (65535, "<u2"), 32: (1, "<f4")}[bits]
        return (picture * scale).round(7 if bits == 32 else 0).astype(kind).tobytes()

    def read(photometric: int, picture: np.ndarray) -> np.ndarray:
        data = grey(
            *more,
            bits=bits,
            photometric=photometric,
            values=values(picture),
            compression=compression,
        )
        return decode(data, LIMITS).pixels.astype(int)

    black_is_zero, white_is_zero = read(1, RAMP), read(0, 1 - RAMP)
    assert np.abs(black_is_zero - white_is_zero).max() <= 1
    assert black_is_zero[0, 0, 0] == 0
    assert black_is_zero[0, -1, 0] == 255


def test_fax_pages_are_black_on_white() -> None:
    page = Image.new("1", (96, 80), 1)
    page.paste(0, (10, 10, 30, 30))
    for compression in ("group3", "group4", "tiff_ccitt", None):
        pixels = decode(encoded(page, "TIFF", compression=compression), LIMITS).pixels
        assert pixels[0, 0, 0] == 255
        assert pixels[20, 20, 0] == 0


def test_12_bit_grey_uses_the_whole_range() -> None:
    white = grey(bits=12, values=b"\xff" * (80 * 80 * 3 // 2))
    assert (decode(white, LIMITS).pixels == 255).all()


def test_broken_tags_do_not_cost_the_image() -> None:
    plain = decode(grey(), LIMITS).pixels
    for broken in (
        (282, 5, 2, struct.pack("<I", 8)),  # two resolutions
        (282, 2, 4, b"abc\0"),
        (40_000, 99, 2**31, b"\xff" * 4),
        (34665, 13, 1, b"\xff" * 4),
        (270, 2, 2**30, b"\xff" * 4),
    ):
        data = grey(broken, short(283, 1), short(296, 3), short(274, 3))
        assert np.array_equal(decode(data, LIMITS).pixels, plain)
        turned = grey(broken, short(296, 3), short(274, 6), long(256, 70))
        assert decode(turned, LIMITS).pixels.shape == (70, 80, 3)


@pytest.mark.parametrize("tag", [254, 255, 256, 257, 262, 322, 330])
def test_tags_without_values_are_not_there(tag: int) -> None:
    assert outcome(grey(SUB, (tag, 4, 0, bytes(4)))) in {"TIFF", "corrupt_image"}
    sub = with_sub_directory(grey(SUB), (tag, 4, 0, bytes(4)), long(256 + (tag == 256), 9))
    assert outcome(sub) == "TIFF"


def test_a_directory_of_far_too_many_tags_is_refused() -> None:
    """Pillow reads each in Python, as often as there are directories."""
    many = [short(40_000 + tag, 1) for tag in range(1000)]
    assert outcome(grey(*many)) == "corrupt_image"
    assert outcome(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**40) + bytes(1000)) == (
        "corrupt_image"
    )
    assert outcome(grey(*many[:900])) == "TIFF"
    assert outcome(with_sub_directory(grey(SUB), *many, *many)) == "TIFF"
