"""The tower that heads are fitted to, and what it gives: as it is, a checkpoint's, or distilled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from model.checkpoint import Checkpoint
from model.data.copies import Copy
from model.data.manifest import Row
from model.errors import ModelError
from model.hardware import Runtime
from model.tower.adapters import Deltas, merge_lora
from model.tower.sources import Backbone, load_backbone, tensor_digest
from model.tower.tokens import TowerSpec
from model.training import lora
from model.training.distil import distil
from model.training.features import Features, tower_features
from model.training.options import TrainOptions
from model.training.trainee import TensorSource


def adopt(tower: Backbone, adapted: Checkpoint, options: TrainOptions) -> Backbone:
    """Merge a checkpoint's adapters into the tower, which then has a digest of its own.

    Args:
        tower: changed in place.
        adapted: the checkpoint.
        options: what heads are to be fitted by.

    Raises:
        ModelError: it is of another tower, or adapters are to be fitted.
    """
    ours, theirs = options.network, adapted.metadata.network
    if options.distil is not None or options.lora is not None:
        raise ModelError("an adapted tower is taken as it is: no adapters are fitted to it")
    if (ours.backbone, ours.pooled_after) != (theirs.backbone, theirs.pooled_after):
        raise ModelError(
            f"the adapted tower is {theirs.backbone}, pooled after block {theirs.pooled_after};"
            f" the network's is {ours.backbone}, pooled after {ours.pooled_after}"
        )
    return _merged(tower, adapted.deltas)


def frozen_features(
    rows: Sequence[Row],
    tower: Backbone,
    spec: TowerSpec,
    options: TrainOptions,
    cache: Path,
    runtime: Runtime,
) -> Features:
    """What of the tower needs no gradient: its tokens, and where it learns, what adapters read.

    Args:
        rows: the images.
        tower: a copy of it runs.
        spec: what is read of it.
        options: what is trained.
        cache: see `tower_features`.
        runtime: see `tower_features`.

    Raises:
        ModelError: as `tower_features`.
    """
    return tower_features(
        rows,
        tower,
        options.views,
        options.kinds,
        options.augmentation,
        cache,
        spec=spec,
        runtime=runtime,
        frozen=options.frozen if options.lora is not None else None,
    )


def distilled(
    rows: Sequence[Row],
    tower: Backbone,
    spec: TowerSpec,
    options: TrainOptions,
    cache: Path,
    runtime: Runtime,
    *,
    accelerator: Accelerator,
    run: Path | None,
) -> tuple[Backbone, Deltas]:
    """Adapt the blocks above the pooled tokens to what the whole tower gives for the same canvases.

    Args:
        rows: the images, of which some are drawn (`DistilOptions.images`).
        tower: changed in place.
        spec: what is read of the tower.
        options: see `DistilOptions`.
        cache: see `tower_features`.
        runtime: where and how the tower and its adapted blocks run.
        accelerator: device and processes.
        run: folder of the resumable state, in a folder `distil` of its own.

    Returns:
        The adapted tower, with a digest of its own, and what was added to it.

    Raises:
        ModelError: as `tower_features` or `distil`.
    """
    assert options.distil is not None  # noqa: S101  (narrows the type)
    # One process computes, the others read what it wrote.
    with accelerator.main_process_first():
        features = tower_features(
            rows[:: max(1, len(rows) // options.distil.images)],
            tower,
            options.views,
            (Copy.ANY,),
            options.augmentation,
            cache,
            spec=replace(spec, pooled_after=0),
            runtime=runtime,
            frozen=spec.pooled_after,
            pool_frozen=True,
        )
    assert features.hidden is not None  # noqa: S101  (narrows the type)
    visual = load_backbone(tower.name, depth=spec.depth).visual.to(runtime.dtype)
    above = tuple(block for block in spec.reads if block > spec.pooled_after)
    distil(
        visual,
        TensorSource(features.hidden, features.place),
        features.tokens[:, [block - 1 for block in above]],
        replace(spec, reads=above),
        options.distil,
        accelerator=accelerator,
        run=run / "distil" if run else None,
    )
    deltas = lora.deltas(visual.cpu())
    accelerator.free_memory()
    return _merged(tower, deltas), deltas


def _merged(tower: Backbone, deltas: Deltas) -> Backbone:
    """In place, with a digest of its own."""
    merge_lora(tower.visual, deltas)
    return replace(tower, sha256=tensor_digest(tower.visual.state_dict()))
