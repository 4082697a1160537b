import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from model import engines
from model.backbone import load_backbone
from model.detector import Detector
from model.engines import EngineError, base, make_engine, onnx_graph, openvino_graph, pytorch
from model.engines.base import int8_rows
from model.nsnet import NSNet
from model.ranges import Ranges, activation_ranges
from tests.conftest import TINY
from tests.model.test_nsnet import canvases

CPU = torch.device("cpu")
AVX2 = {"avx2"}
VNNI = AVX2 | {"avx512_vnni"}
AMX = VNNI | {"amx_int8", "amx_bf16"}


def pretend(monkeypatch: pytest.MonkeyPatch, native: set[str]) -> None:
    """That the CPU has these instructions, and no others."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(native, True))


def ranges_of(network: NSNet, pixels: torch.Tensor) -> Ranges:
    depth, pooled = network.reads[-1], network.config.pooled_after
    return activation_ranges(network.visual, pixels, depth, pooled)


def tokens(network: NSNet, name: str, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode():
        return make_engine(name, network, device=CPU, dtype=dtype, threads=1)(pixels).float()


def test_every_engine_gives_the_towers_tokens(network: NSNet) -> None:
    pixels = canvases(3)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    assert torch.equal(tokens(network, "torch", pixels, torch.float32), expected)
    assert torch.allclose(tokens(network, "openvino", pixels, torch.float32), expected, atol=1e-4)
    rounded = tokens(network, "int8", pixels, torch.float32)
    assert torch.nn.functional.cosine_similarity(rounded, expected, dim=-1).min() > 0.99


def test_a_tower_with_exact_gelu_is_drawn_with_it(network: NSNet) -> None:
    """CLIP of other makers has GELU where OpenAI's has QuickGELU."""
    for block in network.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    pixels = canvases(2)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    assert torch.allclose(tokens(network, "openvino", pixels, torch.float32), expected, atol=1e-4)


def test_a_tower_the_graph_does_not_know_is_refused(network: NSNet) -> None:
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Linear(1, 1)
    with pytest.raises(EngineError, match="NSNET_ENGINE=torch"):
        make_engine("openvino", network, device=CPU, dtype=torch.float32, threads=1)


