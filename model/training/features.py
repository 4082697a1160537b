"""What a frozen tower gives needs no gradient: it is computed once and kept on disk.

All block tokens are kept, so that blocks, ranks and heads can be compared without running the
tower again; where adapters are fitted to the upper blocks, also every token after the last frozen
one. On a CPU this is the longest part of a training run: killed, it goes on where it was last saved
(`Store`), and images that come later are all that is computed then.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from open_clip.transformer import VisionTransformer
from rich.progress import track
from torch import Tensor

from model.data.copies import NO_PIXELS, Canvas, Copy, canvases_ahead
from model.data.degrade import Augmentation
from model.data.manifest import Row
from model.engines.registry import decide, state_engine, tower_engine
from model.errors import ModelError
from model.hardware import Runtime
from model.tower.sources import Backbone
from model.tower.tokens import TowerSpec, hidden_states, normalise, pool_tokens
from model.training.store import Known, Store
from model.views.plan import ViewPlan

log = logging.getLogger(__name__)

_BATCH = 16
_SAVED = 64  # images between two saves: a minute of two CPU cores

# Canvases uint8 [n, 3, S, S] -> tokens float16 [n, reads, width], kept states float16 or None.
Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class Features:
    """What the tower gave for canvases.

    Attributes:
        tokens: float16 [n, blocks, width], ln_post of the CLS token after each block. The last
            block's, times the tower's projection, is the joint-space feature.
        row: int64 [n], the manifest row.
        kind: int64 [n], see `Copy`.
        quality: float32 [n, 3], of the copy, see `Quality`.
        hidden: float16 [m, L, width], all tokens after the last frozen block, as the next one reads
            them, in a memory-mapped file; None where none was asked for.
        place: int64 [n], each canvas's among the hidden states.
    """

    tokens: Tensor
    row: Tensor
    kind: Tensor
    quality: Tensor
    place: Tensor
    hidden: Tensor | None = None


def tower_features(
    rows: Sequence[Row],
    backbone: Backbone,
    plan: ViewPlan,
    kinds: Sequence[Copy],
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
    An unreadable or too small image is skipped and counted. What was killed goes on; of a longer
    list, only what is new is computed.

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
        f"{backbone.sha256}{plan!r}{[int(kind) for kind in kinds]}{how!r}{frozen}{runtime.dtype}"
        f"{runtime.engine}{runtime.precision}{spec.pooled_after}{pool_frozen}"
    )
    folder = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    width = backbone.visual.positional_embedding.shape[1]
    store = Store(folder, spec.depth, width)
    images = Known.of(rows)
    with store.adding():
        missing = store.missing(images)
        if missing:
            every = replace(spec, reads=tuple(range(1, spec.depth + 1)))
            run = _runner(backbone.visual, every, runtime, frozen, pool_frozen=pool_frozen)
            todo = [rows[index] for index in missing]
            _extract(canvases_ahead(todo, plan, kinds, how), Known.of(todo), run, store)
        columns = store.read(images)
    if not columns:
        raise ModelError("no image could be read")
    return Features(**columns, hidden=None if frozen is None else store.states())


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


def _extract(images: Iterator[list[Canvas] | None], known: Known, run: Run, store: Store) -> None:
    """Add them all to the store, a few at a time."""
    pending: list[Canvas] = []
    tokens: list[Tensor] = []
    done: list[Canvas] = []  # without their pixels
    count, start = len(known.ids), 0
    todo = track(images, total=count, description="features")
    for end, canvases in enumerate(todo, 1):
        pending += canvases or []
        save = end % _SAVED == 0 or end == count
        while len(pending) >= _BATCH or (save and pending):
            batch, pending = pending[:_BATCH], pending[_BATCH:]
            given, hidden = run(torch.stack([canvas.pixels for canvas in batch]))
            tokens.append(given)
            done += [replace(canvas, pixels=NO_PIXELS, row=canvas.row - start) for canvas in batch]
            if hidden is not None:
                store.add_hidden(hidden)
        if save:
            store.add(Known(known.ids[start:end], known.stamps[start:end]), tokens, done)
            tokens, done, start = [], [], end
