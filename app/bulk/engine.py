"""What stands between a listing and its parts: this machine, or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeAlias

from app.bulk.parts import Row
from app.bulk.sources import Entry, Sources, Span
from app.bulk.store import StuckError
from app.intake.uploads import Upload
from app.settings import Settings
from model.images import Limits

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About

OURS = ("inference_failed", "overloaded")
"""Codes of what may be no fault of the image's: it is tried once more."""
WATCH_S = 5.0
"""How often a device that says nothing is looked after."""


class Engine(Protocol):
    """Makes rows of what is listed."""

    @property
    def about(self) -> About:
        """What is loaded."""
        ...

    def rows(
        self, sources: Sources, done: Sequence[Span], stop: asyncio.Event
    ) -> AsyncGenerator[tuple[Span, Row]]:
        """Score all images but those of some stretches: a row each, in the listing's order.

        Args:
            sources: what is scored.
            done: stretches that do not overlap.
            stop: once it is set, no other image is begun.

        Raises:
            BulkError: the listing, the device or the decoders fail: rows before that are sound.
        """
        ...


EngineFactory: TypeAlias = Callable[[Settings], AbstractContextManager[Engine]]
"""Gives an engine that is ready; what it holds is let go of at the end."""


def stuck() -> StuckError:
    """Where nothing gets on any more."""
    return StuckError("device or decoders do not answer any more: run it again to go on")


def read_upload(entry: Entry, limits: Limits) -> tuple[Upload, str | None]:
    """An image's file, and its digest where it is whole. For a thread.

    Raises:
        ImageError: not_found, unreadable.
    """
    data = entry.read()
    upload = Upload()
    upload.add(data)
    return upload, upload.digest() if len(data) <= limits.max_bytes else None


def make_row(
    about: About,
    path: str,
    sha256: str | None,
    *,
    verdict: str | None = None,
    score: float | None = None,
    warnings: tuple[str, ...] = (),
    declares: str | None = None,
    error: str | None = None,
) -> Row:
    """What is said of an image; see `Row`."""
    return Row(
        path=path,
        sha256=sha256,
        verdict=verdict,
        score=score,
        real_below=about.thresholds.real_below,
        ai_above=about.thresholds.ai_above,
        model_sha256=about.sha256,
        warnings=warnings,
        declares=declares,
        error=error,
    )
