"""A bulk run: an engine's rows, in the listing's order -> parts."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field

from app.bulk.engine import Engine, EngineFactory
from app.bulk.local import local_engine
from app.bulk.parts import Parts, Row
from app.bulk.sources import Sources, Span
from app.bulk.store import BulkError
from app.settings import Settings

PART_ROWS = 1000
"""Rows of a part: what a kill may cost."""

_UNREACHED = 100  # files one after another that could not be read
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
    factory: EngineFactory | None = None,
) -> Done:
    """Score all images of some sources that no part covers yet.

    SIGINT and SIGTERM end it once what the engine finishes is in a part, which may be a short one;
    a second SIGINT drops that.

    Args:
        sources: what is scored.
        to: folder of the parts, a path or a URL.
        settings: the service's; those of its server are not used.
        part_rows: rows of a part.
        told: called for every row, and every part.
        factory: gives the engine; None: this machine.

    Raises:
        BulkError: nothing can be listed, written or gone on with.
        StuckError: nor can this process end by itself.
        ModelError: the detector cannot be loaded.
    """
    settings = settings.for_backend()
    with (factory or local_engine())(settings) as engine:
        about = engine.about
        parts = Parts(
            to,
            run={
                "sources": sources.digest,
                "model": about.sha256,
                "tower": about.tower_sha256,
                "canvases": about.canvases,
                "provenance": "read" if settings.provenance else "not read",
                "limits": json.dumps(asdict(settings.limits(about.min_side))),
            },
            note={"device": about.device, "engine": about.engine, "precision": about.precision},
        )
        return asyncio.run(_Run(part_rows, told).through(engine, sources, parts))


class _Run:
    """One run; see `run_bulk`."""

    def __init__(self, part_rows: int, told: Callable[[Done], object]) -> None:
        self._part_rows = part_rows
        self._told = told
        self._done = Done()
        self._error: BulkError | None = None
        self._stop = asyncio.Event()

    async def through(self, engine: Engine, sources: Sources, parts: Parts) -> Done:
        """Have an engine score what no part covers, and write it down."""
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._end, number)
        async with aclosing(self._sound(engine.rows(sources, parts.spans, self._stop))) as rows:
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

    async def _sound(
        self, rows: AsyncGenerator[tuple[Span, Row]]
    ) -> AsyncGenerator[tuple[Span, Row]]:
        """The rows up to where the engine fails: `_error` says why."""
        try:
            async with aclosing(rows):
                async for one in rows:
                    yield one
        except BulkError as error:
            self._error = error

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
            if len(waiting) >= self._part_rows and _reached([row for _, row in waiting]):
                await flush()
        await flush()


def _reached(rows: Sequence[Row]) -> bool:
    """Whether any of these files could be read; few that could not say nothing yet.

    Raises:
        BulkError: nor do many of the files: their store is not there.
    """
    if any(row.error != "unreadable" for row in rows):
        return True
    if len(rows) < _UNREACHED:
        return False
    raise BulkError(
        f"none of the last {len(rows)} files could be read: is their store there, and are "
        "the credentials still good? Run it again to go on"
    )
