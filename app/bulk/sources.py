"""What is to be scored: files out of folders, globs, lists and shards, always in one order."""

import csv
import functools
import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from app.bulk import shards
from app.bulk.store import BulkError, is_url, locate, public, read, unreadable, without_user
from model.images import SUFFIXES, ImageError, Limits

_LISTS = (".csv", ".parquet")
_COLUMN = "path"
_SEPARATORS = (",", ";")  # spreadsheets write the second where a comma is the decimal sign
_LINE = 1 << 20  # characters of a list's line at most
_NAMELESS = "//"  # ends a folder without a name, as an object store may have
_MAGIC = re.compile(r"[*?[]")


class Place(NamedTuple):
    """Where in the listing an image stands; places are in its order.

    Attributes:
        file: number of the file.
        member: number of the image in it, where it is a shard.
    """

    file: int
    member: int = 0


class Span(NamedTuple):
    """A stretch of the listing.

    Attributes:
        start: its first place.
        stop: the first place beyond it.
        listed: sha256 of the paths of all files from the first one to the stretch's last.
    """

    start: Place
    stop: Place
    listed: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One image.

    Attributes:
        span: its own place in the listing.
        path: as a row names it: of a shard's image `tar://MEMBER::SHARD`, which fsspec opens.
        read: gives the file. Raises ImageError: not_found, unreadable.
    """

    span: Span
    path: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the listing: an image, or a shard of them.

    Attributes:
        path: as a row names it.
        fs: where it lies.
        key: its path there.
        fault: why there is nothing to read by that path; None: there may be.
    """

    path: str
    fs: Any = None
    key: str = ""
    fault: ImageError | None = None

    @property
    def is_shard(self) -> bool:
        """Whether it holds images, by its name."""
        return self.fault is None and _suffix(self.key) == shards.SUFFIX


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in its place in the listing; it can be sent to another process.

    Attributes:
        file: the file.
        index: its number.
        digest: sha256 of the paths of all files from the first one to it.
        done: stretches of it that are not wanted.
    """

    file: File
    index: int
    digest: str
    done: tuple[tuple[Place, Place], ...]

    def entries(self, limits: Limits) -> Iterator[Entry]:
        """Its images; where it cannot be read, or not to its end, one more that says so."""
        return _entries(self.file, self.index, self.digest, _Covered(self.done), limits)


class Sources:
    """Files, and what holds them.

    A folder gives those below it whose names end as images' or shards' do, hidden ones left out,
    each folder's in the order of their names; a glob whatever file it matches, but lists only where
    it ends as they do; a list (CSV or Parquet, by its name) the files of its column `path`, which
    may be relative to it. What is named twice is listed twice. A folder's own names are held in
    memory, no other's.

    Args:
        names: paths and URLs.

    Raises:
        BulkError: there is nothing by one of the names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._sources = [_Source.of(name) for name in names]
        names = "\0".join(source.name for source in self._sources)
        self.digest = hashlib.sha256(_bytes(names)).hexdigest()
        """sha256 of the names."""

    def files(self) -> Iterator[File]:
        """All files, as they are found.

        Raises:
            BulkError: a folder that was named cannot be listed, or a list not be read.
        """
        for source in self._sources:
            yield from source.files()

    def entries(self, limits: Limits, done: Iterable[Span] = ()) -> Iterator[Entry]:
        """All images but those of some stretches; a shard that one covers whole is not opened.

        Args:
            limits: of an image.
            done: stretches that do not overlap.

        Raises:
            BulkError: as `listed`.
        """
        for one in self.listed(done):
            yield from one.entries(limits)

    def listed(self, done: Iterable[Span] = ()) -> Iterator[Listed]:
        """All files but those that some stretches cover whole; none is opened.

        Args:
            done: stretches that do not overlap.

        Raises:
            BulkError: as `files`; the listing is another one than when the stretches were made.
        """
        known = {_last_file(span): span.listed for span in done}
        covered = _Covered((span.start, span.stop) for span in done)
        listed, index = hashlib.sha256(), -1
        for index, file in enumerate(self.files()):
            listed.update(_bytes(file.path) + b"\0")
            digest = listed.hexdigest()
            if known.pop(index, digest) != digest:
                raise _changed()
            start, stop = Place(index), Place(index + 1)
            if not covered(start, stop):
                yield Listed(file, index, digest, covered.before(stop))
        if known:
            raise _changed()
        if index < 0:
            names = " and ".join(public(source.name) for source in self._sources)
            raise BulkError(f"no images in {names}")


class _Covered:
    """Whether places that come in order lie in any of some stretches."""

    def __init__(self, stretches: Iterable[tuple[Place, Place]]) -> None:
        self._left: list[tuple[Place, Place]] = []
        for start, stop in sorted(stretches, reverse=True):
            if self._left and self._left[-1][0] == stop:  # they are one
                stop = self._left.pop()[1]
            self._left.append((start, stop))

    def __call__(self, start: Place, stop: Place) -> bool:
        while self._left and self._left[-1][1] <= start:
            self._left.pop()
        return bool(self._left) and self._left[-1][0] <= start and stop <= self._left[-1][1]

    def before(self, stop: Place) -> tuple[tuple[Place, Place], ...]:
        """Those that are not behind yet and begin before a place, in their order."""
        return tuple(takewhile(lambda one: one[0] < stop, reversed(self._left)))


