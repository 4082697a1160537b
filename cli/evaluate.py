"""`nsnet evaluate` and `nsnet calibrate`: a checkpoint judged, or calibrated anew, on images."""

import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_Checkpoint = Annotated[Path, typer.Argument(help="safetensors file by `nsnet train`")]
_Data = Annotated[
    Path, typer.Argument(help="CSV with path, label, group[, split], or a benchmark's folder")
]
_Split = Annotated[str, typer.Option(help="rows of the data to use")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_Dtype = Annotated[str, typer.Option(help="of the tower: auto, float32, bfloat16 or float16")]
_Engine = Annotated[str, typer.Option(help="what runs it: auto, torch, openvino or int8")]
_Canvases = Annotated[str, typer.Option(help="how many are looked at: all or adaptive")]
_Backbone = Annotated[Path | None, typer.Option(help="the tower's file, instead of the cache")]


def evaluate(
    checkpoint: _Checkpoint,
    data: _Data,
    to: Annotated[Path, typer.Option(help="folder for the report, scores and plots")],
    split: _Split = "val",
    conditions: Annotated[str | None, typer.Option(help="comma-separated; all by default")] = None,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    engine: _Engine = "auto",
    canvases: _Canvases = "adaptive",
    backbone: _Backbone = None,
) -> None:
    """Score images under every condition; write report.json, report.md, scores.csv and plots."""
    from model.checkpoint import read_checkpoint
    from model.detector import Detector
    from model.errors import ModelError
    from model.evaluation.conditions import CONDITIONS
    from model.evaluation.evaluate import evaluate as run
    from model.evaluation.report import SEEN, build_report, overall_table, to_markdown
    from model.training.manifest import read_dataset, trained_on

    try:
        from model.evaluation.plots import write_plots
    except ModuleNotFoundError as error:
        raise ModelError(f"{error.name} is not installed: pip install 'nsnet[train]'") from None

    chosen = conditions.split(",") if conditions else list(CONDITIONS)
    rows = read_dataset(data, split)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"no folder can be made at {to}: {error.strerror}") from None
    detector = Detector.load(
        checkpoint, backbone=backbone, device=device, dtype=dtype, engine=engine, canvases=canvases
    )
    seen = trained_on(read_checkpoint(checkpoint).metadata, rows)
    if seen:
        print(f"nsnet: warning: {SEEN}", file=sys.stderr)
    scored = run(rows, detector, conditions=chosen, progress=True)
    report = build_report(
        rows, scored, detector,
        data=f"{data.name}, split {split}", command=shlex.join(["nsnet", *sys.argv[1:]]),
        seen=seen,
    )  # fmt: skip
    (to / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (to / "report.md").write_text(to_markdown(report))
    with (to / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group", "condition", "score", "verdict"])
        for name, part in scored.items():
            for row, score, verdict in zip(part.rows, part.scores, part.verdicts, strict=True):
                label = "ai" if row.label else "real"
                writer.writerow([row.path.name, label, row.group, name, f"{score:.6f}", verdict])
    write_plots(scored, to)
    header, cells = overall_table(report)
    table = Table(*header)
    for line in cells:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(f"report: {to / 'report.md'}", soft_wrap=True, highlight=False)


def calibrate(
    checkpoint: _Checkpoint,
    data: _Data,
    to: Annotated[Path, typer.Option(help="the checkpoint to write")],
    split: _Split = "val",
    accused: Annotated[
        float, typer.Option(help="largest share of photographs called ai_generated")
    ] = 0.01,
    missed: Annotated[float, typer.Option(help="largest share of AI images called real")] = 0.05,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    engine: _Engine = "auto",
    backbone: _Backbone = None,
) -> None:
    """Fit the calibration and the thresholds of a checkpoint to other, held-out images."""
    from model.detector import Detector
    from model.errors import ModelError
    from model.training.manifest import read_dataset

    try:
        from model.evaluation.recalibrate import recalibrate
    except ModuleNotFoundError as error:
        raise ModelError(f"{error.name} is not installed: pip install 'nsnet[train]'") from None

    rows = read_dataset(data, split)
    detector = Detector.load(  # all canvases: what is in doubt depends on the thresholds
        checkpoint, backbone=backbone, device=device, dtype=dtype, engine=engine, canvases="all"
    )
    metadata = recalibrate(
        checkpoint, to, rows, detector,
        data=f"{data.name}, split {split}", accused=accused, missed=missed, progress=True,
    )  # fmt: skip
    Console().print_json(metadata.model_dump_json(include={"thresholds", "calibration"}))
