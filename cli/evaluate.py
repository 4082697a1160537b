"""`nsnet evaluate` and `nsnet calibrate`: a checkpoint judged, or calibrated anew, on images."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.environment import (
    Backbone,
    BackboneSha256,
    Data,
    command_line,
    new_text,
    not_installed,
    rows_of,
    show,
)

_Checkpoint = Annotated[Path, typer.Argument(help="safetensors file by `nsnet train`")]
_Split = Annotated[str, typer.Option(help="rows to use, comma-separated: val, or train,val")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_Engine = Annotated[str, typer.Option(help="what runs the tower, as NSNET_ENGINE")]
_Precision = Annotated[str, typer.Option(help="what it multiplies in: auto, float or int8")]
_Dtype = Annotated[str, typer.Option(help="of all else: auto, float32, bfloat16 or float16")]
_Canvases = Annotated[str, typer.Option(help="how many are looked at: all or adaptive")]


def evaluate(
    checkpoint: _Checkpoint,
    data: Data,
    to: Annotated[Path, typer.Option(help="folder for the report, scores and plots")],
    split: _Split = "val",
    conditions: Annotated[str | None, typer.Option(help="comma-separated; all by default")] = None,
    device: _Device = "auto",
    engine: _Engine = "auto",
    precision: _Precision = "auto",
    dtype: _Dtype = "auto",
    canvases: _Canvases = "adaptive",
    backbone: Backbone = None,
    backbone_sha256: BackboneSha256 = None,
) -> None:
    """Score images under every condition; write a report, all scores and groups, and plots."""
    from model.checkpoint import read_checkpoint
    from model.data.degrade import CONDITIONS
    from model.detector import Detector
    from model.errors import ModelError
    from model.evaluation.evaluate import evaluate as run
    from model.evaluation.evaluate import trained_on
    from model.evaluation.report import SEEN, build_report, summary, to_markdown
    from model.figures.tables import group_rows
    from model.hardware import Runtime

    try:
        from model.figures.plots import write_plots
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from None

    chosen = conditions.split(",") if conditions else list(CONDITIONS)
    rows = rows_of(data, split)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"no folder can be made at {to}: {error.strerror}") from None
    runtime = Runtime.resolve(device, dtype, engine, precision)
    detector = Detector.load(
        checkpoint,
        runtime=runtime,
        backbone=backbone,
        backbone_sha256=backbone_sha256,
        canvases=canvases,
    )
    seen = trained_on(read_checkpoint(checkpoint).metadata, rows)
    if seen:
        print(f"nsnet: warning: {SEEN}", file=sys.stderr)
    predictions = run(rows, detector, conditions=chosen, progress=True)
    report = build_report(
        rows, predictions, detector, data=_named(data, split), command=command_line(), seen=seen
    )
    (to / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    with new_text(to / "report.md") as file:
        file.write(to_markdown(report))
    with new_text(to / "scores.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group", "condition", "score", "verdict"])
        for name, part in predictions.items():
            for row, score, verdict in zip(part.rows, part.scores, part.verdicts, strict=True):
                label = "ai" if row.label else "real"
                writer.writerow([row.path.name, label, row.group, name, f"{score:.6f}", verdict])
    groups = [
        {"condition": name, **group}
        for name, part in predictions.items()
        for group in group_rows(part)
    ]
    with new_text(to / "groups.csv") as file:
        sheet = csv.DictWriter(file, list(groups[0]))
        sheet.writeheader()
        sheet.writerows(groups)
    write_plots(predictions, to)
    header, cells = summary(report)
    table = Table(*header)
    for line in cells:
        table.add_row(*line)
    show(table)
    print(f"report: {to / 'report.md'}")


def calibrate(
    checkpoint: _Checkpoint,
    data: Data,
    to: Annotated[Path, typer.Option(help="the checkpoint to write")],
    split: _Split = "val",
    accused: Annotated[
        float,
        typer.Option(help="largest share of photographs called ai_generated, a mean over owners"),
    ] = 0.007,
    accused_images: Annotated[
        float, typer.Option(help="likewise of all photographs, whoever published them")
    ] = 0.01,
    accused_made: Annotated[
        float, typer.Option(help="likewise of pictures people made: kinds art, render and screen")
    ] = 0.03,
    missed: Annotated[float, typer.Option(help="largest share of AI images called real")] = 0.05,
    held_back: Annotated[
        float, typer.Option(help="share of photographs too poor to be accused, by each measurement")
    ] = 0.01,
    device: _Device = "auto",
    engine: _Engine = "auto",
    precision: _Precision = "auto",
    dtype: _Dtype = "auto",
    backbone: Backbone = None,
    backbone_sha256: BackboneSha256 = None,
) -> None:
    """Fit the calibration and the thresholds of a checkpoint to other, held-out images."""
    from model.detector import Detector
    from model.evaluation.recalibrate import recalibrate
    from model.hardware import Runtime

    try:
        import sklearn  # noqa: F401  (for the fit, which comes after hours of scoring)
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from None

    rows = rows_of(data, split)
    runtime = Runtime.resolve(device, dtype, engine, precision)
    # All canvases: what is in doubt depends on the thresholds.
    detector = Detector.load(
        checkpoint,
        runtime=runtime,
        backbone=backbone,
        backbone_sha256=backbone_sha256,
        canvases="all",
    )
    metadata = recalibrate(
        checkpoint,
        to,
        rows,
        detector,
        data=_named(data, split),
        accused=accused,
        accused_images=accused_images,
        accused_made=accused_made,
        missed=missed,
        held_back=held_back,
        progress=True,
    )
    Console().print_json(metadata.model_dump_json(include={"verdicts"}))


def _named(data: list[Path], split: str) -> str:
    """The data set in words."""
    return f"{' and '.join(path.name for path in data)}, split {split}"
