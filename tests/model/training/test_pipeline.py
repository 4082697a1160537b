"""The whole of training on a tiny tower: images on disk -> checkpoint -> detector."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from model.training.head import HeadOptions
from PIL import Image

from model import backbone
from model.checkpoint import read_checkpoint
from model.detector import Detector
from model.errors import ModelError
from model.nsnet import NSNetConfig
from model.training.manifest import read_manifest
from model.training.pipeline import TrainOptions, train
from tests.conftest import RULE, TINY

SIZE = 130


@pytest.fixture
def cached_tower(tiny_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "towers"
    cache.mkdir()
    (cache / f"{TINY}.safetensors").write_bytes(tiny_tower.read_bytes())
    monkeypatch.setattr(backbone, "default_cache_dir", lambda: cache)


def images(folder: Path) -> Path:
    """'AI' images carry stripes, photographs do not; 4 groups of each."""
    rng = np.random.default_rng(0)
    board = 100 * ((np.arange(SIZE) // 8) % 2)[None, :, None]
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group", "split"])
        for index in range(48):
            label = ("real", "ai")[index % 2]
            noise = rng.integers(0, 60, (SIZE, SIZE, 3)) + rng.integers(20, 90)
            pixels = noise + (board if label == "ai" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
            table.writerow([f"{index}.png", label, f"{label}{index // 2 % 4}", "train"])
    return folder / "manifest.csv"


@pytest.fixture
def options(config: NSNetConfig) -> TrainOptions:
    head = HeadOptions(epochs=20, batch_size=32, dropout=0.1)
    network = config.model_copy(update={"patches": RULE})
    return TrainOptions(network=network, cut=RULE, head=head, rank=4, degraded=1, folds=2)


def run(
    manifest: Path, tmp_path: Path, options: TrainOptions, dtype: torch.dtype = torch.float32
) -> Path:
    np.save(tmp_path / "texts.npy", np.random.default_rng(1).normal(size=(30, 24)))
    out = tmp_path / "out" / "checkpoint.safetensors"
    train(
        read_manifest(manifest, "train"), [tmp_path / "texts.npy"], options, out,
        name="tiny", version="0.0.1", command="a test", cache=tmp_path / "cache", dtype=dtype,
    )  # fmt: skip
    return out


def test_a_checkpoint_is_trained_calibrated_and_detects(
    cached_tower: None, tmp_path: Path, options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = images(tmp_path)
    (tmp_path / "7.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING):
        out = run(manifest, tmp_path, options)
    assert "1 of 48 images" in caplog.text
    metadata = read_checkpoint(out).metadata
    held_out = metadata.evaluation["leave_group_out"]
    assert held_out["clean"]["auc"] > 0.9
    assert held_out["clean"]["images"] == {"real": 24, "ai": 23}
    assert held_out["equalised"]["real_called_ai"] <= 0.05
    assert metadata.projector.rank == 4
    assert metadata.training.images == {"real": 24, "ai": 24}

    tower = tmp_path / "towers" / f"{TINY}.safetensors"
    detector = Detector.load(out, backbone=tower, device="cpu")
    real, fake = (np.asarray(Image.open(tmp_path / f"{i}.png")) for i in (0, 1))
    scores = [d.score for d in detector.detect([real, fake])]
    assert scores[0] < 0.5 < scores[1]


def test_the_same_command_gives_the_same_weights_and_reuses_its_features(
    cached_tower: None, tmp_path: Path, options: TrainOptions
) -> None:
    manifest = images(tmp_path)
    first = read_checkpoint(run(manifest, tmp_path, options))
    cached = list((tmp_path / "cache").iterdir())
    for image in tmp_path.glob("*.png"):
        image.unlink()  # the second run can only read the cache
    second = read_checkpoint(run(manifest, tmp_path, options))
    assert list((tmp_path / "cache").iterdir()) == cached
    assert first.sha256 == second.sha256


def test_features_may_be_computed_in_bfloat16(
    cached_tower: None, tmp_path: Path, options: TrainOptions
) -> None:
    out = run(images(tmp_path), tmp_path, options, torch.bfloat16)
    assert read_checkpoint(out).metadata.evaluation["leave_group_out"]["clean"]["auc"] > 0.8


def test_one_class_is_refused_before_any_work(cached_tower: None, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,group\na.png,ai,g\n")
    with pytest.raises(ModelError, match="both classes"):
        read_manifest(tmp_path / "m.csv")
