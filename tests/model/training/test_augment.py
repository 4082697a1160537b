import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from model.training.augment import degrade, equalise


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
    image = Image.fromarray(skimage.data.astronaut())
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
