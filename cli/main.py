"""`nsnet`: serve, detect, settings, backbone; and the commands of the other modules.

Each command imports what it needs when it runs: torch takes seconds, `--help` must not.
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cli.bench import bench
from cli.compare import compare
from cli.environment import UsageError, read_settings
from cli.evaluate import calibrate, evaluate
from cli.export import export
from cli.texts import caption, projector
from cli.train import ablate, train

if TYPE_CHECKING:
    from app.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
backbone_app = typer.Typer(no_args_is_help=True, help="The CLIP image tower.")
app.add_typer(backbone_app, name="backbone")
for command in (caption, projector, train, calibrate, evaluate, compare, ablate, export, bench):
    app.command()(command)

out = Console()
err = Console(stderr=True)

Backbone = Annotated[str, typer.Argument(help="open_clip architecture")]


def _print_version(asked: bool) -> None:
    if asked:
        from model import __version__

        print(f"nsnet {__version__}")
        raise typer.Exit


@app.callback()
def nsnet(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """NS-Net: tells AI-generated images from photographs."""


def main() -> None:
    """Entry point: a known error is one line and exit code 1, never a traceback."""
    from model.errors import ModelError

    try:
        app()
    except (ModelError, UsageError) as error:
        err.print(f"nsnet: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve() -> None:
    """Serve on NSNET_HOST:NSNET_PORT until SIGTERM; see `nsnet settings`."""
    # As a container's first process, SIGTERM would be ignored until the server has its handlers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    chosen = read_settings()  # before torch is imported: a mistake is told at once
    from app.main import serve as run

    raise typer.Exit(run(chosen))


@app.command()
def settings() -> None:
    """Print every setting: environment variable, value, default, meaning."""
    from app.settings import describe_settings

    table = Table("variable", "value", "default", "meaning")
    for row in describe_settings(read_settings()):
        table.add_row(row.variable, row.value, row.default, row.description)
    out.print(table)


@app.command()
def detect(
    paths: Annotated[list[Path], typer.Argument(help="images, or folders of them")],
    json_lines: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Score image files here, without a server; exit code 1 if any could not be scored."""
    files = [
        f for p in paths for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if not f.is_dir()
    ]
    if not files:
        raise UsageError("no files there")
    score = _scorer(read_settings())
    table = Table("file", "verdict", "score", "notes")
    failed = False
    for file in track(
        files, description="detect", console=err, transient=True, disable=len(files) < 4
    ):
        result = score(file)
        failed |= "error" in result
        if json_lines:
            print(json.dumps({"path": str(file), **result}), flush=True)
        elif "error" in result:
            table.add_row(str(file), "-", "-", result["error"])
        else:
            notes = " ".join(result["warnings"])
            table.add_row(str(file), result["verdict"], f"{result['score']:.3f}", notes)
    if not json_lines:
        out.print(table)
    raise typer.Exit(int(failed))


def _scorer(chosen: "Settings") -> Callable[[Path], dict[str, Any]]:
    from app.service import load_detector
    from model.errors import ImageError
    from model.images import read_picture

    detector = load_detector(chosen)
    limits = chosen.limits(detector.about.min_side)

    def score(path: Path) -> dict[str, Any]:
        try:
            picture = read_picture(path, limits)
            [detection] = detector.detect([picture.pixels])
        except ImageError as error:
            return {"error": str(error)}
        return {
            "verdict": detection.verdict.value,
            "score": round(detection.score, 6),
            "looks": detection.looks,
            "warnings": [*picture.facts.warnings, *detection.warnings],
        }

    return score


@backbone_app.command()
def fetch(name: Backbone = "ViT-B-16-quickgelu") -> None:
    """Bring a tower into the cache, if it is not there, and verify it."""
    from model.tower.sources import fetch as run

    out.print(str(run(name)), soft_wrap=True, highlight=False)


@backbone_app.command()
def verify(
    name: Backbone = "ViT-B-16-quickgelu",
    path: Annotated[Path | None, typer.Option(help="instead of the cached file")] = None,
) -> None:
    """Check a tower's shapes, values and digest."""
    from model.tower.sources import cached_path
    from model.tower.sources import verify as run

    file = path or cached_path(name)
    out.print(f"{file} {run(file, name)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
