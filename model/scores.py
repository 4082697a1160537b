"""What a detector says of itself and of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from model.errors import ModelError
from model.verdicts import Cut, QualityRule, Reason, Thresholds, Verdict, VerdictRules

if TYPE_CHECKING:  # torch comes with them: another process is told of scores without it
    from model.checkpoint import Checkpoint
    from model.engines.base import Engine, Fetched
    from model.evidence import Evidence
    from model.hardware import Runtime
    from model.views.plan import Look


class InferenceError(ModelError):
    """The network gave a score that is not a number."""


@dataclass(frozen=True, slots=True)
class About:
    """What is loaded, and how it runs.

    Attributes:
        name: the checkpoint's.
        version: the checkpoint's.
        sha256: of the checkpoint's file.
        backbone: the tower, as the checkpoint knows it.
        backbone_sha256: likewise, see `sources.tensor_digest`.
        tower_sha256: of the tower that is loaded; another copy's scores differ a little.
        device: where it runs.
        engine: what runs the tower.
        precision: what the tower's products multiply in.
        dtype: what all else computes in.
        canvases: `all` or `adaptive`, see `Detector.load`.
        rules: how a score becomes a verdict.
        min_side: smallest side of a picture that is looked at, pixels.
        explained: how many images' worth of work one is with its evidence, at most.
        calibration: one for each kind of evidence, as JSON values.
        cuts: what others would do; none where the checkpoint does not say.
        evaluation: held-out figures, as JSON values.
    """

    name: str
    version: str
    sha256: str
    backbone: str
    backbone_sha256: str
    tower_sha256: str
    device: str
    engine: str
    precision: str
    dtype: str
    canvases: str
    rules: VerdictRules
    min_side: int
    explained: int
    calibration: Mapping[str, Any]
    cuts: Sequence[Cut]
    evaluation: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What scores depend on, but for rounding: checkpoint, tower, and how much is looked at."""
        return self.sha256, self.tower_sha256, self.canvases

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        engine: Engine,
        runtime: Runtime,
        canvases: str,
        tower_sha256: str | None = None,
    ) -> Self:
        """Gather it; without a digest of the tower, it is the one that the checkpoint names."""
        metadata = checkpoint.metadata
        return cls(
            name=metadata.name,
            version=metadata.version,
            sha256=checkpoint.sha256,
            backbone=metadata.network.backbone,
            backbone_sha256=metadata.backbone_sha256,
            tower_sha256=tower_sha256 or metadata.backbone_sha256,
            device=str(runtime.device),
            engine=engine.name,
            precision=engine.precision,
            dtype=runtime.dtype_name,
            canvases=canvases,
            rules=metadata.verdicts,
            min_side=metadata.views.min_side,
            explained=metadata.views.explained,
            calibration=metadata.verdicts.calibrations.model_dump(),
            cuts=metadata.cuts,
            evaluation=metadata.evaluation,
        )

    @property
    def thresholds(self) -> Thresholds:
        """The checkpoint's cuts."""
        return self.rules.thresholds

    @property
    def quality(self) -> QualityRule | None:
        """What holds back a verdict; None: nothing does."""
        return self.rules.quality

    def verdict(self, score: Score, cut: float | None = None) -> Verdict:
        """What is said of a picture, by the checkpoint's cuts or one of the client's own."""
        return self.rules.verdict(score.value, glance=score.glance, reasons=score.reasons, cut=cut)


@dataclass(frozen=True, slots=True)
class Score:
    """What the network says of a picture.

    Attributes:
        value: calibrated probability that it is AI-generated, 0..1.
        logit: the network's output, before calibration.
        looks: canvases that it stands on.
        reasons: what holds back its verdict.
        warnings: those of the `Look`, each reason's word, and the evidence's.
        glance: it stands on the first of several looks.
        more: cuts the next look, in any thread, in a few milliseconds; None: what was seen is
            enough for the checkpoint's cuts.
        evidence: where it was asked for, and nothing is left to look at.
    """

    value: float
    logit: float
    looks: int
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    glance: bool = False
    more: Callable[[], Look] | None = None
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """A picture's answer; see `Score`."""

    verdict: Verdict
    score: float
    looks: int
    warnings: tuple[str, ...]
    logit: float
    evidence: Evidence | None = None


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
