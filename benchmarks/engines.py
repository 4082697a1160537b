"""What each engine costs and what it changes: speed side by side, scores of the same images.

    python benchmarks/engines.py MANIFEST [--split val] [--every 1] [--checkpoint FILE]

The reference is torch in float32. Speed is the median of rounds in which every engine has its turn
at eight of the images, decoded and cut: one at a time, and in one batch. The checkpoint is by
default the twin of the shipped one that was trained without the split `val`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from model.checkpoint import Verdict
from model.cores import cores
from model.detector import Detector, Prepared, place
from model.evaluation.metrics import auc
from model.pixels import read_rgb
from model.training.manifest import read_dataset

TWIN = Path(__file__).resolve().parent.parent / "weights" / "nsnet-vit-b-16-train.safetensors"
REFERENCE = ("torch", "float32", "all")
# `auto` is the float type that this machine is served in: bfloat16 where the CPU multiplies it.
OTHERS = (
    ("torch", "auto", "all"),
    ("openvino", "float32", "all"),
    ("openvino", "auto", "all"),
    ("int8", "float32", "all"),
    ("int8", "auto", "all"),
    ("int8", "float32", "adaptive"),
    ("int8", "auto", "adaptive"),
)
BATCH = 8
ROUNDS = 5


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speeds(detectors: dict[Any, Detector], prepared: dict[str, list[Prepared]]) -> dict[Any, Any]:
    """Mean seconds of a single image, and those of a batch, of engines taking turns.

    Args:
        detectors: by engine, dtype and canvases.
        prepared: the images, as detectors with these canvases prepare them.
    """
    found: dict[Any, tuple[list[float], list[float]]] = {key: ([], []) for key in detectors}
    for _ in range(ROUNDS):
        for key, detector in detectors.items():
            single, batched = found[key]
            items = prepared[detector.canvases]
            torch.set_num_threads(detector.torch_threads(cores()))
            detector.predict(items)  # its threads are awake again
            batched.append(seconds(lambda d=detector, i=items: d.predict(i)))
            single.append(
                seconds(lambda d=detector, i=items: [d.predict([item]) for item in i]) / len(items)
            )
    return {
        key: {1: float(np.median(single)), BATCH: float(np.median(batched)) / len(items)}
        for key, (single, batched) in found.items()
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
    torch.set_num_threads(cores())
    detectors = {}
    for engine, dtype, canvases in (REFERENCE, *OTHERS):
        kind = str(place("cpu", dtype)[1]).removeprefix("torch.")
        if (engine, kind, canvases) not in detectors:
            detectors[engine, kind, canvases] = Detector.load(
                chosen.checkpoint, device="cpu", dtype=kind, engine=engine, canvases=canvases
            )
    rows = read_dataset(chosen.manifest, chosen.split)[:: chosen.every]
    labels = np.array([row.label for row in rows])
    prepared: dict[str, list[Prepared]] = {d.canvases: [] for d in detectors.values()}
    scores = np.zeros((len(detectors), len(rows)))
    for index, row in enumerate(track(rows)):
        pixels = np.asarray(read_rgb(row.path))
        items = {d.canvases: d.prepare(pixels) for d in detectors.values()}
        if index % (len(rows) // BATCH) == 0:
            for canvases, item in items.items():
                prepared[canvases].append(item)  # of every part of the list, to be timed
        for which, detector in enumerate(detectors.values()):
            scores[which, index] = detector.predict([items[detector.canvases]])[0].score
    cuts = detectors[REFERENCE].thresholds
    verdicts = [[cuts.verdict(score) for score in line] for line in scores.tolist()]
    timed = speeds(detectors, prepared)
    print(f"{len(rows)} images; the reference is the first line")
    print("| engine | other operations | canvases | ms single | images/s in batches "
          "| max abs delta score | mean | verdicts changed | real <-> ai "
          "| AUC change |")  # fmt: skip
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    record = []
    for which, key in enumerate(detectors):
        delta = np.abs(scores[which] - scores[0])
        pairs = list(zip(verdicts[0], verdicts[which], strict=True))
        opposite = sum({Verdict.REAL, Verdict.AI_GENERATED} == set(pair) for pair in pairs)
        line = {
            "engine": key[0], "dtype": key[1], "canvases": key[2],
            "single_ms": 1000 * timed[key][1], "images_per_s": 1 / timed[key][BATCH],
            "delta_max": delta.max(), "delta_mean": delta.mean(),
            "verdicts_changed": sum(a != b for a, b in pairs), "opposite": opposite,
            "auc_change": auc(labels, scores[which]) - auc(labels, scores[0]),
        }  # fmt: skip
        record.append(line)
        print(f"| {' | '.join(key)} | {line['single_ms']:.0f} | {line['images_per_s']:.2f} "
              f"| {line['delta_max']:.4f} | {line['delta_mean']:.4f} | {line['verdicts_changed']} "
              f"| {opposite} | {line['auc_change']:+.4f} |")  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
