"""Threads for work that the event loop has no time for."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Workers:
    """Threads for one kind of work, done in the order in which it comes; one that hangs is seen.

    Args:
        name: of the threads.
        threads: how many, started when they are first needed.
        stuck_after_s: work that takes longer than this hangs.
        begin: called in each thread before its first work.
    """

    def __init__(
        self, name: str, threads: int, stuck_after_s: float, begin: Callable[[], None] | None = None
    ) -> None:
        self._starts: list[float] = []  # of the work under way
        self._stuck_after_s = stuck_after_s
        self._pool = ThreadPoolExecutor(threads, name, initializer=begin)

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in one of the threads.

        Once this is cancelled, what has not begun never does, and is not held until its turn
        would have come.
        """
        turn = _Turn(work)
        del work  # the frames of a cancellation may outlive it
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._watched, turn)
        finally:
            turn.work = None

    @property
    def busy(self) -> bool:
        """Whether a thread is at work; after `stop`, one that nothing will end."""
        return bool(self._starts)

    @property
    def alive(self) -> bool:
        """Whether no thread hangs."""
        oldest = min(list(self._starts), default=math.inf)
        return time.monotonic() - oldest < self._stuck_after_s

    def stop(self) -> None:
        """Begin nothing more; does not wait for what is under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _watched(self, turn: "_Turn[T]") -> T:
        start = time.monotonic()
        self._starts.append(start)
        try:
            work = turn.work
            if work is None:  # cancelled this moment
                raise CancelledError
            return work()
        finally:
            self._starts.remove(start)


class _Turn(Generic[T]):
    """Work that waits for a thread: a pool holds on to what it was given, also once cancelled."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work: Callable[[], T] | None = work
