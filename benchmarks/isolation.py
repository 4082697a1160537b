"""What it costs to decode in a process that can be stopped, beside decoding in a thread.

    python benchmarks/isolation.py [--side 512] [--rounds 20] [--images 40]

Rounds alternate: one image after another, then as many at once as there are cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.decoding.pool import Decoders
from benchmarks.memory import photograph
from model.hardware import cores
from model.images import Limits, Picture, decode

Decode = Callable[[bytes], Picture]


def latency(one: Decode, data: bytes, images: int) -> float:
    """Median milliseconds of an image, one after another."""
    laps = []
    for _ in range(images):
        start = time.perf_counter()
        one(data)
        laps.append(1000 * (time.perf_counter() - start))
    return statistics.median(laps)


def throughput(one: Decode, data: bytes, images: int) -> float:
    """Images a second, as many at once as there are cores."""
    with ThreadPoolExecutor(cores()) as pool:
        start = time.perf_counter()
        list(pool.map(one, [data] * images))
        return images / (time.perf_counter() - start)


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="of the JPEG, pixels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=40, help="in a round")
    chosen = parser.parse_args()
    data = photograph(chosen.side**2 / 1e6)
    decoders = Decoders(cores(), cpu_s=5, wall_s=30, replaced=lambda _: None)
    decoders.start()
    try:
        decoders.check()

        def in_thread(file: bytes) -> Picture:
            return decode(file)

        def in_process(file: bytes) -> Picture:
            return decoders.decode([file], Limits())

        rounds = [
            (
                latency(in_thread, data, chosen.images),
                latency(in_process, data, chosen.images),
                throughput(in_thread, data, chosen.images),
                throughput(in_process, data, chosen.images),
            )
            for _ in range(chosen.rounds + 1)
        ][1:]
    finally:
        decoders.stop()
    thread_ms, process_ms, thread_rate, process_rate = map(
        statistics.median, zip(*rounds, strict=True)
    )
    more = statistics.median(process - thread for thread, process, _, _ in rounds)
    ratio = statistics.median(process / thread for _, _, thread, process in rounds)
    print(
        "| pixels | in a thread, ms | a process | more | in threads, images/s | processes | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {chosen.side**2} | {thread_ms:.2f} | {process_ms:.2f} | {more:.2f} "
        f"| {thread_rate:.0f} | {process_rate:.0f} | {ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
