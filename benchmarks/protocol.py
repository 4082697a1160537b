"""What HTTP costs on h11 with the service's bounds, beside uvicorn on httptools.

    python benchmarks/protocol.py [--rounds 12] [--kilobytes 60]

Both serve one bare application, which reads the body and answers 200, in a process each, on
loopback; but for the protocol, they are configured alike. Rounds alternate: one connection that is
kept, its client on another core than the server, then 16 of them. Prints medians of the rounds, and
of each round's ratio, with its range. The client needs less of a core than a server, which is what
the rate at 16 connections is bounded by. Linux only; other work on the cores blurs it.
"""

import argparse
import contextlib
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import uvicorn
from starlette.types import Receive, Scope, Send

from app.protocol import Config, listen
from app.settings import load_settings
from benchmarks.local import Local, local_server

PROTOCOLS = ("h11", "httptools")
REQUESTS = 640  # of one connection; likewise of all connections together
CONNECTIONS = 16
_ANSWER = b"x" * 500
# The lines that a client of the service sends.
_HEAD = (
    b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: python-httpx/0.28.1\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
)


# --- the servers ---------------------------------------------------------------------------------


async def application(_: Scope, receive: Receive, send: Send) -> None:
    """Read the body, answer 200."""
    while (await receive()).get("more_body"):
        pass
    length = str(len(_ANSWER)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": _ANSWER})


def serve(protocol: str) -> None:
    """Serve the application on `NSNET_PORT`.

    Args:
        protocol: one of `PROTOCOLS`.
    """
    settings = load_settings()
    config = Config(application, settings, refused=lambda _: None)
    config.lifespan = "off"
    if protocol == "httptools":
        config.http = "httptools"
    uvicorn.Server(config).run(listen(settings.host, settings.port))


def server(protocol: str) -> contextlib.AbstractContextManager[Local]:
    """A process that serves the application."""
    return local_server([sys.executable, __file__, "--serve", protocol])


# --- the client ----------------------------------------------------------------------------------


class Round(NamedTuple):
    """What a server did in one round.

    Attributes:
        p50_ms: of a request, on one connection.
        cpu_ms: of the server's time, a request, on one connection.
        rate: requests a second, on all connections.
    """

    p50_ms: float
    cpu_ms: float
    rate: float


def measure(local: Local, body: bytes) -> Round:
    """One round of a server."""
    request = _HEAD % len(body) + body
    with apart(local.pid), connections(local.url, 1, request) as (one,):
        cpu = cpu_ms(local.pid)
        laps = [ask(one, request) for _ in range(REQUESTS)]
        cpu = cpu_ms(local.pid) - cpu
    with (
        connections(local.url, CONNECTIONS, request) as several,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        each = REQUESTS // CONNECTIONS
        start = time.perf_counter()
        list(pool.map(lambda one: [ask(one, request) for _ in range(each)], several))
        seconds = time.perf_counter() - start
    return Round(1000 * statistics.median(laps), cpu / REQUESTS, CONNECTIONS * each / seconds)


@contextlib.contextmanager
def apart(pid: int) -> Iterator[None]:
    """Give a server the first core, and this thread the others, until the `with` block ends.

    On one core with its client, a server finds the body in the cache: it takes half as long, or
    does not, as the scheduler has it.
    """
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    os.sched_setaffinity(pid, first)
    os.sched_setaffinity(0, cores - first or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(pid, cores)
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def connections(url: str, count: int, request: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has asked once."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((host, int(port))))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ask(one, request)
            made.append(one)
        yield made


def ask(connection: socket.socket, request: bytes) -> float:
    """Seconds from a request to the last byte of its answer.

    Raises:
        ConnectionError: it was not answered with 200.
    """
    start = time.perf_counter()
    connection.sendall(request)
    got = b""
    while not got.endswith(_ANSWER):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"the server answered {got[:15]!r}")
        got += more
    return time.perf_counter() - start


def cpu_ms(pid: int) -> float:
    """What the first thread of a process, a server's only one, has computed so far, ms."""
    # In nanoseconds; /proc/PID/stat counts by 10 ms.
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


# --- command line --------------------------------------------------------------------------------


def main() -> None:
    """Print one row per figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kilobytes", type=int, default=60, help="of a request's body")
    parser.add_argument("--serve", choices=PROTOCOLS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve)
        return
    body = os.urandom(1000 * chosen.kilobytes)
    rounds: dict[str, list[Round]] = {protocol: [] for protocol in PROTOCOLS}
    with contextlib.ExitStack() as stack:
        servers = {protocol: stack.enter_context(server(protocol)) for protocol in PROTOCOLS}
        for number in range(chosen.rounds + 1):
            for protocol in PROTOCOLS[:: 1 if number % 2 else -1]:
                rounds[protocol].append(measure(servers[protocol], body))
    print(f"| {chosen.kilobytes} kB | {' | '.join(PROTOCOLS)} | ratio | least to most |")
    print("|---|---:|---:|---:|---:|")
    whats = {
        "p50 of one connection, ms": ".3f",
        "CPU of the server, ms a request": ".3f",
        f"requests/s at {CONNECTIONS} connections": ".0f",
    }
    # The first round is the warm-up.
    columns = [zip(*rounds[protocol][1:], strict=True) for protocol in PROTOCOLS]
    for (what, form), ours, others in zip(whats.items(), *columns, strict=True):
        ratios = [a / b for a, b in zip(ours, others, strict=True)]
        print(
            f"| {what} | {statistics.median(ours):{form}} | {statistics.median(others):{form}} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
