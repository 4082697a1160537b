import itertools
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.images import decode, icc
from model.images.icc import ToSRGB, is_srgb
from tests.images import encoded, photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_tag(name: bytes, body: bytes) -> bytes:
    """The sRGB profile with one more tag."""
    count = int.from_bytes(SRGB[128:132])
    tags = b"".join(
        SRGB[at : at + 4]
        + struct.pack(">I", int.from_bytes(SRGB[at + 4 : at + 8]) + 12)
        + SRGB[at + 8 : at + 12]
        for at in range(132, 132 + 12 * count, 12)
    )
    rest = SRGB[132 + 12 * count :]
    place = 132 + 12 * (count + 1) + len(rest)
    tag = name + struct.pack(">II", place, len(body))
    head = struct.pack(">I", place + len(body)) + SRGB[4:128] + struct.pack(">I", count + 1)
    return head + tags + tag + rest + body


def elements(count: int) -> bytes:
    """A multi-process tag of empty elements."""
    table = struct.pack(">II", 16 + 8 * count, 12) * count
    return struct.pack(">4s4xHHI", b"mpet", 3, 3, count) + table + b"bACS" + bytes(8)


def ignored(profile: object) -> bool:
    convert = ToSRGB(profile)
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert convert(image).tobytes() == image.tobytes() or not convert.ignored
    return convert.ignored


@pytest.mark.parametrize("tag", [b"D2B0", b"D2B1", b"B2D0"])
def test_profiles_of_many_elements_never_reach_little_cms(
    tag: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = with_tag(tag, elements(40_000))
    few = with_tag(tag, elements(8))
    large = with_tag(tag, elements(1) + bytes(1 << 16))
    # Other bytes before it, by which a search that goes from match to match would step over it.
    hidden = with_tag(tag, b"mpet" + bytes(4) + elements(40_000))
    assert not ignored(few)
    with monkeypatch.context() as context:
        context.setattr(ImageCms, "ImageCmsProfile", None)
        start = time.perf_counter()
        for profile in (bomb, large, hidden, SRGB + bytes(icc.MAX_BYTES)):
            assert ignored(profile)
            assert not is_srgb(profile)
        assert time.perf_counter() - start < 1


def matrix(name: str, *, gamma: float | None = None, red: float = 0.4361) -> bytes:
    """A profile of sRGB's primaries and curve, but for what is said otherwise."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))

    def numbers(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))

    curve = b"para" + bytes(4)
    if gamma:
        curve += struct.pack(">HH", 0, 0) + numbers(gamma)
    else:
        curve += struct.pack(">HH", 3, 0) + numbers(
            2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
        )
    words = name.encode()
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words + bytes(79),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(red, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    return profile_of(tags, b"XYZ ")


def profile_of(tags: dict[bytes, bytes], space: bytes) -> bytes:
    place, table, bodies = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, body in tags.items():
        table += tag + struct.pack(">II", place + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    size = struct.pack(">I", place + len(bodies))
    head = size + bytes(4) + b"\2\x40\0\0mntrRGB " + space + bytes(12) + b"acsp"
    return (head + bytes(28) + SRGB[68:80]).ljust(128, b"\0") + table + bodies


def test_a_profile_is_srgb_by_what_it_does_and_not_by_its_name() -> None:
    for name in ("c2", "sRGB IEC61966-2.1", "uRGB"):
        assert is_srgb(matrix(name))
    for other in (
        matrix("GIMP built-in Linear sRGB", gamma=1),
        matrix("sRGB-elle-V2-g22.icc", gamma=2.2),
        matrix("Display P3 Gamut with sRGB Transfer", red=0.55),
        matrix("labl", gamma=1),
    ):
        assert not is_srgb(other)
        assert not ignored(other)


def test_a_photograph_in_linear_light_is_not_judged_too_dark() -> None:
    grey = Image.new("RGB", (64, 64), (55, 55, 55))
    for data in (
        encoded(grey, codec, icc_profile=matrix("Linear sRGB", gamma=1))
        for codec in ("PNG", "JPEG")
    ):
        assert np.abs(decode(data).pixels.astype(int) - 128).max() <= 2


def test_the_profile_of_an_ordinary_file_is_looked_into_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_srgb(matrix("once"))
    monkeypatch.setattr(ImageCms, "buildTransform", None)
    assert is_srgb(matrix("once"))


def test_no_profile_makes_nothing_of_a_picture() -> None:
    def table(*colours: tuple[int, int, int]) -> bytes:
        """Lab of 8 bits for each corner of the cube."""
        ones = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
        straight = bytes(range(256)) * 3
        corners = b"".join(bytes(colour) for colour in colours)
        return b"mft1\0\0\0\0" + bytes((3, 3, 2, 0)) + ones + straight + corners + straight

    picture = photo(12, 12).resize((96, 80))
    for black, ignoring in ((table(*[(0, 128, 128)] * 8), True), (table(*GREYS), False)):
        profile = profile_of({b"A2B0": table(*GREYS), b"A2B1": black, b"wtpt": WHITE}, b"Lab ")
        data = encoded(picture, "PNG", icc_profile=profile)
        result = decode(data)
        assert ("profile_ignored" in result.facts.warnings) == ignoring
        assert np.array_equal(result.pixels, np.asarray(picture)) == ignoring
    # What had no content before has none for its profile's sake.
    night = decode(encoded(Image.new("RGB", (64, 64)), "PNG", icc_profile=profile))
    assert night.facts.warnings == ()


GREYS = [(85 * sum(corner), 128, 128) for corner in itertools.product((0, 1), repeat=3)]
WHITE = b"XYZ \0\0\0\0" + SRGB[68:80]


@pytest.mark.parametrize("profile", [b"not a profile", "text", (1, 2), SRGB[:200]])
def test_what_is_no_profile_is_ignored(profile: object) -> None:
    assert ignored(profile)


def test_without_a_profile_nothing_is_changed() -> None:
    for nothing in (None, b"", SRGB):
        assert not ignored(nothing)
        assert is_srgb(nothing)


def test_lab_has_a_meaning_of_its_own() -> None:
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert all(value > 250 for value in ToSRGB(None)(lab).tobytes())
