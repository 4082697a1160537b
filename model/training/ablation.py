"""What each design choice is worth on left-out groups: one command, one table."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from pydantic import BaseModel

from model.errors import ModelError
from model.evaluation.metrics import auc, bootstrap, recall_at_fpr
from model.nullspace import StoredProjector, projector_of_texts
from model.patches import PatchRule
from model.training.manifest import Row, digest
from model.training.options import TrainOptions
from model.training.pipeline import CONDITIONS, Experiment, HeldOut

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

RANKS = (0, 20, 64, 100, 200)
WINDOWS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        section: what is compared.
        name: the choice.
        options: how it is trained.
        rank: text directions removed.
        views: canvases of an image that are looked at; None: all.
    """

    section: str
    name: str
    options: TrainOptions
    rank: int
    views: int | None = None


def variants(base: TrainOptions, rank: int) -> Iterator[Variant]:
    """Every choice, each a single change of `base` with a frozen tower, its tokens not pooled.

    Inputs are compared on one canvas an image, all else on what `base` cuts.

    Args:
        base: the options that are varied.
        rank: of the null space where it is not itself compared.

    Raises:
        ModelError: `base` fits no head to cached features.
    """
    head = base.head
    if head is None:
        raise ModelError("heads on cached features are compared; live, or head = null, trains none")

    whole = _changed(base.network, pooled_after=0)

    def options(**changes: Any) -> TrainOptions:
        return _changed(base, **{"network": whole, "distil": None, "lora": None} | changes)

    def network(**changes: Any) -> TrainOptions:
        return options(network=_changed(whole, **changes))

    def cut(rule: PatchRule) -> TrainOptions:
        return network(patches=rule)

    yield Variant("input", "whole image, resized", cut(PatchRule(whole=True)), rank)
    yield Variant("input", "native centre crop", cut(PatchRule(candidates=1)), rank)
    for size in (32, 56, 112, 224):
        rule = PatchRule(patch_size=size, high_share=1.0 if size == 224 else 0.5)
        yield Variant("input", f"selected patches, {size} px", cut(rule), rank)

    for square in (False, True):
        several = cut(PatchRule(canvases=max(WINDOWS) + square, high_share=1.0, whole=square))
        for count in WINDOWS:
            name = f"{'the whole image and ' * square}{count} native"
            yield Variant("canvases averaged", name, several, rank, count + square)

    if base.network.patches.whole:
        for share in (0.5, 0.75, 1.0):
            name = "share of the whole image"
            yield Variant(name, f"{share}", network(whole_share=share), rank)

    for read, features, blocks in (
        ("joint space", "joint", ()),
        ("block 12", "blocks", (12,)),
    ):
        yield Variant("last block", read, network(features=features, blocks=blocks), rank)

    for first, last in ((8, 8), (6, 9), (4, 10), (4, 12), (6, 12), (8, 12)):
        middle = tuple(range(first, last + 1))
        name = ", ".join(str(block) for block in middle)
        yield Variant("blocks read", name, network(features="blocks", blocks=middle), rank)

    for removed in RANKS:
        yield Variant("null space", f"{removed} directions removed", options(), removed)

    for share in (1.0, 0.5, 0.2):
        name = "BCE" if share == 1 else f"{1 - share:.1f} SupCon + {share:.1f} BCE"
        yield Variant("loss", name, options(head=_changed(head, bce_share=share)), rank)

    for shares, name in (
        ((1.0, 0.0, 0.0), "clean"),
        ((1.0, 1.0, 0.0), "clean and equalised"),
        ((0.0, 0.0, 1.0), "degraded"),
        (base.shares, "all, as shipped"),
    ):
        yield Variant("training copies", name, options(shares=shares), rank)

    if base.network.pooled_after:
        name = f"after block {base.network.pooled_after}"
        yield Variant("pooled tokens", "none", options(), rank)
        yield Variant("pooled tokens", name, options(network=base.network), rank)
        if base.distil is not None:
            pooled = options(network=base.network, distil=base.distil)
            yield Variant("pooled tokens", f"{name}, distilled", pooled, rank)

    if base.lora is not None:
        yield Variant("tower", "frozen", options(), rank)
        yield Variant("tower", f"LoRA on blocks {base.lora.blocks}", base, rank)


def _changed(model: Model, **changes: Any) -> Model:
    """A changed copy, validated, as `model_copy` is not: what contradicts itself trains nothing."""
    return model.model_validate(model.model_dump() | changes)


def ablate(
    rows: Sequence[Row],
    texts: Sequence[Path],
    base: TrainOptions,
    to: Path,
    *,
    command: str,
    cache: Path,
    dtype: torch.dtype,
    engine: str,
    accelerator: Accelerator,
    only: Sequence[str] | None = None,
    rank: int = 64,
) -> str:
    """Train every variant with each fold's groups left out; write ablation.md and ablation.json.

    Args:
        rows: the images.
        texts: sources of V.
        base: see `variants`.
        to: folder of the results.
        command: what was run, for the record.
        cache: folder of computed features.
        dtype: of the tower's weights.
        engine: what computes the frozen tower's features; where adapters are fitted it is torch.
        accelerator: device and processes.
        only: sections to run; None: all.
        rank: text directions removed.

    Returns:
        The table, Markdown.

    Raises:
        ModelError: as `variants`, or as `Experiment`.
    """
    found: list[dict[str, Any]] = []
    for variant in variants(base, rank):
        if only is not None and variant.section not in only:
            continue
        config = variant.options.network
        projector: StoredProjector = projector_of_texts(
            texts, backbone=config.backbone, space=config.features, rank=variant.rank
        )
        adapted = variant.options.lora or variant.options.distil
        experiment = Experiment(
            rows, projector, variant.options, cache=cache, dtype=dtype, accelerator=accelerator,
            engine="torch" if adapted else engine, views=variant.views,
        )  # fmt: skip
        left_out = experiment.held_out()
        figures = {name: _figures(rows, left_out[name]) for name in CONDITIONS}
        found.append({"section": variant.section, "name": variant.name, **figures})
        log.info("%s, %s: AUC %s", variant.section, variant.name,
                 {name: round(f["auc"], 4) for name, f in figures.items()})  # fmt: skip
    head = (
        f"{len(rows)} images, {base.measured} of {base.folds} folds of left-out groups; AUC with "
        "95 % intervals over whole generators and repositories of photographs, and recall at 1 % "
        "false positives.\n\n"
    )
    table = head + _table(found)
    to.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "data_sha256": digest(rows), "rows": found}
    (to / "ablation.json").write_text(json.dumps(record, indent=1) + "\n")
    (to / "ablation.md").write_text(table)
    return table


def _figures(rows: Sequence[Row], part: HeldOut) -> dict[str, Any]:
    units = [rows[i].unit for i in part.row]
    return {
        "auc": auc(part.labels, part.logits),
        "auc_95": bootstrap(part.labels, part.logits, auc, units=units),
        "recall_at_1_percent_fpr": recall_at_fpr(part.labels, part.logits, 0.01),
    }


def _table(found: Sequence[dict[str, Any]]) -> str:
    names = list(CONDITIONS)
    lines = [
        "| | | " + " | ".join(f"{n} AUC | recall" for n in names) + " |",
        "|---|---|" + "---|---|" * len(names),
    ]
    for row in found:
        cells = []
        for name in names:
            f = row[name]
            low, high = f["auc_95"]
            cells += [
                f"{f['auc']:.3f} ({low:.3f}-{high:.3f})",
                f"{f['recall_at_1_percent_fpr']:.2f}",
            ]
        lines.append(f"| {row['section']} | {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
