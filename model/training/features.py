"""What a frozen tower gives needs no gradient: it is computed once and kept on disk.

All block tokens are kept, so that blocks, ranks and heads can be compared without running the
tower again; with LoRA on the upper blocks, also every token after the last frozen one. On a CPU
that is the hour of a training run: killed, it goes on where it was last saved.
"""

import copy
import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbone import Backbone
from model.engines import state_engine, tower_engine
from model.errors import ModelError
from model.nsnet import hidden_states, normalise, pool_tokens
from model.patches import PatchRule
from model.training.augment import Augmentation
from model.training.copies import Canvas, canvases_ahead
from model.training.manifest import Row, digest

log = logging.getLogger(__name__)

_BATCH = 16
_SAVED = 64  # images between two saves: a minute or two of two CPU cores


@dataclass(frozen=True, slots=True)
class Features:
    """What the tower gave for canvases.

    Attributes:
        tokens: float16 [n, blocks, width], ln_post of the CLS token after each block. The last
            block's, times the tower's projection, is the joint-space feature.
        row: int64 [n], the manifest row.
        kind: int64 [n], CLEAN, EQUALISED or DEGRADED.
        hidden: float16 [n, L, width], all tokens after the last frozen block, as the next one reads
            them, in a memory-mapped file; None where none was asked for.
    """

    tokens: Tensor
    row: Tensor
    kind: Tensor
    hidden: Tensor | None = None


def tower_features(
    rows: Sequence[Row],
    backbone: Backbone,
    rule: PatchRule,
    kinds: Sequence[int],
    how: Augmentation,
    cache: Path,
    *,
    depth: int,
    frozen: int | None = None,
    pooled_after: int = 0,
    pool_hidden: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    engine: str = "torch",
) -> Features:
    """Compute the features of every copy of every image, or read them back.

    They are read back where nothing that decides them has changed; a file that is gone has not.
    An unreadable or too small image is skipped and counted. What was killed goes on.

    Args:
        rows: the images.
        backbone: the tower; a copy of it runs.
        rule: how copies are cut into canvases.
        kinds: the copies of an image.
        how: the degraded copies' distribution.
        cache: folder of what was computed before.
        depth: blocks to run; what was computed before may be deeper.
        frozen: the block, from 1, after which all tokens are kept.
        pooled_after: see `NSNetConfig`.
        pool_hidden: pool the tokens that are kept, of a tower that is not pooled.
        dtype: bfloat16 doubles the speed on recent CPUs; tokens differ by about 1 %.
        device: where the tower runs.
        engine: what runs it, see `engines.make_engine`. int8 gives no hidden states.

    Raises:
        ModelError: no image could be used, or an engine that cannot be had for this.
    """
    key = (
        f"{digest(rows)}{backbone.sha256}{rule!r}{tuple(kinds)}{how!r}{frozen}{dtype}{engine}"
        f"{pooled_after}{pool_hidden}"
    )
    stem = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    path, hidden_path = stem.with_suffix(".safetensors"), stem.with_suffix(".hidden")
    visual = backbone.visual
    stamps = _stamps(rows)
    found = load_file(path) if path.exists() else {}
    if (
        not _unchanged(stamps, found.pop("stamps", None))
        or found["tokens"].shape[1] < depth
        or (frozen is not None and not hidden_path.exists())
    ):
        run = _runner(
            visual, depth, frozen, pooled_after, pool_hidden=pool_hidden, dtype=dtype,
            device=torch.device(device), engine=engine,
        )  # fmt: skip
        width = visual.positional_embedding.shape[1]
        shards = _Shards(stem.with_suffix(".parts"), stamps, (depth, width))
        images = canvases_ahead(rows[shards.images :], rule, kinds, how)
        found = _extract(images, len(rows), run, shards)
        part = shards.folder / "all.part"
        save_file(found | {"stamps": stamps}, part)
        # Replaced whole, other runs may read them; the tokens last: where they are, all is there.
        path.unlink(missing_ok=True)
        if frozen is not None:
            shards.hidden.replace(hidden_path)
        part.replace(path)
        shutil.rmtree(shards.folder)
    hidden = None
    if frozen is not None:
        count, width = len(found["row"]), visual.positional_embedding.shape[1]
        length = hidden_path.stat().st_size // (torch.half.itemsize * count * width)
        shape = (count, length, width)
        hidden = torch.from_file(
            str(hidden_path), shared=False, size=math.prod(shape), dtype=torch.float16
        ).view(shape)
    return Features(**found, hidden=hidden)


