"""What a detector says of pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from model.engines.base import Fetched
from model.errors import ModelError
from model.verdicts import Verdict
from model.views.plan import Look


class InferenceError(ModelError):
    """The network gave a score that is not a number."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the network says of a picture.

    Attributes:
        value: calibrated probability that it is AI-generated, 0..1.
        logit: the network's output, before calibration.
        looks: canvases that it stands on.
        warnings: those of the `Look`.
        glance: it stands on the first of several looks.
        more: cuts the next look, in any thread, in a few milliseconds; None: what was seen is
            enough for the checkpoint's cuts.
    """

    value: float
    logit: float
    looks: int
    warnings: tuple[str, ...] = ()
    glance: bool = False
    more: Callable[[], Look] | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """A picture's answer; see `Score`."""

    verdict: Verdict
    score: float
    looks: int
    warnings: tuple[str, ...]
    logit: float


class Pending:
    """A batch that was handed to the device; a CPU is done with its forward by then.

    Args:
        logits: one a canvas.
        scores: makes the images' scores of them.
    """

    def __init__(self, logits: Fetched, scores: Callable[[Iterator[float]], list[Score]]) -> None:
        self._logits = logits
        self._scores = scores

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._logits.ready

    def result(self) -> list[Score]:
        """Wait for the device.

        Raises:
            InferenceError: a score is not finite.
            RuntimeError: the device failed.
        """
        return self._scores(iter(self._logits.values()))
