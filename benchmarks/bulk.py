"""Images a second of `nsnet bulk`, beside `nsnet detect` or its other engine on the same files.

    python benchmarks/bulk.py [--images 200] [--side 512] [--rounds 3] [--ray]

Each command is a process of its own, with the environment's settings, from its first images to its
last, so that no start counts; in turn, so that all see the same machine. The tower must be in the
cache (`nsnet backbone fetch`).
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.load import synthetic, unlike

_NSNET = (sys.executable, "-m", "cli.main")
_KINDS = 64  # of pictures; no two files are the same
_FIRST = 10
_BURST_S = 0.5  # rows that come together were made before they came
_PART = re.compile(r"(\d+) images, ")


def main() -> None:
    """Print one row per command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="the two engines, and their rows")
    chosen = parser.parse_args()
    commands = ("bulk", "bulk --engine ray") if chosen.ray else ("detect", "bulk")
    rates: dict[str, list[float]] = {command: [] for command in commands}
    with tempfile.TemporaryDirectory() as folder:
        album = Path(folder, "album")
        album.mkdir()
        for number, data in enumerate(
            islice(unlike(synthetic(_KINDS, chosen.side)), chosen.images)
        ):
            (album / f"{number:05}.jpg").write_bytes(data)
        for number in range(chosen.rounds):
            for command in commands:
                to = ("--to", f"{folder}/{command}-{number}", "--part-rows", str(_FIRST))
                arguments = to if command.startswith("bulk") else ()
                rates[command].append(rate(*command.split(), str(album), *arguments))
        if chosen.ray:
            compare(album, [f"{folder}/{command}-0" for command in commands], f"{folder}/killed")
    print("| command | images/s, median | least | most |\n|---|---|---|---|")
    for command, laps in rates.items():
        median = statistics.median(laps)
        print(f"| nsnet {command} | {median:.1f} | {min(laps):.1f} | {max(laps):.1f} |")
    if chosen.ray:
        ratios = [ray / local for local, ray in zip(*rates.values(), strict=True)]
        print(f"ray / local: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def compare(album: Path, outs: Sequence[str], killed: str) -> None:
    """Hold the rows of several runs against each other, one of them killed at a third.

    Args:
        album: what was scored.
        outs: folders of parts of whole runs.
        killed: one to be made, by Ray.
    """
    arguments = [*_NSNET, "bulk", str(album), "--engine", "ray", "--to", killed]
    arguments += ["--part-rows", str(_FIRST)]
    least = len(list(album.iterdir())) // _FIRST // 3
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(Path(killed).glob("part-*"))) < least:
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first, *others = [_rows(out) for out in (*outs, killed)]
    for out, rows in zip((*outs[1:], killed), others, strict=True):
        same = [a | {"score": 0} for a in first] == [a | {"score": 0} for a in rows]
        pairs = zip(first, rows, strict=False)
        furthest = max(abs((a["score"] or 0) - (b["score"] or 0)) for a, b in pairs)
        print(f"{Path(out).name}: {len(rows)} rows, {'the same' if same else 'OTHERS'}; ", end="")
        print(f"scores differ by {furthest:.1e} at most")


def _rows(out: str) -> list[dict[str, Any]]:
    parts = sorted(str(path) for path in Path(out).glob("part-*.parquet"))
    rows: list[dict[str, Any]] = pq.ParquetDataset(parts).read().to_pylist()
    return rows


def rate(*arguments: str) -> float:
    """Images a second of a command, by the lines that it prints."""
    process = subprocess.Popen(
        [*_NSNET, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None  # noqa: S101  (it is a pipe)
    times: dict[int, float] = {}
    for line in process.stdout:
        part = _PART.match(line)
        images = int(part[1]) if part else len(times) + 1 if arguments[0] == "detect" else 0
        times.setdefault(images, time.monotonic())
    if process.wait() or max(times) <= _FIRST:
        raise SystemExit(f"nsnet {arguments[0]} failed, or there are too few images")
    last = max(times)
    first = max(images for images, at in times.items() if at < times[_FIRST] + _BURST_S)
    if first == last:
        raise SystemExit("there are too few images")
    return (last - first) / (times[last] - times[first])


if __name__ == "__main__":
    main()
