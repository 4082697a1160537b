"""Whether there is anything to see: black, white, one colour or a lens cap's noise is nothing."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Grey levels. Noise of a sensor behind a lens cap (a deviation of 10) comes to 5 at most.
CONTENT_RANGE = 7.0
_COLOUR = 0.5  # JPEG makes blocks of colour of a sensor's noise, 8 levels apart
_CELLS = 32  # along the short side
_CELL = 16  # pixels at least along a side of a cell, so that noise averages out
_SAMPLES = 16  # of a cell, along each side: enough for its average


def content_range(pixels: NDArray[np.uint8]) -> float:
    """How far the brightness or colour of an image's parts varies.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        The largest average luma of a cell of the image less the smallest, grey levels. Where that
        is no content, half of the same in the channel where it is most, if it is more: colours of
        one luma may differ.
    """
    cell = max(_CELL, min(pixels.shape[:2]) // _CELLS)
    step = max(1, cell // _SAMPLES)
    few = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    # Cells that the edges cut would be averages of few pixels.
    side = min(cell // step, *few.size)
    whole = (0, 0, few.width // side * side, few.height // side * side)
    luma = _range(few.convert("L").reduce(side, whole))
    return luma if luma >= CONTENT_RANGE else max(luma, _COLOUR * _range(few.reduce(side, whole)))


def _range(cells: Image.Image) -> float:
    return float(np.ptp(np.asarray(cells, np.float32), axis=(0, 1)).max())


def has_content(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image shows anything: `content_range` is `CONTENT_RANGE` or more."""
    return content_range(pixels) >= CONTENT_RANGE
