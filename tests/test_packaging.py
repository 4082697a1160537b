"""One version, one lock file, and a wheel that serves by itself."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import model
from benchmarks.local import local_server
from model.tower.sources import fetch
from tests.images import jpeg

ROOT = Path(__file__).parent.parent
# Installed before the lock file, from the index that fits the machine.
APART = {"torch", "torchvision"}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def locked() -> dict[str, str]:
    """Each pinned requirement with its options."""
    text = re.sub(r"(?m)^ *#.*\n", "", (ROOT / "requirements.lock").read_text())
    lines = text.replace("\\\n", " ").splitlines()
    return {line.split(" --hash", 1)[0].strip(): line for line in lines}


# --- version ------------------------------------------------------------------------------------


def test_every_file_that_names_the_version_names_the_same() -> None:
    """Also fails where the installed package is older than the tree: `make check` renews it."""
    version = project()["version"]
    assert model.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"(?m)^## \[(\S+)\]", changelog)[0] == version
    assert re.findall(r"ARG VERSION=(\S+)", (ROOT / "Dockerfile").read_text()) == [version]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_the_pythons_that_are_promised_are_those_that_are_taken() -> None:
    minors = [
        int(kind.rsplit(".", 1)[1])
        for kind in project()["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", kind)
    ]
    assert project()["requires-python"] == f">=3.{min(minors)}"


# --- lock ---------------------------------------------------------------------------------------


def test_the_lock_pins_every_dependency_but_torch_by_hash_and_names_no_index() -> None:
    pins: dict[str, list[str]] = {}
    for name, line in locked().items():
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", line), name
        requirement = Requirement(name)
        [specifier] = requirement.specifier
        assert specifier.operator == "=="
        pins.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    for dependency in map(Requirement, project()["dependencies"]):
        name = canonicalize_name(dependency.name)
        assert (name in pins) != (name in APART)
        assert all(dependency.specifier.contains(version) for version in pins.get(name, ()))
    assert not pins.keys() & APART
    assert not any(name.startswith(("nvidia-", "triton")) for name in pins)
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_the_image_installs_torch_as_the_project_asks_and_the_rest_from_the_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for dependency in project()["dependencies"]:
        if Requirement(dependency).name in APART:
            assert f"'{dependency}'" in dockerfile
    assert "pip install --no-deps --require-hashes --requirement requirements.lock" in dockerfile


# --- wheel --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build/` of an earlier time gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "tree"
    copy.mkdir()
    for name in (
        "app",
        "benchmarks",
        "cli",
        "model",
        "weights",
        "tests",
        "docs",
        "deploy",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        (copy / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, copy],
        check=True,
        timeout=250,
    )
    [file] = folder.glob("*.whl")
    return file


@pytest.mark.slow
@pytest.mark.process
def test_the_wheel_holds_the_code_and_the_default_checkpoint_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
    packages = {name.split("/")[0] for name in files}
    assert packages == {"app", "benchmarks", "cli", "model", "weights"}
    assert {name for name in files if name.startswith("weights/")} == {
        "weights/MODEL_CARD.md",
        "weights/nsnet-vit-b-16.safetensors",
    }
    sources = {
        str(path.relative_to(ROOT))
        for package in packages - {"weights"}
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == sources
    assert {"app/py.typed", "model/py.typed"} <= set(files)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel],
        check=True,
        timeout=250,
    )
    return target


WHERE = """
import model
from model.checkpoint import read_checkpoint
from model.detector import DEFAULT_CHECKPOINT
print(model.__file__, model.__version__, DEFAULT_CHECKPOINT)
print(read_checkpoint(DEFAULT_CHECKPOINT).metadata.name)
"""


@pytest.mark.slow
@pytest.mark.process
def test_what_is_installed_is_itself_and_finds_its_own_checkpoint(
    installed: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    version = project()["version"]
    place, name = run("-c", WHERE).splitlines()
    checkpoint = installed / "weights" / "nsnet-vit-b-16.safetensors"
    assert place == f"{installed / 'model' / '__init__.py'} {version} {checkpoint}"
    assert name == "nsnet-vit-b-16"
    command = str(installed / "bin" / "nsnet")
    assert "NSNET_CHECKPOINT" in run(command, "settings")
    assert run(command, "--version") == f"nsnet {version}\n"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.backbone
def test_what_is_installed_serves(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch()
    monkeypatch.setenv("PYTHONPATH", str(installed))
    with local_server([sys.executable, str(installed / "bin" / "nsnet"), "serve"]) as server:
        shown = httpx.get(f"{server.url}/model", timeout=30).json()
        answer = httpx.post(f"{server.url}/detect", files={"file": jpeg(300, 300)}, timeout=60)
    assert shown["name"] == "nsnet-vit-b-16"
    assert answer.status_code == 200