def test_many_canvases_go_in_chunks_and_keep_their_order(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = canvases(7)
    whole = {name: tokens(network, name, pixels, torch.float32) for name in ("torch", "openvino")}
    monkeypatch.setattr(base, "CPU_TOKENS", 3 * network.visual.positional_embedding.shape[0])
    for name, expected in whole.items():
        found = tokens(network, name, pixels, torch.float32)
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_gpus_batches_are_padded_to_a_recorded_size_or_go_in_parts(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded reads and writes the same memory every time, as a CUDA graph does."""
    recorded: list[int] = []

    def capture(
        run: Callable[[torch.Tensor], torch.Tensor], canvases: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        recorded.append(len(canvases))
        output = run(canvases).clone()
        return lambda: output.copy_(run(canvases))

    monkeypatch.setattr(pytorch, "BUCKETS", (1, 2, 4))
    engine = pytorch.CudaEngine(network, CPU, torch.float32, capture)
    assert recorded == [1, 2, 4]
    pixels = canvases(11)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    found = {count: engine(pixels[:count]) for count in (1, 2, 3, 4, 5, 11)}
    for count, tokens in found.items():
        assert torch.allclose(tokens, expected[:count], atol=1e-5)


def test_rows_are_rounded_to_int8_each_by_its_own_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    weight[1] *= 1000
    weight[2] = 0
    values, scales = int8_rows(weight)
    assert values.dtype == np.int8
    assert np.abs(values).max(axis=1).tolist() == [127, 127, 0, 127, 127]
    assert (np.abs(values * scales - weight) <= scales / 2 * 1.001).all()


def test_int8_has_fixed_scales_where_ranges_are_known(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels far apart are evened out first: without, little is left of the tokens."""
    for block in network.visual.transformer.resblocks:
        with torch.no_grad():
            block.ln_1.weight[3] *= 100
            block.ln_2.weight[5] *= 100
            block.attn.in_proj_weight[:, 3] /= 100
            block.mlp.c_fc.weight[:, 5] /= 100
    pixels = canvases(4)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    known = ranges_of(network, pixels)

    def found(native: set[str], ranges: Ranges | None = known) -> torch.Tensor:
        pretend(monkeypatch, native)
        run = make_engine(
            "int8", network, device=CPU, dtype=torch.float32, threads=1, ranges=ranges
        )
        return run(pixels)

    def error(tokens: torch.Tensor) -> float:
        return float((tokens - expected).norm() / expected.norm())

    assert error(found(AMX)) < 0.05
    assert error(found(VNNI)) < 0.05
    assert error(found(AVX2)) < 0.05
    assert not torch.equal(found(VNNI), found(AMX))  # of the MLP's second layer
    assert error(found(VNNI, None)) < 0.1
    assert not torch.equal(found(VNNI, None), found(VNNI))
    for graph in (openvino_graph, onnx_graph):
        monkeypatch.setattr(
            graph, "smooth",
            lambda weight, of: (torch.ones(weight.shape[1]), float(of.min()), float(of.max())),
        )  # fmt: skip
    assert error(found(AMX)) > 0.15
    assert error(found(VNNI)) > 0.15
    assert error(found(AVX2)) > 0.15


@pytest.mark.parametrize("gelu", [torch.nn.GELU, QuickGELU])
def test_int8_without_instructions_of_its_own_is_onnx_runtimes(
    network: NSNet, monkeypatch: pytest.MonkeyPatch, gelu: type[torch.nn.Module]
) -> None:
    for block in network.visual.transformer.resblocks:
        block.mlp.gelu = gelu()
    pixels = canvases(7)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    known = ranges_of(network, pixels)
    pretend(monkeypatch, AVX2)

    def made() -> engines.Engine:
        return make_engine(
            "int8", network, device=CPU, dtype=torch.float32, threads=1, ranges=known
        )

    engine = made()
    assert isinstance(engine, onnx_graph.OnnxEngine)
    found = engine(pixels)
    assert float((found - expected).norm() / expected.norm()) < 0.03
    monkeypatch.setattr(base, "CPU_TOKENS", 3 * network.visual.positional_embedding.shape[0])
    assert torch.allclose(made()(pixels), found, atol=1e-5)  # in chunks
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Linear(1, 1)
    with pytest.raises(EngineError, match="NSNET_ENGINE=torch"):
        made()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Identity()
    assert not isinstance(made(), onnx_graph.OnnxEngine)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "native", "ranges", "expected"),
    [
        ("auto", "cpu", torch.bfloat16, VNNI, True, "int8"),
        ("auto", "cpu", torch.bfloat16, VNNI, False, "int8"),
        ("auto", "cpu", torch.bfloat16, AMX, True, "int8"),
        ("auto", "cpu", torch.bfloat16, AMX, False, "openvino"),
        ("auto", "cpu", torch.float32, AMX, False, "int8"),
        ("auto", "cpu", torch.float32, AVX2, True, "int8"),
        ("auto", "cpu", torch.float32, AVX2, False, "openvino"),
        ("auto", "cpu", torch.float32, set(), True, "openvino"),
        ("auto", "meta", torch.bfloat16, AMX, True, "torch"),  # as on a GPU
        ("torch", "cpu", torch.bfloat16, AMX, True, "torch"),
    ],
)
def test_auto_is_what_the_cpu_is_fastest_with(
    network: NSNet, monkeypatch: pytest.MonkeyPatch, name: str, device: str, dtype: torch.dtype,
    native: set[str], ranges: bool, expected: str,
) -> None:  # fmt: skip
    pretend(monkeypatch, native)
    known = ranges_of(network, canvases(2)) if ranges else None

    def made() -> str:
        return make_engine(
            name, network, device=torch.device(device), dtype=dtype, threads=1, ranges=known
        ).name

    assert made() == expected
    for package in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert made() == "torch"


def test_what_cannot_run_is_refused_in_one_line(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, device: str = "cpu") -> None:
        make_engine(name, network, device=torch.device(device), dtype=torch.float32, threads=1)

    with pytest.raises(EngineError, match="'tpu' is not one of"):
        make("tpu")
    with pytest.raises(EngineError, match="not on meta"):
        make("int8", "meta")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="pip install openvino"):
        make("int8")


def test_a_detector_says_the_same_with_every_engine(checkpoint: Path, tiny_tower: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    scores = {}
    for name in engines.ENGINES:
        detector = Detector.load(
            checkpoint, backbone=tiny_tower, device="cpu", dtype="float32", engine=name, threads=1
        )
        assert detector.engine == name
        assert detector.torch_threads(4) == (4 if name == "torch" else 1)
        detector.warm_up([1, 2])
        scores[name] = [found.score for found in detector.detect([image, image[:70, :70]])]
    assert scores["openvino"] == pytest.approx(scores["torch"], abs=1e-4)
    assert scores["int8"] == pytest.approx(scores["torch"], abs=0.05)
    assert scores["torch"][0] != scores["torch"][1]


def test_openvino_is_loaded_without_its_telemetry() -> None:
    code = (
        "import sys; from model import engines; assert engines.openvino();"
        "assert sys.modules.get('openvino_telemetry') is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tower_is_not_kept_twice(checkpoint: Path, tiny_tower: Path) -> None:
    tower = load_backbone(TINY, path=tiny_tower)
    detector = Detector.load(checkpoint, backbone=tiny_tower, device="cpu", engine="int8")
    left = [tuple(tensor.shape) for tensor in detector._model.visual.state_dict().values()]
    assert left == [tuple(tower.visual.proj.shape)]
