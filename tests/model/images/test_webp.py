import numpy as np
import pytest
from PIL import Image

from model.errors import ImageError
from model.images import Limits, decode
from model.images.webp import versions
from tests.images import encoded, photo

LOSSY = encoded(photo(), "WEBP")
LOSSLESS = encoded(photo(), "WEBP", lossless=True)
EXTENDED = encoded(photo(), "WEBP", exif=b"Exif\0\0II*\0" + bytes(100))
MOVING = encoded(photo(), "WEBP", save_all=True, append_images=[photo(seed=1)])


@pytest.mark.parametrize("data", [LOSSY, LOSSLESS, EXTENDED, MOVING])
def test_every_size_is_held_against_the_limit(data: bytes) -> None:
    (version,) = versions(data, Limits(max_pixels=96 * 80))
    assert version is data
    with pytest.raises(ImageError) as caught:
        next(versions(data, Limits(max_pixels=96 * 80 - 1)))
    assert caught.value.code == "too_many_pixels"


def test_the_size_of_a_frame_counts_too() -> None:
    at = MOVING.index(b"ANMF") + 8 + 6
    wide = MOVING[:at] + b"\xff\xff\xff" + MOVING[at + 3 :]
    with pytest.raises(ImageError) as caught:
        decode(wide)
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("cut", [1, 50, 100, 112])
def test_a_file_cut_in_its_metadata_is_read(cut: int) -> None:
    assert b"EXIF" in EXTENDED[-130:]
    assert np.array_equal(decode(EXTENDED[:-cut]).pixels, decode(EXTENDED).pixels)


@pytest.mark.parametrize("data", [LOSSY, LOSSLESS, EXTENDED, MOVING])
def test_a_file_cut_in_its_pixels_is_not(data: bytes) -> None:
    for length in (len(data) // 3, 20, 13):
        with pytest.raises(ImageError) as caught:
            decode(data[:length])
        assert caught.value.code == "corrupt_image"


def test_a_wholly_transparent_picture_is_the_page() -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    assert (decode(encoded(image, "WEBP", lossless=True, exact=True)).pixels == 255).all()
