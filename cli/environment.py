"""What the commands share: settings, logging, the command itself, and mistakes as one line."""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

if TYPE_CHECKING:
    from app.settings import Settings
    from model.data.manifest import Row

Data = Annotated[
    list[Path],
    typer.Argument(
        help="CSV files with path, label, group[, split, origin_repo, kind], or benchmarks' folders"
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


def read_settings() -> "Settings":
    """The environment's settings; read before torch is imported, so that a typo costs no seconds.

    Raises:
        UsageError: the environment holds what no setting allows.
    """
    from app.settings import SettingsError, load_settings

    try:
        return load_settings()
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
