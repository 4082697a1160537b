import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.evidence import (
    COLOURS,
    LOG_ODDS,
    UNEVEN,
    Evidence,
    Judged,
    contrast_of,
    draw,
    evidence_of,
    heat,
    uneven,
)
from model.verdicts import Calibration, Calibrations, Margins, Thresholds, VerdictRules
from model.views.patches import PatchRule
from model.views.plan import Grounds, ViewPlan
from model.views.view import View
from model.views.windows import cut_windows

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


@pytest.mark.parametrize(("more", "stands_out"), [(-0.1, False), (0.1, True)])
def test_how_far_a_region_has_to_stand_out(more: float, stands_out: bool) -> None:
    """Under 6, lamps in dark corners of photographs did."""
    assert UNEVEN == 6
    high = UNEVEN - 3 + more
    windows = [judged(high if box == GRID[0] else -3.0, box) for box in GRID]
    assert (uneven(windows) is not None) == stands_out


def test_a_window_counts_most_in_its_middle() -> None:
    values = heat([judged(4.0, (0, 0, 60, 40)), judged(-2.0, (40, 0, 100, 40))], (40, 100), (4, 50))
    between = values[0, 20:30]
    assert np.all(np.diff(between) < 0)  # no edge where one ends
    assert abs(between[0] - 4.0) < 1.5


def test_both_ends_of_the_legend_are_as_dark_and_differ_in_blue() -> None:
    """Who cannot tell red from green can tell these."""
    lightness = []
    for colour in COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        lightness.append(0.299 * red + 0.587 * green + 0.114 * blue)
    assert lightness == sorted(lightness[:4]) + sorted(lightness[4:], reverse=True)
    assert abs(lightness[0] - lightness[-1]) < 40
    assert int(COLOURS[0][5:], 16) - int(COLOURS[-1][5:], 16) > 60


@pytest.mark.parametrize(
    ("size", "kind", "mapped"),
    [
        ((300, 330), "window", False),
        ((300, 336), "window", True),
        ((448, 500), "window", True),
        ((700, 800), "reduced_window", True),
        ((700, 9000), None, True),  # reduced further than any calibration is of
    ],
)
def test_windows_are_calibrated_as_they_were_cut(
    size: tuple[int, int], kind: str | None, mapped: bool
) -> None:
    plan = ViewPlan(whole=True, patches=PatchRule())
    calibration = Calibration(slope=1.0, intercept=0.5, fitted_on="nothing")
    rules = VerdictRules(
        calibrations=Calibrations(
            first=calibration, all=calibration, window=calibration, reduced_window=calibration
        ),
        thresholds=Thresholds(real_below=0.3, ai_above=0.7),
        margins=Margins(clearing=0.0, accusing=0.0),
    )
    windows = cut_windows(torch.zeros(1, 3, *size, dtype=torch.uint8), plan.patches, 14)
    logits = tuple(float(index) for index in range(len(windows.views)))
    grounds = Grounds((View((0, 0, 1, 1), None),), windows, logits)
    evidence = evidence_of(grounds, (1.0,), plan, rules, glance=True)
    assert {window.kind for window in evidence.windows} == {kind}
    assert evidence.windows[0].log_odds == (0.0 if kind is None else 0.5)
    assert evidence.mapped == mapped
    assert evidence.views[0].kind == "first"
