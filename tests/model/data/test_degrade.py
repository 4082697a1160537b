import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from model.data.degrade import degrade, equalise, rng_of, seed_of


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(256, 256), (384, 384), (1024, 1024), (4000, 3000), (300, 900)])
def test_equalised_copies_keep_to_the_stated_sizes(size: tuple[int, int]) -> None:
    for seed in range(3):
        copy = equalise(photo(*size), np.random.default_rng(seed))
        assert max(copy.size) <= 1024
        assert min(copy.size) >= 240 - 15 or max(size) * 240 / min(size) > 1024
        assert copy.mode == "RGB"


def resaving_changes(image: Image.Image) -> float:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    again = np.asarray(Image.open(buffer), dtype=float)
    return float(np.abs(again - np.asarray(image, dtype=float)).mean())


def test_equalised_copies_carry_jpeg_75_and_no_common_grid() -> None:
    """What already is a JPEG 75 hardly changes when saved so again."""
    image = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
    assert resaving_changes(equalise(image, np.random.default_rng(1))) < resaving_changes(image) / 5
    sizes = {equalise(photo(512, 512), np.random.default_rng(s)).size for s in range(8)}
    assert len(sizes) > 5


def test_degraded_copies_are_seeded_varied_and_never_below_the_canvas() -> None:
    image = photo(384, 384)
    copies = [degrade(image, np.random.default_rng(s), min_side=224) for s in range(30)]
    again = [degrade(image, np.random.default_rng(s), min_side=224) for s in range(30)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(copies, again, strict=True))
    assert min(min(copy.size) for copy in copies) >= 224
    assert len({copy.size for copy in copies}) > 10
    assert max(max(copy.size) for copy in copies) <= 384 * 1.5 + 1


def test_a_seed_is_the_names_and_stays_what_it_was() -> None:
    """Else cached features, and figures that were published, would be of other copies."""
    assert seed_of("a.png") == 9153304788650147672
    assert rng_of("a.png").integers(2**60) == 839172188924130254
    draws = {int(rng_of(*key).integers(2**60)) for key in (("a", 1, 2), ("a", 2, 1), ("b", 1, 2))}
    assert len(draws) == 3


def test_sides_that_a_codec_cannot_hold_break_no_copy() -> None:
    long = Image.new("RGB", (45_000, 8))
    for seed in range(12):
        copy = degrade(long, np.random.default_rng(seed), min_side=1)
        assert max(copy.size) <= 65_500
