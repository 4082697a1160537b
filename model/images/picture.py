"""What is decoded, and within what limits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ImageError, ImageTooSmallError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may have at most, for it to be decoded.

    Attributes:
        max_bytes: of the file.
        max_pixels: width x height, of every picture that the file declares.
        max_aspect: the longer side over the shorter one.
        min_side: the least that either side must have, pixels.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000
    max_aspect: float = 32.0
    min_side: int = 1

    def check_pixels(self, width: int, height: int) -> None:
        """Hold any declared size against `max_pixels`: a canvas, a frame, a tile, an item.

        Raises:
            ImageError: too_many_pixels.
        """
        if width * height > self.max_pixels:
            raise ImageError(
                "too_many_pixels",
                f"An image may have {self.max_pixels} pixels at most, in every part of its file.",
            )

    def check_size(self, width: int, height: int) -> None:
        """Hold the size of the image that is judged against every limit.

        Raises:
            ImageError: too_many_pixels, image_too_small, validation_error (aspect).
        """
        self.check_pixels(width, height)
        if min(width, height) < self.min_side:
            raise ImageTooSmallError(width, height, self.min_side)
        if max(width, height) > self.max_aspect * min(width, height):
            raise ImageError(
                "validation_error", f"The longer side may be {self.max_aspect:g} x the shorter one."
            )


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a decoded file.

    Attributes:
        format: `JPEG`, `MPO`, `PNG`, ...: Pillow's name of it.
        width: pixels, of the upright image.
        height: likewise.
        warnings: `animation` where a moving picture is judged by one frame, `first_page` where one
            of several pages or pictures is, `profile_ignored` where an embedded colour profile, or
            another word on what colours mean, is not applied.
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
