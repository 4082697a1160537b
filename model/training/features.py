"""Null-space features need no gradient while the tower is frozen: they are computed once.

Every image is read as three kinds of copy, both classes alike: clean (its own bytes), equalised,
and degraded at random. All of the tower's block tokens are kept, so that blocks, ranks and heads
can be compared without running the tower again.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbone import Backbone
from model.nsnet import block_tokens, normalise
from model.patches import PatchRule, select_patches
from model.pixels import to_rgb
from model.training.augment import degrade, equalise
from model.training.manifest import Row

log = logging.getLogger(__name__)

CLEAN, EQUALISED, DEGRADED = 0, 1, 2
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Features:
    """Block tokens of canvases.

    Attributes:
        tokens: float16 [n, blocks, width], ln_post of the CLS token after each block.
            The last block's, times the tower's projection, is the joint-space feature.
        row: int64 [n], the manifest row.
        kind: int64 [n], CLEAN, EQUALISED or DEGRADED.
    """

    tokens: Tensor
    row: Tensor
    kind: Tensor

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: getattr(self, name) for name in self.__slots__}, path)

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Read what `save` wrote."""
        return cls(**load_file(path))


@dataclass(frozen=True, slots=True)
class _Canvas:
    pixels: Tensor
    row: int
    kind: int


def _copies(image: Image.Image, rule: PatchRule, seed: int, degraded: int) -> Iterator[
    tuple[int, Image.Image, PatchRule]
]:  # fmt: skip
    """Yield the copies of one image and how each is cut."""
    rng = np.random.default_rng(seed)
    yield CLEAN, image, rule
    yield EQUALISED, equalise(image, rng), rule
    for _ in range(degraded):
        copy = degrade(image, rng, min_side=rule.canvas_size)
        share = float(rng.integers(2)) if rule.patches_per_canvas == 1 else rule.high_share
        yield DEGRADED, copy, rule.model_copy(update={"canvases": 1, "high_share": share})


def _canvases(index: int, row: Row, rule: PatchRule, degraded: int) -> list[_Canvas]:
    # The seed comes from the file's name: adding rows does not change the others' copies.
    seed = int.from_bytes(hashlib.sha256(row.path.name.encode()).digest()[:8], "big")
    generator = torch.Generator().manual_seed(seed % 2**63)
    with Image.open(row.path) as file:
        image = Image.fromarray(to_rgb(file).pixels)
    found = []
    for kind, copy, cut in _copies(image, rule, seed, degraded):
        pixels = torch.from_numpy(np.array(copy)).permute(2, 0, 1).unsqueeze(0)
        # Only the degraded copies are jittered; clean and equalised ones are cut as in inference.
        chosen = select_patches(pixels, cut, generator=generator if kind == DEGRADED else None)
        found += [_Canvas(canvas, index, kind) for canvas in chosen.canvases[0]]
    return found


def extract(
    rows: Sequence[Row],
    backbone: Backbone,
    rule: PatchRule,
    *,
    degraded: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Features:
    """Compute the tokens of every copy of every image.

    An unreadable or too small image is skipped and counted.

    Args:
        rows: the images.
        backbone: the blocks to run; the tower is moved to `device` and `dtype`.
        rule: how copies are cut into canvases.
        degraded: degraded copies per image, one canvas each.
        dtype: bfloat16 doubles the speed on recent CPUs; tokens differ by about 1 %.
        device: where the tower runs.
    """
    visual = backbone.visual.to(device=device, dtype=dtype)
    blocks = range(1, len(visual.transformer.resblocks) + 1)

    @torch.inference_mode()
    def run(canvases: Sequence[_Canvas]) -> Tensor:
        stack = torch.stack([canvas.pixels for canvas in canvases]).to(device)
        tokens = block_tokens(visual, normalise(stack).to(dtype), blocks)
        return tokens.half().cpu()

    tokens: list[Tensor] = []
    places: list[tuple[int, int]] = []  # row and kind; the pixels are let go

    def flush(canvases: Sequence[_Canvas]) -> None:
        tokens.append(run(canvases))
        places.extend((canvas.row, canvas.kind) for canvas in canvases)

    pending: list[_Canvas] = []
    skipped = 0
    for found in track(_prefetched(rows, lambda i, r: _canvases(i, r, rule, degraded)),
                       total=len(rows), description="features"):  # fmt: skip
        skipped += found is None
        pending += found or []
        while len(pending) >= _BATCH:
            flush(pending[:_BATCH])
            del pending[:_BATCH]
    if pending:
        flush(pending)
    if skipped:
        log.warning("%d of %d images were unreadable or too small", skipped, len(rows))
    row, kind = torch.tensor(places).T.contiguous()
    return Features(tokens=torch.cat(tokens), row=row.clone(), kind=kind.clone())


def _prefetched(
    rows: Sequence[Row], work: Callable[[int, Row], list[_Canvas]]
) -> Iterator[list[_Canvas] | None]:
    """Decode ahead of the tower, a bounded number of images; None for one that cannot be used."""

    def guarded(index: int) -> list[_Canvas] | None:
        try:
            return work(index, rows[index])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            log.info("skipped %s: %s", rows[index].path, error)
            return None

    window = 32
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(guarded, index) for index in range(min(window, len(rows)))]
        for index in range(len(rows)):
            yield futures[index].result()
            futures[index] = None  # type: ignore[call-overload]
            if index + window < len(rows):
                futures.append(pool.submit(guarded, index + window))
