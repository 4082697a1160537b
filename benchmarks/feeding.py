"""How far this machine can feed a GPU: the service as it is, with a tower that sleeps.

    python benchmarks/feeding.py [--sleep-ms 0.1] [--side 512] [--clients 16] [--seconds 15]

Decoding, views, batches, head and HTTP are the real ones; only the tower's forward is replaced by
a sleep of so many milliseconds a canvas, as a GPU's is to the host. Every canvas is looked at.
What the sleeping tower does alone, in batches, is what a host without end could reach; each way of
serving it is a share of that. `fake` serves one sleeping tower, for the other commands and for you.
All share this machine's cores with the clients.

On a GPU, `--sleep-ms 0` runs the real tower instead.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from app.local import local
from app.main import serve
from app.settings import Settings, load_settings
from benchmarks.load import Closed, Target, apply_load, synthetic
from benchmarks.local import local_server
from model.checkpoint import build_model, read_checkpoint
from model.detector import DEFAULT_CHECKPOINT, Detector
from model.engines.base import Engine
from model.hardware import Runtime
from model.tower.sources import load_backbone

_SLEEP = "FEEDING_SLEEP_MS"
_BATCH = 32
_LIMITS: dict[str, Any] = {"max_queue": "512", "max_batch": str(_BATCH), "provenance": "false"}


class Sleeping(Engine):
    """A tower that takes its time, and no core.

    Args:
        tokens: float [1, reads, width], what it says of every canvas.
        sleep_ms: milliseconds a canvas.
    """

    name = "sleeping"
    precision = "none"

    def __init__(self, tokens: Tensor, sleep_ms: float) -> None:
        self._tokens = tokens
        self._sleep_s = sleep_ms / 1000

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        time.sleep(self._sleep_s * len(canvases))
        return self._tokens.expand(len(canvases), -1, -1)


def load_sleeping(settings: Settings) -> Detector:
    """The default checkpoint's detector, whose tower sleeps."""
    stored = read_checkpoint(settings.checkpoint or DEFAULT_CHECKPOINT)
    network = stored.metadata.network
    tower = load_backbone(network.backbone, path=settings.backbone, depth=network.depth)
    model = build_model(stored, tower.visual)
    reads = len(network.blocks) or 1
    width = tower.visual.positional_embedding.shape[1]
    model.release_tower()
    tokens = torch.randn(1, reads, width, generator=torch.Generator().manual_seed(0))
    engine = Sleeping(tokens, float(os.environ.get(_SLEEP, "0.1")))
    runtime = Runtime.resolve("cpu", threads=settings.threads())
    return Detector(model, engine, stored, runtime, "all")


def main() -> None:
    """Print a row for each way of serving."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = ("compare", "fake", "fleet")
    parser.add_argument("command", nargs="?", choices=commands, default="compare")
    parser.add_argument("--sleep-ms", type=float, default=0.1)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--decoding", type=int, default=1, help="replicas")
    parser.add_argument("--scoring", type=int, default=1, help="replicas")
    chosen = parser.parse_args()
    if chosen.command == "fake":
        sys.exit(serve(load_settings(), local(load_sleeping)))
    if chosen.command == "fleet":
        _serve_fleet(chosen.decoding, chosen.scoring)
        return
    os.environ[_SLEEP] = str(chosen.sleep_ms)
    alone = _alone(chosen.seconds)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {chosen.clients} clients, JPEGs of {chosen.side} px")
    print("| | images/s | images/s a core | of the tower's own | cores busy beside the clients |")
    print("|---|---:|---:|---:|---:|")
    print(f"| the sleeping tower alone | {alone:.0f} | | 100 % | |")
    images = synthetic(8, chosen.side)
    replicas = [f"--decoding={chosen.decoding}", f"--scoring={chosen.scoring}"]
    for name, arguments in {"nsnet serve": ["fake"], "Ray Serve": ["fleet", *replicas]}.items():
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        with local_server(command, **_LIMITS) as server:
            target, traffic = Target(server.url, images), Closed(chosen.clients)
            apply_load(target, traffic, seconds=1, warmup=4)
            before = _busy_s()
            load = apply_load(target, traffic, seconds=chosen.seconds, warmup=0)
            busy = (_busy_s() - before - load.generator_cpu_s) / load.seconds
        rate, failed = load.images_per_s, sum(load.statuses.values()) - load.statuses["200"]
        note = f", {failed} failed" if failed else ""
        print(
            f"| {name}{note} | {rate:.1f} | {rate / cores:.1f} | {rate / alone:.1%} | {busy:.2f} |"
        )


def _alone(seconds: float) -> float:
    """Images a second of the tower, given batches of canvases that are already cut."""
    detector = load_sleeping(load_settings())
    look = detector.look(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    done, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds / 3:
        detector.submit([look] * _BATCH).result()
        done += _BATCH
    return done / took


def _busy_s() -> float:
    """CPU seconds of this machine so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.softirq + times.irq)


def _serve_fleet(decoding: int, scoring: int) -> None:
    """Serve by Ray until SIGTERM."""
    import ray
    from ray import serve as ray_serve

    from app.fleet.serve import application

    settings = load_settings()
    ray.init("local", num_cpus=64, include_dashboard=False, log_to_driver=False)
    try:
        ray_serve.start(
            http_options={"host": "127.0.0.1", "port": settings.port},
            logging_config={"enable_access_log": False},
        )
        ray_serve.run(
            application(
                settings,
                load_sleeping,
                decoding={"num_replicas": decoding},
                scoring={"num_replicas": scoring},
            )
        )
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    finally:
        ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [])
    main()
