"""`nsnet bench`, the servers it starts, and what it holds them against."""

import json
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import Settings
from cli.local import local_server
from cli.raw import Raw
from model.errors import ModelError
from tests.cli.test_main import nsnet
from tests.images import jpeg
from tests.server.conftest import running

FAKE = (sys.executable, "-m", "tests.server.serve_fake")


def test_a_running_server_is_measured_with_own_images_and_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(jpeg(seed=1))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    file = tmp_path / "figures.json"
    with running(cached=True, api_keys="secret,other") as server:
        done = nsnet(
            "bench", "--url", server.url, "--images", str(tmp_path), "--concurrency", "1,3",
            "--seconds", "0.5", "--warmup", "0.1", "--json", str(file),
            NSNET_API_KEYS="secret",
        )  # fmt: skip
        assert server.metric('nsnet_cache_requests_total{result="hit"}') == 0
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout
    assert "secret" not in done.stdout + file.read_text()
    one, three = json.loads(file.read_text())["loads"]
    assert (one["traffic"], three["traffic"]) == ("1 client", "3 clients")
    for load in (one, three):
        assert load["statuses"].keys() == {"200"}
        assert load["images_per_s"] > 0
        assert load["admitted"]["count"] == load["statuses"]["200"]
        assert load["batches"]
        assert load["server"] == []  # not ours to look at
    assert list(one["batches"]) == ["1"]


def test_a_rate_replaces_the_clients(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with running() as server:
        done = nsnet("bench", "--url", server.url, "--rate", "20", "--seconds", "1",
                     "--warmup", "0", "--json", str(file))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (load,) = json.loads(file.read_text())["loads"]
    assert load["traffic"] == "20 images/s"


@pytest.mark.parametrize("arguments", [["--concurrency", "1,x"], ["--concurrency", "0"],
                                       ["--rate", "-1"]])  # fmt: skip
def test_loads_that_make_no_sense_are_usage_errors(arguments: list[str]) -> None:
    done = nsnet("bench", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_a_local_server_is_ready_bare_and_ends_with_its_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NSNET_API_KEYS", "secret")
    monkeypatch.setenv("NSNET_RATE_LIMIT_PER_MINUTE", "1")
    with local_server(FAKE, max_queue="7") as server:
        assert server.ready_s > 0
        for _ in range(2):  # neither a key nor a rate nor a cache stands between
            answer = httpx.post(f"{server.url}/detect", files={"file": jpeg()})
            assert answer.status_code == 200
            assert not answer.json()["cached"]
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)


def test_a_local_server_that_cannot_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOAD", "fail")
    with pytest.raises(ModelError, match="ended"), local_server(FAKE):
        pass


def test_the_network_alone_is_the_detector_of_the_settings(
    checkpoint: Path, tiny_tower: Path
) -> None:
    settings = Settings(
        checkpoint=checkpoint, backbone=tiny_tower, device="cpu", dtype="float32", engine="torch",
        max_batch=3, torch_threads=1,
    )  # fmt: skip
    raw = Raw(settings, [jpeg(128, 128, seed=0), jpeg(128, 128, seed=1)])
    raw.measure(0.2)
    raw.measure(0.2)
    found = raw.figures()
    assert found.batch == 3
    assert 0 < found.single_s < 1
    assert 0 < found.prepare_s < found.request_s == found.prepare_s + found.single_s
    assert 0.5 / found.single_s < found.images_per_s < 30 / found.single_s
