"""What the server holds while its queue is full of large photographs, and after that.

    python benchmarks/memory.py [--megapixels 24] [--images 64] [--refused]

Sends so many different photographs at once, one request each, to a real server with the
environment's settings (cache off), and watches the resident memory of it and its decoders until all
are answered, and again 10 s later: memory that is not back within 300 MiB of idle makes the exit
status 1. With `--refused`, the second half of every file is missing.

What one image takes, by format and mode, is `decoding.py`'s business.
"""

import argparse
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.load import unlike
from benchmarks.local import local_server

RETURNED_BYTES = 300 << 20
_SETTLED_S = 10.0
_LOOK_S = 0.02

T = TypeVar("T")


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


def resident(pid: int) -> int:
    """Resident bytes of a process and of all that it started."""
    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return total
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:  # it ended
            continue
    return total


def watched(pid: int, work: Callable[[], T]) -> tuple[T, int]:
    """What some work gives, and the most resident bytes of a process and its children meanwhile."""
    seen, done = [resident(pid)], threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_S):
            seen.append(resident(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        given = work()
    finally:
        done.set()
        watcher.join()
    return given, max(*seen, resident(pid))


def statuses_of(client: httpx.Client, bodies: Sequence[bytes]) -> Counter[int]:
    """The answers to all of them at once, by status."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return Counter(pool.map(lambda body: post(client, body), bodies))


def post(client: httpx.Client, body: bytes) -> int:
    """One image; the answer's status."""
    headers = {"Content-Type": "image/jpeg"}
    return client.post("/detect", content=body, headers=headers).status_code


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--refused", action="store_true")
    chosen = parser.parse_args()
    bodies = list(islice(unlike([photograph(chosen.megapixels)]), chosen.images))
    if chosen.refused:
        bodies = [body[: len(body) // 2] for body in bodies]
    with (
        local_server(deadline_s="300") as local,
        httpx.Client(
            base_url=local.url, timeout=600, limits=httpx.Limits(max_connections=None)
        ) as client,
    ):
        idle = resident(local.pid)
        statuses, peak = watched(local.pid, lambda: statuses_of(client, bodies))
        time.sleep(_SETTLED_S)
        after = resident(local.pid)
    size = len(bodies[0]) / 2**20
    print("| images at once | megapixels | MiB a file | answers | idle, MiB | peak | 10 s later |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {chosen.images} | {chosen.megapixels:g} | {size:.1f} | {dict(statuses)} "
        f"| {idle / 2**20:.0f} | {peak / 2**20:.0f} | {after / 2**20:.0f} |"
    )
    sys.exit(after > idle + RETURNED_BYTES)


if __name__ == "__main__":
    main()
