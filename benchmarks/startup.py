"""Start to ready, idle memory and single-request latency of the real server, per dtype.

    python benchmarks/startup.py [--runs 3]

The tower must be in the cache (`nsnet backbone fetch`).
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PORT = 18765


def main() -> None:
    """Print one row per dtype, dtypes in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float, float]]] = {"float32": [], "auto": []}
    for _ in range(runs):
        for dtype, rows in found.items():
            rows.append(measure(dtype, rng))
    print("| NSNET_DTYPE | ready, s | idle RSS, MiB | one 512 px JPEG, ms |\n|---|---|---|---|")
    for dtype, rows in found.items():
        ready, memory, latency = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {dtype} | {ready:.2f} | {memory:.0f} | {latency:.0f} |")


def measure(dtype: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """(seconds to ready, MiB resident when idle, median milliseconds of a request)."""
    environment = os.environ | {
        "NSNET_PORT": str(PORT), "NSNET_HOST": "127.0.0.1", "NSNET_DTYPE": dtype,
        "NSNET_CACHE_SIZE": "0", "NSNET_LOG_LEVEL": "warning",
    }  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve"], env=environment, cwd=ROOT
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    raise SystemExit("the server ended")
                time.sleep(0.02)
            ready = time.monotonic() - start
            memory = psutil.Process(process.pid).memory_info().rss / 2**20
            laps = []
            for _ in range(12):
                data = jpeg(rng)
                begin = time.perf_counter()
                client.post("/detect", files={"file": data}).raise_for_status()
                laps.append(1000 * (time.perf_counter() - begin))
        return ready, memory, statistics.median(laps[2:])
    finally:
        process.terminate()
        process.wait(30)


def jpeg(rng: np.random.Generator) -> bytes:
    """A 512 px JPEG of smooth noise, unlike any before."""
    small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
