import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from model.backbone import load_backbone
from model.checkpoint import (
    Calibration,
    Metadata,
    build_model,
    read_checkpoint,
    save_checkpoint,
)
from model.errors import CheckpointError
from model.nsnet import NSNet
from model.ranges import activation_ranges
from tests.conftest import TINY


def rewrite(
    path: Path,
    tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    held = load_file(path)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["nsnet"])
    tensors(held)
    metadata(said)
    save_file(held, path, metadata={"nsnet": json.dumps(said)})


def tower(tiny_tower: Path, network: NSNet) -> Any:
    return load_backbone(TINY, path=tiny_tower, depth=network.config.depth).visual


def test_round_trip_gives_the_same_logits(
    checkpoint: Path, network: NSNet, metadata: Metadata, tiny_tower: Path
) -> None:
    read = read_checkpoint(checkpoint)
    assert read.metadata == metadata
    assert not any(name.startswith("visual.") for name in read.tensors)
    again = build_model(read, tower(tiny_tower, network))
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again(pixels, [2, 1]), network(pixels, [2, 1]))


def test_lora_deltas_are_merged_at_load(checkpoint: Path, network: NSNet, tiny_tower: Path) -> None:
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    down, up = torch.randn(2, 32), torch.randn(128, 2)
    rewrite(checkpoint, lambda t: t.update({f"lora.{name}.down": down, f"lora.{name}.up": up}))
    merged = build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))
    expected = network.visual.get_parameter(name) + up @ down
    assert torch.allclose(merged.visual.get_parameter(name), expected, atol=1e-6)


def test_one_score_is_as_many_are() -> None:
    calibration = Calibration(slope=1.3, intercept=-0.4, fitted_on="a test")
    logits = [-1e300, -800.0, -40.0, -3.0, 0.0, 2.5, 40.0, 800.0, 1e300]
    many = calibration.scores(torch.tensor(logits, dtype=torch.double)).tolist()
    assert [calibration.score(logit) for logit in logits] == pytest.approx(many, abs=1e-15)
    assert calibration.scores(torch.tensor(0.4 / 1.3)) == pytest.approx(0.5)


def test_ranges_come_back(network: NSNet, metadata: Metadata, tmp_path: Path) -> None:
    depth = network.reads[-1]
    ranges = activation_ranges(network.visual, torch.zeros(1, 3, 64, 64).byte(), depth)
    path = tmp_path / "ranged.safetensors"
    save_checkpoint(path, network, metadata, ranges=ranges)
    again = read_checkpoint(path)
    build_model(again, network.visual)
    assert again.ranges is not None
    assert again.ranges.keys() == ranges.keys()
    assert all(torch.equal(again.ranges[layer], ranges[layer]) for layer in ranges)
    save_checkpoint(path, network, metadata)
    assert read_checkpoint(path).ranges is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("basis"), "lacks the tensor basis"),
        (lambda t: t.pop("head.embed.bias"), r"lacks the tensor head\.embed\.bias"),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown tensor extra"),
        (lambda t: t.update({"head.embed.bias": torch.ones(3)}), r"head\.embed\.bias is \[3\]"),
        (lambda t: t["head.embed.weight"].fill_(float("inf")), "not finite"),
        (lambda t: t.update({"lora.conv1.weight.up": torch.ones(2, 2)}), "lacks lora"),
        (lambda t: t.update({"basis": torch.ones(7, 2)}), "basis"),
        (lambda t: t.update({"ranges.c_fc": torch.ones(3, 2, 32)}), "ranges are not those"),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
    checkpoint: Path,
    network: NSNet,
    tiny_tower: Path,
) -> None:
    rewrite(checkpoint, tensors=change)
    with pytest.raises(CheckpointError, match=message):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("thresholds"), "thresholds"),
        (lambda m: m["thresholds"].update(real_below=0.9), "real_below must not exceed"),
        (lambda m: m["calibration"].update(slope=0.0), "slope"),
        (lambda m: m["calibration"].update(intercept=float("nan")), "intercept"),
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["network"]["patches"].update(patch_size=48), "network.patches"),
        (lambda m: m.update(backbone_sha256="short"), "backbone_sha256"),
    ],
)
def test_wrong_metadata_names_its_field(
    change: Callable[[dict[str, Any]], object], message: str, checkpoint: Path
) -> None:
    rewrite(checkpoint, metadata=change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing")
    pickle = tmp_path / "weights.pt"
    torch.save({"basis": torch.ones(2)}, pickle)
    with pytest.raises(CheckpointError, match="not a safetensors"):
        read_checkpoint(pickle)
    plain = tmp_path / "plain.safetensors"
    save_file({"basis": torch.ones(2)}, plain)
    with pytest.raises(CheckpointError, match="not an NS-Net checkpoint"):
        read_checkpoint(plain)
