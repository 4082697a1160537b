"""The whole of training on a tiny tower: images on disk -> checkpoint -> detector."""

import json
import logging
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from model.checkpoint import read_checkpoint
from model.data import copies
from model.data.copies import DEGRADED, EQUALISED
from model.data.manifest import Row, read_dataset
from model.detector import Detector
from model.errors import ModelError
from model.hardware import Runtime
from model.network import NSNet, NSNetConfig
from model.nullspace import StoredProjector, null_space
from model.tower.sources import Backbone, _build_clip, random_backbone
from model.training import features, trainer
from model.training.distil import DistilOptions
from model.training.experiment import Experiment
from model.training.lora import LoraOptions
from model.training.options import TrainOptions, preset
from model.training.pipeline import train
from model.training.trainer import FitOptions
from model.verdicts import Calibration
from model.views.patches import PatchRule
from model.views.plan import ViewPlan
from tests.conftest import CPU, PLAN, TINY
from tests.model.training.toy import know_tiny, toy_images

HEAD = FitOptions(steps=60, batch_size=32, learning_rate=1e-2, dropout=0.1, ema=0.9)
TUNE = FitOptions(steps=25, batch_size=16, learning_rate=3e-3, lora_learning_rate=3e-3, ema=0.5)
JOINT = NSNetConfig(backbone=TINY, features="joint", hidden=8)
BLOCKS = JOINT.model_copy(update={"features": "blocks", "blocks": (3,)})
BASE: dict[str, Any] = {"views": PLAN, "degraded": 1, "folds": 2}
WHOLE = ViewPlan(
    whole=True,
    whole_share=0.3,
    patches=PatchRule(patch_size=64, canvas_size=64, canvases=2, high_share=1.0),
)
POOLED = BLOCKS.model_copy(update={"blocks": (1, 3), "pooled_after": 1})
WAYS = {
    "distil": TrainOptions(
        network=POOLED,
        head=HEAD,
        distil=DistilOptions(lora=LoraOptions(blocks=(2, 3), rank=2), fit=TUNE),
        **BASE,
    ),
    "frozen": TrainOptions(network=BLOCKS, head=HEAD, **BASE),
    "lora": TrainOptions(
        network=BLOCKS, head=HEAD, lora=LoraOptions(blocks=(2, 3), rank=2), lora_fit=TUNE, **BASE
    ),
    "live": TrainOptions(
        network=JOINT,
        head=None,
        live=True,
        lora=LoraOptions(blocks=(1, 2, 3), rank=2),
        lora_fit=TUNE.model_copy(update={"steps": 60}),  # it has no head to begin with
        **BASE,
    ),
}
CACHED = ("distil", "frozen", "lora")


