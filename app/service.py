"""One image's way through the service: decode -> patches -> batch -> network -> verdict."""

import asyncio
import functools
import gc
import hashlib
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum

import torch

from app.batching import Batcher
from app.cache import ResultCache
from app.decoding import Decoded, decode
from app.errors import ApiError, log_unexpected
from app.limits import Admission, ApiKeys, RateLimiter
from app.metrics import Metrics
from app.schemas import DetectionOut, ImageOut, ModelOut, ThresholdsOut, TimingsOut
from app.settings import Settings
from app.uploads import Upload
from model.cores import use_threads
from model.detector import (
    Detection,
    Detector,
    Doubt,
    ImageTooSmallError,
    ModelError,
    Prepared,
    Thresholds,
)

log = logging.getLogger(__name__)

Loader = Callable[[Settings], Detector]


class State(Enum):
    """Where the service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Result:
    """What is worth keeping of an image's answer; thresholds are applied afterwards."""

    score: float
    warnings: tuple[str, ...]
    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    image: Decoded
    item: Prepared
    decode_s: float
    patches_s: float


def load_detector(settings: Settings) -> Detector:
    """Load the detector that the settings name."""
    return Detector.load(
        settings.checkpoint,
        backbone=settings.backbone,
        device=settings.device,
        dtype=settings.dtype,
        engine=settings.engine,
        canvases=settings.canvases,
        threads=settings.threads(),
    )


