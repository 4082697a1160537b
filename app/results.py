"""What was made of an upload, for the same bytes again: kept for later, shared while it is made."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from app.errors import ApiError
from app.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Passing(Generic[T]):
    """A result for those who wait for it, of which the next one may hope for better."""

    result: T


class Results(Generic[T]):
    """Results by key, which must stand for all that a result depends on.

    A result is kept for a while, bounded in number and age; an error is not, nor what is `Passing`.
    What is being made is shared by all who ask meanwhile, errors too, and is given up once the last
    of them has left.

    Lives on the event loop: no lock is needed, and no `await` stands between a look-up and what is
    begun by it.

    Args:
        size: results kept, the least recently used go first; 0: none, and only sharing is counted.
        ttl_s: seconds that a result is kept.
        metrics: where hits and misses are counted, and those who share.
        expect: told 1 for what is begun, and -1 once it is made or given up.
    """

    def __init__(
        self, size: int, ttl_s: float, metrics: Metrics, expect: Callable[[int], None]
    ) -> None:
        self._size = size
        self._kept: TTLCache[Hashable, T] = TTLCache(max(1, size), ttl_s)
        self._making: dict[Hashable, _Making[T]] = {}
        self._metrics = metrics
        self._expect = expect
        self.sharing = 0  # those who wait for what was begun for another

    def kept(self, key: Hashable) -> T | None:
        """A result of before."""
        result = self._kept.get(key)
        if result is not None:
            self._metrics.cache.labels("hit").inc()
        return result

    def making(self, key: Hashable) -> bool:
        """Whether a result is being made."""
        return key in self._making

    def make(self, key: Hashable, work: Coroutine[Any, Any, T | Passing[T] | ApiError]) -> None:
        """Begin what nobody has begun; whoever does goes on to wait for it.

        Args:
            key: of the result.
            work: gives it, or the error that all who wait are told.
        """
        if self._size:
            self._metrics.cache.labels("miss").inc()
        self._making[key] = _Making(asyncio.create_task(self._run(key, work)))
        self._expect(1)

    async def made(self, key: Hashable) -> T:
        """Wait for what is being made. If the last one who does is cancelled, the work is.

        Raises:
            ApiError: the work's.
        """
        making = self._making[key]
        if making.waiting:
            self._metrics.cache.labels("shared").inc()
            self.sharing += 1
        making.waiting += 1
        try:
            outcome = await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if making.waiting:
                self.sharing -= 1
            else:
                making.task.cancel()  # nothing, where it is done
                self._forget(key, making.task)
        if isinstance(outcome, ApiError):
            # One each: raised in many, it would gather the tracebacks of all.
            raise ApiError(outcome.code, outcome.detail, headers=outcome.headers)
        return outcome

    async def _run(
        self, key: Hashable, work: Coroutine[Any, Any, T | Passing[T] | ApiError]
    ) -> T | ApiError:
        try:
            outcome = await work
        except asyncio.CancelledError:
            # Nobody waits any more. Were it this task's end, it would hold on to the frames that it
            # came through, and they to it: to all that was under way, until a search for garbage.
            return ApiError("internal_error", "The work was given up.")
        else:
            if isinstance(outcome, Passing):
                return outcome.result
            if self._size and not isinstance(outcome, ApiError):
                self._kept[key] = outcome
            return outcome
        finally:
            self._forget(key, asyncio.current_task())

    def _forget(self, key: Hashable, task: asyncio.Task[Any] | None) -> None:
        making = self._making.get(key)
        if making is not None and making.task is task:  # not its successor
            del self._making[key]
            self._expect(-1)


class _Making(Generic[T]):
    """Work under way, and how many wait for it."""

    def __init__(self, task: asyncio.Task[T | ApiError]) -> None:
        self.task = task
        self.waiting = 0
