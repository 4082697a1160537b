"""Ray Data: a listing in one task -> files opened in tasks -> scored by actors -> rows, in order.

Ray schedules, retries, and holds back whoever is ahead of the others. It does so in whichever order
things are ready: pictures never wait for their turn, only rows do, here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata

from app.bulk.cluster import cluster, is_joined
from app.bulk.engine import EngineFactory
from app.bulk.parts import Row
from app.bulk.sources import Sources, Span
from app.bulk.stages import (
    END,
    START,
    Group,
    Mark,
    Scoring,
    as_binary,
    gave_up,
    loads,
    open_files,
    silence,
    works_of,
)
from app.bulk.store import BulkError
from app.local import Loader, load_detector
from app.settings import Settings

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About

AHEAD = 256
"""Tasks that the listing is ahead of the rows at least; on large clusters, four a CPU."""

_PACE_S = 0.1


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
        device = _device(settings, options, self._gpus)
        settings = settings.model_copy(update={"device": device})
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
        pace: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Pace).remote()
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
        ahead = max(AHEAD, 4 * int(_resources().get("CPU", 0)))
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
        BulkError: there are no such GPUs, and nobody will bring any.
    """
    gpus = 0.0 if settings.device == "cpu" else _resources().get("GPU", 0.0)
    each = options.gpus_per_actor
    if each is None:
        each = 1.0 if gpus else 0.0
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = sum(node["Alive"] and "CPU" in node["Resources"] for node in nodes)
    actors = options.actors or (int(gpus / each) if each else max(1, machines))
    grows = is_joined() and options.actors is not None  # where there is an autoscaler
    if not actors or (actors * each > gpus and not grows):
        raise BulkError(f"there are {gpus:g} GPUs, and {max(1, actors)} x {each:g} are asked for")
    return actors, each


def _device(settings: Settings, options: RayOptions, gpus: float) -> str:
    """What a detector runs on that was given so many GPUs: Ray does not hide the others from it."""
    if gpus and settings.device != "cpu":
        return "cuda"  # which one, Ray says
    return "cpu" if options.gpus_per_actor == 0 else settings.device


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def _about(settings: Settings, load: Loader) -> About | Exception:
    """What is loaded where detectors are. Runs in a process that ends with it."""
    silence()
    try:
        return load(settings).about
    except Exception as error:  # noqa: BLE001  (told where it can be shown)
        return error


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise gave_up(error) from None


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
                yield from map(loads, batch.column("group"))
            yield None
        except Exception as error:  # noqa: BLE001  (of many kinds)
            yield gave_up(error)


class _Ordered:
    """Puts groups in the listing's order."""

    def __init__(self) -> None:
        self._at: Mark = START
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
        if self._waiting or self._at != END:
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


class _Listing(ray.data.Datasource):
    """Files that no part covers, in one task beside the driver, which sees the same ones.

    Args:
        sources: what is listed.
        done: stretches that are not wanted.
        pace: how far the rows are.
        ahead: tasks' worth of files that the listing is ahead of them at most.
    """

    def __init__(self, sources: Sources, done: Sequence[Span], pace: Any, ahead: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        yield pa.table({"work": as_binary(work)})
