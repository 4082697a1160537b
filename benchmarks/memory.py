"""What the server holds while its queue is full of large photographs.

    python benchmarks/memory.py [--megapixels 24] [--images 64]

Sends so many different photographs at once, one request each, to a real server with the
environment's settings (cache off), and watches its resident memory until all are answered.
"""

import argparse
import io
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.load import unlike
from benchmarks.local import local_server

_LOOK_S = 0.02


def photograph(megapixels: float) -> bytes:
    """A JPEG of 3:2, of soft shapes with grain, as large as a camera's."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    pixels = np.array(small.resize((round(1.5 * height), height), Image.Resampling.BICUBIC))
    grain = rng.integers(0, 12, (height, 1, 1), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels // 2 + grain).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def peak_while(client: httpx.Client, bodies: Sequence[bytes], pid: int) -> tuple[int, Counter[int]]:
    """Most resident bytes while all are answered, and the answers by status."""
    process, seen, done = psutil.Process(pid), [0], threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_S):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(len(bodies)) as pool:
            statuses = Counter(pool.map(lambda body: post(client, body), bodies))
    finally:
        done.set()
        watcher.join()
    return max(seen), statuses


def post(client: httpx.Client, body: bytes) -> int:
    """One image; the answer's status."""
    headers = {"Content-Type": "image/jpeg"}
    return client.post("/detect", content=body, headers=headers).status_code


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument("--images", type=int, default=64)
    chosen = parser.parse_args()
    bodies = list(islice(unlike([photograph(chosen.megapixels)]), chosen.images))
    with (
        local_server(deadline_s="300") as local,
        httpx.Client(
            base_url=local.url, timeout=600, limits=httpx.Limits(max_connections=None)
        ) as client,
    ):
        idle = psutil.Process(local.pid).memory_info().rss
        peak, statuses = peak_while(client, bodies, local.pid)
    size = len(bodies[0]) / 2**20
    print("| images at once | megapixels | MiB a file | answers | idle, MiB | peak, MiB |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {chosen.images} | {chosen.megapixels:g} | {size:.1f} | {dict(statuses)} "
        f"| {idle / 2**20:.0f} | {peak / 2**20:.0f} |"
    )


if __name__ == "__main__":
    main()
