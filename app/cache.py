"""Results kept for uploads that come again."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

from app.metrics import Metrics

T = TypeVar("T")


class ResultCache(Generic[T]):
    """Bounded in number and age; any thread may ask.

    Args:
        size: results kept, the least recently used go first; 0: none, and nothing is counted.
        ttl_s: seconds that a result is kept.
        metrics: where hits and misses are counted.
    """

    def __init__(self, size: int, ttl_s: float, metrics: Metrics) -> None:
        self._size = size
        self._kept: TTLCache[Hashable, T] = TTLCache(max(1, size), ttl_s)
        self._lock = threading.Lock()
        self._metrics = metrics

    def find(self, key: Hashable) -> T | None:
        """What is kept under a key, which must stand for all that the result depends on."""
        if not self._size:
            return None
        with self._lock:
            found = self._kept.get(key)
        self._metrics.cache.labels("miss" if found is None else "hit").inc()
        return found

    def keep(self, key: Hashable, result: T) -> None:
        """Keep a result."""
        if self._size:
            with self._lock:
                self._kept[key] = result
