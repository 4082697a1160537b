"""What a tower gave for images, on disk, image by image: a longer list finds those of a shorter."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.data.copies import Canvas
from model.data.degrade import seed_of
from model.data.manifest import Row

_GONE = -1


@dataclass(frozen=True, slots=True)
class Known:
    """Images as a store knows them.

    Attributes:
        ids: int64 [n], of each file's place.
        stamps: int64 [n, 2], size and time of change; -1 where the file is not there.
    """

    ids: Tensor
    stamps: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Known":
        """Look at the files, without opening them."""
        ids = [seed_of(os.path.realpath(row.path)) >> 1 for row in rows]
        stamps = torch.tensor([_stamp(row.path) for row in rows], dtype=torch.int64)
        return cls(torch.tensor(ids, dtype=torch.int64), stamps.view(-1, 2))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return _GONE, _GONE
    return status.st_size, status.st_mtime_ns


class Store:
    """Parts of a few images each, and one file of all hidden states, only ever added to.

    Args:
        folder: its own, of one tower, plan and list of copies.
        depth: blocks of which there must be tokens; parts of less are passed over.
        width: values a token.

    Attributes:
        hidden: the file of hidden states, one canvas's after the other's.
    """

    def __init__(self, folder: Path, depth: int, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.hidden = folder / "hidden"
        self._folder = folder
        self._depth = depth
        self._width = width
        self._parts: list[dict[str, Tensor]] = []

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """Wait for whoever else adds to it, then read what there is."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._parts = self._whole_parts()
            for path in self._folder.glob("*.safetensors"):
                if int(path.stem) >= len(self._parts):
                    path.unlink()  # where its hidden states were, others come
            with self.hidden.open("ab") as file:
                file.truncate(self._written)  # what was killed while it wrote
            yield

    def _whole_parts(self) -> list[dict[str, Tensor]]:
        """The first ones, as long as none is gone, nor the hidden states of any."""
        written = self.hidden.stat().st_size if self.hidden.exists() else 0
        parts: list[dict[str, Tensor]] = []
        while (path := self._folder / f"{len(parts)}.safetensors").exists():
            part = load_file(path)
            if int(part["written"]) > written:
                break
            parts.append(part)
        return parts

    @property
    def _written(self) -> int:
        return int(self._parts[-1]["written"]) if self._parts else 0

    def _newest(self) -> dict[int, tuple[int, int]]:
        """Of each image that was there, the part that holds it, and its place in there."""
        return {
            own: (index, place)
            for index, part in enumerate(self._parts)
            if part["tokens"].shape[1] >= self._depth
            for place, (own, stamp) in enumerate(
                zip(part["ids"].tolist(), part["stamps"].tolist(), strict=True)
            )
            if _GONE not in stamp
        }

    def missing(self, images: Known) -> list[int]:
        """Which of them are not there, or have changed since; a file that is gone has not."""
        newest = self._newest()
        absent = []
        for index, (own, now) in enumerate(zip(images.ids.tolist(), images.stamps, strict=True)):
            if own in newest:
                part, place = newest[own]
                if bool(((now == self._parts[part]["stamps"][place]) | (now == _GONE)).all()):
                    continue
            absent.append(index)
        return absent

    def states(self) -> Tensor:
        """All hidden states there are, float16 [m, L, width], memory-mapped."""
        count = sum(len(part["image"]) for part in self._parts)
        size = self._written // torch.half.itemsize
        flat = torch.from_file(str(self.hidden), shared=False, size=size, dtype=torch.float16)
        return flat.view(count, -1, self._width)

    def add_hidden(self, states: Tensor) -> None:
        """Append the hidden states of a batch, float16 [n, L, width], before its part is added."""
        with self.hidden.open("ab") as file:
            file.write(states.contiguous().numpy().tobytes())

    def add(self, images: Known, tokens: Sequence[Tensor], canvases: Sequence[Canvas]) -> None:
        """Keep what the next images gave, none of which may have been readable.

        Of files that are not there nothing is kept: what they gave before still holds.

        Args:
            images: which they are.
            tokens: float16 [n, blocks, width] of batches of their canvases.
            canvases: in the same order; their `row` is an index of `images`, their pixels are not
                read.
        """
        if not canvases and bool((images.stamps == _GONE).any(dim=1).all()):
            return
        none = torch.empty(0, self._depth, self._width, dtype=torch.float16)
        part = {
            "tokens": torch.cat([none, *tokens]),
            "image": torch.tensor([canvas.row for canvas in canvases], dtype=torch.int64),
            "kind": torch.tensor([int(canvas.kind) for canvas in canvases], dtype=torch.int64),
            "quality": torch.tensor([tuple(c.quality) for c in canvases]).view(-1, 3),
            "ids": images.ids,
            "stamps": images.stamps,
            "written": torch.tensor(self.hidden.stat().st_size),
        }
        path = self._folder / f"{len(self._parts)}.safetensors"
        unfinished = path.with_suffix(".part")
        save_file(part, unfinished)
        unfinished.replace(path)
        self._parts.append(part)

    def read(self, images: Known) -> dict[str, Tensor]:
        """Of the canvases of all images that are there, in the order of their images.

        Returns:
            tokens float16 [n, depth, width], row and kind int64 [n], quality float32 [n, 3], and
            place int64 [n] among the hidden states.
        """
        newest = self._newest()
        row_of = {own: row for row, own in enumerate(images.ids.tolist())}
        columns: dict[str, list[Tensor]] = {
            name: [] for name in ("tokens", "row", "kind", "quality", "place")
        }
        for index, part in enumerate(self._parts):
            rows = torch.tensor(
                [
                    row_of.get(own, -1) if newest.get(own) == (index, place) else -1
                    for place, own in enumerate(part["ids"].tolist())
                ]
            )
            if not len(part["image"]) or not (rows >= 0).any():
                continue
            row = rows[part["image"]]
            asked = row >= 0
            first = sum(len(before["image"]) for before in self._parts[:index])
            columns["tokens"].append(part["tokens"][asked, : self._depth])
            columns["row"].append(row[asked])
            columns["kind"].append(part["kind"][asked])
            columns["quality"].append(part["quality"][asked])
            columns["place"].append((first + torch.arange(len(row)))[asked])
        none = torch.empty(0, dtype=torch.int64)
        order = torch.cat([none, *columns["row"]]).argsort(stable=True)
        return {name: torch.cat(of)[order] for name, of in columns.items() if of}
