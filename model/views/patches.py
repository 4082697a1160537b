"""Patch selection by spectral entropy (paper, section 3.2).

An image is cut, at native resolution, into N x N patches; those whose spectrum is most or least
spread are tiled into the encoder's input. They are not resized: what tells a generated image is in
its finest structure. What else of an image is looked at is `plan.ViewPlan`'s to say.

What the paper leaves open is decided so, by measurement (`docs/history.md`):

* Patches lie on the canvas in raster order; both extremes of 32 px patches are taken, as in the
  paper; of native windows of 224 px, those of highest entropy.
* The mean (DC) is taken out: left in, it holds most of p, and S follows brightness.
* Flat patches (deviation under one grey level) carry nothing: they come last.
* Candidates are capped, so that the extremes of large and small images compare.
* An axis shorter than a patch is mirrored, patches repeat where they do not fill a canvas, and the
  selection says so (`sparse`); under half a canvas an image is refused.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model.errors import ImageTooSmallError
from model.views.view import View

# Grey levels. A patch below this deviation (saturated sky, letterbox bar, white page) says nothing.
FLAT_STD = 1.0
# Nats. The spread of the noise that breaks near-ties at random in training.
TIE_NOISE = 0.02

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as JPEG and Pillow's "L"


class PatchRule(BaseModel):
    """How patches are chosen and tiled into canvases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch_size: int = Field(224, ge=16, description="N: side of a patch, pixels")
    canvas_size: int = Field(224, ge=16, description="side of the encoder's input, pixels")
    canvases: int = Field(1, ge=0, le=16, description="canvases per image, from disjoint patches")
    high_share: float = Field(
        0.5, ge=0.0, le=1.0, description="share of patches of highest entropy; the rest are lowest"
    )
    candidates: int = Field(
        16,
        ge=1,
        description="canvases' worth of candidate patches; above it the grid is spread thinner. "
        "Large images offer thousands, which makes their extremes more extreme than a small "
        "image's, and costs time. 1 takes what lies at the centre: no selection",
    )

    @model_validator(mode="after")
    def _patches_tile_the_canvas(self) -> "PatchRule":
        if self.canvas_size % self.patch_size:
            raise ValueError("patch_size must divide canvas_size")
        return self

    @property
    def patches_per_canvas(self) -> int:
        """49 for the paper's 32 px patches on 224 px; 1 for native windows."""
        return (self.canvas_size // self.patch_size) ** 2

    @property
    def min_side(self) -> int:
        """Smallest accepted image side, pixels: one reflection then fills a canvas."""
        return self.canvas_size // 2


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected patches of B images, K canvases each, P patches per canvas.

    Attributes:
        canvases: uint8 [B, K, 3, S, S].
        boxes: int64 [B, K, P, 4], each (left, top, right, bottom) in original pixels.
        entropies: float32 [B, K, P], nats; 0 for the whole image, which no entropy chose.
        sparse: whether the images had fewer patches than one canvas takes, so that some repeat or
            were mirrored at the border.
    """

    canvases: Tensor
    boxes: Tensor
    entropies: Tensor
    sparse: bool

    def views(self) -> tuple[View, ...]:
        """What the canvases of the first image show."""
        corners = torch.cat([self.boxes[0, ..., :2].amin(1), self.boxes[0, ..., 2:].amax(1)], dim=1)
        entropies = self.entropies[0].mean(dim=1).tolist()
        return tuple(
            View((left, top, right, bottom), entropy or None)
            for (left, top, right, bottom), entropy in zip(corners.tolist(), entropies, strict=True)
        )


def luma(pixels: Tensor) -> Tensor:
    """Rec. 601 luma: uint8 [..., 3, H, W] -> float32 [..., H, W]."""
    red, green, blue = pixels.unbind(-3)
    grey = red.float().mul_(_LUMA[0])
    return grey.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def spectral_entropy(grey: Tensor) -> Tensor:
    """S = -sum p log p over the 2-D Fourier magnitudes p of each patch (paper, eq. 1-2).

    The mean is taken out first: left in, the DC term holds most of p and S measures brightness.

    Args:
        grey: float [..., N, N].

    Returns:
        float [...], nats; 0 for a constant patch.
    """
    return _entropy_and_deviation(grey)[0]


def _entropy_and_deviation(grey: Tensor) -> tuple[Tensor, Tensor]:
    """`spectral_entropy` and the grey levels' standard deviation, by Parseval from one spectrum."""
    size = grey.shape[-1]
    spectrum = torch.fft.rfft2(grey - grey.mean(dim=(-2, -1), keepdim=True))

    def total(half: Tensor) -> Tensor:
        # rfft2 keeps one of each conjugate pair: all columns but the first (and, for even N, the
        # last) stand for two frequencies.
        single = half[..., :1] if size % 2 else half[..., :: size // 2]
        return 2 * half.sum(dim=(-2, -1)) - single.sum(dim=(-2, -1))

    power = spectrum.real.square().add_(spectrum.imag.square())
    deviation = total(power).sqrt() / size**2
    magnitude = power.sqrt()
    sum_m = total(magnitude)
    # -sum p log p with p = m / sum m is log(sum m) - sum(m log m) / sum m: one pass, no division.
    # In place: what these arrays take to be allocated is more than what is computed in them.
    sum_m_log_m = 0.5 * total(magnitude.mul_(power.clamp_min_(1e-30).log_()))
    entropy = sum_m.clamp_min(1e-12).log() - sum_m_log_m / sum_m.clamp_min(1e-12)
    return torch.where(sum_m > 1e-3 * size, entropy, torch.zeros_like(entropy)), deviation


def grid(side_y: int, side_x: int, patch: int, limit: int) -> tuple[list[int], list[int]]:
    """Top and left offsets of the candidate patches, pixels.

    ceil(side / N) positions are spread evenly from edge to edge, so neighbours overlap by less
    than a patch and every pixel is seen: cropping to a multiple of N would lose up to a third of a
    small image, padding would fake low-entropy patches. Above `limit` the grid thins out.
    """
    rows, columns = math.ceil(side_y / patch), math.ceil(side_x / patch)
    if rows * columns > limit:
        shrink = math.sqrt(limit / (rows * columns))
        rows = max(1, min(limit, int(rows * shrink)))
        columns = min(columns, limit // rows)
    return spread(side_y - patch, rows), spread(side_x - patch, columns)


def spread(span: int, count: int) -> list[int]:
    """Offsets from 0 to `span`, evenly; one lies in the middle."""
    if count == 1:
        return [span // 2]
    return [round(i * span / (count - 1)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate patches of B images, cut out on a grid; no longer bound to the images' memory.

    Attributes:
        patches: uint8 [B, ny, nx, 3, N, N].
        tops: ny offsets, pixels, in the images as cut (see `offset`), mirrored where too small.
        lefts: nx offsets, likewise.
        image: height and width of the images.
        offset: top and left where the grid starts.
    """

    patches: Tensor
    tops: list[int]
    lefts: list[int]
    image: tuple[int, int]
    offset: tuple[int, int]


def select_patches(
    images: Tensor, rule: PatchRule, *, generator: torch.Generator | None = None
) -> Selection:
    """Choose patches and tile them into canvases.

    Deterministic without `generator`; with one (training), the grid starts at a random offset and
    near-ties are broken at random.

    Args:
        images: uint8 [B, 3, H, W], sRGB, any device.
        rule: patch size, canvas size, canvases per image, share of high-entropy patches.
        generator: CPU generator for the training-time augmentation.

    Raises:
        ImageTooSmallError: a side is below `rule.min_side`.
    """
    candidates = cut_candidates(images, rule, generator=generator)
    return choose_patches(candidates, rule, generator=generator)


def cut_candidates(
    images: Tensor, rule: PatchRule, *, generator: torch.Generator | None = None
) -> Candidates:
    """The first half of `select_patches`: what there is to choose from.

    Args:
        images: see `select_patches`.
        rule: see `select_patches`.
        generator: starts the grid at a random offset.

    Raises:
        ImageTooSmallError: a side is below `rule.min_side`.
    """
    height, width = _sides(images, rule)
    size, top, left = rule.patch_size, 0, 0
    if generator is not None:
        top = _random_offset(height, size, generator)
        left = _random_offset(width, size, generator)
        images = images[..., top:, left:]
    images = mirrored(mirrored(images, -2, size), -1, size)
    limit = rule.candidates * rule.patches_per_canvas
    tops, lefts = grid(images.shape[-2], images.shape[-1], size, limit)
    return Candidates(_cut(images, tops, lefts, size), tops, lefts, (height, width), (top, left))


def choose_patches(
    candidates: Candidates, rule: PatchRule, *, generator: torch.Generator | None = None
) -> Selection:
    """The second half of `select_patches`, and the dear one: entropies, ranks, canvases.

    Args:
        candidates: as `cut_candidates` gives them for the same rule.
        rule: see `select_patches`.
        generator: breaks near-ties at random.
    """
    patches, tops, lefts = candidates.patches, candidates.tops, candidates.lefts
    size, per_canvas = rule.patch_size, rule.patches_per_canvas
    grey = luma(patches).flatten(1, 2)  # [B, n, N, N]
    entropy, deviation = _entropy_and_deviation(grey)  # [B, n]
    flat = deviation < FLAT_STD

    count = entropy.shape[1]
    canvases = min(rule.canvases, max(1, count // per_canvas))
    chosen = _choose(entropy, flat, canvases * per_canvas, rule.high_share, generator)
    # Rank r goes to canvas r mod K, so that every canvas gets the same mix of high and low.
    chosen = chosen.view(-1, per_canvas, canvases).transpose(1, 2).sort(dim=2).values  # [B, K, P]

    index = chosen.flatten(1)
    of_image = torch.arange(len(patches), device=patches.device)[:, None]
    tiles = patches[of_image, index // len(lefts), index % len(lefts)]  # [B, K * P, 3, N, N]
    corners = torch.tensor([(y, x) for y in tops for x in lefts], device=patches.device)
    return Selection(
        canvases=_tile(tiles.view(*chosen.shape, 3, size, size), rule.canvas_size),
        boxes=_boxes(corners[chosen], size, candidates.image, candidates.offset),
        entropies=entropy.gather(1, index).view(chosen.shape),
        sparse=count < per_canvas or min(candidates.image) < size,
    )


def whole_image(images: Tensor, rule: PatchRule) -> Selection:
    """The centre square of the images, resized as CLIP's own input is: one canvas of one patch.

    Args:
        images: uint8 [B, 3, H, W], sRGB, any device.
        rule: canvas size.

    Raises:
        ImageTooSmallError: a side is below `rule.min_side`.
    """
    height, width = _sides(images, rule)
    side = rule.canvas_size
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    canvas = resized(images[..., top : top + edge, left : left + edge], (side, side))
    box = torch.tensor([left, top, left + edge, top + edge], device=images.device)
    return Selection(
        canvases=canvas.contiguous().unsqueeze(1),
        boxes=box.expand(len(images), 1, 1, 4),
        entropies=torch.zeros(len(images), 1, 1, device=images.device),
        sparse=edge < side,
    )


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """As CLIP resizes its input: uint8 [B, 3, H, W] -> uint8 [B, 3, *size]."""
    if images.device.type != "cpu":  # no kernel for bytes there
        images = images.float()
    smooth = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
    return smooth if smooth.dtype == torch.uint8 else smooth.round().clamp(0, 255).byte()


def _sides(images: Tensor, rule: PatchRule) -> tuple[int, int]:
    """Height and width, large enough for the rule."""
    height, width = images.shape[-2:]
    if min(height, width) < rule.min_side:
        raise ImageTooSmallError(width, height, rule.min_side)
    return height, width


def _random_offset(side: int, patch: int, generator: torch.Generator) -> int:
    slack = min(patch, side - patch) if side > patch else 0
    return int(torch.randint(slack + 1, (), generator=generator))


def mirrored(images: Tensor, axis: int, patch: int) -> Tensor:
    """The images, mirrored at both ends of an axis that is shorter than a patch."""
    side = images.shape[axis]
    missing = patch - side
    if missing <= 0:
        return images
    index = torch.arange(-(missing // 2), side + missing - missing // 2, device=images.device)
    index = index % max(1, 2 * (side - 1))  # there and back again, as often as it takes
    return images.index_select(axis, torch.where(index >= side, 2 * (side - 1) - index, index))


def _cut(images: Tensor, tops: list[int], lefts: list[int], size: int) -> Tensor:
    """uint8 [B, ny, nx, 3, N, N]: only the candidates' pixels are ever touched."""
    rows = torch.stack([images[..., top : top + size, :] for top in tops], dim=1)
    return torch.stack([rows[..., left : left + size] for left in lefts], dim=2)


def _choose(
    entropy: Tensor, flat: Tensor, needed: int, high_share: float, generator: torch.Generator | None
) -> Tensor:
    """Find indices int64 [B, needed] by rank: highest first, then lowest, flat patches last."""
    if generator is not None:
        noise = torch.randn(entropy.shape, generator=generator).to(entropy.device)
        entropy = entropy + TIE_NOISE * noise
    count = entropy.shape[1]
    high = round(min(needed, count) * high_share)
    # A stable sort: equal entropies keep raster order, so inference is deterministic.
    falling = torch.where(flat, -math.inf, entropy).argsort(dim=1, descending=True, stable=True)
    chosen = falling[:, :high]
    taken = torch.zeros_like(flat).scatter_(1, chosen, value=True)
    rank = torch.where(flat, 1e6, entropy).masked_fill(taken, math.inf)
    rising = rank.argsort(dim=1, stable=True)
    chosen = torch.cat([chosen, rising[:, : min(needed, count) - high]], dim=1)
    repeats = math.ceil(needed / chosen.shape[1])
    return chosen.repeat(1, repeats)[:, :needed]


def _tile(tiles: Tensor, canvas: int) -> Tensor:
    """[B, K, P, 3, N, N] -> [B, K, 3, S, S], row by row."""
    batch, canvases, _, _, size, _ = tiles.shape
    side = canvas // size
    tiles = tiles.view(batch, canvases, side, side, 3, size, size)
    return tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, canvases, 3, canvas, canvas)


def _boxes(corners: Tensor, size: int, image: tuple[int, int], offset: tuple[int, int]) -> Tensor:
    """Boxes in original pixels; where an axis was mirrored, the part of it that is real."""
    start, end = [], []
    for axis in (1, 0):  # x, then y
        missing = max(0, size - (image[axis] - offset[axis]))
        low = corners[..., axis] - missing // 2 + offset[axis]
        start.append(low.clamp_min(0))
        end.append((low + size).clamp_max(image[axis]))
    return torch.stack([*start, *end], dim=-1)
