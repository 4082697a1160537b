"""A checkpoint with its tower as one ONNX file, for runtimes without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import build_model, read_checkpoint
from model.errors import ModelError
from model.network import NSNet
from model.tower.sources import load_backbone

METADATA_KEY = "nsnet"
TOLERANCE = 1e-3  # logits; float32 kernels differ by about 1e-5

_OPSET = 18
_LIMIT = 2**31 - 1  # bytes that protobuf, hence one ONNX file, can hold


class ExportError(ModelError):
    """The ONNX file would not be the network."""


class _CanvasLogits(nn.Module):
    """The network up to one logit per canvas: to combine an image's is left to the caller."""

    def __init__(self, network: NSNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, canvases: Tensor) -> Tensor:
        return self.network.logits(self.network.tokens(canvases))


def export_onnx(
    checkpoint: Path,
    to: Path,
    *,
    backbone: Path | None = None,
    backbone_sha256: str | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Write the whole network as ONNX and check it against torch.

    The tower up to the last block read (LoRA merged), the projector and the head are in the file:
    `canvases` uint8 [n, 3, S, S] -> `logits` float32 [n], n free. `ViewPlan.combine` makes an
    image's logit of its canvases'. What remains outside is in `metadata_props`: `nsnet`, the
    checkpoint's metadata as JSON (view plan, verdict rules, ...), `checkpoint_sha256` and
    `backbone_sha256`.

    Args:
        checkpoint: by `checkpoint.save_checkpoint`.
        to: the ONNX file.
        backbone: the tower's file, before the cache and the registry.
        backbone_sha256: the digest that the tower must have, wherever it comes from.
        tolerance: largest accepted difference of a logit.

    Returns:
        The largest difference found between the ONNX file's logits and torch's.

    Raises:
        ModelError: the checkpoint or its tower cannot be had, the network is past the 2 GiB of one
            file, or the difference exceeds the tolerance; then nothing is written.
    """
    stored = read_checkpoint(checkpoint)
    config, side = stored.metadata.network, stored.metadata.views.canvas_size
    tower = load_backbone(
        config.backbone, path=backbone, depth=config.depth, sha256=backbone_sha256
    )
    network = _CanvasLogits(build_model(stored, tower.visual)).eval()
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if size > _LIMIT:
        raise ExportError(f"the network takes {size / 2**30:.1f} GiB; one ONNX file holds 2")
    program = _program(network, side)
    program.model.metadata_props.update(
        {
            METADATA_KEY: stored.metadata.model_dump_json(),
            "checkpoint_sha256": stored.sha256,
            "backbone_sha256": tower.sha256,
        }
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_suffix(".partial")
    try:
        program.save(partial, external_data=False)
        difference = max_difference(partial, network, side)
        if not difference <= tolerance:  # NaN fails, too
            raise ExportError(
                f"ONNX and torch differ by {difference:.2g}, more than {tolerance:.2g}"
            )
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _canvases(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def _program(network: nn.Module, size: int) -> Any:
    example = _canvases(2, size)  # of one, torch would take the batch for a constant
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that ONNX has no name for
    try:
        with torch.no_grad():
            network(example)  # constants cached on first use must not be the tracer's
            return torch.onnx.export(
                network,
                (example,),
                input_names=["canvases"],
                output_names=["logits"],
                dynamic_shapes={"canvases": {0: torch.export.Dim("n")}},
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@torch.no_grad()
def max_difference(path: Path, network: nn.Module, size: int) -> float:
    """Largest |logit| difference between the ONNX file and torch on random canvases.

    Args:
        path: the ONNX file.
        network: uint8 [n, 3, S, S] -> float32 [n].
        size: S.

    Raises:
        ExportError: the ONNX file gives logits of another shape.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for count in (1, 3):  # neither is the traced batch
        canvases = _canvases(count, size)
        (logits,) = session.run(["logits"], {"canvases": canvases.numpy()})
        expected = network(canvases).numpy()
        if logits.shape != expected.shape:
            raise ExportError(f"ONNX gives logits {logits.shape} for {count} canvases")
        differences.append(np.abs(logits - expected).max())
    return float(np.max(differences))
