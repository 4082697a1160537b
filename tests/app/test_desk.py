"""One image's way, and what is left of it while it waits."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.decoding.pool import Decoders, Opened
from app.errors import ApiError
from app.intake.uploads import Upload
from app.local import local
from app.schemas import DetectionOut
from app.scoring import ServedDetector
from app.service import Service, State
from app.settings import Settings
from model.detector import Detector, Look
from model.images import Limits
from model.verdicts import Verdict
from tests.conftest import CPU
from tests.fakes import DOUBTFUL, POISON, FakeDetector, shared_decoders
from tests.images import jpeg
from tests.model.test_checkpoint import rewrite
from tests.model.test_detector import NEVER_SETTLED, flags_everything, two_looks
from tests.server.conftest import eventually
from tests.server.test_detect import grey


@asynccontextmanager
async def serving(
    detector: ServedDetector, decoders: Decoders | None = None, **settings: Any
) -> AsyncIterator[Service]:
    chosen = Settings(**{"cache_size": 0} | settings)
    service = Service(chosen, local(lambda _: detector, decoders or shared_decoders()))
    await service.start(lambda: None)
    assert service.state is State.READY
    try:
        yield service
    finally:
        if isinstance(detector, FakeDetector):
            detector.gate.set()
        await asyncio.to_thread(service.stop)


def ask(
    service: Service,
    data: bytes,
    seconds: float = 20,
    upload: Upload | None = None,
    threshold: float | None = None,
) -> asyncio.Task[DetectionOut]:
    upload = upload or Upload()
    upload.add(data)
    return asyncio.create_task(
        service.desk.answer(
            upload, identifier="id", threshold=threshold, deadline=time.monotonic() + seconds
        )
    )


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(eventually, condition)


async def code(task: asyncio.Task[DetectionOut]) -> str:
    with pytest.raises(ApiError) as caught:
        await task
    return caught.value.code


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only a search for garbage would free counts as held."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watched:
    """What went through the decoders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[bytes] = []
        self.pixels: list[weakref.ref[NDArray[np.uint8]]] = []
        self._inspect = Decoders.inspect
        monkeypatch.setattr(Decoders, "inspect", lambda *given: self._watched(*given))

    def _watched(self, decoders: Decoders, parts: Iterable[bytes], limits: Limits) -> Opened:
        def watched() -> Iterator[bytes]:
            for part in parts:
                self.files.append(part)
                yield part
                del part

        opened = self._inspect(decoders, watched(), limits)
        self.pixels.append(weakref.ref(opened.picture.pixels))
        return opened

    def held(self) -> int:
        """Files and pixels that anybody but this test holds."""
        files = sum(sys.getrefcount(self.files[index]) > 2 for index in range(len(self.files)))
        return files + sum(pixels() is not None for pixels in self.pixels)


@pytest.mark.usefixtures("no_collector")
def test_of_an_image_that_waits_for_the_device_neither_file_nor_pixels_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 photographs of 24 megapixels held 4.6 GB of pixels until they were answered."""
    watched, fake = Watched(monkeypatch), FakeDetector()

    async def run() -> None:
        async with serving(fake, max_batch=1) as service:
            fake.gate.clear()
            tasks = [ask(service, jpeg(400, 300, seed)) for seed in range(6)]
            await until(lambda: service.desk.waiting == 5)  # and one that the device has
            assert len(watched.files) == len(watched.pixels) == 6
            assert watched.held() == 0
            fake.gate.set()
            assert {answer.image.width for answer in await asyncio.gather(*tasks)} == {400}

    asyncio.run(run())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("deadline", [False, True])
def test_of_an_image_given_up_in_the_queue_its_look_is_not_held(
    monkeypatch: pytest.MonkeyPatch, deadline: bool, same: bool
) -> None:
    """Of those whose deadline had passed, every look was held until a full collection."""
    fake = FakeDetector()
    cut, canvases = fake.look, list[weakref.ref[Any]]()

    def look(pixels: NDArray[np.uint8], **_: bool) -> Look:
        one = cut(pixels)
        canvases.append(weakref.ref(one.canvases))
        return one

    monkeypatch.setattr(fake, "look", look)

    async def run() -> None:
        async with serving(fake, max_batch=1) as service:
            fake.gate.clear()
            first = ask(service, grey(20))
            await asyncio.to_thread(fake.entered.wait, 5)
            greys = [100] * 4 if same else [100, 101, 102, 103]
            tasks = [ask(service, grey(value), 0.4 if deadline else 20) for value in greys]
            await until(lambda: service.desk.waiting == len(set(greys)))
            if not deadline:
                for task in tasks:
                    task.cancel()
            await asyncio.wait(tasks)
            assert [task.cancelled() for task in tasks] == [not deadline] * 4
            assert not deadline or {await code(task) for task in tasks} == {"deadline_exceeded"}
            await until(lambda: service.desk.waiting == 0)
            assert [one() is not None for one in canvases[1:]] == [False] * len(set(greys))
            fake.gate.set()
            await first

    asyncio.run(run())


@pytest.mark.usefixtures("no_collector")
def test_an_error_holds_neither_file_nor_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback has frames, and frames have all that was under way in them."""
    watched, fake = Watched(monkeypatch), FakeDetector()

    def bug(grey: int) -> None:
        if grey == 70:
            raise RuntimeError("of no decoder's")

    fake.before_look = bug
    refused = {
        "corrupt_image": jpeg(400, 300)[:9000],
        "unsupported_media_type": b"no image " * 1000,
        "image_too_small": grey(20, (60, 60)),
        "internal_error": grey(70, (300, 300)),
        "inference_failed": grey(POISON, (300, 300)),
    }

    async def run() -> list[BaseException | None]:
        async with serving(fake) as service:
            tasks = [ask(service, data) for data in refused.values()]
            await asyncio.wait(tasks)
            return [task.exception() for task in tasks]

    data = [bytes(bytearray(one)) for one in refused.values()]  # the test's own stay out of it
    refused = dict(zip(refused, data, strict=True))
    del data
    errors = asyncio.run(run())
    assert [error.code for error in errors if isinstance(error, ApiError)] == list(refused)
    refused.clear()
    assert len(watched.files) == 5
    assert len(watched.pixels) == 2
    assert watched.held() == 0


