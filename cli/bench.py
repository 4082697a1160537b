"""`nsnet bench`: how fast a server is, beside the network alone on the same machine."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.environment import UsageError, not_installed, read_settings, show

if TYPE_CHECKING:  # commands import what they need when they run
    from benchmarks.baseline import BaselineFigures
    from benchmarks.load import Closed, Latency, Load, Open, Target
    from model.images import Limits

_SUFFIXES = (".jpg", ".jpeg")


def bench(
    url: Annotated[
        str | None, typer.Option(help="a running server; by default one is started")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="clients that wait for their answers, comma-separated")
    ] = "1,16,64",
    rate: Annotated[
        float | None, typer.Option(help="images/s by the clock, instead of waiting clients")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="counted, of each load")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="seconds before them")] = 2.0,
    images: Annotated[
        Path | None, typer.Option(help="folder of JPEGs; by default doubtful ones of 512 px")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the figures")] = None,
) -> None:
    """Measure latency, rate, batches, CPU and memory of a server under load.

    Every image sent is unlike the others: no result cache answers. A server that is started here
    has the environment's settings, cache and rate limit off, and is held against the same network
    in this process without a service. Another is sent the first of NSNET_API_KEYS, if there is one.
    """
    from app.settings import own_api_key

    settings = read_settings()
    try:
        from benchmarks.load import Target, apply_load, synthetic
    except ModuleNotFoundError as error:
        raise not_installed(error, "bench") from None

    loads = _loads(concurrency, rate)
    files = _jpegs(images, settings.limits(1)) if images else synthetic()
    baseline = None
    with contextlib.ExitStack() as stack:
        if url:
            _check_ready(url)
            target = Target(url, files, key=own_api_key())
        else:
            from benchmarks.baseline import Baseline
            from benchmarks.local import local_server

            baseline = Baseline(settings, files)
            _say("the network alone")
            baseline.measure()
            local = stack.enter_context(local_server())
            target = Target(local.url, files, pid=local.pid)
        results = []
        for load in loads:
            _say(str(load))
            results.append(apply_load(target, load, seconds=seconds, warmup=warmup))
        if baseline:
            _say("the network alone, again")
            baseline.measure()
    alone = baseline.figures() if baseline else None
    _print(target, results, alone)
    if json_file:
        json_file.write_text(json.dumps(_figures(target, results, alone), indent=1) + "\n")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


def _loads(concurrency: str, rate: float | None) -> "Sequence[Closed | Open]":
    from benchmarks.load import Closed, Open

    if rate is not None:
        if rate <= 0:
            raise typer.BadParameter("above 0", param_hint="--rate")
        return [Open(rate)]
    try:
        levels = [Closed(int(part)) for part in concurrency.split(",")]
    except ValueError:
        levels = []
    if not levels or min(level.clients for level in levels) < 1:
        raise typer.BadParameter("numbers from 1 on, e.g. 1,16,64", param_hint="--concurrency")
    return levels


def _jpegs(folder: Path, limits: "Limits") -> list[bytes]:
    """Of the folder's files, those that the server would take."""
    from model.data.manifest import images_in
    from model.images import ImageError, read_file

    jpegs = []
    for file in sorted(images_in(folder)):
        if file.suffix.lower() not in _SUFFIXES:
            continue
        with contextlib.suppress(ImageError):
            data = read_file(file, limits)
            if data[:2] == b"\xff\xd8" and len(data) <= limits.max_bytes:
                jpegs.append(data)
    if not jpegs:
        raise UsageError(f"no JPEG in {folder}")
    return jpegs


def _check_ready(url: str) -> None:
    import httpx

    try:
        status = httpx.get(f"{url.rstrip('/')}/readyz", trust_env=False).status_code
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise UsageError(f"no server answers at {url}: {type(error).__name__}") from None
    if status != 200:
        raise UsageError(f"the server at {url} is not ready: /readyz says {status}")


def _figures(
    target: "Target", loads: "Sequence[Load]", alone: "BaselineFigures | None"
) -> dict[str, Any]:
    return {
        "url": target.url,
        "baseline": asdict(alone) if alone else None,
        "loads": [load.figures() | _ratios(load, alone) for load in loads],
    }


def _ratios(load: "Load", alone: "BaselineFigures | None") -> dict[str, float]:
    """The rate over the network's; for one client, its p50 over the work it stands for, too."""
    if not alone or not load.admitted:
        return {}
    ratios = {"images_per_s_over_baseline": load.images_per_s / alone.images_per_s}
    if load.traffic == "1 client":
        ratios["p50_over_baseline"] = load.admitted.p50_s / alone.request_s
    return ratios


def _print(target: "Target", loads: "Sequence[Load]", alone: "BaselineFigures | None") -> None:
    table = Table("", *(load.traffic for load in loads), title=target.url, title_style="")
    for name, cells in _rows(loads, alone):
        if any(cells):
            table.add_row(name, *cells)
    show(table)
    if alone:
        print(f"the network alone: {alone}")


def _rows(
    loads: "Sequence[Load]", alone: "BaselineFigures | None"
) -> Iterator[tuple[str, Sequence[str]]]:
    """(name, one cell per load); empty cells where there is nothing to tell."""
    ratios = [_ratios(load, alone) for load in loads]
    yield "images/s", [f"{load.images_per_s:.2f}" for load in loads]
    yield "/ network alone", [_number(r.get("images_per_s_over_baseline")) for r in ratios]
    yield "p50 / p95 / p99 / max, ms", [_latency(load.admitted) for load in loads]
    yield "p50 / network alone", [_number(r.get("p50_over_baseline")) for r in ratios]
    yield "refused, ms", [_latency(load.refused) for load in loads]
    yield "answers by status", [_counts(load.statuses) for load in loads]
    yield "problems", [_counts(load.problems) for load in loads]
    yield "forwards by images", [_counts(load.batches) for load in loads]
    yield "server's cores", [_number(load.server_cores) for load in loads]
    yield "server's RSS, MiB", [f"{load.rss / 2**20:.0f}" if load.rss else "" for load in loads]
    yield "generator's cores", [_number(load.generator_cpu_s / load.seconds) for load in loads]


def _latency(latency: "Latency | None") -> str:
    if not latency:
        return ""
    times = (latency.p50_s, latency.p95_s, latency.p99_s, latency.max_s)
    return " / ".join(f"{1000 * value:.0f}" for value in times)


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{name}: {count}" for name, count in counts.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
