"""A grid of windows over a whole image: where in it is what the network sees?

The score stands on the whole image, resized, and on windows that entropy chose. Neither says where.
Windows of one size that cover the image, each scored alone, do.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.views.patches import PatchRule, luma, mirrored, resized, spectral_entropy, spread
from model.views.view import View

REDUCED_SIDE = 448
"""Shorter side, pixels, that a larger image is reduced to: traces are left there, and a window sees
enough of the image to be judged alone. The checkpoint's calibration `reduced_window` is of it."""

# Of a window's side: how much neighbours share at least.
_OVERLAP = 1 / 8


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows that cover an image, row by row.

    Attributes:
        canvases: uint8 [n, 3, S, S].
        views: what each shows.
        size: height and width of the image as it was cut, pixels.
        reduced: whether that is less than the image has.
    """

    canvases: Tensor
    views: tuple[View, ...]
    size: tuple[int, int]
    reduced: bool

    @property
    def as_calibrated(self) -> bool:
        """Whether the image was reduced as the images of the calibration `reduced_window` were."""
        return self.reduced and min(self.size) == REDUCED_SIDE


def cut_windows(image: Tensor, rule: PatchRule, most: int) -> Windows:
    """Cover an image with windows, reduced as far as that takes.

    Args:
        image: uint8 [1, 3, H, W], sRGB, any device.
        rule: canvas size.
        most: windows, at least one.
    """
    size = rule.canvas_size
    height, width = image.shape[-2:]
    rows, columns, scale = _layout(height, width, size, most)
    if scale < 1:
        image = resized(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    cut = (image.shape[-2], image.shape[-1])
    image = mirrored(mirrored(image, -2, size), -1, size)
    tops, lefts = (
        spread(s - size, n) for s, n in zip(image.shape[-2:], (rows, columns), strict=True)
    )
    canvases = torch.stack(
        [image[0, :, y : y + size, x : x + size] for y, x in itertools.product(tops, lefts)]
    )
    boxes = [
        (left, top, right, bottom)
        for (top, bottom), (left, right) in itertools.product(
            _spans(tops, size, cut[0], height), _spans(lefts, size, cut[1], width)
        )
    ]
    entropies = spectral_entropy(luma(canvases)).tolist()
    views = tuple(View(box, entropy) for box, entropy in zip(boxes, entropies, strict=True))
    return Windows(canvases, views, cut, scale < 1)


def _layout(height: int, width: int, size: int, most: int) -> tuple[int, int, float]:
    """Rows, columns and scale: the largest scale; of such, the most overlap, by the fewest."""
    most_scale = min(1.0, REDUCED_SIDE / min(height, width))

    def scale_of(rows: int, columns: int) -> float:
        reach = [size * (1 + (1 - _OVERLAP) * (n - 1)) for n in (rows, columns)]
        return min(most_scale, reach[0] / height, reach[1] / width)

    def step_of(rows: int, columns: int) -> float:
        spans = [side * scale_of(rows, columns) - size for side in (height, width)]
        steps = (span / max(1, n - 1) for span, n in zip(spans, (rows, columns), strict=True))
        return max(*steps, size / 2)  # nearer neighbours see nearly the same

    layouts = ((r, c) for r in range(1, most + 1) for c in range(1, most // r + 1))
    best = max(layouts, key=lambda n: (scale_of(*n), -step_of(*n), -n[0] * n[1]))
    return *best, scale_of(*best)


def _spans(starts: list[int], size: int, reduced: int, side: int) -> list[tuple[int, int]]:
    """Where windows lie on an axis of the image, `side` pixels, of which `reduced` were cut."""
    return [
        (math.floor(start * side / reduced), math.ceil(min(reduced, start + size) * side / reduced))
        for start in starts
    ]
