"""Ray Data: a listing in one task -> files opened in tasks -> scored by actors -> rows, in order.

Ray schedules, retries, and holds back whoever is ahead of the others. It does so in whichever order
things are ready: pictures never wait for their turn, only rows do, here. What is sent has marks of
where it begins and ends in the listing, by which rows are put in order, and by which it shows if
one were missing or there twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import pickle
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata

from app.bulk.cluster import cluster
from app.bulk.engine import OURS, WATCH_S, EngineFactory, make_row, read_upload, stuck
from app.bulk.parts import Row
from app.bulk.sources import Entry, Listed, Sources, Span
from app.bulk.store import BulkError
from app.decoding.opening import open_upload
from app.decoding.pool import Decoders, Opened
from app.errors import ApiError
from app.local import Loader, load_detector, load_warm, make_decoders
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
AHEAD = 256
"""Tasks that the listing is ahead of the rows at least; on large clusters, four a CPU."""

_READERS = 8  # files that a task reads at once
_PACE_S = 0.1

# A digest of paths, and images behind it: a stretch begins where the one before ends.
Mark: TypeAlias = "tuple[str, int]"
_START: Mark = ("", 0)
_END: Mark = ("end", 0)


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


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How a cluster is used.

    Attributes:
        actors: that hold a detector each; None: one for each share of a GPU, or for each machine.
        gpus_per_actor: GPUs of each, or a fraction of one; None: one, where there are any.
        store_bytes: see `cluster`.
    """

    actors: int | None = None
    gpus_per_actor: float | None = None
    store_bytes: int | None = None


def ray_engine(options: RayOptions | None = None, load: Loader = load_detector) -> EngineFactory:
    """The engine on a Ray cluster.

    Args:
        options: how it is used.
        load: gives the detector, wherever it is sent to.
    """

    @contextmanager
    def made(settings: Settings) -> Iterator[RayEngine]:
        chosen = options or RayOptions()
        with cluster(settings, chosen.store_bytes):
            # What it says of tasks that failed is told in one line.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            yield RayEngine(settings, chosen, load)

    return made


