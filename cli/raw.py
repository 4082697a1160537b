"""The network in this process, no service around it: what a server's figures are held against."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch

from app.decoding import decode
from app.service import load_detector
from app.settings import Settings
from model.detector import Prepared

_LEAST_LAPS = 3


@dataclass(frozen=True, slots=True)
class RawFigures:
    """Medians.

    Attributes:
        batch: images in a batch, `max_batch`.
        images_per_s: of `predict` on prepared batches.
        single_s: seconds of `predict` on one prepared image.
        prepare_s: seconds from one JPEG to a prepared image.
    """

    batch: int
    images_per_s: float
    single_s: float
    prepare_s: float

    @property
    def request_s(self) -> float:
        """Seconds that one image takes at least, from its bytes to its score."""
        return self.prepare_s + self.single_s

    def __str__(self) -> str:
        return (
            f"{self.images_per_s:.2f} images/s in batches of {self.batch}, "
            f"{1000 * self.single_s:.1f} ms for one, {1000 * self.prepare_s:.1f} ms to decode and "
            "prepare one"
        )


@dataclass(slots=True)
class _Laps:
    batched: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)


class Raw:
    """The detector that a server with these settings would load, with as many threads.

    Args:
        settings: the server's.
        images: JPEG files, the same that the server is sent.

    Raises:
        ModelError: the detector cannot be loaded.
        ApiError: an image that the service would refuse.
    """

    def __init__(self, settings: Settings, images: Sequence[bytes]) -> None:
        self._settings = settings
        self._detector = load_detector(settings)
        self._threads = self._detector.torch_threads(settings.threads())
        torch.set_num_threads(self._threads)
        self._detector.warm_up(sorted({1, settings.max_batch}))
        self._files = cycle(images)
        prepared = [self._prepare(image) for image in images]
        self._items = cycle(prepared)
        self._laps = _Laps()

    def measure(self, seconds: float = 5.0) -> None:
        """Add measurements, while the server is idle: before, between and after its loads.

        Args:
            seconds: for all of it; on a slow machine longer, for three laps of each.
        """
        batch, detector = self._settings.max_batch, self._detector
        laps = self._laps
        torch.set_num_threads(1)  # as in the service's decoding threads
        laps.prepare += _timed(lambda: self._prepare(next(self._files)), 0.1 * seconds)
        torch.set_num_threads(self._threads)
        laps.single += _timed(lambda: detector.predict([next(self._items)]), 0.3 * seconds)
        laps.batched += _timed(lambda: detector.predict([*islice(self._items, batch)]),
                               0.6 * seconds)  # fmt: skip

    def figures(self) -> RawFigures:
        """Medians over everything measured so far."""
        batch, laps = self._settings.max_batch, self._laps
        return RawFigures(
            batch=batch,
            images_per_s=batch / statistics.median(laps.batched),
            single_s=statistics.median(laps.single),
            prepare_s=statistics.median(laps.prepare),
        )

    def _prepare(self, data: bytes) -> Prepared:
        image = decode(data, self._settings, min_side=self._detector.min_side)
        return self._detector.prepare(image.pixels)


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for so many seconds and three calls at least."""
    end = time.perf_counter() + seconds
    laps: list[float] = []
    while len(laps) < _LEAST_LAPS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        laps.append(time.perf_counter() - start)
    return laps