def _entries(
    file: File, index: int, listed: str, covered: _Covered, limits: Limits
) -> Iterator[Entry]:
    """See `Listed.entries`."""
    start, end = Place(index), Place(index + 1)
    if not file.is_shard:
        look = functools.partial(_raise, file.fault)
        if file.fault is None:
            look = functools.partial(read, file.fs, file.key, limits)
        yield Entry(Span(start, end, listed), file.path, look)
        return
    last: Entry | None = None  # it goes out once it is known whether another one follows

    def wanted(number: int) -> bool:
        return not covered(Place(index, number), Place(index, number + 1))

    try:
        with _opened(file) as stream:
            for member in shards.members(stream, wanted, limits.max_bytes):
                if last is not None:
                    yield last
                place, start = Place(index, member.number), Place(index, member.number + 1)
                path = f"tar://{member.name}::{file.path}"
                look = functools.partial(_given, member.data)
                last = Entry(Span(place, start, listed), path, look)
    except Exception as error:  # noqa: BLE001  (a broken archive, or a broken connection)
        if last is not None:
            yield last
        look = functools.partial(_raise, unreadable(error))
        yield Entry(Span(start, end, listed), file.path, look)
    else:
        if last is not None:
            yield Entry(Span(last.span.start, end, listed), last.path, last.read)


def _opened(file: File) -> Any:
    if not file.fs.isfile(file.key):  # to open a pipe may take for ever
        raise FileNotFoundError
    return file.fs.open(file.key, "rb")


def _given(data: bytes | None) -> bytes:
    if data is None:
        raise ImageError("unreadable", "The shard is cut off.")
    return data


def _raise(fault: ImageError | None) -> bytes:
    raise fault or AssertionError


def _last_file(span: Span) -> int:
    return span.stop.file if span.stop.member else span.stop.file - 1


def _changed() -> BulkError:
    return BulkError("the sources hold other files than before: begin anew, with another --to")


@dataclass(frozen=True, slots=True)
class _Source:
    """What one name stands for.

    Attributes:
        name: a URL, or an absolute path.
        fs: where it leads.
        key: the path there.
        kind: gives its files.
    """

    name: str
    fs: Any
    key: str
    kind: "Callable[[_Source], Iterator[File]]"

    @classmethod
    def of(cls, name: str) -> "_Source":
        """Find out what there is by a name.

        Raises:
            BulkError: nothing.
        """
        if not name:
            raise BulkError("a source has no name")
        fs, key = locate(name)
        shown = name if is_url(name) else key
        try:
            if fs.isdir(key):
                return cls(shown, fs, key, _of_folder)
            if fs.exists(key):  # before its name is taken for a glob
                return cls(shown, fs, key, _of_list if _suffix(key) in _LISTS else _of_file)
        except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
            raise BulkError(f"{public(shown)} cannot be read: {type(error).__name__}") from None
        if not _MAGIC.search(key):
            raise BulkError(f"there is nothing at {public(shown)}")
        try:
            glob_translate(key)
        except (ValueError, re.error):
            raise BulkError(
                f"{public(shown)} is no glob: ** stands alone between slashes"
            ) from None
        return cls(shown, fs, key, _of_glob)

    def files(self) -> Iterator[File]:
        """Its files; see `Sources.files`."""
        return self.kind(self)

    def path(self, key: str, root: str) -> str:
        """How a row names a file in the folder `root`, which this name begins with."""
        if not is_url(self.name):
            return key
        if not key.startswith(root):
            return str(self.fs.unstrip_protocol(key))
        head = self.name[: len(self.name) - len(self.key) + len(root)]
        return public(head).rstrip("/") + "/" + key[len(root) :].lstrip("/")


def _of_file(source: _Source) -> Iterator[File]:
    yield File(without_user(source.name), source.fs, source.key)


def _of_folder(source: _Source) -> Iterator[File]:
    root = source.key.rstrip("/")
    for key, fault in _below(source.fs, root or "/", lambda _: True):
        if fault is not None and key == (root or "/"):
            raise BulkError(f"{public(source.name)} cannot be listed")
        if fault is not None or _suffix(key) in (*SUFFIXES, shards.SUFFIX):
            yield File(source.path(key, root), source.fs, key, fault)