class RayEngine:
    """See `ray_engine`, and `app.bulk.engine.Engine`."""

    def __init__(self, settings: Settings, options: RayOptions, load: Loader) -> None:
        self._actors, self._gpus = _pool(settings, options)
        if self._gpus and settings.device != "cpu":  # which one, Ray says
            settings = settings.model_copy(update={"device": "cuda"})
        self._settings = settings
        self._load = load
        asking = ray.remote(num_cpus=0, num_gpus=self._gpus, max_calls=1)(_about)
        said: About | Exception = _got(asking.remote(settings, load))
        if isinstance(said, Exception):
            raise said
        self.about = said

    async def rows(
        self, sources: Sources, done: Sequence[Span], stop: asyncio.Event
    ) -> AsyncGenerator[tuple[Span, Row]]:
        """Rows in the listing's order. At a stop, those end that are not made yet."""
        pace = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Pace).remote()
        groups = _Groups(self._dataset(sources, done, pace))
        ordered = _Ordered()
        stopping = asyncio.create_task(stop.wait())
        try:
            while True:
                coming = asyncio.create_task(groups.next())
                await asyncio.wait([coming, stopping], return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    coming.cancel()
                    return
                group = coming.result()
                if group is None:
                    ordered.check_complete()
                    return
                for one in ordered.following(group):
                    if one.failure is not None:
                        raise one.failure
                    for row in one.rows:
                        yield row
                pace.move.remote(ordered.works)
        finally:
            stopping.cancel()

    def _dataset(self, sources: Sources, done: Sequence[Span], pace: Any) -> Any:
        settings, about = self._settings, self.about
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        context.target_max_block_size = 1  # each row is a block: what is sent is cut here
        ahead = max(AHEAD, 4 * int(ray.cluster_resources().get("CPU", 0)))
        listing = ray.data.read_datasource(
            _Listing(sources, done, pace, ahead), override_num_blocks=1, num_cpus=0
        )
        opened = listing.map_batches(
            open_files,
            fn_kwargs={"settings": settings, "min_side": about.min_side},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
        )
        calls = 2 + settings.max_batch // 16
        return opened.map_batches(
            Scoring,
            fn_constructor_kwargs={"settings": settings, "load": self._load, "about": about},
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self._actors,
                max_tasks_in_flight_per_actor=2 * calls,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=0,  # where there is no GPU, it shares the cores with the decoders
            num_gpus=self._gpus,
        )


def _pool(settings: Settings, options: RayOptions) -> tuple[int, float]:
    """How many actors there are to be, and GPUs for each.

    Raises:
        BulkError: not with these GPUs.
    """
    gpus = 0.0 if settings.device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    each = options.gpus_per_actor
    if each is None:
        each = 1.0 if gpus else 0.0
    machines = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    actors = options.actors or (int(gpus / each) if each else max(1, machines))
    if not actors or actors * each > gpus:
        raise BulkError(f"there are {gpus:g} GPUs, and {max(1, actors)} x {each:g} are asked for")
    return actors, each


def _about(settings: Settings, load: Loader) -> About | Exception:
    """What is loaded where detectors are. Runs in a process that ends with it."""
    _silence()
    try:
        return load(settings).about
    except Exception as error:  # noqa: BLE001  (told where it can be shown)
        return error


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise _failed(error) from None


def _failed(error: BaseException) -> BulkError:
    """Of what other packages raise, the text may quote anything."""
    return BulkError(f"Ray gave up: {type(error).__name__}; run it again to go on")


def _silence() -> None:
    """Let libraries' warnings go nowhere, in a process of Ray's: they may quote addresses."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())


class _Groups:
    """What comes out of a dataset, from a thread that nobody waits for at the end."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(2)
        self._come: asyncio.Queue[Group | BulkError | None] = asyncio.Queue()
        threading.Thread(target=self._run, name="groups", daemon=True).start()

    async def next(self) -> Group | None:
        """The next one; None: there is no other.

        Raises:
            BulkError: the cluster has failed.
        """
        group = await self._come.get()
        self._room.release()
        if isinstance(group, BulkError):
            raise group
        return group

    def _run(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            for group in self._groups():
                self._room.acquire()
                self._loop.call_soon_threadsafe(self._come.put_nowait, group)

    def _groups(self) -> Iterator[Group | BulkError | None]:
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from map(_loads, batch.column("group"))
            yield None
        except Exception as error:  # noqa: BLE001  (of many kinds)
            yield _failed(error)


class _Ordered:
    """Puts groups in the listing's order."""

    def __init__(self) -> None:
        self._at: Mark = _START
        self._waiting: dict[Mark, Group] = {}
        self.works = 0
        """Tasks' worth of files that are behind."""

    def following(self, group: Group) -> Iterator[Group]:
        """Those whose turn it is, now that there is this one.

        Raises:
            BulkError: it was there before.
        """
        if group.begin in self._waiting:
            raise _lost()
        self._waiting[group.begin] = group
        while (one := self._waiting.pop(self._at, None)) is not None:
            self._at = one.end
            self.works += one.end[1] == 0
            yield one

    def check_complete(self) -> None:
        """Raise where not all have had their turn.

        Raises:
            BulkError: so it is.
        """
        if self._waiting or self._at != _END:
            raise _lost()


def _lost() -> BulkError:
    return BulkError("files have changed while a task was tried again: run it again to go on")


# --- in Ray's processes -------------------------------------------------------------------------


class _Pace:
    """Tells the listing how far the rows are."""

    def __init__(self) -> None:
        self._works = 0

    def move(self, works: int) -> None:
        """So many tasks' worth of files are behind."""
        self._works = works

    def works(self) -> int:
        """How many are."""
        return self._works


class _Listing(ray.data.Datasource):  # type: ignore[misc]
    """Files that no part covers, in one task beside the driver, which sees the same ones.

    Args:
        sources: what is listed.
        done: stretches that are not wanted.
        pace: how far the rows are.
        ahead: tasks' worth of files that the listing is ahead of them at most.
    """

    def __init__(self, sources: Sources, done: Sequence[Span], pace: Any, ahead: int) -> None:
        super().__init__()
        self._read = functools.partial(_list, sources, done, pace, ahead)

    @property
    def supports_distributed_reads(self) -> bool:
        """No: a path may be this machine's."""
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        """One: it is read in its order."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ray.data.ReadTask(self._read, unknown)]


def _list(sources: Sources, done: Sequence[Span], pace: Any, ahead: int) -> Iterator[pa.Table]:
    behind = 0
    for number, work in enumerate(works_of(sources, done)):
        while number >= behind + ahead:
            behind = ray.get(pace.works.remote())
            if number >= behind + ahead:
                time.sleep(_PACE_S)
        yield pa.table({"work": _binary(work)})


def works_of(sources: Sources, done: Sequence[Span]) -> Iterator[Work]:
    """Files that are to be opened, as tasks have them; the last one says how the listing ends."""
    _silence()
    at = _START
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
        failure = _failed(error)
    yield from closed()
    yield Work(at, _END, failure=failure)


def open_files(batch: pa.Table, settings: Settings, min_side: int) -> Iterator[pa.Table]:
    """Read and decode a task's files; pictures are given in groups."""
    _silence()
    for value in batch.column("work"):
        work: Work = _loads(value)
        if work.failure is not None or not work.files:
            yield _opened_table(Group(work.begin, work.end, failure=work.failure), [])
            continue
        opening = _Opening(work, settings, min_side)
        try:
            yield from opening.groups()
        except Exception as error:  # noqa: BLE001  (told in its turn)
            failure = error if isinstance(error, BulkError) else _failed(error)
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
        _silence()
        self._failure: BulkError | None = None
        try:
            detector = load_warm(settings, load)
        except Exception as error:  # noqa: BLE001  (told by each call)
            self._failure = _failed(error)
            return
        if (detector.about.sha256, detector.about.canvases) != (about.sha256, about.canvases):
            self._failure = BulkError("machines of the cluster have different checkpoints")
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
            group: Group = _loads(value)
            if group.failure is None and group.images:
                group = self._scored(group, opened.values)
            groups.append(group)
        return pa.table({"group": _binary(*groups)})

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
            return replace(group, images=(), failure=_failed(error))

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
            verdict=self._detector.verdict(score, None).value,
            score=score.value,
            warnings=(*result.facts.warnings, *score.warnings),
            declares=None if provenance is None else provenance.declares,
        )


def _opened_table(group: Group, opened: Sequence[bytes]) -> pa.Table:
    pictures = pa.array([opened], pa.list_(pa.large_binary()))
    return pa.table({"group": _binary(group), "opened": pictures})


def _binary(*values: Any) -> pa.Array:
    """What Ray is to send as it is: of objects that it cannot convert, it logs what is in them."""
    return pa.array(
        [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values], pa.large_binary()
    )


def _loads(value: pa.Scalar) -> Any:
    return pickle.loads(value.as_buffer())  # noqa: S301  (from a process of this run)
