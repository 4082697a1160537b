"""The tower as an ONNX graph with int8 products, for CPUs without instructions of their own for it.

There OpenVINO computes in floating point; ONNX Runtime multiplies int8 by AVX2's 16-bit sums, twice
as fast.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from model.engines.base import (
    Engine,
    EngineError,
    Weights,
    check_tower,
    chunk_of,
    embedding,
    in_parts,
    int8_rows,
    numpy_of,
)
from model.engines.ranges import Ranges, smooth
from model.hardware import Runtime
from model.tower.tokens import TowerSpec

_OPSET, _IR = 20, 10
_LEVELS = 255
_MICROSOFT = "com.microsoft"  # ONNX Runtime's own operations


def onnxruntime() -> Any | None:
    """The package, or None where there is no wheel for the platform."""
    try:
        import onnxruntime as package
    except ImportError:
        return None
    return package


class OnnxEngine(Engine):
    """The tower in ONNX Runtime: int8 products with scales from known ranges, float32 around them.

    What a layer reads is rounded to uint8 with one scale, channels evened out first
    (`ranges.smooth`). The factors cost nothing where they can be put into what comes before: a
    norm's weights, and the values' rows for attention's output. The MLP's second layer, which would
    have half of the whole error, takes a scale for each token instead.

    Args:
        visual: the tower, LoRA merged; not needed any more afterwards.
        spec: what is read of it.
        runtime: the threads of one forward.
        ranges: of the tower's activations (`ranges.activation_ranges`).

    Raises:
        EngineError: ONNX Runtime is not installed, or a tower that the graph has no words for.
    """

    name = "onnxruntime"
    precision = "int8"

    def __init__(
        self, visual: VisionTransformer, spec: TowerSpec, runtime: Runtime, ranges: Ranges
    ) -> None:
        ort = onnxruntime()
        if ort is None:
            raise EngineError("ONNX Runtime is not installed here: pip install onnxruntime")
        self._chunk = chunk_of(visual)
        ort.disable_telemetry_events()  # this process tells nobody anything
        options = ort.SessionOptions()
        options.intra_op_num_threads = runtime.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        data = _Graph(ranges).tower(visual, spec)
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        return in_parts(self._run, canvases.contiguous(), self._chunk)

    def _run(self, canvases: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {"canvases": canvases.numpy()})[0])


class _Graph:
    """CLIP's image tower in ONNX's operations; tokens lie in one matrix, [n * L, width].

    Args:
        ranges: of what linear layers read.
    """

    def __init__(self, ranges: Ranges) -> None:
        import onnx  # a second to import

        self._onnx = onnx
        self._ranges = ranges
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._names = itertools.count()

    def tower(self, visual: VisionTransformer, spec: TowerSpec) -> bytes:
        """Canvases uint8 [n, 3, S, S] -> ln_post of CLS tokens float32 [n, reads, width].

        Raises:
            EngineError: a tower with parts that are not drawn.
        """
        blocks = visual.transformer.resblocks
        check_tower(visual, blocks)
        width, patch = visual.conv1.weight.shape[0], visual.conv1.weight.shape[-1]
        side = visual.image_size[0]
        self._width = width
        self._length = length = (side // patch) ** 2 + 1
        weight, start, rest = embedding(visual)
        pixels = self._add("Cast", "canvases", to=self._onnx.TensorProto.FLOAT)
        grid = self._add("Conv", pixels, self._const(weight), strides=[patch, patch])
        patches = self._add("Reshape", grid, self._shape(0, width, length - 1))
        patches = self._add("Transpose", patches, perm=[0, 2, 1])
        patches = self._add("Add", patches, self._const(rest))
        count = self._add("Shape", "canvases", start=0, end=1)
        one = self._add("Concat", count, self._shape(1, width), axis=0)
        cls = self._add("Expand", self._const(start.reshape(1, 1, width)), one)
        tokens = self._flat(self._add("Concat", cls, patches, axis=1))
        tokens = self._norm(tokens, visual.ln_pre)
        read = []
        for number, block in enumerate(blocks[: spec.depth], 1):
            ranges = {layer: of[number - 1] for layer, of in self._ranges.items()}
            tokens = self._block(tokens, block, ranges, last=number == spec.depth)
            if number == spec.pooled_after:
                tokens = self._pooled(tokens)
            if number in spec.reads:
                cls = self._cls(tokens) if number < spec.depth else tokens
                cls = self._norm(cls, visual.ln_post)
                read.append(self._add("Reshape", cls, self._shape(-1, 1, width)))
        self._add("Concat", *read, axis=1, output="tokens")
        return self._model(side, len(spec.reads))

    def _model(self, side: int, reads: int) -> bytes:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            "tower",
            [helper.make_tensor_value_info("canvases", types.UINT8, ["n", 3, side, side])],
            [helper.make_tensor_value_info("tokens", types.FLOAT, ["n", reads, self._width])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        data: bytes = model.SerializeToString()
        return data

    def _block(self, tokens: str, block: Any, ranges: Ranges, *, last: bool) -> str:
        attention, mlp, width = block.attn, block.mlp, self._width
        weight = attention.in_proj_weight.detach().clone()
        bias = attention.in_proj_bias.detach().clone()
        # Tokens mix the values of each channel by itself: what evens out the mixture's channels
        # can be in the rows that make the values.
        out = attention.out_proj
        even, out_ends = _evened(out.weight, ranges["out_proj"])
        weight[2 * width :] /= even[:, None]
        bias[2 * width :] /= even

        factors, ends = _evened(weight, ranges["in_proj"])
        normed = self._norm(tokens, block.ln_1, factors)
        rounded = self._rounded(normed, ends)
        if last:  # nobody reads the other tokens that it would give
            own = self._rounded(self._cls(normed), ends)
            query = self._linear(own, ends, weight[:width] * factors, bias[:width])
            fused = self._linear(rounded, ends, weight[width:] * factors, bias[width:])
            key, value = self._split(fused, 2)
            query = self._add("Reshape", query, self._shape(-1, 1, width))
            tokens = self._cls(tokens)
        else:
            fused = self._linear(rounded, ends, weight * factors, bias)
            query, key, value = self._split(fused, 3)
        mixed = self._add(
            "MultiHeadAttention",
            query,
            key,
            value,
            domain=_MICROSOFT,
            num_heads=attention.num_heads,
        )
        mixed = self._rounded(self._flat(mixed), out_ends)
        tokens = self._add(
            "Add", tokens, self._linear(mixed, out_ends, out.weight * even, out.bias)
        )
        factors, ends = _evened(mlp.c_fc.weight, ranges["c_fc"])
        normed = self._rounded(self._norm(tokens, block.ln_2, factors), ends)
        hidden = self._linear(normed, ends, mlp.c_fc.weight * factors, mlp.c_fc.bias)
        if isinstance(mlp.gelu, QuickGELU):
            hidden = self._add("QuickGelu", hidden, domain=_MICROSOFT, alpha=1.702)
        else:
            hidden = self._add("Gelu", hidden)
        return self._add("Add", tokens, self._by_token(hidden, mlp.c_proj, ranges["c_proj"]))

    def _by_token(self, x: str, layer: nn.Linear, ranges: Tensor) -> str:
        """A linear layer whose input has a scale for each token, and one zero point."""
        factors, ends = _evened(layer.weight, ranges)
        zero = int(np.clip(_zero_point(*ends), 8, _LEVELS // 2))
        x = self._add("Mul", x, self._const(numpy_of(1 / factors)))
        axis = self._shape(1)
        high = self._add("ReduceMax", x, axis, keepdims=1)
        low = self._add("ReduceMin", x, axis, keepdims=1)
        scale = self._add(
            "Max",
            self._add("Mul", high, self._scalar(1 / (_LEVELS - zero))),
            self._add("Mul", low, self._scalar(-1 / zero)),
            self._scalar(1e-6),
        )
        x = self._quantized(self._add("Div", x, scale), 1.0, zero)
        x = self._product(x, 1.0, zero, numpy_of(layer.weight * factors))
        x = self._add("Mul", x, scale)
        return self._add("Add", x, self._const(numpy_of(layer.bias)))

    def _rounded(self, x: str, ends: tuple[float, float]) -> str:
        return self._quantized(x, _step(*ends), _zero_point(*ends))

    def _quantized(self, x: str, step: float, zero: int) -> str:
        return self._add("QuantizeLinear", x, self._scalar(step), self._scalar(zero, np.uint8))

    def _linear(self, x: str, ends: tuple[float, float], weight: Tensor, bias: Tensor) -> str:
        """Of an input that was rounded between these ends."""
        return self._product(x, _step(*ends), _zero_point(*ends), numpy_of(weight), numpy_of(bias))

    def _product(
        self, x: str, step: float, zero: int, weight: Weights, bias: Weights | None = None
    ) -> str:
        """Of uint8, float32 = step * (x - zero): [.., in] -> float32 [.., out]."""
        # With AVX2 alone, pairs of these products are summed in int16, which saturates at the
        # extremes of both. CLIP's towers have next to none, and exact sums, of two uint8, take a
        # quarter longer.
        values, scales = int8_rows(weight)
        scales = scales[:, 0]
        added = []
        if bias is not None:
            # It is added to the sums, in steps of the products; a row of nearly nothing takes
            # longer ones, for it to fit.
            scales = np.maximum(scales, np.abs(bias) / (step * 2**30))
            added = [self._const(np.round(bias / (scales * step)), np.int32)]
        return self._add(
            "QGemm",
            x,
            self._scalar(step),
            self._scalar(zero, np.uint8),
            self._const(values.T, np.int8),
            self._const(scales),
            self._const(np.zeros(len(values)), np.int8),
            *added,
            domain=_MICROSOFT,
        )

    def _norm(self, x: str, norm: nn.LayerNorm, factors: Tensor | None = None) -> str:
        divided = 1.0 if factors is None else 1 / numpy_of(factors)
        weight, bias = numpy_of(norm.weight) * divided, numpy_of(norm.bias) * divided
        return self._add(
            "LayerNormalization",
            x,
            self._const(weight),
            self._const(bias),
            axis=-1,
            epsilon=norm.eps,
        )

    def _split(self, fused: str, parts: int) -> list[str]:
        """[n * L, parts * width] -> each part [n, L, width]."""
        names = [self._name() for _ in range(parts)]
        self._node("Split", [fused], names, axis=1, num_outputs=parts)
        shape = self._shape(-1, self._length, self._width)
        return [self._add("Reshape", name, shape) for name in names]

    def _flat(self, x: str) -> str:
        return self._add("Reshape", x, self._shape(-1, self._width))

    def _by_image(self, tokens: str) -> str:
        return self._add("Reshape", tokens, self._shape(-1, self._length, self._width))

    def _cls(self, tokens: str) -> str:
        return self._add("Gather", self._by_image(tokens), self._scalar(0, np.int64), axis=1)

    def _pooled(self, tokens: str) -> str:
        """`tokens.pool_tokens`."""
        width, half = self._width, math.isqrt(self._length - 1) // 2
        cls, patches = self._name(), self._name()
        sizes = self._shape(1, self._length - 1)
        self._node("Split", [self._by_image(tokens), sizes], [cls, patches], axis=1)
        squares = self._add("Reshape", patches, self._shape(-1, half, 2, half, 2, width))
        means = self._add("ReduceMean", squares, self._shape(2, 4), keepdims=0)
        means = self._add("Reshape", means, self._shape(-1, half * half, width))
        self._length = half * half + 1
        return self._flat(self._add("Concat", cls, means, axis=1))

    def _name(self) -> str:
        return f"t{next(self._names)}"

    def _node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        node = self._onnx.helper.make_node(kind, inputs, outputs, domain=domain, **attributes)
        self._nodes.append(node)

    def _add(
        self,
        kind: str,
        *inputs: str,
        domain: str = "",
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        name = output or self._name()
        self._node(kind, inputs, [name], domain, **attributes)
        return name

    def _const(self, values: NDArray[Any], dtype: Any = np.float32) -> str:
        name = f"c{len(self._constants)}"
        array = np.array(values, dtype, order="C")
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _scalar(self, value: float, dtype: Any = np.float32) -> str:
        return self._const(np.array(value), dtype)

    def _shape(self, *sizes: int) -> str:
        return self._const(np.array(sizes), np.int64)


def _evened(weight: Tensor, ranges: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Factors of the channels, and the ends of what is left, with zero between them."""
    factors, low, high = smooth(weight, ranges)
    return factors, (min(low, 0.0), max(high, 1e-6))


def _step(low: float, high: float) -> float:
    return (high - low) / _LEVELS


def _zero_point(low: float, high: float) -> int:
    return round(-low / _step(low, high))
