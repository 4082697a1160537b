"""The one object the service sees: pixels in, calibrated verdicts out."""

import contextlib
import functools
import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backbone import load_backbone
from model.checkpoint import Checkpoint, Thresholds, Verdict, build_model, read_checkpoint
from model.engines import Engine, TorchEngine, cpu_has, make_engine
from model.errors import ImageTooSmallError, ModelError
from model.nsnet import NSNet
from model.patches import (
    Candidates,
    PatchRule,
    choose_patches,
    cut_candidates,
    select_patches,
    whole_image,
)

__all__ = [
    "Detection",
    "Detector",
    "Doubt",
    "ImageTooSmallError",
    "ModelError",
    "Pending",
    "Prepared",
    "Thresholds",
    "Verdict",
]

log = logging.getLogger(__name__)

# Log-odds between the whole image and a threshold; see `Detector.settled`.
CLEARING_MARGIN = 0.25
ACCUSING_MARGIN = 0.75


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image reduced to what the network reads.

    Attributes:
        canvases: uint8 [K, 3, S, S], on the network's device.
        warnings: machine-readable notes, e.g. `few_patches`.
        others: selects further canvases, uint8 [L, 3, S, S], for where these leave doubt; None
            where there are no others.
        seen: logits of the image's canvases that were scored before these.
    """

    canvases: Tensor
    warnings: tuple[str, ...]
    others: Callable[[], Tensor] | None = None
    seen: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Detection:
    """One image's result.

    Attributes:
        score: calibrated probability that the image is AI-generated, 0..1.
        verdict: by the checkpoint's thresholds.
        warnings: those of `Prepared`.
        logit: the network's output, before calibration.
    """

    score: float
    verdict: Verdict
    warnings: tuple[str, ...]
    logit: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """An image that the canvases scored so far do not settle.

    Attributes:
        look: prepares its other canvases, which are scored like any image's, and settle it. Takes
            a few milliseconds of a core; may run in any thread.
    """

    look: Callable[[], Prepared]


class InferenceError(ModelError):
    """The network gave a score that is not a number."""


class Pending:
    """A batch that was handed to the device; a CPU is done with its forward by then.

    Args:
        logits: float32 [n], of the canvases; on a GPU in pinned memory, still being written to.
        copied: marks the end of that.
        finish: turns them into results.
    """

    def __init__(
        self,
        logits: Tensor,
        copied: torch.cuda.Event | None,
        finish: Callable[[list[float]], list[Detection | Doubt]],
    ) -> None:
        self._logits = logits
        self._copied = copied
        self._finish = finish

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._copied is None or self._copied.query()  # type: ignore[no-untyped-call]

    def result(self) -> list[Detection | Doubt]:
        """Wait for the device.

        Raises:
            InferenceError: a score is not finite.
            RuntimeError: the device failed.
        """
        if self._copied is not None:
            self._copied.synchronize()
        return self._finish(self._logits.tolist())


class Detector:
    """A loaded network with its patch rule, calibration and thresholds.

    `prepare` may run in many threads at once, all else in one.
    """

    def __init__(
        self, model: NSNet, engine: Engine, checkpoint: Checkpoint, device: torch.device,
        dtype: torch.dtype,
        canvases: str,
    ) -> None:  # fmt: skip
        metadata = checkpoint.metadata
        self._model = model
        self._engine = engine
        self._calibration = metadata.calibration
        self.name = metadata.name
        self.version = metadata.version
        self.sha256 = checkpoint.sha256
        self.backbone = metadata.network.backbone
        self.backbone_sha256 = metadata.backbone_sha256
        self.device = device
        self.engine = engine.name
        self.canvases = canvases
        self.dtype = "int8" if engine.name == "int8" else str(dtype).removeprefix("torch.")
        self.thresholds = metadata.thresholds
        cuts = [self.thresholds.real_below, self.thresholds.ai_above]
        self._cut_odds: list[float] = torch.logit(torch.tensor(cuts, dtype=torch.double)).tolist()
        self.min_side = metadata.network.patches.min_side
        self.calibration: Mapping[str, Any] = metadata.calibration.model_dump()
        self.evaluation: Mapping[str, Any] = metadata.evaluation

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        backbone: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        engine: str = "auto",
        threads: int | None = None,
        canvases: str = "adaptive",
    ) -> Self:
        """Load a checkpoint and the tower it names.

        Args:
            checkpoint: a safetensors file by `save_checkpoint`.
            backbone: the tower's file, before the cache and the registry.
            device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
            dtype: of the tower: `auto` (bfloat16 on CUDA and on CPUs that multiply it, by AMX or
                AVX-512 BF16, else float32), or by name.
            engine: what runs the tower, see `engines.make_engine`.
            threads: of an engine with threads of its own; None: as many as torch has here.
            canvases: `all` that the patch rule selects; `adaptive`: where the rule begins with the
                whole image, that, and windows only where its verdict is in doubt (`settled`), which
                costs two thirds of the time and hardly a verdict (`benchmarks/engines.py`).

        Raises:
            ModelError: with one clear line.
        """
        stored = read_checkpoint(checkpoint)
        network = stored.metadata.network
        tower = load_backbone(network.backbone, path=backbone, depth=network.depth)
        if tower.sha256 != stored.metadata.backbone_sha256:
            log.warning(
                "the backbone's weights (sha256 %s) are another copy of %s than the checkpoint was "
                "trained on (%s); scores will differ a little",
                tower.sha256[:12], tower.name, stored.metadata.backbone_sha256[:12],
            )  # fmt: skip
        where, kind = place(device, dtype)
        model = build_model(stored, tower.visual)
        run = make_engine(
            engine,
            model,
            device=where,
            dtype=kind,
            threads=threads or torch.get_num_threads(),
            ranges=stored.ranges,
        )
        if not isinstance(run, TorchEngine):
            model.release_tower()  # the engine has weights of its own
        if canvases not in ("all", "adaptive"):
            raise ModelError(f"canvases {canvases!r} is not one of all, adaptive")
        return cls(model, run, stored, where, kind, canvases)

    def warm_up(self, images: Sequence[int] = (1,)) -> None:
        """Run blank batches of so many images, so that the first request pays for nothing."""
        side = self._model.config.patches.canvas_size
        blank = self.prepare(np.zeros((side, side, 3), np.uint8))
        if blank.others is not None:
            blank.others()
        for count in images:
            self.predict([blank] * count)

    def prepare(self, pixels: NDArray[np.uint8], *, thorough: bool = False) -> Prepared:
        """Cut one image into the canvases that the network looks at.

        What is returned takes the memory of `PatchRule.candidates` canvases and one at most: a
        larger image is let go, and copies of what may be looked at are kept.

        Args:
            pixels: uint8 [H, W, 3], sRGB.
            thorough: all canvases at once, whatever `canvases` says: for other cuts than the
                checkpoint's, which alone `settled` knows.

        Raises:
            ImageTooSmallError: a side is below `min_side`.
        """
        writable = pixels if pixels.flags.writeable else pixels.copy()  # torch knows no other
        image = torch.from_numpy(writable)
        rule = self._model.config.patches
        others = None
        with _side_stream(self.device) as stream:
            if stream is not None:
                image = image.pin_memory().to(self.device, non_blocking=True)
            images = image.permute(2, 0, 1).unsqueeze(0)
            if self.canvases == "adaptive" and not thorough and rule.whole and rule.canvases > 1:
                selection = whole_image(images, rule)
                large = images.numel() > rule.candidates * selection.canvases.numel()
                kept = cut_candidates(images, rule) if large else images
                others = functools.partial(_windows, kept, rule)
            else:
                selection = select_patches(images, rule)
        warnings = ("few_patches",) if selection.sparse else ()
        return Prepared(selection.canvases[0], warnings, others)

    def submit(self, batch: Sequence[Prepared]) -> Pending:
        """Start scoring prepared images: one forward of all their canvases.

        A GPU works on it while this thread goes on; a CPU is done with it when this returns.

        Args:
            batch: at least one image.
        """
        logits = self._forward([item.canvases for item in batch])
        copied = None
        if logits.device.type == "cuda":
            stream = torch.cuda.current_stream(logits.device)
            host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            logits = host.copy_(logits, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        return Pending(logits, copied, functools.partial(self._results, batch))

    def predict(self, batch: Sequence[Prepared]) -> list[Detection]:
        """Score prepared images, those in doubt by all of their canvases, and wait for them.

        Raises:
            InferenceError: a score is not finite.
        """
        found = self.submit(batch).result() if batch else []
        settled = [of for of in found if isinstance(of, Detection)]
        if len(settled) == len(found):
            return settled
        again = iter(self.predict([of.look() for of in found if isinstance(of, Doubt)]))
        return [of if isinstance(of, Detection) else next(again) for of in found]

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detection]:
        """`prepare` and `predict` together."""
        return self.predict([self.prepare(pixels) for pixels in images])

    def torch_threads(self, threads: int) -> int:
        """How many of torch's threads help `predict`, of as many as the engine was given.

        Beside an engine of its own threads, one: torch's others spin on for a millisecond after
        each operation, and the engine's wait for the cores.
        """
        return threads if self.engine == "torch" else 1

    @torch.inference_mode()
    def _forward(self, images: Sequence[Tensor]) -> Tensor:
        """Logits of all canvases of images: uint8 [k, 3, S, S] each -> float32 [sum of k]."""
        return self._model.logits(self._engine(torch.cat(list(images))))

    def settled(self, logit: float) -> bool:
        """Whether the whole image is enough, by its logit.

        It is where a window would hardly change the verdict: the whole image alone and with its
        window differ by 0.28 in log-odds (mean over the 385 validation images). Nothing near an
        accusation is ever settled: no photograph is accused by one canvas.
        """
        odds = self._calibration.odds(logit)
        real, ai = self._cut_odds
        return odds < ai - ACCUSING_MARGIN and abs(odds - real) > CLEARING_MARGIN

    def _results(self, batch: Sequence[Prepared], logits: list[float]) -> list[Detection | Doubt]:
        """Those of images, from the logits of their canvases.

        Plain numbers: each of torch's operations on a few takes 0.1 ms after a forward.
        """
        values = iter(logits)
        found: list[Detection | Doubt] = []
        for item in batch:
            seen = (*item.seen, *itertools.islice(values, len(item.canvases)))
            logit = self._model.config.combine(seen)
            if not math.isfinite(logit):
                raise InferenceError("the network's output is not finite")
            if item.others is not None and not self.settled(logit):
                found.append(Doubt(functools.partial(self._look, item, seen)))
                continue
            score = self._calibration.score(logit)
            verdict = self.thresholds.verdict(score)
            found.append(Detection(score, verdict, item.warnings, logit))
        return found

    def _look(self, item: Prepared, seen: tuple[float, ...]) -> Prepared:
        assert item.others is not None  # noqa: S101  (else there was no doubt)
        with _side_stream(self.device):
            return Prepared(item.others(), item.warnings, seen=seen)


def _windows(kept: Tensor | Candidates, rule: PatchRule) -> Tensor:
    """The native windows of an image, or among its candidates: uint8 [K - 1, 3, S, S]."""
    candidates = cut_candidates(kept, rule) if isinstance(kept, Tensor) else kept
    return choose_patches(candidates, rule).canvases[0]


_streams = threading.local()


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """On a GPU, this thread's stream beside the forward's, done in the end; elsewhere nothing."""
    if device.type != "cuda":
        yield None
        return
    # One a thread: memory that one stream let go of is not another's.
    stream: torch.cuda.Stream | None = getattr(_streams, str(device), None)
    if stream is None:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        setattr(_streams, str(device), stream)
    with torch.cuda.stream(stream):
        yield stream
        stream.synchronize()  # only this thread waits: the forward goes on meanwhile


def place(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Resolve `auto` in both; see `Detector.load`.

    Raises:
        ModelError: a device that cannot be used here, or a dtype that is not one of the three.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {device!r} cannot be used here") from error
    if dtype == "auto":
        # Where a CPU does not multiply bfloat16 itself, it is slower than float32.
        native = where.type == "cuda" or cpu_has("amx_bf16", "avx512_bf16")
        return where, torch.bfloat16 if native else torch.float32
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"the dtype {dtype!r} is not one of float32, bfloat16, float16")
    return where, kind
