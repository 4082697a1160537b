"""How an image becomes training canvases: its own pixels, an equalised copy, degraded copies."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.ahead import ahead
from model.data.degrade import (
    EQUALISED_CUT,
    EQUALISED_MAX_SIDE,
    Augmentation,
    Rng,
    degrade,
    equalise,
    rng_of,
    seed_of,
)
from model.data.manifest import Row
from model.errors import ImageError, ImageTooSmallError, ModelError
from model.hardware import spare_pool
from model.images import read_picture
from model.views.plan import ViewPlan

log = logging.getLogger(__name__)

T = TypeVar("T")

CLEAN, EQUALISED, DEGRADED = 0, 1, 2
# The copies by which left-out images are judged, by the name of their condition
# (`degrade.CONDITIONS`).
JUDGED = {"clean": CLEAN, "equalised": EQUALISED}
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


def copy_of(
    image: Image.Image, kind: int, rng: Rng, plan: ViewPlan, how: Augmentation
) -> tuple[Image.Image, ViewPlan]:
    """One copy of an image, and what of it is looked at: of a degraded copy, one canvas.

    Args:
        image: RGB.
        kind: CLEAN, EQUALISED or DEGRADED.
        rng: the only source of randomness.
        plan: what of the other copies is looked at.
        how: the degraded copies' distribution.
    """
    if kind == EQUALISED:
        return equalise(image, rng), plan
    if kind == DEGRADED:
        copy = degrade(image, rng, min_side=plan.canvas_size, how=how)
        return copy, plan.degraded(rng)
    return image, plan


def canvases_of(
    index: int, row: Row, plan: ViewPlan, kinds: Sequence[int], how: Augmentation
) -> list[Canvas]:
    """All canvases of the copies `kinds` of one image; the same ones every time.

    Args:
        index: of the image.
        row: the image.
        plan: what of a copy is looked at.
        kinds: the copies, in the order in which they are drawn.
        how: the degraded copies' distribution.

    Raises:
        ImageError: the image cannot be read, or a copy is too small.
    """
    name = row.path.name
    rng = rng_of(name)
    generator = torch.Generator().manual_seed(seed_of(name) % 2**63)
    image = _read(row)
    canvases = []
    for kind in kinds:
        copy, looked_at = copy_of(image, kind, rng, plan, how)
        # Only the degraded copies are jittered; clean and equalised ones are cut as in inference.
        selection = looked_at.select(
            _tensor(copy), generator=generator if kind == DEGRADED else None
        )
        canvases += [Canvas(pixels, index, kind) for pixels in selection.canvases[0]]
    return canvases


def _read(row: Row) -> Image.Image:
    return Image.fromarray(read_picture(row.path).pixels)


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def canvases_ahead(
    rows: Sequence[Row], plan: ViewPlan, kinds: Sequence[int], how: Augmentation
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
        kind = int(rng.choice(len(self._shares), p=self._shares))
        copy, plan = copy_of(_read(row), kind, rng, self._plan, self._how)
        plan = plan.drawn(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return plan.select(_tensor(copy), generator=generator).canvases[0, 0]
