"""One safetensors file holds all that is ours: projector basis, head, LoRA deltas, calibration.

Beside them may lie the ranges of the tower's activations, for engines that multiply in int8.

The frozen tower is not in it; its digest is.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from model.errors import CheckpointError, ModelError
from model.nsnet import Logit, NSNet, NSNetConfig, merge_lora
from model.ranges import Ranges, ranges_shapes
from model.tensorfile import parse_tensors, write_tensors

KEY = "nsnet"
_LORA = "lora."
_RANGES = "ranges."


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Verdict(StrEnum):
    """What is said of an image."""

    AI_GENERATED = "ai_generated"
    REAL = "real"
    UNCERTAIN = "uncertain"


class Thresholds(_Strict):
    """Cuts on the calibrated score; between them the verdict is `uncertain`."""

    real_below: float = Field(ge=0.0, le=1.0)
    ai_above: float = Field(ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.real_below > self.ai_above:
            raise ValueError("real_below must not exceed ai_above")
        return self

    def verdict(self, score: float) -> Verdict:
        """`ai_generated` from `ai_above` on, `real` under `real_below`, `uncertain` between."""
        if score >= self.ai_above:
            return Verdict.AI_GENERATED
        return Verdict.REAL if score < self.real_below else Verdict.UNCERTAIN


class Calibration(_Strict):
    """Platt scaling: score = sigmoid(slope * logit + intercept)."""

    slope: float = Field(gt=0.0)
    intercept: float
    fitted_on: str = Field(description="which held-out logits gave the two numbers")

    def odds(self, logit: Logit) -> Logit:
        """Log-odds of AI generation."""
        return self.slope * logit + self.intercept

    def scores(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of AI generation, of the logits' shape and dtype."""
        return torch.sigmoid(self.odds(logits))

    def score(self, logit: float) -> float:
        """`scores` of one, which an operation of torch's after a forward takes 0.1 ms to give."""
        return 0.5 + 0.5 * math.tanh(0.5 * self.odds(logit))


class Projector(_Strict):
    """What was removed (`nullspace.NullSpace`)."""

    rank: int = Field(ge=0)
    energy: float = Field(ge=0.0, le=1.0)
    residual: float = Field(ge=0.0, le=1.0)
    source: str = Field(description="which texts V was computed from")


class Training(_Strict):
    """Where the weights come from."""

    command: str
    revision: str = Field(description="git revision of the code")
    data_sha256: str = Field(description="digest of the training manifest's rows")
    images: dict[str, int] = Field(description="images per class")
    groups: dict[str, int] = Field(description="generators and sources per class")
    options: dict[str, Any]
    tower_sha256: str | None = Field(
        None, description="digest of the checkpoint whose adapted tower was taken as it is"
    )


class Metadata(_Strict):
    """All that a checkpoint says of itself; validated at load."""

    format: int = Field(1, ge=1, le=1)
    name: str = Field(pattern=r"^[a-z0-9.-]+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    network: NSNetConfig
    backbone_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    projector: Projector
    calibration: Calibration
    thresholds: Thresholds
    training: Training
    evaluation: dict[str, Any] = Field(description="held-out figures, each with its conditions")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated checkpoint file.

    Attributes:
        metadata: what it says of itself.
        tensors: `basis`, `head.*`, `lora.<parameter>.down|up` and `ranges.<layer>`; finite,
            float32.
        sha256: digest of the file.
    """

    metadata: Metadata
    tensors: dict[str, Tensor]
    sha256: str

    @property
    def ranges(self) -> Ranges | None:
        """What `ranges.activation_ranges` found, or None where the file holds none."""
        return _split(self.tensors, _RANGES)[0] or None

    @property
    def deltas(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What LoRA adds to the tower, as `nsnet.merge_lora` takes it.

        Raises:
            CheckpointError: half of a pair is missing, or of no pair.
        """
        lora = _split(self.tensors, _LORA)[0]
        names = {name.rsplit(".", 1)[0] for name in lora}
        try:
            found = {name: (lora.pop(f"{name}.down"), lora.pop(f"{name}.up")) for name in names}
        except KeyError as missing:
            raise CheckpointError(f"the checkpoint lacks lora.{missing.args[0]}") from None
        if lora:
            raise CheckpointError(f"the checkpoint has an unknown tensor lora.{min(lora)}")
        return found


def save_checkpoint(
    path: Path,
    model: NSNet,
    metadata: Metadata,
    deltas: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ranges: Ranges | None = None,
) -> None:
    """Write `model` without its tower.

    Args:
        path: the file.
        model: the network.
        metadata: what the file says of itself.
        deltas: what LoRA adds to the tower, as `nsnet.merge_lora` takes it.
        ranges: of the adapted tower, by `ranges.activation_ranges`.
    """
    adapters = {
        f"{_LORA}{name}.{part}": tensor
        for name, pair in (deltas or {}).items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}
    read = {f"{_RANGES}{layer}": tensor for layer, tensor in (ranges or {}).items()}
    everything = own | adapters | read
    tensors = {name: tensor.detach().float().cpu() for name, tensor in everything.items()}
    write_tensors(path, tensors, KEY, metadata)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and validate a checkpoint, without building anything.

    Raises:
        CheckpointError: missing, not safetensors, invalid metadata, or a non-finite tensor.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise CheckpointError(f"no checkpoint can be read at {path} (NSNET_CHECKPOINT)") from None
    try:
        tensors, metadata = parse_tensors(data, path, KEY, Metadata, "an NS-Net checkpoint")
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name} is not finite")
    return Checkpoint(metadata, tensors, hashlib.sha256(data).hexdigest())


def build_model(checkpoint: Checkpoint, visual: Any) -> NSNet:
    """The network of a checkpoint on a loaded tower, LoRA merged, eval mode.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    ranges, tensors = _split(checkpoint.tensors, _RANGES)
    tensors = _split(tensors, _LORA)[1]
    deltas = checkpoint.deltas
    if "basis" not in tensors:
        raise CheckpointError("the checkpoint lacks the tensor basis")
    merge_lora(visual, deltas)
    model = NSNet(checkpoint.metadata.network, visual, tensors["basis"])
    expected = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("visual.")}
    for name in sorted(expected.keys() ^ tensors.keys()):
        state = "lacks the" if name in expected else "has an unknown"
        raise CheckpointError(f"the checkpoint {state} tensor {name}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"the checkpoint's {name} is {list(tensors[name].shape)}, not {list(shape)}"
            )
    if ranges:
        shapes = ranges_shapes(visual, model.reads[-1])
        if {layer: tuple(tensor.shape) for layer, tensor in ranges.items()} != shapes:
            raise CheckpointError("the checkpoint's ranges are not those of its tower's layers")
    model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval()


def _split(
    tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those whose name starts with the prefix, without it, and the others."""
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return own, {k: v for k, v in tensors.items() if not k.startswith(prefix)}
