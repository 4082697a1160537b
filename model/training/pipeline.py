"""From a manifest to a calibrated checkpoint, with the tower frozen."""

import hashlib
import logging
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model.backbone import Backbone, encode_texts, load_backbone
from model.checkpoint import Metadata, Projector, Training, save_checkpoint
from model.evaluation.metrics import auc, bootstrap, recall_at_fpr
from model.nsnet import Head, NSNet, NSNetConfig
from model.nullspace import PROMPTS, NullSpace, null_space, project, pull_back, read_text_features
from model.patches import PatchRule
from model.training.calibrate import platt, thresholds
from model.training.features import CLEAN, EQUALISED, Features, extract
from model.training.head import HeadOptions, sample_weights, train_head
from model.training.manifest import AI, REAL, Row, digest, folds

log = logging.getLogger(__name__)

Array = NDArray[np.float64]


class TrainOptions(BaseModel):
    """All that decides the checkpoint, next to the images and the texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NSNetConfig
    head: HeadOptions = HeadOptions()
    rank: int = Field(64, ge=0, description="text directions removed")
    prompts: bool = Field(
        False, description="text files hold class names to be put into prompts, not captions"
    )
    cut: PatchRule = Field(
        PatchRule(canvases=2),
        description="how training copies are cut: both extremes of entropy, for variety, whatever "
        "the network reads in service",
    )
    degraded: int = Field(3, ge=0, description="degraded copies per image")
    folds: int = Field(6, ge=2, description="group folds for calibration and held-out figures")
    accused: float = Field(
        0.005, gt=0, lt=1, description="share of held-out photographs that may be accused"
    )
    missed: float = Field(
        0.05, gt=0, lt=1, description="share of held-out AI images that may be called real"
    )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Logits of images whose group was left out, the mean over each image's canvases.

    Attributes:
        row: int64 [n], manifest rows that have the copy.
        logits: float64 [n].
        labels: int64 [n].
    """

    row: NDArray[np.int64]
    logits: Array
    labels: NDArray[np.int64]


def projector(
    config: NSNetConfig, backbone: Backbone, texts: Sequence[Path], rank: int, *, prompts: bool
) -> NullSpace:
    """The null space of the texts, in the space of the network's features."""
    templates = PROMPTS if prompts else None
    V = torch.cat([
        read_text_features(path, lambda lines: encode_texts(lines, backbone.name), templates)
        for path in texts
    ])  # fmt: skip
    if config.features == "blocks":
        V = pull_back(V, backbone.visual.proj.float().cpu())
    return null_space(V, rank=rank)


def network_features(
    config: NSNetConfig, features: Features, proj: Tensor, space: NullSpace
) -> Tensor:
    """What `NSNet.features` would give: float16 [n, F]."""
    if config.features == "blocks":
        f = features.tokens[:, [block - 1 for block in config.blocks]].float()
    else:
        f = torch.nn.functional.normalize(features.tokens[:, -1].float() @ proj, dim=-1)
    return project(f, space.basis).flatten(1).half()


def held_out(
    rows: Sequence[Row], features: Features, x: Tensor, options: TrainOptions
) -> dict[int, HeldOut]:
    """Train one head per fold without the fold's groups; score the fold's clean and equalised."""
    fold = torch.tensor(folds(rows, options.folds))[features.row]
    labels = torch.tensor([row.label for row in rows])[features.row]
    logits = torch.empty(len(x))
    for index in range(options.folds):
        rest = fold != index
        head = fit(rows, features, x, rest, options)
        logits[~rest] = head(x[~rest].float())[0]
        log.info("fold %d of %d", index + 1, options.folds)
    return {
        kind: _per_image(features, logits, labels, features.kind == kind)
        for kind in (CLEAN, EQUALISED)
    }


def fit(
    rows: Sequence[Row], features: Features, x: Tensor, members: Tensor, options: TrainOptions
) -> Head:
    """Train a head on the features that the mask `members` names."""
    row = features.row[members]
    labels = torch.tensor([r.label for r in rows])[row]
    weights = sample_weights(rows, row)
    return train_head(x[members], labels, weights, options.head, hidden=options.network.hidden)


def _per_image(features: Features, logits: Tensor, labels: Tensor, members: Tensor) -> HeldOut:
    row, inverse = torch.unique(features.row[members], return_inverse=True)
    total = torch.zeros(len(row)).index_add_(0, inverse, logits[members])
    label = torch.zeros(len(row), dtype=torch.int64).scatter_(0, inverse, labels[members])
    mean = total / inverse.bincount()
    return HeldOut(row.numpy(), mean.double().numpy(), label.numpy())


