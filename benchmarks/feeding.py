"""How far this machine can feed a GPU: the service as it is, before a device that sleeps.

    python benchmarks/feeding.py [--sleep-ms 0.1] [--side 512] [--clients 16] [--seconds 15]

HTTP, decoding, queue and batches are the real ones. What a GPU would do is replaced: its forward by
a sleep of so many milliseconds a canvas; the views that it would cut by the same ones for all,
unless they are cut here. What the sleeping device does alone, in batches, is what a host without
end could reach: each way of serving it is a share of that. Clients share the cores.

`one` and `fleet` serve it, for this program and for you.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.local import local
from app.main import serve
from app.settings import Settings, load_settings
from benchmarks.load import Closed, Target, apply_load, synthetic
from benchmarks.local import local_server
from model.checkpoint import read_checkpoint
from model.detector import DEFAULT_CHECKPOINT, Detector, Look
from model.engines.base import Engine
from model.hardware import Runtime
from model.network import NSNet

_SLEEP_MS, _CUTS = "FEEDING_SLEEP_MS", "FEEDING_CUTS"
_BATCH = 32
_LIMITS: dict[str, Any] = {
    "max_queue": "512",
    "max_batch": str(_BATCH),
    "provenance": "false",
    "allow_anonymous": "true",
}


class Sleeping(Engine):
    """A tower and a head that take their time, and no core.

    Args:
        sleep_ms: milliseconds a canvas.
    """

    name = "sleeping"
    precision = "none"

    def __init__(self, sleep_ms: float) -> None:
        self._sleep_s = sleep_ms / 1000

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`; these are logits already."""
        time.sleep(self._sleep_s * len(canvases))
        return torch.zeros(len(canvases))

    def logits(self, tokens: Tensor) -> Tensor:
        """See `NSNet`."""
        return tokens


class SleepingDetector(Detector):
    """Its device sleeps; it cuts views, or has the same ones of every picture."""

    def __init__(self, settings: Settings) -> None:
        stored = read_checkpoint(settings.checkpoint or DEFAULT_CHECKPOINT)
        engine = Sleeping(float(os.environ[_SLEEP_MS]))
        network = cast(NSNet, engine)
        super().__init__(network, engine, stored, Runtime.resolve("cpu"), "all")
        self._same: Look | None = None
        if os.environ[_CUTS] == "0":
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
            self._same = self.look(noise)  # with as many views as there can be

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        """See `Detector`."""
        return self._same or super().look(pixels, explain=explain)


def main() -> None:
    """Print a row for each way of serving."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = ("compare", "one", "fleet")
    parser.add_argument("command", nargs="?", choices=commands, default="compare")
    parser.add_argument("--sleep-ms", type=float, default=0.1)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--decoding", type=int, default=1, help="replicas")
    parser.add_argument("--scoring", type=int, default=1, help="replicas")
    chosen = parser.parse_args()
    if chosen.command == "one":
        sys.exit(serve(load_settings(), local(SleepingDetector)))
    if chosen.command == "fleet":
        _serve_fleet(chosen.decoding, chosen.scoring)
        return
    os.environ |= {_SLEEP_MS: str(chosen.sleep_ms), _CUTS: "0"}
    alone, cores = _alone(chosen.seconds), len(os.sched_getaffinity(0))
    print(f"{cores} cores, {chosen.clients} clients, JPEGs of {chosen.side} px")
    print("| | images/s | images/s a core | of the device's own | cores busy beside the clients |")
    print("|---|---:|---:|---:|---:|")
    print(f"| the sleeping device alone | {alone:.0f} | | 100 % | |")
    fleet = ["fleet", f"--decoding={chosen.decoding}", f"--scoring={chosen.scoring}"]
    ways = {
        "`nsnet serve`": (["one"], "0"),
        "the same, views cut by the cores": (["one"], "1"),
        "Ray Serve": (fleet, "0"),
    }
    images = synthetic(8, chosen.side)
    for name, (arguments, cuts) in ways.items():
        os.environ[_CUTS] = cuts
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        with local_server(command, **_LIMITS) as server:
            target, traffic = Target(server.url, images), Closed(chosen.clients)
            apply_load(target, traffic, seconds=1, warmup=4)
            before = _busy_s()
            load = apply_load(target, traffic, seconds=chosen.seconds, warmup=0)
            busy = (_busy_s() - before - load.generator_cpu_s) / load.seconds
        rate, failed = load.images_per_s, sum(load.statuses.values()) - load.statuses["200"]
        note = f", {failed} failed" if failed else ""
        shares = f"{rate:.1f} | {rate / cores:.1f} | {rate / alone:.1%} | {busy:.2f}"
        print(f"| {name}{note} | {shares} |", flush=True)


def _alone(seconds: float) -> float:
    """Images a second of the device, given batches of canvases."""
    detector = SleepingDetector(load_settings())
    look = detector.look(np.zeros((64, 64, 3), np.uint8))
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
    # Ray starts as many processes as there are CPUs; no more than replicas and ingress ask for.
    cpus = 1 + decoding + scoring
    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        ray_serve.start(
            http_options={"host": "127.0.0.1", "port": settings.port},
            logging_config={"enable_access_log": False},
        )
        ray_serve.run(
            application(
                settings,
                SleepingDetector,
                decoding={"num_replicas": decoding},
                scoring={"num_replicas": scoring},
            )
        )
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
