"""The `nsnet` command as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import model
from app.settings import describe_settings, load_settings
from model.tower.sources import DEFAULT_BACKBONE, fetch
from tests.cli.conftest import ROOT, Here, nsnet
from tests.images import jpeg

COMMANDS = (
    "serve",
    "settings",
    "detect",
    "bulk",
    "backbone",
    "caption",
    "projector",
    "train",
    "calibrate",
    "evaluate",
    "compare",
    "ablate",
    "export",
    "bench",
)


@pytest.mark.process
def test_help_names_every_command() -> None:
    done = nsnet("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


def test_the_version_is_the_packages(here: Here) -> None:
    assert here("--version") == (0, f"nsnet {model.__version__}\n", "")


@pytest.mark.process
def test_settings_shows_values_and_hides_keys() -> None:
    done = nsnet("settings", NSNET_PORT="9001", NSNET_API_KEYS="topsecret-0123456789")
    assert done.returncode == 0
    assert "9001" in done.stdout
    assert "topsecret" not in done.stdout


@pytest.mark.parametrize("columns", ["40", "300"])
def test_settings_are_whole_in_a_pipe(
    columns: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSNET_CHECKPOINT", f"/{'deep/' * 30}[bold]:smile:")
    monkeypatch.setenv("COLUMNS", columns)
    status, shown, _ = here("settings")
    assert status == 0
    lines = shown.splitlines()
    for row in describe_settings(load_settings()):
        [line] = (line for line in lines if f" {row.variable} " in line)
        for text in (row.value, row.default, row.description):
            assert text in line


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["settings"], ["--help"], ["detect", "--help"]])
def test_a_reader_that_is_gone_is_no_traceback(arguments: list[str]) -> None:
    """Nor a word: it may be `head`, which has read enough."""
    gone, out = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    os.close(out)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.process
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "settings"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "nsnet: No space left on device\n")


def test_a_name_is_one_line_and_nothing_but_a_name(here: Here) -> None:
    """In an error, too: its bytes may be no text, or commands to a terminal."""
    status, _, shown = here("backbone", "verify", "--path", "[bold]\n\x1b[31m\udcff")
    assert status == 1
    assert shown == r"nsnet: [bold]\n\x1b[31m\udcff cannot be read: no such file" + "\n"


@pytest.mark.parametrize("arguments", [["--no-such[bold]option"], ["detect"], ["detect", "--json"]])
def test_a_wrong_command_line_has_a_status_of_its_own(here: Here, arguments: list[str]) -> None:
    status, _, shown = here(*arguments)
    assert status == 2
    assert "Traceback" not in shown


def test_what_the_system_refuses_is_one_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("model.tower.sources.verify", refuse)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # of this process
    status, _, shown = here("backbone", "verify")
    assert (status, shown) == (1, f"nsnet: {tmp_path}: Permission denied\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["settings"], {"NSNET_PORT": "abc"}, "NSNET_PORT"),
        (["detect", "pyproject.toml"], {"NSNET_CHECKPOINT": "/none"}, "no checkpoint"),
        (["detect", "LICENSE"], {"NSNET_BACKBONE": "/none"}, "cannot be read"),
        (["backbone", "verify", "--path", "LICENSE"], {}, "not a safetensors"),
        (["backbone", "fetch", "ViT-nonsense"], {"PIP_NO_INDEX": "1"}, "no weights for"),
        (["bench", "--url", "http://127.0.0.1:1"], {}, "no server answers"),
        (["bench", "--images", "deploy"], {}, "no JPEG"),
        (["bench"], {"NSNET_CHECKPOINT": "/none"}, "no checkpoint"),
        (
            [
                "train",
                "none.csv",
                "--projector",
                "x",
                "--to",
                "y",
                "--name",
                "a",
                "--version",
                "1.0.0",
            ],
            {},
            "no manifest",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    here: Here,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, _, shown = here(*arguments)
    assert status == 1
    assert message in shown
    assert len(shown.strip().splitlines()) == 1


NAMES_OF_TORCH = """
import sys
from cli.main import main
sys.argv = ["nsnet", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted(sys.modules.keys() & {"torch", "sklearn", "scipy", "open_clip"}))
"""


@pytest.mark.process
@pytest.mark.parametrize("command", [["serve"], ["detect", "LICENSE"], ["settings"], ["bench"]])
def test_a_wrong_setting_is_told_before_torch_is_imported(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NAMES_OF_TORCH, *command],
        cwd=ROOT,
        env=os.environ | {"NSNET_API_KEY": "secret", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "nsnet: NSNET_API_KEY is no setting; the nearest is NSNET_API_KEYS\n"
    assert done.stdout == "[]\n"


def test_a_checkpoint_has_a_name_and_a_version_from_whoever_trains_it(here: Here) -> None:
    required = {"--name": "tiny", "--version": "1.0.0"}
    for left_out in required:
        given = [part for pair in required.items() if pair[0] != left_out for part in pair]
        status, _, shown = here("train", "x.csv", "--projector", "p", "--to", "c", *given)
        assert status == 2
        assert left_out in shown


@pytest.mark.process
def test_a_mistake_ends_the_process_without_a_traceback() -> None:
    done = nsnet("detect", "pyproject.toml", NSNET_CHECKPOINT="/none")
    assert done.returncode == 1
    assert done.stderr == "nsnet: no checkpoint can be read at /none (NSNET_CHECKPOINT)\n"


@pytest.mark.process
@pytest.mark.slow
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
def test_backbone_verify_tells_a_damaged_tower_and_another(here: Here, tmp_path: Path) -> None:
    path = fetch()
    status, shown, _ = here("backbone", "verify")
    assert status == 0
    *_, digest = shown.split()
    assert here("backbone", "verify", "--backbone-sha256", digest.upper())[0] == 0
    status, _, shown = here("backbone", "verify", "--backbone-sha256", digest[::-1])
    assert status == 1
    assert "is another tower than was asked for" in shown
    tensors = load_file(path)
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.01
    damaged = tmp_path / f"{DEFAULT_BACKBONE}.safetensors"
    save_file(tensors, damaged, metadata={"sha256": "0" * 64})
    status, _, shown = here("backbone", "verify", "--path", str(damaged))
    assert status == 1
    assert "damaged" in shown
