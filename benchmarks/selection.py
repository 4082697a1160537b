"""What patch selection costs, beside one forward of the real backbone, side by side in one run.

python benchmarks/selection.py
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from model.checkpoint import read_checkpoint
from model.detector import DEFAULT_CHECKPOINT
from model.tower.sources import load_backbone
from model.tower.tokens import block_tokens
from model.views.patches import PatchRule, select_patches

REPEATS = 9


def main() -> None:
    """Print a ratio per image size and patch size."""
    network = read_checkpoint(DEFAULT_CHECKPOINT).metadata.network
    visual = load_backbone(network.backbone, depth=network.depth).visual
    spec = network.spec(visual)
    canvas = torch.randn(1, 3, 224, 224)

    def forward() -> None:
        block_tokens(visual, canvas, spec)

    print("| image | patch | selection, ms | one fp32 forward, ms | ratio |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for height, width in ((3000, 4000), (1024, 1024), (384, 384)):
            image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
            pixels = image.permute(2, 0, 1).unsqueeze(0)  # as decoded: channels last
            for size in (32, 56, 112, 224):
                rule = PatchRule(patch_size=size)
                chosen, run = medians(partial(select_patches, pixels, rule), forward)
                print(
                    f"| {width} x {height} | {size} | {chosen:.1f} | {run:.1f} "
                    f"| {chosen / run:.3f} |"
                )


def medians(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call, the calls in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS + 1):
        for call, laps in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            laps.append(1000 * (time.perf_counter() - start))
    return [statistics.median(laps[1:]) for laps in times]


if __name__ == "__main__":
    main()
