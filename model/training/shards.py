"""What an extraction of features has computed so far, on disk: killed, it goes on from there."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.data.manifest import Row


def stamps_of(rows: Sequence[Row]) -> Tensor:
    """int64 [rows, 2], size and time of change of each file; -1 where it is not there."""

    def stamp(path: Path) -> tuple[int, int]:
        try:
            status = path.stat()
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    return torch.tensor([stamp(row.path) for row in rows])


def unchanged(now: Tensor, then: Tensor | None) -> bool:
    """Whether every file that is there is the one that was read.

    `manifest.digest` knows its name alone.

    Args:
        now: int64 [rows, 2], by `stamps_of`.
        then: likewise; None: nothing was read.
    """
    return then is not None and bool(((now == then) | (now < 0)).all())


class Shards:
    """A file for every few images, each with how the images' files were then.

    Args:
        folder: where they are.
        stamps: of all images, see `stamps_of`.
        shape: of the tokens that a canvas should have, [blocks, width].

    Attributes:
        folder: as given.
        images: how many are done.
        hidden: the file of all hidden states, one canvas's after the other's.
    """

    def __init__(self, folder: Path, stamps: Tensor, shape: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.hidden = folder / "hidden"
        self.images = 0
        self._stamps = stamps
        self._none = torch.empty(0, *shape, dtype=torch.float16)
        self._shards: list[dict[str, Tensor]] = []
        written = self.hidden.stat().st_size if self.hidden.exists() else 0
        while (path := self._path()).exists():
            shard = load_file(path)
            then = shard["stamps"]
            now = stamps[self.images : self.images + len(then)]
            if (
                len(now) < len(then)
                or not unchanged(now, then)
                or shard["tokens"].shape[1:] != shape
                or int(shard["hidden"]) > written
            ):
                break
            self._keep(shard)
        for path in folder.glob("*.safetensors"):
            if int(path.stem) >= len(self._shards):
                path.unlink()  # where its hidden states were, others come
        self._size = int(self._shards[-1]["hidden"]) if self._shards else 0
        if written:
            with self.hidden.open("r+b") as file:
                file.truncate(self._size)

    def _path(self) -> Path:
        return self.folder / f"{len(self._shards)}.safetensors"

    def _keep(self, shard: dict[str, Tensor]) -> None:
        self._shards.append(shard)
        self.images += len(shard["stamps"])

    def write_hidden(self, states: Tensor) -> None:
        """Append the hidden states of a batch, float16 [n, L, width]."""
        data = states.numpy().tobytes()
        with self.hidden.open("ab") as file:
            file.write(data)
        self._size += len(data)

    def save(
        self, images: int, tokens: Sequence[Tensor], places: Sequence[tuple[int, int]]
    ) -> None:
        """Keep what the next images gave, none of which may have been readable.

        Args:
            images: how many.
            tokens: float16 [n, blocks, width] of batches of their canvases.
            places: row and kind of each canvas.
        """
        columns = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
        row, kind = (column.clone() for column in columns)
        shard = {
            "tokens": torch.cat([self._none, *tokens]),
            "row": row,
            "kind": kind,
            "stamps": self._stamps[self.images : self.images + images],
            "hidden": torch.tensor(self._size),
        }
        path = self._path()
        part = path.with_suffix(".part")
        save_file(shard, part)
        part.replace(path)
        self._keep(shard)

    def all(self) -> dict[str, Tensor]:
        """Of all canvases: tokens float16 [n, blocks, width], row and kind int64 [n]."""
        names = ("tokens", "row", "kind")
        return {name: torch.cat([shard[name] for shard in self._shards]) for name in names}
