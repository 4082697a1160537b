import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from app.errors import ApiError
from app.metrics import Metrics
from app.queue import Answer, DeviceQueue
from model.detector import Look
from tests.fakes import DOUBTFUL, POISON, SETTLED, FakeDetector, look_of
from tests.server.conftest import eventually

Start = Callable[..., DeviceQueue]


@pytest.fixture
def fake() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def start(fake: FakeDetector) -> Iterator[Start]:
    started = []

    def run(expected: int = 100, **options: Any) -> DeviceQueue:
        settings = {"max_batch": 4, "max_wait_s": 0.02, "stuck_after_s": 60.0} | options
        queue = DeviceQueue(
            settings.pop("submit", fake.submit),
            lambda: fake.warm_up([1]),
            lambda: None,
            Metrics(),
            **settings,
        )
        queue.expect(expected)
        queue.start()
        started.append(queue)
        return queue

    yield run
    fake.gate.set()
    for queue in started:
        queue.stop()


def ask(queue: DeviceQueue, greys: Iterable[float]) -> list[asyncio.Future[Answer]]:
    """Requests for images of these greys, all at once."""
    return [asyncio.ensure_future(queue.score(look_of(grey))) for grey in greys]


def asleep(queue: DeviceQueue) -> bool:
    """Whether the device thread waits for more than the one look that it has."""
    return queue.waiting == 1 and bool(queue._changed._waiters)  # type: ignore[attr-defined]


def number(answer: Answer) -> int | str:
    score, queue_s, forward_s = answer
    assert queue_s >= 0
    assert forward_s >= 0
    return "doubt" if score.more is not None else round(score.value * 255)


