"""Which engines there are, and which of them runs a tower."""

from collections.abc import Callable
from dataclasses import replace

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from model.engines.base import Engine, EngineError
from model.engines.onnx_graph import OnnxEngine, onnxruntime
from model.engines.openvino_graph import OpenVinoEngine, openvino
from model.engines.pytorch import CudaEngine, TorchEngine
from model.engines.ranges import Ranges
from model.hardware import Runtime, cpu_has
from model.network import NSNet
from model.tower.tokens import TowerSpec

# By engine, what its products can multiply in; the first is what `auto` means.
ENGINES = {"torch": ("float",), "openvino": ("float", "int8"), "onnxruntime": ("int8",)}
# Instructions that multiply int8 and add up in int32.
_NATIVE_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


def make_engine(runtime: Runtime, model: NSNet, ranges: Ranges | None = None) -> Engine:
    """Build an engine for a network's tower.

    Args:
        runtime: what is wanted of it; `auto`: the fastest that can be had with these ranges on a
            CPU, and torch on another device.
        model: the network, LoRA merged; moved to the device for torch, else left as it is.
        ranges: of the tower's activations, for int8 with fixed scales.

    Raises:
        EngineError: an unknown engine or precision, or no engine for both, a graph for another
            device than a CPU, its runtime not installed, or a tower that the graphs have no words
            for.
    """
    runtime = decide(runtime, ranges)
    if runtime.engine == "torch":
        return (CudaEngine if runtime.device.type == "cuda" else TorchEngine)(model, runtime)
    return tower_engine(runtime, model.visual, model.spec, ranges)


def decide(runtime: Runtime, ranges: Ranges | None) -> Runtime:
    """The same with engine and precision named; see `make_engine`.

    Raises:
        EngineError: an unknown engine or precision, or no engine for both.
    """
    engine, precision = runtime.engine, runtime.precision
    if engine not in ("auto", *ENGINES):
        raise EngineError(f"the engine {engine!r} is not one of auto, {', '.join(ENGINES)}")
    if precision not in ("auto", "float", "int8"):
        raise EngineError(f"the precision {precision!r} is not one of auto, float, int8")
    if engine == "auto":
        fastest = _fastest(runtime, ranges)
        fitting = [pair for pair in fastest if precision in ("auto", pair[1])]
        if not fitting:
            raise EngineError(f"no engine multiplies in {precision} here")
        engine, precision = fitting[0]
    elif precision == "auto":
        precision = ENGINES[engine][0]
    if precision not in ENGINES[engine]:
        raise EngineError(f"the engine {engine!r} does not multiply in {precision}")
    return replace(runtime, engine=engine, precision=precision)


def _fastest(runtime: Runtime, ranges: Ranges | None) -> list[tuple[str, str]]:
    """Engines with their precision, the fastest here first."""
    if runtime.device.type != "cpu":
        return [("torch", "float")]
    graphs = [("openvino", "float"), ("openvino", "int8")] if openvino() else []
    if cpu_has(*_NATIVE_INT8):
        amx = runtime.dtype == torch.bfloat16 and cpu_has("amx_bf16")
        if not (amx and ranges is None):  # int8 with scales of the moment does not reach the tiles
            graphs.reverse()
    elif ranges is not None and cpu_has("avx2") and onnxruntime() is not None:
        # OpenVINO computes in floating point on such a CPU, whatever it is asked for.
        graphs.insert(0, ("onnxruntime", "int8"))
    return [*graphs, ("torch", "float")]


def tower_engine(
    runtime: Runtime, visual: VisionTransformer, spec: TowerSpec, ranges: Ranges | None = None
) -> Engine:
    """Build an engine with weights of its own for any tower.

    Args:
        runtime: see `make_engine`.
        visual: the tower, LoRA merged; left as it is.
        spec: what is read of it.
        ranges: see `make_engine`.

    Raises:
        EngineError: as `make_engine`, or the engine is torch.
    """
    runtime = decide(runtime, ranges)
    _check_graph(runtime)
    if runtime.engine == "onnxruntime":
        if ranges is None:
            raise EngineError("onnxruntime multiplies by known ranges, and the checkpoint has none")
        return OnnxEngine(visual, spec, runtime, ranges)
    return OpenVinoEngine(visual, spec, runtime, int8=runtime.precision == "int8", ranges=ranges)


def state_engine(
    runtime: Runtime,
    visual: VisionTransformer,
    spec: TowerSpec,
    kept: int,
    *,
    pool_kept: bool = False,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Make what gives an engine's tokens, and all tokens after the block `kept`.

    What adapters are fitted to must be exact: int8 does not give it.

    Args:
        runtime: see `make_engine`.
        visual: the tower.
        spec: what is read of it.
        kept: counted from 1.
        pool_kept: pool those tokens, of a tower that is not pooled.

    Returns:
        Of canvases uint8 [n, 3, S, S]: tokens float32 [n, reads, width], and float32 [n, L, width].

    Raises:
        EngineError: as `tower_engine`, or it multiplies in int8.
    """
    runtime = decide(runtime, None)
    _check_graph(runtime)
    if runtime.precision == "int8":
        raise EngineError("adapters learn from what torch or openvino computes, not from int8")
    engine = OpenVinoEngine(visual, spec, runtime, int8=False, kept=kept, pool_kept=pool_kept)
    return engine.with_hidden


def _check_graph(runtime: Runtime) -> None:
    if runtime.engine == "torch":
        raise EngineError("torch runs the network's own tower: it has no graph")
    if runtime.device.type != "cpu":
        raise EngineError(f"the engine {runtime.engine!r} runs on the CPU, not on {runtime.device}")
