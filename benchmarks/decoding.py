"""What the largest accepted image takes to decode, in every format and mode.

    python benchmarks/decoding.py [--megapixels 8] [--formats JPEG PNG ...]

Each file of `specimens.py`, made of so many pixels, is decoded by a process of its own, which has
decoded a small one of the kind before. Prints seconds of CPU, and bytes a pixel at the peak beside
the file itself; any above 17, but for what does not grow with an image, makes the exit status 1.
What is refused at this size says why.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.specimens import SPECIMENS
from model.images import ImageError, Limits, decode

BYTES_PER_PIXEL = 17
_FIXED_BYTES = 4 << 20  # stacks of threads, tables
_SMALL = (96, 64)


def measured(small: bytes, data: bytes) -> tuple[int, float, str]:
    """Bytes at the peak of decoding, CPU seconds, and why not, in a process of one's own.

    Args:
        small: decoded before, so that what a library takes once is not counted.
        data: what is measured.
    """
    limits = Limits(max_pixels=1 << 40, max_bytes=1 << 40)
    why = ""
    decode(small, limits)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _memory("VmRSS"), time.process_time()
    try:
        decode(data, limits)
    except ImageError as error:
        why = error.code
    cpu_s = time.process_time() - start
    return _memory("VmHWM") - before, cpu_s, why


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def main() -> None:
    """Print a row for each format and mode, then how many take too much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=8)
    parser.add_argument(
        "--formats", nargs="*", default=[], help="as Pillow names them; all of them"
    )
    chosen = parser.parse_args()
    height = 2 * round((chosen.megapixels * 1e6 / (4 / 3)) ** 0.5 / 2)
    width = 2 * round(chosen.megapixels * 1e6 / height / 2)
    print(f"{width} x {height}; at most {BYTES_PER_PIXEL} bytes a pixel beside the file\n")
    print("| format | variant | file, MiB | CPU s | bytes a pixel | |\n|---|---|---|---|---|---|")
    os.environ["MALLOC_ARENA_MAX"] = "1"  # as decoders of the service have it
    excess = 0
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as fresh:
        for specimen in SPECIMENS:
            if chosen.formats and specimen.format not in chosen.formats:
                continue
            small, data = specimen.make(*_SMALL), specimen.make(width, height)
            peak, cpu_s, why = fresh.submit(measured, small, data).result()
            each = peak / (width * height)
            if peak > BYTES_PER_PIXEL * width * height + _FIXED_BYTES:
                excess, why = excess + 1, f"TOO MUCH {why}"
            print(
                f"| {specimen.format} | {specimen.name} | {len(data) / 2**20:.1f} | {cpu_s:.2f} "
                f"| {each:.1f} | {why} |",
                flush=True,
            )
    print(f"\n{'FAIL' if excess else 'PASS'}  {excess} take more than {BYTES_PER_PIXEL}")
    sys.exit(excess > 0)


if __name__ == "__main__":
    main()
