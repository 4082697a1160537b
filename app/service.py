"""One image's way through the service: decode -> patches -> batch -> network -> verdict."""

import asyncio
import functools
import gc
import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import torch

from app.batching import Batcher
from app.cache import ResultCache
from app.decoding import Decoded, decode
from app.errors import ApiError
from app.limits import Admission, ApiKeys, RateLimiter
from app.metrics import Metrics
from app.schemas import DetectionOut, ImageOut, ModelOut, ThresholdsOut, TimingsOut
from app.settings import Settings
from app.uploads import Upload
from model.detector import Detector, ImageTooSmallError, ModelError, Prepared, Thresholds

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
        # One thread each for its own torch operations: cores are for the forward pass.
        self._pool = ThreadPoolExecutor(
            settings.decoders(), "decode", initializer=_use_threads, initargs=(1,)
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
                functools.partial(_use_threads, detector.torch_threads(self.settings.threads())),
                lambda: self.admission.taken,
                self.metrics,
                max_batch=self.settings.max_batch,
                max_wait_s=self.settings.max_wait_ms / 1000,
                # Twice the deadline after which nobody waits for it, and some for a slow disk.
                stuck_after_s=2 * self.settings.deadline_s + 30,
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
        """End the threads; waits for what they hold."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._batcher:
            self._batcher.stop()

    @property
    def alive(self) -> bool:
        """Whether a restart is not needed: loading, or the device thread gets on."""
        if self._batcher is None:
            return self.state is not State.FAILED
        return self._batcher.alive

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
            raise ApiError("not_ready", "The device does not answer.", retry_after=30)

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
        else:
            self.metrics.predictions.labels(answer.verdict.value).inc()
            self.metrics.score.observe(answer.score)
            return answer
        finally:
            self.metrics.images.labels(outcome).inc()
            self.admission.answered()

    async def _detect(
        self, upload: Upload, identifier: str, threshold: float | None, deadline: float
    ) -> DetectionOut:
        detector = self.detector
        loop = asyncio.get_running_loop()
        digest, found = await loop.run_in_executor(self._pool, self._begin, upload)
        if isinstance(found, _Result):
            result = found
            timings = TimingsOut(decode=0, patches=0, queue=0, inference=0)
        else:
            assert self._batcher is not None  # noqa: S101  (there is a detector, so there is one)
            scored = await self._batcher.score(found.item, deadline)
            result = _Result(
                scored.detection.score,
                (*found.image.warnings, *scored.detection.warnings),
                found.image.format, found.image.width, found.image.height,
            )  # fmt: skip
            timings = TimingsOut(
                decode=_ms(found.decode_s), patches=_ms(found.patches_s),
                queue=_ms(scored.queue_s), inference=_ms(scored.forward_s),
            )  # fmt: skip
            self._results.keep(self._key(digest), result)
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

    def model(self) -> ModelOut:
        """Which model answers."""
        d = self.detector
        return ModelOut(name=d.name, version=d.version, sha256=d.sha256)

    def _begin(self, upload: Upload) -> tuple[str, _Result | _Prepared]:
        """The file's sha256, and its result if that is kept, else its image; runs in the pool."""
        data = upload.take()
        digest = hashlib.sha256(data).hexdigest()
        return digest, self._results.find(self._key(digest)) or self._prepare(data)

    def _key(self, digest: str) -> tuple[str, ...]:
        # No option of a request changes the score: thresholds are applied to what is kept.
        detector = self.detector
        return digest, detector.sha256, detector.dtype, detector.canvases

    def _prepare(self, data: bytes) -> _Prepared:
        """Decode and select patches."""
        detector = self.detector
        start = time.monotonic()
        image = decode(data, self.settings, min_side=detector.min_side)
        decoded = time.monotonic()
        try:
            item = detector.prepare(image.pixels)
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


def _use_threads(count: int) -> None:
    """Let torch use `count` threads when called from this thread."""
    torch.set_num_threads(count)
    # A thread takes the number that was set last, by any thread, at its first operation. Asking for
    # it is one: without it, the forward pass would inherit the decoders' single thread.
    torch.get_num_threads()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
