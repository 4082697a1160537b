"""What the commands share: options, settings, logging, what is printed, mistakes as one line."""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

if TYPE_CHECKING:
    from app.settings import Settings
    from model.data.manifest import Row

Data = Annotated[
    list[Path],
    typer.Argument(
        help="CSV files with path, label, group[, split, origin_repo, kind], or benchmarks' folders"
    ),
]

_ENDLESS = 1_000_000  # columns

Backbone = Annotated[
    Path | None, typer.Option(help="the tower's file, instead of the cache and the registry")
]
BackboneSha256 = Annotated[
    str | None,
    typer.Option(
        envvar="NSNET_BACKBONE_SHA256",
        help="digest that the tower must have, as `nsnet backbone verify` prints it",
    ),
]


def rows_of(data: list[Path], splits: str) -> "list[Row]":
    """The images of several lists, of one split or of several, comma-separated.

    Raises:
        ManifestError: as `read_datasets`, of each split.
    """
    from model.data.manifest import read_datasets

    rows = [row for split in splits.split(",") for row in read_datasets(data, split)]
    return list({row.path: row for row in rows}.values())  # without a split: of every split


class UsageError(Exception):
    """A mistake of the caller's, shown as one line."""


def shown(text: str) -> str:
    """Text that may hold names of files, as one line: what cannot be printed is escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def new_text(path: Path) -> TextIO:
    """A file to write; names that are no text are escaped in it."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def show(table: Table) -> None:
    """Print a table; cells that are too wide for a terminal are folded, and nothing is cut."""
    console = Console(markup=False, emoji=False, highlight=False)  # names are names
    if not console.is_terminal:  # a pipe, or a file: whoever reads it wants whole lines
        console.width = _ENDLESS
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)


def read_settings(host: str | None = None, port: int | None = None) -> "Settings":
    """The environment's settings; read before torch is imported, so that a typo costs no seconds.

    Args:
        host: see `load_settings`.
        port: the same.

    Raises:
        UsageError: the environment holds what no setting allows.
    """
    from app.settings import SettingsError, load_settings

    try:
        return load_settings(host, port)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def not_installed(error: ModuleNotFoundError, extra: str) -> UsageError:
    """What to say where a command needs packages that a plain installation leaves out."""
    return UsageError(f"{error.name} is not installed: pip install 'nsnet[{extra}]'")


def log_progress() -> None:
    """Show what the model logs from the level info on, on standard error."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])


def command_line() -> str:
    """What was run, for the record."""
    return shlex.join(["nsnet", *sys.argv[1:]])
