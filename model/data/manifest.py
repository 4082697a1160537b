"""The images to train or be judged on: a CSV with one row per image, or a benchmark's folders."""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import ModelError
from model.images import SUFFIXES

REAL, AI = 0, 1
CLASSES = {"real": REAL, "ai": AI}
"""Labels by the name that manifests and reports have for them."""
MADE = frozenset({"art", "render", "screen"})
"""Kinds of pictures that people made without a camera: drawings, game pictures, screenshots."""
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
        group: generator, or source of photographs; what reports tell apart.
        owner: who published it; the group where that is not known. What is independent of other
            images: folds and intervals keep it whole, in both classes.
        kind: what it shows, in the manifest's own words; empty where it does not say.
    """

    path: Path
    label: int
    group: str
    owner: str
    kind: str = ""

    @property
    def made(self) -> bool:
        """Whether people made it without a camera: `real`, and no photograph."""
        return self.label == REAL and self.kind in MADE

    @property
    def category(self) -> str:
        """What reports tell apart: `real`, which are photographs, `made` or `ai`."""
        return "ai" if self.label == AI else "made" if self.made else "real"


def read_datasets(paths: Sequence[Path], split: str | None = None) -> list[Row]:
    """Read several manifests or folders (`read_dataset`) as one list; no file is listed twice.

    Args:
        paths: at least one.
        split: see `read_dataset`. A list without an image of the split adds none, as long as
            another has some.

    Raises:
        ManifestError: as `read_dataset`, but one class may be absent from one of several lists.
    """
    listed = [row for path in paths for row in read_rows(path, split)]
    own = {os.path.abspath(row.path): row for row in listed}  # noqa: PTH100  (no link is followed)
    rows = list(own.values())
    _check_classes(rows, " and ".join(str(path) for path in paths), split)
    return rows


def read_dataset(path: Path, split: str | None = None) -> list[Row]:
    """Read a manifest CSV or a folder in a benchmark's layout.

    A manifest is UTF-8, its fields separated by commas or semicolons. Columns `path` (relative to
    the manifest), `label` (`real` or `ai`) and `group` are required; `split`, `origin_repo`
    (`owner/name`) and `kind` are used where present.

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
        ManifestError: one class is absent, an image lies outside the layout, or a manifest is
            unreadable or no CSV, lacks a column or has an unknown label; a line that is at fault
            is named.
    """
    rows = read_rows(path, split)
    _check_classes(rows, str(path), split)
    return rows


def read_rows(path: Path, split: str | None = None) -> list[Row]:
    """`read_dataset`, of one class or none as well."""
    return _read_folder(path, split) if path.is_dir() else _read_manifest(path, split)


def _check_classes(rows: Sequence[Row], source: str, split: str | None) -> None:
    of = f", split {split!r}," if split else ""
    if not rows:
        raise ManifestError(f"{source}{of} holds no images")
    if len({row.label for row in rows}) == 1:
        only = "real" if rows[0].label == REAL else "AI images"
        raise ManifestError(f"{source}{of} does not hold both classes: all {len(rows)} are {only}")


def _read_folder(root: Path, split: str | None) -> list[Row]:
    rows = []
    images = sorted(images_in(root))
    if not images:
        raise ManifestError(f"expected {_LAYOUT} in {root}, found no images")
    for path in images:
        generator, label, own_split = _place(path.relative_to(root).parts[:-1])
        if split is not None and own_split not in (None, split):
            continue
        if generator is None or label is None:
            raise ManifestError(f"expected {_LAYOUT} in {root}, found {path.relative_to(root)}")
        rows.append(Row(path, label, generator, generator))
    return rows


def _refuse(error: OSError) -> None:
    raise ManifestError(f"{error.filename} cannot be read: {error.strerror}")


def images_in(root: Path, unreadable: Callable[[OSError], object] = _refuse) -> Iterator[Path]:
    """The images in a folder and those below it, in no order; hidden ones are left out.

    Args:
        root: the folder; links to others are followed, except back to one that leads here.
        unreadable: told of each folder that cannot be listed.

    Raises:
        ManifestError: a folder cannot be listed, and nobody else is told.
    """
    # Not rglob: benchmarks are often put together of linked folders.
    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(folder)
        folders[:] = [
            name for name in folders if not (name.startswith(".") or _leads_back(root, here / name))
        ]
        for name in files:
            path = here / name
            image = not name.startswith(".") and path.suffix.lower() in SUFFIXES
            if image and (path.is_file() or path.is_symlink()):  # a broken link is told of
                yield path


def _leads_back(root: Path, folder: Path) -> bool:
    """Whether a folder is a link to one that it was reached through."""
    if not folder.is_symlink():
        return False
    through = (parent for parent in folder.parents if parent.is_relative_to(root))
    return folder.resolve() in {parent.resolve() for parent in through}


def _place(folders: Sequence[str]) -> tuple[str | None, int | None, str | None]:
    """Generator, label and split that an image's folders name, each None where they do not."""
    split = next((name for name in folders if name in _FOLDER_SPLITS), None)
    levels = [name for name in folders if name not in _FOLDER_SPLITS]
    if not levels or levels[0] in _FOLDER_LABELS:
        return None, None, split
    labels = [_FOLDER_LABELS[name] for name in levels if name in _FOLDER_LABELS]
    return levels[0], labels[-1] if labels else None, split


def _read_manifest(path: Path, split: str | None) -> list[Row]:
    rows = []
    for line, record in _records(path):
        if split is not None and record.get("split", split) != split:
            continue
        if record["label"] not in CLASSES:
            said = record["label"][:40]
            raise ManifestError(f"{path}, line {line}: label {said!r} is neither 'real' nor 'ai'")
        label, group = CLASSES[record["label"]], record["group"]
        owner = record.get("origin_repo", "").partition("/")[0] or group
        image = path.parent / record["path"]
        rows.append(Row(image, label, group, owner, record.get("kind", "")))
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
    """Assign every owner, whole, to one of `count` folds, each class balanced over them.

    Deterministic: the largest owner goes to the fold that has least of what it brings.

    Returns:
        The fold of each row.
    """
    totals = Counter(row.label for row in rows)
    sizes: dict[str, Counter[int]] = {}
    for row in rows:
        sizes.setdefault(row.owner, Counter())[row.label] += 1
    shares = {
        owner: {label: n / totals[label] for label, n in of.items()} for owner, of in sizes.items()
    }
    load = [dict.fromkeys(totals, 0.0) for _ in range(count)]
    place: dict[str, int] = {}
    for owner, share in sorted(shares.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        brought = [sum(of[label] * part for label, part in share.items()) for of in load]
        place[owner] = brought.index(min(brought))
        for label, part in share.items():
            load[place[owner]][label] += part
    return [place[row.owner] for row in rows]
