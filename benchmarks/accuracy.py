"""Score a manifest's images through HTTP, clean and equalised, with and without patch selection.

    python benchmarks/accuracy.py MANIFEST [--split val] [--checkpoint FILE] [--json FILE]

Starts a real server per row of the table and posts every image to it. Rows: the checkpoint; the
same one reading one window, at the centre, instead of selected ones. Intervals are 95 % bootstraps
over generators and repositories of photographs. The checkpoint is by default the twin of the
shipped one that was trained without the split `val`.
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
from typing import Any

import httpx
import numpy as np
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.local import local_server
from model.checkpoint import Verdict
from model.evaluation.conditions import CONDITIONS, name_rng
from model.evaluation.evaluate import Scored
from model.evaluation.figures import consistency, overall, per_group
from model.pixels import read_rgb
from model.training.manifest import Row, read_dataset

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "weights" / "nsnet-vit-b-16-train.safetensors"
CLIENTS = 4


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
    with safe_open(checkpoint, "pt") as file:
        metadata = json.loads(file.metadata()["nsnet"])
    patches = metadata["network"]["patches"]
    patches.update(candidates=1, canvases=1 + patches.get("whole", False))
    path = folder / "centre.safetensors"
    save_file(load_file(checkpoint), path, metadata={"nsnet": json.dumps(metadata)})
    return path


def upload(path: Path, condition: str) -> bytes:
    """What is posted: the file itself, or the pixels of its copy under another condition."""
    if condition == "clean":
        return path.read_bytes()
    buffer = io.BytesIO()
    CONDITIONS[condition](read_rgb(path), name_rng(path.name)).save(buffer, "PNG")
    return buffer.getvalue()


def score(client: httpx.Client, data: bytes) -> tuple[float, str]:
    """(score, verdict); (NaN, error code) where the service refused the image."""
    answer = client.post("/detect", files={"file": data})
    if answer.status_code != 200:
        return float("nan"), answer.json()["code"]
    body = answer.json()
    return body["score"], body["verdict"]


def through_http(client: httpx.Client, rows: list[Row], condition: str) -> Scored:
    """Score every image under one condition."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        work = pool.map(lambda row: score(client, upload(row.path, condition)), rows)
        results = list(track(work, total=len(rows), description=condition))
    answered = [(row, *found) for row, found in zip(rows, results, strict=True)
                if np.isfinite(found[0])]  # fmt: skip
    return Scored(
        rows=[row for row, _, _ in answered],
        labels=np.array([row.label for row, _, _ in answered]),
        logits=np.full(len(answered), np.nan),  # the service does not tell them
        scores=np.array([value for _, value, _ in answered]),
        verdicts=[Verdict(verdict) for _, _, verdict in answered],
        skipped=dict(Counter(code for value, code in results if not np.isfinite(value))),
    )


def measure(client: httpx.Client, rows: list[Row]) -> dict[str, Any]:
    """Figures of one server over both conditions."""
    scored = {name: through_http(client, rows, name) for name in ("clean", "equalised")}
    found: dict[str, Any] = {
        name: overall(part) | {"groups": per_group(part)} for name, part in scored.items()
    }
    return found | {"consistency": consistency(scored["clean"], scored["equalised"])}


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT)
    parser.add_argument("--only", action="store_true", help="leave the second row out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = read_dataset(chosen.manifest, chosen.split)
    with tempfile.TemporaryDirectory() as folder:
        table = {"NS-Net": chosen.checkpoint}
        if not chosen.only:
            table["without patch selection"] = without_selection(chosen.checkpoint, Path(folder))
        results = {}
        for name, checkpoint in table.items():
            print(name, flush=True)
            with server(checkpoint) as client:
                results[name] = measure(client, rows)
    ai = sum(row.label for row in rows)
    print(f"\n{ai} AI images, {len(rows) - ai} photographs, split {chosen.split!r}\n")
    print("| | condition | AUC (95 %) | balanced acc. at 0.5 | recall at 1 % FPR | real called AI "
          "| AI called AI | AI called real |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name, found in results.items():
        for condition in ("clean", "equalised"):
            f = found[condition]
            low, high = f["auc_95"]
            ai_called = f["verdicts"]["ai"]
            print(f"| {name} | {condition} | {f['auc']:.3f} ({low:.3f}-{high:.3f}) "
                  f"| {f['acc']:.3f} | {f['recall_at_1_percent_fpr']:.3f} "
                  f"| {f['real_called_ai']:.4f} | {ai_called['ai_generated']:.3f} "
                  f"| {ai_called['real']:.3f} |")  # fmt: skip
    print("\nverdicts that change from clean to equalised:",
          json.dumps({name: found["consistency"] for name, found in results.items()}))  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
