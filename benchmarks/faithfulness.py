"""Is evidence true? What a heat-map and its windows are worth, on images of a split.

    python benchmarks/faithfulness.py MANIFEST... [--split val] [--pairs 300] [--checkpoint FILE]

* Deletion: one window is filled by what surrounds it, blurred; how far does the score fall for the
  one that looks most generated, and for one at random? Of generated images, all of which speaks for
  it, and of the pictures put together, below.
* Pointing: half a photograph beside half a generated image, both equalised first and the whole
  saved as JPEG 75; does the map's highest point lie in the generated half, and how well do its
  values tell the halves' pixels apart?
* A region that stands out: how many ordinary photographs and generated images, and how many of
  the pictures put together, are called `uneven`? With the contrast that 2 % of the ordinary images
  of one half of the owners exceed, and what that gives on the other half.

* Windows: how many photographs have one whose own score reaches the shipped cut?

Intervals of 95 % are over owners: of the generated image where a picture has two. The checkpoint is
by default the twin of the shipped one that was trained without the split `val`. Needs
`nsnet[train]`, whose libraries bring SciPy.
"""

import argparse
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from scipy.ndimage import gaussian_filter

from benchmarks import TWIN
from model.data.degrade import equalise, rng_of
from model.data.manifest import Row, read_datasets
from model.detector import Detector, Evidence
from model.evidence import contrast_of, heat, uneven
from model.figures.metrics import auc
from model.hardware import Runtime, cores, use_threads
from model.images import read_picture
from model.views.windows import REDUCED_SIDE

Pixels = NDArray[np.uint8]

SAMPLES = 2000
ORDINARY = 0.02  # share of ordinary images that may be called uneven
REPEATS = 4  # windows drawn at random for each image
SMOOTH = 256  # pixels of the longer side
LARGE = REDUCED_SIDE  # pixels, of the shorter side


class Pair(NamedTuple):
    """Half a photograph beside half a generated image: pixels, where it is generated, owners."""

    pixels: Pixels
    generated: NDArray[np.bool_]
    photograph: Row
    ai: Row


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, default=TWIN)
    chosen = parser.parse_args()
    rows = read_datasets(chosen.manifests, chosen.split)
    photographs = [row for row in rows if row.category == "real"]
    generated = [row for row in rows if row.category == "ai"]
    use_threads(cores())
    runtime = Runtime.resolve("cpu", "auto", "auto", "auto", cores())
    detector = Detector.load(chosen.checkpoint, runtime=runtime, canvases="all")
    print(f"{len(photographs)} photographs, {len(generated)} generated images\n")
    print("| | | images | owners | figure (95 %) |\n|---|---|---|---|---|")
    whole = ((read_picture(row.path).pixels, row) for row in track(generated, "deletion"))
    deletion(detector, "generated images", whole)
    pairs = list(pairs_of(photographs, generated, chosen.pairs))
    halves = ((pair.pixels, pair.ai) for pair in track(pairs, "deletion in pairs"))
    deletion(detector, "put together", halves)
    judged = [explained(detector, pair.pixels) for pair in track(pairs, "pairs")]
    pointing(pairs, judged)
    ordinary = [
        (row, explained(detector, read_picture(row.path).pixels))
        for row in track([*photographs, *generated], "ordinary images")
    ]
    stands_out(ordinary, pairs, judged)
    orange(ordinary, detector.about.thresholds.ai_above)


def explained(detector: Detector, pixels: Pixels) -> Evidence:
    """The evidence of one picture."""
    [detection] = detector.detect([pixels], explain=True)
    assert detection.evidence is not None  # noqa: S101  (it was asked for)
    return detection.evidence


# --- deletion -----------------------------------------------------------------------------------


