"""How an image becomes training canvases: its own bytes, an equalised copy, degraded copies."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.ahead import ahead
from model.cores import spare_pool
from model.errors import ImageTooSmallError, ModelError
from model.patches import PatchRule, select_patches
from model.pixels import UNREADABLE, read_rgb
from model.training.augment import (
    EQUALISED_CUT,
    EQUALISED_MAX_SIDE,
    Augmentation,
    degrade,
    equalise,
)
from model.training.manifest import Row

log = logging.getLogger(__name__)

T = TypeVar("T")

CLEAN, EQUALISED, DEGRADED = 0, 1, 2
_AHEAD = 32  # images decoded ahead of the tower


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
        rule = one_canvas(rule.model_copy(update={"high_share": share}), rng)
    return image, rule


def one_canvas(rule: PatchRule, rng: np.random.Generator) -> PatchRule:
    """Draw one canvas of a rule's: the whole image as often as the rule has it."""
    whole = rule.whole and bool(rng.integers(rule.canvases) == 0)
    return rule.model_copy(update={"canvases": 1, "whole": whole})


def canvases_of(
    index: int, row: Row, rule: PatchRule, kinds: Sequence[int], how: Augmentation
) -> list[Canvas]:
    """All canvases of the copies `kinds` of one image; the same ones every time."""
    seed = seed_of(row)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed % 2**63)
    image = read_rgb(row.path)
    found = []
    for kind in kinds:
        copy, cut = copy_of(image, kind, rng, rule, how)
        # Only the degraded copies are jittered; clean and equalised ones are cut as in inference.
        chosen = select_patches(
            _tensor(copy), cut, generator=generator if kind == DEGRADED else None
        )
        found += [Canvas(canvas, index, kind) for canvas in chosen.canvases[0]]
    return found


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def canvases_ahead(
    rows: Sequence[Row], rule: PatchRule, kinds: Sequence[int], how: Augmentation
) -> Iterator[list[Canvas] | None]:
    """`canvases_of` every image, decoded ahead of the tower; None for one that cannot be used."""
    return _guarded(rows, lambda index, row: canvases_of(index, row, rule, kinds, how))


def _guarded(rows: Sequence[Row], work: Callable[[int, Row], T]) -> Iterator[T | None]:
    """Results of `work` in order, computed ahead; None for an image that cannot be used."""

    def guarded(item: tuple[int, Row]) -> T | None:
        try:
            return work(*item)
        except UNREADABLE as error:  # a too small image is a ValueError
            log.info("skipped %s: %s", item[1].path, error)
            return None

    return ahead(guarded, enumerate(rows), _AHEAD, spare_pool())


def usable(rows: Sequence[Row], rule: PatchRule) -> Tensor:
    """Find the images that every copy can be cut from, by decoding each in full once.

    Training that draws copies anew would otherwise meet a damaged image hours after its start.

    Returns:
        bool [rows].

    Raises:
        ModelError: no image can be used.
    """

    def check(_: int, row: Row) -> bool:
        width, height = read_rgb(row.path).size
        # Of all copies only an equalised one may be smaller than the image and than a canvas: that
        # of a very long image, whose long side it limits.
        short = min(width, height) * EQUALISED_MAX_SIDE // max(width, height) - EQUALISED_CUT
        if min(width, height, short) < rule.min_side:
            raise ImageTooSmallError(width, height, rule.min_side)
        return True

    found = torch.tensor([found is not None for found in _guarded(rows, check)])
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
        shares: how often a clean, an equalised and a degraded copy is drawn, in proportion.
        how: the degraded copies' distribution.
    """

    def __init__(
        self, rows: Sequence[Row], rule: PatchRule, shares: Sequence[float], how: Augmentation
    ) -> None:
        self._rows = rows
        self._rule = rule
        self._shares = np.array(shares) / sum(shares)
        self._how = how
        self._pool = spare_pool()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, members: Tensor, step: int) -> Tensor:
        """uint8 [n, 3, S, S]."""
        drawn = [(member, step, place) for place, member in enumerate(members.tolist())]
        return torch.stack(list(self._pool.map(lambda key: self._canvas(*key), drawn)))

    def _canvas(self, member: int, step: int, place: int) -> Tensor:
        row = self._rows[member]
        rng = np.random.default_rng([seed_of(row), step, place])
        kind = int(rng.choice(len(self._shares), p=self._shares))
        copy, cut = copy_of(read_rgb(row.path), kind, rng, self._rule, self._how)
        cut = one_canvas(cut, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return select_patches(_tensor(copy), cut, generator=generator).canvases[0, 0]
