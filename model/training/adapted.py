"""The tower that heads are fitted to, and what it gives: as it is, a checkpoint's, or distilled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from model.checkpoint import Checkpoint
from model.data.manifest import Row
from model.errors import ModelError
from model.hardware import Runtime
from model.tower.adapters import Deltas, merge_lora
from model.tower.sources import Backbone, load_backbone, tensor_digest
from model.tower.tokens import TowerSpec
from model.training import lora
from model.training.distil import DistilOptions, distil
from model.training.features import Features, tower_features
from model.training.options import TrainOptions


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
    merge_lora(tower.visual, adapted.deltas)
    return replace(tower, sha256=tensor_digest(tower.visual.state_dict()))


def frozen_features(
    rows: Sequence[Row],
    tower: Backbone,
    spec: TowerSpec,
    options: TrainOptions,
    cache: Path,
    runtime: Runtime,
) -> Features:
    """What of the tower needs no gradient, by how it is trained.

    Args:
        rows: the images.
        tower: the whole one; a copy of it runs.
        spec: what is read of it.
        options: what is trained.
        cache: see `tower_features`.
        runtime: see `tower_features`.

    Raises:
        ModelError: as `tower_features`.
    """
    frozen = options.frozen if options.lora is not None else None
    if options.distil is not None:  # the whole tower's tokens are what the pooled one learns
        frozen, spec = spec.pooled_after, replace(spec, pooled_after=0)
    return tower_features(
        rows,
        tower,
        options.views,
        options.kinds,
        options.augmentation,
        cache,
        spec=spec,
        runtime=runtime,
        frozen=frozen,
        pool_frozen=options.distil is not None,
    )


def distilled(
    tower: Backbone,
    features: Features,
    spec: TowerSpec,
    options: DistilOptions,
    runtime: Runtime,
    *,
    accelerator: Accelerator,
    run: Path | None,
) -> Deltas:
    """Adapt the blocks above the pooled tokens; tower and features become the adapted ones.

    Args:
        tower: changed in place.
        features: by `frozen_features`; their tokens are changed in place.
        spec: what is read of the tower.
        options: see `DistilOptions`.
        runtime: where and how the adapted blocks run.
        accelerator: device and processes.
        run: folder of the resumable state, in a folder `distil` of its own.

    Returns:
        What was added to the tower.

    Raises:
        ModelError: as `distil`.
    """
    assert features.hidden is not None  # noqa: S101  (narrows the type)
    visual = load_backbone(tower.name, depth=spec.depth).visual.to(runtime.dtype)
    above = tuple(block for block in spec.reads if block > spec.pooled_after)
    places = [block - 1 for block in above]
    features.tokens[:, places] = distil(
        visual,
        features.hidden,
        features.tokens[:, places],
        replace(spec, reads=above),
        options,
        accelerator=accelerator,
        run=run / "distil" if run else None,
    )
    deltas = lora.deltas(visual.cpu())
    merge_lora(tower.visual, deltas)
    accelerator.free_memory()
    return deltas
