import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

from app.batching import Batcher, Scored
from app.errors import ApiError
from app.metrics import Metrics
from model.detector import Detection, Doubt, Prepared
from tests.fakes import DOUBTFUL, POISON, SETTLED, FakeDetector
from tests.server.conftest import eventually

Start = Callable[..., Batcher]


@pytest.fixture
def fake() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def start(fake: FakeDetector) -> Iterator[Start]:
    started = []

    def run(**options: Any) -> Batcher:
        settings = {"max_batch": 4, "max_wait_s": 0.02, "stuck_after_s": 60.0} | options
        batcher = Batcher(
            settings.pop("submit", fake.submit), lambda: fake.warm_up([1]), lambda: None,
            settings.pop("admitted", lambda: 100), Metrics(), **settings,
        )  # fmt: skip
        batcher.start()
        started.append(batcher)
        return batcher

    yield run
    fake.gate.set()
    for batcher in started:
        batcher.stop()


def item(grey: float) -> Prepared:
    return Prepared(torch.full((1, 1, 1, 1), float(grey)), ())


def later(seconds: float = 20) -> float:
    return time.monotonic() + seconds


def ask(batcher: Batcher, greys: Iterable[float]) -> list[asyncio.Future[Scored]]:
    """Requests for images of these greys, all at once."""
    return [asyncio.ensure_future(batcher.score(item(grey), later())) for grey in greys]


def number(outcome: Detection | Doubt) -> int | str:
    return "doubt" if isinstance(outcome, Doubt) else round(outcome.score * 255)