def test_a_second_look_waits_for_no_decoder() -> None:
    """Behind every decode in one pool, a doubtful image that came first was answered eleventh."""
    fake, busy, entered = FakeDetector(), threading.Event(), threading.Event()

    def look(grey: int) -> None:
        if grey != DOUBTFUL:
            entered.set()
            busy.wait(20)

    fake.before_look = look

    async def run() -> None:
        async with serving(fake, decode_workers=1) as service:
            fake.gate.clear()
            doubtful = ask(service, grey(DOUBTFUL))
            await asyncio.to_thread(fake.entered.wait, 5)
            others = [ask(service, grey(value)) for value in range(100, 110)]
            await asyncio.to_thread(entered.wait, 5)
            fake.gate.set()
            answer = await asyncio.wait_for(doubtful, 10)
            assert answer.looks == 2
            assert not any(other.done() for other in others)
            busy.set()
            await asyncio.gather(*others)

    asyncio.run(run())


def test_a_second_look_that_hangs_fails_liveness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.Settings.stuck_after_s", 0.3)
    fake, stuck = FakeDetector(), threading.Event()
    fake.before_more = lambda: stuck.wait(20)

    async def run() -> None:
        async with serving(fake) as service:
            task = ask(service, grey(DOUBTFUL))
            await until(lambda: fake.batches and not service.alive)
            assert service.busy
            stuck.set()
            assert (await task).looks == 2
            assert service.alive

    asyncio.run(run())


def test_a_forward_still_under_way_after_the_end_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.queue.DeviceQueue.JOIN_S", 0.05)
    fake = FakeDetector()

    async def run() -> None:
        async with serving(fake) as service:
            fake.gate.clear()
            task = ask(service, grey(100))
            await asyncio.to_thread(fake.entered.wait, 5)
            await asyncio.to_thread(service.stop)
            assert service.busy
            fake.gate.set()
            await task
            await until(lambda: not service.busy)

    asyncio.run(run())


def test_who_shares_an_image_keeps_a_deadline_of_its_own() -> None:
    fake = FakeDetector()

    async def run() -> None:
        async with serving(fake) as service:
            fake.gate.clear()
            first = ask(service, grey(100), seconds=1)
            await asyncio.to_thread(fake.entered.wait, 5)
            second = ask(service, grey(100))
            assert await code(first) == "deadline_exceeded"
            await asyncio.sleep(0.05)
            assert not second.done()
            fake.gate.set()
            assert (await second).score == pytest.approx(100 / 255)

    asyncio.run(run())
    assert fake.batches == [1]


