"""One device thread turns single images into batches.

It waits for a first image, collects more until `max_batch` or `max_wait` after the first, drops
those nobody waits for any more, and runs one forward. Whatever happens in it, every image gets an
answer: a failed batch is halved until the poison image is alone, and if the thread itself ends,
all that wait are told.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.errors import ApiError
from app.metrics import Metrics
from model.detector import Detection, Prepared

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """A detection with what it took.

    Attributes:
        detection: the detector's answer.
        queue_s: seconds from submission to the start of its forward.
        forward_s: seconds of that forward, for the whole batch.
    """

    detection: Detection
    queue_s: float
    forward_s: float


@dataclass(slots=True, eq=False)
class _Job:
    item: Prepared
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Scored]
    submitted: float = field(default_factory=time.monotonic)

    def answer(self, outcome: Scored | ApiError) -> None:
        """Hand the outcome to the event loop; harmless if nobody waits any more."""
        try:
            self.loop.call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:  # the loop is closed: so is the connection
            log.debug("an answer found its event loop closed")

    def _settle(self, outcome: Scored | ApiError) -> None:
        if self.future.done():  # cancelled: setting a result would raise in the loop
            return
        if isinstance(outcome, ApiError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


def _failed() -> ApiError:
    return ApiError("inference_failed", "The network could not score this image.")


class Batcher:
    """The device thread and its queue.

    Args:
        predict: scores a batch; only ever called from the device thread.
        probe: raises if the device no longer works; called after a batch of which every image
            failed.
        setup: called once, first, in the device thread.
        metrics: where batch sizes, queue depth and stage times go.
        max_batch: images in one forward.
        max_wait_s: how long the first image of a batch waits for others.
        stuck_after_s: a forward that takes longer than this hangs.
    """

    # A forward under way at the end answers nobody any more: its thread may be left behind.
    JOIN_S = 2.0

    def __init__(
        self,
        predict: Callable[[Sequence[Prepared]], list[Detection]],
        probe: Callable[[], None],
        setup: Callable[[], None],
        metrics: Metrics,
        *,
        max_batch: int,
        max_wait_s: float,
        stuck_after_s: float,
    ) -> None:
        self._predict = predict
        self._probe = probe
        self._setup = setup
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._stuck_after_s = stuck_after_s
        self._forward_since = math.inf
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the device gets on: its thread runs, and no forward hangs."""
        stuck = time.monotonic() - self._forward_since > self._stuck_after_s
        return self._open and self._thread.is_alive() and not stuck

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

    async def score(self, item: Prepared, deadline: float) -> Scored:
        """Wait for an image's turn.

        Cancelling the call takes the image out of the queue.

        Args:
            item: the prepared image.
            deadline: `time.monotonic()` after which nobody wants the answer.

        Raises:
            ApiError: inference_failed, deadline_exceeded.
        """
        loop = asyncio.get_running_loop()
        job = _Job(item, deadline, loop, loop.create_future())
        with self._changed:
            if not self.alive:
                raise _failed()
            self._jobs.append(job)
            self._metrics.queue_depth.set(len(self._jobs))
            self._changed.notify_all()
        return await job.future

    def _run(self) -> None:
        batch: list[_Job] = []
        try:
            self._setup()
            while (batch := self._collect()) and self._serve(batch):
                batch = []
        finally:
            # Also on SystemExit and the like: nobody may wait for a thread that is gone.
            with self._changed:
                self._open = False
                left = [*batch, *self._jobs]
                self._jobs.clear()
            for job in left:
                job.answer(_failed())

    def _collect(self) -> list[_Job]:
        """Wait for the next batch of images still wanted; empty once closed and drained."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or not self._open)
                if not self._jobs:
                    return []
                self._changed.wait_for(
                    lambda: len(self._jobs) >= self._max_batch or not self._open,
                    timeout=max(0.0, self._jobs[0].submitted + self._max_wait_s - time.monotonic()),
                )
                batch: list[_Job] = []
                while self._jobs and len(batch) < self._max_batch:
                    job = self._jobs.popleft()
                    if job.future.cancelled():
                        continue
                    if time.monotonic() >= job.deadline:
                        job.answer(ApiError("deadline_exceeded", "The queue took too long."))
                        continue
                    batch.append(job)
                self._metrics.queue_depth.set(len(self._jobs))
            if batch:
                return batch

    def _serve(self, batch: list[_Job]) -> bool:
        """Answer a batch; False once the device no longer works."""
        self._metrics.batch_size.observe(len(batch))
        if self._score(batch):
            return True
        try:
            self._probe()
        except Exception as error:  # noqa: BLE001  (whatever it is, the device is gone)
            # No traceback: its frames may hold request data.
            log.error("the device does not answer any more: %s", type(error).__name__)  # noqa: TRY400
            return False
        return True

    def _score(self, batch: list[_Job]) -> int:
        """Answer a batch, halving it as long as it fails; returns how many were scored."""
        start = self._forward_since = time.monotonic()
        try:
            detections = self._predict([job.item for job in batch])
        except Exception as error:  # noqa: BLE001  (one bad image must not end the thread)
            if len(batch) == 1:
                log.warning("an image could not be scored: %s", type(error).__name__)
                batch[0].answer(_failed())
                return 0
            middle = len(batch) // 2
            return self._score(batch[:middle]) + self._score(batch[middle:])
        finally:
            self._forward_since = math.inf
        forward = time.monotonic() - start
        self._metrics.stage.labels("forward").observe(forward)
        for job, detection in zip(batch, detections, strict=True):
            queued = start - job.submitted
            self._metrics.stage.labels("queue").observe(queued)
            job.answer(Scored(detection, queued, forward))
        return len(batch)
