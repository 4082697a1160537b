"""The `nsnet` command as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.backbone import DEFAULT_BACKBONE, fetch
from tests.images import jpeg

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    "serve", "settings", "detect", "backbone", "caption", "projector", "train", "calibrate",
    "evaluate", "ablate", "export", "bench",
)  # fmt: skip


def nsnet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT, env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_help_names_every_command() -> None:
    done = nsnet("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


def test_settings_shows_values_and_hides_keys() -> None:
    done = nsnet("settings", NSNET_PORT="9001", NSNET_API_KEYS="topsecret")
    assert done.returncode == 0
    assert "9001" in done.stdout
    assert "topsecret" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["settings"], {"NSNET_PORT": "abc"}, "NSNET_PORT"),
        (["detect", "pyproject.toml"], {"NSNET_CHECKPOINT": "/none"}, "no checkpoint"),
        (["detect", "LICENSE"], {"NSNET_BACKBONE": "/none"}, "cannot be read"),
        (["backbone", "verify", "--path", "LICENSE"], {}, "not a safetensors"),
        (["backbone", "fetch", "ViT-nonsense"], {"PIP_NO_INDEX": "1"}, "no weights for"),
        (["bench", "--url", "http://127.0.0.1:1"], {}, "no server answers"),
        (["bench", "--images", "docs"], {}, "no JPEG"),
        (["bench"], {"NSNET_CHECKPOINT": "/none"}, "no checkpoint"),
        (["train", "none.csv", "--projector", "x", "--to", "y"], {}, "no manifest"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = nsnet(*arguments, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.backbone
def test_detect_scores_files_and_reports_those_it_cannot_read(tmp_path: Path) -> None:
    """With the real tower and the default checkpoint."""
    fetch()
    (tmp_path / "a.jpg").write_bytes(jpeg(300, 300))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    done = nsnet("detect", "--json", str(tmp_path))
    assert done.returncode == 1  # one of them failed
    good, bad = (json.loads(line) for line in done.stdout.splitlines())
    assert good["path"].endswith("a.jpg")
    assert 0 <= good["score"] <= 1
    assert good["verdict"] in ("real", "ai_generated", "uncertain")
    assert "error" in bad
    table = nsnet("detect", str(tmp_path / "a.jpg"))
    assert table.returncode == 0
    assert good["verdict"] in table.stdout


@pytest.mark.backbone
def test_backbone_verify_tells_a_damaged_tower(tmp_path: Path) -> None:
    path = fetch()
    assert nsnet("backbone", "verify").returncode == 0
    tensors = load_file(path)
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.01
    damaged = tmp_path / f"{DEFAULT_BACKBONE}.safetensors"
    save_file(tensors, damaged, metadata={"sha256": "0" * 64})
    done = nsnet("backbone", "verify", "--path", str(damaged))
    assert done.returncode == 1
    assert "damaged" in done.stderr