@asynccontextmanager
async def within(deadline: float) -> AsyncIterator[None]:
    """Turn passing `deadline` (of `time.monotonic()`) into deadline_exceeded."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError:
        raise ApiError("deadline_exceeded", "The image was not scored in time.") from None


class Service:
    """The detector with everything that stands between it and HTTP.

    Args:
        settings: the service's settings.
        load: gives the detector; runs in a thread while probes are already answered.
    """

    # What is decoded at the end answers nobody any more: its thread may be left behind.
    JOIN_S = 2.0

    def __init__(self, settings: Settings, load: Loader) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings.max_queue)
        self.metrics.inflight.set_function(lambda: self.admission.taken)
        self.keys = ApiKeys(settings.api_keys)
        self.rates = RateLimiter(settings.rate_limit_per_minute)
        self.state = State.LOADING
        self._load = load
        self._detector: Detector | None = None
        self._batcher: Batcher | None = None
        self._results: ResultCache[_Result] = ResultCache(
            settings.cache_size, settings.cache_ttl_s, self.metrics
        )
        self._decoding: list[float] = []  # starts of what the pool is at
        # One thread each for its own torch operations: cores are for the forward pass.
        self._pool = ThreadPoolExecutor(
            settings.decoders(), "decode", initializer=use_threads, initargs=(1,)
        )

    # --- life -----------------------------------------------------------------------------------

    async def start(self, failed: Callable[[], None]) -> None:
        """Load and warm up; `failed` is called if that cannot be done."""
        began = time.monotonic()
        try:
            detector = await _in_daemon_thread(self._load_warm)
            batcher = Batcher(
                detector.submit,
                functools.partial(detector.warm_up, [1]),
                functools.partial(use_threads, detector.torch_threads(self.settings.threads())),
                lambda: self.admission.taken,
                self.metrics,
                max_batch=self.settings.max_batch,
                max_wait_s=self.settings.max_wait_ms / 1000,
                stuck_after_s=self._stuck_after_s,
            )
        except ModelError as error:
            log.error("the model cannot be loaded: %s", error)  # noqa: TRY400  (one clear line)
            self.state = State.FAILED
            failed()
            return
        except Exception as error:  # out of memory, a broken driver, ...
            log.error("the model cannot be loaded: %s: %s", type(error).__name__, error)  # noqa: TRY400
            log.debug("traceback", exc_info=True)
            self.state = State.FAILED
            failed()
            return
        batcher.start()
        self._detector, self._batcher = detector, batcher
        took = time.monotonic() - began
        self.metrics.model_load.set(took)
        self.metrics.model_info.labels(
            detector.name, detector.version, detector.sha256, str(detector.device),
            detector.dtype,
        ).set(1)  # fmt: skip
        if self.state is State.LOADING:
            self.state = State.READY
        log.info("%s %s is ready on %s (%s, %s) after %.1f s", detector.name, detector.version,
                 detector.device, detector.engine, detector.dtype, took)  # fmt: skip

    def _load_warm(self) -> Detector:
        torch.set_num_threads(self.settings.threads())
        detector = self._load(self.settings)
        detector.warm_up(sorted({1, self.settings.max_batch}))
        # What is loaded stays: without this, every full collection goes through all of it, and
        # holds every thread for a fifth of a second.
        gc.collect()
        gc.freeze()
        return detector

    def drain(self) -> None:
        """Refuse new work from now on; what is admitted is finished."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """End the threads; waits for what they hold, up to `JOIN_S`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + self.JOIN_S
        while self.decoding and time.monotonic() < end:
            time.sleep(0.01)
        if self._batcher:
            self._batcher.stop()

    @property
    def decoding(self) -> bool:
        """Whether a thread of the pool is at work; after `stop`, one that nothing will end."""
        return bool(self._decoding)

    @property
    def alive(self) -> bool:
        """Whether a restart is not needed: loading, or device and decoders get on."""
        if self._batcher is None:
            return self.state is not State.FAILED
        oldest = min(list(self._decoding), default=math.inf)
        return self._batcher.alive and time.monotonic() - oldest < self._stuck_after_s

    @property
    def _stuck_after_s(self) -> float:
        # Twice the deadline after which nobody waits for it, and some for a slow disk.
        return 2 * self.settings.deadline_s + 30

    @property
    def detector(self) -> Detector:
        """The loaded detector.

        Raises:
            ApiError: not_ready.
        """
        if self._detector is None:
            raise ApiError("not_ready", "The model is being loaded.", retry_after=2)
        return self._detector

    def check_open(self) -> None:
        """Raise not_ready or draining unless work is taken."""
        if self.state is State.DRAINING:
            raise ApiError("draining", "This server is shutting down.",
                           retry_after=self.admission.retry_after())  # fmt: skip
        if self.state is not State.READY:
            raise ApiError("not_ready", "The model is being loaded.", retry_after=2)
        if not self.alive:
            raise ApiError("not_ready", "Device or decoders do not answer.", retry_after=30)

    # --- work -----------------------------------------------------------------------------------

    async def detect(
        self, upload: Upload, *, identifier: str, threshold: float | None, deadline: float
    ) -> DetectionOut:
        """Score one image.

        Args:
            upload: the file; taken from it.
            identifier: the answer's id.
            threshold: one cut instead of the checkpoint's two.
            deadline: of `time.monotonic()`.

        Raises:
            ApiError: whatever went wrong, in the contract's terms.
        """
        outcome = "cancelled"
        try:
            async with within(deadline):
                answer = await self._detect(upload, identifier, threshold, deadline)
            outcome = "ok"
        except ApiError:
            outcome = "error"
            raise
        except Exception as error:  # noqa: BLE001  (a bug, but this image's alone)
            outcome = "error"
            log_unexpected(log, error, identifier)
            raise ApiError("internal_error", "The image could not be handled.") from None
        else:
            self.metrics.predictions.labels(answer.verdict.value).inc()
            self.metrics.score.observe(answer.score)
            return answer
        finally:
            upload.discard()
            self.metrics.images.labels(outcome).inc()
            self.admission.answered()

    async def _detect(
        self, upload: Upload, identifier: str, threshold: float | None, deadline: float
    ) -> DetectionOut:
        detector = self.detector
        loop = asyncio.get_running_loop()
        begin = functools.partial(self._begin, upload, thorough=threshold is not None)
        digest, found = await loop.run_in_executor(self._pool, begin)
        if isinstance(found, _Result):
            result = found
            timings = TimingsOut(decode=0, patches=0, queue=0, inference=0)
        else:
            detection, timings = await self._score(found, deadline)
            result = _Result(
                detection.score, (*found.image.warnings, *detection.warnings),
                found.image.format, found.image.width, found.image.height,
            )  # fmt: skip
            self._results.keep(self._key(digest, thorough=threshold is not None), result)
        cuts = detector.thresholds
        if threshold is not None:
            cuts = Thresholds(real_below=threshold, ai_above=threshold)
        return DetectionOut(
            id=identifier,
            verdict=cuts.verdict(result.score),
            score=result.score,
            thresholds=ThresholdsOut(real_below=cuts.real_below, ai_above=cuts.ai_above),
            model=self.model(),
            image=ImageOut(
                sha256=digest, format=result.format, width=result.width, height=result.height
            ),
            warnings=list(result.warnings),
            cached=isinstance(found, _Result),
            timings_ms=timings,
        )

    async def _score(self, image: _Prepared, deadline: float) -> tuple[Detection, TimingsOut]:
        """Its turn in a batch, and where that leaves doubt another look and another turn."""
        assert self._batcher is not None  # noqa: S101  (there is a detector, so there is one)
        scored = await self._batcher.score(image.item, deadline)
        patches, queue, forward = image.patches_s, scored.queue_s, scored.forward_s
        while isinstance(scored.outcome, Doubt):
            loop = asyncio.get_running_loop()
            look = functools.partial(self._look, scored.outcome)
            item, took = await loop.run_in_executor(self._pool, look)
            scored = await self._batcher.score(item, deadline, next_up=True)
            patches, queue = patches + took, queue + scored.queue_s
            forward += scored.forward_s
        timings = TimingsOut(
            decode=_ms(image.decode_s), patches=_ms(patches), queue=_ms(queue),
            inference=_ms(forward),
        )  # fmt: skip
        return scored.outcome, timings

    def _look(self, doubt: Doubt) -> tuple[Prepared, float]:
        """The image's other canvases, and the seconds it took to choose them; runs in the pool."""
        with self._at_work() as start:
            item = doubt.look()
            took = time.monotonic() - start
        self.metrics.stage.labels("patches").observe(took)
        return item, took

    def model(self) -> ModelOut:
        """Which model answers."""
        d = self.detector
        return ModelOut(name=d.name, version=d.version, sha256=d.sha256)

    def _begin(self, upload: Upload, *, thorough: bool) -> tuple[str, _Result | _Prepared]:
        """The file's sha256, and its result if that is kept, else its image; runs in the pool."""
        with self._at_work():
            data = upload.take()
            digest = hashlib.sha256(data).hexdigest()
            kept = self._results.find(self._key(digest, thorough=thorough))
            return digest, kept or self._prepare(data, thorough=thorough)

    @contextmanager
    def _at_work(self) -> Iterator[float]:
        """Keep a thread of the pool in sight: one that hangs is for `alive` to tell."""
        start = time.monotonic()
        self._decoding.append(start)
        try:
            yield start
        finally:
            self._decoding.remove(start)

    def _key(self, digest: str, *, thorough: bool) -> tuple[str, ...]:
        # No other option of a request changes the score: thresholds are applied to what is kept.
        detector = self.detector
        return digest, detector.sha256, detector.dtype, "all" if thorough else detector.canvases

    def _prepare(self, data: bytes, *, thorough: bool) -> _Prepared:
        """Decode and select patches.

        What the first look settles is settled for the checkpoint's cuts. A cut of the client's own
        needs all that there is to see (`thorough`), or it could accuse by a glance.
        """
        detector = self.detector
        start = time.monotonic()
        image = decode(data, self.settings, min_side=detector.min_side)
        decoded = time.monotonic()
        try:
            item = detector.prepare(image.pixels, thorough=thorough)
        except ImageTooSmallError as error:  # the header's check makes this unreachable but for
            raise ApiError(  # images whose header lied about their size
                "image_too_small", f"Both sides must have {error.min_side} pixels or more."
            ) from None
        done = time.monotonic()
        self.metrics.stage.labels("decode").observe(decoded - start)
        self.metrics.stage.labels("patches").observe(done - decoded)
        return _Prepared(image, item, decoded - start, done - decoded)


async def _in_daemon_thread(work: Callable[[], Detector]) -> Detector:
    """Like `asyncio.to_thread`, but the end of the process does not wait for it.

    Loading may take minutes; SIGTERM must not.
    """
    done: Future[Detector] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  (handed on to whoever waits)
            done.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(done)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
