"""Where the time to ready and the idle memory go: imports, checkpoint, tower, engine, warm-up.

    python benchmarks/footprint.py [--runs 3]

Loads the default detector as a server does, step by step, in a fresh process a run. Medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from model.hardware import cores, return_memory, use_threads

_PAGE = 4096


def resident() -> float:
    """This process's memory, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """What a start consists of, in its order."""
    yield "import the service", lambda: import_module("app.main")
    yield "import torch", lambda: import_module("torch")
    yield "import torchvision", lambda: import_module("torchvision")
    yield "import open_clip", lambda: import_module("open_clip")
    yield "import the engines' packages", lambda: import_module("model.detector")
    from model.checkpoint import build_model, read_checkpoint
    from model.detector import DEFAULT_CHECKPOINT, Detector
    from model.engines.registry import make_engine
    from model.hardware import Runtime
    from model.tower.sources import load_backbone

    held: dict[str, Any] = {}

    def tower() -> None:
        stored = read_checkpoint(DEFAULT_CHECKPOINT)
        network = stored.metadata.network
        visual = load_backbone(network.backbone, depth=network.depth).visual
        held.update(stored=stored, model=build_model(stored, visual))

    def engine() -> None:
        use_threads(cores())
        runtime = Runtime.resolve(threads=cores())
        stored, model = held.pop("stored"), held.pop("model")
        run = make_engine(runtime, model, stored.ranges)
        if run.owns_weights:
            model.release_tower()
        held["detector"] = Detector(model, run, stored, runtime, "adaptive")

    yield "read tower and checkpoint, merge", tower
    yield "build the engine, let go of the tower", engine
    yield "warm up", lambda: held["detector"].warm_up([1, 8])
    yield "give memory back", return_memory


def measure() -> list[tuple[str, float, float]]:
    """Each step with its seconds and the MiB resident after it."""
    rows = []
    for name, work in steps():
        start = time.perf_counter()
        work()
        rows.append((name, time.perf_counter() - start, resident()))
    return rows


def main() -> None:
    """Print one row a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="one run in this process, as JSON")
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(measure()))
        return
    command = [sys.executable, __file__, "--once"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(chosen.runs)
    ]
    print("| step | s | MiB more | MiB after it |\n|---|---:|---:|---:|")
    before = 0.0
    for same in zip(*runs, strict=True):
        seconds = statistics.median(row[1] for row in same)
        after = statistics.median(row[2] for row in same)
        print(f"| {same[0][0]} | {seconds:.2f} | {after - before:+.0f} | {after:.0f} |")
        before = after


if __name__ == "__main__":
    main()
