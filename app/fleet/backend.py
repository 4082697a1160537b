"""The backend of an ingress: uploads go to a decoder somewhere, pictures to a scorer."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.backend import BackendFactory, Outcome, Result
from app.errors import ApiError, unexpected
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.results import Passing

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About

Handle: TypeAlias = DeploymentHandle[Any]

log = logging.getLogger(__name__)

_TRIES = 2  # a replica that is gone is not the image's fault, and the next one may not be


def fleet(about: About, decoding: Handle, scoring: Handle) -> BackendFactory:
    """The backend of an ingress.

    Args:
        about: what the scorers have loaded.
        decoding: of `serve.Decoding`.
        scoring: of `serve.Scoring`.
    """
    return lambda _, metrics: FleetBackend(about, decoding, scoring, metrics)


class FleetBackend:
    """See `fleet`, and `app.backend.Backend`; whether replicas get on is for Ray to see to."""

    waiting = 0
    alive = True
    busy = False

    def __init__(self, about: About, decoding: Handle, scoring: Handle, metrics: Metrics) -> None:
        self.about = about
        self._decoding = decoding
        self._scoring = scoring
        self._stage = metrics.stage

    def load(self) -> None:
        """What is loaded is loaded elsewhere."""

    def start(self) -> None:
        """Likewise."""

    def stop(self) -> None:
        """Likewise."""

    def expect(self, images: int) -> None:
        """Each scorer counts what comes to it."""

    async def tidy(self) -> None:
        """Nothing is to be mended here."""

    async def make(self, upload: Upload, identifier: str, *, explain: bool) -> Outcome:
        """Have an upload decoded and scored; its picture does not come by here."""
        data = await asyncio.to_thread(lambda: b"".join(upload.parts()))
        outcome: Outcome = _gone()
        for _ in range(_TRIES):
            try:
                outcome = await self._once(data, identifier, explain)
            except (RayError, RayServeException) as error:
                if _is_bug(error):
                    return unexpected(log, error, identifier)
                log.warning("a replica gave no answer: %s", type(error).__name__)
                outcome = _gone()
            else:
                break
        self._observe(outcome)
        return outcome

    async def _once(self, data: bytes, identifier: str, explain: bool) -> Outcome:
        opened = _apart(self._decoding, data, self.about.min_side, identifier)
        scored = _apart(self._scoring, opened, identifier, explain)
        try:
            model, outcome = await scored
        except asyncio.CancelledError:
            scored.cancel()
            opened.cancel()
            raise
        if model != self.about.identity:
            log.warning(
                "a scorer has another checkpoint, tower or canvases than this ingress knows"
            )
            return ApiError("overloaded", "Another model is being rolled out.", retry_after=5)
        answer: Outcome = outcome
        return answer

    def _observe(self, outcome: Outcome) -> None:
        """Count the stages here, where they are scraped."""
        result = outcome.result if isinstance(outcome, Passing) else outcome
        if isinstance(result, Result):
            for name, milliseconds in result.timings:
                stage = "forward" if name == "inference" else name
                self._stage.labels(stage).observe(milliseconds / 1000)


def _apart(handle: Handle, *given: Any) -> Any:
    """Ask, on behalf of no request.

    Ray cancels what was asked on behalf of one whose client leaves, though others may share it.
    """
    return contextvars.Context().run(functools.partial(handle.remote, *given))


def _is_bug(error: Exception) -> bool:
    """Whether our own code failed in a replica, and not Ray or its memory around it."""
    return isinstance(error, RayTaskError) and not isinstance(error.cause, RayError | MemoryError)


def _gone() -> ApiError:
    return ApiError("overloaded", "No replica could take this image now.", retry_after=5)
