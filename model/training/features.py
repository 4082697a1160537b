"""What a frozen tower gives needs no gradient: it is computed once and kept on disk.

All block tokens are kept, so that blocks, ranks and heads can be compared without running the
tower again; where adapters are fitted to the upper blocks, also every token after the last frozen
one. On a CPU this is the longest part of a training run: killed, it goes on where it was last saved
(`Shards`).
"""

import copy
import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from open_clip.transformer import VisionTransformer
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.data.copies import Canvas, canvases_ahead
from model.data.degrade import Augmentation
from model.data.manifest import Row, digest
from model.engines.registry import decide, state_engine, tower_engine
from model.errors import ModelError
from model.hardware import Runtime
from model.tower.sources import Backbone
from model.tower.tokens import TowerSpec, hidden_states, normalise, pool_tokens
from model.training.shards import Shards, stamps_of, unchanged
from model.views.plan import ViewPlan

log = logging.getLogger(__name__)

_BATCH = 16
_SAVED = 64  # images between two saves: a minute or two of two CPU cores

# Canvases uint8 [n, 3, S, S] -> tokens float16 [n, reads, width], kept states float16 or None.
Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]


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
    plan: ViewPlan,
    kinds: Sequence[int],
    how: Augmentation,
    cache: Path,
    *,
    spec: TowerSpec,
    runtime: Runtime,
    frozen: int | None = None,
    pool_frozen: bool = False,
) -> Features:
    """Compute the features of every copy of every image, or read them back.

    They are read back where nothing that decides them has changed; a file that is gone has not.
    An unreadable or too small image is skipped and counted. What was killed goes on.

    Args:
        rows: the images.
        backbone: the tower; a copy of it runs.
        plan: what of a copy is looked at.
        kinds: the copies of an image.
        how: the degraded copies' distribution.
        cache: folder of what was computed before.
        spec: every block up to its depth is read; what was computed before may be deeper.
        runtime: where and how the tower runs. Half precision changes tokens by about 1 %; int8
            gives no hidden states.
        frozen: the block, from 1, after which all tokens are kept.
        pool_frozen: pool the tokens that are kept, of a tower that is not pooled.

    Raises:
        ModelError: no image could be used, or an engine that cannot be had for this.
    """
    runtime = decide(runtime, None)
    key = (
        f"{digest(rows)}{backbone.sha256}{plan!r}{tuple(kinds)}{how!r}{frozen}{runtime.dtype}"
        f"{runtime.engine}{runtime.precision}{spec.pooled_after}{pool_frozen}"
    )
    stem = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    path, hidden_path = stem.with_suffix(".safetensors"), stem.with_suffix(".hidden")
    width = backbone.visual.positional_embedding.shape[1]
    stamps = stamps_of(rows)
    columns = load_file(path) if path.exists() else {}
    if (
        not unchanged(stamps, columns.pop("stamps", None))
        or columns["tokens"].shape[1] < spec.depth
        or (frozen is not None and not hidden_path.exists())
    ):
        every = replace(spec, reads=tuple(range(1, spec.depth + 1)))
        run = _runner(backbone.visual, every, runtime, frozen, pool_frozen=pool_frozen)
        shards = Shards(stem.with_suffix(".parts"), stamps, (spec.depth, width))
        images = canvases_ahead(rows[shards.images :], plan, kinds, how)
        columns = _extract(images, len(rows), run, shards)
        part = shards.folder / "all.part"
        save_file(columns | {"stamps": stamps}, part)
        # Replaced whole, other runs may read them; the tokens last: where they are, all is there.
        path.unlink(missing_ok=True)
        if frozen is not None:
            shards.hidden.replace(hidden_path)
        part.replace(path)
        shutil.rmtree(shards.folder)
    hidden = None if frozen is None else _mapped(hidden_path, len(columns["row"]), width)
    return Features(**columns, hidden=hidden)


def _mapped(path: Path, count: int, width: int) -> Tensor:
    """The file as float16 [count, L, width], memory-mapped."""
    length = path.stat().st_size // (torch.half.itemsize * count * width)
    shape = (count, length, width)
    flat = torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.float16)
    return flat.view(shape)


def _runner(
    visual: VisionTransformer,
    spec: TowerSpec,
    runtime: Runtime,
    frozen: int | None,
    *,
    pool_frozen: bool,
) -> Run:
    """Make what gives tokens and hidden states of canvases; see `tower_features`."""
    if runtime.engine != "torch":
        if frozen is None:
            tower = tower_engine(runtime, visual, spec)
            return lambda canvases: (tower(canvases).half(), None)
        both = state_engine(runtime, visual, spec, frozen, pool_kept=pool_frozen)

        def halves(canvases: Tensor) -> tuple[Tensor, Tensor]:
            tokens, kept = both(canvases)
            return tokens.half(), kept.half()

        return halves
    visual = copy.deepcopy(visual).to(device=runtime.device, dtype=runtime.dtype)

    @torch.inference_mode()
    def run(canvases: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = normalise(canvases.to(runtime.device))
        states = hidden_states(visual, pixels.to(runtime.dtype), spec)
        tokens = torch.stack([visual.ln_post(h[:, 0]) for h in states], dim=1).half().cpu()
        if frozen is None:
            return tokens, None
        kept = pool_tokens(states[frozen - 1]) if pool_frozen else states[frozen - 1]
        return tokens, kept.half().cpu()

    return run


def _extract(
    images: Iterator[list[Canvas] | None], count: int, run: Run, shards: Shards
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
    columns = shards.all()
    used = set(columns["row"].tolist())
    if not used:
        raise ModelError("no image could be read")
    before = start - sum(row < start for row in used)
    if before:  # those after it, `canvases_ahead` counts
        log.warning("%d of the first %d images, done before, cannot be used", before, start)
    return columns
