"""What bfloat16 changes: the same images scored by the same checkpoint in both types.

python benchmarks/precision.py MANIFEST [--split val] [--every 3]
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from app.settings import DEFAULT_CHECKPOINT
from model.detector import Detector
from model.evaluation.metrics import auc
from model.pixels import to_rgb


def main() -> None:
    """Print the differences and the AUC in both types."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=3, help="take every N-th image")
    chosen = parser.parse_args()
    with chosen.manifest.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r.get("split", chosen.split) == chosen.split]
    rows = rows[:: chosen.every]
    labels = np.array([int(row["label"] == "ai") for row in rows])
    detectors = [Detector.load(DEFAULT_CHECKPOINT, device="cpu", dtype=dtype)
                 for dtype in ("float32", "bfloat16")]  # fmt: skip
    scores = np.zeros((2, len(rows)))
    verdicts: list[list[str]] = [[], []]
    for index, row in enumerate(track(rows)):
        with Image.open(chosen.manifest.parent / row["path"]) as image:
            pixels = to_rgb(image).pixels
        for which, detector in enumerate(detectors):
            found = detector.detect([pixels])[0]
            scores[which, index] = found.score
            verdicts[which].append(found.verdict)
    delta = np.abs(scores[0] - scores[1])
    pairs = list(zip(*verdicts, strict=True))
    opposite = sum({"real", "ai_generated"} == set(pair) for pair in pairs)
    print(f"{len(rows)} images, float32 against bfloat16")
    print(f"|delta score|: max {delta.max():.4f}, mean {delta.mean():.4f}")
    print(f"verdicts changed: {sum(a != b for a, b in pairs)}, real <-> ai_generated: {opposite}")
    print(f"AUC: {auc(labels, scores[0]):.4f} and {auc(labels, scores[1]):.4f}")


if __name__ == "__main__":
    main()
