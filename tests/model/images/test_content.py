import numpy as np
import pytest
from PIL import Image

from model.images import decode
from model.images.content import content_range, has_content
from tests.images import encoded, photo


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (512, 512), (1500, 1100), (40, 1200)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
def test_one_colour_is_nothing(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    assert content_range(np.asarray(Image.new("RGB", size, colour))) == 0
    assert not has_content(np.asarray(Image.new("RGB", size, colour)))


@pytest.mark.parametrize("level", [0, 3, 20])
def test_the_noise_of_a_lens_cap_is_nothing(level: int) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        noise = level + rng.normal(0, 10, (512, 512, channels))
        frame = Image.fromarray(noise.clip(0, 255).astype(np.uint8).repeat(3 // channels, axis=2))
        assert not has_content(np.asarray(frame))
        assert not has_content(decode(encoded(frame, "JPEG", quality=90)).pixels)


def test_the_noise_of_a_lens_cap_in_coarse_colour_is_nothing() -> None:
    noise = 60 + np.random.default_rng(0).normal(0, 10, (1024, 1024, 3))
    frame = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    for quality in (30, 50, 75):
        assert not has_content(decode(encoded(frame, "JPEG", quality=quality)).pixels)


def test_colours_of_one_luma_are_something() -> None:
    picture = np.full((300, 300, 3), (200, 60, 60), np.uint8)
    picture[100:200] = (40, 135, 60)
    assert np.ptp(np.asarray(Image.fromarray(picture).convert("L"))) < 7
    assert has_content(picture)


def test_a_dim_gradient_a_small_shape_and_one_small_light_are_something() -> None:
    ramp = np.linspace(20, 32, 600).round().astype(np.uint8)
    assert has_content(np.broadcast_to(ramp[:, None], (600, 400))[..., None].repeat(3, 2))
    night = np.zeros((600, 800, 3), np.uint8)
    night[300:318, 400:418] = 60
    assert has_content(night)
    assert has_content(np.asarray(photo(12, 12).resize((64, 64))))


def test_it_is_of_pixels_of_every_shape() -> None:
    for shape in ((1, 1), (1, 300), (17, 33), (5000, 17)):
        assert not has_content(np.zeros((*shape, 3), np.uint8))
    assert not has_content(np.zeros((80, 96, 3), np.uint8)[::-1, ::-1])
