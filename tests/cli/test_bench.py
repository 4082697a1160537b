"""`nsnet bench`, as a user runs it."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.load import Target
from cli.bench import _jpegs, _print
from model.images import Limits
from tests.cli.conftest import Here, nsnet
from tests.images import jpeg
from tests.server.conftest import running


@pytest.mark.process
def test_a_running_server_is_measured_with_own_images_and_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(jpeg(seed=1))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    file = tmp_path / "figures.json"
    with running(cached=True, api_keys="web:secret-0123456789,other-0123456789") as server:
        done = nsnet(
            *f"bench --url {server.url} --images {tmp_path} --concurrency 1,3".split(),
            *f"--seconds 0.5 --warmup 0.1 --json {file}".split(),
            NSNET_API_KEYS="web:secret-0123456789",
        )
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


def test_images_are_those_that_the_server_would_take(tmp_path: Path) -> None:
    good = jpeg(seed=1)
    for name, data in (("a.jpg", good), (".b.jpg", good), ("c.jpg", b"no image")):
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "film.jpg").open("wb") as film:
        film.write(good)
        film.truncate(5 << 30)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert _jpegs(tmp_path, Limits()) == [good]


def test_the_brackets_of_an_address_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    _print(Target("http://[fe80::1]:8000", [b""]), [], None)
    assert "http://[fe80::1]:8000" in "".join(capsys.readouterr().out.split())  # folded


@pytest.mark.process
def test_a_rate_replaces_the_clients(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with running() as server:
        done = nsnet(
            *f"bench --url {server.url} --rate 20 --seconds 1 --warmup 0 --json {file}".split()
        )
    assert done.returncode == 0, done.stderr
    (load,) = json.loads(file.read_text())["loads"]
    assert load["traffic"] == "20 images/s"


@pytest.mark.parametrize(
    "arguments", [["--concurrency", "1,x"], ["--concurrency", "0"], ["--rate", "-1"]]
)
def test_loads_that_make_no_sense_are_usage_errors(arguments: list[str]) -> None:
    done = nsnet("bench", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_without_its_extra_it_names_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "benchmarks.load", raising=False)
    status, _, shown = here("bench")
    assert status == 1
    assert shown.strip() == "nsnet: aiohttp is not installed: pip install 'nsnet[bench]'"
