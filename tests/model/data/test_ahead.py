import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.data.ahead import ahead


def test_results_come_in_order_and_no_more_than_the_limit_is_ahead() -> None:
    taken = 0
    lead = []

    def work(item: int) -> int:
        lead.append(item - taken)
        return item * item

    results = []
    for result in ahead(work, range(20), 3):
        results.append(result)
        taken += 1
    assert results == [item * item for item in range(20)]
    assert max(lead) <= 4  # the three that wait, and the one being handed over


def test_the_next_item_is_worked_on_while_a_result_is_in_use() -> None:
    started = [threading.Event() for _ in range(3)]
    results = ahead(lambda item: started[item].set(), range(3), 1)
    next(results)
    assert started[1].wait(10)


def test_an_error_is_raised_where_its_result_is_taken() -> None:
    results = ahead(lambda item: 1 // item, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_nothing_to_do_is_no_result() -> None:
    assert list(ahead(lambda item: item, [], 1)) == []


def test_several_threads_are_set_up_and_keep_the_order() -> None:
    together = threading.Barrier(3, timeout=10)
    ready = threading.local()

    def setup() -> None:
        ready.here = True

    def work(item: int) -> int:
        assert ready.here
        together.wait()
        return item

    pool = ThreadPoolExecutor(3, initializer=setup)
    assert list(ahead(work, range(6), 4, pool)) == list(range(6))
