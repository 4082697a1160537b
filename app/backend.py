"""What stands behind the desk and turns uploads into results: this machine, or a fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from app.errors import ApiError
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.results import Passing
from app.schemas import ProvenanceOut, TimingsOut
from app.settings import Settings
from model.images import Facts

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About, Score


@dataclass(frozen=True, slots=True)
class Result:
    """What is worth keeping of an image: verdicts are taken afterwards, by each request's cuts.

    Attributes:
        facts: of its picture.
        provenance: what the file declares of its origin; None: that was not read.
        score: the last one; it asks for no other look.
        timings: what was spent on it.
    """

    facts: Facts
    provenance: ProvenanceOut | None
    score: Score
    timings: TimingsOut


# `Passing` where the file may tell more another time. Errors are returned: what is raised holds on
# to whatever was under way.
Outcome: TypeAlias = "Result | Passing[Result] | ApiError"


class Backend(Protocol):
    """Makes results; `load`, then `start`, then all else but `stop`, which may come at any time."""

    @property
    def about(self) -> About:
        """What is loaded."""
        ...

    def load(self) -> None:
        """Get ready; may take minutes, in a thread of its own. Raises whatever stops it."""

    def start(self) -> None:
        """Take work from now on. On the event loop, as what follows."""

    async def make(self, upload: Upload, identifier: str, *, explain: bool) -> Outcome:
        """Score an upload, which is taken.

        Args:
            upload: the file.
            identifier: of the request, for the log.
            explain: whether the score is to come with evidence.
        """
        ...

    def expect(self, images: int) -> None:
        """Count images that `make` may still be called for, or is: a batch waits for no others."""

    async def tidy(self) -> None:
        """Mend what can be while the service runs; called every few seconds."""

    def stop(self) -> None:
        """End what was started; waits a little for what is under way. In a thread."""

    @property
    def waiting(self) -> int:
        """Looks that wait for the device, as far as is known here."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it gets on, once started."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a thread lives that works; after `stop`, nothing ends it."""
        ...


BackendFactory: TypeAlias = Callable[[Settings, Metrics], Backend]
"""Gives a backend that is yet to be loaded."""
