"""Work done in the background, a bounded number of items ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], items: Iterable[T], limit: int) -> Iterator[R]:
    """Results of `work` in the order of `items`, by one thread, at most `limit` of them ahead.

    Args:
        work: what it raises is raised where its result is taken.
        items: taken as the work goes on.
        limit: results that wait.
    """
    queue: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            queue.append(pool.submit(work, item))
            if len(queue) > limit:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
