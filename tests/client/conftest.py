"""Both clients by one interface, a real server, and servers that misbehave as a test says."""

import asyncio
import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
import tenacity

from nsnet_client import AsyncClient, Client, Detection, ImageLike, Item, ModelDetails, _wire
from tests.server.conftest import Running, running


@dataclass
class Either:
    """One of the two clients, newly made for each call."""

    asynchronous: bool
    options: dict[str, Any] = field(default_factory=dict)

    def detect(self, url: str, image: ImageLike, **arguments: Any) -> Detection:
        async def call() -> Detection:
            async with AsyncClient(url, **self.options) as client:
                return await client.detect(image, **arguments)

        if self.asynchronous:
            return asyncio.run(call())
        with Client(url, **self.options) as client:
            return client.detect(image, **arguments)

    def model(self, url: str) -> ModelDetails:
        async def call() -> ModelDetails:
            async with AsyncClient(url, **self.options) as client:
                return await client.model()

        if self.asynchronous:
            return asyncio.run(call())
        with Client(url, **self.options) as client:
            return client.model()

    def batch(
        self,
        url: str,
        images: Iterable[ImageLike],
        each: Callable[[Item], Any] = lambda item: None,
        **arguments: Any,
    ) -> list[Item]:
        """Every item, after `each` was called with it as it came."""
        items = []

        async def call() -> None:
            async with (
                AsyncClient(url, **self.options) as client,
                aclosing(client.detect_batch(images, **arguments)) as stream,
            ):
                async for item in stream:
                    each(item)
                    items.append(item)

        if self.asynchronous:
            asyncio.run(call())
            return items
        with Client(url, **self.options) as client:
            for item in client.detect_batch(images, **arguments):
                each(item)
                items.append(item)
        return items


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Either:
    return Either(request.param)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_files=3, max_upload_bytes=4096, max_request_bytes=16384) as one:
        yield one


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts but what a server asks for."""
    monkeypatch.setattr(_wire, "_BACKOFF", tenacity.wait_none())


@dataclass
class Request:
    """What a client sent."""

    line: str
    headers: dict[str, str]
    body: bytes


class Scripted:
    """A server that answers with the next of some bytes, each on a connection of its own.

    Attributes:
        url: of it.
        requests: so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.hang = threading.Event()


HANG = None
"""An answer that does not come."""


@contextlib.contextmanager
def scripted(*answers: bytes | None) -> Iterator[Scripted]:
    """Give these answers, one a request, and end the connection after each."""
    left = list(answers)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = iter(lambda: self.rfile.readline().decode().rstrip(), "")
            line = next(head, "")
            if not line:
                return
            headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in head)}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            one.requests.append(Request(line, headers, body))
            answer = left.pop(0)
            if answer is HANG:
                one.hang.wait(20)
            self.wfile.write(answer or b"")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        one = Scripted(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield one
        finally:
            one.hang.set()
            server.shutdown()
            thread.join()


def answer(status: int, body: str | bytes = b"", **headers: str) -> bytes:
    """An HTTP answer; a name's `_` stands for `-`."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} x", "Connection: close", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data