def test_of_identical_uploads_one_file_is_kept() -> None:
    fake, busy = FakeDetector(), threading.Event()
    fake.before_look = lambda _: busy.wait(20)

    async def run() -> None:
        async with serving(fake, decode_workers=1) as service:
            decoding = ask(service, grey(100))  # so that the first of the others waits for it
            uploads = [Upload() for _ in range(3)]
            tasks = [ask(service, grey(101), upload=upload) for upload in uploads]
            await until(lambda: service.desk.sharing == 2)
            assert [b"".join(upload.parts()) for upload in uploads] == [b""] * 3
            busy.set()
            await asyncio.gather(decoding, *tasks)

    asyncio.run(run())
    assert sum(fake.batches) == 2


def test_an_image_whose_deadline_passes_in_the_queue_is_never_scored() -> None:
    fake = FakeDetector()

    async def run() -> None:
        async with serving(fake) as service:
            fake.gate.clear()
            first = ask(service, grey(100))
            await asyncio.to_thread(fake.entered.wait, 5)
            expired = [ask(service, grey(101), seconds=0.2) for _ in range(2)]
            assert [await code(task) for task in expired] == ["deadline_exceeded"] * 2
            await until(lambda: service.desk.waiting == 0)
            fake.gate.set()
            await first

    asyncio.run(run())
    assert fake.batches == [1]


def test_an_error_is_shared_and_not_kept() -> None:
    fake = FakeDetector()

    async def run() -> None:
        async with serving(fake, cache_size=100) as service:
            fake.gate.clear()
            tasks = [ask(service, grey(POISON)) for _ in range(4)]
            await asyncio.to_thread(fake.entered.wait, 5)
            await until(lambda: service.desk.sharing == 3)
            fake.gate.set()
            assert [await code(task) for task in tasks] == ["inference_failed"] * 4
            assert fake.batches == [1]
            assert await code(ask(service, grey(POISON))) == "inference_failed"

    asyncio.run(run())
    assert fake.batches == [1, 1]


@pytest.mark.parametrize(
    "files",
    [
        [b"nonsense", grey(100)],
        [grey(100), b"nonsense"],
        [grey(DOUBTFUL), grey(100)],
        [grey(DOUBTFUL), grey(100), grey(101), grey(102)],
    ],
)
def test_a_batch_waits_for_no_image_that_will_not_come(files: list[bytes]) -> None:
    """Their places are taken until all are answered, and a slow sender's is: none of them comes."""

    async def run() -> None:
        async with serving(FakeDetector(), max_wait_ms=1000, max_batch=8) as service:
            with service.places.hold(len(files) + 1):
                tasks = [ask(service, file) for file in files]
                await asyncio.wait(tasks)
            answers = [task.result() for task in tasks if task.exception() is None]
            assert len(answers) == len(files) - files.count(b"nonsense")
            assert max(answer.timings_ms.queue for answer in answers) < 500

    asyncio.run(run())


def test_a_batch_does_not_wait_for_images_that_share_another() -> None:
    """Each has a place, but one look comes of them all: waiting for more was waiting for none."""
    fake = FakeDetector()

    async def run() -> None:
        async with serving(fake, max_wait_ms=1000, max_batch=8) as service:
            with service.places.hold(4):
                fake.before_look = lambda _: service_busy.wait(5)
                tasks = [ask(service, grey(100)) for _ in range(4)]
                await until(lambda: service.desk.sharing == 3)
                service_busy.set()
                answers = await asyncio.gather(*tasks)
            assert max(answer.timings_ms.queue for answer in answers) < 500

    service_busy = threading.Event()
    asyncio.run(run())


def test_a_picture_of_low_quality_is_held_back_by_the_detectors_rule_cached_or_not(
    checkpoint: Path, tiny_tower: Path
) -> None:
    """Through both looks of a real one, by its cuts and by the client's."""

    async def run() -> list[DetectionOut]:
        detector = Detector.load(checkpoint, backbone=tiny_tower, runtime=CPU)
        async with serving(detector, cache_size=10) as service:
            return [
                await ask(service, jpeg(200, 150), threshold=threshold)
                for threshold in (None, None, 0.0, 1.0)
            ]

    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    freely = asyncio.run(run())
    rewrite(checkpoint, metadata=flags_everything)
    held = asyncio.run(run())
    accused, uncertain, real = Verdict.AI_GENERATED, Verdict.UNCERTAIN, Verdict.REAL
    assert [answer.verdict for answer in freely] == [accused, accused, accused, real]
    assert [answer.verdict for answer in held] == [uncertain, uncertain, uncertain, real]
    for answers, warnings in ((freely, []), (held, ["low_quality"])):
        assert [answer.cached for answer in answers] == [False, True, True, True]
        assert [answer.warnings for answer in answers] == [warnings] * 4
        assert {(answer.score, answer.looks) for answer in answers} == {(freely[0].score, 2)}
