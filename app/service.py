"""The service's life: it loads, is ready, drains, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from typing import TYPE_CHECKING

from app.audit import AuditLog
from app.decoding.pool import Decoders, DecodersError
from app.desk import Desk, Result, ServedDetector
from app.errors import ApiError
from app.intake.keys import ApiKeys, RateLimiter
from app.intake.places import Places
from app.metrics import MODEL_LABELS, Metrics
from app.queue import DeviceQueue
from app.results import Results
from app.settings import Settings
from model.hardware import memory, return_memory, spare_torch_its_cache, use_threads

if TYPE_CHECKING:
    from model.detector import Detector

log = logging.getLogger(__name__)

Loader = Callable[[Settings], ServedDetector]


class State(Enum):
    """Where the service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


def load_detector(settings: Settings) -> Detector:
    """Load the detector that the settings name."""
    spare_torch_its_cache()
    from model.detector import Detector  # brings torch: settings are read without it

    return Detector.load(
        settings.checkpoint,
        runtime=settings.runtime(),
        backbone=settings.backbone,
        backbone_sha256=settings.backbone_sha256,
        canvases=settings.canvases,
    )


class Service:
    """The desk with its doors: when work is taken, and from whom.

    Args:
        settings: the service's settings.
        load: gives the detector; runs in a thread while probes are already answered.
        decoders: somebody else's, who starts and stops them; None: of its own.
    """

    TIDY_S = 3.0
    BURST_BYTES = 64 << 20

    def __init__(self, settings: Settings, load: Loader, decoders: Decoders | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._owns_decoders = decoders is None
        self._decoders = decoders or Decoders(
            settings.decoders(),
            cpu_s=settings.decode_cpu_s,
            wall_s=settings.deadline_s,
            replaced=lambda reason: self.metrics.decoders_replaced.labels(reason).inc(),
            trust_anchors=settings.anchors(),
        )
        self.places = Places(settings.max_queue)
        self.metrics.inflight.set_function(lambda: self.places.taken)
        self.keys = ApiKeys(settings.api_keys, settings.api_keys_file)
        self.audit = AuditLog(settings.audit_log, self.metrics.audit_lost.inc)
        self.rates = RateLimiter(settings.rate_limit_per_minute)
        self.state = State.LOADING
        self._load = load
        # Not `asyncio.to_thread`: loading may take minutes, and the end must not wait for it.
        self._loading = threading.Thread(target=self._run_load, name="load", daemon=True)
        self._detector: Future[ServedDetector] = Future()
        self._detector.set_running_or_notify_cancel()
        self._idle_bytes = 0
        self._desk: Desk | None = None

    async def start(self, failed: Callable[[], None]) -> None:
        """Load and warm up; `failed` is called if that cannot be done."""
        began = time.monotonic()
        if self._owns_decoders:
            self._decoders.start()
        try:
            detector = await self._loaded()
            self._desk = self._open(detector)
        except Exception as error:  # of the model's, or out of memory, a broken driver, ...
            log.error("the model cannot be loaded: %s", _one_line(error))  # noqa: TRY400
            log.debug("traceback", exc_info=True)
            self.state = State.FAILED
            failed()
            return
        took = time.monotonic() - began
        self.metrics.model_load.set(took)
        about = detector.about
        self.metrics.model_info.labels(*(getattr(about, name) for name in MODEL_LABELS)).set(1)
        if self.state is State.LOADING:
            self.state = State.READY
        log.info(
            "%s %s is ready on %s (%s, %s, %s) after %.1f s",
            about.name,
            about.version,
            about.device,
            about.engine,
            about.precision,
            about.dtype,
            took,
        )

    async def _loaded(self) -> ServedDetector:
        """Load in the thread for it."""
        self._loading.start()
        return await asyncio.wrap_future(self._detector)

    def _run_load(self) -> None:
        try:
            self._detector.set_result(self._load_warm())
        except BaseException as error:  # noqa: BLE001  (handed on to whoever waits)
            self._detector.set_exception(error)

    def _load_warm(self) -> ServedDetector:
        use_threads(self.settings.threads())
        detector = self._load(self.settings)
        detector.warm_up(sorted({1, self.settings.max_batch}))
        self._decoders.check()
        # What is loaded stays: without this, every full collection goes through all of it, and
        # holds every thread for a fifth of a second.
        gc.collect()
        gc.freeze()
        return_memory()
        self._idle_bytes = memory()[1]
        return detector

    def _open(self, detector: ServedDetector) -> Desk:
        """Start the device thread, and put a desk in front of it."""
        settings = self.settings
        queue = DeviceQueue(
            detector.submit,
            functools.partial(detector.warm_up, [1]),
            functools.partial(use_threads, detector.torch_threads(settings.threads())),
            self.metrics,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000,
            stuck_after_s=self._stuck_after_s,
        )
        results: Results[Result] = Results(
            settings.cache_size, settings.cache_ttl_s, self.metrics, queue.expect
        )
        desk = Desk(
            detector,
            queue,
            self._decoders,
            results,
            settings,
            self.places,
            self.metrics,
            self.audit,
            self._stuck_after_s,
        )
        queue.start()
        return desk

    async def tidy(self) -> None:
        """Give the system what a burst took, and start decoders that could not be; until cancelled.

        While none can be started, no image comes that would try.
        """
        while True:
            await asyncio.sleep(self.TIDY_S)
            if not self._decoders.alive:
                with contextlib.suppress(DecodersError):
                    await asyncio.to_thread(self._decoders.check)
            if not self.places.taken and memory()[1] > self._idle_bytes + self.BURST_BYTES:
                await asyncio.to_thread(return_memory)
                self._idle_bytes = max(self._idle_bytes, memory()[1])  # what is kept is no burst's

    def drain(self) -> None:
        """Refuse new work from now on; what is admitted is finished."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """End the threads; waits a little for what they hold."""
        if self._owns_decoders:
            self._decoders.stop()  # first: whoever waits for one is waited for next
        if self._desk is not None:
            self._desk.stop()

    @property
    def busy(self) -> bool:
        """Whether a thread loads, or lives that works on images; after `stop`, nothing ends it."""
        return self._loading.is_alive() or (self._desk is not None and self._desk.busy)

    @property
    def alive(self) -> bool:
        """Whether a restart is not needed: loading, or device and decoders get on."""
        if self._desk is None:
            return self.state is not State.FAILED
        return self._desk.alive

    @property
    def _stuck_after_s(self) -> float:
        # Twice the deadline after which nobody waits for it, and some for a slow disk.
        return 2 * self.settings.deadline_s + 30

    @property
    def desk(self) -> Desk:
        """Where images are taken.

        Raises:
            ApiError: not_ready.
        """
        if self._desk is None:
            raise ApiError("not_ready", "The model is being loaded.", retry_after=2)
        return self._desk

    @property
    def explained(self) -> int | None:
        """How many images one counts as with its evidence; None: none is explained here.

        Raises:
            ApiError: not_ready.
        """
        images = self.desk.detector.about.explained
        rate = self.settings.rate_limit_per_minute
        return images if self.settings.explain and (not rate or rate >= images) else None

    def check_open(self) -> None:
        """Raise not_ready or draining unless work is taken."""
        if self.state is State.DRAINING:
            raise ApiError(
                "draining", "This server is shutting down.", retry_after=self.places.retry_after()
            )
        if self.state is not State.READY:
            raise ApiError("not_ready", "The model is being loaded.", retry_after=2)
        if not self.alive:
            raise ApiError("not_ready", "Device or decoders do not answer.", retry_after=30)


def _one_line(error: Exception) -> str:
    """What went wrong: a model's own text is one clear line, any other needs its type."""
    with contextlib.suppress(Exception):  # where torch cannot be imported, that is the error
        from model.detector import ModelError

        if isinstance(error, ModelError):
            return str(error)
    return f"{type(error).__name__}: {error}"
