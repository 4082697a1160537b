"""The service's life: it loads, is ready, drains, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum

from app.audit import AuditLog
from app.backend import BackendFactory, Result
from app.desk import Desk
from app.errors import ApiError
from app.intake.keys import ApiKeys, RateLimiter
from app.intake.places import Places
from app.metrics import MODEL_LABELS, Metrics
from app.results import Results
from app.settings import Settings
from model.hardware import memory, return_memory

log = logging.getLogger(__name__)


class State(Enum):
    """Where the service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """The desk with its doors: when work is taken, and from whom.

    Args:
        settings: the service's settings.
        factory: gives what makes results; loaded in a thread while probes are already answered.
    """

    TIDY_S = 3.0
    BURST_BYTES = 64 << 20

    def __init__(self, settings: Settings, factory: BackendFactory) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.backend = factory(settings, self.metrics)
        self.places = Places(settings.max_queue)
        self.metrics.inflight.set_function(lambda: self.places.taken)
        self.keys = ApiKeys(settings.api_keys, settings.api_keys_file)
        self.audit = AuditLog(settings.audit_log, self.metrics.audit_lost.inc)
        self.rates = RateLimiter(settings.rate_limit_per_minute)
        self.state = State.LOADING
        # Not `asyncio.to_thread`: loading may take minutes, and the end must not wait for it.
        self._loading = threading.Thread(target=self._run_load, name="load", daemon=True)
        self._loaded: Future[None] = Future()
        self._loaded.set_running_or_notify_cancel()
        self._idle_bytes = 0
        self._desk: Desk | None = None

    async def start(self, failed: Callable[[], None]) -> None:
        """Load and warm up; `failed` is called if that cannot be done."""
        began = time.monotonic()
        try:
            self._loading.start()
            await asyncio.wrap_future(self._loaded)
            self.backend.start()
            self._desk = self._open()
        except Exception as error:  # of the model's, or out of memory, a broken driver, ...
            log.error("the model cannot be loaded: %s", _one_line(error))  # noqa: TRY400
            log.debug("traceback", exc_info=True)
            self.state = State.FAILED
            failed()
            return
        took = time.monotonic() - began
        self.metrics.model_load.set(took)
        about = self.backend.about
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

    def _run_load(self) -> None:
        """Load in the thread for it."""
        try:
            self.backend.load()
            # What is loaded stays: without this, every full collection goes through all of it, and
            # holds every thread for a fifth of a second.
            gc.collect()
            gc.freeze()
            return_memory()
            self._idle_bytes = memory()[1]
            self._loaded.set_result(None)
        except BaseException as error:  # noqa: BLE001  (handed on to whoever waits)
            self._loaded.set_exception(error)

    def _open(self) -> Desk:
        settings, backend = self.settings, self.backend
        results: Results[Result] = Results(
            settings.cache_size, settings.cache_ttl_s, self.metrics, backend.expect
        )
        return Desk(backend, results, settings, self.places, self.metrics, self.audit)

    async def tidy(self) -> None:
        """Give the system what a burst took, and let the backend mend itself; until cancelled."""
        while True:
            await asyncio.sleep(self.TIDY_S)
            if self._desk is not None:
                await self.backend.tidy()
            if not self.places.taken and memory()[1] > self._idle_bytes + self.BURST_BYTES:
                await asyncio.to_thread(return_memory)
                self._idle_bytes = max(self._idle_bytes, memory()[1])  # what is kept is no burst's

    def drain(self) -> None:
        """Refuse new work from now on; what is admitted is finished."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """End the threads; waits a little for what they hold."""
        if self._desk is not None:
            self._desk.stop()
        self.backend.stop()

    @property
    def busy(self) -> bool:
        """Whether a thread loads, or lives that works on images; after `stop`, nothing ends it."""
        desk_busy = self._desk is not None and self._desk.busy
        return self._loading.is_alive() or self.backend.busy or desk_busy

    @property
    def alive(self) -> bool:
        """Whether a restart is not needed: loading, or device and decoders get on."""
        if self._desk is None:
            return self.state is not State.FAILED
        return self._desk.alive

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
        images = self.desk.about.explained
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
