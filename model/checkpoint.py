"""One safetensors file holds all that is ours: projector basis, head, LoRA deltas, verdict rules.

The ranges of the tower's activations, for engines that multiply in int8, may lie beside them. The
frozen tower does not; its digest does.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import Tensor

from model.engines.ranges import Ranges, ranges_shapes
from model.errors import CheckpointError, ModelError
from model.network import NSNet, NSNetConfig
from model.tensorfile import parse_tensors, write_tensors
from model.tower.adapters import Deltas, merge_lora, named_tensors, read_deltas
from model.verdicts import Cut, VerdictRules, rules_of_format_1
from model.views.plan import ViewPlan

_KEY = "nsnet"
_LORA = "lora."
_RANGES = "ranges."


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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

    format: int = Field(2, ge=2, le=2, description="1 is read as well, see `_upgraded`")
    name: str = Field(pattern=r"^[a-z0-9.-]+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    network: NSNetConfig
    views: ViewPlan
    backbone_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    projector: Projector
    verdicts: VerdictRules
    training: Training
    evaluation: dict[str, Any] = Field(description="held-out figures, each with its conditions")

    @property
    def cuts(self) -> list[Cut]:
        """What cuts would do to left-out images; none where nobody measured it."""
        return _cuts(self.evaluation)

    @field_validator("evaluation")
    @classmethod
    def _readable(cls, evaluation: dict[str, Any]) -> dict[str, Any]:
        try:
            _cuts(evaluation)
        except ValidationError:
            raise ValueError("left_out_owners.cuts are no cuts with their shares") from None
        return evaluation

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "views" not in fields and fields.get("format", 1) == 1:
            return _from_format_1(fields)
        return fields


def _cuts(evaluation: Mapping[str, Any]) -> list[Cut]:
    held_out = evaluation.get("left_out_owners")
    cuts = held_out.get("cuts", []) if isinstance(held_out, dict) else []
    return TypeAdapter(list[Cut]).validate_python(cuts)


def _from_format_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 kept the views in the network, and one calibration; what is wrong stays wrong."""
    upgraded = {**fields, "format": 2}
    network = fields.get("network")
    if isinstance(network, dict):
        network = dict(network)
        rule, whole = network.pop("patches", {}), False
        if isinstance(rule, dict):
            rule = dict(rule)
            whole = _read_as(bool, rule.pop("whole", False))
            rule["canvases"] = _read_as(int, rule.get("canvases", 1))
            if whole is True and isinstance(rule["canvases"], int):
                rule["canvases"] -= 1
        upgraded["views"] = {
            "whole": whole,
            "whole_share": network.pop("whole_share", 0.5),
            "patches": rule,
        }
        upgraded["network"] = network
    if "calibration" in fields and "thresholds" in fields:
        upgraded["verdicts"] = rules_of_format_1(
            upgraded.pop("calibration"), upgraded.pop("thresholds")
        )
    return upgraded