def _of_glob(source: _Source) -> Iterator[File]:
    """Of each folder on the way, only those that the pattern may lead to are listed."""
    root = posixpath.dirname(_MAGIC.split(source.key, maxsplit=1)[0])
    parts = source.key.split("/")

    def enters(folder: str) -> bool:
        head = parts[: folder.count("/") + 1]
        return "**" in head or (len(head) < len(parts) and _matches("/".join(head), folder))

    for key, fault in _below(source.fs, root, enters):
        if fault is not None and key == root:
            raise BulkError(f"{public(source.name)} cannot be listed")
        if fault is None and not _matches(source.key, key):
            continue
        file = File(source.path(key, root), source.fs, key, fault)
        if fault is not None or _suffix(key) not in _LISTS:
            yield file
        elif _suffix(source.key) in _LISTS:  # else they are beside the images, or a run's own parts
            yield from _of_list(_Source(file.path, file.fs, key, _of_list))


def _of_list(source: _Source) -> Iterator[File]:
    reader = _parquet_paths if _suffix(source.key) == ".parquet" else _csv_paths
    folder = posixpath.dirname(source.key)
    try:
        with source.fs.open(source.key, "rb") as stream:
            for path in reader(stream, public(source.name)):
                yield _listed(path, source.fs, folder)
    except BulkError:
        raise
    except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
        raise BulkError(f"{public(source.name)} cannot be read: {type(error).__name__}") from None


def _listed(path: str, fs: Any, folder: str) -> File:
    """What a list means by a path."""
    if not path:
        return File(path, fault=ImageError("not_found", "The list names no file."))
    if not is_url(path) and not path.startswith("/"):
        return File(path, fs, posixpath.normpath(posixpath.join(folder, path)))
    try:
        return File(path, *locate(path))
    except BulkError:
        fault = ImageError("unreadable", "Nothing here opens such a URL.")
        return File(path, fault=fault)


def _csv_paths(stream: Any, shown: str) -> Iterator[str]:
    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        lines = _lines(text)
        head = next(lines, "")
        for separator in _SEPARATORS:
            header = next(csv.reader([head], delimiter=separator), [])
            if _COLUMN in header:
                break
        else:
            raise _no_column(shown)
        column = header.index(_COLUMN)
        for fields in csv.reader(lines, delimiter=separator):
            if fields:  # else a blank line
                yield fields[column] if column < len(fields) else ""


def _lines(text: io.TextIOBase) -> Iterator[str]:
    """The lines of a list; what has none is not read whole to find that out."""
    while line := text.readline(_LINE):
        if len(line) == _LINE:
            raise csv.Error("a line is too long")
        yield line


def _parquet_paths(stream: Any, shown: str) -> Iterator[str]:
    file = pq.ParquetFile(stream)
    if _COLUMN not in file.schema_arrow.names:
        raise _no_column(shown)
    if not _is_text(file.schema_arrow.types[file.schema_arrow.names.index(_COLUMN)]):
        raise BulkError(f"{shown} has no text in its column {_COLUMN}")
    for batch in file.iter_batches(batch_size=1024, columns=[_COLUMN]):
        for path in batch.column(0).to_pylist():
            yield os.fsdecode(path) if path else ""


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text; some writers call it bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*texts, pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())


def _no_column(shown: str) -> BulkError:
    return BulkError(f"{shown} has no column {_COLUMN}")


def _below(
    fs: Any, root: str, enters: Callable[[str], bool]
) -> Iterator[tuple[str, ImageError | None]]:
    """Files below a folder, depth first in the order of names; folders that cannot be listed."""
    pending = [(root, True)]
    while pending:
        key, is_folder = pending.pop()
        if not is_folder:
            yield key, None
        elif key == root or enters(key):
            try:
                if key.endswith(_NAMELESS):
                    raise NotADirectoryError  # noqa: TRY301  (no store here lists it)
                children = _children(fs, key)
            except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
                yield key, unreadable(error)
            else:
                pending += reversed(children)


def _children(fs: Any, folder: str) -> list[tuple[str, bool]]:
    """Names in a folder, in their order, and whether each is a folder; hidden ones left out."""
    fs.invalidate_cache(folder)  # what was there before may be no longer
    infos = fs.ls(folder, detail=True)
    fs.invalidate_cache(folder)  # nor is it held
    children = []
    for info in infos:
        key, kind = info["name"], info["type"]
        if key.rstrip("/") == folder.rstrip("/"):
            if kind != "directory" or isinstance(fs, HTTPFileSystem):  # itself, or its marker
                continue
            key = folder.rstrip("/") + _NAMELESS
        elif PurePosixPath(key).name.startswith("."):
            continue
        if info.get("islink") and isinstance(fs, LocalFileSystem):
            kind = _linked(key)
        if kind in ("file", "directory"):
            children.append((key, kind == "directory"))
    return sorted(children)


def _linked(path: str) -> str:
    """What a link leads to; `other` also for a folder that it was reached through."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return "file"  # of a broken one, a row says so
    if not stat.S_ISDIR(mode):
        return "file" if stat.S_ISREG(mode) else "other"
    target = Path(path).resolve()
    back = any(parent.resolve() == target for parent in Path(path).parents)
    return "other" if back else "directory"


@functools.lru_cache(maxsize=64)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(glob_translate(glob))


def _matches(glob: str, path: str) -> bool:
    return _pattern(glob).match(path) is not None


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
