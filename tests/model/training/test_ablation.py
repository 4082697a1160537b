"""One table that says what was compared, on how much."""

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from pydantic import ValidationError

from model.data.manifest import read_dataset
from model.errors import ModelError
from model.network import NSNetConfig
from model.training.ablation import ablate, variants
from model.training.lora import LoraOptions
from model.training.options import TrainOptions, preset
from model.training.trainer import FitOptions
from tests.conftest import CPU, PLAN, TINY
from tests.model.training.toy import toy_images

NETWORK = NSNetConfig(backbone=TINY, features="blocks", blocks=(3,), hidden=8)
FIT = FitOptions(steps=60, batch_size=16, learning_rate=1e-2, ema=0.5)
BASE = TrainOptions(
    network=NETWORK,
    views=PLAN,
    head=FIT,
    lora=LoraOptions(blocks=(2, 3), rank=2),
    lora_fit=FIT,
    degraded=1,
    folds=2,
    measured_folds=1,
)


def test_the_chosen_sections_are_trained_and_tabled(
    tmp_path: Path, tiny_tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.tower.sources.cached_path", lambda *_: tiny_tower)
    texts = tmp_path / "texts.npy"
    np.save(texts, np.random.default_rng(0).normal(size=(60, 24)).astype(np.float32))
    rows = read_dataset(toy_images(tmp_path, 32), "train")
    table = ablate(
        rows,
        [texts],
        BASE,
        tmp_path / "out",
        command="a test",
        cache=tmp_path / "cache",
        runtime=CPU,
        accelerator=Accelerator(cpu=True),
        only=["tower"],
        rank=4,
    )
    assert table.startswith("32 images, 1 of 2 folds of left-out owners;")
    assert (tmp_path / "out/ablation.md").read_text() == table
    assert "| clean: AUC |" in table
    assert "jpeg60" not in table
    results = json.loads((tmp_path / "out/ablation.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["frozen", "LoRA on blocks (2, 3)"]
    for row in results["rows"]:
        assert {"clean", "equalised", "jpeg60", "corner"} <= row.keys()
        clean = row["clean"]
        assert clean["auc"] > 0.75  # chance is 0.5
        low, high = clean["auc_95"]
        assert f"| {100 * clean['auc']:.1f} ({100 * low:.1f}-{100 * high:.1f}) |" in table


@pytest.mark.parametrize(
    "options", [preset("paper"), BASE.model_copy(update={"head": None})], ids=["live", "no head"]
)
def test_options_that_fit_no_head_are_refused_before_anything_is_trained(
    options: TrainOptions, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="live, or head = null, trains none"):
        ablate(
            [],
            [],
            options,
            tmp_path,
            command="a test",
            cache=tmp_path,
            runtime=CPU,
            accelerator=Accelerator(cpu=True),
        )


def test_every_variant_is_consistent() -> None:
    for base in (BASE, preset("default")):
        for row in variants(base, 64):
            assert TrainOptions.model_validate(row.options.model_dump()) == row.options
    pooled = [row for row in variants(preset("default"), 64) if row.section == "pooled tokens"]
    assert [row.name for row in pooled] == ["none", "after block 6", "after block 6, distilled"]
    assert pooled[-1].options == preset("default")
    contradiction = BASE.model_copy(update={"head": FIT.model_copy(update={"bce_share": 2.0})})
    with pytest.raises(ValidationError, match="bce_share"):
        next(variants(contradiction, 64))


def test_every_comparison_holds_what_is_shipped() -> None:
    rows = list(variants(BASE, 64))
    names = [(row.section, row.name) for row in rows]
    assert len(set(names)) == len(names)
    frozen = BASE.model_copy(update={"lora": None})
    for section in ("null space", "training copies", "tower"):
        compared = [row for row in rows if row.section == section]
        assert any(row.options == frozen and row.rank == 64 for row in compared)


def test_views_are_compared_with_and_without_the_whole_image() -> None:
    rows = {(row.section, row.name): row for row in variants(preset("default"), 64)}
    resized = rows["input", "whole image, resized"].options.views
    assert (resized.whole, resized.canvases) == (True, 1)
    crop = rows["input", "native centre crop"].options.views
    assert (crop.whole, crop.canvases, crop.patches.candidates) == (False, 1, 1)
    for name, canvases in (("2 native", 2), ("the whole image and 2 native", 3)):
        row = rows["canvases averaged", name]
        assert row.canvases == canvases
        assert row.options.views.canvases == 4 + row.options.views.whole
    shares = [
        row.options.views.whole_share
        for (section, _), row in rows.items()
        if section == "share of the whole image"
    ]
    assert shares == [0.5, 0.75, 1.0]
