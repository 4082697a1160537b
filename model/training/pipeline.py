"""From images and a projector to a checkpoint with its verdict rules."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from model.checkpoint import Checkpoint, Metadata, Projector, Training, save_checkpoint
from model.data.copies import CLEAN, PROMISED, canvases_ahead
from model.data.degrade import Augmentation
from model.data.manifest import CLASSES, Row, digest
from model.engines.ranges import activation_ranges
from model.errors import ModelError
from model.figures.crossfit import rules_of
from model.figures.cuts import cuts
from model.hardware import Runtime
from model.nullspace import StoredProjector
from model.tower.adapters import Deltas, merge_lora
from model.tower.sources import load_backbone
from model.training import lora
from model.training.experiment import Experiment
from model.training.heldout import held_out_figures
from model.training.options import TrainOptions
from model.training.record import claim, revision, write_json, write_left_out

log = logging.getLogger(__name__)

_RANGED = 32  # images whose activations give the ranges for int8


def train(
    rows: Sequence[Row],
    projector: StoredProjector,
    options: TrainOptions,
    out: Path,
    *,
    name: str,
    version: str,
    command: str,
    cache: Path,
    run: Path | None = None,
    runtime: Runtime | None = None,
    accelerator: Accelerator | None = None,
    adapted: Checkpoint | None = None,
) -> Metadata:
    """Train, choose the rules of verdicts on left-out groups, and write a checkpoint.

    Args:
        rows: the training images.
        projector: see `Experiment`.
        options: see `TrainOptions`.
        out: the checkpoint.
        name: the model's name.
        version: the model's version.
        command: what was run, for the record.
        cache: folder of computed features, reused while images, tower and views are the same
            (`tower_features`).
        run: folder for configuration, loss curves, TensorBoard, figures and the states from which
            a killed run goes on.
        runtime: where and how the frozen tower runs, on the accelerator's device; torch in float32
            without.
        accelerator: device and processes; one CPU process without.
        adapted: a checkpoint whose adapted tower is taken instead of distilling one.

    Returns:
        What the checkpoint says of itself.

    Raises:
        ModelError: a name or version that metadata do not take, `run` is another run's folder, as
            `Experiment`, its `fit` and `held_out`, the left-out logits are no better than chance,
            or `out` cannot be written.
    """
    _check_field("name", name)
    _check_field("version", version)
    accelerator = accelerator or Accelerator(cpu=True)
    runtime = runtime or Runtime.resolve(str(accelerator.device), "float32", "torch")
    if adapted is not None:
        options = options.model_copy(update={"distil": None})
    record: dict[str, Any] = {
        "command": command,
        "revision": revision(),
        "data_sha256": digest(rows),
        "options": options.model_dump(mode="json"),
        "tower_sha256": adapted.sha256 if adapted else None,
    }
    if run is not None and accelerator.is_main_process:
        claim(run, record, projector, runtime)
    experiment = Experiment(
        rows,
        projector,
        options,
        cache=cache,
        runtime=runtime,
        accelerator=accelerator,
        run=run,
        adapted=adapted,
    )
    left_out = experiment.held_out(run)
    reduced = left_out.pop("reduced", None)
    verdicts = rules_of(
        left_out,
        f"logits of left-out owners, {options.measured} of {options.folds} folds, "
        f"{', '.join(PROMISED)} copies",
        options.promise,
        reduced=reduced,
    )
    everything = torch.ones(len(rows), dtype=torch.bool)
    network = experiment.fit(everything, run / "all" if run else None, progress=True)
    metadata = Metadata(
        name=name,
        version=version,
        network=options.network,
        views=options.views,
        backbone_sha256=experiment.backbone_sha256,
        projector=_projector(projector),
        verdicts=verdicts,
        training=_training(rows, record),
        evaluation={
            "left_out_owners": {
                **held_out_figures(
                    rows, experiment.fold.tolist(), left_out, options, reduced=reduced
                ),
                "cuts": cuts(left_out, verdicts),
            }
        },
    )
    if accelerator.is_main_process:
        deltas = lora.deltas(network.visual) if options.lora else experiment.deltas
        save_checkpoint(out, network, metadata, deltas, _ranges(rows, options, deltas))
        if run is not None:
            write_json(run / "metrics.json", metadata.evaluation)
            write_left_out(run / "left-out.csv", rows, left_out, verdicts)
    return metadata


def _check_field(field: str, value: str) -> None:
    """Refuse what the checkpoint's metadata would not take, before hours of training."""
    try:
        TypeAdapter(Annotated[str, Metadata.model_fields[field]]).validate_python(value)
    except ValidationError as error:
        raise ModelError(f"the {field} {value!r}: {error.errors()[0]['msg']}") from None


def _projector(projector: StoredProjector) -> Projector:
    space = projector.null_space
    return Projector(
        rank=space.rank,
        energy=space.energy,
        residual=space.residual,
        source=", ".join(projector.sources),
    )


def _training(rows: Sequence[Row], record: dict[str, Any]) -> Training:
    classes = {name: [row for row in rows if row.label == label] for name, label in CLASSES.items()}
    return Training(
        **record,
        images={name: len(of) for name, of in classes.items()},
        groups={name: len({row.group for row in of}) for name, of in classes.items()},
    )


def _ranges(rows: Sequence[Row], options: TrainOptions, deltas: Deltas) -> dict[str, Tensor]:
    """Ranges of the adapted tower's activations, on images of all parts of the list.

    None of them may be there any more where all else came from the cache: then there are no ranges.
    """
    few = rows[:: max(1, len(rows) // _RANGED)]
    images = canvases_ahead(few, options.views, (CLEAN,), Augmentation())
    canvases = [canvas.pixels for of in images for canvas in of or ()]
    if not canvases:
        log.warning("no image could be read for the ranges of int8: the checkpoint has none")
        return {}
    config = options.network
    visual = load_backbone(config.backbone, depth=config.depth).visual.float()
    merge_lora(visual, deltas)
    return activation_ranges(visual, torch.stack(canvases), config.spec(visual))
