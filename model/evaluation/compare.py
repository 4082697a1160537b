"""Two checkpoints on the same images: which verdicts change."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from model.data.ahead import ahead
from model.data.manifest import Row, images_in, read_rows
from model.detector import Detector, Look
from model.errors import ImageError, ModelError
from model.hardware import spare_pool
from model.images import read_picture
from model.verdicts import Verdict

log = logging.getLogger(__name__)

PHOTOGRAPHS, MADE, AI_IMAGES, UNLABELLED = CLASSES = (
    "photographs",
    "art, renders, screens",
    "AI images",
    "no label",
)
"""What images are told apart by, in the order they are shown in."""
_CLASS_OF = {"real": PHOTOGRAPHS, "made": MADE, "ai": AI_IMAGES}

_BATCH = 8  # images in one forward of each checkpoint
_AHEAD = 8  # images decoded ahead of the networks


@dataclass(frozen=True, slots=True)
class Answer:
    """What one checkpoint says of an image, as the service answers.

    Attributes:
        verdict: by the checkpoint's cuts.
        score: calibrated, 0..1.
        warnings: the file's and the detector's.
    """

    verdict: Verdict
    score: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its two answers.

    Attributes:
        path: the file.
        row: what a manifest says of it; None where none does.
        old: by the old checkpoint.
        new: by the new one.
    """

    path: Path
    row: Row | None
    old: Answer
    new: Answer

    @property
    def changed(self) -> bool:
        """Whether the verdict is another."""
        return self.old.verdict is not self.new.verdict

    @property
    def image_class(self) -> str:
        """Which of `CLASSES`."""
        return UNLABELLED if self.row is None else _CLASS_OF[self.row.category]


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed among some images.

    Attributes:
        verdicts: images by (old, new) verdict.
        score: mean absolute change of the score.
    """

    verdicts: Counter[tuple[Verdict, Verdict]]
    score: float

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Changes":
        """Count them; at least one pair."""
        return cls(
            Counter((pair.old.verdict, pair.new.verdict) for pair in pairs),
            float(np.mean([abs(pair.new.score - pair.old.score) for pair in pairs])),
        )

    @property
    def images(self) -> int:
        """How many there are."""
        return self.verdicts.total()

    @property
    def changed(self) -> float:
        """Share of them whose verdict is another."""
        return sum(n for (old, new), n in self.verdicts.items() if old is not new) / self.images

    @property
    def reversed(self) -> float:
        """Share of them that went from `real` to `ai_generated` or back."""
        ends = (Verdict.REAL, Verdict.AI_GENERATED)
        return (self.verdicts[ends] + self.verdicts[ends[::-1]]) / self.images


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints on the same images.

    Attributes:
        pairs: of each image that both could score, in the order of the images; at least one.
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    pairs: list[Pair]
    skipped: dict[str, int]

    @property
    def by_class(self) -> dict[str, Changes]:
        """Of each of `CLASSES` that has images, what changed."""
        parts = {
            name: [pair for pair in self.pairs if pair.image_class == name] for name in CLASSES
        }
        return {name: Changes.of(pairs) for name, pairs in parts.items() if pairs}


def list_images(paths: Sequence[Path], split: str | None = None) -> dict[Path, Row | None]:
    """The images of manifests and of folders in any layout, none of them twice.

    Args:
        paths: CSV files, see `read_dataset`, of one class or of both; or folders, whose images are
            those with a suffix of `images.SUFFIXES`, hidden ones left out.
        split: keep only these of a manifest's images; None keeps all.

    Returns:
        What a manifest says of each, None for a folder's.

    Raises:
        ModelError: there are none, or a manifest is at fault (`ManifestError`).
    """
    images: dict[str, tuple[Path, Row | None]] = {}
    for path in paths:
        if path.is_dir():
            found: list[tuple[Path, Row | None]] = [(p, None) for p in sorted(images_in(path))]
        else:
            found = [(row.path, row) for row in read_rows(path, split)]
        for image, row in found:
            key = os.path.abspath(image)  # noqa: PTH100  (no link is followed)
            if row is not None or key not in images:  # a manifest knows more than a folder
                images[key] = image, row
    if not images:
        raise ModelError(f"{' and '.join(str(path) for path in paths)} holds no images")
    return dict(images.values())


def compare(
    images: Mapping[Path, Row | None], old: Detector, new: Detector, *, progress: bool = False
) -> Comparison:
    """Score every image by two checkpoints, and take both verdicts, as in service.

    Each image is read once, as the service reads an upload; each checkpoint looks at it for itself.
    One that the service would refuse under either is skipped and counted.

    Args:
        images: by `list_images`.
        old: one checkpoint.
        new: the other.
        progress: show a bar on standard error.

    Raises:
        ModelError: no image could be scored.
    """
    pairs: list[Pair] = []
    skipped: Counter[str] = Counter()
    shown = track(
        ahead(lambda path: _see(path, (old, new)), images, _AHEAD, spare_pool()),
        total=len(images),
        description="compare",
        transient=True,
        console=Console(stderr=True),
        disable=not progress,
    )
    read = zip(images.items(), shown, strict=True)
    while batch := list(islice(read, _BATCH)):
        skipped.update(seen for _, seen in batch if isinstance(seen, str))
        scored = [(image, seen) for image, seen in batch if not isinstance(seen, str)]
        before, after = (
            _answers(detector, [(seen.warnings, seen.looks[index]) for _, seen in scored])
            for index, detector in enumerate((old, new))
        )
        pairs += [
            Pair(path, row, *answers)
            for ((path, row), _), *answers in zip(scored, before, after, strict=True)
        ]
    if not pairs:
        raise ModelError(f"no image could be scored: {dict(skipped)}")
    return Comparison(pairs, dict(sorted(skipped.items())))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is left of a picture: its file's warnings, and each checkpoint's look."""

    warnings: tuple[str, ...]
    looks: list[Look]


def _see(path: Path, detectors: Sequence[Detector]) -> _Seen | str:
    """Read an image and look at it, or say the code of why it is not judged; in any thread."""
    try:
        picture = read_picture(path)
        looks = [detector.look(picture.pixels) for detector in detectors]
    except ImageError as error:
        log.info("skipped %s: %s", path, error)
        return error.code
    return _Seen(picture.facts.warnings, looks)


def _answers(detector: Detector, seen: Sequence[tuple[tuple[str, ...], Look]]) -> list[Answer]:
    scores = detector.predict([look for _, look in seen])
    return [
        Answer(detector.verdict(score), score.value, (*warnings, *score.warnings))
        for (warnings, _), score in zip(seen, scores, strict=True)
    ]
