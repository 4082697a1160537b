"""Labelled images -> the detector's scores under every condition."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model import pixels
from model.ahead import ahead
from model.checkpoint import Calibration, Verdict
from model.cores import spare_pool
from model.detector import Detector, Prepared
from model.errors import ImageTooSmallError, ModelError
from model.evaluation.conditions import CONDITIONS, name_rng
from model.evaluation.metrics import Array, Labels
from model.training.manifest import Row

log = logging.getLogger(__name__)

TOO_SMALL, UNREADABLE = "too_small", "unreadable"
_BATCH = 8  # copies of images in one forward
_AHEAD = 8  # images decoded ahead of the network

# One image under each condition, or why the network cannot read it.
_Copies = list[Prepared | str]


@dataclass(frozen=True, slots=True)
class Scored:
    """The images that could be scored under one condition.

    Attributes:
        rows: n of them, in the order of the data set.
        labels: int64 [n], 1 = AI.
        logits: float64 [n], before calibration.
        scores: float64 [n], calibrated.
        verdicts: n of them, by the checkpoint's thresholds.
        skipped: images left out, counted by reason (`unreadable`, `too_small`).
    """

    rows: list[Row]
    labels: Labels
    logits: Array
    scores: Array
    verdicts: list[Verdict]
    skipped: dict[str, int]

    @property
    def groups(self) -> NDArray[np.str_]:
        """Str [n], the group of each image."""
        return np.array([row.group for row in self.rows], dtype=np.str_)


def evaluate(
    rows: Sequence[Row],
    detector: Detector,
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    progress: bool = False,
) -> dict[str, Scored]:
    """Score every image under every condition.

    Other threads decode and transform ahead of the network. An image that cannot be read, or is too
    small for the network, is skipped and counted.

    Args:
        rows: the images.
        detector: the network, its calibration and its thresholds.
        conditions: keys of `CONDITIONS`.
        progress: show a bar on standard error.

    Returns:
        The scored images of each condition, in the order of `conditions`.

    Raises:
        ModelError: an unknown condition, or no image could be scored under one of them.
    """
    for name in conditions:
        if name not in CONDITIONS:
            raise ModelError(f"no condition {name!r}; there are {', '.join(CONDITIONS)}")

    def copies(row: Row) -> _Copies:
        return _copies(row, detector, conditions)

    placed: dict[str, list[Row]] = {name: [] for name in conditions}
    logits: dict[str, list[float]] = {name: [] for name in conditions}
    skipped: dict[str, Counter[str]] = {name: Counter() for name in conditions}
    pending: list[tuple[str, Row, Prepared]] = []

    def flush() -> None:
        batch, pending[:] = pending[:_BATCH], pending[_BATCH:]
        found = detector.predict([prepared for _, _, prepared in batch])
        for (name, row, _), detection in zip(batch, found, strict=True):
            placed[name].append(row)
            logits[name].append(detection.logit)

    pairs = zip(rows, ahead(copies, rows, _AHEAD, spare_pool()), strict=True)
    for row, prepared in track(pairs, total=len(rows), description="evaluate", transient=True,
                               console=Console(stderr=True), disable=not progress):  # fmt: skip
        for name, item in zip(conditions, prepared, strict=True):
            if isinstance(item, str):
                skipped[name][item] += 1
            else:
                pending.append((name, row, item))
        while len(pending) >= _BATCH:
            flush()
    while pending:
        flush()
    return {
        name: _scored(name, placed[name], logits[name], skipped[name], detector)
        for name in conditions
    }


def _scored(
    name: str, rows: list[Row], logits: list[float], skipped: Counter[str], detector: Detector
) -> Scored:
    if not rows:
        raise ModelError(f"no image could be scored under {name!r}: {dict(skipped)}")
    raw = np.array(logits)
    calibration = Calibration.model_validate(detector.calibration)
    scores = calibration.scores(torch.from_numpy(raw)).numpy()
    return Scored(
        rows=rows,
        labels=np.array([row.label for row in rows], dtype=np.int64),
        logits=raw,
        scores=scores,
        verdicts=[detector.thresholds.verdict(score) for score in scores.tolist()],
        skipped=dict(sorted(skipped.items())),
    )


def _copies(row: Row, detector: Detector, conditions: Sequence[str]) -> _Copies:
    try:
        image = pixels.read_rgb(row.path)
    except pixels.UNREADABLE as error:
        log.info("skipped %s: %s", row.path, error)
        return [UNREADABLE] * len(conditions)

    def copy(name: str) -> Prepared | str:
        try:
            changed = CONDITIONS[name](image, name_rng(row.path.name))
            return detector.prepare(np.asarray(changed))
        except ImageTooSmallError:
            return TOO_SMALL
        except (OSError, ValueError) as error:  # e.g. sides that JPEG cannot hold
            log.info("skipped %s under %s: %s", row.path, name, error)
            return UNREADABLE

    return [copy(name) for name in conditions]
