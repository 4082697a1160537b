import struct
import time

import pytest
from PIL import Image, ImageCms

from model.images import icc
from model.images.icc import ToSRGB, is_srgb

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
