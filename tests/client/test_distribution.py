"""What is installed with the client, and what is not."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import nsnet_client

ROOT = Path(__file__).parent.parent.parent


def project(path: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return found


def test_client_and_service_are_of_one_version() -> None:
    assert project("client/pyproject.toml")["version"] == project("pyproject.toml")["version"]


def test_the_client_needs_two_libraries_and_nothing_of_the_service() -> None:
    needed = map(Requirement, project("client/pyproject.toml")["dependencies"])
    assert {one.name for one in needed} == {"httpx", "tenacity"}
    listed = "import sys, nsnet_client; print(*sys.modules)"
    command = [sys.executable, "-c", listed]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "client")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"app", "cli", "model", "numpy", "pydantic", "torch"}


def test_whoever_checks_types_sees_them() -> None:
    assert (Path(nsnet_client.__file__).parent / "py.typed").exists()
