import io
import re
import struct

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageError
from model.images import Limits, decode
from model.images.boxes import avif_versions, heic_versions
from tests.images import encoded, photo


def see_through() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(77)
    return image


def grid() -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo(192, 160)).save(buffer, tile_size=64)
    return buffer.getvalue()


AVIF = encoded(photo(), "AVIF")
ALPHA = encoded(see_through(), "AVIF")
MOVING = encoded(see_through(), "AVIF", save_all=True, append_images=[see_through()])
HEIC = encoded(photo(), "HEIF")
GRID = grid()
PIXELS = {AVIF: 96 * 80, ALPHA: 96 * 80, MOVING: 96 * 80, HEIC: 96 * 80, GRID: 192 * 160}


def refused(data: bytes, max_pixels: int = 10**6) -> str | None:
    try:
        next(heic_versions(data, Limits(max_pixels=max_pixels)))
    except ImageError as error:
        return error.code
    return None


@pytest.mark.parametrize("data", PIXELS)
def test_the_size_of_every_image_is_held_against_the_limit(data: bytes) -> None:
    assert refused(data, PIXELS[data]) is None
    assert refused(data, PIXELS[data] - 1) == "too_many_pixels"


def with_curve(data: bytes, curve: int) -> bytes:
    """The same values, said to be of another transfer curve."""
    changed = re.sub(rb"(?s)(colrnclx...).", rb"\g<1>" + bytes((curve,)), data)
    assert changed != data or curve == 13
    return changed


@pytest.mark.parametrize("data", [AVIF, MOVING, HEIC])
def test_of_high_dynamic_range_it_is_said_that_it_is_not_applied(data: bytes) -> None:
    for curve in (16, 18):
        assert "profile_ignored" in decode(with_curve(data, curve)).facts.warnings
    for curve in (1, 13):
        assert "profile_ignored" not in decode(with_curve(data, curve)).facts.warnings
    # A map to such an image from the one that is read.
    assert (
        "profile_ignored" not in decode(with_curve(data, 16) + box(b"free", b"tmap")).facts.warnings
    )


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def meta(*boxes: bytes) -> bytes:
    return box(b"ftyp", b"heic" + bytes(8)) + box(b"meta", bytes(4) + b"".join(boxes))


def ispe(width: int, height: int) -> bytes:
    return box(b"iprp", box(b"ipco", box(b"ispe", struct.pack(">III", 0, width, height))))


def derived(kind: bytes, descriptor: bytes, *, in_item_data: bool, pieces: int = 1) -> bytes:
    """A file with one derived item, which says its size in its data."""
    info = box(b"infe", struct.pack(">IHH4sB", 2 << 24, 7, 0, kind, 0))
    extents = struct.pack(">II", 0, len(descriptor)) * pieces
    place = struct.pack(">HHHH", 7, int(in_item_data), 0, pieces) + extents
    boxes = [
        box(b"iinf", struct.pack(">IH", 0, 1) + info),
        box(b"iloc", struct.pack(">IHH", 1 << 24, 0x4400, 1) + place),
        box(b"idat", descriptor),
    ]
    if in_item_data:
        return meta(*boxes)
    boxes[1] = boxes[1].replace(extents[:4], struct.pack(">I", len(meta(*boxes)) - len(descriptor)))
    return meta(*boxes)


SMALL, HUGE = struct.pack(">HH", 64, 64), struct.pack(">HH", 60_000, 60_000)
WIDE = struct.pack(">II", 60_000, 60_000)


@pytest.mark.parametrize("in_item_data", [False, True])
def test_what_derived_images_come_to_is_held_against_the_limit(in_item_data: bool) -> None:
    for kind, head in ((b"grid", b"\0\3\3"), (b"iovl", bytes(8))):
        for flags, size, code in (
            (b"\0", SMALL, None),
            (b"\0", HUGE, "too_many_pixels"),
            (b"\1", WIDE, "too_many_pixels"),
        ):
            descriptor = (b"\0" + flags + (head[1:] if kind == b"grid" else head)) + size
            data = derived(kind, descriptor, in_item_data=in_item_data)
            assert refused(data) == code, (kind, flags)


def test_a_derived_image_in_pieces_is_refused() -> None:
    descriptor = b"\0\0\3\3" + SMALL
    assert refused(derived(b"grid", descriptor, in_item_data=True, pieces=2)) == "corrupt_image"
    two = derived(b"grid", descriptor, in_item_data=True)
    assert refused(two + box(b"meta", bytes(4) + box(b"idat", descriptor))) == "corrupt_image"


def test_a_track_is_held_against_the_limit() -> None:
    entry = box(b"av01", bytes(24) + struct.pack(">HH", 60_000, 60_000) + bytes(50))
    track = box(b"stsd", struct.pack(">II", 0, 1) + entry)
    for parent in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        track = box(parent, track)
    assert refused(meta() + track) == "too_many_pixels"


@pytest.mark.parametrize("case", ["heic_clap", "alpha"])
def test_what_is_decoded_counts_not_what_is_shown(case: str) -> None:
    size = struct.pack(">II", 96, 80)
    data = HEIC if case == "heic_clap" else ALPHA
    at = data.rindex(size)
    huge = data[:at] + struct.pack(">II", 32_000, 32_000) + data[at + 8 :]
    with pytest.raises(ImageError) as caught:
        decode(huge)
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize(
    "data",
    [
        meta() + box(b"free", b"") * 100_000,
        meta(box(b"iinf", struct.pack(">IH", 0, 65535) + box(b"infe", bytes(13)) * 100_000)),
        meta(box(b"iloc", bytes(1_000_000))),
        meta(box(b"iprp", box(b"ipma", bytes(300_000)))),
        meta(box(b"iref", bytes(100_000))),
        meta(ispe(64, 64) * 10_000),
        meta(box(b"meta", bytes(4)) * 30_000),
    ],
)
def test_files_of_far_too_many_parts_are_refused(data: bytes) -> None:
    assert refused(data) == "corrupt_image"


def test_deep_boxes_are_walked_once() -> None:
    deep = b""
    for _ in range(3000):
        deep = box(b"moov", deep)
    assert refused(deep) is None


def test_grids_are_read_and_a_thousand_tiles_are_not_too_many() -> None:
    assert decode(GRID).facts.width == 192
    entries = 1002
    tables = meta(
        box(b"iinf", struct.pack(">IH", 0, entries) + box(b"infe", bytes(13)) * entries),
        box(b"iloc", struct.pack(">IHH", 1 << 24, 0x4400, entries) + bytes(16) * entries),
        box(b"iprp", box(b"ipma", bytes(8) + bytes(6) * entries)),
        box(b"iref", bytes(4) + box(b"dimg", bytes(4) + bytes(2) * entries)),
    )
    assert refused(tables) is None


def test_an_avif_is_opened_without_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "AVIF", exif=exif)
    (version,) = avif_versions(data, Limits())
    assert b"Exif" not in version[: version.index(b"mdat")]
    (same,) = avif_versions(AVIF, Limits())
    assert same is AVIF
    assert np.array_equal(decode(AVIF).pixels, np.asarray(Image.open(io.BytesIO(AVIF))))


@given(
    seed=st.sampled_from([AVIF[:900], ALPHA[:1200], MOVING[:2000], HEIC[:900], GRID[:2000]]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=200)
def test_hostile_bytes_give_a_typed_error(seed: bytes, edits: list[tuple[float, int]]) -> None:
    data = bytearray(seed)
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    assert refused(bytes(data), 10_000) in (None, "corrupt_image", "too_many_pixels")