@pytest.fixture(autouse=True)
def tower(tiny_tower: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of towers holds TINY."""
    monkeypatch.setattr("model.tower.sources.cached_path", lambda *_: tiny_tower)
    # After every fit accelerate collects garbage, half a second among pytest's many objects.
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    return tiny_tower


def projector(network: NSNetConfig, seed: int = 1) -> StoredProjector:
    width = {"joint": 24, "blocks": 32}[network.features]
    texts = torch.randn(60, width, generator=torch.Generator().manual_seed(seed))
    return StoredProjector(null_space(texts, rank=4), network.features, TINY, ("toy",))


def run(folder: Path, options: TrainOptions, name: str = "a", **changes: Any) -> Path:
    out = folder / name / "checkpoint.safetensors"
    arguments: dict[str, Any] = {
        "projector": projector(options.network),
        "cache": folder / "cache",
        "run": folder / name,
        "command": "a test",
    }
    arguments |= changes
    rows = read_dataset(folder / "manifest.csv", "train")
    train(rows, options=options, out=out, name="tiny", version="0.0.1", **arguments)
    return out


def experiment(folder: Path, options: TrainOptions, rows: list[Row]) -> Experiment:
    return Experiment(
        rows,
        projector(options.network),
        options,
        cache=folder / "cache",
        runtime=CPU,
        accelerator=Accelerator(cpu=True),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("way", WAYS)
def test_training_runs_on_a_gpu_in_bfloat16(tmp_path: Path, tower: Path, way: str) -> None:
    toy_images(tmp_path, 12)
    runtime = Runtime.resolve("cuda", "bfloat16", "torch")
    out = run(tmp_path, WAYS[way], runtime=runtime, accelerator=Accelerator())
    detector = Detector.load(out, backbone=tower, runtime=Runtime.resolve("cuda"))
    rows = read_dataset(tmp_path / "manifest.csv", "train")
    detections = detector.detect([np.array(Image.open(row.path).convert("RGB")) for row in rows])
    scores = np.array([detection.score for detection in detections])
    labels = np.array([row.label for row in rows])
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.1


@pytest.mark.parametrize("way", ["frozen", "live"])
def test_left_out_images_are_scored_as_in_service(way: str, tmp_path: Path) -> None:
    """After the first look, and by all canvases."""
    rows = read_dataset(toy_images(tmp_path, 8), "train")
    changes = {"views": WHOLE, "lora_fit": TUNE}
    whole = experiment(tmp_path, WAYS[way].model_copy(update=changes), rows)
    everything = torch.ones(len(rows), dtype=torch.bool)
    fitted = whole.fit(everything)
    scored = whole.score(fitted, everything)["clean"]
    first, every = [], []
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(row.path))).permute(2, 0, 1).unsqueeze(0)
        glance = WHOLE.look(pixels, adaptive=True).canvases
        all_at_once = WHOLE.look(pixels, adaptive=False).canvases
        assert (len(glance), len(all_at_once)) == (1, 3)
        with torch.inference_mode():
            first.append(float(fitted.logits(fitted.tokens(glance))))
            each = fitted.logits(fitted.tokens(all_at_once)).tolist()
        every.append(WHOLE.combine(each))
    assert scored.row.tolist() == list(range(8))
    assert scored.first == pytest.approx(first, abs=1e-2)
    assert scored.all == pytest.approx(every, abs=1e-2)
    assert np.ptp(scored.all) > 0.1
    assert np.abs(scored.all - scored.first).max() > 0.1


def test_adapters_read_each_canvas_own_states_where_an_image_has_changed(tmp_path: Path) -> None:
    """Its new states stand after all others."""
    few = TUNE.model_copy(update={"steps": 3})
    options = WAYS["lora"].model_copy(update={"lora_fit": few})
    rows = read_dataset(toy_images(tmp_path, 8), "train")
    experiment(tmp_path, options, rows)
    rows[0].path.write_bytes(rows[1].path.read_bytes())
    everything = torch.ones(8, dtype=torch.bool)
    scores = []
    for folder in (tmp_path, tmp_path / "other"):
        of = experiment(folder, options, rows)
        scores.append(of.score(of.fit(everything), everything)["clean"].all)
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)
    assert np.ptp(scores[0]) > 0.1


@pytest.mark.parametrize("way", [*CACHED, pytest.param("live", marks=pytest.mark.slow)])
def test_a_checkpoint_is_trained_recorded_and_detects(
    way: str,
    tmp_path: Path,
    tower: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy_images(tmp_path)
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:900])  # seen in decoding
    trained: list[NSNet] = []
    fit = Experiment.fit

    def noted(*arguments: Any, **options: Any) -> NSNet:
        trained.append(fit(*arguments, **options))
        return trained[-1]

    monkeypatch.setattr(Experiment, "fit", noted)
    options = WAYS[way]
    with caplog.at_level(logging.WARNING):
        out = run(tmp_path, options)
    assert "1 of 48 images cannot be used" in caplog.text

    stored = read_checkpoint(out)
    assert stored.ranges is not None
    metadata = stored.metadata
    held_out = metadata.evaluation["left_out_owners"]
    assert held_out["clean"]["auc"] > 0.9
    assert held_out["clean"]["images"] == {"real": 24, "made": 0, "ai": 23}
    assert held_out["clean"]["skipped"] == {"unusable": 1}
    assert held_out["folds"].startswith("2 of 2 folds of left-out owners; each one's cuts")
    # Not by construction: the cuts are the other fold's.
    assert held_out["equalised"]["real_called_ai"] <= 0.25
    assert held_out["clean"]["groups"]["real"].keys() == {f"real{index}" for index in range(4)}
    assert metadata.views == PLAN
    assert metadata.verdicts.margins == options.margins
    assert metadata.projector.rank == 4
    assert metadata.projector.source == "toy"

    detector = Detector.load(out, backbone=tower, runtime=CPU, canvases="all")
    pixels = [np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(4)]
    scores = [d.score for d in detector.detect(pixels)]
    assert max(scores[0], scores[2]) < 0.5 < min(scores[1], scores[3])

    # What was trained, adapters and all, is what the checkpoint gives on a plain tower.
    looks = [detector.look(p) for p in pixels]
    network = trained[-1]
    with torch.inference_mode():
        logits = [
            PLAN.combine(network.logits(network.tokens(look.canvases)).tolist()) for look in looks
        ]
    assert [score.logit for score in detector.predict(looks)] == pytest.approx(logits, abs=1e-3)
    adapters = [name for name in load_file(out) if name.startswith("lora.")]
    adapted = options.lora or (options.distil and options.distil.lora)
    assert len(adapters) == (8 * len(adapted.blocks) if adapted else 0)
    if adapted:
        assert any(load_file(out)[name].abs().max() > 0 for name in adapters if "up" in name)

    config = json.loads((out.parent / "config.json").read_text())
    assert config["options"] == options.model_dump(mode="json")
    assert config["data_sha256"] == metadata.training.data_sha256
    assert config["revision"] == metadata.training.revision
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert json.loads((out.parent / "metrics.json").read_text()) == metadata.evaluation
    stages = {"lora": {"head", "lora"}, "live": {"lora"}}.get(way, {"head"})
    distilled = out.parent / "distil" / "losses.json"
    assert distilled.exists() == (way == "distil")
    for part in ("fold-0", "fold-1", "all"):
        assert {p.name for p in (out.parent / part).iterdir()} == stages
        for stage in stages:
            folder = out.parent / part / stage
            assert len(json.loads((folder / "losses.json").read_text())) in (60, 25)
            assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("way", WAYS)
def test_the_same_command_gives_the_same_weights(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_images(tmp_path, 24)
    few = TUNE.model_copy(update={"steps": 3})
    distil = WAYS[way].distil
    short = WAYS[way].model_copy(
        update={"lora_fit": few, "distil": distil and distil.model_copy(update={"fit": few})}
    )
    first = run(tmp_path, short, "a")
    if way != "live":  # the second run can only read the cache
        monkeypatch.setattr(features, "_extract", None)
    torch.rand(7)  # whatever else drew from the global generator
    second = run(tmp_path, short, "b")
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "cache").exists() == (way != "live")


def test_one_look_has_a_calibration_of_its_own(tmp_path: Path) -> None:
    toy_images(tmp_path, 24)
    options = WAYS["frozen"].model_copy(update={"views": WHOLE})
    verdicts = read_checkpoint(run(tmp_path, options)).metadata.verdicts
    assert verdicts.calibrations.first != verdicts.calibrations.all
    assert verdicts.margins == options.margins


def test_heads_are_fitted_anew_to_a_tower_that_was_adapted_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_images(tmp_path, 24)
    first = run(tmp_path, WAYS["distil"], "first")
    stored = read_checkpoint(first)
    with monkeypatch.context() as patch:  # it is the same tower: all it gave is in the cache
        patch.setattr(features, "_extract", None)
        same = read_checkpoint(run(tmp_path, WAYS["distil"], "same", adapted=stored))
    assert same.tensors.keys() == stored.tensors.keys()
    assert all(torch.equal(same.tensors[name], own) for name, own in stored.tensors.items())
    openvino = replace(CPU, engine="openvino")
    second = run(tmp_path, WAYS["distil"], "second", adapted=stored, runtime=openvino)
    again = read_checkpoint(second)
    assert not (second.parent / "distil").exists()
    assert again.metadata.training.tower_sha256 == stored.sha256
    assert stored.metadata.training.tower_sha256 is None
    adapters = [name for name in stored.tensors if name.startswith("lora.")]
    assert len(adapters) == 16
    assert all(torch.equal(again.tensors[name], stored.tensors[name]) for name in adapters)
    # The adapted tower gave the head the same tokens, by another engine: it is the same head.
    for name in ("head.mean", "head.embed.weight", "ranges.c_fc"):
        assert torch.allclose(again.tensors[name], stored.tensors[name], atol=0.02), name
    with pytest.raises(ModelError, match="holds a run of other tower_sha256"):
        run(tmp_path, WAYS["distil"], "second")
    with pytest.raises(ModelError, match="pooled after block 1; the network"):
        run(tmp_path, WAYS["frozen"], "third", adapted=stored)
    with pytest.raises(ModelError, match="no adapters are fitted to it"):
        run(tmp_path, WAYS["lora"], "fourth", adapted=stored)


def test_live_training_draws_copies_by_the_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_dataset(toy_images(tmp_path, 8), "train")
    drawn = set()
    fresh = copies.copy_of

    def noted(*arguments: Any) -> Any:
        drawn.add(arguments[1])
        return fresh(*arguments)

    monkeypatch.setattr(copies, "copy_of", noted)
    two = TUNE.model_copy(update={"steps": 2})
    for degraded, expected in ((1, {EQUALISED, DEGRADED}), (0, {EQUALISED})):
        drawn.clear()
        options = WAYS["live"].model_copy(
            update={"shares": (0.0, 1.0, 1.0), "degraded": degraded, "lora_fit": two}
        )
        experiment(tmp_path, options, rows).fit(torch.ones(8, dtype=torch.bool))
        assert drawn == expected


def test_a_run_whose_images_are_gone_ends_without_ranges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All else is in the cache: hours of training are not lost over what only int8 needs."""
    toy_images(tmp_path, 24)
    first = run(tmp_path, WAYS["frozen"], "a")
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with caplog.at_level(logging.WARNING):
        second = run(tmp_path, WAYS["frozen"], "b")
    assert "the checkpoint has none" in caplog.text
    assert read_checkpoint(second).ranges is None
    kept = load_file(second)
    assert all(torch.equal(tensor, load_file(first)[name]) for name, tensor in kept.items())


def killed(folder: Path, tower: Path, at: int) -> None:
    """Train, and die in the last fit, at a step of its LoRA phase; in a process of its own."""
    know_tiny(tower)
    seed = trainer._seed

    def deadly(options: FitOptions, step: int) -> int:
        last = (folder / "killed/all/head/state.pt").exists()
        if last and options.steps == TUNE.steps and step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return seed(options, step)

    trainer._seed = deadly
    run(folder, WAYS["lora"], "killed")


@pytest.mark.process
@pytest.mark.slow
def test_a_run_killed_among_its_adapters_ends_at_the_same_weights(
    tmp_path: Path, tower: Path
) -> None:
    toy_images(tmp_path, 24)
    whole = run(tmp_path, WAYS["lora"], "whole")
    # Before the first state was saved, the adapters start anew; after it they go on.
    for at in (3, 22):
        process = multiprocessing.get_context("spawn").Process(
            target=killed, args=(tmp_path, tower, at)
        )
        process.start()
        process.join(100)
        assert process.exitcode == -signal.SIGKILL
    assert len(json.loads((tmp_path / "killed/all/lora/losses.json").read_text())) == 20
    resumed = load_file(run(tmp_path, WAYS["lora"], "killed"))
    for name, tensor in load_file(whole).items():
        assert torch.allclose(resumed[name], tensor, atol=1e-5), name


def test_a_run_folder_is_not_shared_by_other_projectors(tmp_path: Path) -> None:
    toy_images(tmp_path, 24)
    run(tmp_path, WAYS["frozen"])
    with pytest.raises(ModelError, match="holds a run of other projector_sha256"):
        run(tmp_path, WAYS["frozen"], projector=projector(BLOCKS, seed=2))


def test_only_the_first_folds_are_measured(tmp_path: Path) -> None:
    toy_images(tmp_path)
    options = WAYS["frozen"].model_copy(update={"folds": 4, "measured_folds": 1})
    metadata = read_checkpoint(run(tmp_path, options)).metadata
    held_out = metadata.evaluation["left_out_owners"]
    assert held_out["clean"]["images"] == {"real": 6, "made": 0, "ai": 6}
    # One owner of each class cannot be halved.
    assert held_out["folds"].startswith("1 of 4 folds of left-out owners; its owners halved")
    assert "nothing to choose its rules on" in held_out["no_verdicts"]
    assert "real_called_ai" not in held_out["clean"]
    assert "1 of 4 folds" in metadata.verdicts.calibrations.all.fitted_on
    assert {p.name for p in (tmp_path / "a").glob("*/")} == {"fold-0", "all"}


def test_more_folds_than_owners_are_refused(tmp_path: Path) -> None:
    toy_images(tmp_path, 24)
    with pytest.raises(ModelError, match="at least 5 owners"):
        run(tmp_path, WAYS["frozen"].model_copy(update={"folds": 5}))


@pytest.mark.parametrize(
    "change", [{"space": "joint"}, {"backbone": "ViT-B-16"}], ids=["space", "backbone"]
)
def test_a_projector_of_another_space_or_tower_is_refused(
    change: dict[str, str], tmp_path: Path
) -> None:
    toy_images(tmp_path, 8)
    right = projector(BLOCKS)
    wrong = StoredProjector(**{k: getattr(right, k) for k in right.__slots__} | change)
    with pytest.raises(ModelError, match=f"the projector is of .* needs {TINY}, blocks"):
        run(tmp_path, WAYS["frozen"], projector=wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", CACHED)
def test_the_tower_may_be_of_half_precision(
    way: str, dtype: torch.dtype, tmp_path: Path, tower: Path
) -> None:
    toy_images(tmp_path, 24)
    out = run(tmp_path, WAYS[way], runtime=replace(CPU, dtype=dtype))
    assert read_checkpoint(out).metadata.evaluation["left_out_owners"]["clean"]["auc"] > 0.8
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out).values())


