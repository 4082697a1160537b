import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.errors import ImageError
from model.images import Limits, decode
from model.images.jpeg import versions
from tests.images import encoded, jpeg, jpeg_with, photo, segment, tiff

SMOOTH = photo(12, 12).resize((160, 120), Image.Resampling.BICUBIC)
SIX = tiff((0x112, 3, 1, struct.pack("<I", 6)))


def code(data: bytes) -> str | None:
    try:
        decode(data)
    except ImageError as error:
        return error.code
    return None


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_without_its_end_a_jpeg_is_read_and_without_pixels_it_is_not(
    mode: str, progressive: bool
) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    whole = encoded(SMOOTH.convert(mode), "JPEG", exif=exif, progressive=progressive)
    for cut in (1, 2):
        assert np.array_equal(decode(whole[:-cut]).pixels, decode(whole).pixels)
    for cut in (20, len(whole) // 3):
        assert code(whole[:-cut]) == "corrupt_image"


def test_metadata_that_pillow_stumbles_over_do_not_cost_the_image() -> None:
    plain = decode(jpeg()).pixels
    for broken in (
        segment(0xE0, b"JFIF"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0x"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + b"\xb0\0\7\0\4\0\0\0" + b"\0\0\0\0"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM"),
    ):
        assert np.array_equal(decode(jpeg_with(broken)).pixels, plain)
        turned = jpeg_with(segment(0xE1, b"Exif\0\0" + SIX), broken)
        assert decode(turned).facts.width == 80
    # It says what the colours are.
    assert code(jpeg_with(segment(0xEE, b"Adobe"))) == "corrupt_image"


def test_a_profile_survives_its_broken_neighbours() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + lab)
    data = jpeg_with(segment(0xE0, b"JFIF"), profile)
    assert decode(data).facts.warnings[0] == "profile_ignored"


def test_of_several_pictures_the_first_is_read_and_that_is_said() -> None:
    several = encoded(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    picture = decode(several)
    assert np.array_equal(picture.pixels, decode(jpeg()).pixels)
    assert picture.facts.warnings == ("first_page",)


def of_scans(count: int, side: int) -> bytes:
    """A file that says so, with nothing in its scans."""
    frame = segment(0xC2, struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0))
    return b"\xff\xd8" + frame + segment(0xDA, bytes((1, 1, 0, 0, 63, 0))) * count + b"\xff\xd9"


@pytest.mark.parametrize(("side", "most"), [(64, 100), (4000, 25), (2800, 51)])
def test_a_jpeg_of_far_more_scans_than_files_have_is_refused(side: int, most: int) -> None:
    limits = Limits(max_pixels=16_000_000)
    assert next(versions(of_scans(most, side), limits))
    with pytest.raises(ImageError, match=f"{most} scans at most") as caught:
        next(versions(of_scans(most + 1, side), limits))
    assert caught.value.code == "corrupt_image"


@pytest.mark.parametrize("cut", range(6, 14))
def test_many_scans_after_a_frame_that_is_cut_give_a_typed_error(cut: int) -> None:
    assert code(of_scans(30, 8000)[:cut] + of_scans(30, 8000)[15:])
    assert code((of_scans(0, 8000)[:2] + of_scans(30, 8000)[15:])[:-cut]) == "corrupt_image"


def test_samples_and_layers_that_are_not_read() -> None:
    data = jpeg()
    at = data.index(b"\xff\xc0") + 4
    assert code(data[:at] + b"\x0c" + data[at + 1 :]) == "unsupported_variant"  # 12 bits
    assert code(data[: at + 5] + b"\x02" + data[at + 6 :]) == "unsupported_variant"
