"""What the service costs over its network, against a peer, under too much load, and for long.

    python benchmarks/serving.py throughput [--rounds 3] [--seconds 10]
    python benchmarks/serving.py peer [--rounds 2] [--seconds 10] [--folder FOLDER]
    python benchmarks/serving.py beside --folder CHECKOUT [--rounds 4] [--seconds 10]
    python benchmarks/serving.py latency --folder CHECKOUT [--rounds 10] [--seconds 2]
    python benchmarks/serving.py overload [--seconds 60]
    python benchmarks/serving.py soak [--minutes 30] [--load 0.8]

Each starts a real server with the environment's settings (cache off), and sends it 512 px JPEGs of
photographs, no two the same file. What is compared is measured in turns, in one run: the figures
are the machine's, the ratios are the software's. Every line says PASS or FAIL; any FAIL makes the
exit status 1. `--json FILE` keeps everything. The tower must be in the cache
(`nsnet backbone fetch`); `peer` needs `nsnet[train]`, and keeps its tower in FOLDER.

* throughput: images/s at 16 and 64 clients over the network alone on prepared batches, and the p50
  of a single client over decoding, preparing and scoring one image alone.
* peer: the same loads on `peer.py`, a FastAPI server with ONNX Runtime's int8 CLIP, one server at a
  time.
* beside: the same loads on the service of another checkout, in this one's virtual environment, one
  server at a time; not slower than it beyond the range that the rounds have.
* latency: one client, on both services of `beside` at once, in short turns, so that what differs is
  not the hour. At most 2 ms more at the median.
* overload: twice the measured capacity by the clock. What is admitted meets the deadline, the rest
  is told at once; memory stays; and the server is itself again as soon as the last answer is out.
* soak: most of the measured capacity, for long: no error, no growth of memory or descriptors.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageOps

from app.settings import load_settings
from benchmarks.load import (
    REFUSALS,
    Closed,
    Load,
    Open,
    Reading,
    Sample,
    Target,
    apply_load,
    latency,
    synthetic,
)
from benchmarks.local import SERVE, Local, local_server

PEER = Path(__file__).with_name("peer.py")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "hubble_deep_field")
SIDE = 512
LEVELS = (1, 16, 64)
FULL = 32  # clients that keep every batch full, and fit into the queue


@dataclass(frozen=True, slots=True)
class Check:
    """One figure beside its target."""

    what: str
    value: float
    target: str
    passed: bool

    def __str__(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.what}: {self.value:.3g} (target: {self.target})"


def at_least(what: str, value: float, target: float) -> Check:
    """A figure that may not be smaller."""
    return Check(what, value, f">= {target:g}", value >= target)


def at_most(what: str, value: float, target: float) -> Check:
    """A figure that may not be larger."""
    return Check(what, value, f"<= {target:g}", value <= target)


Outcome = tuple[list[Check], dict[str, Any]]


# --- images and servers -------------------------------------------------------------------------


def photographs() -> list[bytes]:
    """512 px JPEGs of scikit-image's sample photographs, each mirrored, too.

    Without scikit-image, synthetic ones.
    """
    try:
        import skimage.data
    except ModuleNotFoundError:
        print("no scikit-image here: synthetic images", flush=True)
        return synthetic(2 * len(PHOTOGRAPHS))
    files = []
    for name in PHOTOGRAPHS:
        pixels = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        square = ImageOps.fit(pixels, (SIDE, SIDE), Image.Resampling.LANCZOS)
        for image in (square, ImageOps.mirror(square)):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
    return files


def target(server: Local, images: Sequence[bytes]) -> Target:
    """A server of our own, with its process in sight."""
    return Target(server.url, images, pid=server.pid)


def capacity(at: Target, seconds: float) -> float:
    """Images per second that the server gives clients who wait."""
    load = apply_load(at, Closed(FULL), seconds=seconds)
    show(load)
    return load.images_per_s


def show(load: Load, who: str = "") -> None:
    """One line per load, as it is done."""
    p = load.admitted
    times = f", p50 {1000 * p.p50_s:.0f} ms, p99 {1000 * p.p99_s:.0f} ms" if p else ""
    cores = f", {load.server_cores:.2f} cores" if load.server_cores is not None else ""
    print(
        f"  {who}{load.traffic}: {load.images_per_s:.2f} images/s{times}, "
        f"answers {load.statuses}, forwards {load.batches}{cores}, "
        f"generator {load.generator_cpu_s / load.seconds:.3f} cores",
        flush=True,
    )


def median(loads: Sequence[Load]) -> tuple[float, float]:
    """(images/s, p50 in seconds), medians over the rounds."""
    p50 = [load.admitted.p50_s for load in loads if load.admitted]
    if len(p50) < len(loads):
        raise SystemExit(f"no result at {loads[0].traffic}: it takes more --seconds")
    return statistics.median(load.images_per_s for load in loads), statistics.median(p50)


def figures(loads: dict[int, list[Load]]) -> list[dict[str, Any]]:
    """Every load of every level, for JSON."""
    return [load.figures() for rounds in loads.values() for load in rounds]


# --- throughput ---------------------------------------------------------------------------------


def throughput(chosen: argparse.Namespace) -> Outcome:
    """The service over its network."""
    from benchmarks.baseline import Baseline

    images = photographs()
    baseline = Baseline(load_settings(), images)
    loads: dict[int, list[Load]] = {level: [] for level in LEVELS}
    with local_server() as server:
        at = target(server, images)
        for _ in range(chosen.rounds):
            for level, rounds in loads.items():
                baseline.measure(chosen.seconds / 2)
                rounds.append(apply_load(at, Closed(level), seconds=chosen.seconds))
                show(rounds[-1])
        baseline.measure(chosen.seconds / 2)
    alone = baseline.figures()
    print(f"  the network alone: {alone}")
    checks = [
        at_least(
            f"images/s at {level} clients / network alone",
            median(loads[level])[0] / alone.images_per_s,
            0.93,
        )
        for level in LEVELS[1:]
    ]
    checks.append(
        at_most(
            "p50 of one client / (decode + prepare + network alone)",
            median(loads[1])[1] / alone.request_s,
            1.15,
        )
    )
    return checks, {"baseline": asdict(alone), "loads": figures(loads)}


# --- peer ---------------------------------------------------------------------------------------


def peer(chosen: argparse.Namespace) -> Outcome:
    """The service beside the service one would write without it."""
    images = photographs()
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or stack.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, str(PEER), str(folder)]
        with local_server(command, timeout_s=600):
            print("  the peer's tower is there", flush=True)
        loads = in_turns({"ours": {}, "peer": {"command": command}}, images, chosen)
    print(
        "\n| clients | ours, images/s | peer, images/s | ours, p50 ms | peer, p50 ms |\n"
        "|---|---|---|---|---|"
    )
    rows = {level: (median(loads["ours"][level]), median(loads["peer"][level])) for level in LEVELS}
    for level, ((our_rate, our_p50), (peer_rate, peer_p50)) in rows.items():
        print(
            f"| {level} | {our_rate:.2f} | {peer_rate:.2f} | {1000 * our_p50:.0f} "
            f"| {1000 * peer_p50:.0f} |"
        )
    print()
    checks = [
        at_least(
            f"images/s at {level} clients / peer's", rows[level][0][0] / rows[level][1][0], 1.5
        )
        for level in LEVELS[1:]
    ]
    checks.append(at_most("p50 of one client / peer's", rows[1][0][1] / rows[1][1][1], 0.7))
    return checks, {name: figures(levels) for name, levels in loads.items()}


# --- beside -------------------------------------------------------------------------------------


def beside(chosen: argparse.Namespace) -> Outcome:
    """The service beside another checkout of it."""
    if chosen.folder is None:
        raise SystemExit("beside: --folder names the other checkout")
    other = ["env", "-C", str(chosen.folder), *SERVE]
    loads = in_turns({"ours": {}, "other": {"command": other}}, photographs(), chosen)
    checks = []
    print(
        "\n| clients | | ours, by round | other, by round | ratio, least to most |\n"
        "|---|---|---|---|---|"
    )
    for level in LEVELS:
        ours, others = (loads[name][level] for name in ("ours", "other"))
        for what, of in (("images/s", rate_of), ("1 / p50, 1/s", speed_of)):
            pairs = [(of(a), of(b)) for a, b in zip(ours, others, strict=True)]
            ratios = sorted(a / b for a, b in pairs)
            columns = (" ".join(f"{v:.2f}" for v in values) for values in zip(*pairs, strict=True))
            print(
                f"| {level} | {what} | {' | '.join(columns)} | {ratios[0]:.3f}-{ratios[-1]:.3f} |"
            )
            checks.append(at_least(f"most of ours / other, {what} at {level}", ratios[-1], 1))
    print()
    return checks, {name: figures(levels) for name, levels in loads.items()}


def latency_beside(chosen: argparse.Namespace) -> Outcome:
    """One client of the service, and of another checkout of it, in short turns."""
    if chosen.folder is None:
        raise SystemExit("latency: --folder names the other checkout")
    other = ["env", "-C", str(chosen.folder), *SERVE]
    images = photographs()
    times: dict[str, list[float]] = {"ours": [], "other": []}
    with local_server() as here, local_server(other) as there:
        for _ in range(chosen.rounds):
            for name, server in (("ours", here), ("other", there)):
                load = apply_load(
                    target(server, images), Closed(1), seconds=chosen.seconds, warmup=0.5
                )
                times[name] += [s.done - s.sent for s in load.samples if s.status == 200]
    found = {name: latency(values) for name, values in times.items()}
    p50 = {name: 1000 * of.p50_s if of else float("inf") for name, of in found.items()}
    for name, values in times.items():
        print(f"{name}: {len(values)} answers, p50 {p50[name]:.2f} ms")
    more = p50["ours"] - p50["other"]
    details = {name: asdict(of) for name, of in found.items() if of}
    return [at_most("ms more at the median", more, 2)], details


def rate_of(load: Load) -> float:
    """Images per second."""
    return load.images_per_s


def speed_of(load: Load) -> float:
    """Of half of the requests, at least: 1 / p50."""
    return 1 / load.admitted.p50_s if load.admitted else 0.0


def in_turns(
    servers: dict[str, dict[str, Any]], images: Sequence[bytes], chosen: argparse.Namespace
) -> dict[str, dict[int, list[Load]]]:
    """Loads of every level on servers that take turns: by server, by clients, one a round.

    Args:
        servers: by name, what `local_server` takes.
        images: what is sent.
        chosen: how many rounds, and seconds of each load.
    """
    loads: dict[str, dict[int, list[Load]]] = {
        name: {level: [] for level in LEVELS} for name in servers
    }
    for _ in range(chosen.rounds):
        for name, options in servers.items():
            with local_server(**options) as server:
                for level, rounds in loads[name].items():
                    at = target(server, images)
                    rounds.append(apply_load(at, Closed(level), seconds=chosen.seconds))
                    show(rounds[-1], f"{name}, ")
    return loads


# --- overload -----------------------------------------------------------------------------------


def overload(chosen: argparse.Namespace) -> Outcome:
    """Twice the capacity, then nothing."""
    deadline = load_settings().deadline_s
    with local_server() as server:
        at = target(server, photographs())
        idle = apply_load(at, Closed(1), seconds=5)
        show(idle)
        limit = capacity(at, 10)
        load = apply_load(at, Open(2 * limit), seconds=chosen.seconds, warmup=5)
        after = apply_load(at, Closed(1), seconds=5, warmup=0)
        show(load)
    last = max(sample.due for sample in load.samples)
    answered = max(sample.done for sample in load.samples)
    refused = latency(s.done - s.sent for s in load.samples if s.status in REFUSALS)
    other = sum(s.status not in (200, 429) for s in load.samples)
    normal = 1.2 * (idle.admitted.p50_s if idle.admitted else 0)
    recovered = next(
        (s.done for s in after.samples if s.status == 200 and s.done - s.due <= normal),
        float("inf"),
    )
    print(
        f"  last arrival to last answer: {answered - last:.2f} s; to the first request at idle "
        f"speed: {recovered - last:.2f} s"
    )
    checks = [
        at_most(
            "p99 of what was admitted, s",
            load.admitted.p99_s if load.admitted else float("inf"),
            deadline,
        ),
        at_most("answers that are neither 200 nor 429", other, 0),
        at_most(
            "p99 of refusals from their sending, ms",
            1000 * refused.p99_s if refused else float("inf"),
            50,
        ),
        at_most("growth of RSS over the last 45 s, %", 100 * growth(load.server, 45), 5),
        at_most("last answer to a request at 1.2 x idle p50, s", recovered - answered, 2),
    ]
    return checks, {
        "capacity": limit,
        "idle": idle.figures(),
        "load": load.figures(),
        "after": after.figures(),
        "refused_after_sending": asdict(refused) if refused else None,
        "last_arrival_to_last_answer_s": answered - last,
        "last_arrival_to_recovery_s": recovered - last,
    }


def growth(readings: Sequence[Reading], last_s: float) -> float:
    """How much RSS grew over the last seconds, as a share, between their first and last tenth."""
    if not readings:
        return float("inf")  # the server ended
    part = [r.rss for r in readings if r.at_s >= readings[-1].at_s - last_s]
    tenth = max(1, len(part) // 10)
    return statistics.median(part[-tenth:]) / statistics.median(part[:tenth]) - 1


# --- soak ---------------------------------------------------------------------------------------


def soak(chosen: argparse.Namespace) -> Outcome:
    """Most of the capacity, for long."""
    seconds = 60 * chosen.minutes
    settled = min(300, seconds / 6)
    started = time.monotonic()
    minute = 0

    def watch(reading: Reading | None, samples: Sequence[Sample]) -> None:
        nonlocal minute
        if reading and reading.at_s >= 60 * minute:
            minute += 1
            bad = sum(sample.status != 200 for sample in samples)
            print(
                f"  {time.monotonic() - started:6.0f} s: {len(samples)} answers, {bad} bad, "
                f"RSS {reading.rss / 2**20:.0f} MiB, {reading.fds} descriptors",
                flush=True,
            )

    with local_server() as server:
        at = target(server, photographs())
        rate = chosen.load * capacity(at, 20)
        before = idle_descriptors(server.pid)
        load = apply_load(at, Open(rate), seconds=seconds, warmup=10, watch=watch)
        after = idle_descriptors(server.pid)
    show(load)
    print(f"  descriptors when idle: {before} before, {after} after")
    bad = len(load.samples) - load.statuses.get("200", 0)
    checks = [
        at_most("requests without a result", bad, 0),
        at_most(
            f"growth of RSS after the first {settled:.0f} s, %",
            100 * growth(load.server, seconds - settled),
            2,
        ),
        at_most("growth of open descriptors", after - before, 0),
    ]
    return checks, {"rate": rate, "descriptors": [before, after], "load": load.figures()}


def idle_descriptors(pid: int) -> int:
    """Open descriptors once no connection is left: load makes as many as it has clients."""
    process = psutil.Process(pid)
    end = time.monotonic() + 10
    while any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections()):
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return process.num_fds()


# --- command line -------------------------------------------------------------------------------


def main() -> None:
    """Run one benchmark; print its checks."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", type=Path)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    def command(run: Any, name: str = "", **options: Any) -> None:
        one = commands.add_parser(name or run.__name__, parents=[shared], description=run.__doc__)
        one.set_defaults(run=run)
        for option, default in options.items():
            kind = Path if default is None else type(default)
            one.add_argument(f"--{option}", type=kind, default=default)

    command(throughput, rounds=3, seconds=10.0)
    command(peer, rounds=2, seconds=10.0, folder=None)
    command(beside, rounds=4, seconds=10.0, folder=None)
    command(latency_beside, "latency", rounds=10, seconds=2.0, folder=None)
    command(overload, seconds=60.0)
    command(soak, minutes=30.0, load=0.8)
    chosen = parser.parse_args()
    checks, details = chosen.run(chosen)
    for check in checks:
        print(check)
    if chosen.json:
        record = {"checks": [asdict(check) for check in checks]} | details
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(check.passed for check in checks))


if __name__ == "__main__":
    main()
