"""The `nsnet` command in a process of its own, and in this one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.main import main

ROOT = Path(__file__).parent.parent.parent
Here = Callable[..., tuple[int, str, str]]


def nsnet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """`nsnet` in this process, for a new one takes seconds to import torch: status and output."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nsnet", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(checkpoint: Path, tiny_tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny checkpoint as the settings' own."""
    monkeypatch.setenv("NSNET_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("NSNET_BACKBONE", str(tiny_tower))
    monkeypatch.setenv("NSNET_ENGINE", "torch")
    monkeypatch.setenv("NSNET_DTYPE", "float32")
