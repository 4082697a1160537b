import asyncio
from typing import Any

import pytest

from app.errors import ApiError
from app.metrics import Metrics
from app.results import Passing, Results


def count(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("nsnet_cache_requests_total", {"result": result}) or 0


def ignore(_: int) -> None:
    """Nobody expects anything."""


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = 0
        self.cancelled = 0

    async def run(self, outcome: str | ApiError) -> str | ApiError:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return outcome


async def get(results: Results[str], work: Work, key: str, outcome: str | ApiError) -> str:
    """As the desk asks."""
    kept = results.kept(key)
    if kept is not None:
        return kept
    if not results.making(key):
        results.make(key, work.run(outcome))
    return await results.made(key)


def begin(results: Results[str], work: Work, outcome: Any, times: int) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(get(results, work, "key", outcome)) for _ in range(times)]


def test_it_keeps_so_many_and_counts() -> None:
    metrics = Metrics()

    async def run() -> None:
        results: Results[str] = Results(2, 60, metrics, ignore)
        work = Work()
        work.gate.set()
        for key in "abc":
            assert await get(results, work, key, key.upper()) == key.upper()
        assert [results.kept(key) for key in "abc"] == [None, "B", "C"]

    asyncio.run(run())
    assert [count(metrics, result) for result in ("hit", "miss", "shared")] == [2, 3, 0]


def test_it_forgets_what_is_old() -> None:
    async def run() -> None:
        results: Results[str] = Results(2, 0, Metrics(), ignore)
        work = Work()
        work.gate.set()
        for _ in range(2):
            await get(results, work, "a", "A")
        assert work.begun == 2

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 10])
def test_what_is_being_made_is_made_once_for_all(size: int) -> None:
    metrics, expected = Metrics(), list[int]()

    async def run() -> None:
        results, work = Results[str](size, 60, metrics, expected.append), Work()
        waiting = begin(results, work, "result", 12)
        await asyncio.sleep(0.01)
        assert results.sharing == 11
        assert expected == [1]
        work.gate.set()
        assert await asyncio.gather(*waiting) == ["result"] * 12
        assert results.sharing == 0
        assert not results.making("key")
        assert expected == [1, -1]
        # Without room nothing is kept: the next one begins anew.
        assert await get(results, work, "key", "another") == ("result" if size else "another")
        assert work.begun == (1 if size else 2)

    asyncio.run(run())
    assert count(metrics, "shared") == 11
    assert (count(metrics, "hit"), count(metrics, "miss")) == ((1, 1) if size else (0, 0))


def test_what_is_passing_is_shared_and_not_kept() -> None:
    async def run() -> None:
        results, work = Results[str](10, 60, Metrics(), ignore), Work()
        waiting = begin(results, work, Passing("as far as it went"), 2)
        await asyncio.sleep(0.01)
        work.gate.set()
        assert await asyncio.gather(*waiting) == ["as far as it went"] * 2
        assert results.kept("key") is None
        assert await get(results, work, "key", "all of it") == "all of it"
        assert results.kept("key") == "all of it"

    asyncio.run(run())


def test_who_leaves_ends_the_work_only_as_the_last() -> None:
    async def run() -> None:
        results, work = Results[str](10, 60, Metrics(), ignore), Work()
        first, *others = begin(results, work, "result", 3)
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        assert results.sharing == 1
        assert not work.cancelled
        work.gate.set()
        assert await asyncio.gather(*others) == ["result"] * 2
        work.gate.clear()
        results = Results(10, 60, Metrics(), ignore)
        waiting = begin(results, work, "result", 3)
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0.01)
        assert (work.begun, work.cancelled) == (2, 1)
        assert results.sharing == 0
        # What was given up is not joined.
        work.gate.set()
        assert await get(results, work, "key", "anew") == "anew"

    asyncio.run(run())


def test_an_error_is_shared_and_not_kept() -> None:
    async def run() -> None:
        results, work = Results[str](10, 60, Metrics(), ignore), Work()
        error = ApiError("corrupt_image", "Damaged.", headers={"X": "y"})
        waiting = begin(results, work, error, 3)
        await asyncio.sleep(0.01)
        work.gate.set()
        raised = await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(one) for one in raised}) == 3  # each with a traceback of its own
        for one in raised:
            assert isinstance(one, ApiError)
            assert (one.code, one.detail, one.headers) == ("corrupt_image", "Damaged.", {"X": "y"})
        assert await get(results, work, "key", "result") == "result"

    asyncio.run(run())
