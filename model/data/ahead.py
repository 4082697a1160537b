"""Work done in the background, a bounded number of items ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R], items: Iterable[T], limit: int, pool: ThreadPoolExecutor | None = None
) -> Iterator[R]:
    """Results of `work` in the order of `items`, computed in threads, at most `limit` ahead.

    Args:
        work: what it raises is raised where its result is taken.
        items: taken as the work goes on.
        limit: results that wait.
        pool: the threads, shut down in the end; one of its own without.
    """
    queue: deque[Future[R]] = deque()
    with pool or ThreadPoolExecutor(1) as threads:
        for item in items:
            queue.append(threads.submit(work, item))
            if len(queue) > limit:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
