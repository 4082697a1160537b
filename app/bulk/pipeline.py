"""A bulk run: read ahead -> the service's own desk -> rows in the listing's order -> parts.

Files are read in threads, some ahead of the decoders; from there on it is the service without
HTTP: the same decoders, looks, queue, batches and verdicts. What waits is bounded: files by
`_Run._files`, rows by a part.
"""

import asyncio
import json
import math
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from app.bulk.parts import Parts, Row
from app.bulk.sources import Entry, Sources, Span
from app.bulk.store import BulkError, StuckError
from app.errors import ApiError
from app.intake.uploads import Upload
from app.local import Loader, load_detector, local
from app.service import Service, State
from app.settings import Settings
from model.images import ImageError

READERS = 16
"""Files that are read at once: a distant store takes its time for each."""
PART_ROWS = 1000
"""Rows of a part: what a kill may cost."""

_WATCH_S = 5.0
_OURS = ("inference_failed", "overloaded")  # codes of what may be no fault of the image's
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Done:
    """How far a run has come.

    Attributes:
        rows: written, or in the part that is filled.
        said: rows by verdict, or by error code.
        files: of the listing that are behind it, those of earlier runs among them.
        parts: written.
        ended_by: number of the signal that ended it early; None: nothing has.
    """

    rows: int = 0
    said: Counter[str] = field(default_factory=Counter)
    files: int = 0
    parts: int = 0
    ended_by: int | None = None


def run_bulk(
    sources: Sources,
    to: str,
    settings: Settings,
    *,
    part_rows: int = PART_ROWS,
    told: Callable[[Done], object] = lambda _: None,
    load: Loader = load_detector,
) -> Done:
    """Score all images of some sources that no part covers yet.

    SIGINT and SIGTERM end it once the images under way are in a part, which may be a short one; a
    second SIGINT drops them.

    Args:
        sources: what is scored.
        to: folder of the parts, a path or a URL.
        settings: the service's; those of its server are not used.
        part_rows: rows of a part.
        told: called for every row, and every part.
        load: gives the detector.

    Raises:
        BulkError: nothing can be listed, written or gone on with.
        StuckError: nor can this process end by itself.
        ModelError: the detector cannot be loaded.
    """
    # Nobody is served: keys are not read, and nothing is audited.
    settings = settings.model_copy(update={"api_keys_file": None, "audit_log": ""})
    detector = load(settings)
    about = detector.about
    limits = settings.limits(about.min_side)
    parts = Parts(
        to,
        run={
            "sources": sources.digest,
            "model": about.sha256,
            "canvases": about.canvases,
            "provenance": "read" if settings.provenance else "not read",
            "limits": json.dumps(asdict(limits)),
        },
        note={"device": about.device, "engine": about.engine, "precision": about.precision},
    )
    entries = sources.entries(limits, parts.spans)
    return asyncio.run(_Run(settings, part_rows, told).through(entries, parts, lambda _: detector))


