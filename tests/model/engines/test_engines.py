import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from model.checkpoint import Metadata, save_checkpoint
from model.detector import Detector
from model.engines import base, onnx_graph, openvino_graph, pytorch
from model.engines.base import Engine, EngineError, int8_rows
from model.engines.ranges import Ranges, activation_ranges
from model.engines.registry import ENGINES, make_engine
from model.hardware import Runtime
from model.network import NSNet
from model.tower.sources import load_backbone
from tests.conftest import CPU, TINY
from tests.golden import NATIVE_INT8
from tests.model.test_network import canvases

AVX2 = {"avx2"}
VNNI = AVX2 | {"avx512_vnni"}
AMX = VNNI | {"amx_int8", "amx_bf16"}


def pretend(monkeypatch: pytest.MonkeyPatch, native: set[str]) -> None:
    """That the CPU has these instructions, and no others."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(native, True))


def ranges_of(network: NSNet, pixels: torch.Tensor) -> Ranges:
    return activation_ranges(network.visual, pixels, network.spec)


def runtime(engine: str = "auto", precision: str = "auto") -> Runtime:
    return replace(CPU, engine=engine, precision=precision)


def tokens(network: NSNet, wanted: Runtime, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return make_engine(wanted, network)(pixels).float()


INT8 = runtime(precision="int8")
OPENVINO = runtime("openvino", "float")
TORCH = runtime("torch")


def test_every_engine_gives_the_towers_tokens(network: NSNet) -> None:
    pixels = canvases(3)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    assert torch.equal(tokens(network, TORCH, pixels), expected)
    assert torch.allclose(tokens(network, OPENVINO, pixels), expected, atol=1e-4)
    rounded = tokens(network, INT8, pixels)
    assert torch.nn.functional.cosine_similarity(rounded, expected, dim=-1).min() > 0.99


def test_a_tower_with_exact_gelu_is_drawn_with_it(network: NSNet) -> None:
    """CLIP of other makers has GELU where OpenAI's has QuickGELU."""
    for block in network.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    pixels = canvases(2)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    assert torch.allclose(tokens(network, OPENVINO, pixels), expected, atol=1e-4)


def test_a_tower_the_graph_does_not_know_is_refused(network: NSNet) -> None:
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Linear(1, 1)
    with pytest.raises(EngineError, match="NSNET_ENGINE=torch"):
        make_engine(OPENVINO, network)


