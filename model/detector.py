"""The one object that scores pictures: views -> engine -> calibrated scores -> verdicts."""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint, build_model, read_checkpoint
from model.engines.base import Engine
from model.engines.registry import make_engine
from model.errors import ModelError
from model.evidence import Evidence, Judged, evidence_of
from model.hardware import Runtime
from model.images.content import has_content
from model.network import NSNet
from model.scores import About, Detection, InferenceError, Pending, Score
from model.tower.sources import load_backbone
from model.verdicts import Verdict
from model.views.plan import Grounds, Look

__all__ = [
    "About",
    "Detection",
    "Detector",
    "Evidence",
    "Judged",
    "Look",
    "ModelError",
    "Score",
    "load",
]

log = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "weights" / "nsnet-vit-b-16.safetensors"
CANVASES = ("all", "adaptive")


class Detector:
    """A loaded network with its view plan and verdict rules; `Detector.load` gives one.

    `look` and a score's `more` may run in many threads at once, all else in one.

    Attributes:
        about: what is loaded, and how it runs.
    """

    def __init__(
        self,
        model: NSNet,
        engine: Engine,
        checkpoint: Checkpoint,
        runtime: Runtime,
        canvases: str,
        tower_sha256: str | None = None,
    ) -> None:
        metadata = checkpoint.metadata
        self._model = model
        self._engine = engine
        self._plan = metadata.views
        self._rules = metadata.verdicts
        self.about = About.of(checkpoint, engine, runtime, canvases, tower_sha256)

    @classmethod
    def load(
        cls,
        checkpoint: Path | None = None,
        *,
        runtime: Runtime | None = None,
        backbone: Path | None = None,
        backbone_sha256: str | None = None,
        canvases: str = "adaptive",
    ) -> Self:
        """Load a checkpoint and the tower it names.

        Args:
            checkpoint: by `save_checkpoint`; without it `DEFAULT_CHECKPOINT`.
            runtime: where and how it runs; without it the fastest here.
            backbone: the tower's file, before the cache and the registry.
            backbone_sha256: the digest that the tower must have, wherever it comes from.
            canvases: `all` of the view plan at once; `adaptive`: where the plan begins with the
                whole image, that, and the others only where its verdict is in doubt
                (`VerdictRules.settled`).

        Raises:
            ModelError: an unknown `canvases`, checkpoint or tower cannot be had or do not fit each
                other, or the runtime cannot be had here.
        """
        if canvases not in CANVASES:
            raise ModelError(f"canvases {canvases!r} is not one of {', '.join(CANVASES)}")
        stored = read_checkpoint(checkpoint or DEFAULT_CHECKPOINT)
        network = stored.metadata.network
        tower = load_backbone(
            network.backbone, path=backbone, depth=network.depth, sha256=backbone_sha256
        )
        if tower.sha256 != stored.metadata.backbone_sha256:
            log.warning(
                "the backbone's weights (sha256 %s) are another copy of %s than the checkpoint was "
                "trained on (%s); scores will differ a little",
                tower.sha256[:12],
                tower.name,
                stored.metadata.backbone_sha256[:12],
            )
        runtime = runtime or Runtime.resolve()
        model = build_model(stored, tower.visual)
        engine = make_engine(runtime, model, stored.ranges)
        if engine.owns_weights:
            model.release_tower()
        return cls(model, engine, stored, runtime, canvases, tower.sha256)

    def warm_up(self, images: Sequence[int]) -> None:
        """Run blank batches of so many images, so that the first request pays for nothing."""
        side = self._plan.canvas_size
        blank = self.look(np.zeros((side, side, 3), np.uint8))
        if blank.more is not None:
            blank.more()
        for count in images:
            self.predict([blank] * count)

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        """Cut what is looked at first out of a picture; the picture is not needed afterwards.

        Args:
            pixels: uint8 [H, W, 3], sRGB.
            explain: whether the score is to come with evidence.

        Raises:
            ImageTooSmallError: a side is below `min_side`.
        """
        writable = pixels if pixels.flags.writeable else pixels.copy()  # torch knows no other
        with self._engine.beside():
            image = self._engine.upload(torch.from_numpy(writable)).permute(2, 0, 1).unsqueeze(0)
            adaptive = self.about.canvases == "adaptive"
            look = self._plan.look(image, adaptive=adaptive, explain=explain)
        return dataclasses.replace(look, content=has_content(pixels))

    def submit(self, looks: Sequence[Look]) -> Pending:
        """Start scoring: one forward of all their canvases.

        A GPU works on it while this thread goes on; a CPU is done with it when this returns.

        Args:
            looks: at least one.
        """
        logits = self._forward([look.canvases for look in looks])
        # Apart from the others: a score is of the same batch with evidence as without.
        beside = [look.beside for look in looks if look.beside is not None]
        if beside:
            logits = torch.cat([logits, self._forward(beside)])
        fetched = self._engine.fetch(logits)
        return Pending(fetched, functools.partial(self._scores, looks))

    def predict(self, looks: Sequence[Look]) -> list[Score]:
        """Score pictures, those in doubt by all of their canvases, and wait for them.

        Raises:
            InferenceError: a score is not finite.
        """
        scores = self.submit(looks).result() if looks else []
        doubtful = [score.more() for score in scores if score.more is not None]
        if not doubtful:
            return scores
        again = iter(self.predict(doubtful))
        return [score if score.more is None else next(again) for score in scores]

    def verdict(self, score: Score, cut: float | None = None) -> Verdict:
        """What is said of a picture, by the checkpoint's cuts or one of the client's own."""
        return self.about.verdict(score, cut)

    def detect(
        self, images: Sequence[NDArray[np.uint8]], *, explain: bool = False
    ) -> list[Detection]:
        """Everything at once, in the order of the images.

        Args:
            images: uint8 [H, W, 3] each, sRGB.
            explain: whether to add evidence.

        Raises:
            ImageTooSmallError: as `look`.
            InferenceError: as `predict`.
        """
        return [
            Detection(self.verdict(s), s.value, s.looks, s.warnings, s.logit, s.evidence)
            for s in self.predict([self.look(pixels, explain=explain) for pixels in images])
        ]

    def torch_threads(self, threads: int) -> int:
        """How many of torch's threads should help `submit`, of as many as the engine was given."""
        return self._engine.torch_threads(threads)

    @torch.inference_mode()
    def _forward(self, images: Sequence[Tensor]) -> Tensor:
        """Logits of all canvases of images: uint8 [k, 3, S, S] each -> float32 [sum of k]."""
        return self._model.logits(self._engine(torch.cat(list(images))))

    def _scores(self, looks: Sequence[Look], logits: Iterator[float]) -> list[Score]:
        """Plain numbers: each of torch's operations on a few takes 0.1 ms after a forward."""
        scores = []
        seen_of = [(*look.seen, *itertools.islice(logits, len(look.canvases))) for look in looks]
        for look, seen in zip(looks, seen_of, strict=True):
            grounds = look.grounds
            if grounds is not None and look.beside is not None:
                windows = tuple(itertools.islice(logits, len(look.beside)))
                grounds = dataclasses.replace(grounds, logits=windows)
            logit = self._plan.combine(seen)
            if not math.isfinite(logit):
                raise InferenceError("the network's output is not finite")
            glance, more, evidence = look.more is not None, None, None
            if glance and look.content and not self._rules.settled(logit):
                more = functools.partial(self._next, look, seen, grounds)
            elif grounds is not None:
                evidence = evidence_of(grounds, seen, self._plan, self._rules, glance=glance)
            value = self._rules.score(logit, glance=glance)
            reasons = self._rules.reasons(look.quality, content=look.content)
            uneven = () if evidence is None or evidence.uneven is None else ("uneven",)
            warnings = (*look.warnings, *(reason.value for reason in reasons), *uneven)
            scores.append(Score(value, logit, len(seen), reasons, warnings, glance, more, evidence))
        return scores

    def _next(self, look: Look, seen: tuple[float, ...], grounds: Grounds | None) -> Look:
        with self._engine.beside():
            return look.following(seen, grounds)


def load(checkpoint: Path | None = None, **options: Any) -> Detector:
    """Load a detector; see `Detector.load`."""
    return Detector.load(checkpoint, **options)
