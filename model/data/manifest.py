"""The images to train or be judged on: a CSV with one row per image, or a benchmark's folders."""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import ModelError
from model.images import SUFFIXES

REAL, AI = 0, 1
CLASSES = {"real": REAL, "ai": AI}
"""Labels by the name that manifests and reports have for them."""
_REQUIRED = ("path", "label", "group")
# Spreadsheets write semicolons where a comma is the decimal sign.
_SEPARATORS = (",", ";")
# ForenSynths and AIGIBench; GenImage.
_FOLDER_LABELS = {"0_real": REAL, "1_fake": AI, "nature": REAL, "ai": AI}
_FOLDER_SPLITS = frozenset({"train", "val", "test"})
_LAYOUT = "<generator>/[<class>/]{0_real,1_fake}/* or <generator>/{train,val}/{nature,ai}/*"


class ManifestError(ModelError):
    """The manifest or the folder cannot be used."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes:
        path: the file.
        label: REAL or AI.
        group: generator, or source of photographs; what is left out as one.
        repository: where it was published, `owner/name`; groups of one repository share a pipeline.
            The group where that is not known.
        owner: who published it; the group where that is not known.
        kind: what it shows, in the manifest's own words; empty where it does not say.
    """

    path: Path
    label: int
    group: str
    repository: str
    owner: str = ""
    kind: str = ""

    @property
    def unit(self) -> str:
        """What is independent of other images of its class: folds and intervals keep it whole.

        Photographs that share a repository share a pipeline; generators do not, or one repository
        of 50 would be all there is.
        """
        return self.repository if self.label == REAL else self.group


def read_dataset(path: Path, split: str | None = None) -> list[Row]:
    """Read a manifest CSV (`read_manifest`) or a folder in a benchmark's layout.

    Folders are `<generator>/[<class>/]{0_real,1_fake}/*` (ForenSynths, AIGIBench) with classes
    nested to any depth, or GenImage's `<generator>/{train,val}/{nature,ai}/*`. A level named
    train, val or test is the split, wherever it stands; images without one belong to every split.
    The group is the generator, for its photographs too. Files whose suffix is none of
    `images.SUFFIXES`, and hidden ones, are no images.

    Args:
        path: the CSV file or the folder.
        split: keep only these images; None keeps all.

    Returns:
        One row per image; a folder's in the order of their paths.

    Raises:
        ManifestError: as `read_manifest`, or an image lies outside the layout.
    """
    return _read_folder(path, split) if path.is_dir() else read_manifest(path, split)


def _read_folder(root: Path, split: str | None) -> list[Row]:
    rows = []
    for path in sorted(_images(root)):
        generator, label, own_split = _place(path.relative_to(root).parts[:-1])
        if split is not None and own_split not in (None, split):
            continue
        if generator is None or label is None:
            raise ManifestError(f"expected {_LAYOUT} in {root}, found {path.relative_to(root)}")
        rows.append(Row(path, label, generator, generator, owner=generator))
    if not rows:
        of = f" of split {split!r}" if split else ""
        raise ManifestError(f"expected {_LAYOUT} in {root}, found no images{of}")
    if len({row.label for row in rows}) == 1:
        only = "photographs" if rows[0].label == REAL else "AI images"
        raise ManifestError(f"{root} does not hold both classes: all {len(rows)} are {only}")
    return rows


def _images(root: Path) -> Iterator[Path]:
    # Not rglob: benchmarks are often put together of linked folders.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def _place(folders: Sequence[str]) -> tuple[str | None, int | None, str | None]:
    """Generator, label and split that an image's folders name, each None where they do not."""
    split = next((name for name in folders if name in _FOLDER_SPLITS), None)
    levels = [name for name in folders if name not in _FOLDER_SPLITS]
    if not levels or levels[0] in _FOLDER_LABELS:
        return None, None, split
    labels = [_FOLDER_LABELS[name] for name in levels if name in _FOLDER_LABELS]
    return levels[0], labels[-1] if labels else None, split


def read_manifest(path: Path, split: str | None = None) -> list[Row]:
    """Read a manifest CSV: UTF-8, its fields separated by commas or semicolons.

    Columns `path` (relative to the manifest), `label` (`real` or `ai`) and `group` are required;
    `split`, `origin_repo` (`owner/name`) and `kind` are used where present.

    Raises:
        ManifestError: unreadable or no CSV, a column is missing, a label is unknown, or one class
            is absent; a line that is at fault is named.
    """
    rows = []
    for line, record in _records(path):
        if split is not None and record.get("split", split) != split:
            continue
        if record["label"] not in CLASSES:
            said = record["label"][:40]
            raise ManifestError(f"{path}, line {line}: label {said!r} is neither 'real' nor 'ai'")
        label, group = CLASSES[record["label"]], record["group"]
        repository = record.get("origin_repo") or group
        owner = record.get("origin_repo", "").partition("/")[0] or group
        image = path.parent / record["path"]
        rows.append(Row(image, label, group, repository, owner, record.get("kind", "")))
    if {row.label for row in rows} != {REAL, AI}:
        raise ManifestError(f"{path}: split {split!r} does not hold both classes")
    return rows


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The records of a CSV file by column name, each with the line on which it begins."""
    text = _text(path)
    separator = _separator(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ManifestError(
                f"{path}, line {line}: {error}; is a quotation mark missing there?"
            ) from None
        if fields is None:
            return
        if header is None:
            header = fields
            repeated = [name for name, count in Counter(header).items() if count > 1]
            if repeated:
                raise ManifestError(f"{path}, line {line}: two columns {repeated[0]!r}")
        elif len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True))
        elif fields:  # else a blank line
            raise ManifestError(
                f"{path}, line {line}: {len(fields)} fields, where the header has {len(header)}"
            )


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        raise ManifestError(f"no manifest can be read at {path}") from None
    # Spreadsheets put a byte-order mark before UTF-8. Their "Unicode text" is UTF-16: full of NULs.
    nul = data.find(b"\0")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text, nul = "", error.start if nul < 0 else min(error.start, nul)
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise ManifestError(f"{path}, line {line}: no UTF-8 text; save it as CSV in UTF-8")
    return text


def _separator(path: Path, text: str) -> str:
    """The one by which the text begins with the required columns."""
    fault = ""
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            if {*_REQUIRED} <= {*next(reader, [])}:
                return separator
        except csv.Error as error:
            fault = f" on its first line: {error}"
    raise ManifestError(f"{path} needs the columns path, label and group{fault}")


def digest(rows: Sequence[Row]) -> str:
    """sha256 of what was trained on: file names, labels and groups, in order."""
    lines = (f"{row.path.name},{row.label},{row.group}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folds(rows: Sequence[Row], count: int) -> list[int]:
    """Assign every `Row.unit`, whole, to one of `count` folds, each class balanced over them.

    Deterministic: the largest unit goes to the emptiest fold.

    Returns:
        The fold of each row.
    """
    sizes = Counter((row.label, row.unit) for row in rows)
    load = {label: [0] * count for label in (REAL, AI)}
    place: dict[tuple[int, str], int] = {}
    for (label, name), size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold = load[label].index(min(load[label]))
        place[label, name] = fold
        load[label][fold] += size
    return [place[row.label, row.unit] for row in rows]
