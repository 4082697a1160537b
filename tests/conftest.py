"""A tiny random tower and checkpoints on it: the whole path in milliseconds, no download."""

import json
import signal
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import Metadata, save_checkpoint
from model.hardware import Runtime
from model.network import NSNet, NSNetConfig
from model.nullspace import null_space
from model.tower.sources import load_backbone, random_backbone, tensor_digest
from model.views.patches import PatchRule
from model.views.plan import ViewPlan

# Where tests run in the background, interrupts are ignored, also by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = "ViT-tiny-test"
TINY_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PLAN = ViewPlan(patches=PatchRule(patch_size=32, canvas_size=64, canvases=2))
CPU = Runtime.resolve("cpu", "float32", "torch", threads=1)


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of an untrained tower that open_clip knows by the name TINY."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / f"{TINY}.json").write_text(json.dumps(TINY_CONFIG))
    open_clip.add_model_config(folder / f"{TINY}.json")
    tensors = random_backbone(TINY, seed=3).visual.state_dict()
    path = folder / "tower.safetensors"
    save_file(tensors, path, metadata={"sha256": tensor_digest(tensors)})
    return path


@pytest.fixture(params=["joint", "blocks"])
def config(request: pytest.FixtureRequest) -> NSNetConfig:
    blocks, pooled = ((1, 2), 1) if request.param == "blocks" else ((), 0)
    return NSNetConfig(
        backbone=TINY, features=request.param, blocks=blocks, pooled_after=pooled, hidden=8
    )


@pytest.fixture
def network(config: NSNetConfig, tiny_tower: Path) -> NSNet:
    tower = load_backbone(TINY, path=tiny_tower, depth=config.depth)
    width = tower.visual.proj.shape[0 if config.features == "blocks" else 1]
    generator = torch.Generator().manual_seed(5)
    basis = null_space(torch.randn(40, width, generator=generator), rank=4).basis
    torch.manual_seed(1)
    return NSNet(config, tower.visual, basis).eval()


@pytest.fixture
def metadata(config: NSNetConfig, tiny_tower: Path) -> Metadata:
    calibration = {"slope": 1.0, "intercept": 0.0, "fitted_on": "nothing"}
    return Metadata.model_validate(
        {
            "name": "tiny",
            "version": "0.0.1",
            "network": config,
            "views": PLAN,
            "backbone_sha256": load_backbone(TINY, path=tiny_tower).sha256,
            "projector": {"rank": 4, "energy": 0.2, "residual": 0.9, "source": "random"},
            "verdicts": {
                "calibrations": {"first": calibration, "all": calibration},
                "thresholds": {"real_below": 0.3, "ai_above": 0.7},
                "margins": {"clearing": 0.25, "accusing": 0.75},
            },
            "training": {
                "command": "none",
                "revision": "none",
                "data_sha256": "none",
                "images": {},
                "groups": {},
                "options": {},
            },
            "evaluation": {},
        }
    )


@pytest.fixture
def checkpoint(network: NSNet, metadata: Metadata, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, network, metadata)
    return path
