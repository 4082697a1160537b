from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError

from model.errors import CheckpointError
from model.network import NSNet, NSNetConfig
from model.nullspace import null_space
from model.tower.sources import load_backbone, random_backbone
from model.training.options import preset
from tests.conftest import TINY


def canvases(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


def test_features_hold_no_text_direction(network: NSNet) -> None:
    with torch.inference_mode():
        features = network.decouple(network.tokens(canvases(3))).view(-1, network.basis.shape[0])
    assert features.norm(dim=1).min() > 0.05
    assert float((features @ network.basis).abs().max()) < 1e-4


def test_patches_that_make_no_squares_are_not_pooled() -> None:
    vision = {"image_size": 48, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    config = {"embed_dim": 24, "vision_cfg": vision}
    network = NSNetConfig(backbone="three by three", features="blocks", blocks=(2,), pooled_after=1)
    with pytest.raises(CheckpointError, match="no squares"):
        NSNet(network, random_backbone(config).visual, torch.eye(32)[:, :4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "blocks"}, "if and only if"),
        ({"features": "joint", "blocks": (1,)}, "if and only if"),
        ({"features": "blocks", "blocks": (2, 1)}, "rising"),
        ({"features": "blocks", "blocks": (0, 1)}, "from 1"),
        ({"features": "blocks", "blocks": (1, 2), "pooled_after": 2}, "no block that is read"),
    ],
)
def test_contradictory_configurations_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NSNetConfig.model_validate({"backbone": TINY, **options})


def test_a_network_that_does_not_fit_its_tower_is_refused(tiny_tower: Path) -> None:
    visual = load_backbone(TINY, path=tiny_tower).visual
    basis = torch.eye(32)[:, :4]
    good = NSNetConfig(backbone=TINY, features="blocks", blocks=(1, 2), hidden=8)
    for change, given, message in (
        ({}, torch.eye(24)[:, :4], "basis"),
        ({}, torch.eye(32), "basis"),
        ({"blocks": (4,)}, basis, "no block 4"),
    ):
        config = NSNetConfig.model_validate(good.model_dump() | change)
        with pytest.raises(CheckpointError, match=message):
            NSNet(config, visual, given)


def test_the_papers_preset_runs_end_to_end_on_vit_l_14() -> None:
    config = preset("paper").network
    settings = open_clip.get_model_config(config.backbone)
    # Two of its 24 blocks: the full width, patch size and joint space, in seconds.
    settings["vision_cfg"]["layers"] = 2
    vision = settings["vision_cfg"]
    tower = random_backbone({"embed_dim": 768, "quick_gelu": True, "vision_cfg": vision})
    V = torch.randn(100, 768, generator=torch.Generator().manual_seed(0))
    network = NSNet(config, tower.visual, null_space(V, rank=64).basis).eval()
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert bool(torch.isfinite(network.logits(network.tokens(image))).all())
