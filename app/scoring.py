"""Picture -> look -> queue -> score, and once more where one look leaves doubt."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.backend import Outcome, Result
from app.decoding.pool import Opened
from app.errors import ApiError, from_image, unexpected
from app.metrics import Metrics
from app.queue import DeviceQueue, Pending
from app.results import Passing
from app.schemas import ProvenanceOut, TimingsOut
from app.settings import Settings
from app.workers import Workers
from model.hardware import use_threads
from model.images import Facts, ImageError

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About, Look

log = logging.getLogger(__name__)


class ServedDetector(Protocol):
    """What the service needs of a detector; see `model.detector.Detector`.

    `look` and a score's `more` run in many threads at once, all else in one.
    """

    about: About

    def warm_up(self, images: Sequence[int]) -> None:
        """Run blank batches of so many images."""

    def torch_threads(self, threads: int) -> int:
        """How many of torch's threads should help the forward, of so many."""

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        """Cut what is looked at first out of a picture, which is not needed afterwards."""

    def submit(self, looks: Sequence[Look]) -> Pending:
        """Start scoring."""


class Scorer:
    """Scores pictures on this machine's device; of one that waits, its canvases alone are left.

    Args:
        detector: loaded and warm.
        settings: the service's.
        metrics: of stages and batches.
    """

    # What is under way at the end answers nobody any more: its thread may be left behind.
    JOIN_S = 2.0

    def __init__(self, detector: ServedDetector, settings: Settings, metrics: Metrics) -> None:
        self.detector = detector
        self._metrics = metrics
        self._queue = DeviceQueue(
            detector.submit,
            functools.partial(detector.warm_up, [1]),
            functools.partial(use_threads, detector.torch_threads(settings.threads())),
            metrics,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000,
            stuck_after_s=settings.stuck_after_s,
        )
        # Each is one thread for its own torch operations, too: cores are for the forward pass.
        alone = functools.partial(use_threads, 1)
        stuck_after_s = settings.stuck_after_s
        # Second looks are not cut behind first ones: their pictures came first.
        self._first_looks = Workers("first look", settings.decoders(), stuck_after_s, alone)
        self._looks = Workers("look", 1, stuck_after_s, alone)
        self._workers = (self._first_looks, self._looks)

    def start(self) -> None:
        """Start the device thread."""
        self._queue.start()

    def stop(self) -> None:
        """End the threads; waits for what they hold, up to `JOIN_S`."""
        for workers in self._workers:
            workers.stop()
        end = time.monotonic() + self.JOIN_S
        while self._working and time.monotonic() < end:
            time.sleep(0.01)
        self._queue.stop()

    def expect(self, images: int) -> None:
        """See `DeviceQueue.expect`."""
        self._queue.expect(images)

    @property
    def waiting(self) -> int:
        """Looks that wait for the device."""
        return self._queue.waiting

    @property
    def alive(self) -> bool:
        """Whether the device and every thread here get on."""
        return self._queue.alive and all(workers.alive for workers in self._workers)

    @property
    def busy(self) -> bool:
        """Whether a thread lives that is the device's or works; after `stop`, nothing ends it."""
        return self._queue.busy or self._working

    @property
    def _working(self) -> bool:
        return any(workers.busy for workers in self._workers)

    async def make(
        self, opening: Callable[[], Opened | ApiError], identifier: str, *, explain: bool
    ) -> Outcome:
        """Score a picture.

        Args:
            opening: gives it, or why there is none; called in a thread, where it may wait.
            identifier: of the request, for the log.
            explain: whether the score is to come with evidence.
        """
        try:
            begun = await self._first_looks.run(
                functools.partial(self._begin, opening, identifier, explain)
            )
            if isinstance(begun, ApiError):
                return begun
            facts, provenance, is_read, look, decode_s, cut_s = begun
            del begun
            score, queue_s, forward_s = await self._queue.score(look)
            while score.more is not None:
                look, again_s = await self._looks.run(functools.partial(self._next, score.more))
                del score  # it holds what the look was cut from
                score, queued_s, forward_again_s = await self._queue.score(look, next_up=True)
                cut_s += again_s
                queue_s += queued_s
                forward_s += forward_again_s
        except ApiError as error:
            return error.with_traceback(None)
        except Exception as error:  # noqa: BLE001  (a bug)
            return unexpected(log, error, identifier)
        timings = TimingsOut(
            decode=_ms(decode_s), patches=_ms(cut_s), queue=_ms(queue_s), inference=_ms(forward_s)
        )
        result = Result(facts, provenance, score, timings)
        return result if is_read else Passing(result)

    def _begin(
        self, opening: Callable[[], Opened | ApiError], identifier: str, explain: bool
    ) -> _Begun | ApiError:
        """Have the picture, and cut its first look. Runs in a thread."""
        opened = opening()
        if isinstance(opened, ApiError):
            return opened
        picture, provenance, is_read, decode_s = opened
        start = time.monotonic()
        try:
            look = self.detector.look(picture.pixels, explain=explain)
        except ImageError as error:
            return from_image(error)
        except Exception as error:  # noqa: BLE001  (a bug)
            return unexpected(log, error, identifier)
        cut_s = time.monotonic() - start
        self._metrics.stage.labels("decode").observe(decode_s)
        self._metrics.stage.labels("patches").observe(cut_s)
        return _Begun(picture.facts, provenance, is_read, look, decode_s, cut_s)

    def _next(self, more: Callable[[], Look]) -> tuple[Look, float]:
        """Cut the next look, with the seconds it took. Runs in the thread for looks."""
        start = time.monotonic()
        look = more()
        took = time.monotonic() - start
        self._metrics.stage.labels("patches").observe(took)
        return look, took


class _Begun(NamedTuple):
    """What is left of a picture: its facts, what its file declares, and its first look."""

    facts: Facts
    provenance: ProvenanceOut | None
    is_read: bool
    look: Look
    decode_s: float
    cut_s: float


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
