"""What a run writes down of itself, so that it can be told from others and be gone on with."""

import csv
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from model.data.manifest import Row
from model.errors import ModelError
from model.hardware import Runtime
from model.nullspace import StoredProjector
from model.verdicts import Logits, Quality, VerdictRules

# What decides the features or the weights; a folder holds the states of one such run.
_DECIDES = (
    "data_sha256",
    "projector_sha256",
    "tower_sha256",
    "options",
    "dtype",
    "engine",
    "precision",
)
_LEFT_OUT = (
    *("path", "label", "group", "owner", "kind", "condition"),
    *("first", "all", "window", "score"),
)


def claim(
    run: Path, record: Mapping[str, Any], projector: StoredProjector, runtime: Runtime
) -> None:
    """Write down what the run is, unless the folder is another one's.

    The states in it know the options and labels that they were fitted with, not the features.

    Args:
        run: the folder.
        record: JSON values; `data_sha256`, `tower_sha256` and `options` among them.
        projector: what is removed.
        runtime: where and how the frozen tower runs.

    Raises:
        ModelError: the folder is another run's.
    """
    basis = projector.null_space.basis.contiguous().numpy().tobytes()
    config = {
        **record,
        "projector_sha256": hashlib.sha256(basis).hexdigest(),
        "dtype": runtime.dtype_name,
        "engine": runtime.engine,
        "precision": runtime.precision,
    }
    path = run / "config.json"
    before = json.loads(path.read_text()) if path.exists() else config
    for key in _DECIDES:
        if before.get(key) != config[key]:
            raise ModelError(f"{run} holds a run of other {key}; choose another folder")
    versions = {p: version_of(p) for p in ("torch", "open_clip_torch", "peft", "accelerate")}
    write_json(path, config | {"versions": {"python": platform.python_version(), **versions}})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def write_left_out(
    path: Path, rows: Sequence[Row], conditions: Mapping[str, Logits], rules: VerdictRules
) -> None:
    """One line an image and condition: what was said of it by a network that never saw its owner.

    The score is by the rules chosen on all of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_LEFT_OUT, *Quality._fields])
        for name, part in conditions.items():
            scores = rules.calibrations.all.scores(part.all)
            for place, index in enumerate(part.row.tolist()):
                row = rows[index]
                figures = (part.first[place], part.all[place], part.window[place], scores[place])
                writer.writerow(
                    [
                        *(row.path, row.label, row.group, row.owner, row.kind, name),
                        *(f"{figure:.5f}" for figure in (*figures, *part.quality[place])),
                    ]
                )


def revision() -> str:
    """The code's git revision, marked where it has uncommitted changes; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
