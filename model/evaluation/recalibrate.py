"""Another calibration and other thresholds for the same network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import KEY, Calibration, Metadata, Thresholds, read_checkpoint
from model.detector import Detector
from model.errors import ModelError
from model.evaluation.evaluate import Scored, evaluate
from model.evaluation.figures import overall
from model.tensorfile import write_tensors
from model.training.calibrate import calibrate
from model.training.manifest import Row, digest, trained_on


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
    """Write a checkpoint's tensors with a calibration and thresholds fitted to other images.

    The images' clean and equalised copies are scored, and the thresholds hold for the worse of the
    two. `evaluation` is replaced by the figures of these very images: what it said before held for
    the former thresholds.

    Args:
        checkpoint: the file that `detector` was loaded from.
        to: the file to write; may be the same.
        rows: the images, none of them trained on.
        detector: gives the logits.
        data: the data set and split, in words.
        accused: largest share of photographs that may be called `ai_generated`.
        missed: largest share of AI images that may be called `real`.
        progress: show a bar on standard error.

    Returns:
        The metadata written.

    Raises:
        ModelError: the images were trained on, a class is absent, a share is not between 0 and 1,
            the logits do not tell the classes apart, or `to` cannot be written.
    """
    stored = read_checkpoint(checkpoint)
    if trained_on(stored.metadata, rows):
        raise ModelError("the checkpoint was trained on these images; calibrate on others")
    for name, share in (("accused", accused), ("missed", missed)):
        if not 0 < share < 1:
            raise ModelError(f"{name} is {share}; it must be between 0 and 1")
    scored = evaluate(rows, detector, conditions=("clean", "equalised"), progress=progress)
    for name, part in scored.items():
        if not 0 < part.labels.sum() < len(part.labels):
            raise ModelError(f"{name}: images of one class alone could be scored")
    calibration, cuts = calibrate(
        [(part.labels, part.logits) for part in scored.values()],
        f"{data} ({len(rows)} images, list sha256 {digest(rows)[:12]}), "
        f"{' and '.join(scored)} copies",
        accused=accused,
        missed=missed,
    )
    metadata = stored.metadata.model_copy(
        update={
            "calibration": calibration,
            "thresholds": cuts,
            "evaluation": {
                "calibrated_on": {
                    name: overall(_rescored(part, calibration, cuts))
                    for name, part in scored.items()
                }
            },
        }
    )
    try:
        write_tensors(to, stored.tensors, KEY, metadata)
    except OSError as error:
        raise ModelError(f"no checkpoint can be written to {to}: {error.strerror}") from None
    return metadata


def _rescored(part: Scored, calibration: Calibration, cuts: Thresholds) -> Scored:
    scores = calibration.scores(torch.from_numpy(part.logits)).numpy()
    verdicts = [cuts.verdict(score) for score in scores.tolist()]
    return dataclasses.replace(part, scores=scores, verdicts=verdicts)
