"""What a cluster's processes do, whoever schedules them: list files, open them, score pictures.

What is sent has marks of where it begins and ends in the listing, by which rows are put in order,
and by which it shows if one were missing or there twice. Errors are sent, too, and told in their
turn: what is raised, a cluster would log, with whatever it quotes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa

from app.bulk.engine import OURS, WATCH_S, make_row, read_upload, stuck
from app.bulk.parts import Row
from app.bulk.sources import Entry, Listed, Sources, Span
from app.bulk.store import BulkError
from app.decoding.opening import open_upload
from app.decoding.pool import Decoders, Opened
from app.errors import ApiError
from app.local import Loader, load_warm, make_decoders
from app.metrics import Metrics
from app.results import Passing
from app.scoring import Scorer
from app.settings import Settings
from model.images import ImageError, Limits

if TYPE_CHECKING:  # torch comes with it
    from app.backend import Outcome
    from model.detector import About

FILES = 32
"""Files that one task opens; or one shard."""
IMAGES = 32
"""Images that are scored by one call, where they are small."""
GROUP_BYTES = 32 << 20
"""Bytes of pixels from which on a call has no further image."""

_READERS = 8  # files that a task reads at once

# A digest of paths, and images behind it: a stretch begins where the one before ends.
Mark: TypeAlias = "tuple[str, int]"
START: Mark = ("", 0)
END: Mark = ("end", 0)


class Work(NamedTuple):
    """Files that one task opens.

    Attributes:
        begin: where they begin in the listing.
        end: where they end.
        files: the files.
        failure: why the listing cannot be gone on with; then there are none.
    """

    begin: Mark
    end: Mark
    files: Sequence[Listed] = ()
    failure: BulkError | None = None


class Image(NamedTuple):
    """An image, and what is known of it before it is scored."""

    span: Span
    path: str
    sha256: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """Images that one call scores.

    Attributes:
        begin: where they begin in the listing.
        end: where they end.
        images: the images, before they are scored.
        rows: their rows, afterwards.
        failure: why the run cannot go on from here.
    """

    begin: Mark
    end: Mark
    images: Sequence[Image] = ()
    rows: Sequence[tuple[Span, Row]] = ()
    failure: BulkError | None = None


def works_of(sources: Sources, done: Sequence[Span]) -> Iterator[Work]:
    """Files that are to be opened, as tasks have them; the last one says how the listing ends."""
    silence()
    at = START
    files: list[Listed] = []

    def closed() -> Iterator[Work]:
        nonlocal at
        if files:
            end = (files[-1].digest, 0)
            yield Work(at, end, tuple(files))
            at = end
            files.clear()

    failure: BulkError | None = None
    try:
        for one in sources.listed(done):
            if one.file.is_shard:
                yield from closed()
            files.append(one)
            if one.file.is_shard or len(files) == FILES:
                yield from closed()
    except BulkError as error:
        failure = error
    except Exception as error:  # noqa: BLE001  (whatever it is, it is no end)
        failure = gave_up(error)
    yield from closed()
    yield Work(at, END, failure=failure)


def open_files(batch: pa.Table, settings: Settings, min_side: int) -> Iterator[pa.Table]:
    """Read and decode a task's files; pictures are given in groups."""
    silence()
    for value in batch.column("work"):
        work: Work = loads(value)
        if work.failure is not None or not work.files:
            yield _opened_table(Group(work.begin, work.end, failure=work.failure), [])
            continue
        opening = _Opening(work, settings, min_side)
        try:
            yield from opening.groups()
        except Exception as error:  # noqa: BLE001  (told in its turn)
            failure = error if isinstance(error, BulkError) else gave_up(error)
            yield _opened_table(Group(opening.at, work.end, failure=failure), [])


class _Opening:
    """A task's files, as they are opened.

    Attributes:
        at: where the next group begins.
    """

    def __init__(self, work: Work, settings: Settings, min_side: int) -> None:
        self.at = work.begin
        self._work = work
        self._settings = settings
        self._min_side = min_side
        self._limits = settings.limits(min_side)
        self._decoders = _decoders(settings)

    def groups(self) -> Iterator[pa.Table]:
        """Groups of pictures; of each file whatever is wrong with it.

        Raises:
            BulkError: no decoder can be started.
        """
        images: list[Image] = []
        opened: list[bytes] = []
        size = count = 0
        entries = (e for listed in self._work.files for e in listed.entries(self._limits))
        with ThreadPoolExecutor(_READERS, "read") as readers:
            for entry, reading in _ahead(entries, readers, self._limits):
                if len(images) == IMAGES or size >= GROUP_BYTES:
                    yield self._closed((self._work.begin[0], count), images, opened)
                    images, opened, size = [], [], 0
                image, picture = self._opened(entry, reading)
                images.append(image)
                count += 1
                if picture is not None:
                    opened.append(pickle.dumps(picture, pickle.HIGHEST_PROTOCOL))
                    size += len(opened[-1])
            yield self._closed(self._work.end, images, opened)

    def _closed(self, end: Mark, images: Sequence[Image], opened: Sequence[bytes]) -> pa.Table:
        group = Group(self.at, end, tuple(images))
        self.at = end
        return _opened_table(group, opened)

    def _opened(
        self, entry: Entry, reading: concurrent.futures.Future[Any]
    ) -> tuple[Image, Opened | None]:
        """An image, and what is in it unless something is wrong with it."""
        try:
            upload, sha256 = reading.result()
            number = "{}-{}".format(*entry.span.start)  # never its name
            ask = functools.partial(
                open_upload,
                self._decoders,
                settings=self._settings,
                min_side=self._min_side,
                identifier=number,
            )
            opened = ask(upload=upload)
            if isinstance(opened, ApiError) and opened.code in OURS:
                # A decoder may have been killed for another image's sake.
                opened = ask(upload=read_upload(entry, self._limits)[0])
        except ImageError as error:
            return Image(entry.span, entry.path, None, error.code), None
        if not isinstance(opened, ApiError):
            return Image(entry.span, entry.path, sha256, None), opened
        if not self._decoders.alive:
            raise stuck()
        return Image(entry.span, entry.path, sha256, opened.code), None


