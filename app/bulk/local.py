"""This machine: files are read ahead, and handed to the service's own desk.

Files are read in threads, some ahead of the decoders; from there on it is the service without
HTTP: the same decoders, looks, queue, batches and verdicts. What waits is bounded: files by
`LocalEngine._files`, rows by `_ROWS`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from app.bulk.engine import OURS, WATCH_S, Engine, EngineFactory, make_row, read_upload, stuck
from app.bulk.parts import Row
from app.bulk.sources import Entry, Sources, Span
from app.bulk.store import BulkError
from app.errors import ApiError
from app.local import Loader, load_detector, local
from app.scoring import ServedDetector
from app.service import Service, State
from app.settings import Settings
from model.images import ImageError

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About

READERS = 16
"""Files that are read at once: a distant store takes its time for each."""

_ROWS = 1000  # that wait behind one that takes its time


def local_engine(load: Loader = load_detector) -> EngineFactory:
    """The engine on this machine.

    Args:
        load: gives the detector.
    """

    def made(settings: Settings) -> AbstractContextManager[Engine]:
        return nullcontext(LocalEngine(settings, load(settings)))

    return made


class LocalEngine:
    """See `local_engine`, and `app.bulk.engine.Engine`."""

    def __init__(self, settings: Settings, detector: ServedDetector) -> None:
        self._settings = settings
        self._detector = detector
        # In full, each stage has what it works on, and the next batch is there.
        self._files = asyncio.Semaphore(READERS + settings.decoders() + 2 * settings.max_batch)

    @property
    def about(self) -> About:
        """The detector's."""
        return self._detector.about

    async def rows(
        self, sources: Sources, done: Sequence[Span], stop: asyncio.Event
    ) -> AsyncGenerator[tuple[Span, Row]]:
        """Rows in the listing's order; images are scored in whichever order they are ready.

        What is begun before a stop is finished.
        """
        entries = sources.entries(self._settings.limits(self.about.min_side), done)
        with ThreadPoolExecutor(READERS, "read") as readers:
            async with _service(self._settings, self._detector) as service:
                scorer = _Scorer(service, self._settings, readers)
                begun: asyncio.Queue[tuple[Span, asyncio.Task[Row]] | Exception | None]
                begun = asyncio.Queue(_ROWS)
                beginning = asyncio.create_task(self._begin(entries, scorer, begun, stop))
                try:
                    while (one := await begun.get()) is not None:
                        if isinstance(one, Exception):
                            raise one
                        span, task = one
                        while not task.done():
                            await asyncio.wait([task], timeout=WATCH_S)
                            _check_alive(service)
                        row = task.result()
                        if row.error is not None:
                            _check_alive(service)  # or all that follow would be told the same
                        yield span, row
                finally:
                    beginning.cancel()

    async def _begin(
        self,
        entries: Iterator[Entry],
        scorer: _Scorer,
        begun: asyncio.Queue[tuple[Span, asyncio.Task[Row]] | Exception | None],
        stop: asyncio.Event,
    ) -> None:
        """Begin one image after another; at the end of them, or where they fail, say so."""
        try:
            while not stop.is_set():
                await self._files.acquire()
                entry = await asyncio.to_thread(next, entries, None)
                if entry is None:
                    break
                task = asyncio.create_task(scorer.row(entry))
                task.add_done_callback(lambda _: self._files.release())
                await begun.put((entry.span, task))  # no file: many may wait
            await begun.put(None)
        except Exception as error:  # noqa: BLE001  (handed on, behind the rows before it)
            await begun.put(error)


class _Scorer:
    """Makes rows of entries."""

    def __init__(self, service: Service, settings: Settings, readers: ThreadPoolExecutor) -> None:
        self._desk = service.desk
        self._about = service.desk.about
        self._limits = settings.limits(self._about.min_side)
        self._readers = readers

    async def row(self, entry: Entry) -> Row:
        """Read and score one image; whatever is wrong with it, it has a row."""
        row = await self._once(entry)
        # A device that is gone says the same of all, and only then is known to be; a decoder may
        # have been killed for another one's sake.
        return await self._once(entry) if row.error in OURS else row

    async def _once(self, entry: Entry) -> Row:
        loop = asyncio.get_running_loop()
        try:
            read = loop.run_in_executor(self._readers, read_upload, entry, self._limits)
            upload, sha256 = await read
        except ImageError as error:
            return make_row(self._about, entry.path, None, error=error.code)
        number = "{}-{}".format(*entry.span.start)  # never its name
        try:
            answer = await self._desk.answer(
                upload, identifier=number, threshold=None, deadline=math.inf
            )
        except ApiError as error:
            return make_row(self._about, entry.path, sha256, error=error.code)
        return make_row(
            self._about,
            entry.path,
            sha256,
            verdict=answer.verdict.value,
            score=answer.score,
            warnings=tuple(answer.warnings),
            declares=None if answer.provenance is None else answer.provenance.declares,
        )


@asynccontextmanager
async def _service(settings: Settings, detector: ServedDetector) -> AsyncIterator[Service]:
    """The service, ready, without its server.

    Raises:
        BulkError: it does not become ready.
    """
    # As on a cluster: no result is kept. Equal files that are under way at once share one.
    unkept = settings.model_copy(update={"cache_size": 0})
    service = Service(unkept, local(lambda _: detector))
    tidying: asyncio.Task[None] | None = None
    try:
        await service.start(lambda: None)
        if service.state is not State.READY:
            raise BulkError("the detector or its decoders cannot be started")
        tidying = asyncio.create_task(service.tidy())
        yield service
    finally:
        if tidying is not None:
            tidying.cancel()
        await asyncio.to_thread(service.stop)


def _check_alive(service: Service) -> None:
    if not service.alive:
        raise stuck()
