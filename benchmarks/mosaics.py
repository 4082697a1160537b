"""How 32 px patches are best chosen and laid out: AUC over left-out owners, one row per rule.

    python benchmarks/mosaics.py MANIFEST [--split train] [--every 4]

The tower is frozen; a ridge classifier reads the CLS tokens of blocks 4-8 of one canvas per image,
clean copies only.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from model.data.manifest import folds, read_dataset
from model.figures.metrics import FIGURES, quote
from model.images import read_picture
from model.tower.sources import load_backbone
from model.tower.tokens import TowerSpec, block_tokens, normalise
from model.verdicts import Scores
from model.views.patches import PatchRule, select_patches

SPEC = TowerSpec(reads=(4, 5, 6, 7, 8))
AUC = [metric for metric in FIGURES if metric.key == "auc"]
RIDGE = 0.3
FOLDS = 6
RULES = {
    "both extremes": PatchRule(patch_size=32),
    "highest only": PatchRule(patch_size=32, high_share=1.0),
    "lowest only": PatchRule(patch_size=32, high_share=0.0),
}


def main() -> None:
    """Compute features once per rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=4, help="take every N-th image")
    chosen = parser.parse_args()
    rows = read_dataset(chosen.manifest, chosen.split)[:: chosen.every]
    visual = load_backbone(depth=SPEC.depth).visual.bfloat16()
    names = [*RULES, "both extremes, by rank"]
    features: list[Tensor] = []
    for row in track(rows):
        image = torch.tensor(read_picture(row.path).pixels).permute(2, 0, 1).unsqueeze(0)
        canvases = [select_patches(image, rule).canvases[0, 0] for rule in RULES.values()]
        both = select_patches(image, RULES["both extremes"])
        canvases.append(by_rank(canvases[0], both.entropies[0, 0]))
        pixels = normalise(torch.stack(canvases)).bfloat16()
        with torch.inference_mode():
            features.append(block_tokens(visual, pixels, SPEC).float().flatten(1))
    labels = np.array([row.label for row in rows])
    made = np.array([row.made for row in rows])
    owners = [row.owner for row in rows]
    fold = torch.tensor(folds(rows, FOLDS))
    print(f"{len(rows)} images\n\n| 32 px patches | AUC (95 %) |\n|---|---|")
    for name, x in zip(names, torch.stack(features, dim=1), strict=True):
        scores = held_out(x, torch.from_numpy(labels), fold)
        quoted = quote(AUC, labels, {"order": scores}, made=made, owners=owners)
        low, high = quoted["auc_95"]
        print(f"| {name} | {quoted['auc']:.3f} ({low:.3f}-{high:.3f}) |")


def by_rank(canvas: Tensor, entropies: Tensor) -> Tensor:
    """Lay a canvas's patches out by falling entropy instead of by position.

    Args:
        canvas: uint8 [3, S, S], of 32 px patches.
        entropies: float32 [patches], in raster order.

    Returns:
        uint8 [3, S, S].
    """
    side = canvas.shape[-1] // 32
    tiles = canvas.view(3, side, 32, side, 32).permute(1, 3, 0, 2, 4).reshape(-1, 3, 32, 32)
    tiles = tiles[entropies.argsort(descending=True)].view(side, side, 3, 32, 32)
    return tiles.permute(2, 0, 3, 1, 4).reshape(3, side * 32, side * 32)


def held_out(x: Tensor, labels: Tensor, fold: Tensor) -> Scores:
    """Scores of each fold by a ridge classifier trained on the others.

    Args:
        x: float32 [n, F], features.
        labels: int64 [n], 1 = AI.
        fold: int64 [n].

    Returns:
        float64 [n].
    """
    y = labels.float() * 2 - 1
    scores = torch.zeros(len(x))
    for index in range(FOLDS):
        rest = fold != index
        z = (x - x[rest].mean(dim=0)) / x[rest].std(dim=0).clamp_min(1e-4)
        kernel = z[rest] @ z[rest].T
        damping = RIDGE * kernel.diagonal().mean() * torch.eye(len(kernel))
        dual = torch.linalg.solve(kernel + damping, y[rest] - y[rest].mean())
        scores[~rest] = z[~rest] @ (z[rest].T @ dual)
    return scores.numpy().astype(np.float64)


if __name__ == "__main__":
    main()