async def codes(calls: list[Any]) -> list[Any]:
    """Scores as numbers, errors as codes."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return [
        number(answer)
        if isinstance(answer, tuple)
        else answer.code
        if isinstance(answer, ApiError)
        else answer
        for answer in answers
    ]


def test_images_that_come_together_share_a_forward(start: Start, fake: FakeDetector) -> None:
    async def run() -> None:
        queue = start(max_wait_s=0.5)
        answers = await codes([queue.score(look_of(i)) for i in (20, 21, 22, 23)])
        assert answers == [20, 21, 22, 23]

    asyncio.run(run())
    assert fake.batches == [4]


def test_no_batch_exceeds_its_limit_and_none_waits_longer_than_told(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        queue = start(max_batch=3, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(queue, range(20, 30))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await codes(calls) == list(range(20, 30))
        began = time.monotonic()
        await queue.score(look_of(50))
        assert time.monotonic() - began < 5

    asyncio.run(run())
    assert max(fake.batches) == 3
    assert sum(fake.batches) == 11


def test_a_look_that_counts_as_many_images_is_a_batch_of_its_own(
    start: Start, fake: FakeDetector
) -> None:
    pixels = np.full((448, 448, 3), 30, np.uint8)

    async def run() -> None:
        queue = start(max_batch=4, max_wait_s=0.01)
        fake.gate.clear()
        first = ask(queue, [20])
        await asyncio.to_thread(fake.entered.wait, 5)
        explained = [queue.score(fake.look(pixels, explain=True)) for _ in range(2)]
        calls = [*first, *ask(queue, [21, 22]), *map(asyncio.ensure_future, explained)]
        await asyncio.to_thread(eventually, lambda: queue.waiting == 4)
        fake.gate.set()
        assert await codes([*calls, *ask(queue, [23])]) == [20, 21, 22, 30, 30, 23]

    asyncio.run(run())
    assert fake.batches[:4] == [1, 2, 1, 1]


def test_an_image_waits_for_others_only_while_some_are_on_their_way(
    start: Start, fake: FakeDetector
) -> None:
    """A single client paid the whole `max_wait` at every image."""

    async def run() -> None:
        queue = start(max_wait_s=20.0, expected=2)
        assert await codes(ask(queue, [20, 21])) == [20, 21]
        [call] = ask(queue, [22])
        await asyncio.to_thread(eventually, lambda: asleep(queue))
        queue.expect(-1)  # the other one is no image
        assert await codes([call]) == [22]

    asyncio.run(asyncio.wait_for(run(), 10))
    assert fake.batches == [2, 1]


def test_a_second_look_does_not_wait_behind_all_the_others(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        queue = start(max_batch=2, max_wait_s=0.01)
        first, _, _ = await queue.score(look_of(DOUBTFUL))
        assert first.more is not None
        fake.gate.clear()
        fake.entered.clear()
        done: list[int | str] = []

        async def ask(look: Look, *, next_up: bool = False) -> None:
            done.append(number(await queue.score(look, next_up=next_up)))

        calls = [asyncio.ensure_future(ask(look_of(20)))]
        await asyncio.to_thread(fake.entered.wait, 5)  # the device is busy
        calls += [asyncio.ensure_future(ask(look_of(grey))) for grey in (21, 22, 23)]
        await asyncio.sleep(0)  # they are in the queue
        calls.append(asyncio.ensure_future(ask(first.more(), next_up=True)))
        await asyncio.sleep(0)
        fake.gate.set()
        await asyncio.gather(*calls)
        assert done == [20, SETTLED, 21, 22, 23]

    asyncio.run(run())
    assert fake.batches == [1, 1, 2, 2]


def test_a_poison_image_fails_alone(start: Start, fake: FakeDetector) -> None:
    """One exception killed the worker elsewhere, and later requests hung."""

    async def run() -> None:
        queue = start(max_batch=8, max_wait_s=0.2)
        greys = [20, 21, POISON, 23, 24, POISON, 26]
        answers = await codes([queue.score(look_of(g)) for g in greys])
        assert answers == [20, 21, "inference_failed", 23, 24, "inference_failed", 26]
        assert queue.alive
        assert await codes([queue.score(look_of(30))]) == [30]

    asyncio.run(run())


def test_a_gpu_gets_the_next_full_batch_before_it_is_done_with_this_one(
    start: Start, fake: FakeDetector
) -> None:
    fake.asynchronous = True

    async def run() -> None:
        queue = start(max_batch=2, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(queue, range(20, 27))
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
        queue = start(max_batch=2, max_wait_s=0.01)
        fake.gate.clear()
        calls = ask(queue, (20, 21, 22))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await codes(calls) == [20, 21, 22]
        assert await codes([queue.score(look_of(23))]) == [23]

    asyncio.run(run())


def test_what_fails_on_a_gpu_fails_alone_though_the_next_batch_is_under_way(
    start: Start, fake: FakeDetector
) -> None:
    fake.asynchronous = True

    async def run() -> None:
        queue = start(max_batch=3, max_wait_s=0.05)
        fake.gate.clear()
        greys = [20, POISON, 22, 23, 24, POISON, 26]
        calls = ask(queue, greys)
        await asyncio.to_thread(eventually, lambda: fake.batches == [3, 3])
        fake.gate.set()
        failed = "inference_failed"
        assert await codes(calls) == [20, failed, 22, 23, 24, failed, 26]
        assert queue.alive
        fake.broken = True
        calls = ask(queue, range(30, 40))
        assert await asyncio.wait_for(codes(calls), 10) == [failed] * 10
        await asyncio.to_thread(queue._thread.join, 5)
        assert not queue.alive

    asyncio.run(run())


def test_a_cancelled_image_is_skipped_and_its_future_left_alone(
    start: Start, fake: FakeDetector
) -> None:
    """`set_result` on a cancelled future killed the loop elsewhere."""

    async def run() -> None:
        queue = start(max_batch=1)
        fake.gate.clear()
        [running] = ask(queue, [20])
        await asyncio.to_thread(fake.entered.wait, 5)
        [waiting, last] = ask(queue, [21, 22])
        await asyncio.sleep(0)
        running.cancel()  # its forward is under way: the result comes for a cancelled future
        waiting.cancel()  # still queued
        await asyncio.sleep(0)
        fake.gate.set()
        assert await codes([last]) == [22]

    asyncio.run(run())
    assert fake.batches == [1, 1]  # 21 never reached the device


def test_what_nobody_waits_for_leaves_the_queue_at_once_with_its_canvases(
    start: Start, fake: FakeDetector
) -> None:
    """Of 300 clients that had left, the queue held 265 jobs until the device came to them."""

    async def run() -> None:
        queue = start(max_batch=1)
        fake.gate.clear()
        [running] = ask(queue, [20])
        await asyncio.to_thread(fake.entered.wait, 5)
        looks = [look_of(21) for _ in range(300)]
        canvases = [weakref.ref(look.canvases) for look in looks]
        waiting = [asyncio.ensure_future(queue.score(look)) for look in looks]
        del looks
        await asyncio.sleep(0)
        assert queue.waiting == 300
        for call in waiting:
            call.cancel()
        del call, waiting
        await asyncio.sleep(0.01)  # of the loop's time alone: the device is busy all along
        assert queue.waiting == 0
        assert [canvas() for canvas in canvases] == [None] * 300
        fake.gate.set()
        assert await codes([running]) == [20]

    gc.disable()  # what only it would free is held
    try:
        asyncio.run(run())
    finally:
        gc.enable()
    assert fake.batches == [1]


def test_what_nobody_waits_for_fills_no_batch(start: Start, fake: FakeDetector) -> None:
    """A batch of two, one of them long gone, was full, and the next image missed it."""

    async def run() -> None:
        queue = start(max_batch=2, max_wait_s=20.0)
        fake.gate.clear()
        first = ask(queue, [20, 21])
        await asyncio.to_thread(fake.entered.wait, 5)
        [kept, gone] = ask(queue, [22, 23])
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        fake.gate.set()
        assert await codes(first) == [20, 21]
        await asyncio.sleep(0.1)
        assert not kept.done()
        assert await codes([kept, *ask(queue, [24])]) == [22, 24]

    asyncio.run(asyncio.wait_for(run(), 15))
    assert fake.batches == [2, 2]


def test_answered_looks_are_not_held(start: Start) -> None:
    """The device thread held its last batch until the next one came."""

    async def run() -> None:
        queue = start()
        look = look_of(20)
        canvases = weakref.ref(look.canvases)
        await queue.score(look)
        del look
        await asyncio.to_thread(eventually, lambda: canvases() is None)

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_a_dead_device_ends_the_thread_and_nobody_waits_for_it(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        queue = start(max_batch=2, max_wait_s=0.05)
        fake.broken = True
        fake.gate.clear()
        calls = ask(queue, range(20, 25))
        await asyncio.to_thread(fake.entered.wait, 5)
        fake.gate.set()
        assert await asyncio.wait_for(codes(calls), 10) == ["inference_failed"] * 5
        await asyncio.to_thread(queue._thread.join, 5)
        assert not queue.alive
        assert await codes([queue.score(look_of(30))]) == ["inference_failed"]

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
        queue = start(submit=explode)
        call = asyncio.wait_for(codes([queue.score(look_of(20))]), 10)
        assert await call == ["inference_failed"]

    asyncio.run(run())


def test_a_forward_that_hangs_is_not_alive_and_does_not_hold_up_the_end(
    start: Start, fake: FakeDetector
) -> None:
    async def run() -> None:
        queue = start(stuck_after_s=0.1)
        fake.gate.clear()
        call = asyncio.ensure_future(queue.score(look_of(20)))
        await asyncio.to_thread(fake.entered.wait, 5)
        assert queue.alive
        await asyncio.to_thread(eventually, lambda: not queue.alive)
        assert await codes([queue.score(look_of(21))]) == ["inference_failed"]
        fake.gate.set()
        assert await codes([call]) == [20]
        assert queue.alive  # it was only slow
        fake.gate.clear()
        call = asyncio.ensure_future(queue.score(look_of(22)))
        queue.JOIN_S = 0.1
        await asyncio.wait_for(asyncio.to_thread(queue.stop), 10)
        assert queue.busy  # the end of the interpreter would abort in it
        fake.gate.set()
        assert await codes([call]) == [22]
        await asyncio.to_thread(eventually, lambda: not queue.busy)

    asyncio.run(run())


def test_stopping_finishes_what_is_queued(start: Start, fake: FakeDetector) -> None:
    async def run() -> None:
        queue = start(max_batch=1)
        fake.gate.clear()
        calls = ask(queue, (20, 21, 22))
        await asyncio.to_thread(fake.entered.wait, 5)
        stopping = threading.Thread(target=queue.stop)
        stopping.start()
        fake.gate.set()
        assert await codes(calls) == [20, 21, 22]
        await asyncio.to_thread(stopping.join, 5)
        assert not stopping.is_alive()
        assert not queue.alive

    asyncio.run(run())
