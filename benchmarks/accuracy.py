"""Score a manifest's images through HTTP, clean and equalised, beside two ablations.

    python benchmarks/accuracy.py MANIFEST [--split val] [--no-projector CHECKPOINT] [--json FILE]

Starts a real server per row of the table and posts every image to it. Rows: the checkpoint; the
same training without the projector (`nsnet train ... --rank 0`); the same checkpoint without patch
selection (one centre window). Intervals are 95 % bootstraps over whole groups.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.evaluation.metrics import (
    auc,
    balanced_accuracy,
    bootstrap,
    calibration_error,
    recall_at_fpr,
)
from model.pixels import to_rgb
from model.training.augment import equalise

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "weights" / "nsnet-vit-b-16.safetensors"
NO_PROJECTOR = ROOT / "weights" / "no-projector.safetensors"
CLIENTS = 4


@contextlib.contextmanager
def server(checkpoint: Path) -> Iterator[httpx.Client]:
    """A real server on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "NSNET_PORT": str(port), "NSNET_HOST": "127.0.0.1", "NSNET_CHECKPOINT": str(checkpoint),
        "NSNET_CACHE_SIZE": "0", "NSNET_LOG_LEVEL": "warning", "NSNET_DEADLINE_S": "120",
    }  # fmt: skip
    command = [sys.executable, "-m", "cli.main", "serve"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            start = time.monotonic()
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() - start > 120:
                    raise SystemExit("the server did not become ready")
                time.sleep(0.1)
            print(f"  ready after {time.monotonic() - start:.1f} s", flush=True)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def without_selection(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint, reading one centre window."""
    with safe_open(checkpoint, "pt") as file:
        metadata = json.loads(file.metadata()["nsnet"])
    metadata["network"]["patches"].update(candidates=1, canvases=1)
    path = folder / "centre.safetensors"
    save_file(load_file(checkpoint), path, metadata={"nsnet": json.dumps(metadata)})
    return path


def equalised(path: Path) -> bytes:
    """The equalised copy's bytes, reproducible by file name."""
    with Image.open(path) as file:
        image = Image.fromarray(to_rgb(file).pixels)
    rng = np.random.default_rng(list(path.name.encode()))
    buffer = io.BytesIO()
    # equalise() ends with JPEG 75; a PNG of its result carries those very pixels.
    equalise(image, rng).save(buffer, "PNG")
    return buffer.getvalue()


def score(client: httpx.Client, data: bytes) -> tuple[float, str]:
    """(score, verdict); NaN where the service refused the image."""
    answer = client.post("/detect", files={"file": data})
    if answer.status_code != 200:
        return float("nan"), answer.json()["code"]
    body = answer.json()
    return body["score"], body["verdict"]


def measure(client: httpx.Client, rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    """Figures of one server over both conditions."""
    labels = np.array([int(row["label"] == "ai") for row in rows])
    groups = [row["group"] for row in rows]
    found: dict[str, Any] = {}
    verdicts = {}
    for condition in ("clean", "equalised"):

        def work(row: dict[str, str], condition: str = condition) -> tuple[float, str]:
            path = folder / row["path"]
            return score(client, path.read_bytes() if condition == "clean" else equalised(path))

        with ThreadPoolExecutor(CLIENTS) as pool:
            results = list(track(pool.map(work, rows), total=len(rows), description=condition))
        scores = np.array([s for s, _ in results])
        verdicts[condition] = [v for _, v in results]
        ok = np.isfinite(scores)
        y, s, g = labels[ok], scores[ok], [x for x, keep in zip(groups, ok, strict=True) if keep]
        low, high = bootstrap(y, s, auc, groups=g)
        called = np.array(verdicts[condition])[ok]
        found[condition] = {
            "images": int(ok.sum()), "refused": int((~ok).sum()),
            "auc": auc(y, s), "auc_low": low, "auc_high": high,
            "balanced_accuracy_at_0.5": balanced_accuracy(y, s, 0.5),
            "recall_at_1_percent_fpr": recall_at_fpr(y, s, 0.01),
            "real_called_ai": float((called[y == 0] == "ai_generated").mean()),
            "ai_called_ai": float((called[y == 1] == "ai_generated").mean()),
            "ai_called_real": float((called[y == 1] == "real").mean()),
            "real_called_real": float((called[y == 0] == "real").mean()),
            "ece": calibration_error(y, s),
            "per_group": {
                f"{'ai' if label else 'real'}/{name}": float(np.median(s[[x == name for x in g]]))
                for label, name in sorted(set(zip(y.tolist(), g, strict=True)))
            },
        }  # fmt: skip
    pairs = list(zip(verdicts["clean"], verdicts["equalised"], strict=True))
    found["flips"] = {
        "real_to_ai_or_back": float(np.mean([{*p} == {"real", "ai_generated"} for p in pairs])),
        "to_or_from_uncertain": float(
            np.mean([a != b and "uncertain" in (a, b) for a, b in pairs])
        ),
    }
    return found


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT)
    parser.add_argument(
        "--no-projector", type=Path, default=NO_PROJECTOR, help="checkpoint trained with --rank 0"
    )
    parser.add_argument("--only", action="store_true", help="leave the ablations out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with chosen.manifest.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r.get("split", chosen.split) == chosen.split]
    with tempfile.TemporaryDirectory() as folder:
        table = {"NS-Net": chosen.checkpoint}
        if not chosen.only:
            table["without projector"] = chosen.no_projector
            table["without patch selection"] = without_selection(chosen.checkpoint, Path(folder))
        results = {}
        for name, checkpoint in table.items():
            print(name, flush=True)
            with server(checkpoint) as client:
                results[name] = measure(client, rows, chosen.manifest.parent)
    ai = sum(row["label"] == "ai" for row in rows)
    print(f"\n{ai} AI images, {len(rows) - ai} photographs, split {chosen.split!r}\n")
    print("| | condition | AUC (95 %) | balanced acc. at 0.5 | recall at 1 % FPR | real called AI "
          "| AI called AI | AI called real |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name, found in results.items():
        for condition in ("clean", "equalised"):
            f = found[condition]
            interval = f"({f['auc_low']:.3f}-{f['auc_high']:.3f})"
            print(f"| {name} | {condition} | {f['auc']:.3f} {interval} "
                  f"| {f['balanced_accuracy_at_0.5']:.3f} | {f['recall_at_1_percent_fpr']:.3f} "
                  f"| {f['real_called_ai']:.4f} | {f['ai_called_ai']:.3f} "
                  f"| {f['ai_called_real']:.3f} |")  # fmt: skip
    print("\nverdicts that change from clean to equalised:",
          json.dumps({name: found["flips"] for name, found in results.items()}))  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
