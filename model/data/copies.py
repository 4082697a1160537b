"""How an image becomes training canvases: its own pixels, an equalised copy, degraded copies."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.ahead import ahead
from model.data.degrade import (
    CONDITIONS,
    EQUALISED_CUT,
    EQUALISED_MAX_SIDE,
    Augmentation,
    Rng,
    degrade,
    resize,
    rng_of,
    seed_of,
)
from model.data.manifest import Row
from model.errors import ImageError, ImageTooSmallError, ModelError
from model.hardware import spare_pool
from model.images import read_picture
from model.verdicts import Quality
from model.views.plan import ViewPlan
from model.views.quality import measure_quality
from model.views.windows import REDUCED_SIDE

log = logging.getLogger(__name__)

T = TypeVar("T")


class Copy(IntEnum):
    """What becomes of an image before it is looked at, and what of it is."""

    CLEAN = 0
    EQUALISED = 1
    DEGRADED = 2  # one canvas
    CORNER = 3  # the first look alone: the whole image
    JPEG60 = 4
    RESIZE50 = 5
    REDUCED = 6  # one window anywhere in a copy so small that a few of them cover it
    ANY = 7  # one canvas of a clean, an equalised or a degraded copy


CLEAN, EQUALISED, DEGRADED = Copy.CLEAN, Copy.EQUALISED, Copy.DEGRADED
# The copies by which left-out images are judged, by the name of their condition
# (`degrade.CONDITIONS`); rules are to keep their promise under the worst of `PROMISED`.
JUDGED = {
    "clean": CLEAN,
    "equalised": EQUALISED,
    "jpeg60": Copy.JPEG60,
    "resize50": Copy.RESIZE50,
    "corner": Copy.CORNER,
}
PROMISED = ("clean", "equalised", "jpeg60")
# What left-out images are scored by: the calibration of its windows needs the reduced copy.
SCORED = {**JUDGED, "reduced": Copy.REDUCED}
# No promise stands on these: every third image says enough of them.
_RARE, _THIRD = frozenset({Copy.RESIZE50, Copy.REDUCED}), 3
_SMALLER = frozenset({Copy.RESIZE50, Copy.CORNER})  # may be too small of an image that is not
_CONDITION_OF = {kind: CONDITIONS[name] for name, kind in JUDGED.items()}
NO_PIXELS = torch.empty(0, dtype=torch.uint8)
"""Of a canvas whose pixels are let go."""
_AHEAD = 32  # images decoded ahead of the tower


@dataclass(frozen=True, slots=True)
class Canvas:
    """One canvas of one copy of one image.

    Attributes:
        pixels: uint8 [3, S, S].
        row: index of the image.
        kind: the copy.
        quality: of the whole copy.
    """

    pixels: Tensor
    row: int
    kind: Copy
    quality: Quality


def copy_of(
    image: Image.Image, kind: Copy, rng: Rng, plan: ViewPlan, how: Augmentation
) -> tuple[Image.Image, ViewPlan]:
    """One copy of an image, and what of it is looked at.

    Args:
        image: RGB.
        kind: what becomes of it.
        rng: the only source of randomness.
        plan: what of a clean copy is looked at.
        how: the degraded copies' distribution.
    """
    if kind == Copy.ANY:
        kind = (CLEAN, EQUALISED, DEGRADED)[rng.integers(3)]
        copy, plan = copy_of(image, kind, rng, plan, how)
        return copy, plan.drawn(rng)
    if kind == DEGRADED:
        copy = degrade(image, rng, min_side=plan.canvas_size, how=how)
        return copy, plan.degraded(rng)
    if kind == Copy.REDUCED:
        return _window(_reduced(image), plan.canvas_size, rng), plan.window
    return _CONDITION_OF[kind](image, rng), plan.glance if kind == Copy.CORNER else plan


def _reduced(image: Image.Image) -> Image.Image:
    scale = REDUCED_SIDE / min(image.size)
    return image if scale >= 1 else resize(image, scale, Image.Resampling.LANCZOS)


def _window(image: Image.Image, side: int, rng: Rng) -> Image.Image:
    """A square of the image, or what of one there is."""
    left, top = (int(rng.integers(max(0, of - side) + 1)) for of in image.size)
    return image.crop((left, top, min(image.width, left + side), min(image.height, top + side)))


def canvases_of(
    index: int, row: Row, plan: ViewPlan, kinds: Sequence[Copy], how: Augmentation
) -> list[Canvas]:
    """All canvases of the copies `kinds` of one image; the same ones every time.

    What a copy is depends on its kind, and on which of its kind it is, alone.

    Args:
        index: of the image.
        row: the image.
        plan: what of a clean copy is looked at.
        kinds: the copies.
        how: the degraded copies' distribution.

    Raises:
        ImageError: the image cannot be read or is too small.
    """
    name = row.path.name
    image = _read(row)
    canvases: list[Canvas] = []
    made: Counter[Copy] = Counter()
    for kind in kinds:
        if kind in _RARE and seed_of(name) % _THIRD:
            continue
        # Judged copies are those that `evaluate` makes.
        rng = rng_of(name) if kind in _CONDITION_OF else rng_of(name, kind, made[kind])
        made[kind] += 1
        copy, looked_at = copy_of(image, kind, rng, plan, how)
        pixels = _tensor(copy)
        # Only the degraded copies are jittered; others are cut as in inference.
        jitter = torch.Generator().manual_seed(int(rng.integers(2**62)))
        try:
            selection = looked_at.select(
                pixels, generator=jitter if kind in (DEGRADED, Copy.ANY) else None
            )
        except ImageTooSmallError:
            if kind not in _SMALLER:
                raise
            continue
        quality = measure_quality(pixels)
        canvases += [Canvas(own, index, kind, quality) for own in selection.canvases[0]]
    return canvases


def _read(row: Row) -> Image.Image:
    return Image.fromarray(read_picture(row.path).pixels)


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def canvases_ahead(
    rows: Sequence[Row], plan: ViewPlan, kinds: Sequence[Copy], how: Augmentation
) -> Iterator[list[Canvas] | None]:
    """`canvases_of` every image, in order, decoded ahead of the tower.

    Returns:
        Of each image its canvases, or None where it cannot be used. In the end it is said, by
        reason, how many could not.
    """
    return _usable_only(rows, lambda index, row: canvases_of(index, row, plan, kinds, how))


def _usable_only(rows: Sequence[Row], work: Callable[[int, Row], T]) -> Iterator[T | None]:
    """Results of `work` in order, computed ahead; None for an image that cannot be used."""

    def attempt(item: tuple[int, Row]) -> T | ImageError:
        try:
            return work(*item)
        except ImageError as error:
            log.info("skipped %s: %s", item[1].path, error)
            return error

    skipped: Counter[str] = Counter()
    for result in ahead(attempt, enumerate(rows), _AHEAD, spare_pool()):
        if isinstance(result, ImageError):
            skipped[result.code] += 1
            yield None
        else:
            yield result
    if skipped:
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(skipped.items()))
        log.warning("%d of %d images cannot be used: %s", skipped.total(), len(rows), reasons)


def usable(rows: Sequence[Row], plan: ViewPlan) -> Tensor:
    """Find the images that every copy can be cut from, by decoding each in full once.

    Training that draws copies anew would otherwise meet a damaged image hours after its start. In
    the end it is said, by reason, how many are not.

    Returns:
        bool [rows].

    Raises:
        ModelError: no image can be used.
    """

    def check(_: int, row: Row) -> bool:
        width, height = _read(row).size
        # Of all copies only an equalised one may be smaller than the image and than a canvas: that
        # of a very long image, whose long side it limits.
        short = min(width, height) * EQUALISED_MAX_SIDE // max(width, height) - EQUALISED_CUT
        if min(width, height, short) < plan.min_side:
            raise ImageTooSmallError(width, height, plan.min_side)
        return True

    mask = torch.tensor([result is not None for result in _usable_only(rows, check)])
    if not mask.any():
        raise ModelError("no image could be read")
    return mask


class CanvasSource:
    """Samples drawn from images anew at every step, as training's loop reads them.

    A sample is one canvas of a fresh copy. What a step draws depends on its number alone.

    Args:
        rows: the images, all `usable`; sample i is of image i.
        plan: what of a copy is looked at.
        shares: how often a clean, an equalised and a degraded copy is drawn, in proportion.
        how: the degraded copies' distribution.
    """

    def __init__(
        self, rows: Sequence[Row], plan: ViewPlan, shares: Sequence[float], how: Augmentation
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._shares = np.array(shares) / sum(shares)
        self._how = how
        self._pool = spare_pool()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, members: Tensor, step: int) -> Tensor:
        """uint8 [n, 3, S, S] of the samples `members`, int64 [n]."""
        drawn = [(member, step, place) for place, member in enumerate(members.tolist())]
        return torch.stack(list(self._pool.map(lambda key: self._canvas(*key), drawn)))

    def _canvas(self, member: int, step: int, place: int) -> Tensor:
        row = self._rows[member]
        rng = rng_of(row.path.name, step, place)
        kind = Copy(rng.choice(len(self._shares), p=self._shares))
        copy, plan = copy_of(_read(row), kind, rng, self._plan, self._how)
        plan = plan.drawn(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return plan.select(_tensor(copy), generator=generator).canvases[0, 0]
