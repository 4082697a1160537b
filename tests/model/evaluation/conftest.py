from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import Metadata, save_checkpoint
from model.data.manifest import Row
from model.detector import Detector
from model.network import NSNet, NSNetConfig
from model.verdicts import Margins
from model.views.patches import PatchRule
from model.views.plan import ViewPlan
from tests.conftest import CPU, TINY


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8)


@pytest.fixture
def detector(checkpoint: Path, tiny_tower: Path) -> Detector:
    return Detector.load(checkpoint, backbone=tiny_tower, runtime=CPU)


@pytest.fixture
def toned(tmp_path: Path) -> list[Row]:
    """Dark photographs and bright AI images, of four owners each."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(32):
        label, owner = index % 2, f"{('camera', 'gan')[index % 2]}{index // 2 % 4}"
        low = int(rng.integers(0, 60)) + 120 * label
        pixels = rng.integers(low, low + 76, (100, 120, 3), dtype=np.uint8)
        pixels[32:48, 48:64] = low + 76  # something to see
        path = tmp_path / f"toned-{index}.png"
        Image.fromarray(pixels).save(path)
        rows.append(Row(path, label, owner, owner))
    return rows


@pytest.fixture
def telling(network: NSNet, metadata: Metadata, tiny_tower: Path, tmp_path: Path) -> Path:
    """A checkpoint whose head gives bright images the higher logits; it looks twice."""
    path = tmp_path / "telling.safetensors"
    patches = PatchRule(patch_size=64, canvas_size=64, canvases=2, high_share=1.0)
    metadata = metadata.model_copy(update={"views": ViewPlan(whole=True, patches=patches)})
    save_checkpoint(path, network, metadata)
    detector = Detector.load(path, backbone=tiny_tower, runtime=CPU, canvases="all")
    dark, bright = (np.full((100, 120, 3), tone, np.uint8) for tone in (60, 190))
    low, high = (detection.logit for detection in detector.detect([dark, bright]))
    assert low != high
    with torch.no_grad():  # from -10 to 10, about
        factor = 20 / (high - low)
        network.head.classify.weight.mul_(factor)
        network.head.classify.bias.sub_((low + high) / 2).mul_(factor)
    rules = metadata.verdicts.model_copy(update={"margins": Margins(clearing=0.1, accusing=0.2)})
    save_checkpoint(path, network, metadata.model_copy(update={"verdicts": rules}))
    return path
