"""`nsnet compare`: what another checkpoint changes, on images of one's own."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.environment import Backbone, BackboneSha256, UsageError, new_text, show

if TYPE_CHECKING:  # commands import what they need when they run
    from model.detector import About
    from model.evaluation.compare import Changes, Comparison, Pair

_AGES = ("old", "new")


def compare(
    old: Annotated[Path, typer.Argument(help="the checkpoint in use")],
    new: Annotated[Path, typer.Argument(help="the one that may take its place")],
    data: Annotated[
        list[Path],
        typer.Argument(help="folders of images, or CSV files with path, label, group[, kind]"),
    ],
    to: Annotated[
        Path | None, typer.Option(help="folder for changes.csv: the images whose verdict changes")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="there, every image")] = False,
    split: Annotated[str | None, typer.Option(help="rows of the CSV files; all by default")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    engine: Annotated[str, typer.Option(help="what runs the towers, as NSNET_ENGINE")] = "auto",
    precision: Annotated[
        str, typer.Option(help="what they multiply in: auto, float or int8")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="of all else: auto, float32, bfloat16 or float16")
    ] = "auto",
    canvases: Annotated[
        str, typer.Option(help="how many are looked at: all or adaptive")
    ] = "adaptive",
    backbone: Backbone = None,
    backbone_sha256: BackboneSha256 = None,
) -> None:
    """Compare two checkpoints on the same images: which verdicts change, and how.

    Images need no labels; those of a CSV file are told apart by theirs.
    """
    if every and to is None:
        raise UsageError("--all says what --to writes: give both")

    from model.detector import Detector
    from model.errors import ModelError
    from model.evaluation.compare import compare as run
    from model.evaluation.compare import list_images
    from model.hardware import Runtime

    images = list_images(data, split)
    if to is not None:
        try:
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"no folder can be made at {to}: {error.strerror}") from None
    runtime = Runtime.resolve(device, dtype, engine, precision)
    before, after = (
        Detector.load(
            checkpoint,
            runtime=runtime,
            backbone=backbone,
            backbone_sha256=backbone_sha256,
            canvases=canvases,
        )
        for checkpoint in (old, new)
    )
    comparison = run(images, before, after, progress=True)
    _print(comparison, before.about, after.about)
    if to is not None:
        file = to / "changes.csv"
        _write(file, (pair for pair in comparison.pairs if every or pair.changed))
        print(f"changes: {file}")


def _print(comparison: "Comparison", old: "About", new: "About") -> None:
    from model.evaluation.compare import Changes

    for name, about in zip(_AGES, (old, new), strict=True):
        print(f"{name}: {about.name} {about.version}, sha256 {about.sha256[:12]}")
    parts = comparison.by_class
    if len(parts) > 1:
        parts = {"all": Changes.of(comparison.pairs)} | parts
    show(_verdicts(parts))
    show(_shares(parts))
    if comparison.skipped:
        counts = (f"{n} {code.replace('_', ' ')}" for code, n in comparison.skipped.items())
        print(f"left out: {', '.join(counts)}")


def _verdicts(parts: "dict[str, Changes]") -> Table:
    """Images by old verdict, a row each, and new verdict, a column each."""
    from model.verdicts import Verdict

    order = (Verdict.REAL, Verdict.UNCERTAIN, Verdict.AI_GENERATED)
    table = Table("images", "old verdict")
    for verdict in order:
        table.add_column(f"now {verdict}", justify="right")
    for name, part in parts.items():
        for first in order:
            counts = [str(part.verdicts[first, second]) for second in order]
            table.add_row(name if first is order[0] else "", first, *counts)
        table.add_section()
    return table


def _shares(parts: "dict[str, Changes]") -> Table:
    table = Table("images")
    for title in ("number", "changed", "real<->ai_generated", "mean change of score"):
        table.add_column(title, justify="right")
    for name, part in parts.items():
        shares = (f"{100 * share:.2f} %" for share in (part.changed, part.reversed))
        table.add_row(name, str(part.images), *shares, f"{part.score:.4f}")
    return table


def _write(file: Path, pairs: "Iterable[Pair]") -> None:
    with new_text(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["file", "label", "group", "kind"]
            + [f"{age}_{what}" for what in ("verdict", "score", "warnings") for age in _AGES]
        )
        for pair in pairs:
            row = pair.row
            said = ("ai" if row.label else "real", row.group, row.kind) if row else ("", "", "")
            both = (pair.old, pair.new)
            writer.writerow(
                [pair.path, *said]
                + [answer.verdict for answer in both]
                + [f"{answer.score:.6f}" for answer in both]
                + [" ".join(answer.warnings) for answer in both]
            )
