"""`nsnet train` and `nsnet ablate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.environment import Data, command_line, log_progress, not_installed, rows_of

if TYPE_CHECKING:  # commands import what they need when they run
    from accelerate import Accelerator

    from model.hardware import Runtime
    from model.training.options import TrainOptions

_Split = Annotated[str, typer.Option(help="rows to use, comma-separated: train, or train,val")]
_Projector = Annotated[Path, typer.Option(help="null space, written by `nsnet projector`")]
_Options = Annotated[Path | None, typer.Option(help="JSON of what differs from the preset")]
_Preset = Annotated[str, typer.Option(help="default or paper")]
_Cache = Annotated[Path, typer.Option(help="folder for what the frozen tower computed")]
_Engine = Annotated[
    str, typer.Option(help="what runs the frozen tower: torch, or openvino, faster on CPUs")
]
_Precision = Annotated[
    str, typer.Option(help="what it multiplies in: float or int8; auto: float, if it can")
]
_Dtype = Annotated[str, typer.Option(help="of all else: auto, float32 or bfloat16")]
_Cpu = Annotated[bool, typer.Option("--cpu", help="even where there is a GPU")]
CACHE = Path("runs/cache")


def _setup(engine: str, precision: str, dtype: str, *, cpu: bool) -> "tuple[Runtime, Accelerator]":
    """Log to standard error; say where and how the frozen tower runs, and the accelerator."""
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from None
    from model.hardware import Runtime

    log_progress()
    accelerator = Accelerator(cpu=cpu)
    return Runtime.resolve(str(accelerator.device), dtype, engine, precision), accelerator


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay changes over fields, objects within them likewise: what is not named stays."""
    return fields | {
        name: _merged(fields[name], value)
        if isinstance(value, dict) and isinstance(fields.get(name), dict)
        else value
        for name, value in changes.items()
    }


def _options(file: Path | None, preset: str) -> "TrainOptions":
    from pydantic import ValidationError

    from model.errors import ModelError
    from model.training.options import TrainOptions
    from model.training.options import preset as find

    fields = find(preset).model_dump()
    try:
        changes = json.loads(file.read_text()) if file else {}
        return TrainOptions.model_validate(_merged(fields, changes))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{file}: {where + ': ' if where else ''}{first['msg']}") from None
    except (OSError, ValueError, AttributeError) as error:  # the last: JSON, but no object
        raise ModelError(f"{file}: {error}") from None


def train(
    data: Data,
    projector: _Projector,
    to: Annotated[Path, typer.Option(help="the checkpoint to write")],
    name: Annotated[str, typer.Option(help="the checkpoint's, e.g. nsnet-vit-b-16")],
    version: Annotated[str, typer.Option(help="the checkpoint's, e.g. 1.0.0")],
    split: _Split = "train",
    options: _Options = None,
    preset: _Preset = "default",
    run: Annotated[
        Path | None,
        typer.Option(help="folder for losses, TensorBoard and the states a killed run resumes"),
    ] = None,
    tower: Annotated[
        Path | None,
        typer.Option(help="a checkpoint whose adapted tower is taken: heads alone are fitted"),
    ] = None,
    cache: _Cache = CACHE,
    engine: _Engine = "torch",
    precision: _Precision = "auto",
    dtype: _Dtype = "auto",
    cpu: _Cpu = False,
) -> None:
    """Train, calibrate on left-out groups, write a checkpoint; many GPUs: `accelerate launch`."""
    runtime, accelerator = _setup(engine, precision, dtype, cpu=cpu)
    from model.checkpoint import read_checkpoint
    from model.nullspace import read_projector
    from model.training.pipeline import train as work

    metadata = work(
        rows_of(data, split),
        read_projector(projector),
        _options(options, preset),
        to,
        name=name,
        version=version,
        command=command_line(),
        cache=cache,
        run=run,
        runtime=runtime,
        accelerator=accelerator,
        adapted=read_checkpoint(tower) if tower else None,
    )
    if accelerator.is_main_process:
        Console().print_json(metadata.model_dump_json(include={"verdicts", "evaluation"}))


def ablate(
    data: Data,
    texts: Annotated[list[Path], typer.Option(help="V: .npy features, or captions")],
    to: Annotated[Path, typer.Option(help="folder for ablation.md and ablation.json")],
    split: _Split = "train",
    every: Annotated[int, typer.Option(help="take every N-th image", min=1)] = 1,
    only: Annotated[str | None, typer.Option(help="sections, comma-separated")] = None,
    options: _Options = None,
    preset: _Preset = "default",
    cache: _Cache = CACHE,
    engine: _Engine = "torch",
    precision: _Precision = "auto",
    dtype: _Dtype = "auto",
    cpu: _Cpu = False,
) -> None:
    """Compare design choices on left-out groups, in one table."""
    runtime, accelerator = _setup(engine, precision, dtype, cpu=cpu)
    from model.training.ablation import ablate as work

    table = work(
        rows_of(data, split)[::every],
        texts,
        _options(options, preset),
        to,
        only=only.split(",") if only else None,
        command=command_line(),
        cache=cache,
        runtime=runtime,
        accelerator=accelerator,
    )
    print(table)
