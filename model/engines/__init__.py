"""What runs the tower: torch, or on a CPU graphs of OpenVINO and ONNX Runtime.

An engine changes how fast the tokens are computed, never which: the checkpoint is the same for all.
`benchmarks/engines.py` measures by how much scores, verdicts and speed differ between them.
"""

from collections.abc import Callable, Sequence

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from model.engines.base import Engine, EngineError, cpu_has
from model.engines.onnx_graph import OnnxEngine, onnxruntime
from model.engines.openvino_graph import OpenVinoEngine, openvino
from model.engines.pytorch import CudaEngine, TorchEngine
from model.nsnet import NSNet
from model.ranges import Ranges

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "TorchEngine",
    "cpu_has",
    "make_engine",
    "state_engine",
    "tower_engine",
]

ENGINES = ("torch", "openvino", "int8")
# Instructions that multiply int8 and add up in int32.
_NATIVE_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


def make_engine(
    name: str,
    model: NSNet,
    *,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    ranges: Ranges | None = None,
) -> Engine:
    """Build an engine for a network's tower.

    Args:
        name: `auto`, or one of `ENGINES`. `auto`: the fastest of them on a CPU that can be had with
            these ranges; on another device torch.
        model: the network, LoRA merged; moved to `device` for torch, else left as it is.
        device: where it runs.
        dtype: of torch's weights, and of what OpenVINO computes in floating point.
        threads: of the graphs'; torch's are a setting of the process.
        ranges: of the tower's activations, for int8 with fixed scales.

    Raises:
        EngineError: an unknown name, a graph for another device than a CPU, its runtime not
            installed, or a tower that the graphs have no words for.
    """
    if name == "auto":
        name = _fastest(device, dtype, ranges)
    if name not in ENGINES:
        raise EngineError(f"the engine {name!r} is not one of auto, {', '.join(ENGINES)}")
    if name == "torch":
        engine = CudaEngine if device.type == "cuda" else TorchEngine
        return engine(model, device, dtype)
    return tower_engine(
        name, model.visual, model.reads, device=device, dtype=dtype, threads=threads, ranges=ranges,
        pooled_after=model.config.pooled_after,
    )  # fmt: skip


def _fastest(device: torch.device, dtype: torch.dtype, ranges: Ranges | None) -> str:
    if device.type != "cpu":
        return "torch"
    if ranges is not None and _int8_is_onnx():
        return "int8"
    if not openvino():
        return "torch"
    if dtype == torch.bfloat16 and cpu_has("amx_bf16") and ranges is None:
        return "openvino"  # int8 with scales of the moment does not reach the tiles
    return "int8" if cpu_has(*_NATIVE_INT8) else "openvino"


def _int8_is_onnx() -> bool:
    """Whether int8 is ONNX Runtime's: OpenVINO computes in floating point on such a CPU."""
    return cpu_has("avx2") and not cpu_has(*_NATIVE_INT8) and onnxruntime() is not None


def tower_engine(
    name: str,
    visual: VisionTransformer,
    reads: Sequence[int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    ranges: Ranges | None = None,
    pooled_after: int = 0,
) -> Engine:
    """Build an engine of its own weights, `openvino` or `int8`, for any tower; see `make_engine`.

    Raises:
        EngineError: as `make_engine`.
    """
    _check(name, device)
    if name == "int8" and ranges is not None and _int8_is_onnx():
        return OnnxEngine(visual, reads, threads, ranges, pooled_after)
    return OpenVinoEngine(
        visual, reads, dtype, threads, int8=name == "int8", ranges=ranges, pooled_after=pooled_after
    )


def state_engine(
    name: str,
    visual: VisionTransformer,
    reads: Sequence[int],
    kept: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    pooled_after: int = 0,
    pool_kept: bool = False,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Make what gives an engine's tokens, and all tokens after the block `kept`.

    What adapters are fitted to must be exact: `int8` does not give it.

    Raises:
        EngineError: as `tower_engine`, or the engine is int8.
    """
    _check(name, device)
    if name == "int8":
        raise EngineError("adapters learn from what torch or openvino computes, not from int8")
    return OpenVinoEngine(
        visual, reads, dtype, threads, int8=False, pooled_after=pooled_after, kept=kept,
        pool_kept=pool_kept,
    ).with_hidden  # fmt: skip


def _check(name: str, device: torch.device) -> None:
    if name not in ("openvino", "int8"):
        raise EngineError(f"the tower's engine {name!r} is not one of torch, openvino, int8")
    if device.type != "cpu":
        raise EngineError(f"the engine {name!r} runs on the CPU, not on {device}")