def test_many_canvases_go_in_chunks_and_keep_their_order(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = canvases(7)
    whole = {engine: tokens(network, engine, pixels) for engine in (TORCH, OPENVINO)}
    monkeypatch.setattr(base, "CPU_TOKENS", 3 * network.visual.positional_embedding.shape[0])
    for engine, expected in whole.items():
        assert torch.allclose(tokens(network, engine, pixels), expected, atol=1e-4)


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
    engine = pytorch.CudaEngine(network, CPU, capture)
    assert recorded == [1, 2, 4]
    pixels = canvases(11)
    with torch.inference_mode():
        expected = network.tokens(pixels)
    tokens = {count: engine(pixels[:count]) for count in (1, 2, 3, 4, 5, 11)}
    for count, given in tokens.items():
        assert torch.allclose(given, expected[:count], atol=1e-5)


def test_rows_are_rounded_to_int8_each_by_its_own_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    weight[1] *= 1000
    weight[2] = 0
    values, scales = int8_rows(weight)
    assert values.dtype == np.int8
    assert np.abs(values).max(axis=1).tolist() == [127, 127, 0, 127, 127]
    assert (np.abs(values * scales - weight) <= scales / 2 * 1.001).all()


@pytest.mark.skipif(
    not NATIVE_INT8, reason="sums of the tiny tower's products saturate on this CPU"
)
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

    def rounded(native: set[str], ranges: Ranges | None = known) -> torch.Tensor:
        pretend(monkeypatch, native)
        return make_engine(INT8, network, ranges)(pixels)

    def error(tokens: torch.Tensor) -> float:
        return float((tokens - expected).norm() / expected.norm())

    assert error(rounded(AMX)) < 0.05
    assert error(rounded(VNNI)) < 0.05
    assert error(rounded(AVX2)) < 0.05
    assert not torch.equal(rounded(VNNI), rounded(AMX))  # of the MLP's second layer
    assert error(rounded(VNNI, None)) < 0.1
    assert not torch.equal(rounded(VNNI, None), rounded(VNNI))
    for graph in (openvino_graph, onnx_graph):
        monkeypatch.setattr(
            graph,
            "smooth",
            lambda weight, of: (torch.ones(weight.shape[1]), float(of.min()), float(of.max())),
        )
    assert error(rounded(AMX)) > 0.15
    assert error(rounded(VNNI)) > 0.15
    assert error(rounded(AVX2)) > 0.15


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

    def made() -> Engine:
        return make_engine(INT8, network, known)

    engine = made()
    assert (engine.name, engine.precision) == ("onnxruntime", "int8")
    given = engine(pixels)
    assert float((given - expected).norm() / expected.norm()) < (0.03 if NATIVE_INT8 else 0.2)
    monkeypatch.setattr(base, "CPU_TOKENS", 3 * network.visual.positional_embedding.shape[0])
    assert torch.allclose(made()(pixels), given, atol=1e-5)  # in chunks
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Linear(1, 1)
    with pytest.raises(EngineError, match="NSNET_ENGINE=torch"):
        made()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network.visual.transformer.resblocks[0].ls_1 = torch.nn.Identity()
    assert made().name == "openvino"


@pytest.mark.parametrize(
    ("wanted", "dtype", "native", "ranges", "expected"),
    [
        ("auto", "bfloat16", VNNI, True, "openvino int8"),
        ("auto", "bfloat16", VNNI, False, "openvino int8"),
        ("auto", "bfloat16", AMX, True, "openvino int8"),
        ("auto", "bfloat16", AMX, False, "openvino bfloat16"),
        ("auto", "float32", AMX, False, "openvino int8"),
        ("auto", "float32", AVX2, True, "onnxruntime int8"),
        ("auto", "float32", AVX2, False, "openvino float32"),
        ("auto", "float32", set(), True, "openvino float32"),
        ("float", "float32", AMX, True, "openvino float32"),
        ("int8", "float32", set(), True, "openvino int8"),
    ],
)
def test_auto_is_what_the_cpu_is_fastest_with(
    network: NSNet,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    dtype: str,
    native: set[str],
    ranges: bool,
    expected: str,
) -> None:
    pretend(monkeypatch, native)
    known = ranges_of(network, canvases(2)) if ranges else None
    asked = Runtime.resolve("cpu", dtype, precision=wanted, threads=1)

    def made() -> str:
        engine = make_engine(asked, network, known)
        return f"{engine.name} {engine.precision}"

    assert made() == expected
    for package in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    if wanted == "int8":
        with pytest.raises(EngineError, match="no engine multiplies in int8 here"):
            made()
    else:
        assert made() == f"torch {dtype}"


def test_another_device_than_a_cpu_is_torchs(network: NSNet) -> None:
    """As on a GPU."""
    assert make_engine(replace(runtime(), device=torch.device("meta")), network).name == "torch"


def test_what_cannot_run_is_refused_in_one_line(
    network: NSNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, message in (
        (runtime("tpu"), "engine 'tpu' is not one of"),
        (runtime(precision="int4"), "precision 'int4' is not one of"),
        (runtime("torch", "int8"), "'torch' does not multiply in int8"),
        (runtime("onnxruntime", "float"), "'onnxruntime' does not multiply in float"),
        (runtime("onnxruntime"), "the checkpoint has none"),
        (replace(OPENVINO, device=torch.device("meta")), "not on meta"),
    ):
        with pytest.raises(EngineError, match=message):
            make_engine(wanted, network)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="pip install openvino"):
        make_engine(OPENVINO, network)


def test_a_detector_says_the_same_with_every_engine(
    network: NSNet, metadata: Metadata, tiny_tower: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ranged.safetensors"
    save_checkpoint(path, network, metadata, ranges=ranges_of(network, canvases(8)))
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    scores = {}
    for name, precisions in ENGINES.items():
        for precision in precisions:
            detector = Detector.load(path, backbone=tiny_tower, runtime=runtime(name, precision))
            assert detector.about.engine == name
            assert detector.about.precision == ("float32" if precision == "float" else precision)
            assert detector.torch_threads(4) == (4 if name == "torch" else 1)
            detector.warm_up([1, 2])
            answers = detector.detect([image, image[:70, :70]])
            scores[name, precision] = [answer.score for answer in answers]
    exact = scores["torch", "float"]
    assert scores["openvino", "float"] == pytest.approx(exact, abs=1e-4)
    assert scores["openvino", "int8"] == pytest.approx(exact, abs=0.05)
    assert scores["onnxruntime", "int8"] == pytest.approx(exact, abs=0.05)
    assert exact[0] != exact[1]


@pytest.mark.process
def test_openvino_is_loaded_without_its_telemetry() -> None:
    code = (
        "import sys; from model.engines.openvino_graph import openvino; assert openvino();"
        "assert sys.modules.get('openvino_telemetry') is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tower_is_not_kept_twice(checkpoint: Path, tiny_tower: Path) -> None:
    tower = load_backbone(TINY, path=tiny_tower)
    detector = Detector.load(checkpoint, backbone=tiny_tower, runtime=INT8)
    left = [tuple(tensor.shape) for tensor in detector._model.visual.state_dict().values()]
    assert left == [tuple(tower.visual.proj.shape)]
