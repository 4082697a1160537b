"""Score a manifest's images through HTTP, clean and equalised, with and without patch selection.

    python benchmarks/accuracy.py MANIFEST [--split val] [--checkpoint FILE] [--json FILE]

Starts a real server per row of the table and posts every image to it. Rows: the checkpoint; the
same one reading one window, at the centre, instead of selected ones. Intervals are 95 % bootstraps
over whole owners. The checkpoint is by default the twin of the shipped one that was trained without
the split `val`.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks import TWIN
from benchmarks.local import local_server
from model.checkpoint import read_checkpoint, write_checkpoint
from model.data.degrade import CONDITIONS, rng_of
from model.data.manifest import Row, read_dataset
from model.errors import ImageError
from model.figures.predictions import Predictions
from model.figures.tables import (
    consistency,
    count_images,
    markdown,
    overall,
    overall_table,
    verdicts_by_group,
)
from model.images import read_picture
from model.verdicts import Reason, Verdict

CLIENTS = 4
SCORED = ("clean", "equalised")


class Answer(NamedTuple):
    """What the service said of one image; NaN and the error's code where it refused it."""

    score: float
    verdict: str
    low_quality: bool = False


@contextlib.contextmanager
def server(checkpoint: Path) -> Iterator[httpx.Client]:
    """A real server, ready."""
    with (
        local_server(checkpoint=str(checkpoint), deadline_s="120") as local,
        httpx.Client(base_url=local.url, timeout=120) as client,
    ):
        print(f"  ready after {local.ready_s:.1f} s", flush=True)
        yield client


def without_selection(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint, reading one window, at the centre."""
    stored = read_checkpoint(checkpoint)
    views = stored.metadata.views
    centre = views.patches.model_copy(update={"candidates": 1, "canvases": 1})
    metadata = stored.metadata.model_copy(
        update={"views": views.model_copy(update={"patches": centre})}
    )
    path = folder / "centre.safetensors"
    write_checkpoint(path, stored.tensors, metadata)
    return path


def upload(path: Path, condition: str) -> bytes:
    """What is posted: the file itself, or the pixels of its copy under another condition."""
    data = path.read_bytes()
    if condition == "clean":
        return data
    try:
        pixels = read_picture(path).pixels
    except ImageError:
        return data  # for the service to refuse
    buffer = io.BytesIO()
    CONDITIONS[condition](Image.fromarray(pixels), rng_of(path.name)).save(buffer, "PNG")
    return buffer.getvalue()


def score(client: httpx.Client, data: bytes) -> Answer:
    """Post one image."""
    answer = client.post("/detect", files={"file": data})
    if answer.status_code != 200:
        return Answer(float("nan"), answer.json()["code"])
    body = answer.json()
    return Answer(body["score"], body["verdict"], Reason.LOW_QUALITY in body["warnings"])


def through_http(client: httpx.Client, rows: list[Row], condition: str) -> Predictions:
    """Score every image under one condition."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        work = pool.map(lambda row: score(client, upload(row.path, condition)), rows)
        answers = list(track(work, total=len(rows), description=condition))
    refused = Counter(answer.verdict for answer in answers if not np.isfinite(answer.score))
    pairs = [pair for pair in zip(rows, answers, strict=True) if np.isfinite(pair[1].score)]
    return Predictions(
        rows=[row for row, _ in pairs],
        labels=np.array([row.label for row, _ in pairs], dtype=np.int64),
        logits=np.full(len(pairs), np.nan),  # the service does not tell them
        scores=np.array([answer.score for _, answer in pairs], dtype=np.float64),
        verdicts=[Verdict(answer.verdict) for _, answer in pairs],
        low_quality=np.array([answer.low_quality for _, answer in pairs], dtype=np.bool_),
        skipped=dict(refused),
    )


def measure(client: httpx.Client, rows: list[Row]) -> dict[str, Any]:
    """Figures of one server over both conditions."""
    predictions = {name: through_http(client, rows, name) for name in SCORED}
    figures: dict[str, Any] = {
        name: overall(part) | {"groups": verdicts_by_group(part)}
        for name, part in predictions.items()
    }
    return figures | {"consistency": consistency(predictions["clean"], predictions["equalised"])}


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", type=Path, default=TWIN)
    parser.add_argument("--only", action="store_true", help="leave the second row out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = read_dataset(chosen.manifest, chosen.split)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {"NS-Net": chosen.checkpoint}
        if not chosen.only:
            checkpoints["without patch selection"] = without_selection(
                chosen.checkpoint, Path(folder)
            )
        results = {}
        for name, checkpoint in checkpoints.items():
            print(name, flush=True)
            with server(checkpoint) as client:
                results[name] = measure(client, rows)
    labels, made = np.array([[row.label, row.made] for row in rows]).T
    images = count_images(labels, made.astype(np.bool_))
    print(
        f"\n{images['ai']} AI images, {images['real']} photographs, {images['made']} "
        f"made without a camera, split {chosen.split!r}; in percent\n"
    )
    header, cells = overall_table(
        {
            f"{name}, {condition}": figures[condition]
            for name, figures in results.items()
            for condition in SCORED
        }
    )
    print(markdown(header, cells))
    changes = {name: figures["consistency"] for name, figures in results.items()}
    print("\nverdicts that change from clean to equalised:", json.dumps(changes))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