async def codes(calls: list[Any]) -> list[Any]:
    """Scores as numbers, errors as codes."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    return [
        number(f.outcome) if isinstance(f, Scored)
        else f.code if isinstance(f, ApiError) else f
        for f in found
    ]  # fmt: skip


def test_images_that_come_together_share_a_forward(start: Start, fake: FakeDetector) -> None:
    async def run() -> None:
        batcher = start(max_wait_s=0.5)
        found = await codes([batcher.score(item(i), later()) for i in (20, 21, 22, 23)])
        assert found == [20, 21, 22, 23]

    asyncio.run(run())
    assert fake.batches == [4]


def test_no_batch_exceeds_its_limit_and_none_waits_longer_than_told(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        batcher = start(max_batch=3, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(batcher, range(20, 30))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await codes(calls) == list(range(20, 30))
        began = time.monotonic()
        await batcher.score(item(50), later())
        assert time.monotonic() - began < 5

    asyncio.run(run())
    assert max(fake.batches) == 3
    assert sum(fake.batches) == 11


def test_an_image_waits_for_others_only_while_some_are_on_their_way(
    start: Start, fake: FakeDetector
) -> None:
    """A single client paid the whole `max_wait` at every image."""
    admitted = 2

    async def run() -> None:
        nonlocal admitted
        batcher = start(max_wait_s=20.0, admitted=lambda: admitted)
        assert await codes(ask(batcher, [20, 21])) == [20, 21]
        admitted = 1
        assert await codes(ask(batcher, [22])) == [22]

    asyncio.run(asyncio.wait_for(run(), 10))
    assert fake.batches == [2, 1]


def test_a_second_look_does_not_wait_behind_all_the_others(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        batcher = start(max_batch=2, max_wait_s=0.01)
        first = await batcher.score(item(DOUBTFUL), later())
        assert isinstance(first.outcome, Doubt)
        fake.gate.clear()
        fake.entered.clear()
        done: list[int | str] = []

        async def ask(prepared: Prepared, *, next_up: bool = False) -> None:
            found = await batcher.score(prepared, later(), next_up=next_up)
            done.append(number(found.outcome))

        calls = [asyncio.ensure_future(ask(item(20)))]
        await asyncio.to_thread(fake.entered.wait, 5)  # the device is busy
        calls += [asyncio.ensure_future(ask(item(grey))) for grey in (21, 22, 23)]
        await asyncio.sleep(0)  # they are in the queue
        calls.append(asyncio.ensure_future(ask(first.outcome.look(), next_up=True)))
        await asyncio.sleep(0)
        fake.gate.set()
        await asyncio.gather(*calls)
        assert done == [20, SETTLED, 21, 22, 23]

    asyncio.run(run())
    assert fake.batches == [1, 1, 2, 2]


def test_a_poison_image_fails_alone(start: Start, fake: FakeDetector) -> None:
    """One exception killed the worker elsewhere, and later requests hung."""

    async def run() -> None:
        batcher = start(max_batch=8, max_wait_s=0.2)
        greys = [20, 21, POISON, 23, 24, POISON, 26]
        found = await codes([batcher.score(item(g), later()) for g in greys])
        assert found == [20, 21, "inference_failed", 23, 24, "inference_failed", 26]
        assert batcher.alive
        assert await codes([batcher.score(item(30), later())]) == [30]

    asyncio.run(run())


def test_a_gpu_gets_the_next_full_batch_before_it_is_done_with_this_one(
    start: Start, fake: FakeDetector
) -> None:
    fake.asynchronous = True

    async def run() -> None:
        batcher = start(max_batch=2, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(batcher, range(20, 27))
        await asyncio.to_thread(eventually, lambda: fake.batches == [2, 2])
        assert not any(call.done() for call in calls)
        fake.gate.set()
        assert await codes(calls) == list(range(20, 27))

    asyncio.run(run())
    assert fake.batches == [2, 2, 2, 1]
    assert fake.most_under_way == 2  # one ahead, not more: what waits can still be cancelled


def test_a_gpu_answers_a_batch_before_the_next_one_is_full(
    start: Start, fake: FakeDetector
) -> None:
    fake.asynchronous = True

    async def run() -> None:
        batcher = start(max_batch=2, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(batcher, (20, 21, 22))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await codes(calls) == [20, 21, 22]
        assert await codes([batcher.score(item(23), later())]) == [23]

    asyncio.run(run())


def test_what_fails_on_a_gpu_fails_alone_though_the_next_batch_is_under_way(
    start: Start, fake: FakeDetector
) -> None:
    fake.asynchronous = True

    async def run() -> None:
        batcher = start(max_batch=3, max_wait_s=0.05)
        fake.gate.clear()
        greys = [20, POISON, 22, 23, 24, POISON, 26]
        calls = ask(batcher, greys)
        await asyncio.to_thread(eventually, lambda: fake.batches == [3, 3])
        fake.gate.set()
        failed = "inference_failed"
        assert await codes(calls) == [20, failed, 22, 23, 24, failed, 26]
        assert batcher.alive
        fake.broken = True
        calls = ask(batcher, range(30, 40))
        assert await asyncio.wait_for(codes(calls), 10) == [failed] * 10
        await asyncio.to_thread(batcher._thread.join, 5)
        assert not batcher.alive

    asyncio.run(run())


def test_a_cancelled_image_is_skipped_and_its_future_left_alone(
    start: Start, fake: FakeDetector
) -> None:
    """`set_result` on a cancelled future killed the loop elsewhere."""

    async def run() -> None:
        batcher = start(max_batch=1)
        fake.gate.clear()
        running = asyncio.ensure_future(batcher.score(item(20), later()))
        await asyncio.to_thread(fake.entered.wait, 5)
        waiting = asyncio.ensure_future(batcher.score(item(21), later()))
        last = asyncio.ensure_future(batcher.score(item(22), later()))
        await asyncio.sleep(0)
        running.cancel()  # its forward is under way: the result comes for a cancelled future
        waiting.cancel()  # still queued
        await asyncio.sleep(0)
        fake.gate.set()
        assert await codes([last]) == [22]

    asyncio.run(run())
    assert fake.batches == [1, 1]  # 21 never reached the device


def test_an_expired_image_is_answered_before_the_forward(start: Start, fake: FakeDetector) -> None:
    async def run() -> None:
        batcher = start(max_batch=1)
        fake.gate.clear()
        first = asyncio.ensure_future(batcher.score(item(20), later()))
        await asyncio.to_thread(fake.entered.wait, 5)
        expired = asyncio.ensure_future(batcher.score(item(21), time.monotonic()))
        await asyncio.sleep(0)
        fake.gate.set()
        assert await codes([first, expired]) == [20, "deadline_exceeded"]

    asyncio.run(run())
    assert fake.batches == [1]


def test_a_dead_device_ends_the_thread_and_nobody_waits_for_it(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        batcher = start(max_batch=2, max_wait_s=0.05)
        fake.broken = True
        fake.gate.clear()
        calls = ask(batcher, range(20, 25))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await asyncio.wait_for(codes(calls), 10) == ["inference_failed"] * 5
        await asyncio.to_thread(batcher._thread.join, 5)
        assert not batcher.alive
        assert await codes([batcher.score(item(30), later())]) == ["inference_failed"]

    asyncio.run(run())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_not_even_a_base_exception_leaves_anybody_waiting(
    start: Start, error: type[BaseException]
) -> None:
    """CancelledError passes `except Exception`."""

    def explode(_: object) -> Any:
        raise error

    async def run() -> None:
        batcher = start(submit=explode)
        call = asyncio.wait_for(codes([batcher.score(item(20), later())]), 10)
        assert await call == ["inference_failed"]

    asyncio.run(run())


def test_a_forward_that_hangs_is_not_alive_and_does_not_hold_up_the_end(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        batcher = start(stuck_after_s=0.1)
        fake.gate.clear()
        call = asyncio.ensure_future(batcher.score(item(20), later()))
        await asyncio.to_thread(fake.entered.wait, 5)
        assert batcher.alive
        await asyncio.to_thread(eventually, lambda: not batcher.alive)
        assert await codes([batcher.score(item(21), later())]) == ["inference_failed"]
        fake.gate.set()
        assert await codes([call]) == [20]
        assert batcher.alive  # it was only slow
        fake.gate.clear()
        call = asyncio.ensure_future(batcher.score(item(22), later()))
        batcher.JOIN_S = 0.1
        await asyncio.wait_for(asyncio.to_thread(batcher.stop), 10)
        fake.gate.set()
        assert await codes([call]) == [22]

    asyncio.run(run())


def test_stopping_finishes_what_is_queued(start: Start, fake: FakeDetector) -> None:
    async def run() -> None:
        batcher = start(max_batch=1)
        fake.gate.clear()
        calls = ask(batcher, (20, 21, 22))
        await asyncio.to_thread(fake.entered.wait, 5)
        stopping = threading.Thread(target=batcher.stop)
        stopping.start()
        fake.gate.set()
        assert await codes(calls) == [20, 21, 22]
        await asyncio.to_thread(stopping.join, 5)
        assert not stopping.is_alive()
        assert not batcher.alive

    asyncio.run(run())
