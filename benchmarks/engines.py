"""What each engine costs and what it changes: speed side by side, scores of the same images.

    python benchmarks/engines.py MANIFEST [--split val] [--every 1] [--checkpoint FILE]

The reference is torch in float32. Speed is the median of rounds in which every engine has its turn
at eight of the images, decoded and cut: one at a time, and in one batch. The checkpoint is by
default the twin of the shipped one that was trained without the split `val`.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks import TWIN
from model.data.manifest import read_dataset
from model.detector import Detector, Look
from model.figures.metrics import auc
from model.hardware import Runtime, cores, use_threads
from model.images import read_picture
from model.verdicts import Verdict

BATCH = 8
ROUNDS = 5


class Kind(NamedTuple):
    """How a detector runs; `auto` of a dtype is what this machine is served in."""

    engine: str
    precision: str
    dtype: str
    canvases: str


REFERENCE = Kind("torch", "float", "float32", "all")
OTHERS = (
    Kind("torch", "float", "auto", "all"),
    Kind("openvino", "float", "float32", "all"),
    Kind("openvino", "float", "auto", "all"),
    Kind("auto", "int8", "float32", "all"),
    Kind("auto", "int8", "auto", "all"),
    Kind("auto", "int8", "float32", "adaptive"),
    Kind("auto", "int8", "auto", "adaptive"),
)


def load(checkpoint: Path) -> dict[Kind, Detector]:
    """Detectors on the CPU, the reference first, by what their kind is where `auto` is decided."""
    runtimes = {}
    for kind in (REFERENCE, *OTHERS):
        runtime = Runtime.resolve("cpu", kind.dtype, kind.engine, kind.precision, cores())
        runtimes[kind._replace(dtype=runtime.dtype_name)] = runtime
    detectors = [
        Detector.load(checkpoint, runtime=runtime, canvases=kind.canvases)
        for kind, runtime in runtimes.items()
    ]
    return {
        Kind(d.about.engine, d.about.precision, d.about.dtype, d.about.canvases): d
        for d in detectors
    }


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_by_one(detector: Detector, looks: Sequence[Look]) -> None:
    """Score images without a batch."""
    for look in looks:
        detector.predict([look])


def speeds(
    detectors: Mapping[Kind, Detector], looks: Mapping[str, list[Look]]
) -> dict[Kind, tuple[float, float]]:
    """Median seconds of a single image, and of one in a batch, of engines taking turns.

    Args:
        detectors: by kind.
        looks: at the images, as detectors with these canvases take them.
    """
    laps: dict[Kind, tuple[list[float], list[float]]] = {kind: ([], []) for kind in detectors}
    for _ in range(ROUNDS):
        for kind, detector in detectors.items():
            single, batched = laps[kind]
            items = looks[kind.canvases]
            use_threads(detector.torch_threads(cores()))
            detector.predict(items)  # its threads are awake again
            batched.append(seconds(partial(detector.predict, items)) / len(items))
            single.append(seconds(partial(one_by_one, detector, items)) / len(items))
    return {
        kind: (float(np.median(single)), float(np.median(batched)))
        for kind, (single, batched) in laps.items()
    }


def main() -> None:
    """Print a Markdown table, and write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    parser.add_argument("--checkpoint", type=Path, default=TWIN)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    use_threads(cores())
    detectors = load(chosen.checkpoint)
    rows = read_dataset(chosen.manifest, chosen.split)[:: chosen.every]
    labels = np.array([row.label for row in rows])
    timed: dict[str, list[Look]] = {kind.canvases: [] for kind in detectors}
    scores = np.zeros((len(detectors), len(rows)))
    for index, row in enumerate(track(rows)):
        pixels = read_picture(row.path).pixels
        looks = {d.about.canvases: d.look(pixels) for d in detectors.values()}
        if index % max(1, len(rows) // BATCH) == 0:
            for canvases, look in looks.items():
                timed[canvases].append(look)  # of every part of the list
        for which, detector in enumerate(detectors.values()):
            scores[which, index] = detector.predict([looks[detector.about.canvases]])[0].value
    reference = next(iter(detectors.values()))
    cuts = reference.about.thresholds
    verdicts = [[cuts.verdict(score) for score in line] for line in scores.tolist()]
    measured = speeds(detectors, timed)
    print(f"{len(rows)} images; the reference is the first line")
    print(
        "| engine | precision | other operations | canvases | ms single | images/s in batches "
        "| max abs delta score | mean | verdicts changed | real <-> ai | AUC change |"
    )
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    record: list[dict[str, Any]] = []
    for which, kind in enumerate(detectors):
        delta = np.abs(scores[which] - scores[0])
        pairs = list(zip(verdicts[0], verdicts[which], strict=True))
        opposite = sum({Verdict.REAL, Verdict.AI_GENERATED} == set(pair) for pair in pairs)
        single, batched = measured[kind]
        line = kind._asdict() | {
            "single_ms": 1000 * single,
            "images_per_s": 1 / batched,
            "delta_max": delta.max(),
            "delta_mean": delta.mean(),
            "verdicts_changed": sum(a != b for a, b in pairs),
            "opposite": opposite,
            "auc_change": auc(labels, scores[which]) - auc(labels, scores[0]),
        }
        record.append(line)
        print(
            f"| {' | '.join(kind)} | {line['single_ms']:.0f} | {line['images_per_s']:.2f} "
            f"| {line['delta_max']:.4f} | {line['delta_mean']:.4f} | {line['verdicts_changed']} "
            f"| {opposite} | {line['auc_change']:+.4f} |"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
