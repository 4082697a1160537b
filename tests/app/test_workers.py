import asyncio
import gc
import threading
import weakref

from app.workers import Workers


class Work:
    """Work that has something to hold on to."""

    def __call__(self) -> int:
        return 1


def test_work_that_was_cancelled_before_its_turn_is_not_held() -> None:
    """Behind a second look that hung, 300 others kept their pictures, their places long free."""
    hung = threading.Event()

    async def run() -> None:
        workers = Workers("test", 1, 60)
        first = asyncio.ensure_future(workers.run(lambda: hung.wait(20)))
        waiting = [Work() for _ in range(5)]
        held = [weakref.ref(work) for work in waiting]
        calls = [asyncio.ensure_future(workers.run(work)) for work in waiting]
        del waiting
        await asyncio.sleep(0)
        assert None not in [work() for work in held]
        for call in calls[:4]:
            call.cancel()
        await asyncio.wait(calls[:4])
        assert [work() is not None for work in held] == [False] * 4 + [True]
        hung.set()
        assert await calls[4] == 1
        assert await first
        workers.stop()

    gc.disable()  # what only it would free is held
    try:
        asyncio.run(run())
    finally:
        gc.enable()
