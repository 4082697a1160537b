"""Real servers on loopback: in a thread, to hold the detector's strings; in a process, to kill."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from app import protocol
from app.local import local
from app.main import create_app, make_server
from app.service import Service
from app.settings import Settings
from tests.fakes import FakeDetector, shared_decoders
from tests.server.fleet import Asked, fleet_of

ROOT = Path(__file__).parent.parent.parent


def eventually(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)
    return value


@dataclass
class Running(Asked):
    """A server in a thread."""

    url: str
    fake: FakeDetector
    service: Service
    loading: threading.Event
    loop: asyncio.AbstractEventLoop
    operations: str = ""  # URL of the operations port

    def metric(self, line: str) -> float:
        match = re.search(rf"^{re.escape(line)} (\S+)$", self.exposition(), re.MULTILINE)
        return float(match.group(1)) if match else 0.0

    def exposition(self) -> str:
        """All metrics, of this server alone and from its start."""
        return self.get("/metrics").text

    def ours(self) -> None:
        """What is tested from here on is how this server itself speaks HTTP, or logs."""

    def connect(self) -> socket.socket:
        """A connection for bytes of the test's own."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)


_ON_FLEET = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fleet", action="store_true", help="ask the Ray Serve application instead")


def pytest_configure(config: pytest.Config) -> None:
    global _ON_FLEET
    _ON_FLEET = bool(config.getoption("--fleet", default=False))


def free_ports(number: int) -> list[int]:
    """Ports that a server can be started on, and started on again."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextlib.contextmanager
def running(
    *, load_now: bool = True, cached: bool = False, shared: bool = True, **settings: Any
) -> Iterator[Running]:
    """Serve a fake detector with these settings, with decoders of its own or shared ones."""
    chosen = Settings(port=0, cache_size=100 if cached else 0, **settings)
    if _ON_FLEET:
        if not load_now or not shared:
            pytest.skip("is about the life of a server's process")
        keyed = chosen.api_keys or chosen.api_keys_file
        chosen = chosen.model_copy(update={"allow_anonymous": not keyed})
        yield cast(Running, fleet_of(chosen, anew=cached))
        return
    fake, loading = FakeDetector(), threading.Event()
    if load_now:
        loading.set()

    def load(_: Settings) -> FakeDetector:
        loading.wait(20)
        return fake

    app = create_app(chosen, local(load, shared_decoders() if shared else None))
    server = make_server(app, chosen)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        assert server._loop is not None
        one = Running("", fake, app.state.service, loading, server._loop)
        one.url, *others = [
            f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            for listener in server.servers
        ]
        one.operations = others[0] if others else ""
        if load_now:
            eventually(lambda: one.get("/readyz").status_code == 200)
        yield one
    finally:
        loading.set()
        fake.gate.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patience of the server's is short."""
    for name in ("HEAD_S", "REST_S", "UNREAD_S"):
        monkeypatch.setattr(protocol, name, 0.2)


class Process:
    """A server in a process of its own."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"NSNET_PORT": "0", "NSNET_HOST": "127.0.0.1"} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            self.log.append(line)

    def url(self, seconds: float = 60) -> str:
        """Where it listens."""
        address = re.compile(r"running on (http://[\w.:\[\]]+)")
        line = eventually(lambda: address.search("".join(self.log)), seconds)
        return str(line.group(1))

    def ready(self, seconds: float = 60) -> str:
        url = self.url(seconds)
        eventually(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == 200, seconds)
        return url

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def exit_status(self, seconds: float = 30) -> int:
        status = self.popen.wait(seconds)
        self._reader.join(5)
        return status


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    if _ON_FLEET:
        pytest.skip("is about the life of a server's process")
    started: list[Process] = []

    def start(*options: str, fake: bool = True, **environment: str) -> Process:
        module = "tests.server.serve_fake" if fake else "cli.main"
        command = [sys.executable, "-m", module, *([] if fake else ["serve", *options])]
        started.append(Process(command, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.popen.poll() is None:
            one.popen.kill()
        one.popen.wait(10)
