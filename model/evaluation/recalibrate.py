"""Other rules of a verdict for the same network: all of them but the margins, fitted anew."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import Metadata, read_checkpoint, write_checkpoint
from model.data.copies import PROMISED
from model.data.manifest import Row, digest, folds
from model.detector import Detector, Look
from model.errors import ModelError
from model.evaluation.evaluate import Answers, ask, trained_on
from model.figures.crossfit import cross_fitted_figures, rules_of
from model.verdicts import Logits, Promise, Scores
from model.views.plan import ViewPlan

_FOLDS = 5


def recalibrate(
    checkpoint: Path,
    to: Path,
    rows: Sequence[Row],
    detector: Detector,
    *,
    data: str,
    accused: float,
    accused_images: float,
    accused_made: float,
    missed: float,
    held_back: float,
    progress: bool = False,
) -> Metadata:
    """Write a checkpoint's tensors with rules of a verdict fitted to other images.

    The images' `PROMISED` copies are scored, after the first look and by all canvases, and the
    thresholds hold for the worst of them. `evaluation` is replaced, as what it said held for the
    former thresholds: by figures of these images, each fold's verdicts taken by rules that were
    fitted to the other folds.

    Args:
        checkpoint: the file that `detector` was loaded from.
        to: the file to write; may be the same.
        rows: the images, none of them trained on.
        detector: gives the logits; loaded with `canvases="all"`.
        data: the data set and split, in words.
        accused: see `Promise`, as the other four.
        accused_images: of photographs, whoever published them.
        accused_made: of pictures made without a camera; without any it promises nothing.
        missed: of AI images.
        held_back: of photographs, by each measurement of quality.
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
    shares = {
        "accused": accused,
        "accused_images": accused_images,
        "accused_made": accused_made,
        "missed": missed,
        "held_back": held_back,
    }
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ModelError(f"{name} is {share}; it must be between 0 and 1")
    plan = stored.metadata.views
    promise = Promise(**shares, min_side=plan.canvas_size, margins=stored.metadata.verdicts.margins)
    if detector.about.canvases != "all":
        raise ModelError("to calibrate, the detector must look at all canvases: canvases='all'")

    def looks_of(pixels: NDArray[np.uint8]) -> list[Look]:
        every = detector.look(pixels)
        if plan.first == plan.canvases:
            return [every]
        return [dataclasses.replace(every, canvases=every.canvases[: plan.first]), every]

    answers = ask(rows, detector, looks_of, conditions=PROMISED, progress=progress)
    logits = {name: _logits(rows, part, plan) for name, part in answers.items()}
    fitted_on = (
        f"{data} ({len(rows)} images, list sha256 {digest(rows)[:12]}), "
        f"{', '.join(PROMISED)} copies"
    )
    rules = rules_of(logits, fitted_on, promise)
    fold, how = _folds(rows)
    figures = cross_fitted_figures(rows, fold, logits, promise)
    metadata = stored.metadata.model_copy(
        update={"verdicts": rules, "evaluation": {"cross_fitted": {"folds": how, **figures}}}
    )
    write_checkpoint(to, stored.tensors, metadata)
    return metadata


def _logits(rows: Sequence[Row], part: Answers, plan: ViewPlan) -> Logits:
    chosen = [rows[index] for index in part.row]
    first = np.array([scores[0].logit for scores in part.scores])
    every = np.array([scores[-1].logit for scores in part.scores])
    return Logits(
        row=np.array(part.row, dtype=np.int64),
        labels=np.array([row.label for row in chosen], dtype=np.int64),
        made=np.array([row.made for row in chosen]),
        owners=np.array([row.owner for row in chosen]),
        first=first,
        all=every,
        window=_windows(first, every, plan),
        quality=np.array(part.quality),
        skipped=dict(sorted(part.skipped.items())),
    )


def _windows(first: Scores, every: Scores, plan: ViewPlan) -> Scores:
    """Of each image the mean logit of its native windows, which `every` holds beside the whole."""
    if not plan.whole or plan.first == plan.canvases or plan.whole_share == 1:
        return np.full(len(first), np.nan)
    return (every - plan.whole_share * first) / (1 - plan.whole_share)


def _folds(rows: Sequence[Row]) -> tuple[list[int], str]:
    """The fold of each row, and what was kept whole, in words.

    A class that is all of one owner is split by image: its figures are those of others like it.

    Raises:
        ModelError: a class of one image.
    """
    owners = Counter(of for of, _ in {(row.category, row.owner) for row in rows})
    by_image = [
        dataclasses.replace(row, owner=str(row.path)) if owners[row.category] == 1 else row
        for row in rows
    ]
    sizes = Counter(of for of, _ in {(row.category, row.owner) for row in by_image})
    fewest = min(sizes["real"], sizes["ai"])
    if fewest < 2:
        raise ModelError("a class of one image cannot be calibrated on")
    count = min(_FOLDS, fewest)
    real, ai = ("image" if owners[of] == 1 else "owner" for of in ("real", "ai"))
    return folds(by_image, count), f"{count}: photographs by {real}, AI images by {ai}"
