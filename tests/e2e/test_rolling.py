"""nginx, as it is shipped: two servers behind it are restarted in turn, or there is none."""

import contextlib
import http.client
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.images import jpeg
from tests.server.conftest import ROOT, Process, eventually, free_ports
from tests.server.test_errors import numbered, problem
from tests.server.test_inference import INFER, as_json, error

CLIENTS = 4
REQUESTS = 500

# What stands around the shipped file; its log says what each server answered that was asked.
MAIN = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    log_format statuses '$upstream_status';
    access_log {folder}/access.log statuses;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/nsnet.conf;
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[int, list[int]], str]]:
    """Starts nginx in front of servers on these ports; where it listens."""
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if command is None:
        pytest.skip("there is no nginx here: install Debian's `nginx`")
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int, servers: list[int]) -> str:
        shipped = (ROOT / "deploy/nginx/nsnet.conf").read_text()
        for theirs, ours in (
            ("listen 8000;", f"listen 127.0.0.1:{port};"),
            ("127.0.0.1:8001", f"127.0.0.1:{servers[0]}"),
            ("127.0.0.1:8002", f"127.0.0.1:{servers[1]}"),
            ("/dev/shm/nsnet-nginx", f"{tmp_path}/body"),  # noqa: S108
        ):
            assert shipped.count(theirs) == 1
            shipped = shipped.replace(theirs, ours)
        (tmp_path / "nsnet.conf").write_text(shipped)
        user = "user root;" if os.getuid() == 0 else ""  # who alone may enter the folder
        (tmp_path / "nginx.conf").write_text(MAIN.format(folder=tmp_path, user=user))
        started.append(subprocess.Popen([command, "-p", tmp_path, "-c", tmp_path / "nginx.conf"]))
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers_at(url))
        return url

    yield start
    for one in started:
        one.terminate()
        one.wait(10)


def answers_at(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30).status_code == 404  # which nginx says by itself
    except httpx.TransportError:
        return False


class Load:
    """Clients that ask one thing after another until they are told to stop."""

    def __init__(self, url: str) -> None:
        self.outcomes: list[str] = []  # of every request: its status, or what went wrong
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        images = numbered(jpeg(400, 300))  # larger than what nginx keeps in its buffer
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for path in itertools.cycle(["/detect", "/detect/batch", "/v2/models/fake/infer"]):
                if self._stop.wait(0.01):
                    return
                try:
                    outcome = str(client.post(path, **body(path, next(images))).status_code)
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                self.outcomes.append(outcome)


def body(path: str, image: bytes) -> dict[str, Any]:
    match path:
        case "/detect":
            return {"content": image}
        case "/detect/batch":
            return {"files": [("files", image), ("files", jpeg())]}
    return {"json": as_json([image])}


@pytest.mark.slow
@pytest.mark.process
def test_a_rolling_restart_loses_nothing(
    nginx: Callable[[int, list[int]], str], tmp_path: Path
) -> None:
    port, *servers = free_ports(3)
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    processes: list[Process] = []

    def start(server: int) -> Process:
        # So that it is asked while it drains, and while it listens no longer.
        one = Process(command, NSNET_PORT=str(server), NSNET_DRAIN_DELAY_S="1")
        processes.append(one)
        return one

    try:
        running = [start(server) for server in servers]
        for one in running:
            one.ready()
        with Load(nginx(port, servers)) as load:
            eventually(lambda: len(load.outcomes) > REQUESTS // 10, 60)
            for one, server in zip(running, servers, strict=True):
                one.terminate()
                assert one.exit_status() == 0
                start(server).ready()
            eventually(lambda: len(load.outcomes) >= REQUESTS, 120)
    finally:
        for one in processes:
            one.popen.kill()
            one.popen.wait(10)
    assert set(load.outcomes) == {"200"}, Counter(load.outcomes)
    asked = Counter((tmp_path / "access.log").read_text().splitlines())
    assert asked["503, 200"], asked  # the one that drained refused
    assert asked["502, 200"], asked  # and then could not be reached


def said(address: tuple[str, int], head: str) -> httpx.Response:
    """What comes of a request with this head, and no byte of a body."""
    with socket.create_connection(address, timeout=20) as raw:
        raw.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


@pytest.mark.process
def test_what_nginx_says_by_itself_has_the_contracts_shape(
    nginx: Callable[[int, list[int]], str],
) -> None:
    """No server stands behind it, so whatever is answered is its own."""
    port, *servers = free_ports(3)
    nginx(port, servers)
    address = ("127.0.0.1", port)
    for path, check in (("/detect", problem), (INFER, error), ("/v2", error)):
        check(said(address, f"GET {path} HTTP/1.1"), 503, "not_ready")
        large = f"POST {path} HTTP/1.1\r\nContent-Length: {1 + (128 << 20)}"
        check(said(address, large), 413, "payload_too_large")
    for path in ("/metrics", "/", "/v3", "/nsnet/problem"):
        problem(said(address, f"GET {path} HTTP/1.1"), 404, "not_found")
    for head, status, code in (
        ("TRACE /detect HTTP/1.1", 405, "method_not_allowed"),
        ("POST /detect HTTP/1.1\r\nTransfer-Encoding: gzip", 400, "bad_request"),
        ("POST /detect HTTP/1.1\r\nContent-Length: x", 400, "bad_request"),
        ("GET /detect HTTP/1.1" + f"\r\nX: {'y' * 8000}" * 5, 431, "headers_too_large"),
        (f"GET /{'y' * 60_000} HTTP/1.1", 431, "headers_too_large"),
        ("no HTTP", 400, "bad_request"),
    ):
        problem(said(address, head), status, code)


@pytest.mark.process
def test_one_address_has_nginx_hold_so_many_bodies_and_no_more(
    nginx: Callable[[int, list[int]], str],
) -> None:
    port, *servers = free_ports(3)
    nginx(port, servers)
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            raw = stack.enter_context(socket.create_connection(address))
            raw.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        eventually(lambda: said(address, "GET /detect HTTP/1.1").status_code == 429)
        problem(said(address, "GET /detect HTTP/1.1"), 429, "queue_full")
        error(said(address, f"GET {INFER} HTTP/1.1"), 429, "queue_full")
    eventually(lambda: said(address, "GET /detect HTTP/1.1").status_code == 503)
