"""What a picture's pixels say of themselves: how much of its traces can be left."""

import torch
from torch import Tensor

from model.verdicts import Quality
from model.views.patches import luma

_READ = 384  # the middle of a picture, pixels a side: one millisecond, whatever its size
_TILE = 64
_PERIOD = 8  # pixels between the edges of JPEG's blocks
_FLOOR = 4.0  # grey levels squared a pixel: a tile with less in it has no edge to judge
_LOUD = 32.0  # grey levels: a step above it is the picture's own, not a block's


def measure_quality(image: Tensor) -> Quality:
    """Measure the middle of a picture, at native resolution.

    Args:
        image: uint8 [1, 3, H, W], sRGB, any device; sides of 9 px at least.
    """
    height, width = image.shape[-2:]
    top, left = max(0, height - _READ) // 2, max(0, width - _READ) // 2
    grey = luma(image[0, :, top : top + _READ, left : left + _READ])
    figures = torch.stack([_sharpness(grey), _blockiness(grey)]).tolist()
    return Quality(min(height, width), *figures)


def _sharpness(grey: Tensor) -> Tensor:
    """Of the sharpest tile, horizontally and vertically together."""
    first = torch.zeros_like(grey)
    second = torch.zeros_like(grey)
    for dim, size in enumerate(grey.shape):
        step = grey.diff(dim=dim)
        bend = step.diff(dim=dim)
        first.narrow(dim, 0, size - 1).addcmul_(step, step)
        second.narrow(dim, 0, size - 2).addcmul_(bend, bend)
    side = min(_TILE, *grey.shape)
    return (_tiled(second, side) / _tiled(first, side).clamp_min(_FLOOR)).max()


def _tiled(energy: Tensor, side: int) -> Tensor:
    """Mean of each whole tile: float [H, W] -> float [rows, columns]."""
    rows, columns = (size // side for size in energy.shape)
    whole = energy[: rows * side, : columns * side]
    return whole.view(rows, side, columns, side).mean(dim=(1, 3))


def _blockiness(grey: Tensor) -> Tensor:
    """The smaller of the two directions': blocks have edges in both."""
    ratios = []
    for dim in (0, 1):
        steps = grey.diff(dim=dim).abs_().clamp_max_(_LOUD).mean(dim=1 - dim)
        whole = steps[: len(steps) // _PERIOD * _PERIOD].view(-1, _PERIOD).mean(dim=0)
        edge = whole.max()
        rest = (whole.sum() - edge) / (_PERIOD - 1)
        ratios.append((edge + 0.1) / (rest + 0.1))
    return torch.minimum(*ratios)
