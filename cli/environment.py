"""What every command asks of its surroundings, with mistakes as one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings


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
