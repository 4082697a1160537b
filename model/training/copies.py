"""How an image becomes training canvases: its own bytes, an equalised copy, degraded copies."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.errors import ImageTooSmallError, ModelError
from model.patches import PatchRule, select_patches
from model.pixels import to_rgb
from model.training.augment import (
    EQUALISED_CUT,
    EQUALISED_MAX_SIDE,
    Augmentation,
    degrade,
    equalise,
)
from model.training.manifest import Row

log = logging.getLogger(__name__)

CLEAN, EQUALISED, DEGRADED = 0, 1, 2
# What an image that cannot be used raises: unreadable, damaged, too small, or a bomb.
UNUSABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Canvas:
    """One canvas of one copy of one image.

    Attributes:
        pixels: uint8 [3, S, S].
        row: index of the image.
        kind: CLEAN, EQUALISED or DEGRADED.
    """

    pixels: Tensor
    row: int
    kind: int


def read_image(row: Row) -> Image.Image:
    """The image as RGB pixels, by the service's own rule.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: see `UNUSABLE`.
    """
    with Image.open(row.path) as file:
        return Image.fromarray(to_rgb(file).pixels)


def seed_of(row: Row) -> int:
    """A seed from the file's name: adding rows does not change the others' copies."""
    return int.from_bytes(hashlib.sha256(row.path.name.encode()).digest()[:8], "big")


def copy_of(
    image: Image.Image, kind: int, rng: np.random.Generator, rule: PatchRule, how: Augmentation
) -> tuple[Image.Image, PatchRule]:
    """One copy of the kind, and how it is cut: a degraded copy gives one canvas."""
    if kind == EQUALISED:
        image = equalise(image, rng)
    elif kind == DEGRADED:
        image = degrade(image, rng, min_side=rule.canvas_size, how=how)
        # One patch cannot be of both extremes: toss for it.
        share = float(rng.integers(2)) if rule.patches_per_canvas == 1 else rule.high_share
        rule = rule.model_copy(update={"canvases": 1, "high_share": share})
    if how.whole:
        side = rule.canvas_size
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return image, rule


def canvases_of(
    index: int, row: Row, rule: PatchRule, kinds: Sequence[int], how: Augmentation
) -> list[Canvas]:
    """All canvases of the copies `kinds` of one image; the same ones every time."""
    seed = seed_of(row)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed % 2**63)
    image = read_image(row)
    found = []
    for kind in kinds:
        copy, cut = copy_of(image, kind, rng, rule, how)
        pixels = torch.from_numpy(np.array(copy)).permute(2, 0, 1).unsqueeze(0)
        # Only the degraded copies are jittered; clean and equalised ones are cut as in inference.
        chosen = select_patches(pixels, cut, generator=generator if kind == DEGRADED else None)
        found += [Canvas(canvas, index, kind) for canvas in chosen.canvases[0]]
    return found


def ahead(
    rows: Sequence[Row], work: Callable[[int, Row], list[Canvas]]
) -> Iterator[list[Canvas] | None]:
    """Decode ahead of the tower, a bounded number of images; None for one that cannot be used."""

    def guarded(index: int) -> list[Canvas] | None:
        try:
            return work(index, rows[index])
        except UNUSABLE as error:
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


def usable(rows: Sequence[Row], rule: PatchRule, how: Augmentation) -> Tensor:
    """Find the images that every copy can be cut from, by decoding each in full once.

    Training that draws copies anew would otherwise meet a damaged image hours after its start.

    Returns:
        bool [rows].

    Raises:
        ModelError: no image can be used.
    """

    def work(_: int, row: Row) -> list[Canvas]:
        width, height = read_image(row).size
        # Of all copies only an equalised one may be smaller than the image and than a canvas: that
        # of a very long image, whose long side it limits.
        short = min(width, height) * EQUALISED_MAX_SIDE // max(width, height) - EQUALISED_CUT
        if min(width, height, *([] if how.whole else [short])) < rule.min_side:
            raise ImageTooSmallError(width, height, rule.min_side)
        return []

    found = torch.tensor([canvases is not None for canvases in ahead(rows, work)])
    if not found.all():
        log.warning("%d of %d images were unreadable or too small", int((~found).sum()), len(rows))
    if not found.any():
        raise ModelError("no image could be read")
    return found


class CanvasSource:
    """Samples drawn from images anew at every step, as `trainer.Source` reads them.

    A sample is one canvas of a fresh copy. What a step draws depends on its number alone.

    Args:
        rows: the images, all `usable`; sample i is of image i.
        rule: how copies are cut.
        kinds: copies to draw from, e.g. (CLEAN, EQUALISED, DEGRADED, DEGRADED).
        how: the degraded copies' distribution.
        workers: decoding threads.
    """

    def __init__(
        self, rows: Sequence[Row], rule: PatchRule, kinds: Sequence[int], how: Augmentation,
        workers: int = 1,
    ) -> None:  # fmt: skip
        self._rows = rows
        self._rule = rule.model_copy(update={"canvases": 1})
        self._kinds = tuple(kinds)
        self._how = how
        self._pool = ThreadPoolExecutor(workers, "canvases")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, members: Tensor, step: int) -> Tensor:
        """uint8 [n, 3, S, S]."""
        drawn = [(member, step, place) for place, member in enumerate(members.tolist())]
        return torch.stack(list(self._pool.map(lambda key: self._canvas(*key), drawn)))

    def _canvas(self, member: int, step: int, place: int) -> Tensor:
        row = self._rows[member]
        rng = np.random.default_rng([seed_of(row), step, place])
        kind = self._kinds[rng.integers(len(self._kinds))]
        copy, cut = copy_of(read_image(row), kind, rng, self._rule, self._how)
        pixels = torch.from_numpy(np.array(copy)).permute(2, 0, 1).unsqueeze(0)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return select_patches(pixels, cut, generator=generator).canvases[0, 0]
