import io

import numpy as np
import pytest
from PIL import Image

from model.data.degrade import CONDITIONS, rng_of
from tests.images import photo

SIZES = {
    "clean": (300, 260),
    "jpeg60": (300, 260),
    "jpeg40": (300, 260),
    "resize50": (150, 130),
    "blur1": (300, 260),
    "screenshot": (225, 195),
    "crop10": (270, 234),
    "corner": (282, 244),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_file_name_decides_the_copy(name: str) -> None:
    image = photo(300, 260)
    before = image.tobytes()
    first, again = (CONDITIONS[name](image, rng_of("a.png")) for _ in range(2))
    assert first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert image.tobytes() == before
    assert (first.tobytes() == before) == (name == "clean")
    if name in SIZES:
        assert first.size == SIZES[name]
    if name in ("equalised", "crop10"):  # the two that draw
        assert CONDITIONS[name](image, rng_of("b.png")).tobytes() != first.tobytes()


def test_a_cut_is_a_part_of_the_image() -> None:
    image = photo(100, 100)
    cut = np.asarray(CONDITIONS["crop10"](image, rng_of("x.png")))
    whole = np.asarray(image)
    places = [(y, x) for y in range(11) for x in range(11)]
    assert sum(np.array_equal(whole[y : y + 90, x : x + 90], cut) for y, x in places) == 1


def test_the_corner_that_is_cut_is_where_logos_are() -> None:
    image = photo(100, 50)
    cut = np.asarray(CONDITIONS["corner"](image, rng_of("x.png")))
    assert np.array_equal(cut, np.asarray(image)[:47, :94])


def test_stronger_compression_loses_more() -> None:
    image = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 256, (30, 30, 3)), np.ones((8, 8, 1))).astype(
            np.uint8
        )
    )
    original = np.asarray(image, dtype=float)

    def loss(name: str) -> float:
        copy = np.asarray(CONDITIONS[name](image, rng_of("x")), dtype=float)
        return float(np.abs(copy - original).mean())

    assert 0 < loss("jpeg60") < loss("jpeg40")


def test_jpeg_is_that_of_pillow() -> None:
    image, buffer = photo(64, 64), io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    assert CONDITIONS["jpeg60"](image, rng_of("x")).tobytes() == Image.open(buffer).tobytes()