def deletion(detector: Detector, name: str, pictures: Iterable[tuple[Pixels, Row]]) -> None:
    """How far the logit falls without the highest window, and without one at random.

    Args:
        detector: with all canvases at once.
        name: of the pictures.
        pictures: with where what is generated in them comes from.
    """
    table, owners = [], []
    for pixels, row in pictures:
        [before] = detector.detect([pixels], explain=True)
        assert before.evidence is not None  # noqa: S101  (it was asked for)
        windows = before.evidence.windows
        if not before.evidence.mapped or len(windows) < 2:
            continue
        boxes = [window.view.box for window in windows]
        highest = int(np.argmax([window.log_odds for window in windows]))
        drawn = rng_of(row.path.name, 1).choice(len(boxes), min(REPEATS, len(boxes)), replace=False)
        filled = [without(pixels, boxes[index]) for index in (highest, *drawn)]
        lost = [before.logit - after.logit for after in detector.detect(filled)]
        table.append((lost[0], float(np.mean(lost[1:]))))
        owners.append(row.owner)
    figures = np.array(table)
    show("deletion", f"{name}: logit lost without the highest window", figures[:, :1], owners)
    show("", f"{name}: without one at random", figures[:, 1:], owners)
    show("", f"{name}: ratio of the two", figures, owners)


def without(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """A picture of which a box is filled by what surrounds it, blurred, with soft edges."""
    left, top, right, bottom = box
    size = (pixels.shape[1], pixels.shape[0])
    inside = np.zeros(pixels.shape[:2], np.float32)
    inside[top:bottom, left:right] = 1
    # In a small copy: what is as smooth as this needs no more, and blurring takes no time.
    scale = SMOOTH / max(size)
    small = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))
    sigma = scale * (right - left) / 4
    rest = resized(1 - inside, small)
    weight = np.maximum(gaussian_filter(rest, sigma), 1e-6)
    channels = [
        resized(gaussian_filter(resized(channel * (1 - inside), small), sigma) / weight, size)
        for channel in np.moveaxis(pixels.astype(np.float32), 2, 0)
    ]
    soft = gaussian_filter(inside, (right - left) / 64)[..., None]
    filled = pixels * (1 - soft) + np.stack(channels, axis=2) * soft
    rounded: Pixels = np.rint(filled).clip(0, 255).astype(np.uint8)
    return rounded


def resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """float32 [H, W] at another width and height."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


# --- pointing -----------------------------------------------------------------------------------


def pairs_of(photographs: Sequence[Row], generated: Sequence[Row], count: int) -> Iterator[Pair]:
    """Pictures of two halves; owners are drawn first, so that none stands for many."""
    rng = np.random.default_rng(0)
    while count:
        photograph, ai = draw(photographs, rng), draw(generated, rng)
        halves = [equal(row) for row in (photograph, ai)]
        width, height = (min(side) for side in zip(*(half.size for half in halves), strict=True))
        real, fake = (middle(half, width, height) for half in halves)
        mask = np.zeros((height, width), np.bool_)
        if rng.integers(2):
            mask[:, : width // 2] = True
        else:
            mask[: height // 2] = True
        if rng.integers(2):
            mask = ~mask
        file = io.BytesIO()
        Image.fromarray(np.where(mask[..., None], fake, real)).save(file, "JPEG", quality=75)
        yield Pair(np.asarray(Image.open(file).convert("RGB")), mask, photograph, ai)
        count -= 1


def draw(rows: Sequence[Row], rng: np.random.Generator) -> Row:
    """One image of one owner."""
    owners = sorted({row.owner for row in rows})
    owner = owners[rng.integers(len(owners))]
    own = [row for row in rows if row.owner == owner]
    return own[rng.integers(len(own))]


def equal(row: Row) -> Image.Image:
    """An image, equalised."""
    return equalise(Image.fromarray(read_picture(row.path).pixels), rng_of(row.path.name))


def middle(image: Image.Image, width: int, height: int) -> Pixels:
    """Its centre."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def pointing(pairs: Sequence[Pair], judged: Sequence[Evidence]) -> None:
    """Where the map is highest, and how well it tells the halves apart."""
    owners = [pair.ai.owner for pair in pairs]
    rows = []
    for pair, evidence in zip(pairs, judged, strict=True):
        size = pair.generated.shape
        values = heat(evidence.windows, size, size)
        hit = float(pair.generated[values == values.max()].mean() > 0.5)
        some = slice(None, None, 31)
        labels = pair.generated.ravel()[some].astype(np.int64)
        rows.append((hit, auc(labels, values.ravel()[some]), evidence.mapped, min(size)))
    table = np.array(rows)
    parts = {
        "all": np.ones(len(table), np.bool_),
        "with a map": table[:, 2] == 1,
        f"shorter side from {LARGE} px": table[:, 3] >= LARGE,
        "without a map": table[:, 2] == 0,
    }
    for name, part in parts.items():
        of = [owner for owner, here in zip(owners, part, strict=True) if here]
        show("pointing", f"{name}: highest point in the generated half", table[part][:, :1], of)
        show("", f"{name}: AUC per pixel", table[part][:, 1:2], of)


