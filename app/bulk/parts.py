"""Parquet files of rows, each whole or absent; what they cover says where to go on."""

import json
import os
import posixpath
import re
import secrets
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from app.bulk.sources import Place, Span
from app.bulk.store import BulkError, locate, public

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("real_below", pa.float64(), nullable=False),
        pa.field("ai_above", pa.float64(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
        pa.field("declares", pa.string()),
        pa.field("error", pa.string()),
    ]
)
_KEY = b"nsnet"  # of what a part says of itself, in its Parquet metadata
_LATER = "tower"  # parts of 0.7.0 do not say which
_NAME = re.compile(r"part-\d{10}-\d{10}\.parquet")
_READERS = 16  # parts that are looked into at once: a distant store answers slowly


@dataclass(frozen=True, slots=True)
class Row:
    """What is said of an image.

    Attributes:
        path: by which it was listed.
        sha256: of the file; None where it was not read whole.
        verdict: None where `error` is set.
        score: calibrated probability of AI generation, 0..1; None likewise.
        real_below: a cut that the verdict was taken by.
        ai_above: the other one.
        model_sha256: of the checkpoint.
        warnings: as an answer of the service has them.
        declares: what the file says of its origin; None where that was not read.
        error: code of the reason why there is no verdict.
    """

    path: str
    sha256: str | None
    verdict: str | None
    score: float | None
    real_below: float
    ai_above: float
    model_sha256: str
    warnings: tuple[str, ...]
    declares: str | None
    error: str | None


class Parts:
    """The parts in a folder, and those to come.

    Args:
        out: the folder, a path or a URL; made where it is not there.
        run: what all parts must have in common, by a name for people: `model`, ... .
        note: what else each says of how it was made.

    Raises:
        BulkError: the folder cannot be had, or holds parts that these would not belong to.
    """

    def __init__(self, out: str, run: Mapping[str, str], note: Mapping[str, str]) -> None:
        self._shown = public(out)
        self._fs, self._folder = locate(out)
        self._run = dict(run)
        self._note = dict(note)
        self.spans = sorted(self._found())
        """What the parts cover, in its order."""
        for one, other in zip(self.spans, self.spans[1:], strict=False):
            if other.start < one.stop:
                raise BulkError(f"parts in {self._shown} overlap: begin anew, with another --to")

    def between(self, start: Place, stop: Place) -> bool:
        """Whether a part that was there begins in a stretch of the listing."""
        at = bisect_left(self.spans, start, key=lambda span: span.start)
        return at < len(self.spans) and self.spans[at].start < stop

    def write(self, rows: Sequence[Row], span: Span) -> None:
        """Add a part.

        Args:
            rows: in the listing's order.
            span: what they cover.

        Raises:
            BulkError: it cannot be written, or somebody else has written it.
        """
        about = {**self._note, **self._run, "rows": len(rows), **span._asdict()}
        table = pa.Table.from_pylist([_plain(row) for row in rows], schema=SCHEMA)
        table = table.replace_schema_metadata({_KEY: json.dumps(about)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        path = posixpath.join(self._folder, _name(span))
        try:
            self._fs.invalidate_cache(self._folder)
            taken = self._fs.exists(path)
            if taken:
                pass
            elif isinstance(self._fs, LocalFileSystem):
                _replace(Path(path), data)
            else:
                self._fs.pipe_file(path, data.to_pybytes())
        except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
            raise self._failed("written to", error) from None
        if taken:
            raise BulkError(f"another run writes to {self._shown}")

    def _found(self) -> list[Span]:
        """What the parts that are there cover.

        Raises:
            BulkError: one cannot be read, or comes from another run.
        """
        try:
            if isinstance(self._fs, LocalFileSystem):
                self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.invalidate_cache(self._folder)  # of the sources' folder, it may be
            listed = self._fs.ls(self._folder, detail=False)
        except FileNotFoundError:  # of an object store, an empty folder is none
            return []
        except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
            raise self._failed("listed", error) from None
        if isinstance(self._fs, LocalFileSystem) and not os.access(self._folder, os.W_OK | os.X_OK):
            raise BulkError(f"{self._shown} cannot be written to")  # before any image is scored
        names = [path for path in listed if _NAME.fullmatch(posixpath.basename(path))]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self._span, names))

    def _span(self, path: str) -> Span:
        where = f"{self._shown}/{posixpath.basename(path)}"
        try:
            with self._fs.open(path, "rb") as file:
                metadata = pq.read_metadata(file)
            about = json.loads(metadata.metadata[_KEY])
            run = {name: about[name] for name in self._run if name in about or name != _LATER}
            span = Span(Place(*about["start"]), Place(*about["stop"]), str(about["listed"]))
            _check(span, metadata.num_rows == about["rows"], posixpath.basename(path))
        except Exception as error:  # noqa: BLE001  (whatever it is, it is no part)
            kind = type(error).__name__
            raise BulkError(f"{where} is no part of such a run: {kind}") from None
        for name, value in run.items():
            if self._run[name] != value:
                raise BulkError(
                    f"{self._shown} was begun with other {name} "
                    f"({value}, now {self._run[name]}): give another --to"
                )
        return span

    def _failed(self, what: str, error: Exception) -> BulkError:
        why = isinstance(error, OSError) and isinstance(self._fs, LocalFileSystem)
        reason = error.strerror if why and isinstance(error, OSError) else type(error).__name__
        return BulkError(f"{self._shown} cannot be {what}: {reason}")


def _name(span: Span) -> str:
    return f"part-{span.start.file:010d}-{span.start.member:010d}.parquet"


def _check(span: Span, whole: bool, name: str) -> None:
    """Raise where a part does not say of itself what this module writes: rows would be lost."""
    numbers = (*span.start, *span.stop)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError
    if not whole or span.start >= span.stop or name != _name(span):
        raise ValueError


def _plain(row: Row) -> dict[str, Any]:
    """A row as Parquet takes it: names that are no text are escaped."""
    return asdict(row) | {"path": row.path.encode("utf-8", "backslashreplace").decode()}


def _replace(path: Path, data: pa.Buffer) -> None:
    """Write a file that is there whole, or not at all, whatever ends this process.

    Another run may be at the same file: each writes one of its own.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # the disk may be full
        raise
