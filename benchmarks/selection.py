"""What patch selection costs, beside one forward of the real backbone, side by side in one run.

python benchmarks/selection.py
"""

import statistics
import time
from collections.abc import Callable

import torch

from model.backbone import load_backbone
from model.nsnet import PRESETS, block_tokens
from model.patches import PatchRule, select_patches

REPEATS = 9


def main() -> None:
    """Print a ratio per image size and patch size."""
    config = PRESETS["default"]
    visual = load_backbone(config.backbone, depth=config.depth).visual
    canvas = torch.randn(1, 3, 224, 224)

    def forward() -> None:
        block_tokens(visual, canvas, config.blocks)

    print("| image | patch | selection, ms | one fp32 forward, ms | ratio |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for height, width in ((3000, 4000), (1024, 1024), (384, 384)):
            image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
            pixels = image.permute(2, 0, 1).unsqueeze(0)  # as decoded: channels last
            for size in (32, 56, 112, 224):
                rule = PatchRule(patch_size=size)
                chosen, run = medians(lambda p=pixels, r=rule: select_patches(p, r), forward)
                print(f"| {width} x {height} | {size} | {chosen:.1f} | {run:.1f} "
                      f"| {chosen / run:.3f} |")  # fmt: skip


def medians(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call, the calls in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found[1:]) for found in times]


if __name__ == "__main__":
    main()
