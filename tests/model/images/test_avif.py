import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageError
from model.images import Limits, decode
from model.images.avif import _sequence_pixels, check_coded_size
from tests.images import encoded, photo


def see_through() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(77)
    return image


PLAIN = encoded(photo(), "AVIF")
ALPHA = encoded(see_through(), "AVIF")
MOVING = encoded(see_through(), "AVIF", save_all=True, append_images=[see_through()])


def refused(data: bytes, max_pixels: int) -> str | None:
    try:
        check_coded_size(data, Limits(max_pixels=max_pixels))
    except ImageError as error:
        return error.code
    return None


@pytest.mark.parametrize("data", [PLAIN, ALPHA, MOVING])
def test_the_coded_size_is_found_in_images_and_sequences(data: bytes) -> None:
    assert refused(data, 96 * 80) is None
    assert refused(data, 96 * 80 - 1) == "too_many_pixels"


def test_a_large_image_that_is_declared_small_is_refused() -> None:
    """12,000 x 12,000 pixels declared as 200 x 200 took 300 MiB, then was scaled and scored."""
    side = 3000
    large = encoded(Image.new("RGB", (side, side)), "AVIF")
    declared = struct.pack(">II", side, side)
    assert declared in large
    lie = large.replace(declared, struct.pack(">II", 200, 200))
    with pytest.raises(ImageError) as caught:
        decode(lie, Limits(max_pixels=4_000_000))
    assert caught.value.code == "too_many_pixels"
    # Within the limit, it costs no more than an honest file may.
    assert decode(lie, Limits(max_pixels=9_000_000)).facts.width == 200


@pytest.mark.parametrize(
    ("kind", "data"),
    [(b"iloc", PLAIN), (b"iinf", PLAIN), (b"meta", PLAIN), (b"stsd", MOVING), (b"stco", MOVING)],
)
def test_what_cannot_be_found_is_not_decoded(kind: bytes, data: bytes) -> None:
    if data is MOVING:
        data = data.replace(b"meta", b"free")
    assert refused(data.replace(kind, b"free"), 10**9) == "corrupt_image"


def test_a_second_table_is_not_accepted() -> None:
    """One of them would be checked, the other decoded."""
    start = PLAIN.index(b"iloc") - 4
    size = int.from_bytes(PLAIN[start : start + 4])
    meta = PLAIN.index(b"meta") - 4
    length = int.from_bytes(PLAIN[meta : meta + 4]) + size
    twice = PLAIN[: start + size] + PLAIN[start:]
    assert refused(twice[:meta] + struct.pack(">I", length) + twice[meta + 4 :], 10**9) == (
        "corrupt_image"
    )


def test_images_that_share_their_data_are_decoded_once_each() -> None:
    """Many small boxes, or items of the same bytes, must not be walked for ages."""
    assert refused(PLAIN[:40] + struct.pack(">I4s", 8, b"free") * 100_000, 10**9) == "corrupt_image"
    at = PLAIN.index(b"mdat") + 4
    units = PLAIN[:at] + b"\x12\0" * 100_000  # of no contents
    assert refused(units, 10**9) == "corrupt_image"


def bits(*fields: tuple[int, int]) -> bytes:
    text = "".join(f"{value:0{size}b}" for value, size in fields)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


SIZE = ((7, 4), (6, 4), (199, 8), (99, 7))


def test_every_sequence_header_is_understood() -> None:
    reduced = bits((0, 3), (1, 1), (1, 1), (4, 5), *SIZE)
    plain = bits((0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (9, 5), (1, 1), *SIZE)
    timing = ((1, 1), (1, 32), (25, 32), (1, 1), (0b00101, 5))  # unary two, then two bits
    model = ((1, 1), (9, 5), (1, 32), (9, 5), (9, 5))
    point = ((0, 12), (4, 5), (1, 1), (5, 10), (6, 10), (0, 1), (1, 1), (3, 4))
    full = bits((0, 3), (0, 1), (0, 1), *timing, *model, (1, 1), (1, 5), *point, *point, *SIZE)
    for header in (reduced, plain, full):
        assert _sequence_pixels(header) == 200 * 100
        with pytest.raises(ValueError, match="negative"):
            _sequence_pixels(header[:-2])


@given(
    seed=st.sampled_from([PLAIN[:900], ALPHA[:1200], MOVING[:2000]]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=200)
def test_hostile_bytes_give_a_typed_error(seed: bytes, edits: list[tuple[float, int]]) -> None:
    data = bytearray(seed)
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    assert refused(bytes(data), 10_000) in (None, "corrupt_image", "too_many_pixels")
