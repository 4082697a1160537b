"""What runs the tower: torch, or on a CPU OpenVINO, in its float type or with int8 products.

An engine changes how fast the tokens are computed, never which: the checkpoint is the same for all.
`benchmarks/engines.py` measures by how much scores, verdicts and speed differ between them.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from model.backbone import MEAN, STD
from model.errors import ModelError
from model.nsnet import NSNet
from model.ranges import Ranges, smooth

ENGINES = ("torch", "openvino", "int8")
# In one forward on a CPU: more at once is no faster, and takes memory with it.
_CPU_TOKENS = 8 * 197
_GROUP = 64  # channels that share a scale in int8
_BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # canvases in one forward on a GPU


class EngineError(ModelError):
    """The engine cannot be had here, or does not know the tower."""


class Engine(Protocol):
    """A tower ready to run."""

    name: str

    def __call__(self, canvases: Tensor) -> Tensor:
        """ln_post of the CLS tokens of the blocks read.

        Args:
            canvases: uint8 [n, 3, S, S].

        Returns:
            float [n, blocks, width], on the device that computed it.
        """


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
        name: `auto`, or one of `ENGINES`. `auto`: on a CPU with OpenVINO int8 where the CPU
            multiplies it natively, openvino where it does not, or where it multiplies tiles of
            bfloat16 (AMX) and the ranges are not known; else torch.
        model: the network, LoRA merged; moved to `device` for torch, else left as it is.
        device: where it runs.
        dtype: of torch's weights, and of what OpenVINO computes in floating point.
        threads: of OpenVINO's; torch's are a setting of the process.
        ranges: of the tower's activations, for int8 with fixed scales.

    Raises:
        EngineError: an unknown name, OpenVINO for another device than a CPU, OpenVINO not
            installed, or a tower that OpenVINO's graph has no words for.
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
    if device.type != "cpu" or not _openvino():
        return "torch"
    if dtype == torch.bfloat16 and cpu_has("amx_bf16") and ranges is None:
        return "openvino"  # int8 with scales of the moment does not reach the tiles
    return "int8" if cpu_has("avx512_vnni", "avx_vnni", "amx_int8") else "openvino"


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
    if name not in ("openvino", "int8"):
        raise EngineError(f"the tower's engine {name!r} is not one of torch, openvino, int8")
    if device.type != "cpu":
        raise EngineError(f"the engine {name!r} runs on the CPU, not on {device}")
    return OpenVinoEngine(
        visual, reads, dtype, threads, int8=name == "int8", ranges=ranges, pooled_after=pooled_after
    )


def cpu_has(*features: str) -> bool:
    """Whether the CPU has any of these instruction sets, by torch's names."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in features)


def _openvino() -> Any | None:
    # The runtime comes with a package that reports its use to its maker, and is made to do without
    # it. This process tells nobody anything.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:  # no wheel for this platform
        return None
    return openvino


class TorchEngine:
    """The network's own tower."""

    name = "torch"

    def __init__(self, model: NSNet, device: torch.device, dtype: torch.dtype) -> None:
        model.visual.to(dtype)
        self._model = model.to(device)
        self._chunk = _chunk(model.visual) if device.type == "cpu" else 0

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        chunks = torch.split(canvases, self._chunk or len(canvases))
        return torch.cat([self._model.tokens(chunk) for chunk in chunks])


def _captured(run: Callable[[Tensor], Tensor], canvases: Tensor) -> Callable[[], Tensor]:
    """`run(canvases)` as a CUDA graph: reads what `canvases` holds when it is replayed."""
    device = canvases.device
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are chosen, and their workspaces taken, in the first runs
            run(canvases)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The stream of this device: torch's own for captures is the first device's, where nothing of
    # this would be recorded. What other threads do meanwhile, e.g. take pinned memory, is none of
    # this graph's business.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        found = run(canvases)

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


