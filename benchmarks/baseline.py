"""The network in this process, no service around it: what a server's figures are held against."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from app.local import load_detector
from app.settings import Settings
from model.detector import Look
from model.hardware import use_threads
from model.images import decode

_LEAST_LAPS = 3


@dataclass(frozen=True, slots=True)
class BaselineFigures:
    """Medians.

    Attributes:
        batch: images in a batch, `max_batch`.
        images_per_s: of `predict` on looks, in batches.
        single_s: seconds of `predict` on the look at one image.
        prepare_s: seconds from one JPEG to the look at it.
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
    """Seconds of single calls."""

    batched: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)


class Baseline:
    """The detector that a server with these settings would load, with as many threads.

    Args:
        settings: the server's.
        images: JPEG files, the same that the server is sent.

    Raises:
        ModelError: the detector cannot be loaded, or the service would refuse an image.
    """

    def __init__(self, settings: Settings, images: Sequence[bytes]) -> None:
        self._batch = settings.max_batch
        self._detector = load_detector(settings)
        self._limits = settings.limits(self._detector.about.min_side)
        self._threads = self._detector.torch_threads(settings.threads())
        use_threads(self._threads)
        self._detector.warm_up(sorted({1, settings.max_batch}))
        self._files = cycle(images)
        self._looks = cycle([self._prepare(image) for image in images])
        self._laps = _Laps()

    def measure(self, seconds: float = 5.0) -> None:
        """Add measurements, while the server is idle: before, between and after its loads.

        Args:
            seconds: for all of it; on a slow machine longer, for three laps of each.
        """
        predict, looks, laps = self._detector.predict, self._looks, self._laps
        use_threads(1)  # as in the service's decoding threads
        laps.prepare += _timed(lambda: self._prepare(next(self._files)), 0.1 * seconds)
        use_threads(self._threads)
        laps.single += _timed(lambda: predict([next(looks)]), 0.3 * seconds)
        laps.batched += _timed(lambda: predict([*islice(looks, self._batch)]), 0.6 * seconds)

    def figures(self) -> BaselineFigures:
        """Medians over everything measured so far."""
        return BaselineFigures(
            batch=self._batch,
            images_per_s=self._batch / statistics.median(self._laps.batched),
            single_s=statistics.median(self._laps.single),
            prepare_s=statistics.median(self._laps.prepare),
        )

    def _prepare(self, data: bytes) -> Look:
        return self._detector.look(decode(data, self._limits).pixels)


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for so many seconds and three calls at least."""
    end = time.perf_counter() + seconds
    laps: list[float] = []
    while len(laps) < _LEAST_LAPS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        laps.append(time.perf_counter() - start)
    return laps
