"""What of a picture is looked at, in which order, and how much each view counts.

A plan may begin with the whole image, resized, which looks for what resizing and compression leave;
patches at native resolution follow it, which see what resizing takes away.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from model.verdicts import Quality
from model.views.patches import (
    Candidates,
    PatchRule,
    Selection,
    choose_patches,
    cut_candidates,
    select_patches,
    whole_image,
)
from model.views.quality import measure_quality
from model.views.view import View
from model.views.windows import Windows, cut_windows

Logit = TypeVar("Logit", float, Tensor)

_EXPLAINED = 16  # canvases of a picture at most, where evidence is asked for


@dataclass(frozen=True, slots=True)
class Grounds:
    """What evidence is made of, where it was asked for.

    Attributes:
        views: what the canvases of a look show, and of those before it.
        windows: a grid over the picture, scored beside its first look; they never count.
        logits: of the windows; none before they are scored.
    """

    views: tuple[View, ...]
    windows: Windows
    logits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """Canvases of one picture, ready for the network.

    Attributes:
        canvases: uint8 [K, 3, S, S], on the network's device.
        quality: of the whole picture.
        content: whether there is anything to see in it.
        warnings: machine-readable notes, e.g. `few_patches`.
        seen: logits of the picture's canvases that were scored before these.
        more: cuts the canvases of the next look, [1, L]; it holds copies of what may be looked at,
            never the picture. None: these are the last.
        grounds: of evidence; None: nobody asked for any.
    """

    canvases: Tensor
    quality: Quality
    content: bool = True
    warnings: tuple[str, ...] = ()
    seen: tuple[float, ...] = ()
    more: Callable[[], Selection] | None = None
    grounds: Grounds | None = None

    @property
    def beside(self) -> Tensor | None:
        """Windows to be scored with its canvases, uint8 [n, 3, S, S]; None: none, or they were."""
        grounds = self.grounds
        return None if grounds is None or grounds.logits else grounds.windows.canvases

    @property
    def size(self) -> int:
        """Images that it counts as: one, and one for each window."""
        return 1 if self.beside is None else 1 + len(self.beside)

    def following(self, seen: tuple[float, ...], grounds: Grounds | None) -> "Look":
        """The next look, by `more`.

        Args:
            seen: logits of all canvases up to these.
            grounds: with the logits of the windows.
        """
        assert self.more is not None  # noqa: S101  (else there was no doubt)
        selection = self.more()
        if grounds is not None:
            views = (*grounds.views, *selection.views())
            grounds = dataclasses.replace(grounds, views=views)
        return dataclasses.replace(
            self, canvases=selection.canvases[0], seen=seen, more=None, grounds=grounds
        )


class ViewPlan(BaseModel):
    """The views of a picture; stored in the checkpoint, so that training and serving agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whole: bool = Field(
        False, description="the first canvas is the whole image: its centre square, resized"
    )
    whole_share: float = Field(
        0.5, gt=0, le=1, description="its weight in the image's logit; the patches share the rest"
    )
    patches: PatchRule = PatchRule()

    @model_validator(mode="after")
    def _sees_something(self) -> "ViewPlan":
        if not self.canvases:
            raise ValueError("a plan needs the whole image, or canvases of patches")
        if self.whole and self.patches.patches_per_canvas > 1:
            raise ValueError("whole: the whole image goes with native windows, not with mosaics")
        return self

    @property
    def canvas_size(self) -> int:
        """S: side of a canvas, pixels."""
        return self.patches.canvas_size

    @property
    def min_side(self) -> int:
        """Smallest accepted image side, pixels."""
        return self.patches.min_side

    @property
    def canvases(self) -> int:
        """Canvases of an image, the whole one included."""
        return self.whole + self.patches.canvases

    @property
    def explained(self) -> int:
        """Canvases of an image at most, with windows for evidence: at least one."""
        return max(_EXPLAINED, self.canvases + 1)

    @property
    def first(self) -> int:
        """Canvases of the first look: the whole image alone, where the plan has it."""
        return 1 if self.whole else self.canvases

    @property
    def glance(self) -> "ViewPlan":
        """The first look alone."""
        return self._with(whole=True, canvases=0) if self.whole else self

    @property
    def window(self) -> "ViewPlan":
        """One canvas of patches alone."""
        return self._with(whole=False, canvases=1)

    def combine(self, logits: Sequence[Logit]) -> Logit:
        """An image's logit from those of its canvases, in their order; at least one."""
        if not self.whole or len(logits) == 1:
            return _mean(logits)
        return self.whole_share * logits[0] + (1 - self.whole_share) * _mean(logits[1:])

    def combination(self, canvases: int) -> str:
        """What `combine` does with so many logits, in words."""
        if canvases == 1:
            return "the view's logit"
        if not self.whole:
            return "the views' mean logit"
        whole, rest = self.whole_share, 1 - self.whole_share
        return f"{whole:g} x the centre square's logit + {rest:g} x the other views' mean logit"

    def select(self, images: Tensor, *, generator: torch.Generator | None = None) -> Selection:
        """Every view at once.

        Args:
            images: uint8 [B, 3, H, W], sRGB, any device.
            generator: see `patches.select_patches`.

        Raises:
            ImageTooSmallError: a side is below `min_side`.
        """
        whole = whole_image(images, self.patches) if self.whole else None
        if not self.patches.canvases and whole is not None:
            return whole
        selected = select_patches(images, self.patches, generator=generator)
        return selected if whole is None else _joined(whole, selected)

    def look(self, image: Tensor, *, adaptive: bool, explain: bool = False) -> Look:
        """What is looked at first.

        The memory it takes is that of `PatchRule.candidates` canvases and one at most: a larger
        image is let go, and copies of what may be looked at are kept.

        Args:
            image: uint8 [1, 3, H, W], sRGB; not changed, and not needed afterwards.
            adaptive: begin with the first look, where the plan has several; else all at once.
            explain: cut what evidence is made of, too.

        Raises:
            ImageTooSmallError: a side is below `min_side`.
        """
        if not adaptive or self.first == self.canvases:
            selection, more = self.select(image), None
        else:
            selection = whole_image(image, self.patches)
            large = image.numel() > self.patches.candidates * selection.canvases.numel()
            kept = cut_candidates(image, self.patches) if large else image.clone()
            more = functools.partial(_patches_of, kept, self.patches)
        warnings = ("few_patches",) if selection.sparse else ()
        grounds = None
        if explain:
            windows = cut_windows(image, self.patches, self.explained - self.canvases)
            grounds = Grounds(selection.views(), windows)
        return Look(
            selection.canvases[0],
            measure_quality(image),
            warnings=warnings,
            more=more,
            grounds=grounds,
        )

    def drawn(self, rng: np.random.Generator) -> "ViewPlan":
        """One canvas of the plan's, as training draws it: the whole image as often as it is one."""
        whole = self.whole and bool(rng.integers(self.canvases) == 0)
        return self._with(whole=whole, canvases=int(not whole))

    def degraded(self, rng: np.random.Generator) -> "ViewPlan":
        """`drawn`, for a degraded copy; one patch cannot be of both extremes: toss for it."""
        if self.patches.patches_per_canvas > 1:
            return self.drawn(rng)
        share = float(rng.integers(2))
        return self._with(whole=self.whole, canvases=self.patches.canvases, high_share=share).drawn(
            rng
        )

    def _with(self, *, whole: bool, **patches: float) -> "ViewPlan":
        changed = self.patches.model_copy(update=patches)
        return self.model_copy(update={"whole": whole, "patches": changed})


def _mean(logits: Sequence[Logit]) -> Logit:
    total = logits[0]
    for logit in logits[1:]:
        total = total + logit
    return total / len(logits)


def _joined(first: Selection, then: Selection) -> Selection:
    return Selection(
        canvases=torch.cat([first.canvases, then.canvases], dim=1),
        boxes=torch.cat([first.boxes, then.boxes], dim=1),
        entropies=torch.cat([first.entropies, then.entropies], dim=1),
        sparse=first.sparse or then.sparse,
    )


def _patches_of(kept: Tensor | Candidates, rule: PatchRule) -> Selection:
    """The chosen patches of an image, or among its candidates."""
    candidates = cut_candidates(kept, rule) if isinstance(kept, Tensor) else kept
    return choose_patches(candidates, rule)
