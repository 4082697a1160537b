"""What each engine costs and what it changes: speed side by side, scores of the same images.

    python benchmarks/engines.py MANIFEST [--split val] [--every 1] [--checkpoint FILE]

The reference is torch in float32. Speed is the median of rounds in which every engine has its turn,
of images already decoded and cut: single ones, and batches of eight. The checkpoint is by default
the twin of the shipped one that was trained without the split `val`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from model.checkpoint import Verdict
from model.detector import Detector, Prepared
from model.evaluation.metrics import auc
from model.pixels import read_rgb
from model.training.manifest import read_dataset

TWIN = Path(__file__).resolve().parent.parent / "weights" / "nsnet-vit-b-16-train.safetensors"
REFERENCE = ("torch", "float32")
OTHERS = (
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("int8", "float32"),
    ("int8", "bfloat16"),
)
BATCH = 8
ROUNDS = 9


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speeds(detectors: dict[tuple[str, str], Detector], item: Prepared) -> dict[Any, Any]:
    """Median seconds of a single image and of a batch, of engines taking turns."""
    found: dict[Any, dict[int, list[float]]] = {key: {1: [], BATCH: []} for key in detectors}
    for detector in detectors.values():
        detector.warm_up([1, BATCH])
    for _ in range(ROUNDS):
        for key, detector in detectors.items():
            for count in (1, BATCH):
                batch = [item] * count
                detector.predict(batch)  # its threads are awake again
                found[key][count].append(seconds(lambda d=detector, b=batch: d.predict(b)))
    return {
        key: {count: float(np.median(times)) for count, times in counts.items()}
        for key, counts in found.items()
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
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    detectors = {
        (engine, dtype): Detector.load(chosen.checkpoint, device="cpu", dtype=dtype, engine=engine)
        for engine, dtype in (REFERENCE, *OTHERS)
    }
    rows = read_dataset(chosen.manifest, chosen.split)[:: chosen.every]
    labels = np.array([row.label for row in rows])
    scores = np.zeros((len(detectors), len(rows)))
    for index, row in enumerate(track(rows)):
        pixels = np.asarray(read_rgb(row.path))
        item = detectors[REFERENCE].prepare(pixels)
        for which, detector in enumerate(detectors.values()):
            scores[which, index] = detector.predict([item])[0].score
    cuts = detectors[REFERENCE].thresholds
    verdicts = [[cuts.verdict(score) for score in line] for line in scores.tolist()]
    item = detectors[REFERENCE].prepare(
        np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    )
    timed = speeds(detectors, item)
    print(f"{len(rows)} images, {len(item.canvases)} canvases each, reference {REFERENCE}")
    print("| engine | other operations | ms single | images/s in batches | max abs delta score "
          "| mean | verdicts changed | real <-> ai | AUC change |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    record = []
    for which, key in enumerate(detectors):
        delta = np.abs(scores[which] - scores[0])
        pairs = list(zip(verdicts[0], verdicts[which], strict=True))
        opposite = sum({Verdict.REAL, Verdict.AI_GENERATED} == set(pair) for pair in pairs)
        line = {
            "engine": key[0], "dtype": key[1],
            "single_ms": 1000 * timed[key][1], "images_per_s": BATCH / timed[key][BATCH],
            "delta_max": delta.max(), "delta_mean": delta.mean(),
            "verdicts_changed": sum(a != b for a, b in pairs), "opposite": opposite,
            "auc_change": auc(labels, scores[which]) - auc(labels, scores[0]),
        }  # fmt: skip
        record.append(line)
        print(f"| {key[0]} | {key[1]} | {line['single_ms']:.0f} | {line['images_per_s']:.2f} "
              f"| {line['delta_max']:.4f} | {line['delta_mean']:.4f} | {line['verdicts_changed']} "
              f"| {opposite} | {line['auc_change']:+.4f} |")  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
