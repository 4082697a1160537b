import base64
import io

import numpy as np
import pytest
from PIL import Image

from model.evidence import COLOURS, LOG_ODDS, Evidence, Judged, contrast_of, draw, heat, uneven
from model.verdicts import Calibration
from model.views.patches import View

Box = tuple[int, int, int, int]
GRID = [(x, y, x + 40, y + 40) for y in (0, 20, 40, 60) for x in (0, 20, 40, 60)]


def judged(log_odds: float, box: Box = (0, 0, 10, 10)) -> Judged:
    return Judged(View(box, 4.0), log_odds)


def test_a_view_is_calibrated_where_the_checkpoint_can() -> None:
    calibration = Calibration(slope=2.0, intercept=1.0, fitted_on="nothing")
    known = Judged(View((0, 0, 1, 1), None), 0.5, calibration, "window")
    assert known.log_odds == 2.0
    assert known.score == pytest.approx(1 / (1 + np.exp(-2)))
    unknown = judged(0.5)
    assert (unknown.log_odds, unknown.score) == (0.5, None)


def test_the_map_averages_windows_where_they_overlap() -> None:
    values = heat([judged(4.0, (0, 0, 60, 40)), judged(-2.0, (40, 0, 100, 40))], (40, 100), (4, 10))
    assert values.shape == (4, 10)
    assert values[:, :4] == pytest.approx(4.0)
    assert values[:, 6:] == pytest.approx(-2.0)
    assert values[:, 4:6] == pytest.approx(1.0, abs=2.0)  # between the two, nearer to each's middle
    assert np.all(np.diff(values, axis=1) <= 1e-9)


def test_the_map_of_one_opinion_is_flat() -> None:
    values = heat([judged(1.5, box) for box in GRID], (100, 100), (50, 50))
    assert values == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("log_odds", "colour"),
    [(-99.0, COLOURS[0]), (-LOG_ODDS, COLOURS[0]), (LOG_ODDS, COLOURS[-1]), (99.0, COLOURS[-1])],
)
def test_the_ends_of_the_legend_are_the_ends_of_the_map(log_odds: float, colour: str) -> None:
    pixel = drawn([judged(log_odds, (0, 0, 80, 40))], 80, 40).getpixel((40, 20))
    assert isinstance(pixel, tuple)
    assert "#{:02x}{:02x}{:02x}".format(*pixel) == colour


def test_even_odds_are_nearly_white() -> None:
    pixel = drawn([judged(0.0, (0, 0, 80, 40))], 80, 40).getpixel((40, 20))
    assert isinstance(pixel, tuple)
    assert min(pixel) > 235


@pytest.mark.parametrize(("size", "shape"), [((2000, 1000), (256, 128)), ((90, 4000), (6, 256))])
def test_the_map_has_the_shape_of_the_picture(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    assert drawn([judged(1.0, (0, 0, *size))], *size).size == shape


def drawn(windows: list[Judged], width: int, height: int) -> Image.Image:
    heatmap = draw(windows, width, height)
    kind, _, data = heatmap.image.partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (heatmap.width, heatmap.height)
    return image.convert("RGB")


def test_a_region_stands_out_against_what_lies_apart_from_it() -> None:
    windows = [judged(8.0 if box == (60, 60, 100, 100) else -3.0, box) for box in GRID]
    region = uneven(windows)
    assert region is not None
    assert (region.box, region.contrast) == ((60, 60, 100, 100), 11.0)


def test_what_is_generated_throughout_is_not_uneven() -> None:
    assert uneven([judged(8.0 + i / 10, box) for i, box in enumerate(GRID)]) is None


def test_noise_among_photographs_is_not_uneven() -> None:
    windows = [judged(-0.1 if i == 5 else -12.0, box) for i, box in enumerate(GRID)]
    assert contrast_of(windows) is None


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_stands_out_among_few(count: int) -> None:
    assert contrast_of([judged(9.0 - 20 * i, GRID[5 * i]) for i in range(count)]) is None


def test_where_windows_tell_nothing_apart_there_is_no_map_and_no_region() -> None:
    windows = tuple(judged(8.0 if i == 15 else -3.0, box) for i, box in enumerate(GRID))
    seen = Evidence((), "", windows, mapped=True)
    assert seen.uneven is not None
    assert seen.heatmap(100, 100) is not None
    small = Evidence((), "", windows, mapped=False)
    assert (small.uneven, small.heatmap(100, 100)) == (None, None)
