"""The device's queue: one thread turns single looks into batches.

It waits for a first look, collects more until `max_batch` or `max_wait` after the first or until
no other is expected, and runs one forward. While a GPU works on a batch, the next one is
collected, and once it is full it is handed over, so that the GPU never waits for this thread. A
look that nobody waits for any more leaves the queue at once.
Whatever happens, every image gets an answer: a failed batch is halved until the poison image is
alone, and if the thread itself ends, all that wait are told.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from app.errors import ApiError, out_of_memory, overloaded
from app.metrics import Metrics

if TYPE_CHECKING:  # torch comes with it
    from model.detector import Look, Score

log = logging.getLogger(__name__)

# A score, the seconds that its look waited for the device, and those of the batch's forward.
Answer: TypeAlias = "tuple[Score, float, float]"


class Pending(Protocol):
    """A batch that the device has; see `model.detector.Pending`."""

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        ...

    def result(self) -> Sequence[Score]:
        """Wait for the device."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    look: Look
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]
    submitted: float = field(default_factory=time.monotonic)

    def answer(self, outcome: Answer | ApiError) -> None:
        """Hand the outcome to the event loop; harmless if nobody waits any more."""
        try:
            self.loop.call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:  # the loop is closed: so is the connection
            log.debug("an answer found its event loop closed")

    def _settle(self, outcome: Answer | ApiError) -> None:
        if self.future.done():  # cancelled: setting a result would raise in the loop
            return
        if isinstance(outcome, ApiError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that the device has, since `start` (of `time.monotonic()`)."""

    batch: list[_Job]
    pending: Pending
    start: float


def _failed() -> ApiError:
    return ApiError("inference_failed", "The network could not score this image.")


class DeviceQueue:
    """Looks that wait for the device, and the thread that hands them to it.

    Args:
        submit: starts scoring a batch; only ever called from the device thread.
        probe: raises if the device no longer works; called after a batch of which every image
            failed.
        setup: called once, first, in the device thread.
        metrics: where batch sizes, queue depth and stage times go.
        max_batch: images in one forward; a look may count as several.
        max_wait_s: how long the first look of a batch waits for others.
        stuck_after_s: a forward that takes longer than this hangs.
    """

    # A forward under way at the end answers nobody any more: its thread may be left behind.
    JOIN_S = 2.0
    # How often a collecting thread looks whether the GPU is done with the batch before.
    LOOK_S = 0.0005

    def __init__(
        self,
        submit: Callable[[Sequence[Look]], Pending],
        probe: Callable[[], None],
        setup: Callable[[], None],
        metrics: Metrics,
        *,
        max_batch: int,
        max_wait_s: float,
        stuck_after_s: float,
    ) -> None:
        self._submit = submit
        self._probe = probe
        self._setup = setup
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._stuck_after_s = stuck_after_s
        self._starts: list[float] = []  # of the forwards under way
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._expected = 0
        self._open = True
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def waiting(self) -> int:
        """Looks that the device has not begun with."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the device gets on: its thread runs, and no forward hangs."""
        oldest = min(list(self._starts), default=math.inf)
        stuck = time.monotonic() - oldest > self._stuck_after_s
        return self._open and self._thread.is_alive() and not stuck

    @property
    def busy(self) -> bool:
        """Whether the device thread lives; after `stop`, in a forward that nothing will end."""
        return self._thread.is_alive()

    def expect(self, images: int) -> None:
        """Count images that may still come here, with those that wait: so many more, or fewer.

        A batch waits for nobody else; a second look is its image's first one once more.
        """
        with self._changed:
            self._expected += images
            self._changed.notify_all()

    def start(self) -> None:
        """Start the device thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish what is queued, then end; waits for it, up to `JOIN_S`."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self.JOIN_S)

    async def score(self, look: Look, *, next_up: bool = False) -> Answer:
        """Wait for a look's turn.

        Cancelling the call takes the look out of the queue.

        Args:
            look: what to score.
            next_up: its turn comes before that of all who wait, for its picture has waited once.

        Raises:
            ApiError: inference_failed.
        """
        loop = asyncio.get_running_loop()
        job = _Job(look, loop, loop.create_future())
        with self._changed:
            if not self.alive:
                raise _failed()
            (self._jobs.appendleft if next_up else self._jobs.append)(job)
            self._note_change()
        try:
            return await job.future
        finally:
            if job.future.cancelled():
                self._withdraw(job)

    def _withdraw(self, job: _Job) -> None:
        """Forget a job that nobody waits for, unless the device has it already."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._note_change()

    def _note_change(self) -> None:
        """Tell the device thread and the metrics; the lock is held."""
        self._metrics.queue_depth.set(len(self._jobs))
        self._changed.notify_all()

    def _run(self) -> None:
        held: list[_Job] = []  # taken out of the queue and not yet answered
        flight: _Flight | None = None
        works = True
        try:
            self._setup()
            while works:
                batch = self._collect(flight)
                if not batch and flight is None:
                    break
                held = [*(flight.batch if flight else ()), *batch]
                started, works = self._start(batch) if batch else (None, True)
                if flight is not None:
                    works = self._finish(flight) and works
                flight = started
                if flight is not None and flight.pending.ready:  # as always on a CPU
                    works = self._finish(flight) and works
                    flight = None
                held = flight.batch if flight else []
                del batch, started  # while this thread waits, it holds no answered look
        finally:
            # Also on SystemExit and the like: nobody may wait for a thread that is gone.
            with self._changed:
                self._open = False
                left = [*held, *self._jobs]
                self._jobs.clear()
            for job in left:
                job.answer(_failed())

    def _collect(self, flight: _Flight | None) -> list[_Job]:
        """Wait for the next batch of looks still wanted.

        Returns:
            The batch; an empty one once closed and drained, or when the device is done with
            `flight` first.
        """
        while True:
            with self._changed:
                if flight is None:
                    self._changed.wait_for(lambda: self._jobs or not self._open)
                    if not self._jobs:
                        return []
                    self._changed.wait_for(
                        self._enough, timeout=self._oldest() + self._max_wait_s - time.monotonic()
                    )
                else:
                    while self._images() < self._max_batch:
                        if flight.pending.ready:
                            return []
                        self._changed.wait(self.LOOK_S)
                batch = self._take()
            if batch:
                return batch

    def _enough(self) -> bool:
        """Whether to wait no longer for a fuller batch; or for none: all have left."""
        return (
            not self._jobs
            or self._images() >= min(self._max_batch, self._expected)
            or not self._open
        )

    def _take(self) -> list[_Job]:
        """The next batch, out of the queue; the lock is held."""
        batch: list[_Job] = []
        room = self._max_batch
        # A look that is larger than any batch is one of its own.
        while self._jobs and (not batch or self._jobs[0].look.size <= room):
            job = self._jobs.popleft()
            if not job.future.cancelled():  # this moment: it has not withdrawn yet
                batch.append(job)
                room -= job.look.size
        self._metrics.queue_depth.set(len(self._jobs))
        return batch

    def _images(self) -> int:
        """How many wait; the lock is held."""
        return sum(job.look.size for job in self._jobs)

    def _oldest(self) -> float:
        return min(job.submitted for job in self._jobs)

    def _start(self, batch: list[_Job]) -> tuple[_Flight | None, bool]:
        """Hand a batch to the device; without a flight, its images were answered otherwise.

        Returns:
            The flight, and whether the device still works.
        """
        self._metrics.batch_size.observe(len(batch))
        try:
            return self._launch(batch), True
        except Exception as error:  # noqa: BLE001  (one bad image must not end the thread)
            return None, self._isolate(batch, error)

    def _finish(self, flight: _Flight) -> bool:
        """Wait for the device and answer; returns whether it still works."""
        try:
            self._land(flight)
        except Exception as error:  # noqa: BLE001
            return self._isolate(flight.batch, error)
        return True

    def _launch(self, batch: list[_Job]) -> _Flight:
        start = time.monotonic()
        self._starts.append(start)
        try:
            return _Flight(batch, self._submit([job.look for job in batch]), start)
        except BaseException:
            self._starts.remove(start)
            raise

    def _land(self, flight: _Flight) -> None:
        try:
            scores = flight.pending.result()
        finally:
            self._starts.remove(flight.start)
        forward = time.monotonic() - flight.start
        self._metrics.stage.labels("forward").observe(forward)
        for job, score in zip(flight.batch, scores, strict=True):
            queued = flight.start - job.submitted
            self._metrics.stage.labels("queue").observe(queued)
            job.answer((score, queued, forward))

    def _isolate(self, batch: list[_Job], error: Exception) -> bool:
        """Answer a batch that failed; returns whether the device still works."""
        if self._halve(batch, error):
            return True
        try:
            self._probe()
        except Exception as gone:  # noqa: BLE001  (whatever it is, the device is gone)
            # No traceback: its frames may hold request data.
            log.error("the device does not answer any more: %s", type(gone).__name__)  # noqa: TRY400
            return False
        return True

    def _halve(self, batch: list[_Job], error: Exception) -> int:
        """Score the halves of a batch that failed, down to the poison; returns how many were."""
        if len(batch) == 1:
            log.warning("an image could not be scored: %s", type(error).__name__)
            batch[0].answer(overloaded() if out_of_memory(error) else _failed())
            return 0
        middle = len(batch) // 2
        scored = 0
        for half in (batch[:middle], batch[middle:]):
            try:
                self._land(self._launch(half))
                scored += len(half)
            except Exception as again:  # noqa: BLE001
                scored += self._halve(half, again)
        return scored
