"""What a network looked at, for those who are told of it where there is no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """What of an image a canvas shows.

    Attributes:
        box: (left, top, right, bottom) in pixels of the image; of several patches, around them.
        entropy: spectral, nats, the mean over patches; None: none was taken.
    """

    box: tuple[int, int, int, int]
    entropy: float | None
