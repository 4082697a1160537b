"""What in a picture speaks for or against AI generation: views judged alone, and a map of them.

Nothing here takes part in a score. What a map is worth is measured by `benchmarks/faithfulness.py`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.verdicts import Calibration, VerdictRules
from model.views.view import View

if TYPE_CHECKING:  # torch comes with them: another process is told of evidence without it
    from model.views.plan import Grounds, ViewPlan
    from model.views.windows import Windows

Kind = Literal["first", "window", "reduced_window"]
Heat = NDArray[np.float64]

MAPPED_WINDOWS = 1.5
"""Windows that the longer side must have room for. Of smaller pictures every window shows nearly
all: a map would say where, and be wrong as often as not."""

# Blue to orange over white, which colour-blind people tell apart; both ends are as dark.
COLOURS = ("#053061", "#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806", "#7f3b08")
LOG_ODDS = 6.0
"""Of the last colour, and less of the first: fixed, so that maps of two pictures compare."""

_MAP_SIDE = 256  # pixels, of the longer side
_SHADES = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """A view, and what the network says of it alone.

    Attributes:
        view: what it shows.
        logit: the network's output.
        calibration: the checkpoint's own for such a view; None: it has none.
        kind: which that is, by its name in `verdicts.Calibrations`.
    """

    view: View
    logit: float
    calibration: Calibration | None = None
    kind: Kind | None = None

    @property
    def log_odds(self) -> float:
        """Calibrated, where it can be; else the logit."""
        return self.logit if self.calibration is None else self.calibration.odds(self.logit)

    @property
    def score(self) -> float | None:
        """Calibrated probability of AI generation; None: it cannot be calibrated."""
        return None if self.calibration is None else self.calibration.score(self.logit)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture that stands out.

    Attributes:
        box: as a view's.
        contrast: its log-odds less the median of those of windows that lie apart from it.
    """

    box: tuple[int, int, int, int]
    contrast: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A map of a picture's log-odds, drawn.

    Attributes:
        image: a PNG, as a data URI.
        width: of the PNG, pixels.
        height: likewise.
        log_odds: of the last of the colours, and less of the first.
        colours: evenly spaced stops, as #rrggbb.
    """

    image: str
    width: int
    height: int
    log_odds: float = LOG_ODDS
    colours: tuple[str, ...] = COLOURS


@dataclass(frozen=True, slots=True)
class Evidence:
    """See the module.

    Attributes:
        views: what the score stands on, in the order of looking.
        combination: how the score was made of them.
        windows: a grid over the picture, row by row.
        mapped: whether the windows tell parts of the picture apart.
    """

    views: tuple[Judged, ...]
    combination: str
    windows: tuple[Judged, ...]
    mapped: bool

    @property
    def uneven(self) -> Region | None:
        """The region that stands out against the rest, if one does."""
        return uneven(self.windows) if self.mapped else None

    def heatmap(self, width: int, height: int) -> Heatmap | None:
        """The map as a PNG; None where the windows tell nothing apart.

        Args:
            width: of the picture, pixels.
            height: likewise.
        """
        return draw(self.windows, width, height) if self.mapped else None


def evidence_of(
    grounds: Grounds, logits: Sequence[float], plan: ViewPlan, rules: VerdictRules, *, glance: bool
) -> Evidence:
    """Judge the views of a picture that was scored.

    Args:
        grounds: with the logits of its windows.
        logits: of the plan's canvases that were looked at.
        plan: that chose the canvases.
        rules: with the calibrations.
        glance: the score stands on the first of several looks.
    """
    kinds: list[Kind | None] = [_kind_of_patches(plan)] * len(logits)
    if plan.whole:
        kinds[0] = "first"
    window = _kind_of_windows(grounds.windows)
    return Evidence(
        views=_judged(grounds.views, logits, kinds, rules),
        combination=f"{plan.combination(len(logits))}, `{'first' if glance else 'all'}`",
        windows=_judged(
            grounds.windows.views, grounds.logits, [window] * len(grounds.logits), rules
        ),
        mapped=max(grounds.windows.size) >= MAPPED_WINDOWS * plan.canvas_size,
    )


def _kind_of_patches(plan: ViewPlan) -> Kind | None:
    return "window" if plan.patches.patches_per_canvas == 1 else None


def _kind_of_windows(windows: Windows) -> Kind | None:
    if not windows.reduced:
        return "window"
    return "reduced_window" if windows.as_calibrated else None


def _judged(
    views: Sequence[View],
    logits: Sequence[float],
    kinds: Sequence[Kind | None],
    rules: VerdictRules,
) -> tuple[Judged, ...]:
    judged = []
    for view, logit, kind in zip(views, logits, kinds, strict=True):
        calibration = getattr(rules.calibrations, kind) if kind else None
        judged.append(Judged(view, logit, calibration, kind if calibration else None))
    return tuple(judged)


# --- a region that stands out -------------------------------------------------------------------

UNEVEN = 6.0
"""Log-odds by which a region must exceed the rest to stand out."""

_APART = 0.25  # share of a window that another may cover and still tell of the rest


def uneven(windows: Sequence[Judged]) -> Region | None:
    """The window that looks most generated, where it does and the rest of the picture does not.

    Args:
        windows: of one picture.
    """
    region = contrast_of(windows)
    return None if region is None or region.contrast < UNEVEN else region


def contrast_of(windows: Sequence[Judged]) -> Region | None:
    """The highest window beside the median of those that lie apart from it.

    Args:
        windows: of one picture, at least one.

    Returns:
        None where it is not above even odds, or fewer than two lie apart.
    """
    highest = max(windows, key=lambda window: window.log_odds)
    apart = [w.log_odds for w in windows if _overlap(w.view.box, highest.view.box) <= _APART]
    if highest.log_odds < 0 or len(apart) < 2:
        return None
    return Region(highest.view.box, highest.log_odds - float(np.median(apart)))


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of one box that another covers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height) / ((one[2] - one[0]) * (one[3] - one[1]))


# --- the map ------------------------------------------------------------------------------------


def heat(windows: Sequence[Judged], size: tuple[int, int], shape: tuple[int, int]) -> Heat:
    """Log-odds at each point: those of the windows that show it, averaged.

    A window counts most at its centre and next to nothing at its border, so that the map has no
    edges where the picture has none.

    Args:
        windows: that cover the picture.
        size: height and width of the picture, pixels.
        shape: height and width of the map.

    Returns:
        float64 [*shape].
    """
    total, weight = np.zeros(shape), np.zeros(shape)
    down, across = ((np.arange(n) + 0.5) * side / n for n, side in zip(shape, size, strict=True))
    for window in windows:
        left, top, right, bottom = window.view.box
        here = np.outer(_tent(down, top, bottom), _tent(across, left, right))
        total += window.log_odds * here
        weight += here
    heat: Heat = total / np.maximum(weight, 1e-9)
    return heat


def _tent(at: Heat, start: int, end: int) -> Heat:
    """1 in the middle, 0.05 at both ends, nothing beyond: float64, as `at`."""
    middle, half = (start + end) / 2, (end - start) / 2
    off = np.abs(at - middle) / half
    tent: Heat = np.where(off <= 1, 1 - 0.95 * off, 0.0)
    return tent


def draw(windows: Sequence[Judged], width: int, height: int) -> Heatmap:
    """Draw the map.

    Args:
        windows: that cover the picture.
        width: of the picture, pixels.
        height: likewise.
    """
    scale = min(1.0, _MAP_SIDE / max(width, height))
    across, down = (max(1, round(scale * side)) for side in (width, height))
    values = heat(windows, (height, width), (down, across))
    shades = np.rint((values / LOG_ODDS + 1) / 2 * (_SHADES - 1)).clip(0, _SHADES - 1)
    image = Image.fromarray(shades.astype(np.uint8))
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return Heatmap(f"data:image/png;base64,{data}", across, down)


def _palette() -> bytes:
    """RGB of every shade, between the stops in `COLOURS`."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS])
    at = np.linspace(0, len(stops) - 1, _SHADES)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)]
    return bytes(np.rint(np.stack(channels, axis=1)).astype(np.uint8))
