import io

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.degrade import Augmentation, cut_corner, degrade, equalise, rng_of, seed_of

NOTHING = Augmentation(resize=0, blur=0, noise=0, save=0, corner=0)
RESIZED = NOTHING.model_copy(update={"resize": 1.0})


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


def upright(copy: Image.Image, image: Image.Image) -> bytes:
    """A copy's pixels, flipped back where it begins otherwise than the image."""
    first = (0, 0, 8, 8)
    flipped = copy.crop(first).tobytes() != image.crop(first).tobytes()
    return (copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else copy).tobytes()


def test_degraded_copies_may_lack_their_corner_where_enough_is_left() -> None:
    image = photo(200, 160)
    cut = cut_corner(image)
    assert cut.size == (188, 150)
    always, half = (NOTHING.model_copy(update={"corner": share}) for share in (1.0, 0.5))
    for seed in range(8):
        # What is no larger than it has to be is cut no further.
        copies = [
            degrade(image, np.random.default_rng(seed), min_side=min_side, how=how)
            for how, min_side in ((always, 150), (always, 160), (NOTHING, 160))
        ]
        assert upright(copies[0], image) == cut.tobytes()
        assert upright(copies[1], image) == upright(copies[2], image) == image.tobytes()
    drawn = [degrade(image, np.random.default_rng(s), min_side=150, how=half) for s in range(40)]
    assert 10 <= sum(copy.size == cut.size for copy in drawn) <= 30


@pytest.mark.parametrize("size", [(3000, 2000), (1500, 2600), (2048, 2048)])
def test_what_would_be_larger_than_sites_show_is_resized_to_what_they_do(
    size: tuple[int, int],
) -> None:
    image = photo(*size)
    copies = [
        degrade(image, np.random.default_rng(seed), min_side=224, how=RESIZED) for seed in range(12)
    ]
    longest = [max(copy.size) for copy in copies]
    assert 1024 - 15 <= min(longest) < 1400
    assert 1700 < max(longest) <= 2048
    assert all(
        abs(max(copy.size) / min(copy.size) - max(size) / min(size)) < 0.05 for copy in copies
    )


SIDES = st.integers(20, 400)


@given(SIDES, SIDES, st.integers(16, 224), st.integers(0, 2**32))
@settings(deadline=None)
def test_no_degraded_copy_is_taken_below_the_canvas(
    width: int, height: int, min_side: int, seed: int
) -> None:
    image = Image.new("RGB", (width, height))
    how = Augmentation(save=0, blur=0, noise=0, corner=1)
    copy = degrade(image, np.random.default_rng(seed), min_side=min_side, how=how)
    assert min(copy.size) >= min(min_side, width, height)


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
