"""The servers that benchmarks start, and what their figures are held against."""

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import Settings
from benchmarks.baseline import Baseline
from benchmarks.local import local_server
from model.errors import ModelError
from tests.images import jpeg

FAKE = (sys.executable, "-m", "tests.server.serve_fake")


@pytest.mark.process
def test_a_local_server_is_ready_bare_and_ends_with_its_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NSNET_API_KEYS", "secret-0123456789")
    monkeypatch.setenv("NSNET_RATE_LIMIT_PER_MINUTE", "1")
    with local_server(FAKE, max_queue="7", max_files="7") as server:
        assert server.ready_s > 0
        for _ in range(2):  # neither a key nor a rate nor a cache stands between
            answer = httpx.post(f"{server.url}/detect", files={"file": jpeg()}, timeout=30)
            assert answer.status_code == 200
            assert not answer.json()["cached"]
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)


@pytest.mark.process
def test_a_local_server_that_cannot_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOAD", "fail")
    with pytest.raises(ModelError, match="ended"), local_server(FAKE):
        pass


def test_the_network_alone_is_the_detector_of_the_settings(
    checkpoint: Path, tiny_tower: Path
) -> None:
    settings = Settings(
        checkpoint=checkpoint,
        backbone=tiny_tower,
        device="cpu",
        dtype="float32",
        engine="torch",
        max_batch=3,
        torch_threads=1,
    )
    baseline = Baseline(settings, [jpeg(128, 128, seed=0), jpeg(128, 128, seed=1)])
    baseline.measure(0.2)
    baseline.measure(0.2)
    figures = baseline.figures()
    assert figures.batch == 3
    assert 0 < figures.single_s < 1
    assert 0 < figures.prepare_s < figures.request_s == figures.prepare_s + figures.single_s
    assert 0.5 / figures.single_s < figures.images_per_s < 30 / figures.single_s