# --- a region that stands out -------------------------------------------------------------------


def stands_out(
    ordinary: Sequence[tuple[Row, Evidence]], pairs: Sequence[Pair], judged: Sequence[Evidence]
) -> None:
    """How often a picture is called uneven, by the rule and by contrasts chosen on other owners."""
    mapped = [(row, evidence) for row, evidence in ordinary if evidence.mapped]
    for name, category in (("photographs", "real"), ("generated images", "ai")):
        part = [(row, evidence) for row, evidence in mapped if row.category == category]
        called = np.array([[uneven(evidence.windows) is not None] for _, evidence in part], float)
        show("uneven", f"ordinary {name}", called, [row.owner for row, _ in part])
    put_together = [(p, e) for p, e in zip(pairs, judged, strict=True) if e.mapped]
    called = np.array([[uneven(e.windows) is not None] for _, e in put_together], float)
    show("", "put together", called, [pair.ai.owner for pair, _ in put_together])
    owners = sorted({row.owner for row, _ in mapped})
    for turn in range(2):
        half = set(owners[turn::2])
        here = [contrast(e) for row, e in mapped if row.owner in half]
        there = [contrast(e) for row, e in mapped if row.owner not in half]
        cut = float(np.quantile(here, 1 - ORDINARY))
        false, found = (
            np.mean([value > cut for value in values])
            for values in (there, [contrast(e) for _, e in put_together])
        )
        print(
            f"| | contrast {cut:.2f}, chosen on {len(here)} images: ordinary ones of the other "
            f"owners {false:.1%}, put together {found:.1%} | {len(there)} | | |"
        )


def orange(ordinary: Sequence[tuple[Row, Evidence]], cut: float) -> None:
    """How many photographs have a window that a verdict by it alone would accuse."""
    part = [(row, evidence) for row, evidence in ordinary if row.category == "real"]
    any_window = [[any((w.score or 0) >= cut for w in e.windows)] for _, e in part]
    owners = [row.owner for row, _ in part]
    show("windows", f"photographs with one from {cut:.3f} on", np.array(any_window, float), owners)


def contrast(evidence: Evidence) -> float:
    """Of the highest window; 0 where there is none to speak of."""
    region = contrast_of(evidence.windows)
    return 0.0 if region is None else region.contrast


# --- figures ------------------------------------------------------------------------------------


def show(title: str, name: str, table: NDArray[np.float64], owners: Sequence[str]) -> None:
    """One row: the mean over images, or the ratio of two columns' means, with its interval."""
    if not len(table):
        return
    _, unit = np.unique(np.asarray(owners), return_inverse=True)
    units = int(unit.max()) + 1
    rng = np.random.default_rng(0)
    times = rng.multinomial(units, np.full(units, 1 / units), size=SAMPLES)[:, unit]
    sums = times.astype(float) @ table
    samples = sums[:, 0] / (sums[:, 1] if table.shape[1] > 1 else times.sum(axis=1))
    low, high = np.nanquantile(samples, [0.025, 0.975])
    means = table.mean(axis=0)
    figure = means[0] / means[1] if len(means) > 1 else means[0]
    print(f"| {title} | {name} | {len(table)} | {units} | {figure:.3f} ({low:.3f}-{high:.3f}) |")


if __name__ == "__main__":
    main()
