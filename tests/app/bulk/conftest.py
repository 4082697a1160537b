"""An S3 on loopback, and a web server."""

import contextlib
import gzip
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import s3fs
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str) -> dict[str, str]:
    """By which any AWS library finds it."""
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATESTING",
        "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket called `album`, empty."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("album")
    yield files
    files.rm("album", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def web() -> Iterator[str]:
    """A web server that heeds no range and sends what it likes; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/small": b"x", "/small?id=5": b"x", "/empty": b"", "/half": b"x"}.get(
                self.path, bytes(16 << 20)
            )
            if self.path == "/none":
                self.send_error(404)
                return
            self.send_response(200)
            if self.path == "/packed":
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body) + (self.path == "/half")))
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody takes it all
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