class CudaEngine(TorchEngine):
    """The network's own tower on a GPU, one CUDA graph for each of a few batch sizes.

    Kernel by kernel, Python takes longer to launch the tower than the GPU to run it on a few
    canvases; a graph is one launch. A batch is padded to the next size, a larger one than the
    largest goes in parts.

    Args:
        model: the network.
        device: a GPU.
        dtype: of the tower.
        capture: makes a function replayable on one tensor's memory.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: NSNet,
        device: torch.device,
        dtype: torch.dtype,
        capture: Callable[..., Callable[[], Tensor]] = _captured,
    ) -> None:
        super().__init__(model, device, dtype)
        side = model.config.patches.canvas_size
        shape = (_BUCKETS[-1], 3, side, side)
        self._canvases = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._replays = {n: capture(model.tokens, self._canvases[:n]) for n in _BUCKETS}

    @torch.inference_mode()
    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        found = []
        for chunk in torch.split(canvases, _BUCKETS[-1]):
            size = next(n for n in _BUCKETS if n >= len(chunk))
            self._canvases[: len(chunk)].copy_(chunk)
            # The next replay writes to the same memory.
            found.append(self._replays[size]()[: len(chunk)].clone())
        return found[0] if len(found) == 1 else torch.cat(found)


class OpenVinoEngine:
    """The tower as an OpenVINO graph.

    With `int8`, the weights of every linear layer are rounded to int8 per output channel, and its
    inputs in one of two ways; CLIP's activations have outlier channels and tokens.

    Where the ranges of the inputs are known: with one scale a layer, channels evened out first
    (`ranges.smooth`). Without evening out, this is ruinous: the error is as large as the tokens.

    Elsewhere, and in the MLP's second layer from the first block that is read on, which would have
    half of the whole error: as they come, with a scale for each 64 channels of each token. Where
    the CPU multiplies tiles (AMX), which does not take such scales, that layer keeps its float
    type.

    Args:
        visual: the tower, LoRA merged; not needed any more afterwards.
        reads: blocks read, from 1, rising.
        dtype: bfloat16 or float32, of what is not int8.
        threads: CPU threads of one forward.
        int8: whether linear layers multiply in int8.
        ranges: of the tower's activations (`ranges.activation_ranges`).
        pooled_after: see `NSNetConfig`.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        reads: Sequence[int],
        dtype: torch.dtype,
        threads: int,
        *,
        int8: bool,
        ranges: Ranges | None = None,
        pooled_after: int = 0,
    ) -> None:
        ov = _openvino()
        if ov is None:
            raise EngineError("OpenVINO is not installed here: pip install openvino")
        self.name = "int8" if int8 else "openvino"
        self._chunk = _chunk(visual)
        precision = "bf16" if dtype == torch.bfloat16 else "f32"
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Decoders share the cores: a thread pinned to one would wait for them.
            "ENABLE_CPU_PINNING": False,
            **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_GROUP)} if int8 else {}),
        }
        tiles = ranges is not None and cpu_has("amx_int8")
        graph = _Graph(ov, int8=int8 and not tiles, ranges=ranges if int8 else None)
        compiled = ov.Core().compile_model(graph.tower(visual, reads, pooled_after), "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        found = [
            # The request's own output is overwritten by the next one.
            torch.from_numpy(np.array(self._request.infer([chunk.numpy()])[0]))
            for chunk in torch.split(canvases.contiguous(), self._chunk)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def _chunk(visual: VisionTransformer) -> int:
    length: int = visual.positional_embedding.shape[0]
    return max(1, _CPU_TOKENS // length)


class _Graph:
    """CLIP's image tower in OpenVINO's operations.

    Args:
        ov: the module.
        int8: whether linear layers without ranges multiply in int8, by scales of the moment.
        ranges: of what linear layers read, for int8 with fixed scales.
    """

    def __init__(self, ov: Any, *, int8: bool, ranges: Ranges | None = None) -> None:
        self._model = ov.Model
        self._ops = ov.opset13
        self._int8 = int8
        self._ranges = ranges or {}

    def tower(self, visual: VisionTransformer, reads: Sequence[int], pooled_after: int) -> Any:
        """Canvases uint8 [n, 3, S, S] -> ln_post of CLS tokens float32 [n, len(reads), width]."""
        ops, const, index = self._ops, self._const, self._index
        blocks = visual.transformer.resblocks
        _check(visual, blocks)
        width, patch = visual.conv1.weight.shape[0], visual.conv1.weight.shape[-1]
        side = visual.image_size[0]
        canvases = ops.parameter([-1, 3, side, side], np.uint8, name="canvases")
        # Pixels are taken as they come, which bfloat16 holds exactly: CLIP's normalisation is in
        # the weights and, what it subtracts, in the positions.
        mean, std = (255 * np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        weight = _numpy(visual.conv1.weight) / std
        grid = ops.convolution(
            ops.convert(canvases, "f32"), const(weight), [patch, patch], [0, 0], [0, 0], [1, 1]
        )
        length = (side // patch) ** 2
        patches = ops.transpose(
            ops.reshape(grid, index([0, width, length]), special_zero=True), index([0, 2, 1])
        )
        positions = _numpy(visual.positional_embedding)
        start = (_numpy(visual.class_embedding) + positions[0]).reshape(1, 1, width)
        count = ops.gather(ops.shape_of(canvases), index([0]), index(0))
        tokens = ops.concat([
            ops.broadcast(const(start), ops.concat([count, index([1, width])], axis=0)),
            ops.add(patches, const(positions[1:] - (weight * mean).sum(axis=(1, 2, 3)))),
        ], axis=1)  # fmt: skip
        tokens = self._norm(tokens, visual.ln_pre)
        found = []
        for number, block in enumerate(blocks[: reads[-1]], 1):
            ranges = {layer: of[number - 1] for layer, of in self._ranges.items()}
            if number >= reads[0]:  # half of int8's whole error, and read as it is
                ranges.pop("c_proj", None)
            tokens = self._block(tokens, block, ranges, last=number == reads[-1])
            if number == pooled_after:
                tokens = self._pooled(tokens, side // patch // 2, width)
            if number in reads:
                found.append(self._norm(self._cls(tokens), visual.ln_post))
        result = ops.concat(found, axis=1)
        if self._ranges and not self._int8:
            # Between tiles (AMX): what comes after the last product OpenVINO keeps in float32, and
            # with it the sums of all blocks, for 5 % of the time. Beside int8's error bfloat16's is
            # nothing.
            result = ops.matmul(result, const(np.eye(width)), False, False)
        return self._model([result], [canvases], "tower")

    def _block(self, tokens: Any, block: Any, ranges: Ranges, *, last: bool) -> Any:
        ops, index, attention = self._ops, self._index, block.attn
        width = attention.embed_dim
        normed = self._norm(tokens, block.ln_1)
        # Queries come scaled: by attention's own operation it takes a pass over them.
        scale = torch.ones(3 * width)
        scale[:width] = (width // attention.num_heads) ** -0.5
        weight, bias = attention.in_proj_weight * scale[:, None], attention.in_proj_bias * scale

        def heads(x: Any, rows: slice) -> list[Any]:
            return self._heads(self._linear(x, weight[rows], bias[rows], ranges.get("in_proj")),
                               attention)  # fmt: skip

        if last:  # nobody reads the other tokens that it would give
            [query] = heads(self._cls(normed), slice(width))
            key, value = heads(normed, slice(width, None))
            tokens = self._cls(tokens)
        else:
            query, key, value = heads(normed, slice(None))
        mixed = ops.scaled_dot_product_attention(query, key, value, None, self._const(np.array(1)))
        mixed = ops.transpose(mixed, index([0, 2, 1, 3]))
        mixed = ops.reshape(mixed, index([0, 0, width]), special_zero=True)
        out = attention.out_proj
        tokens = ops.add(tokens, self._linear(mixed, out.weight, out.bias, ranges.get("out_proj")))
        widen, narrow = block.mlp.c_fc, block.mlp.c_proj
        normed = self._norm(tokens, block.ln_2)
        hidden = self._linear(normed, widen.weight, widen.bias, ranges.get("c_fc"))
        if isinstance(block.mlp.gelu, QuickGELU):
            hidden = ops.swish(hidden, self._const(np.array(1.702)))
        else:
            hidden = ops.gelu(hidden, "erf")
        narrowed = self._linear(hidden, narrow.weight, narrow.bias, ranges.get("c_proj"))
        return ops.add(tokens, narrowed)

    def _heads(self, fused: Any, attention: Any) -> list[Any]:
        """Split: [n, l, parts * width] -> each part [n, heads, l, width / heads]."""
        ops, index, heads, width = self._ops, self._index, attention.num_heads, attention.embed_dim
        parts = fused.get_output_partial_shape(0)[2].get_length() // width
        shape = index([0, 0, parts, heads, width // heads])
        split = ops.reshape(fused, shape, special_zero=True)
        split = ops.transpose(split, index([2, 0, 3, 1, 4]))
        return [ops.gather(split, index(part), index(0)) for part in range(parts)]

    def _pooled(self, tokens: Any, half: int, width: int) -> Any:
        ops, index = self._ops, self._index
        cls, patches = ops.variadic_split(tokens, index(1), index([1, -1])).outputs()
        squares = ops.reshape(patches, index([0, half, 2, half, 2, width]), special_zero=True)
        means = ops.reduce_mean(squares, index([2, 4]))
        means = ops.reshape(means, index([0, half * half, width]), special_zero=True)
        return ops.concat([cls, means], axis=1)

    def _cls(self, tokens: Any) -> Any:
        return self._ops.gather(tokens, self._index([0]), self._index(1))

    def _norm(self, x: Any, norm: nn.LayerNorm) -> Any:
        ops = self._ops
        centred = ops.mvn(x, self._index([-1]), True, norm.eps, "INSIDE_SQRT")
        return ops.add(ops.multiply(centred, self._const(norm.weight)), self._const(norm.bias))

    def _linear(self, x: Any, weight: Tensor, bias: Tensor, ranges: Tensor | None = None) -> Any:
        ops, const = self._ops, self._const
        w: Any
        if ranges is not None:
            factors, low, high = smooth(weight, ranges)
            ends = [const(np.full((1, 1, 1), end)) for end in (low, high)]
            x = ops.multiply(x, const(1 / factors))
            x = ops.fake_quantize(x, *ends, *ends, 256)
            w = self._int8_weight(weight * factors)
        elif self._int8:
            w = self._int8_weight(weight)
        else:
            w = const(weight)
        return ops.add(ops.matmul(x, w, transpose_a=False, transpose_b=True), const(bias))

    def _int8_weight(self, weight: Tensor) -> Any:
        values, scales = int8_rows(_numpy(weight))
        return self._ops.multiply(
            self._ops.convert(self._ops.constant(values), "f32"), self._const(scales)
        )

    def _const(self, values: Tensor | NDArray[Any]) -> Any:
        array = _numpy(values) if isinstance(values, Tensor) else values
        return self._ops.constant(np.array(array, np.float32, order="C"))

    def _index(self, values: int | list[int]) -> Any:
        return self._ops.constant(np.array(values, np.int64))


def int8_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to int8 with one scale per row, symmetrically.

    Returns:
        int8 [out, in] and the scales float32 [out, 1]: their product is nearest to the weight.
    """
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.round(weight / scales).astype(np.int8), scales


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array


def _check(visual: VisionTransformer, blocks: Iterable[Any]) -> None:
    """Refuse a tower with parts that the graph does not draw: its tokens would be wrong."""
    known = (
        visual.conv1.bias is None
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and all(
            isinstance(block.ls_1, nn.Identity)
            and isinstance(block.ls_2, nn.Identity)
            and isinstance(block.attn, nn.MultiheadAttention)
            and isinstance(block.mlp.gelu, (QuickGELU, nn.GELU))
            for block in blocks
        )
    )
    if not known:
        raise EngineError("OpenVINO's graph does not know this tower; use NSNET_ENGINE=torch")
