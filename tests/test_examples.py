"""What stands in `examples/` runs, and says what the server says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.images import encoded
from tests.server.conftest import Running, running

EXAMPLES = Path(__file__).parent.parent / "examples"
KEY = "a-key-of-more-than-16-characters"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(api_keys=KEY) as one:
        yield one


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A real one, a generated one, and none; of odd names."""
    values = {"a real;one.png": 10, "b, made.png": 230}
    for name, value in values.items():
        image = Image.new("RGB", (80, 80), (value, value, value))
        (tmp_path / name).write_bytes(encoded(image, "PNG"))
    (tmp_path / "c.png").write_bytes(b"no image")
    return [str(tmp_path / name) for name in (*values, "c.png")]


def run(*command: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(
        [command[0], str(EXAMPLES / command[1]), *command[2:]],
        env=os.environ | {"API_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_example_is_run_here() -> None:
    tested = Path(__file__).read_text()
    assert all(file.name in tested for file in EXAMPLES.iterdir() if file.is_file())


@pytest.mark.process
def test_curl(server: Running, images: list[str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = run("bash", "curl.sh", server.url, *images)
    assert (done.returncode, done.stderr) == (0, "")
    one, *items, summary = map(json.loads, done.stdout.splitlines())
    assert one["verdict"] == "real"
    assert {item["index"]: item["status"] for item in items} == {0: "ok", 1: "ok", 2: "error"}
    assert summary["summary"] == {"ok": 2, "error": 1}
    done = run("bash", "curl.sh", server.url, *images, key="")
    assert done.returncode == 22
    assert json.loads(done.stdout)["code"] == "unauthorized"


@pytest.mark.process
def test_python_client(server: Running, images: list[str]) -> None:
    done = run(sys.executable, "python_client.py", server.url, *images)
    assert (done.returncode, done.stderr) == (0, "")
    first, *more = done.stdout.splitlines()
    assert first == f"{images[0]} real 0.039"
    assert "b, made.png ai_generated 0.902" in more
    assert any(line.startswith("c.png unsupported_media_type ") for line in more)
    done = run(sys.executable, "python_client.py", server.url, images[2])
    assert done.returncode == 1
    assert done.stderr.startswith("unsupported_media_type: ")


@pytest.mark.process
def test_python_plain(server: Running, images: list[str]) -> None:
    done = run(sys.executable, "python_plain.py", server.url, images[1])
    assert (done.returncode, done.stdout) == (0, f"{images[1]} ai_generated 0.902\n")
    done = run(sys.executable, "python_plain.py", server.url, images[2])
    assert done.returncode == 1
    assert done.stderr.startswith("unsupported_media_type: ")


@pytest.mark.process
def test_javascript(server: Running, images: list[str]) -> None:
    done = run("node", "javascript.mjs", server.url, *images)
    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(done.stdout.splitlines())
    assert lines[0].startswith(f"{images[0]} real 0.039")
    assert lines[1].startswith(f"{images[1]} ai_generated 0.90")
    assert lines[2].startswith(f"{images[2]} unsupported_media_type ")
    done = run("node", "javascript.mjs", server.url, *images, key="wrong")
    assert done.returncode == 1
    assert "Error: unauthorized: " in done.stderr
