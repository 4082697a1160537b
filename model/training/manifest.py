"""The list of images to train or be judged on: a CSV with one row per image."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import ModelError

REAL, AI = 0, 1
_LABELS = {"real": REAL, "ai": AI}


class ManifestError(ModelError):
    """The manifest cannot be used."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes:
        path: the file.
        label: REAL or AI.
        group: generator, or source of photographs; what is left out as one.
        repository: where it was published; groups of one repository share a pipeline.
    """

    path: Path
    label: int
    group: str
    repository: str


def read_manifest(path: Path, split: str | None = None) -> list[Row]:
    """Read a manifest CSV.

    Columns `path` (relative to the manifest), `label` (`real` or `ai`) and `group` are required;
    `split` and `origin_repo` are used where present.

    Raises:
        ManifestError: unreadable, a column is missing, a label is unknown, or one class is absent.
    """
    try:
        with path.open(newline="") as file:
            records = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError):
        raise ManifestError(f"no manifest can be read at {path}") from None
    if not records or not {"path", "label", "group"} <= records[0].keys():
        raise ManifestError(f"{path} needs the columns path, label and group")
    rows = []
    for record in records:
        if split is not None and record.get("split", split) != split:
            continue
        if record["label"] not in _LABELS:
            raise ManifestError(f"{path}: label {record['label']!r} is neither 'real' nor 'ai'")
        label, group = _LABELS[record["label"]], record["group"]
        repository = record.get("origin_repo") or group
        rows.append(Row(path.parent / record["path"], label, group, repository))
    if {row.label for row in rows} != {REAL, AI}:
        raise ManifestError(f"{path}: split {split!r} does not hold both classes")
    return rows


def digest(rows: Sequence[Row]) -> str:
    """sha256 of what was trained on: file names, labels and groups, in order."""
    lines = (f"{row.path.name},{row.label},{row.group}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folds(rows: Sequence[Row], count: int) -> list[int]:
    """Assign every group, whole, to one of `count` folds, each class balanced over them.

    Deterministic: the largest group goes to the emptiest fold. Photographs that share a
    repository share a fold, too; generators do not, or one repository of 50 would be all of it.

    Returns:
        The fold of each row.
    """
    unit = [row.repository if row.label == REAL else row.group for row in rows]
    sizes = Counter((row.label, name) for row, name in zip(rows, unit, strict=True))
    load = {label: [0] * count for label in (REAL, AI)}
    place: dict[tuple[int, str], int] = {}
    for (label, name), size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold = load[label].index(min(load[label]))
        place[label, name] = fold
        load[label][fold] += size
    return [place[row.label, name] for row, name in zip(rows, unit, strict=True)]
