"""`nsnet evaluate` and `nsnet calibrate`: a checkpoint judged, or calibrated anew, on images."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.environment import Data, command_line, not_installed

_Checkpoint = Annotated[Path, typer.Argument(help="safetensors file by `nsnet train`")]
_Split = Annotated[str, typer.Option(help="rows of the data to use")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_Engine = Annotated[str, typer.Option(help="what runs the tower, as NSNET_ENGINE")]
_Precision = Annotated[str, typer.Option(help="what it multiplies in: auto, float or int8")]
_Dtype = Annotated[str, typer.Option(help="of all else: auto, float32, bfloat16 or float16")]
_Canvases = Annotated[str, typer.Option(help="how many are looked at: all or adaptive")]
_Backbone = Annotated[Path | None, typer.Option(help="the tower's file, instead of the cache")]


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
    backbone: _Backbone = None,
) -> None:
    """Score images under every condition; write report.json, report.md, scores.csv and plots."""
    from model.checkpoint import read_checkpoint
    from model.data.degrade import CONDITIONS
    from model.data.manifest import read_dataset
    from model.detector import Detector
    from model.errors import ModelError
    from model.evaluation.evaluate import evaluate as run
    from model.evaluation.evaluate import trained_on
    from model.evaluation.report import SEEN, build_report, summary, to_markdown
    from model.hardware import Runtime

    try:
        from model.figures.plots import write_plots
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from None

    chosen = conditions.split(",") if conditions else list(CONDITIONS)
    rows = read_dataset(data, split)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"no folder can be made at {to}: {error.strerror}") from None
    runtime = Runtime.resolve(device, dtype, engine, precision)
    detector = Detector.load(checkpoint, runtime=runtime, backbone=backbone, canvases=canvases)
    seen = trained_on(read_checkpoint(checkpoint).metadata, rows)
    if seen:
        print(f"nsnet: warning: {SEEN}", file=sys.stderr)
    predictions = run(rows, detector, conditions=chosen, progress=True)
    report = build_report(
        rows,
        predictions,
        detector,
        data=f"{data.name}, split {split}",
        command=command_line(),
        seen=seen,
    )
    (to / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (to / "report.md").write_text(to_markdown(report))
    with (to / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group", "condition", "score", "verdict"])
        for name, part in predictions.items():
            for row, score, verdict in zip(part.rows, part.scores, part.verdicts, strict=True):
                label = "ai" if row.label else "real"
                writer.writerow([row.path.name, label, row.group, name, f"{score:.6f}", verdict])
    write_plots(predictions, to)
    header, cells = summary(report)
    table = Table(*header)
    for line in cells:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(f"report: {to / 'report.md'}", soft_wrap=True, highlight=False)


def calibrate(
    checkpoint: _Checkpoint,
    data: Data,
    to: Annotated[Path, typer.Option(help="the checkpoint to write")],
    split: _Split = "val",
    accused: Annotated[
        float, typer.Option(help="largest share of photographs called ai_generated")
    ] = 0.01,
    missed: Annotated[float, typer.Option(help="largest share of AI images called real")] = 0.05,
    device: _Device = "auto",
    engine: _Engine = "auto",
    precision: _Precision = "auto",
    dtype: _Dtype = "auto",
    backbone: _Backbone = None,
) -> None:
    """Fit the calibration and the thresholds of a checkpoint to other, held-out images."""
    from model.data.manifest import read_dataset
    from model.detector import Detector
    from model.evaluation.recalibrate import recalibrate
    from model.hardware import Runtime

    try:
        import sklearn  # noqa: F401  (for the fit, which comes after hours of scoring)
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from None

    rows = read_dataset(data, split)
    runtime = Runtime.resolve(device, dtype, engine, precision)
    # All canvases: what is in doubt depends on the thresholds.
    detector = Detector.load(checkpoint, runtime=runtime, backbone=backbone, canvases="all")
    metadata = recalibrate(
        checkpoint,
        to,
        rows,
        detector,
        data=f"{data.name}, split {split}",
        accused=accused,
        missed=missed,
        progress=True,
    )
    Console().print_json(metadata.model_dump_json(include={"verdicts"}))
