"""`nsnet`: serve, settings, backbone; and the commands of the other modules.

Each command imports what it needs when it runs: torch takes seconds, `--help` must not.
"""

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from cli.bench import bench
from cli.bulk import bulk
from cli.compare import compare
from cli.detect import detect
from cli.environment import BackboneSha256, UsageError, read_settings, show, shown
from cli.evaluate import calibrate, evaluate
from cli.export import export
from cli.texts import caption, projector
from cli.train import ablate, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
backbone_app = typer.Typer(no_args_is_help=True, help="The CLIP image tower.")
app.add_typer(backbone_app, name="backbone")
for command in (
    detect,
    bulk,
    caption,
    projector,
    train,
    calibrate,
    evaluate,
    compare,
    ablate,
    export,
    bench,
):
    app.command()(command)

Backbone = Annotated[str, typer.Argument(help="open_clip architecture")]


def _print_version(asked: bool) -> None:
    if asked:
        from model import __version__

        print(f"nsnet {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit status: 0; 1, it failed, an image could not be scored, or nobody reads the output "
    "any more; 2, the command line is wrong; 130, interrupted."
)
def nsnet(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """NS-Net: tells AI-generated images from photographs."""


def main() -> None:
    """Entry point: a known error is one line and exit status 1, never a traceback."""
    from model.errors import ModelError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (ModelError, UsageError) as error:
        _fail(str(error))
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to print goes nowhere
        if error.errno == errno.EPIPE:
            sys.exit(1)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or type(error).__name__}")


def _fail(text: str) -> NoReturn:
    print(f"nsnet: {shown(text)}", file=sys.stderr)
    sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="in place of NSNET_HOST")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="in place of NSNET_PORT")
    ] = None,
) -> None:
    """Serve on NSNET_HOST:NSNET_PORT until SIGTERM; see `nsnet settings`."""
    # As a container's first process, SIGTERM would be ignored until the server has its handlers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    chosen = read_settings(host, port)  # before torch is imported: a mistake is told at once
    from app.main import serve as run
    from app.settings import SettingsError

    try:
        status = run(chosen)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    raise typer.Exit(status)


@app.command()
def settings() -> None:
    """Print every setting: environment variable, value, default, meaning."""
    from app.settings import describe_settings

    table = Table("variable", "value", "default", "meaning")
    for row in describe_settings(read_settings()):
        table.add_row(row.variable, row.value, row.default, row.description)
    show(table)


@backbone_app.command()
def fetch(name: Backbone = "ViT-B-16-quickgelu") -> None:
    """Bring a tower into the cache, if it is not there, and verify it."""
    from model.tower.sources import fetch as run

    print(run(name))


@backbone_app.command()
def verify(
    name: Backbone = "ViT-B-16-quickgelu",
    path: Annotated[Path | None, typer.Option(help="instead of the cached file")] = None,
    backbone_sha256: BackboneSha256 = None,
) -> None:
    """Check a tower's shapes, values and digest; print the digest."""
    from model.tower.sources import cached_path
    from model.tower.sources import verify as run

    file = path or cached_path(name)
    print(file, run(file, name, sha256=backbone_sha256))


if __name__ == "__main__":
    main()
