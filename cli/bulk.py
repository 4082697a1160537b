"""`nsnet bulk`: many images, out of folders, lists, shards and object stores, to Parquet."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cli.environment import UsageError, not_installed, read_settings

if TYPE_CHECKING:  # commands import what they need when they run
    from app.bulk.engine import EngineFactory
    from app.bulk.pipeline import Done
    from app.bulk.sources import Sources


class Engine(StrEnum):
    """Where the work is done."""

    LOCAL = "local"
    RAY = "ray"


def bulk(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="images, folders, globs, .tar shards, CSV or Parquet lists with a column path; "
            "or URLs of them: s3://, gs://, hf://, ..."
        ),
    ],
    to: Annotated[str, typer.Option(help="folder or URL for the Parquet parts")],
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: on this machine; ray: on the cluster of RAY_ADDRESS, or one of its own"
        ),
    ] = Engine.LOCAL,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1, help="ray: detectors; without it one for each GPU, or for each machine"
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(min=0, help="ray: of each detector, may be a fraction; 0: it runs on the CPU"),
    ] = None,
    part_rows: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="rows of a part: what a kill may cost")
    ] = 1000,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors")] = False,
) -> None:
    """Score many images: a row each, in Parquet; run again, it goes on after the last part.

    Of a folder, those are taken whose names end as images' or shards' do, hidden ones left out; of
    a glob or a list, whatever it names. Images are scored as by `nsnet serve`, with its settings.

    The exit status is 0 if all have a row, whatever it says.
    """
    settings = read_settings()
    try:
        from app.bulk.pipeline import run_bulk
        from app.bulk.sources import Sources
        from app.bulk.store import BulkError, StuckError
    except ModuleNotFoundError as error:
        raise not_installed(error, "bulk") from None
    factory = _factory(engine, actors, gpus_per_actor)

    console = Console(stderr=True, quiet=quiet)
    try:
        listed = Sources(sources)
        with _logged(console), _shown(console, listed) as told:
            done = run_bulk(listed, to, settings, part_rows=part_rows, told=told, factory=factory)
    except StuckError as error:
        print(f"nsnet: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except BulkError as error:
        raise UsageError(str(error)) from None
    said = ", ".join(f"{count} {word}" for word, count in sorted(done.said.items()))
    console.print(f"{done.rows} rows{': ' if said else ''}{said}", highlight=False)
    if done.ended_by is not None:
        console.print("ended early: run it again to go on", highlight=False)
        raise typer.Exit(128 + done.ended_by)


def _factory(engine: Engine, actors: int | None, gpus_per_actor: float | None) -> "EngineFactory":
    """What gives the engine.

    Raises:
        UsageError: it is not installed, or is told what another one is to do.
    """
    if engine is Engine.LOCAL:
        if actors is not None or gpus_per_actor is not None:
            raise UsageError("--actors and --gpus-per-actor are for --engine ray")
        from app.bulk.local import local_engine

        return local_engine()
    try:
        from app.bulk.ray_data import RayOptions, ray_engine
    except ModuleNotFoundError as error:
        raise not_installed(error, "ray") from None
    return ray_engine(RayOptions(actors, gpus_per_actor))


@contextlib.contextmanager
def _logged(console: Console) -> Iterator[None]:
    """Show what the service warns of, and no library's warnings: they may quote addresses."""
    shown, unseen = RichHandler(console=console, show_path=False), logging.NullHandler()
    handlers: tuple[tuple[str, logging.Handler], ...] = (
        ("app", shown),
        ("model", shown),
        ("", unseen),
    )
    for name, handler in handlers:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name, handler in handlers:
            logging.getLogger(name).removeHandler(handler)


@contextlib.contextmanager
def _shown(console: Console, sources: "Sources") -> "Iterator[Callable[[Done], None]]":
    """Progress: a bar on a terminal, elsewhere a line for each part."""
    if console.quiet or not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        BarColumn(),
        TextColumn("{task.fields[rows]} images, {task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=300) as progress:
        yield _Bar(progress, sources)


class _Lines:
    """A line for each part."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._parts = 0

    def __call__(self, done: "Done") -> None:
        rate = self._clock.rate(done.rows)
        if done.parts > self._parts:
            self._parts = done.parts
            self._console.print(f"{done.rows} images, {rate:.1f}/s", highlight=False)


class _Bar:
    """A bar of the files that are behind, of as many as there are: that is counted meanwhile."""

    def __init__(self, progress: Progress, sources: "Sources") -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, rows=0, rate=0.0)
        self._clock = _Clock()
        self._begun = False
        threading.Thread(target=self._count, args=(sources,), daemon=True).start()

    def __call__(self, done: "Done") -> None:
        if not self._begun:  # what was done before took no time now
            self._begun = True
            self._progress.reset(self._task, completed=done.files)
        rate = self._clock.rate(done.rows)
        self._progress.update(self._task, completed=done.files, rows=done.rows, rate=rate)

    def _count(self, sources: "Sources") -> None:
        with contextlib.suppress(Exception):  # the run itself tells of it
            files = sum(1 for _ in sources.files())
            self._progress.update(self._task, total=files)


class _Clock:
    """Images a second since the first one."""

    def __init__(self) -> None:
        self._start: float | None = None

    def rate(self, rows: int) -> float:
        """The mean so far."""
        if self._start is None:
            self._start = time.monotonic()
        return (rows - 1) / max(time.monotonic() - self._start, 1e-6) if rows > 1 else 0.0