def _runner(
    visual: VisionTransformer,
    depth: int,
    frozen: int | None,
    pooled_after: int,
    *,
    pool_hidden: bool,
    dtype: torch.dtype,
    device: torch.device,
    engine: str,
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Make what gives tokens and hidden states of canvases; see `tower_features`."""
    blocks = range(1, depth + 1)
    if engine != "torch":
        how: dict[str, Any] = {
            "device": device, "dtype": dtype, "threads": torch.get_num_threads(),
            "pooled_after": pooled_after,
        }  # fmt: skip
        if frozen is None:
            tower = tower_engine(engine, visual, blocks, **how)
            return lambda canvases: (tower(canvases).half(), None)
        both = state_engine(engine, visual, blocks, frozen, pool_kept=pool_hidden, **how)

        def halves(canvases: Tensor) -> tuple[Tensor, Tensor]:
            tokens, kept = both(canvases)
            return tokens.half(), kept.half()

        return halves
    visual = copy.deepcopy(visual).to(device=device, dtype=dtype)

    @torch.inference_mode()
    def run(canvases: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = normalise(canvases.to(device))
        states = hidden_states(visual, pixels.to(dtype), blocks, pooled_after)
        tokens = torch.stack([visual.ln_post(h[:, 0]) for h in states], dim=1).half().cpu()
        if frozen is None:
            return tokens, None
        kept = pool_tokens(states[frozen - 1]) if pool_hidden else states[frozen - 1]
        return tokens, kept.half().cpu()

    return run


def _stamps(rows: Sequence[Row]) -> Tensor:
    """int64 [rows, 2], size and time of change of each file; -1 where it is not there."""

    def stamp(path: Path) -> tuple[int, int]:
        try:
            found = path.stat()
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    return torch.tensor([stamp(row.path) for row in rows])


def _unchanged(now: Tensor, then: Tensor | None) -> bool:
    """Whether every file that is there is the one that was read: `digest` knows its name alone."""
    return then is not None and bool(((now == then) | (now < 0)).all())


class _Shards:
    """What an extraction has computed so far: a file for every few images, as they were then.

    Args:
        folder: where they are.
        stamps: of all images, see `_stamps`.
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
        self._found: list[dict[str, Tensor]] = []
        written = self.hidden.stat().st_size if self.hidden.exists() else 0
        while (path := self._path()).exists():
            shard = load_file(path)
            then = shard["stamps"]
            now = stamps[self.images : self.images + len(then)]
            if (
                len(now) < len(then)
                or not _unchanged(now, then)
                or shard["tokens"].shape[1:] != shape
                or int(shard["hidden"]) > written
            ):
                break
            self._keep(shard)
        for path in folder.glob("*.safetensors"):
            if int(path.stem) >= len(self._found):
                path.unlink()  # where its hidden states were, others come
        self._size = int(self._found[-1]["hidden"]) if self._found else 0
        if written:
            with self.hidden.open("r+b") as file:
                file.truncate(self._size)

    def _path(self) -> Path:
        return self.folder / f"{len(self._found)}.safetensors"

    def _keep(self, shard: dict[str, Tensor]) -> None:
        self._found.append(shard)
        self.images += len(shard["stamps"])

    def write_hidden(self, states: Tensor) -> None:
        """Append the hidden states of a batch."""
        data = states.numpy().tobytes()
        with self.hidden.open("ab") as file:
            file.write(data)
        self._size += len(data)

    def save(
        self, images: int, tokens: Sequence[Tensor], places: Sequence[tuple[int, int]]
    ) -> None:
        """Keep what the next `images` gave, none of which may have been readable."""
        columns = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
        row, kind = (column.clone() for column in columns)
        shard = {
            "tokens": torch.cat([self._none, *tokens]), "row": row, "kind": kind,
            "stamps": self._stamps[self.images : self.images + images],
            "hidden": torch.tensor(self._size),
        }  # fmt: skip
        path = self._path()
        part = path.with_suffix(".part")
        save_file(shard, part)
        part.replace(path)
        self._keep(shard)

    def all(self) -> dict[str, Tensor]:
        """Tokens, rows and kinds of all canvases."""
        names = ("tokens", "row", "kind")
        return {name: torch.cat([shard[name] for shard in self._found]) for name in names}


def _extract(
    images: Iterator[list[Canvas] | None],
    count: int,
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    shards: _Shards,
) -> dict[str, Tensor]:
    start = shards.images
    pending: list[Canvas] = []
    tokens: list[Tensor] = []
    places: list[tuple[int, int]] = []  # row and kind; the pixels are let go
    todo = track(images, total=count, completed=start, description="features")
    for done, canvases in enumerate(todo, start + 1):
        pending += canvases or []
        save = done % _SAVED == 0 or done == count
        while len(pending) >= _BATCH or (save and pending):
            batch, pending = pending[:_BATCH], pending[_BATCH:]
            given, hidden = run(torch.stack([canvas.pixels for canvas in batch]))
            tokens.append(given)
            places += [(start + canvas.row, canvas.kind) for canvas in batch]
            if hidden is not None:
                shards.write_hidden(hidden)
        if save:
            shards.save(done - shards.images, tokens, places)
            tokens, places = [], []
    found = shards.all()
    skipped = count - len(set(found["row"].tolist()))
    if skipped:
        log.warning("%d of %d images were unreadable or too small", skipped, count)
    if skipped == count:
        raise ModelError("no image could be read")
    return found
