"""Is evidence true? What a heat-map and its windows are worth, on images of a split.

    python benchmarks/faithfulness.py MANIFEST... [--split val] [--pairs 300] [--checkpoint FILE]

* Deletion: windows of generated images are filled by what surrounds them, blurred; how far does the
  score fall for those that look most generated, and for as many at random?
* Pointing: half a photograph beside half a generated image, both equalised first and the whole
  saved as JPEG 75; does the map's highest point lie in the generated half, and how well do its
  values tell the halves' pixels apart?
* A region that stands out: how many ordinary photographs and generated images, and how many of
  the pictures put together, are called `uneven`? With the contrast that 2 % of the ordinary images
  of one half of the owners exceed, and what that gives on the other half.

Intervals of 95 % are over owners: of the generated image where a picture has two. The checkpoint is
by default the twin of the shipped one that was trained without the split `val`.
"""

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.progress import track

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
REPEATS = 4  # random choices of windows for each image
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
    deletion(detector, generated)
    pairs = list(pairs_of(photographs, generated, chosen.pairs))
    judged = [explained(detector, pair.pixels) for pair in track(pairs, "pairs")]
    pointing(pairs, judged)
    ordinary = [
        (row, explained(detector, read_picture(row.path).pixels))
        for row in track([*photographs, *generated], "ordinary images")
    ]
    stands_out(ordinary, pairs, judged)


def explained(detector: Detector, pixels: Pixels) -> Evidence:
    """The evidence of one picture."""
    [detection] = detector.detect([pixels], explain=True)
    assert detection.evidence is not None  # noqa: S101  (it was asked for)
    return detection.evidence


# --- deletion -----------------------------------------------------------------------------------


def deletion(detector: Detector, rows: Sequence[Row]) -> None:
    """How far the logit falls without the highest windows, and without as many at random."""
    highest, at_random, owners = [], [], []
    for row in track(rows, "deletion"):
        pixels = read_picture(row.path).pixels
        [before] = detector.detect([pixels], explain=True)
        assert before.evidence is not None  # noqa: S101  (it was asked for)
        windows = before.evidence.windows
        if not before.evidence.mapped or len(windows) < 2:
            continue
        count = max(1, len(windows) // 4)
        boxes = [window.view.box for window in windows]
        falling = np.argsort([-window.log_odds for window in windows], kind="stable")
        rng = rng_of(row.path.name, 1)
        drawn = [rng.choice(len(windows), count, replace=False) for _ in range(REPEATS)]
        filled = [without(pixels, [boxes[i] for i in some]) for some in (falling[:count], *drawn)]
        after = [before.logit - detection.logit for detection in detector.detect(filled)]
        highest.append(after[0])
        at_random.append(float(np.mean(after[1:])))
        owners.append(row.owner)
    table = np.array([highest, at_random]).T
    show("deletion", "logit lost, the highest quarter of the windows", table[:, :1], owners)
    show("", "logit lost, as many at random", table[:, 1:], owners)
    show("", "ratio of the two", table, owners)


def without(pixels: Pixels, boxes: Sequence[tuple[int, int, int, int]]) -> Pixels:
    """A picture whose boxes are filled by what surrounds them, blurred, with soft edges."""
    image = Image.fromarray(pixels)
    side = min(right - left for left, _, right, _ in boxes)
    mask = Image.new("L", image.size, 0)
    for box in boxes:
        mask.paste(255, box)
    rest = np.asarray(mask, np.float32)[..., None] == 0
    # Blurred by what is not in a box alone: else the filling would hold what is taken out.
    radius = ImageFilter.GaussianBlur(side / 4)
    kept = Image.fromarray((pixels * rest).astype(np.uint8)).filter(radius)
    share = Image.fromarray((255 * rest[..., 0]).astype(np.uint8)).filter(radius)
    weight = np.maximum(np.asarray(share, np.float32)[..., None] / 255, 1 / 255)
    filling = np.clip(np.asarray(kept, np.float32) / weight, 0, 255).astype(np.uint8)
    soft = mask.filter(ImageFilter.GaussianBlur(side / 32))
    return np.asarray(Image.composite(Image.fromarray(filling), image, soft))


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
