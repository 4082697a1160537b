"""The one object the service sees: pixels in, calibrated verdicts out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backbone import load_backbone
from model.checkpoint import Checkpoint, Thresholds, Verdict, build_model, read_checkpoint
from model.errors import ImageTooSmallError, ModelError
from model.nsnet import NSNet
from model.patches import select_patches

__all__ = [
    "Detection",
    "Detector",
    "ImageTooSmallError",
    "ModelError",
    "Prepared",
    "Thresholds",
    "Verdict",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image reduced to what the network reads.

    Attributes:
        canvases: uint8 [K, 3, S, S].
        warnings: machine-readable notes, e.g. `few_patches`.
    """

    canvases: Tensor
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Detection:
    """One image's result.

    Attributes:
        score: calibrated probability that the image is AI-generated, 0..1.
        verdict: by the checkpoint's thresholds.
        warnings: those of `Prepared`.
    """

    score: float
    verdict: Verdict
    warnings: tuple[str, ...]


class InferenceError(ModelError):
    """The network gave a score that is not a number."""


class Detector:
    """A loaded network with its patch rule, calibration and thresholds.

    `prepare` may run in many threads at once, `predict` in one.
    """

    def __init__(self, model: NSNet, checkpoint: Checkpoint, device: torch.device) -> None:
        metadata = checkpoint.metadata
        self._model = model
        self._calibration = metadata.calibration
        self.name = metadata.name
        self.version = metadata.version
        self.sha256 = checkpoint.sha256
        self.backbone = metadata.network.backbone
        self.backbone_sha256 = metadata.backbone_sha256
        self.device = device
        self.dtype = model.visual.conv1.weight.dtype
        self.thresholds = metadata.thresholds
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
    ) -> Self:
        """Load a checkpoint and the tower it names.

        Args:
            checkpoint: a safetensors file by `save_checkpoint`.
            backbone: the tower's file, before the cache and the registry.
            device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
            dtype: of the tower: `auto` (bfloat16 on CUDA and on CPUs that multiply it natively,
                else float32), or by name.

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
        model.visual.to(kind)
        return cls(model.to(where), stored, where)

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run blank batches of these sizes, so that the first request pays for nothing."""
        size = self._model.config.patches.canvas_size
        for count in batch_sizes:
            self._logits([torch.zeros(1, 3, size, size, dtype=torch.uint8)] * count)

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        """Select the patches of one image.

        Args:
            pixels: uint8 [H, W, 3], sRGB.

        Raises:
            ImageTooSmallError: a side is below `min_side`.
        """
        writable = pixels if pixels.flags.writeable else pixels.copy()  # torch knows no other
        image = torch.from_numpy(writable).permute(2, 0, 1).unsqueeze(0)
        selection = select_patches(image, self._model.config.patches)
        warnings = ("few_patches",) if selection.sparse else ()
        return Prepared(selection.canvases[0], warnings)

    def predict(self, batch: Sequence[Prepared]) -> list[Detection]:
        """Score prepared images in one forward of all their canvases.

        Raises:
            InferenceError: a score is not finite.
        """
        if not batch:
            return []
        scores = self._calibration.scores(self.logits(batch)).tolist()
        return [
            Detection(score, self.thresholds.verdict(score), item.warnings)
            for score, item in zip(scores, batch, strict=True)
        ]

    def logits(self, batch: Sequence[Prepared]) -> Tensor:
        """The network's output before calibration, for evaluation and for another calibration.

        Args:
            batch: at least one prepared image.

        Returns:
            float64 [n], finite.

        Raises:
            InferenceError: a logit is not finite.
        """
        logits = self._logits([item.canvases for item in batch])
        if not torch.isfinite(logits).all():
            raise InferenceError("the network's output is not finite")
        return logits

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detection]:
        """`prepare` and `predict` together."""
        return self.predict([self.prepare(pixels) for pixels in images])

    @torch.inference_mode()
    def _logits(self, canvases: Sequence[Tensor]) -> Tensor:
        pixels = torch.cat(list(canvases)).to(self.device)
        logits: Tensor = self._model(pixels, [len(c) for c in canvases])
        return logits.double().cpu()


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
        native = where.type == "cuda" or _cpu_multiplies_bfloat16()
        return where, torch.bfloat16 if native else torch.float32
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"the dtype {dtype!r} is not one of float32, bfloat16, float16")
    return where, kind


def _cpu_multiplies_bfloat16() -> bool:
    """Whether bfloat16 is the fast type here; elsewhere it is emulated, and slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
