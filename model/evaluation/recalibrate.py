"""Other rules of a verdict for the same network: its calibrations and thresholds, fitted anew."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import Metadata, read_checkpoint, write_checkpoint
from model.data.copies import JUDGED
from model.data.manifest import AI, REAL, Row, digest, folds
from model.detector import Detector, Look
from model.errors import ModelError
from model.evaluation.evaluate import Answers, ask, trained_on
from model.figures.crossfit import Logits, cross_fitted_figures, rules_of
from model.verdicts import Promise

_FOLDS = 5


def recalibrate(
    checkpoint: Path,
    to: Path,
    rows: Sequence[Row],
    detector: Detector,
    *,
    data: str,
    accused: float,
    missed: float,
    progress: bool = False,
) -> Metadata:
    """Write a checkpoint's tensors with calibrations and thresholds fitted to other images.

    The images' clean and equalised copies are scored, after the first look and by all canvases,
    and the thresholds hold for the worse of the two copies. `evaluation` is replaced, as what it
    said held for the former thresholds: by figures of these images, each fold's verdicts taken by
    rules that were fitted to the other folds.

    Args:
        checkpoint: the file that `detector` was loaded from.
        to: the file to write; may be the same.
        rows: the images, none of them trained on.
        detector: gives the logits; loaded with `canvases="all"`.
        data: the data set and split, in words.
        accused: largest share of photographs that may be called `ai_generated`.
        missed: largest share of AI images that may be called `real`.
        progress: show a bar on standard error.

    Returns:
        The metadata written.

    Raises:
        ModelError: the images were trained on, a class has less than two, a share is not between 0
            and 1, the logits do not tell the classes apart (with any fold left out), the detector
            does not look at all canvases, or `to` cannot be written.
    """
    stored = read_checkpoint(checkpoint)
    if trained_on(stored.metadata, rows):
        raise ModelError("the checkpoint was trained on these images; calibrate on others")
    for name, share in (("accused", accused), ("missed", missed)):
        if not 0 < share < 1:
            raise ModelError(f"{name} is {share}; it must be between 0 and 1")
    plan = stored.metadata.views
    if detector.about.canvases != "all":
        raise ModelError("to calibrate, the detector must look at all canvases: canvases='all'")

    def looks_of(pixels: NDArray[np.uint8]) -> list[Look]:
        every = detector.look(pixels)
        if plan.first == plan.canvases:
            return [every]
        return [dataclasses.replace(every, canvases=every.canvases[: plan.first]), every]

    answers = ask(rows, detector, looks_of, conditions=tuple(JUDGED), progress=progress)
    logits = {name: _logits(rows, part) for name, part in answers.items()}
    promise = Promise(accused, missed, stored.metadata.verdicts.margins)
    fitted_on = (
        f"{data} ({len(rows)} images, list sha256 {digest(rows)[:12]}), "
        f"{' and '.join(JUDGED)} copies"
    )
    rules = rules_of(logits, fitted_on, promise)
    fold, how = _folds(rows)
    figures = cross_fitted_figures(rows, fold, logits, promise)
    metadata = stored.metadata.model_copy(
        update={"verdicts": rules, "evaluation": {"cross_fitted": {"folds": how, **figures}}}
    )
    write_checkpoint(to, stored.tensors, metadata)
    return metadata


def _logits(rows: Sequence[Row], part: Answers) -> Logits:
    return Logits(
        row=np.array(part.row, dtype=np.int64),
        labels=np.array([rows[index].label for index in part.row], dtype=np.int64),
        first=np.array([scores[0].logit for scores in part.scores]),
        all=np.array([scores[-1].logit for scores in part.scores]),
        skipped=dict(sorted(part.skipped.items())),
    )


def _folds(rows: Sequence[Row]) -> tuple[list[int], str]:
    """The fold of each row, and what was kept whole, in words.

    A class that is all of one unit is split by image: its figures are those of others like it.

    Raises:
        ModelError: a class of one image.
    """
    units = Counter(label for label, _ in {(row.label, row.unit) for row in rows})
    alone = [label for label in (REAL, AI) if units[label] == 1]
    by_image = [
        dataclasses.replace(row, group=str(row.path), repository=str(row.path))
        if row.label in alone
        else row
        for row in rows
    ]
    sizes = Counter(label for label, _ in {(row.label, row.unit) for row in by_image})
    if min(sizes.values()) < 2:
        raise ModelError("a class of one image cannot be calibrated on")
    count = min(_FOLDS, *sizes.values())
    real = "image" if REAL in alone else "repository"
    ai = "image" if AI in alone else "generator"
    return folds(by_image, count), f"{count}: photographs by {real}, AI images by {ai}"
