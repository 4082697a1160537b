"""The tower as an OpenVINO graph, in its float type or with int8 products."""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from model.engines.base import (
    Engine,
    EngineError,
    check_tower,
    chunk_of,
    embedding,
    in_parts,
    int8_rows,
    numpy_of,
)
from model.engines.ranges import Ranges, smooth
from model.hardware import Runtime, cpu_has
from model.tower.tokens import TowerSpec

_GROUP = 64  # channels that share a scale in int8


def openvino() -> Any | None:
    """The package, or None where there is no wheel for the platform."""
    # The runtime comes with a package that reports its use to its maker, and is made to do without
    # it. This process tells nobody anything.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino as package
    except ImportError:
        return None
    return package


class OpenVinoEngine(Engine):
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
        spec: what is read of it.
        runtime: bfloat16 or float32, of what is not int8, and the threads of one forward.
        int8: whether linear layers multiply in int8.
        ranges: of the tower's activations (`ranges.activation_ranges`).
        kept: the block, from 1, after which `with_hidden` gives all tokens.
        pool_kept: pool those, of a tower that is not pooled.

    Raises:
        EngineError: OpenVINO is not installed, or a tower that the graph has no words for.
    """

    name = "openvino"

    def __init__(
        self,
        visual: VisionTransformer,
        spec: TowerSpec,
        runtime: Runtime,
        *,
        int8: bool,
        ranges: Ranges | None = None,
        kept: int = 0,
        pool_kept: bool = False,
    ) -> None:
        ov = openvino()
        if ov is None:
            raise EngineError("OpenVINO is not installed here: pip install openvino")
        self.precision = "int8" if int8 else runtime.dtype_name
        self._chunk = chunk_of(visual)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if runtime.dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": runtime.threads,
            "NUM_STREAMS": 1,
            # Decoders share the cores: a thread pinned to one would wait for them.
            "ENABLE_CPU_PINNING": False,
            **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_GROUP)} if int8 else {}),
        }
        tiles = ranges is not None and cpu_has("amx_int8")
        graph = _Graph(ov, int8=int8 and not tiles, ranges=ranges if int8 else None)
        tower = graph.tower(visual, spec, kept, pool_kept=pool_kept)
        compiled = ov.Core().compile_model(tower, "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        return in_parts(lambda part: self._run(part)[0], canvases.contiguous(), self._chunk)

    def with_hidden(self, canvases: Tensor) -> tuple[Tensor, Tensor]:
        """What a call gives, and all tokens after the block `kept`.

        Args:
            canvases: uint8 [n, 3, S, S].

        Returns:
            float32 [n, reads, width] and [n, L, width].
        """
        parts = [self._run(part) for part in torch.split(canvases.contiguous(), self._chunk)]
        tokens, hidden = (torch.cat(of) for of in zip(*parts, strict=True))
        return tokens, hidden

    def _run(self, canvases: Tensor) -> list[Tensor]:
        # The request's own outputs are overwritten by the next ones.
        outputs = self._request.infer([canvases.numpy()])
        return [torch.from_numpy(np.array(outputs[place])) for place in range(len(outputs))]


class _Graph:
    """CLIP's image tower in OpenVINO's operations.

    Args:
        ov: the module.
        int8: whether linear layers without ranges multiply in int8, by scales of the moment.
        ranges: of what linear layers read, for int8 with fixed scales.
    """

    def __init__(self, ov: Any, *, int8: bool, ranges: Ranges | None) -> None:
        self._model = ov.Model
        self._ops = ov.opset13
        self._int8 = int8
        self._ranges = ranges or {}

    def tower(
        self, visual: VisionTransformer, spec: TowerSpec, kept: int, *, pool_kept: bool
    ) -> Any:
        """Canvases uint8 [n, 3, S, S] -> ln_post of CLS tokens float32 [n, reads, width].

        With `kept`, counted from 1, all tokens after that block are a second output; 0: none.
        """
        ops, const, index = self._ops, self._const, self._index
        blocks = visual.transformer.resblocks
        check_tower(visual, blocks)
        width, patch = visual.conv1.weight.shape[0], visual.conv1.weight.shape[-1]
        side = visual.image_size[0]
        canvases = ops.parameter([-1, 3, side, side], np.uint8, name="canvases")
        # bfloat16 holds pixels exactly as they come; normalised ones it rounds.
        weight, start, rest = embedding(visual)
        grid = ops.convolution(
            ops.convert(canvases, "f32"), const(weight), [patch, patch], [0, 0], [0, 0], [1, 1]
        )
        length = (side // patch) ** 2
        patches = ops.transpose(
            ops.reshape(grid, index([0, width, length]), special_zero=True), index([0, 2, 1])
        )
        count = ops.gather(ops.shape_of(canvases), index([0]), index(0))
        tokens = ops.concat(
            [
                ops.broadcast(
                    const(start.reshape(1, 1, width)),
                    ops.concat([count, index([1, width])], axis=0),
                ),
                ops.add(patches, const(rest)),
            ],
            axis=1,
        )
        tokens = self._norm(tokens, visual.ln_pre)
        read, hidden, half = [], [], side // patch // 2
        for number, block in enumerate(blocks[: spec.depth], 1):
            ranges = {layer: of[number - 1] for layer, of in self._ranges.items()}
            if number >= spec.reads[0]:  # half of int8's whole error, and read as it is
                ranges.pop("c_proj", None)
            last = number == spec.depth and number != kept
            tokens = self._block(tokens, block, ranges, last=last)
            if number == spec.pooled_after:
                tokens = self._pooled(tokens, half, width)
            if number == kept:
                hidden = [self._pooled(tokens, half, width) if pool_kept else tokens]
            if number in spec.reads:
                read.append(self._norm(self._cls(tokens), visual.ln_post))
        result = ops.concat(read, axis=1)
        if self._ranges and not self._int8:
            # Between tiles (AMX): what comes after the last product OpenVINO keeps in float32, and
            # with it the sums of all blocks, for 5 % of the time. Beside int8's error bfloat16's is
            # nothing.
            result = ops.matmul(result, const(np.eye(width)), False, False)
        return self._model([result, *hidden], [canvases], "tower")

    def _block(self, tokens: Any, block: Any, ranges: Ranges, *, last: bool) -> Any:
        ops, index, attention = self._ops, self._index, block.attn
        width = attention.embed_dim
        normed = self._norm(tokens, block.ln_1)
        # Queries come scaled: by attention's own operation it takes a pass over them.
        scale = torch.ones(3 * width)
        scale[:width] = (width // attention.num_heads) ** -0.5
        weight, bias = attention.in_proj_weight * scale[:, None], attention.in_proj_bias * scale

        def heads(x: Any, rows: slice) -> list[Any]:
            return self._heads(
                self._linear(x, weight[rows], bias[rows], ranges.get("in_proj")), attention
            )

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

    def _linear(self, x: Any, weight: Tensor, bias: Tensor, ranges: Tensor | None) -> Any:
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
        values, scales = int8_rows(numpy_of(weight))
        return self._ops.multiply(
            self._ops.convert(self._ops.constant(values), "f32"), self._const(scales)
        )

    def _const(self, values: Tensor | NDArray[Any]) -> Any:
        array = numpy_of(values) if isinstance(values, Tensor) else values
        return self._ops.constant(np.array(array, np.float32, order="C"))

    def _index(self, values: int | list[int]) -> Any:
        return self._ops.constant(np.array(values, np.int64))
