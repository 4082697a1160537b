"""Work done in the background, a bounded number of items ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R],
    items: Iterable[T],
    limit: int,
    threads: int = 1,
    setup: Callable[[], object] | None = None,
) -> Iterator[R]:
    """Results of `work` in the order of `items`, computed in threads, at most `limit` ahead.

    Args:
        work: what it raises is raised where its result is taken.
        items: taken as the work goes on.
        limit: results that wait.
        threads: how many are computed at a time.
        setup: called first in each thread.
    """
    queue: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, initializer=setup) as pool:
        for item in items:
            queue.append(pool.submit(work, item))
            if len(queue) > limit:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
