"""A server of our own on a loopback port, in a process of its own, to be measured."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from model.errors import ModelError

SERVE = (sys.executable, "-m", "cli.main", "serve")
"""`nsnet serve`, of the checkout in which it is run."""
_POLL_S = 0.02
_STOP_S = 30.0
# What would be measured instead of the network, or stand in its way.
_BARE = {
    "NSNET_HOST": "127.0.0.1",
    "NSNET_ROOT_PATH": "",
    "NSNET_LOG_LEVEL": "warning",
    "NSNET_CACHE_SIZE": "0",
    "NSNET_RATE_LIMIT_PER_MINUTE": "0",
    "NSNET_DRAIN_DELAY_S": "0",
}
# Not set to nothing: the server may be of a version that has none of them.
_WITHOUT = ("NSNET_API_KEYS", "NSNET_API_KEYS_FILE", "NSNET_AUDIT_LOG")


@dataclass(frozen=True, slots=True)
class Local:
    """A ready server.

    Attributes:
        url: where it listens.
        pid: its process.
        ready_s: seconds from the start of the process to the first 200 of `/readyz`.
    """

    url: str
    pid: int
    ready_s: float


@contextlib.contextmanager
def local_server(
    command: Sequence[str] = SERVE, *, timeout_s: float = 120, **settings: str
) -> Iterator[Local]:
    """Run a server until the `with` block ends.

    It has this process's environment, but neither result cache nor rate limit nor API keys.

    Args:
        command: a server that listens on `NSNET_PORT` and has `/readyz`; `nsnet serve` by default.
        timeout_s: how long it may take to become ready, seconds.
        settings: over the environment's, without the prefix: `dtype="float32"`.

    Raises:
        ModelError: it ended, or is not ready in time.
    """
    port = _free_port()
    chosen = {f"NSNET_{name.upper()}": value for name, value in settings.items()}
    ours = {name: value for name, value in os.environ.items() if name.upper() not in _WITHOUT}
    environment = ours | _BARE | {"NSNET_PORT": str(port)} | chosen
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    try:
        _wait_ready(process, url, start + timeout_s)
        yield Local(url, process.pid, time.monotonic() - start)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: subprocess.Popen[bytes], url: str, deadline: float) -> None:
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    return
            if process.poll() is not None:
                raise ModelError("the server ended before it was ready")
            if time.monotonic() > deadline:
                raise ModelError("the server did not become ready in time")
            time.sleep(_POLL_S)