class _Run:
    """One run; see `run_bulk`."""

    def __init__(self, settings: Settings, part_rows: int, told: Callable[[Done], object]) -> None:
        self._settings = settings
        self._part_rows = part_rows
        self._told = told
        self._done = Done()
        self._error: BulkError | None = None
        self._stop = asyncio.Event()
        # In full, each stage has what it works on, and the next batch is there.
        self._files = asyncio.Semaphore(READERS + settings.decoders() + 2 * settings.max_batch)

    async def through(self, entries: Iterator[Entry], parts: Parts, load: Loader) -> Done:
        """Score entries, and write them down."""
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._end, number)
        with ThreadPoolExecutor(READERS, "read") as readers:
            async with _service(self._settings, load) as service:
                rows = self._rows(entries, service, readers)
                await self._write(rows, parts)
        if self._error is not None:
            raise self._error
        return self._done

    def _end(self, number: int) -> None:
        """Begin no other image; whoever asks again is not made to wait."""
        self._done.ended_by = number
        self._stop.set()
        for one in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(one)

    async def _write(self, rows: AsyncIterator[tuple[Span, Row]], parts: Parts) -> None:
        """Gather rows into parts; one ends where a part of an earlier run begins."""
        waiting: list[tuple[Span, Row]] = []

        async def flush() -> None:
            if not waiting:
                return
            (first, _), (last, _) = waiting[0], waiting[-1]
            span = Span(first.start, last.stop, last.listed)
            await asyncio.to_thread(parts.write, [row for _, row in waiting], span)
            self._done.parts += 1
            self._told(self._done)
            waiting.clear()

        async for span, row in rows:
            if waiting and parts.between(waiting[-1][0].stop, span.start):
                await flush()
            waiting.append((span, row))
            self._done.rows += 1
            self._done.said[row.error or row.verdict or ""] += 1
            self._done.files = span.stop.file
            self._told(self._done)
            if len(waiting) == self._part_rows:
                _check_reach([row for _, row in waiting])
                await flush()
        await flush()

    async def _rows(
        self, entries: Iterator[Entry], service: Service, readers: ThreadPoolExecutor
    ) -> AsyncIterator[tuple[Span, Row]]:
        """Rows in the order of their entries; images are scored in whichever order they are ready.

        Where the listing, the device or the decoders fail, they end there, for rows before that are
        sound: `_error` says why.
        """
        scorer = _Scorer(service, self._settings, readers)
        begun: asyncio.Queue[tuple[Span, asyncio.Task[Row]] | Exception | None]
        begun = asyncio.Queue(self._part_rows)

        async def begin() -> None:
            try:
                while not self._stop.is_set():
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

        beginning = asyncio.create_task(begin())
        try:
            while (one := await begun.get()) is not None:
                if isinstance(one, Exception):
                    raise one
                span, task = one
                while not task.done():
                    await asyncio.wait([task], timeout=_WATCH_S)
                    _check_alive(service)
                row = task.result()
                if row.error is not None:
                    _check_alive(service)  # or all that follow would be told the same
                yield span, row
        except BulkError as error:
            self._error = error
        finally:
            beginning.cancel()


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
        return await self._once(entry) if row.error in _OURS else row

    async def _once(self, entry: Entry) -> Row:
        loop = asyncio.get_running_loop()
        try:
            upload, sha256 = await loop.run_in_executor(self._readers, self._read, entry)
        except ImageError as error:
            return self._row(entry, None, error=error.code)
        number = "{}-{}".format(*entry.span.start)  # never its name
        try:
            answer = await self._desk.answer(
                upload, identifier=number, threshold=None, deadline=math.inf
            )
        except ApiError as error:
            return self._row(entry, sha256, error=error.code)
        return self._row(
            entry,
            sha256,
            verdict=answer.verdict.value,
            score=answer.score,
            warnings=tuple(answer.warnings),
            declares=None if answer.provenance is None else answer.provenance.declares,
        )

    def _read(self, entry: Entry) -> tuple[Upload, str | None]:
        """The file, and its digest where it is whole. Runs in a thread."""
        data = entry.read()
        upload = Upload()
        upload.add(data)
        return upload, upload.digest() if len(data) <= self._limits.max_bytes else None

    def _row(
        self,
        entry: Entry,
        sha256: str | None,
        *,
        verdict: str | None = None,
        score: float | None = None,
        warnings: tuple[str, ...] = (),
        declares: str | None = None,
        error: str | None = None,
    ) -> Row:
        cuts = self._about.thresholds
        return Row(
            path=entry.path,
            sha256=sha256,
            verdict=verdict,
            score=score,
            real_below=cuts.real_below,
            ai_above=cuts.ai_above,
            model_sha256=self._about.sha256,
            warnings=warnings,
            declares=declares,
            error=error,
        )


@asynccontextmanager
async def _service(settings: Settings, load: Loader) -> AsyncIterator[Service]:
    """The service, ready, without its server.

    Raises:
        BulkError: it does not become ready.
    """
    service = Service(settings, local(load))
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
        raise StuckError("device or decoders do not answer any more: run it again to go on")


def _check_reach(rows: Sequence[Row]) -> None:
    """Raise where no file of a whole part could be read: that says nothing of the files."""
    if all(row.error == "unreadable" for row in rows):
        raise BulkError(
            f"none of the last {len(rows)} files could be read: is their store there, and are "
            "the credentials still good? Run it again to go on"
        )