def test_no_network_of_a_finished_fold_is_kept(tmp_path: Path) -> None:
    toy_images(tmp_path, 24)
    accelerator = Accelerator(cpu=True)
    run(tmp_path, WAYS["frozen"], accelerator=accelerator)
    assert accelerator._models == []


@pytest.mark.parametrize(
    ("way", "change", "message"),
    [
        ("frozen", {"head": None}, "a frozen tower is trained from cached features"),
        ("frozen", {"live": True}, "a frozen tower is trained from cached features"),
        ("live", {"head": {}}, "no cached features to fit a head to"),
        ("frozen", {"distil": {"lora": {"blocks": [2, 3]}}}, "makes up for pooled tokens"),
        ("distil", {"distil": {"lora": {"blocks": [1, 2]}}}, "blocks above the pooled tokens"),
        ("distil", {"lora": {"blocks": [3]}}, "distil or lora"),
        ("lora", {"lora": {"blocks": [1, 3]}}, "a frozen block below"),
        ("lora", {"lora": {"blocks": [4]}}, "a frozen block below"),
        ("lora", {"lora": {"blocks": [3, 4]}}, "would never be trained"),
        ("frozen", {"shares": [0, 0, 1], "degraded": 0}, "one kind of copy that is made"),
        ("frozen", {"epochs": 3}, "Extra inputs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    way: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainOptions.model_validate(WAYS[way].model_dump() | change)


def test_presets_are_by_name() -> None:
    assert preset("default").lora is None
    with pytest.raises(ModelError, match="there are default, paper"):
        preset("best")


@pytest.mark.slow  # 300 million parameters
def test_the_papers_configuration_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On random weights of ViT-L/14: that its sizes, blocks and mosaics fit, not that it learns."""
    runtime = Runtime.resolve("cpu", "auto", "torch")  # another dtype takes twice as long
    tower = random_backbone("ViT-L-14-quickgelu", seed=0)
    weights = tower.visual.to(runtime.dtype).state_dict()

    def load(name: str, **_: Any) -> Backbone:
        visual = _build_clip(name).visual
        visual.load_state_dict(weights, assign=True)
        return Backbone(name, visual.eval().requires_grad_(False), tower.sha256)

    for module in ("training.experiment", "training.pipeline", "detector"):
        monkeypatch.setattr(f"model.{module}.load_backbone", load)
    toy_images(tmp_path, 8, size=160)
    paper = preset("paper")
    fit = paper.lora_fit.model_copy(update={"steps": 2, "batch_size": 2})
    options = paper.model_copy(update={"lora_fit": fit, "folds": 2})
    texts = torch.randn(900, 768, generator=torch.Generator().manual_seed(0))
    space = StoredProjector(null_space(texts, rank=64), "joint", tower.name, ("random",))
    # Two steps tell nothing apart, which calibration refuses.
    chance = Calibration(slope=1, intercept=0, fitted_on="chance")
    monkeypatch.setattr("model.verdicts.fit_calibration", lambda *_: chance)
    out = run(tmp_path, options, projector=space, runtime=runtime)
    tensors = load_file(out)
    assert len([name for name in tensors if name.startswith("lora.")]) == 24 * 4 * 2
    assert len(json.loads((tmp_path / "a/all/lora/losses.json").read_text())) == 2
    detector = Detector.load(out, runtime=Runtime.resolve("cpu"))
    look = detector.look(np.asarray(Image.open(tmp_path / "0.png")))
    assert look.canvases.shape == (1, 3, 224, 224)
    assert np.isfinite(detector.predict([look])[0].value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My Model"}, "the name 'My Model': String should match"),
        ({"version": "1.0"}, r"the version '1\.0': String should match"),
    ],
)
def test_a_name_that_no_checkpoint_takes_is_refused_before_anything_is_trained(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    names = {"name": "tiny", "version": "0.0.1"} | change
    options = WAYS["frozen"]
    with pytest.raises(ModelError, match=message):
        train(
            [],
            projector(options.network),
            options,
            tmp_path / "out.safetensors",
            command="a test",
            cache=tmp_path,
            **names,  # type: ignore[arg-type]
        )