def _ahead(
    entries: Iterable[Entry], readers: ThreadPoolExecutor, limits: Limits
) -> Iterator[tuple[Entry, concurrent.futures.Future[Any]]]:
    """Entries, with files that are read before their turn comes."""
    waiting: deque[tuple[Entry, concurrent.futures.Future[Any]]] = deque()
    for entry in entries:
        waiting.append((entry, readers.submit(read_upload, entry, limits)))
        if len(waiting) == _READERS:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


@functools.cache
def _decoders(settings: Settings) -> Decoders:
    """This process's: Ray has as many processes as it has CPUs."""
    decoders = make_decoders(settings.model_copy(update={"decode_workers": 1}), Metrics())
    decoders.start()
    return decoders


class Scoring:
    """An actor: holds a detector, and scores groups of pictures as the service does.

    Args:
        settings: the service's.
        load: gives the detector.
        about: what it has to be.
    """

    def __init__(self, settings: Settings, load: Loader, about: About) -> None:
        silence()
        self._failure: BulkError | None = None
        try:
            detector = load_warm(settings, load)
        except Exception as error:  # noqa: BLE001  (told by each call)
            self._failure = gave_up(error)
            return
        if detector.about.identity != about.identity:
            self._failure = BulkError(
                "machines of the cluster have different checkpoints or towers"
            )
            return
        self._detector = detector
        self._scorer = Scorer(detector, settings, Metrics())
        self._scorer.start()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="loop", daemon=True).start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make rows of a group; for several threads."""
        groups = []
        for value, opened in zip(batch.column("group"), batch.column("opened"), strict=True):
            group: Group = loads(value)
            if group.failure is None and group.images:
                group = self._scored(group, opened.values)
            groups.append(group)
        return pa.table({"group": as_binary(*groups)})

    def _scored(self, group: Group, opened: pa.Array) -> Group:
        if self._failure is not None:
            return replace(group, images=(), failure=self._failure)
        buffers = (value.as_buffer() for value in opened)
        self._scorer.expect(len(opened))
        rows = [
            asyncio.run_coroutine_threadsafe(
                self._row(image, None if image.error else next(buffers)), self._loop
            )
            for image in group.images
        ]
        waiting: set[concurrent.futures.Future[tuple[Span, Row]]] = set(rows)
        while waiting:
            _, waiting = concurrent.futures.wait(waiting, WATCH_S)
            if not self._scorer.alive:
                self._failure = BulkError(str(stuck()))
                return replace(group, images=(), failure=self._failure)
        try:
            return Group(group.begin, group.end, rows=[row.result() for row in rows])
        except Exception as error:  # noqa: BLE001  (told in its turn)
            return replace(group, images=(), failure=gave_up(error))

    async def _row(self, image: Image, opened: pa.Buffer | None) -> tuple[Span, Row]:
        if opened is None:
            return image.span, make_row(
                self._detector.about, image.path, image.sha256, error=image.error
            )
        number = "{}-{}".format(*image.span.start)  # never its name
        opening = functools.partial(pickle.loads, opened)
        try:
            outcome = await self._scorer.make(opening, number, explain=False)
            if isinstance(outcome, ApiError) and outcome.code in OURS:
                outcome = await self._scorer.make(opening, number, explain=False)
        finally:
            self._scorer.expect(-1)
        return image.span, self._said(image, outcome)

    def _said(self, image: Image, outcome: Outcome) -> Row:
        about = self._detector.about
        if isinstance(outcome, ApiError):
            return make_row(about, image.path, image.sha256, error=outcome.code)
        result = outcome.result if isinstance(outcome, Passing) else outcome
        score, provenance = result.score, result.provenance
        return make_row(
            about,
            image.path,
            image.sha256,
            verdict=about.verdict(score).value,
            score=score.value,
            warnings=(*result.facts.warnings, *score.warnings),
            declares=None if provenance is None else provenance.declares,
        )


def _opened_table(group: Group, opened: Sequence[bytes]) -> pa.Table:
    pictures = pa.array([opened], pa.list_(pa.large_binary()))
    return pa.table({"group": as_binary(group), "opened": pictures})


def as_binary(*values: Any) -> pa.Array:
    """What Ray is to send as it is: of objects that it cannot convert, it logs what is in them."""
    return pa.array(
        [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values], pa.large_binary()
    )


def loads(value: pa.Scalar) -> Any:
    """What `as_binary` made."""
    return pickle.loads(value.as_buffer())  # noqa: S301  (from a process of this run)


def gave_up(error: BaseException) -> BulkError:
    """Of what other packages raise, the text may quote anything."""
    return BulkError(f"Ray gave up: {type(error).__name__}; run it again to go on")


def silence() -> None:
    """Let libraries' warnings go nowhere, for they may quote addresses; ours go to Ray's log."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
        for name in ("app", "model"):
            logging.getLogger(name).addHandler(logging.StreamHandler())
