"""Labelled images -> what the detector says of them under every condition."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from model.checkpoint import Metadata
from model.data.ahead import ahead
from model.data.degrade import CONDITIONS, rng_of
from model.data.manifest import Row, digest
from model.detector import Detector, Look, Score
from model.errors import ImageError, ModelError
from model.figures.predictions import Predictions
from model.hardware import spare_pool
from model.images import read_picture
from model.verdicts import Quality, Reason

log = logging.getLogger(__name__)

_BATCH = 8  # copies of images in one forward
_AHEAD = 8  # images decoded ahead of the network

# What is looked at of one copy: each is scored by itself.
LooksOf = Callable[[NDArray[np.uint8]], Sequence[Look]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the network said of images under one condition.

    Attributes:
        row: index of each image that could be scored.
        scores: of each, the scores of its looks.
        quality: of each.
        skipped: images left out, counted by the `code` of their `ImageError`.
    """

    row: list[int] = field(default_factory=list)
    scores: list[list[Score]] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def evaluate(
    rows: Sequence[Row],
    detector: Detector,
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    progress: bool = False,
) -> dict[str, Predictions]:
    """Score every image under every condition, and take its verdict, as in service.

    Args:
        rows: the images.
        detector: the network and its rules.
        conditions: keys of `CONDITIONS`.
        progress: show a bar on standard error.

    Returns:
        What was said of the images of each condition, in the order of `conditions`.

    Raises:
        ModelError: as `ask`.
    """
    answers = ask(
        rows,
        detector,
        lambda pixels: [detector.look(pixels)],
        conditions=conditions,
        progress=progress,
    )
    return {name: _predictions(rows, part, detector) for name, part in answers.items()}


def ask(
    rows: Sequence[Row],
    detector: Detector,
    looks_of: LooksOf,
    *,
    conditions: Sequence[str],
    progress: bool = False,
) -> dict[str, Answers]:
    """Score what is looked at of every image under every condition.

    Images are read as the service reads an upload, and other threads decode and transform them
    ahead of the network. An image that the service would refuse is skipped and counted.

    Args:
        rows: the images.
        detector: the network.
        looks_of: what is looked at of uint8 [H, W, 3]; many threads call it at once.
        conditions: keys of `CONDITIONS`.
        progress: show a bar on standard error.

    Raises:
        ModelError: an unknown condition, or no image could be scored under one of them.
    """
    for name in conditions:
        if name not in CONDITIONS:
            raise ModelError(f"no condition {name!r}; there are {', '.join(CONDITIONS)}")

    answers = {name: Answers() for name in conditions}
    pending: list[tuple[str, int, Sequence[Look]]] = []

    def flush() -> None:
        batch, pending[:] = pending[:_BATCH], pending[_BATCH:]
        scores = iter(detector.predict([look for _, _, looks in batch for look in looks]))
        for name, index, looks in batch:
            answers[name].row.append(index)
            answers[name].scores.append([next(scores) for _ in looks])
            answers[name].quality.append(looks[0].quality)

    copies = ahead(lambda row: _copies(row, looks_of, conditions), rows, _AHEAD, spare_pool())
    shown = track(
        copies,
        total=len(rows),
        description="evaluate",
        transient=True,
        console=Console(stderr=True),
        disable=not progress,
    )
    for index, looks_or_codes in enumerate(shown):
        for name, item in zip(conditions, looks_or_codes, strict=True):
            if isinstance(item, str):
                answers[name].skipped[item] += 1
            else:
                pending.append((name, index, item))
        while len(pending) >= _BATCH:
            flush()
    while pending:
        flush()
    for name, part in answers.items():
        if not part.row:
            raise ModelError(f"no image could be scored under {name!r}: {dict(part.skipped)}")
    return answers


def trained_on(metadata: Metadata, rows: Sequence[Row]) -> bool:
    """Whether these very images gave a checkpoint; some of them, or more, are not noticed."""
    return digest(rows) == metadata.training.data_sha256


def _predictions(rows: Sequence[Row], part: Answers, detector: Detector) -> Predictions:
    chosen = [rows[index] for index in part.row]
    scores = [score for [score] in part.scores]
    return Predictions(
        rows=chosen,
        labels=np.array([row.label for row in chosen], dtype=np.int64),
        logits=np.array([score.logit for score in scores]),
        scores=np.array([score.value for score in scores]),
        verdicts=[detector.verdict(score) for score in scores],
        low_quality=np.array([Reason.LOW_QUALITY in score.reasons for score in scores]),
        skipped=dict(sorted(part.skipped.items())),
    )


def _copies(row: Row, looks_of: LooksOf, conditions: Sequence[str]) -> list[Sequence[Look] | str]:
    """One image under each condition, or the code of why it is not judged."""
    try:
        image = Image.fromarray(read_picture(row.path).pixels)
    except ImageError as error:
        log.info("skipped %s: %s", row.path, error)
        return [error.code] * len(conditions)

    def copy(name: str) -> Sequence[Look] | str:
        try:
            return looks_of(np.asarray(CONDITIONS[name](image, rng_of(row.path.name))))
        except ImageError as error:
            log.info("skipped %s under %s: %s", row.path, name, error)
            return error.code

    return [copy(name) for name in conditions]
