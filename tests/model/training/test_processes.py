"""`nsnet train` in two processes, as `accelerate launch` starts them."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import read_checkpoint
from model.network import NSNetConfig
from model.nullspace import StoredProjector, null_space, save_projector
from model.training.lora import LoraOptions
from model.training.options import TrainOptions
from model.training.trainer import FitOptions
from tests.conftest import PLAN, TINY
from tests.model.training.toy import toy_images

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_train_one_checkpoint(tiny_tower: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        network=NSNetConfig(backbone=TINY, features="blocks", blocks=(3,), hidden=8),
        views=PLAN,
        head=FitOptions(steps=30, batch_size=32, learning_rate=1e-2),
        lora=LoraOptions(blocks=(2, 3), rank=2),
        lora_fit=FitOptions(steps=4, batch_size=8),
        degraded=1,
        folds=2,
        measured_folds=1,
    )
    (tmp_path / "options.json").write_text(options.model_dump_json())
    texts = torch.randn(60, 32, generator=torch.Generator().manual_seed(1))
    space = StoredProjector(null_space(texts, rank=4), "blocks", TINY, ("toy",))
    save_projector(tmp_path / "projector.safetensors", space)
    values = {
        "--projector": tmp_path / "projector.safetensors",
        "--to": tmp_path / "out.safetensors",
        "--name": "tiny",
        "--version": "0.0.1",
        "--options": tmp_path / "options.json",
        "--run": tmp_path / "run",
        "--cache": tmp_path / "cache",
        "--dtype": "float32",
    }
    program = [sys.executable, "-m", "tests.model.training.train_tiny", str(tiny_tower)]
    arguments = ["train", toy_images(tmp_path, 24), *sum(values.items(), ()), "--cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `accelerate launch` and torchrun set; itself, it would load torch a third time.
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=110)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert ["thresholds" in output for output in outputs] == [True, False]  # one speaks for both
    metadata = read_checkpoint(tmp_path / "out.safetensors").metadata
    assert metadata.network == options.network
    assert metadata.views == options.views
    for stage, steps in (("head", 30), ("lora", 4)):
        losses = json.loads((tmp_path / "run/all" / stage / "losses.json").read_text())
        assert len(losses) == steps
        assert all(math.isfinite(loss) for loss in losses)
    assert losses
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 1  # one computed, two read