def train(
    rows: Sequence[Row],
    texts: Sequence[Path],
    options: TrainOptions,
    out: Path,
    *,
    name: str,
    version: str,
    command: str,
    cache: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Metadata:
    """Train, calibrate and write a checkpoint.

    Args:
        rows: the training images.
        texts: sources of V, see `nullspace.read_text_features`.
        options: see `TrainOptions`.
        out: the checkpoint.
        name: the model's name.
        version: the model's version.
        command: what was run, for the record.
        cache: folder of computed features, reused while images, tower and cut are the same.
        dtype: of the tower while features are computed.
        device: where the tower runs.

    Raises:
        ModelError: with one clear line.
    """
    config = options.network
    backbone = load_backbone(config.backbone)
    space = projector(config, backbone, texts, options.rank, prompts=options.prompts)
    # The whole tower's projection is needed above; only the blocks that are read are run.
    # A copy: the tower changes its type while features are computed.
    proj = backbone.visual.proj.detach().clone()
    features = cached_features(rows, options, backbone, cache, dtype=dtype, device=device)
    x = network_features(config, features, proj, space)

    left_out = held_out(rows, features, x, options)
    calibration = platt(
        np.concatenate([part.labels for part in left_out.values()]),
        np.concatenate([part.logits for part in left_out.values()]),
        f"leave-group-out logits, {options.folds} folds, clean and equalised copies",
    )

    def scores(part: HeldOut) -> Array:
        return calibration.scores(torch.from_numpy(part.logits)).numpy()

    cuts = thresholds(
        [(part.labels, scores(part)) for part in left_out.values()],
        accused=options.accused,
        missed=options.missed,
    )
    head = fit(rows, features, x, torch.ones(len(x), dtype=torch.bool), options)
    network = NSNet(config, backbone.visual, space.basis)
    network.head.load_state_dict(head.state_dict())
    metadata = Metadata(
        format=1,
        name=name,
        version=version,
        network=config,
        backbone_sha256=backbone.sha256,
        projector=Projector(
            rank=space.rank, energy=space.energy, residual=space.residual,
            source=", ".join(path.name for path in texts),
        ),
        calibration=calibration,
        thresholds=cuts,
        training=Training(
            command=command,
            revision=_revision(),
            data_sha256=digest(rows),
            images={k: sum(r.label == v for r in rows) for k, v in (("real", REAL), ("ai", AI))},
            groups={
                k: len({r.group for r in rows if r.label == v})
                for k, v in (("real", REAL), ("ai", AI))
            },
            options=options.model_dump(mode="json"),
        ),
        evaluation={
            "leave_group_out": {
                condition: figures(rows, part, scores(part), cuts.ai_above)
                for condition, part in zip(("clean", "equalised"), left_out.values(), strict=True)
            }
        },
    )  # fmt: skip
    save_checkpoint(out, network, metadata)
    return metadata


def figures(rows: Sequence[Row], part: HeldOut, scores: Array, ai_above: float) -> dict[str, Any]:
    """What is quoted of held-out scores: AUC with a group-bootstrap interval, recalls, mistakes."""
    labels = part.labels
    groups = [rows[i].group for i in part.row]
    return {
        "images": dict(Counter("ai" if label else "real" for label in labels.tolist())),
        "auc": round(auc(labels, scores), 4),
        "auc_95": [round(v, 4) for v in bootstrap(labels, scores, auc, groups=groups)],
        "recall_at_1_percent_fpr": round(recall_at_fpr(labels, scores, 0.01), 4),
        "recall_at_3_percent_fpr": round(recall_at_fpr(labels, scores, 0.03), 4),
        "real_called_ai": round(float((scores[labels == REAL] >= ai_above).mean()), 4),
        "ai_called_ai": round(float((scores[labels == AI] >= ai_above).mean()), 4),
    }


def cached_features(
    rows: Sequence[Row],
    options: TrainOptions,
    backbone: Backbone,
    cache: Path,
    *,
    dtype: torch.dtype,
    device: str,
) -> Features:
    """Compute the features, or read them back where nothing that decides them has changed."""
    config = options.network
    key = f"{digest(rows)}{backbone.sha256}{options.cut!r}{options.degraded}{dtype}"
    path = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    depth = config.depth or len(backbone.visual.transformer.resblocks)
    if path.exists() and (found := Features.load(path)).tokens.shape[1] >= depth:
        return found
    blocks = backbone.visual.transformer.resblocks
    backbone.visual.transformer.resblocks = blocks[:depth]
    features = extract(
        rows, backbone, options.cut, degraded=options.degraded, dtype=dtype, device=device
    )
    features.save(path)
    return features


def _revision() -> str:
    """The code's git revision, marked where it has uncommitted changes; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True,  # noqa: S603
                              cwd=Path(__file__).parent)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