def _read_as(kind: type, value: Any) -> Any:
    """A field's value as it is validated; itself where it is wrong, to be named in its place."""
    with contextlib.suppress(ValidationError):
        return TypeAdapter(kind).validate_python(value)
    return value


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated checkpoint file.

    Attributes:
        metadata: what it says of itself.
        tensors: `basis`, `head.*`, `lora.<parameter>.down|up` and `ranges.<layer>`; finite,
            float32. The basis is [d, `Projector.rank`] with orthonormal columns, and no range ends
            below its start.
        sha256: digest of the file.
    """

    metadata: Metadata
    tensors: dict[str, Tensor]
    sha256: str

    @property
    def ranges(self) -> Ranges | None:
        """By layer, as `ranges.activation_ranges` gives them; None where the file holds none."""
        return _split(self.tensors, _RANGES)[0] or None

    @property
    def deltas(self) -> Deltas:
        """What LoRA adds to the tower.

        Raises:
            CheckpointError: half of a pair is missing, or of no pair.
        """
        return read_deltas(_split(self.tensors, _LORA)[0])


def save_checkpoint(
    path: Path,
    model: NSNet,
    metadata: Metadata,
    deltas: Deltas | None = None,
    ranges: Ranges | None = None,
) -> None:
    """Write `model` without its tower.

    Args:
        path: the file.
        model: the network.
        metadata: what the file says of itself.
        deltas: what LoRA adds to the tower, as `adapters.merge_lora` takes it.
        ranges: of the adapted tower, by `ranges.activation_ranges`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    adapters = {f"{_LORA}{name}": tensor for name, tensor in named_tensors(deltas or {}).items()}
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}
    read = {f"{_RANGES}{layer}": tensor for layer, tensor in (ranges or {}).items()}
    everything = own | adapters | read
    tensors = {name: tensor.detach().float().cpu() for name, tensor in everything.items()}
    write_checkpoint(path, tensors, metadata)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write a checkpoint's tensors as they are, e.g. with other metadata than they came with.

    Args:
        path: the file.
        tensors: see `Checkpoint`.
        metadata: what the file says of itself.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        write_tensors(path, tensors, _KEY, metadata)
    except OSError as error:
        raise CheckpointError(f"no checkpoint can be written to {path}: {error.strerror}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and validate a checkpoint, without building anything.

    Raises:
        CheckpointError: missing, not safetensors, changed since it was written, invalid metadata,
            or a tensor is not as `Checkpoint` has it.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise CheckpointError(f"no checkpoint can be read at {path} (NSNET_CHECKPOINT)") from None
    try:
        tensors, metadata = parse_tensors(data, path, _KEY, Metadata, "an NS-Net checkpoint")
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    for name, tensor in tensors.items():
        fault = _fault(name, tensor, metadata.projector.rank)
        if fault:
            raise CheckpointError(f"{path}: tensor {name} is {fault}")
    return Checkpoint(metadata, tensors, hashlib.sha256(data).hexdigest())


def _fault(name: str, tensor: Tensor, rank: int) -> str | None:
    """What a tensor is that no checkpoint's may be."""
    shape = list(tensor.shape)
    if tensor.dtype != torch.float32:
        return f"{str(tensor.dtype).removeprefix('torch.')}, not float32"
    if not torch.isfinite(tensor).all():
        return "not finite"
    if name == "basis":
        if len(shape) != 2 or shape[1] != rank or rank > shape[0]:
            return f"{shape}, not [d, {rank}] as its metadata says"
        if not torch.allclose(tensor.T @ tensor, torch.eye(rank), atol=1e-4):
            return "not orthonormal"
    if name.startswith(_RANGES):
        if len(shape) != 3 or shape[1] != 2:
            return f"{shape}, not [blocks, 2, channels]"
        if (tensor[:, 0] > tensor[:, 1]).any():
            return "no ranges: one ends below its start"
    return None


def build_model(checkpoint: Checkpoint, visual: VisionTransformer) -> NSNet:
    """The network of a checkpoint on a loaded tower, LoRA merged, eval mode, gradients off.

    Args:
        checkpoint: by `read_checkpoint`.
        visual: the tower that it names, `NSNetConfig.depth` blocks at least; changed in place.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape, or canvases are not as
            large as the tower takes them.
    """
    ranges, tensors = _split(checkpoint.tensors, _RANGES)
    tensors = _split(tensors, _LORA)[1]
    deltas = checkpoint.deltas
    for name in ("basis", "head.embed.weight"):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint lacks the tensor {name}")
    config = checkpoint.metadata.network
    if tensors["head.embed.weight"].shape[:1] != (config.hidden,):
        raise CheckpointError("the checkpoint's head.embed.weight is not as wide as its hidden")
    merge_lora(visual, deltas)
    views = checkpoint.metadata.views
    if views.canvas_size != visual.image_size[0]:
        raise CheckpointError(
            f"canvases are {views.canvas_size} px, the tower takes {visual.image_size[0]} px"
        )
    with torch.device("meta"):  # no memory for a head that the file does not hold
        model = NSNet(config, visual, tensors["basis"])
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
        shapes = ranges_shapes(visual, model.spec.depth)
        if {layer: tuple(tensor.shape) for layer, tensor in ranges.items()} != shapes:
            raise CheckpointError("the checkpoint's ranges are not those of its tower's layers")
    # Copies: what was read may be a view of the file.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    model.load_state_dict(own, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _split(
    tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those whose name starts with the prefix, without it, and the others."""
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return own, {k: v for k, v in tensors.items() if not k.startswith(prefix)}
