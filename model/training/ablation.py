"""What each design choice is worth on left-out owners: one command, one table."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from pydantic import BaseModel

from model.data.manifest import Row, digest
from model.errors import ModelError
from model.figures.tables import markdown, percent
from model.hardware import Runtime
from model.nullspace import projector_of_texts
from model.training.experiment import Experiment
from model.training.heldout import RANKING, ranking_figures
from model.training.options import TrainOptions
from model.views.patches import PatchRule

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

RANKS = (0, 20, 64, 100, 200)
WINDOWS = (1, 2, 4)
SHOWN = ("clean", "equalised")  # the table is wide enough; all conditions are in ablation.json


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        section: what is compared.
        name: the choice.
        options: how it is trained.
        rank: text directions removed.
        canvases: of an image, how many are looked at, the first ones; None: all.
    """

    section: str
    name: str
    options: TrainOptions
    rank: int
    canvases: int | None = None


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

    unpooled = _changed(base.network, pooled_after=0)

    def options(**changes: Any) -> TrainOptions:
        return _changed(base, **{"network": unpooled, "distil": None, "lora": None} | changes)

    def network(**changes: Any) -> TrainOptions:
        return options(network=_changed(unpooled, **changes))

    def views(**changes: Any) -> TrainOptions:
        return options(views=_changed(base.views, **changes))

    def patches(**rule: Any) -> TrainOptions:
        return views(whole=False, patches=PatchRule(**rule))

    resized = views(whole=True, patches=PatchRule(canvases=0))
    yield Variant("input", "whole image, resized", resized, rank)
    yield Variant("input", "native centre crop", patches(candidates=1), rank)
    for size in (32, 56, 112, 224):
        chosen = patches(patch_size=size, high_share=1.0 if size == 224 else 0.5)
        yield Variant("input", f"selected patches, {size} px", chosen, rank)

    for whole in (False, True):
        several = views(whole=whole, patches=PatchRule(canvases=max(WINDOWS), high_share=1.0))
        for count in WINDOWS:
            name = f"{'the whole image and ' * whole}{count} native"
            yield Variant("canvases averaged", name, several, rank, count + whole)

    if base.views.whole:
        for share in (0.5, 0.75, 1.0):
            name = "share of the whole image"
            yield Variant(name, f"{share}", views(whole_share=share), rank)

    for read, features, blocks in (("joint space", "joint", ()), ("block 12", "blocks", (12,))):
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
    runtime: Runtime,
    accelerator: Accelerator,
    only: Sequence[str] | None = None,
    rank: int = 64,
) -> str:
    """Train every variant with each fold's owners left out; write ablation.md and ablation.json.

    Args:
        rows: the images.
        texts: sources of V.
        base: see `variants`.
        to: folder of the results.
        command: what was run, for the record.
        cache: folder of computed features.
        runtime: where and how the frozen tower runs; where adapters are fitted, torch runs it.
        accelerator: device and processes.
        only: sections to run; None: all.
        rank: text directions removed.

    Returns:
        The table, Markdown.

    Raises:
        ModelError: as `variants`, or as `Experiment`.
    """
    results: list[dict[str, Any]] = []
    for variant in variants(base, rank):
        if only is not None and variant.section not in only:
            continue
        config = variant.options.network
        projector = projector_of_texts(
            texts, backbone=config.backbone, space=config.features, rank=variant.rank
        )
        adapted = variant.options.lora or variant.options.distil
        left_out = Experiment(
            rows,
            projector,
            variant.options,
            cache=cache,
            runtime=replace(runtime, engine="torch", precision="float") if adapted else runtime,
            accelerator=accelerator,
            canvases=variant.canvases,
        ).held_out()
        figures = {name: ranking_figures(rows, part) for name, part in left_out.items()}
        results.append({"section": variant.section, "name": variant.name, **figures})
        shown = {name: figures[name]["auc"] for name in SHOWN}
        log.info("%s, %s: AUC %s", variant.section, variant.name, shown)
    head = (
        f"{len(rows)} images, {base.measured} of {base.folds} folds of left-out owners; percent, "
        "with 95 % intervals over whole owners.\n\n"
    )
    table = head + _table(results)
    to.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "data_sha256": digest(rows), "rows": results}
    (to / "ablation.json").write_text(json.dumps(record, indent=1) + "\n")
    (to / "ablation.md").write_text(table)
    return table


def _table(results: Sequence[dict[str, Any]]) -> str:
    columns = [(name, metric) for name in SHOWN for metric in RANKING]
    header = ["section", "choice", *(f"{name}: {metric.title}" for name, metric in columns)]
    cells = [
        [
            row["section"],
            row["name"],
            *(percent(row[name][m.key], row[name].get(f"{m.key}_95")) for name, m in columns),
        ]
        for row in results
    ]
    return markdown(header, cells) + "\n"
