"""Start to ready, idle memory and single-request latency of the real server, per engine.

    python benchmarks/startup.py [--runs 3]

The tower must be in the cache (`nsnet backbone fetch`).
"""

import argparse
import io
import statistics
import time

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.local import local_server


def main() -> None:
    """Print one row per engine, engines in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    rng = np.random.default_rng(0)
    measured: dict[str, list[tuple[float, float, float]]] = {"torch": [], "auto": []}
    for _ in range(runs):
        for engine, rows in measured.items():
            rows.append(measure(engine, rng))
    print("| NSNET_ENGINE | ready, s | idle RSS, MiB | one 512 px JPEG, ms |\n|---|---|---|---|")
    for engine, rows in measured.items():
        ready, memory, latency = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {engine} | {ready:.2f} | {memory:.0f} | {latency:.0f} |")


def measure(engine: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """(seconds to ready, MiB resident when idle, median milliseconds of a request)."""
    with (
        local_server(engine=engine) as local,
        httpx.Client(base_url=local.url, timeout=60) as client,
    ):
        memory = psutil.Process(local.pid).memory_info().rss / 2**20
        laps = []
        for _ in range(12):
            data = jpeg(rng)
            begin = time.perf_counter()
            client.post("/detect", files={"file": data}).raise_for_status()
            laps.append(1000 * (time.perf_counter() - begin))
    return local.ready_s, memory, statistics.median(laps[2:])


def jpeg(rng: np.random.Generator) -> bytes:
    """A 512 px JPEG of smooth noise, unlike any before."""
    small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
