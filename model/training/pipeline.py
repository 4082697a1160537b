"""From images and a projector to a calibrated checkpoint."""

import hashlib
import json
import logging
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from model.backbone import load_backbone, tensor_digest
from model.checkpoint import Checkpoint, Metadata, Projector, Training, save_checkpoint
from model.errors import ModelError
from model.evaluation.metrics import auc, bootstrap, recall_at_fpr
from model.nsnet import NSNet, NSNetConfig, merge_lora
from model.nullspace import StoredProjector
from model.ranges import activation_ranges
from model.training import lora
from model.training.augment import Augmentation
from model.training.calibrate import calibrate
from model.training.copies import (
    CLEAN,
    DEGRADED,
    EQUALISED,
    CanvasSource,
    canvases_ahead,
    usable,
)
from model.training.distil import DistilOptions, distil
from model.training.features import Features, tower_features
from model.training.manifest import AI, REAL, Row, digest, folds
from model.training.options import TrainOptions
from model.training.sampling import sample_weights
from model.training.trainer import TensorSource, Trainee, fit, standardise

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

CONDITIONS = {"clean": CLEAN, "equalised": EQUALISED}
_BATCH = 16
_RANGED = 32  # images whose activations give the ranges for int8


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Logits of images whose group was left out, each combined from its canvases'.

    Attributes:
        row: int64 [n], manifest rows that have the copy.
        logits: float64 [n].
        labels: int64 [n].
    """

    row: NDArray[np.int64]
    logits: Array
    labels: NDArray[np.int64]


class Experiment:
    """Images, tower and projector, from which networks are fitted and scored.

    Args:
        rows: the images.
        projector: of the network's backbone and space.
        options: see `TrainOptions`.
        cache: folder of computed features.
        dtype: of the tower's frozen weights and its arithmetic; adapters' weights and the head
            are float32.
        accelerator: device and processes.
        engine: what computes the frozen tower's features.
        views: canvases of an image that are looked at in scoring, the first ones; None: all.
        run: folder of the resumable state of what is fitted here, for all networks.
        adapted: a checkpoint whose adapted tower is taken as it is.

    Attributes:
        deltas: what is added to the tower of all networks, as `nsnet.merge_lora` takes it.

    Raises:
        ModelError: a projector of another backbone or space, a checkpoint of another tower, or no
            image can be read.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        projector: StoredProjector,
        options: TrainOptions,
        *,
        cache: Path,
        dtype: torch.dtype,
        accelerator: Accelerator,
        engine: str = "torch",
        views: int | None = None,
        run: Path | None = None,
        adapted: Checkpoint | None = None,
    ) -> None:
        config = options.network
        if (projector.backbone, projector.space) != (config.backbone, config.features):
            raise ModelError(
                f"the projector is of {projector.backbone}, {projector.space}; the network needs "
                f"{config.backbone}, {config.features}"
            )
        self.rows = rows
        self.options = options
        self.views = views
        self.labels = torch.tensor([row.label for row in rows])
        self._basis = projector.null_space.basis
        self._dtype = dtype
        self._accelerator = accelerator
        self._frozen = min(options.lora.blocks) - 1 if options.lora else 0
        self.deltas: dict[str, tuple[Tensor, Tensor]] = {}
        self.features: Features | None = None
        self._tower = load_backbone(config.backbone, depth=None)
        self.backbone_sha256 = self._tower.sha256
        if adapted is not None:
            self._adopt(adapted)
        network = self._network()
        if options.live:
            self._usable = usable(rows, config.patches)
        else:
            # One process computes, the others read what it wrote.
            distilled = options.distil is not None
            with accelerator.main_process_first():
                self.features = tower_features(
                    rows, self._tower, config.patches, options.kinds, options.augmentation, cache,
                    depth=network.reads[-1],
                    frozen=config.pooled_after if distilled else self._frozen or None,
                    pooled_after=0 if distilled else config.pooled_after, pool_hidden=distilled,
                    dtype=dtype, device=str(accelerator.device), engine=engine,
                )  # fmt: skip
            if options.distil is not None:
                self._distil(self.features, options.distil, run)
            self._usable = torch.zeros(len(rows), dtype=torch.bool)
            self._usable[self.features.row] = True
            tokens = self.features.tokens[:, [b - 1 for b in network.reads]]
            parts = torch.split(tokens, 1024)
            self._x = torch.cat([network.decouple(part).half() for part in parts])

    def _adopt(self, adapted: Checkpoint) -> None:
        """Make the tower that of a checkpoint."""
        ours, theirs = self.options.network, adapted.metadata.network
        if self.options.distil is not None or self.options.lora is not None:
            raise ModelError("an adapted tower is taken as it is: no adapters are fitted to it")
        if (ours.backbone, ours.pooled_after) != (theirs.backbone, theirs.pooled_after):
            raise ModelError(
                f"the adapted tower is {theirs.backbone}, pooled after block {theirs.pooled_after};"
                f" the network's is {ours.backbone}, pooled after {ours.pooled_after}"
            )
        self.deltas = adapted.deltas
        visual = self._tower.visual
        merge_lora(visual, self.deltas)
        self._tower = replace(self._tower, sha256=tensor_digest(visual.state_dict()))

    def _distil(self, features: Features, options: DistilOptions, run: Path | None) -> None:
        """Adapt the blocks above the pooled tokens; tower and features become the adapted ones."""
        config = self.options.network
        assert features.hidden is not None  # noqa: S101  (narrows the type)
        visual = load_backbone(config.backbone, depth=config.depth).visual.to(self._dtype)
        above = [b for b in config.blocks if b > config.pooled_after]
        places = [b - 1 for b in above]
        features.tokens[:, places] = distil(
            visual, features.hidden, features.tokens[:, places], config.pooled_after, above,
            options, accelerator=self._accelerator, run=run / "distil" if run else None,
        )  # fmt: skip
        self.deltas = lora.deltas(visual.cpu())
        merge_lora(self._tower.visual, self.deltas)
        self._accelerator.free_memory()

    def _network(self) -> NSNet:
        """A new network; heads share one tower, adapters each change one of their own."""
        config, tower = self.options.network, self._tower
        if self.options.lora is not None:
            tower = load_backbone(config.backbone, depth=None)
        torch.manual_seed((self.options.head or self.options.lora_fit).seed)
        return NSNet(config, tower.visual, self._basis)

    def fit(self, included: Tensor, run: Path | None = None, *, progress: bool = False) -> NSNet:
        """Train on the rows of the mask `included`, bool [rows].

        Args:
            included: the rows trained on.
            run: folder of the resumable states.
            progress: show a bar.

        Raises:
            ModelError: the loss is not finite, or `run` is another run's.
        """
        options, network = self.options, self._network()
        included = included & self._usable
        common: dict[str, Any] = {"accelerator": self._accelerator}
        if self.features is not None:
            members = included[self.features.row].nonzero().squeeze(1)
            labels, weights = self._drawn(self.features.row[members], self.features.kind[members])
            if options.head is not None:
                x = TensorSource(self._x, members)
                standardise(network.head, self._x[members])
                trainee = Trainee(network, options.head.dropout, "features")
                fit(trainee, x, labels, weights, options.head, **common,
                    run=run / "head" if run else None,
                    progress="head" if progress else None)  # fmt: skip
        if options.lora is not None:
            # The adapters' start does not depend on whether the head was fitted or read back.
            torch.manual_seed(options.lora_fit.seed)
            lora.attach(network.visual.to(self._dtype), options.lora)
            if self.features is not None:
                assert self.features.hidden is not None  # noqa: S101  (narrows the type)
                source: Any = TensorSource(self.features.hidden, members)
                trainee = Trainee(network, options.lora_fit.dropout, "hidden", self._frozen)
            else:
                rows = [row for row, chosen in zip(self.rows, included, strict=True) if chosen]
                rule, how = options.network.patches, options.augmentation
                # As in `_drawn`: a copy that is not made is not drawn.
                shares = [s * (kind in options.kinds) for kind, s in enumerate(options.shares)]
                source = CanvasSource(rows, rule, shares, how)
                labels, weights = self._drawn(included.nonzero().squeeze(1), None)
                trainee = Trainee(network, options.lora_fit.dropout, "canvases")
            if options.head is None:
                self._standardise(trainee, source)
            fit(trainee, source, labels, weights, options.lora_fit, **common, save_every=20,
                run=run / "lora" if run else None,
                progress="lora" if progress else None)  # fmt: skip
        self._accelerator.free_memory()  # it would keep every fold's network
        return network.eval()

    def _drawn(self, rows: Tensor, kinds: Tensor | None) -> tuple[Tensor, Tensor]:
        weights = sample_weights(self.rows, rows)
        if kinds is not None:
            shares = torch.tensor(self.options.shares, dtype=torch.float64)
            weights = weights * (shares / kinds.bincount(minlength=3).clamp_min(1))[kinds]
        return self.labels[rows], weights / weights.sum()

    def _standardise(self, trainee: Trainee, source: Any) -> None:
        """From a few hundred samples, before the tower has changed."""
        count = min(256, len(source))
        members = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:count]
        trainee.eval().to(self._accelerator.device)
        with torch.inference_mode():
            parts = [
                trainee.features(source.read(part, step).to(self._accelerator.device))
                for step, part in enumerate(torch.split(members, _BATCH))
            ]
        standardise(trainee.network.head, torch.cat(parts).cpu())

    def score(self, network: NSNet, included: Tensor) -> dict[str, HeldOut]:
        """Logits of the clean and the equalised copies of the rows of a mask."""
        if self.features is None:
            row, kind, logits = self._score_live(network, included)
        else:
            row, kind = self.features.row, self.features.kind
            members = (included[row] & (kind != DEGRADED)).nonzero().squeeze(1)
            adapted = self.options.lora is not None
            trainee = Trainee(network, 0.0, "hidden" if adapted else "features", self._frozen)
            samples = self.features.hidden if adapted else self._x
            assert samples is not None  # noqa: S101  (narrows the type)
            device = self._accelerator.device
            trainee.eval().to(device)
            with torch.inference_mode():
                logits = torch.cat([
                    trainee(samples[part].float().to(device))[0].cpu()
                    for part in torch.split(members, _BATCH if adapted else 1024)
                ])  # fmt: skip
            row, kind = row[members], kind[members]
        return {
            name: self._per_image(row[kind == k], logits[kind == k])
            for name, k in CONDITIONS.items()
        }

    def _score_live(self, network: NSNet, included: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = (included & self._usable).nonzero().squeeze(1).tolist()
        rows = [self.rows[index] for index in chosen]
        trainee = Trainee(network, 0.0, "canvases").eval().to(self._accelerator.device)
        places, logits = [], []
        kinds, rule = (CLEAN, EQUALISED), self.options.network.patches
        how = self.options.augmentation
        for found in canvases_ahead(rows, rule, kinds, how):
            if found:
                pixels = torch.stack([canvas.pixels for canvas in found])
                with torch.inference_mode():
                    logits.append(trainee(pixels.to(self._accelerator.device))[0].cpu())
                places += [(chosen[canvas.row], canvas.kind) for canvas in found]
        row, kind = torch.tensor(places).T
        return row, kind, torch.cat(logits)

    def _per_image(self, row: Tensor, logits: Tensor) -> HeldOut:
        # An image's canvases follow one another, the highest entropy first.
        unique, counts = torch.unique_consecutive(row, return_counts=True)
        combine = self.options.network.combine
        each = torch.split(logits, counts.tolist())
        found = [combine(of[: self.views].unbind()) for of in each]
        return HeldOut(
            unique.numpy(), torch.stack(found).double().numpy(), self.labels[unique].numpy()
        )

    def held_out(self, run: Path | None = None) -> dict[str, HeldOut]:
        """Train once per fold without its groups, and score them.

        Args:
            run: folder of the folds' resumable states.

        Raises:
            ModelError: too few groups for the folds, or as `fit`.
        """
        count = self.options.folds
        fold = torch.tensor(folds(self.rows, count))
        measured = range(self.options.measured)
        for index in measured:
            for part in (fold == index, fold != index):
                if not self.labels[part & self._usable].bincount(minlength=2).all():
                    raise ModelError(
                        f"{count} folds need both classes inside and outside of each: at least "
                        f"{count} groups of each class, or fewer folds"
                    )
        found: list[dict[str, HeldOut]] = []
        for index in measured:
            network = self.fit(fold != index, run / f"fold-{index}" if run else None)
            found.append(self.score(network, fold == index))
            log.info("fold %d of %d: AUC %s", index + 1, count,
                     ", ".join(f"{auc(h.labels, h.logits):.3f} {name}"
                               for name, h in found[-1].items()))  # fmt: skip
        return {
            name: HeldOut(*(
                np.concatenate([getattr(part[name], field) for part in found])
                for field in ("row", "logits", "labels")
            ))
            for name in CONDITIONS
        }  # fmt: skip


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
    dtype: torch.dtype = torch.float32,
    engine: str = "torch",
    accelerator: Accelerator | None = None,
    adapted: Checkpoint | None = None,
) -> Metadata:
    """Train, calibrate and write a checkpoint.

    Args:
        rows: the training images.
        projector: see `Experiment`.
        options: see `TrainOptions`.
        out: the checkpoint.
        name: the model's name.
        version: the model's version.
        command: what was run, for the record.
        cache: folder of computed features, reused while images, tower and cut are the same
            (`tower_features`).
        run: folder for configuration, loss curves, TensorBoard, figures and the states from which
            a killed run goes on.
        dtype: of the tower's weights.
        engine: what computes the frozen tower's features, see `engines.make_engine`.
        accelerator: device and processes; one CPU process without.
        adapted: a checkpoint whose adapted tower is taken instead of distilling one.

    Raises:
        ModelError: with one clear line.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    if adapted is not None:
        options = options.model_copy(update={"distil": None})
    record = {
        "command": command,
        "revision": _revision(),
        "data_sha256": digest(rows),
        "options": options.model_dump(mode="json"),
        "tower_sha256": adapted.sha256 if adapted else None,
    }
    main = accelerator.is_main_process
    if run is not None and main:
        basis = projector.null_space.basis.contiguous().numpy().tobytes()
        _claim(run, record | {"projector_sha256": hashlib.sha256(basis).hexdigest(),
                              "dtype": str(dtype), "engine": engine})  # fmt: skip
    experiment = Experiment(
        rows, projector, options,
        cache=cache, dtype=dtype, engine=engine, accelerator=accelerator, run=run, adapted=adapted,
    )  # fmt: skip
    left_out = experiment.held_out(run)
    calibration, cuts = calibrate(
        [(part.labels, part.logits) for part in left_out.values()],
        f"leave-group-out logits, {options.measured} of {options.folds} "
        "folds, clean and equalised copies",
        accused=options.accused,
        missed=options.missed,
    )
    network = experiment.fit(
        torch.ones(len(rows), dtype=torch.bool), run / "all" if run else None, progress=True
    )
    space = projector.null_space
    metadata = Metadata(
        format=1,
        name=name,
        version=version,
        network=options.network,
        backbone_sha256=experiment.backbone_sha256,
        projector=Projector(
            rank=space.rank, energy=space.energy, residual=space.residual,
            source=", ".join(projector.sources),
        ),
        calibration=calibration,
        thresholds=cuts,
        training=Training(
            **record,
            images={k: sum(r.label == v for r in rows) for k, v in (("real", REAL), ("ai", AI))},
            groups={
                k: len({r.group for r in rows if r.label == v})
                for k, v in (("real", REAL), ("ai", AI))
            },
        ),
        evaluation={
            "leave_group_out": {
                condition: figures(
                    rows, part, calibration.scores(torch.from_numpy(part.logits)).numpy(),
                    cuts.ai_above,
                )
                for condition, part in left_out.items()
            }
        },
    )  # fmt: skip
    if main:
        deltas = lora.deltas(network.visual) if options.lora else experiment.deltas
        save_checkpoint(out, network, metadata, deltas, _ranges(rows, options.network, deltas))
        if run is not None:
            _write(run / "metrics.json", metadata.evaluation)
    return metadata


def _ranges(
    rows: Sequence[Row], config: NSNetConfig, deltas: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Ranges of the adapted tower's activations, on images of all parts of the list.

    None of them may be there any more where all else came from the cache: then there are no ranges.
    """
    few = rows[:: max(1, len(rows) // _RANGED)]
    found = canvases_ahead(few, config.patches, (CLEAN,), Augmentation())
    canvases = [canvas.pixels for of in found for canvas in of or ()]
    if not canvases:
        log.warning("no image could be read for the ranges of int8: the checkpoint has none")
        return {}
    visual = load_backbone(config.backbone, depth=config.depth).visual.float()
    merge_lora(visual, deltas)
    depth = config.depth or len(visual.transformer.resblocks)
    return activation_ranges(visual, torch.stack(canvases), depth, config.pooled_after)


def figures(rows: Sequence[Row], part: HeldOut, scores: Array, ai_above: float) -> dict[str, Any]:
    """What is quoted of held-out scores: AUC with a bootstrap interval, recalls, mistakes."""
    labels = part.labels
    units = [rows[i].unit for i in part.row]
    return {
        "images": dict(Counter("ai" if label else "real" for label in labels.tolist())),
        "auc": round(auc(labels, scores), 4),
        "auc_95": [round(v, 4) for v in bootstrap(labels, scores, auc, units=units)],
        "recall_at_1_percent_fpr": round(recall_at_fpr(labels, scores, 0.01), 4),
        "recall_at_3_percent_fpr": round(recall_at_fpr(labels, scores, 0.03), 4),
        "real_called_ai": round(float((scores[labels == REAL] >= ai_above).mean()), 4),
        "ai_called_ai": round(float((scores[labels == AI] >= ai_above).mean()), 4),
    }


def _claim(run: Path, config: dict[str, Any]) -> None:
    """Write down what the run is, unless the folder is another one's.

    The states know the options and labels that they were fitted with, not the features.
    """
    path = run / "config.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for key in ("data_sha256", "projector_sha256", "tower_sha256", "options", "dtype", "engine"):
        if found.get(key, config[key]) != config[key]:
            raise ModelError(f"{run} holds a run of other {key}; choose another folder")
    versions = {p: version_of(p) for p in ("torch", "open_clip_torch", "peft", "accelerate")}
    _write(path, config | {"versions": {"python": platform.python_version(), **versions}})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def _revision() -> str:
    """The code's git revision, marked where it has uncommitted changes; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True,  # noqa: S603
                              cwd=Path(__file__).parent)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
