"""What a frozen tower gives needs no gradient: it is computed once and kept on disk.

All block tokens are kept, so that blocks, ranks and heads can be compared without running the
tower again; with LoRA on the upper blocks, also every token after the last frozen one.
"""

import contextlib
import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbone import Backbone
from model.engines import tower_engine
from model.errors import ModelError
from model.nsnet import hidden_states, normalise, pool_tokens
from model.patches import PatchRule
from model.training.augment import Augmentation
from model.training.copies import Canvas, canvases_ahead
from model.training.manifest import Row, digest

log = logging.getLogger(__name__)

_BATCH = 16


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
    An unreadable or too small image is skipped and counted.

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
        engine: what runs it, see `engines.make_engine`. Hidden states come from torch alone.

    Raises:
        ModelError: no image could be used, or an engine that cannot be had for this.
    """
    if engine != "torch" and frozen is not None:
        raise ModelError("adapters learn from what torch computes: leave --engine at torch")
    key = (
        f"{digest(rows)}{backbone.sha256}{rule!r}{tuple(kinds)}{how!r}{frozen}{dtype}{engine}"
        f"{pooled_after}{pool_hidden}"
    )
    stem = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    path, hidden_path = stem.with_suffix(".safetensors"), stem.with_suffix(".hidden")
    part, hidden_part = stem.with_suffix(".part"), stem.with_suffix(".hidden.part")
    visual = backbone.visual
    stamps = _stamps(rows)
    found = load_file(path) if path.exists() else {}
    if (
        not _unchanged(stamps, found.pop("stamps", None))
        or found["tokens"].shape[1] < depth
        or (frozen is not None and not hidden_path.exists())
    ):
        cache.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if engine == "torch":
                visual = copy.deepcopy(visual).to(device=device, dtype=dtype)
            else:
                tower = tower_engine(
                    engine, visual, range(1, depth + 1), device=torch.device(device), dtype=dtype,
                    threads=torch.get_num_threads(), pooled_after=pooled_after,
                )  # fmt: skip
            file = stack.enter_context(hidden_part.open("wb")) if frozen else None

            @torch.inference_mode()
            def run(canvases: Sequence[Canvas]) -> Tensor:
                pixels = torch.stack([c.pixels for c in canvases])
                if engine != "torch":
                    return tower(pixels).half()
                pixels = normalise(pixels.to(device))
                states = hidden_states(visual, pixels.to(dtype), range(1, depth + 1), pooled_after)
                if file is not None and frozen is not None:
                    kept = pool_tokens(states[frozen - 1]) if pool_hidden else states[frozen - 1]
                    file.write(kept.half().cpu().numpy().tobytes())
                tokens = torch.stack([visual.ln_post(h[:, 0]) for h in states], dim=1)
                return tokens.half().cpu()

            found = _extract(canvases_ahead(rows, rule, kinds, how), len(rows), run)
        save_file(found | {"stamps": stamps}, part)
        # Replaced whole, other runs may read them; the tokens last: where they are, all is there.
        path.unlink(missing_ok=True)
        if frozen is not None:
            hidden_part.replace(hidden_path)
        part.replace(path)
    hidden = None
    if frozen is not None:
        count, width = len(found["row"]), visual.positional_embedding.shape[1]
        length = hidden_path.stat().st_size // (torch.half.itemsize * count * width)
        shape = (count, length, width)
        hidden = torch.from_file(
            str(hidden_path), shared=False, size=math.prod(shape), dtype=torch.float16
        ).view(shape)
    return Features(**found, hidden=hidden)


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


def _extract(
    images: Iterable[list[Canvas] | None], count: int, run: Callable[[Sequence[Canvas]], Tensor]
) -> dict[str, Tensor]:
    tokens: list[Tensor] = []
    places: list[tuple[int, int]] = []  # row and kind; the pixels are let go

    def flush(canvases: Sequence[Canvas]) -> None:
        tokens.append(run(canvases))
        places.extend((canvas.row, canvas.kind) for canvas in canvases)

    pending: list[Canvas] = []
    skipped = 0
    for found in track(images, total=count, description="features"):
        skipped += found is None
        pending += found or []
        while len(pending) >= _BATCH:
            flush(pending[:_BATCH])
            del pending[:_BATCH]
    if pending:
        flush(pending)
    if skipped:
        log.warning("%d of %d images were unreadable or too small", skipped, count)
    if not tokens:
        raise ModelError("no image could be read")
    row, kind = torch.tensor(places).T.contiguous()
    return {"tokens": torch.cat(tokens), "row": row.clone(), "kind": kind.clone()}
