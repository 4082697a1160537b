"""Images, tower and projector, from which networks are fitted, and scored on what they left out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from model.checkpoint import Checkpoint
from model.data.copies import SCORED, CanvasSource, Copy, usable
from model.data.manifest import Row, folds
from model.errors import ModelError
from model.figures.metrics import auc
from model.hardware import Runtime
from model.network import NSNet
from model.nullspace import StoredProjector
from model.tower.adapters import Deltas
from model.tower.sources import load_backbone
from model.training import lora
from model.training.adapted import adopt, distilled, frozen_features
from model.training.features import Features
from model.training.options import TrainOptions
from model.training.sampling import sample_weights
from model.training.scoring import Scored, logits_by_image, logits_of_images, logits_of_samples
from model.training.trainee import Source, TensorSource, Trainee, standardise
from model.training.trainer import fit
from model.verdicts import Logits

log = logging.getLogger(__name__)

_BATCH = 16
_STANDARDISED = 256  # samples from which a head without cached features has its statistics


class Experiment:
    """Images, tower and projector, from which networks are fitted and scored.

    Args:
        rows: the images.
        projector: of the network's backbone and space.
        options: see `TrainOptions`.
        cache: folder of computed features.
        runtime: where and how the frozen tower runs, on the accelerator's device; adapters' weights
            and the head are float32.
        accelerator: device and processes.
        canvases: of an image, how many are looked at in scoring, the first ones; None: all.
        run: folder of the resumable state of what is fitted here, for all networks.
        adapted: a checkpoint whose adapted tower is taken as it is.

    Attributes:
        fold: int64 [rows], the fold of each image.
        deltas: what is added to the tower of all networks.
        backbone_sha256: digest of the tower's weights as they were loaded.

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
        runtime: Runtime,
        accelerator: Accelerator,
        canvases: int | None = None,
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
        self.canvases = canvases
        self.labels = torch.tensor([row.label for row in rows])
        self.fold = torch.tensor(folds(rows, options.folds))
        self.deltas: Deltas = {}
        self.features: Features | None = None
        self._basis = projector.null_space.basis
        self._runtime = runtime
        self._accelerator = accelerator
        self._tower = load_backbone(config.backbone)
        self.backbone_sha256 = self._tower.sha256
        if adapted is not None:
            self._tower = adopt(self._tower, adapted, options)
            self.deltas = adapted.deltas
        network = self._network()  # what does not fit the tower is told before any image is read
        if options.live:
            self._usable = usable(rows, options.views)
        else:
            if options.distil is not None:
                self._tower, self.deltas = distilled(
                    rows,
                    self._tower,
                    network.spec,
                    options,
                    cache,
                    runtime,
                    accelerator=accelerator,
                    run=run,
                )
            # One process computes, the others read what it wrote.
            with accelerator.main_process_first():
                self.features = frozen_features(
                    rows, self._tower, network.spec, options, cache, runtime
                )
            self._usable = torch.zeros(len(rows), dtype=torch.bool)
            self._usable[self.features.row] = True
            tokens = self.features.tokens[:, [b - 1 for b in network.spec.reads]]
            parts = torch.split(tokens, 1024)
            self._x = torch.cat([network.decouple(part).half() for part in parts])

    def _network(self) -> NSNet:
        """A new network; heads share one tower, adapters each change one of their own."""
        config, tower = self.options.network, self._tower
        if self.options.lora is not None:
            tower = load_backbone(config.backbone)
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
        network = self._network()
        included = included & self._usable
        if self.options.head is not None:
            self._fit_head(network, included, run, progress=progress)
        if self.options.lora is not None:
            self._fit_adapters(network, included, self.options.lora, run, progress=progress)
        self._accelerator.free_memory()  # it would keep every fold's network
        return network.eval()

    def _fit_head(
        self, network: NSNet, included: Tensor, run: Path | None, *, progress: bool
    ) -> None:
        """To what the frozen tower gave."""
        options = self.options.head
        assert options is not None  # noqa: S101  (narrows the type)
        members, labels, weights = self._cached(included)
        standardise(network.head, self._x[members])
        fit(
            Trainee(network, options.dropout, "features"),
            TensorSource(self._x, members),
            labels,
            weights,
            options,
            accelerator=self._accelerator,
            run=run / "head" if run else None,
            progress="head" if progress else None,
        )

    def _fit_adapters(
        self,
        network: NSNet,
        included: Tensor,
        adapters: lora.LoraOptions,
        run: Path | None,
        *,
        progress: bool,
    ) -> None:
        """Together with the head, to what the frozen blocks gave or to fresh copies."""
        options = self.options.lora_fit
        # The adapters' start does not depend on whether the head was fitted or read back.
        torch.manual_seed(options.seed)
        lora.attach(network.visual.to(self._runtime.dtype), adapters)
        if self.features is not None:
            assert self.features.hidden is not None  # noqa: S101  (narrows the type)
            members, labels, weights = self._cached(included)
            source: Source = TensorSource(self.features.hidden, self.features.place[members])
            trainee = Trainee(network, options.dropout, "hidden", self.options.frozen)
        else:
            members = included.nonzero().squeeze(1)
            labels, weights = self.labels[members], sample_weights(self.rows, members)
            weights = weights / weights.sum()
            source = self._fresh(members)
            trainee = Trainee(network, options.dropout, "canvases")
        if self.options.head is None:
            self._standardise(trainee, source)
        fit(
            trainee,
            source,
            labels,
            weights,
            options,
            accelerator=self._accelerator,
            save_every=20,
            run=run / "lora" if run else None,
            progress="lora" if progress else None,
        )

    def _cached(self, included: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places among the features, labels, and how often each is drawn."""
        assert self.features is not None  # noqa: S101  (narrows the type)
        members = included[self.features.row].nonzero().squeeze(1)
        rows, kinds = self.features.row[members], self.features.kind[members]
        clean, equalised, degraded = self.options.shares
        shares = torch.zeros(len(Copy), dtype=torch.float64)
        shares[[Copy.CLEAN, Copy.CORNER]] = clean / 2
        shares[Copy.EQUALISED], shares[Copy.DEGRADED] = equalised, degraded
        weights = sample_weights(self.rows, rows)
        weights = weights * (shares / kinds.bincount(minlength=len(Copy)).clamp_min(1))[kinds]
        return members, self.labels[rows], weights / weights.sum()

    def _fresh(self, members: Tensor) -> CanvasSource:
        """Copies drawn anew, of the kinds that are made, by their shares."""
        options = self.options
        shares = [s * (Copy(kind) in options.kinds) for kind, s in enumerate(options.shares)]
        rows = [self.rows[index] for index in members.tolist()]
        return CanvasSource(rows, options.views, shares, options.augmentation)

    def _standardise(self, trainee: Trainee, source: Source) -> None:
        """From a few hundred samples, before the tower has changed."""
        generator = torch.Generator().manual_seed(0)
        members = torch.randperm(len(source), generator=generator)[:_STANDARDISED]
        device = self._accelerator.device
        trainee.eval().to(device)
        with torch.inference_mode():
            parts = [
                trainee.features(source.read(part, step).to(device))
                for step, part in enumerate(torch.split(members, _BATCH))
            ]
        standardise(trainee.network.head, torch.cat(parts).cpu())

    def score(self, network: NSNet, included: Tensor) -> dict[str, Logits]:
        """Logits of the `SCORED` copies of the rows of the mask `included`, bool [rows]."""
        if self.features is None:
            scored = self._score_live(network, included)
        else:
            scored = self._score_cached(network, self.features, included)
        skipped = int((included & ~self._usable).sum())
        return {
            name: logits_by_image(
                part, self.rows, self.options.views, canvases=self.canvases, skipped=skipped
            )
            for name, kind in SCORED.items()
            if len((part := scored.of(kind)).row)
        }

    def _score_cached(self, network: NSNet, features: Features, included: Tensor) -> Scored:
        scored = torch.isin(features.kind, torch.tensor([int(kind) for kind in SCORED.values()]))
        members = (included[features.row] & scored).nonzero().squeeze(1)
        if self.options.lora is None:
            trainee = Trainee(network, 0.0, "features")
            samples, places, batch = self._x, members, 1024
        else:
            assert features.hidden is not None  # noqa: S101  (narrows the type)
            trainee = Trainee(network, 0.0, "hidden", self.options.frozen)
            samples, places, batch = features.hidden, features.place[members], _BATCH
        logits = logits_of_samples(trainee, samples, places, batch, self._accelerator.device)
        return Scored(
            features.row[members], features.kind[members], features.quality[members], logits
        )

    def _score_live(self, network: NSNet, included: Tensor) -> Scored:
        """`_score_cached`, through the whole tower."""
        members = (included & self._usable).nonzero().squeeze(1)
        scored = logits_of_images(
            Trainee(network, 0.0, "canvases"),
            [self.rows[index] for index in members.tolist()],
            self.options.views,
            self.options.augmentation,
            self._accelerator.device,
        )
        return replace(scored, row=members[scored.row])

    def held_out(self, run: Path | None = None) -> dict[str, Logits]:
        """Train once per fold without its owners, and score their images' `SCORED` copies.

        Args:
            run: folder of the folds' resumable states.

        Raises:
            ModelError: too few owners for the folds, or as `fit`.
        """
        count = self.options.folds
        measured = range(self.options.measured)
        for index in measured:
            for part in (self.fold == index, self.fold != index):
                if not self.labels[part & self._usable].bincount(minlength=2).all():
                    raise ModelError(
                        f"{count} folds need both classes inside and outside of each: at least "
                        f"{count} owners of each class, or fewer folds"
                    )
        scored: list[dict[str, Logits]] = []
        for index in measured:
            network = self.fit(self.fold != index, run / f"fold-{index}" if run else None)
            scored.append(self.score(network, self.fold == index))
            shown = [f"{_auc(part):.3f} {name}" for name, part in scored[-1].items()]
            log.info("fold %d of %d: AUC %s", index + 1, count, ", ".join(shown))
        return {
            name: Logits.joined([of[name] for of in scored if name in of])
            for name in SCORED
            if any(name in of for of in scored)
        }


def _auc(part: Logits) -> float:
    """Of AI images against photographs."""
    return auc(part.labels[~part.made], part.all[~part.made])
