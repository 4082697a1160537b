"""The loop: it learns, is reproducible, and goes on after a kill as if nothing had happened."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.errors import ModelError
from model.network import NSNet, NSNetConfig
from model.tower.sources import random_backbone
from model.training.trainee import TensorSource, Trainee, standardise
from model.training.trainer import FitOptions, fit
from tests.conftest import TINY
from tests.model.training.toy import know_tiny

OPTIONS = FitOptions(steps=120, batch_size=64, learning_rate=1e-2, ema=0.9)
CONFIG = NSNetConfig(backbone=TINY, features="joint", hidden=16)


def blobs(count: int = 400) -> tuple[Tensor, Tensor]:
    """Two classes of 24-dimensional features that differ in one dimension."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    features = torch.randn(count, 24, generator=generator)
    features[:, 0] += 3 * labels
    return features * 0.1 + 5, labels


def trainee(x: Tensor, dropout: float = 0.3) -> Trainee:
    torch.manual_seed(0)
    network = NSNet(CONFIG, random_backbone(TINY, seed=1).visual, torch.zeros(24, 0))
    standardise(network.head, x)
    return Trainee(network, dropout, "features")


def run(
    x: Tensor,
    y: Tensor,
    options: FitOptions = OPTIONS,
    folder: Path | None = None,
    save_every: int = 100,
) -> tuple[Trainee, list[float]]:
    model = trainee(x, options.dropout)
    source = TensorSource(x, torch.arange(len(x)))
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    return model, fit(model, source, y, weights, options, run=folder, save_every=save_every)


@pytest.fixture(autouse=True)
def tower(tiny_tower: Path) -> Path:
    return tiny_tower  # registers TINY with open_clip


@pytest.mark.parametrize("bce_share", [1.0, 0.5])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_head_learns_what_separates_and_is_reproducible(bce_share: float, ema: float) -> None:
    x, y = blobs()
    options = OPTIONS.model_copy(update={"bce_share": bce_share, "ema": ema})
    model, losses = run(x[:200], y[:200], options)
    logits, embedding = model(x[200:])
    assert float(((logits > 0) == (y[200:] == 1)).float().mean()) > 0.85
    assert embedding.shape == (200, 16)
    assert losses[-1] < losses[0]
    again, curve = run(x[:200], y[:200], options)
    assert torch.equal(again.network.head.embed.weight, model.network.head.embed.weight)
    assert curve == losses


def test_the_contrast_pulls_a_class_together() -> None:
    x, y = blobs()

    def gap(bce_share: float) -> float:
        options = OPTIONS.model_copy(update={"bce_share": bce_share, "temperature": 0.5})
        z = torch.nn.functional.normalize(run(x, y, options)[0](x)[1].detach(), dim=1)
        similar = z @ z.T
        same = y[:, None] == y
        return float(similar[same].mean() - similar[~same].mean())

    assert gap(0.2) > gap(1.0) + 0.1


def test_the_result_is_the_average_of_the_weights_not_the_last_ones(tmp_path: Path) -> None:
    x, y = blobs()
    model, _ = run(x, y, OPTIONS.model_copy(update={"ema": 0.95}), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    name = "network.head.embed.weight"
    assert torch.equal(model.network.head.embed.weight, state["average"][name])
    assert not torch.equal(state["average"][name], state["trained"][name])


def test_a_nan_in_the_features_stops_training() -> None:
    x, y = blobs()
    x[3, 4] = float("nan")
    with pytest.raises(ModelError, match="not finite at step 0"):
        run(x, y)


def killed(folder: Path, tower: Path) -> None:
    """Train until step 70, then die without a chance to say goodbye; in a process of its own."""

    class Deadly(TensorSource):
        def read(self, members: Tensor, step: int) -> Tensor:
            if step == 70:
                os.kill(os.getpid(), signal.SIGKILL)
            return TensorSource.read(self, members, step)

    know_tiny(tower)
    x, y = blobs()
    source = Deadly(x, torch.arange(len(x)))
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    fit(trainee(x), source, y, weights, OPTIONS, run=folder, save_every=25)


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_and_loss_curve(
    tmp_path: Path, tower: Path
) -> None:
    x, y = blobs()
    whole, losses = run(x, y, folder=tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=killed, args=(tmp_path / "killed", tower)
    )
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert len(json.loads((tmp_path / "killed" / "losses.json").read_text())) == 50
    model, resumed = run(x, y, folder=tmp_path / "killed")
    assert resumed == pytest.approx(losses, abs=1e-6)
    assert torch.allclose(
        model.network.head.embed.weight, whole.network.head.embed.weight, atol=1e-6
    )
    finished, curve = run(x, y, folder=tmp_path / "killed")  # nothing is left to do
    assert curve == resumed
    assert torch.equal(finished.network.head.embed.weight, model.network.head.embed.weight)
    assert list((tmp_path / "killed").glob("events.out.tfevents.*"))


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    x, y = blobs()
    run(x, y, folder=tmp_path)
    with pytest.raises(ModelError, match="holds a run of other data or options"):
        run(x, y, OPTIONS.model_copy(update={"learning_rate": 1e-3}), tmp_path)
