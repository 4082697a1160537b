"""What is decoded, and within what limits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may have at most, for it to be decoded.

    Attributes:
        max_bytes: of the file.
        max_pixels: width x height, as declared and as coded.
        max_aspect: the longer side over the shorter one.
        min_side: the least that either side must have, pixels.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000
    max_aspect: float = 32.0
    min_side: int = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a decoded file.

    Attributes:
        format: `JPEG`, `MPO`, `PNG`, ...: Pillow's name of it.
        width: pixels, of the upright image.
        height: likewise.
        warnings: `first_frame_only` where there are several frames, `icc_profile_ignored` where
            an embedded colour profile could not be applied.
    """

    format: str
    width: int
    height: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the network's eye sees it.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB, upright, contiguous.
        facts: what is known of its file.
    """

    pixels: NDArray[np.uint8]
    facts: Facts
