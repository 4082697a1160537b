"""HTTP as it is spoken on the wire: odd clients, hostile ones, browsers and proxies."""

import base64
import contextlib
import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser

import httpx
import pytest

from app import protocol
from app.front import SECURITY_HEADERS
from app.protocol import MAX_PIPELINED
from tests.server.conftest import Process, Running, eventually, running
from tests.server.test_detect import grey
from tests.server.test_errors import problem

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def until_closed(raw: socket.socket, seconds: float = 10) -> bytes:
    """All that comes until the server closes; fails where it does not, or resets."""
    raw.settimeout(seconds)
    received = b""
    while data := raw.recv(65536):
        received += data
    return received


def talk(server: Running, sent: bytes, seconds: float = 10) -> bytes:
    """What comes of these bytes, until the server closes."""
    with server.connect() as raw:
        raw.sendall(sent)
        return until_closed(raw, seconds)


def until(raw: socket.socket, text: bytes) -> bytes:
    """What comes, up to a text and what came with it."""
    received = b""
    while text not in received:
        data = raw.recv(65536)
        assert data, received
        received += data
    return received


def cut_off(raw: socket.socket, data: bytes) -> bool:
    """Whether nobody takes bytes any longer."""
    try:
        raw.sendall(data)
    except ConnectionError:
        return True
    return False


def statuses(received: bytes) -> list[int]:
    """Of each answer, in order."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def problem_of(received: bytes) -> str:
    """The code of the one answer, a problem as any other."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    found = json.loads(body)
    assert set(found) == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert statuses(received) == [found["status"]]
    assert f"x-request-id: {found['request_id']}".encode() in head.lower()
    return str(found["code"])


# --- one request is one request -----------------------------------------------------------------

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("offer", [H2C, b"Connection: Upgrade\r\nUpgrade: foo\r\n"])
def test_a_body_is_never_read_as_a_request_whatever_upgrade_is_offered(
    server: Running, offer: bytes
) -> None:
    """Elsewhere the body behind an `Upgrade` header was answered as the next request."""
    received = talk(
        server,
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        + offer
        + b"Content-Length: %d\r\n\r\n" % len(GET)
        + GET
        + b"GET /model HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert statuses(received) == [415, 200]


def test_a_client_that_offers_h2c_uploads(server: Running) -> None:
    """As the JDK's HttpClient and `curl --http2` do."""
    image = grey(204)
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"
    with server.connect() as raw:
        for _ in range(2):  # the connection goes on
            raw.sendall(head % len(image) + H2C + b"\r\n" + image)
            until(raw, b"ai_generated")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 4\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"POST /detect HTTP/1.1\r\nContent-Length: 0\r\n",
        b"POST /detect HTTP/1.1\r\nHost : x\r\n",
        b"GET /livez\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
    ],
)
def test_what_has_two_readings_or_none_is_refused(server: Running, head: bytes) -> None:
    assert problem_of(talk(server, head + b"\r\n0\r\n\r\n")) == "bad_request"
    assert server.metric('nsnet_rejected_total{reason="bad_request"}') == 1


def test_no_websocket_is_opened(server: Running) -> None:
    received = talk(
        server,
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    assert problem_of(received) == "bad_request"
    assert b"WebSocket" in received


@pytest.mark.parametrize(
    "headers",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"X: y\r\n" * 101,
    ],
)
def test_a_head_request_is_refused_without_a_body(
    server: Running, headers: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received = talk(server, GET + b"HEAD /livez HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert statuses(received) in ([200, 400], [200, 431])
    head, _, body = received[received.rindex(b"HTTP/1.1") :].partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert body == b""
    assert "Traceback" not in caplog.text


def test_requests_sent_in_one_piece_are_answered_in_order(server: Running) -> None:
    image = grey(204) + bytes(20_000)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
    received = talk(
        server,
        GET
        + b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked
        + b"POST /detect/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    )
    assert statuses(received) == [200, 200, 415, 200]


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        b"X: y\r\n" * 101,
        b"X: " + b"y" * 30_000 + b"\r\n",
        b"a:\r\n" * 60_000,
        b"X: " + b"y" * 10**6,
    ],
)
def test_header_lines_are_bounded_in_size_and_number(server: Running, headers: bytes) -> None:
    received = talk(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert problem_of(received) == "headers_too_large"


@pytest.mark.parametrize("piece", [10**6, 4096, 1000, 1])
@pytest.mark.parametrize(("size", "status"), [(16384, 200), (16385, 431), (20_000, 431)])
def test_a_head_is_bounded_to_the_byte_whatever_pieces_it_comes_in(
    server: Running, piece: int, size: int, status: int
) -> None:
    start, end = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ", b"\r\n\r\n"
    head = start + b"y" * (size - len(start) - len(end)) + end
    assert len(head) == size
    with server.connect() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first in range(0, size, piece):
            raw.sendall(head[first : first + piece])
        assert statuses(until_closed(raw)) == [status]


@pytest.mark.parametrize("lines", [b"a:\r\n" * 60_000, b"a:" + b"b" * 16_381, b"a:\r\n" * 101])
def test_header_lines_behind_a_body_are_bounded_too(server: Running, lines: bytes) -> None:
    """A chunked body may have more of them at its end."""
    chunked = (
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    )
    assert problem_of(talk(server, chunked + lines + b"\r\n\r\n")) == "headers_too_large"


def test_a_body_in_crumbs_is_refused_before_it_costs_a_core(server: Running) -> None:
    """At 10 us a chunk of a byte, a megabyte would take two seconds of everybody's time."""
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = talk(server, head + b"1\r\na\r\n" * 100_000)
    assert problem_of(received) == "bad_request"
    eventually(lambda: server.service.places.taken == 0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sent", [b"", GET, GET + b"GET /li"])
def test_a_silent_connection_is_closed(sent: bytes) -> None:
    with running(keep_alive_s=1) as server:
        assert statuses(talk(server, sent)) == [200, 408][: sent.count(b"GET")]


@pytest.mark.usefixtures("hasty")
def test_half_a_head_is_not_waited_for(server: Running) -> None:
    """However it drips on: a thousand of them held a thousand sockets elsewhere."""
    assert problem_of(talk(server, b"GET /livez HTTP/1.1\r\nHost:")) == "request_timeout"
    with server.connect() as raw:
        raw.settimeout(0.02)
        received, end = b"", time.monotonic() + 10
        while b"408" not in received:
            assert time.monotonic() < end
            raw.sendall(b"G")
            try:
                received = raw.recv(65536)
            except TimeoutError:
                continue


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
def test_a_body_that_drips_on_after_its_answer_is_cut_off(connection: bytes) -> None:
    with running(deadline_s=0.2) as server, server.connect() as raw:
        raw.sendall(
            b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9999\r\nConnection: " + connection + b"\r\n\r\nhalf"
        )
        until(raw, b" 504 ")
        eventually(lambda: cut_off(raw, b"x"), 10)


@pytest.mark.usefixtures("hasty")
def test_a_client_that_does_not_read_its_answers_is_left(server: Running) -> None:
    """The server could not write, and waited with a file open, for ever."""
    ask = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(server.connect().getpeername())
        raw.sendall(ask * 10)
        eventually(lambda: cut_off(raw, ask), 10)


@pytest.mark.parametrize("path", [b"/livez", b"/openapi.json"])
def test_a_burst_of_requests_is_not_answered_to_the_end(server: Running, path: bytes) -> None:
    """Five hundred connections that sent two hundred each, and read none, cost 26 s of CPU."""
    received = talk(server, GET.replace(b"/livez", path) * 200)
    assert statuses(received) == [200] * (1 + MAX_PIPELINED)
    assert received.lower().count(b"connection: close") == 1
    line = f'http_requests_total{{method="GET",route="{path.decode()}",status="200"}}'
    assert server.metric(line) == 1 + MAX_PIPELINED


def test_a_client_that_reads_what_it_asked_for_asks_on(server: Running) -> None:
    with server.connect() as raw:
        for _ in range(12):
            raw.sendall(GET * MAX_PIPELINED)
            received = b""
            while received.count(b'"ok"}') < MAX_PIPELINED:
                received += raw.recv(65536)
            assert b"close" not in received


def test_of_too_many_connections_the_one_that_waits_longest_gives_way() -> None:
    """Silent ones do not lock out who has something to say."""
    with running(max_connections=3) as server:
        silent = [server.connect() for _ in range(3)]
        first = silent[0]
        assert statuses(
            talk(server, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        ) == [200]
        assert until_closed(first) == b""
        for raw in silent:
            raw.close()


def test_where_every_connection_is_at_work_another_is_told_so() -> None:
    with running(max_connections=2) as server:
        server.fake.gate.clear()
        image = grey(204)
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image)
        busy = [server.connect() for _ in range(2)]
        for raw in busy:
            raw.sendall(head + image)
        eventually(lambda: server.service.places.taken == 2)
        with server.connect() as another:
            received = until_closed(another)
        assert problem_of(received) == "queue_full"
        assert b"retry-after: 1" in received
        server.fake.gate.set()
        for raw in busy:
            until(raw, b"ai_generated")
            raw.close()


def test_who_only_waits_does_not_hold_up_the_end() -> None:
    post = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    with contextlib.ExitStack() as stack:
        with running() as server:
            kinds = (b"", b"GET /li", GET, post + b"\r\n", post + b"Connection: close\r\n\r\n")
            for sent in kinds:
                raw = stack.enter_context(server.connect())
                raw.sendall(sent)
                if b"\r\n\r\n" in sent:
                    until(raw, b"}")
            began = time.monotonic()
        assert time.monotonic() - began < protocol.REST_S / 2


# --- early answers arrive -----------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/detect", 40_000_000, 413),  # as declared
        ("/detect", 20_000_000, 413),  # as counted
        ("/detect/batch", 20_000_000, 415),
        ("/nowhere", 20_000_000, 404),
    ],
)
def test_who_writes_the_whole_body_first_still_reads_the_early_answer(
    headers: dict[str, str], path: str, size: int, status: int
) -> None:
    """Python's http.client; it saw a reset in place of its 413."""
    with running(max_request_bytes=30_000_000, max_upload_bytes=50_000) as server:
        server.ours()
        host, port = server.url.removeprefix("http://").split(":")
        client = http.client.HTTPConnection(host, int(port), timeout=20)
        client.request("POST", path, bytes(size), headers)
        answer = client.getresponse()
        assert answer.status == status
        assert json.loads(answer.read())["status"] == status
        client.close()
        eventually(lambda: server.service.places.taken == 0)


def test_a_connection_goes_on_after_an_early_answer_once_the_body_has_come() -> None:
    with running(api_keys="k" * 32) as server, server.connect() as raw:
        raw.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        until(raw, b"unauthorized")
        raw.sendall(bytes(1_000_000) + GET)
        assert statuses(until(raw, b'"ok"')) == [200]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
@pytest.mark.process
def test_nodes_fetch_sees_a_413() -> None:
    script = (
        "fetch(process.argv[1] + '/detect', {method: 'POST', body: new Uint8Array(2e7)})"
        ".then(async r => console.log(r.status, (await r.json()).code))"
        ".catch(e => console.log(String(e.cause)))"
    )
    with running(max_request_bytes=100_000, max_upload_bytes=50_000) as server:
        done = subprocess.run(
            ["node", "-e", script, server.url],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout == "413 payload_too_large\n"


# --- forms and bodies ---------------------------------------------------------------------------

BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


def part(name: str, data: bytes, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data


@pytest.mark.parametrize("data", [grey(204), grey(204) + bytes(200_000)])
def test_a_part_without_a_file_name_is_the_file_by_its_fields_name(
    server: Running, data: bytes
) -> None:
    """As a text field it was missing, and above 64 kB malformed."""
    with server.client() as client:
        body = part("note", b"hello") + b"\r\n" + part("file", data) + b"\r\n--x--\r\n"
        answer = client.post("/detect", content=body, headers=BOUNDARY)
        assert answer.json()["image"]["sha256"] == hashlib.sha256(data).hexdigest()
        parts = [part("files", data, more) for more in ("", '; filename="b.png"')] * 10
        body = b"\r\n".join([*parts, b"--x--\r\n"])
        results = client.post("/detect/batch", content=body, headers=BOUNDARY).json()["results"]
        assert [result["filename"] for result in results] == [None, "b.png"] * 10
        assert {result["status"] for result in results} == {"ok"}


def test_what_a_form_does_wrong_is_named() -> None:
    end = b"\r\n--x--\r\n"
    with running(max_upload_bytes=50_000) as server, server.client() as client:

        def detail(
            status: int, code: str, body: bytes, kind: str = BOUNDARY["Content-Type"]
        ) -> str:
            answer = client.post("/detect", content=body, headers={"Content-Type": kind})
            return str(problem(answer, status, code)["detail"])

        many = b"\r\n".join(part("note", b"") for _ in range(17))
        assert "16 fields" in detail(413, "payload_too_large", many + end)
        large = detail(413, "payload_too_large", part("note", bytes(200_000)) + end)
        assert large == "One image may have 50000 bytes at most, and the form around it 65536."
        two = part("file", b"a") + b"\r\n" + part("file", b"b") + end
        assert "one file" in detail(413, "too_many_files", two)
        for kind in ("multipart/form-data", "multipart/form-data; boundary="):
            assert "no boundary" in detail(400, "malformed_multipart", part("file", b"a"), kind)
        long = part("file", b"", f'; filename="{"n" * 5000}"') + end
        assert "too long headers" in detail(400, "malformed_multipart", long)
        assert "`file`" in detail(400, "missing_file", part("note", b"hello") + end)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/x-www-form-urlencoded"},  # of `curl --data-binary`
    ],
)
def test_a_body_of_no_type_is_what_its_content_says(server: Running, kind: dict[str, str]) -> None:
    answer = server.post("/detect", content=grey(204), headers=kind)
    assert answer.json()["image"]["format"] == "PNG"
    problem(server.post("/detect", content=b"text", headers=kind), 415, "unsupported_media_type")


@pytest.mark.parametrize(("path", "field"), [("/detect", "file"), ("/detect/batch", "files")])
def test_a_query_parameter_is_never_ignored(server: Running, path: str, field: str) -> None:
    for query in ("treshold=0.5", "threshold=0.5&treshhold=1", "", "threshold=0.5&threshold=0.6"):
        answer = server.post(f"{path}?{query}", files={field: grey(1)})
        if not query:
            assert answer.status_code == 200
            continue
        detail = problem(answer, 422, "validation_error")["detail"]
        assert "`threshold`" in detail
        assert "tresh" not in detail
    answer = server.post(f"{path}?threshold=secret", files={field: grey(1)})
    detail = problem(answer, 422, "validation_error")["detail"]
    assert detail == "`threshold` is a number from 0 to 1."


# --- operators ----------------------------------------------------------------------------------


def test_head_is_answered_wherever_get_is(server: Running) -> None:
    with server.client() as client:
        for path in (
            "/livez",
            "/healthz",
            "/readyz",
            "/metrics",
            "/model",
            "/docs",
            "/openapi.json",
        ):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
            assert int(answer.headers["Content-Length"]) > 0
        assert not any(
            "head" in path for path in client.get("/openapi.json").json()["paths"].values()
        )


@pytest.mark.parametrize("given", ["nsnet", "/nsnet", "/nsnet/"])
def test_a_proxy_may_strip_its_prefix_or_not(given: str) -> None:
    with running(root_path=given) as server, server.client() as client:
        for prefix in ("", "/nsnet"):
            assert client.get(f"{prefix}/livez").status_code == 200
            answer = client.post(f"{prefix}/detect", files={"file": grey(204)})
            assert answer.json()["verdict"] == "ai_generated"
            problem(client.get(f"{prefix}/nowhere"), 404, "not_found")
            page = client.get(f"{prefix}/docs").text
            assert "'/nsnet/openapi.json'" in page
            assert client.get(f"{prefix}/static-offline-docs/swagger-ui.css").status_code == 200
        assert client.get("/nsnet/openapi.json").json()["servers"] == [{"url": "/nsnet"}]
        problem(client.get("/nsnetlivez"), 404, "not_found")
        assert server.metric('http_requests_total{method="GET",route="/livez",status="200"}') == 2
        for route in ("/docs", "/static-offline-docs"):
            line = f'http_requests_total{{method="GET",route="{route}",status="200"}}'
            assert server.metric(line) == 2
        line = 'http_requests_total{method="GET",route="unmatched",status="404"}'
        assert server.metric(line) == 3


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_the_unspecified_ipv6_address_is_both_families() -> None:
    with running(host="::", allow_anonymous=True) as server:
        server.ours()
        port = server.url.rpartition(":")[2]
        for address in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{address}:{port}/livez", timeout=30).status_code == 200


def test_operations_have_a_port_of_their_own_where_one_is_set() -> None:
    with (
        running(operations_port=0, allowed_hosts="nsnet.example") as server,
        httpx.Client(base_url=server.operations, timeout=30) as operations,
        server.client() as public,
    ):
        public.headers["Host"] = "nsnet.example"
        for client in (operations, public):
            for probe in ("/livez", "/healthz", "/readyz"):
                assert client.get(probe).status_code == 200
        assert "nsnet_images_total" in operations.get("/metrics").text
        problem(public.get("/metrics"), 404, "not_found")
        assert "/metrics" not in public.get("/openapi.json").json()["paths"]
        for path in ("/detect", "/model", "/docs", "/openapi.json"):
            problem(operations.get(path), 404, "not_found")
        answer = operations.get("/livez")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Date" in answer.headers


@pytest.mark.process
@pytest.mark.parametrize("setting", ["NSNET_PORT", "NSNET_OPERATIONS_PORT"])
def test_a_port_in_use_is_one_line(process: Callable[..., Process], setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = process(fake=False, **{setting: port})
        assert server.exit_status(60) == 1
    [line] = server.log
    told = f"cannot listen on 127.0.0.1:{port}: address already in use"
    assert line == f"nsnet: NSNET_HOST, {setting}: {told}\n"


@pytest.mark.process
def test_the_command_line_goes_before_the_environment(process: Callable[..., Process]) -> None:
    server = process("--port", "0", "--host", "localhost", fake=False, NSNET_PORT="1")
    assert re.fullmatch(r"http://(127\.0\.0\.1|\[::1\]):\d{2,}", server.url())
    server.terminate()
    assert server.exit_status() == 0


# --- browsers -----------------------------------------------------------------------------------

PAGE = "https://page.example"


def test_every_answer_tells_browsers_what_not_to_do(server: Running) -> None:
    with server.client() as client:
        answers = [
            client.post("/detect", files={"file": grey(204)}),
            client.post("/detect", content=b"text"),
            client.get("/nowhere"),
            client.get("/livez"),
            client.get("/metrics"),
            client.get("/openapi.json"),
            client.options("/detect"),
        ]
    for answer in answers:
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers.get_list(name) == [value]
    assert SECURITY_HEADERS.keys() >= {"Cache-Control", "Content-Security-Policy"}


class Loaded(HTMLParser):
    """What a page loads, by the directive that allows it, and the scripts that stand in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), "no policy allows handlers"
        if tag == "link":
            kind = "style-src" if given["rel"] == "stylesheet" else "img-src"
            self.loads.append((kind, str(given["href"])))
        elif tag == "script" and "src" in given:
            self.loads.append(("script-src", str(given["src"])))
        elif tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def test_the_documentation_renders_under_its_own_policy(server: Running) -> None:
    with server.client() as client:
        answer = client.get("/docs")
        policy = {
            name: sources.split()
            for name, _, sources in (
                directive.strip().partition(" ")
                for directive in answer.headers["Content-Security-Policy"].split(";")
            )
        }
        page = Loaded()
        page.feed(answer.text)
        assert {kind for kind, _ in page.loads} == {"style-src", "img-src", "script-src"}
        for kind, address in page.loads:
            assert address.startswith("/")
            assert "'self'" in policy[kind]
            assert client.get(address).status_code == 200
        assert len(page.scripts) == 1
        for script in page.scripts:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy["script-src"]
        assert "'unsafe-inline'" not in policy["script-src"]
        style = client.get("/static-offline-docs/swagger-ui.css").text
        assert set(re.findall(r"url\(\W?(\w+:)", style)) <= set(policy["img-src"])
        assert not re.search(r"@import|@font-face", style)
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]  # the document, and what is tried out
    assert re.search(r'"validatorUrl": null', answer.text)  # or it asks another host


def preflight(client: httpx.Client, origin: str, header: str = "x-api-key") -> httpx.Response:
    return client.options(
        "/detect",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": header,
        },
    )


def test_other_origins_pages_are_let_in_by_setting_alone(server: Running) -> None:
    with server.client() as client:
        problem(preflight(client, PAGE), 405, "method_not_allowed")
        assert (
            "Access-Control-Allow-Origin"
            not in client.get("/livez", headers={"Origin": PAGE}).headers
        )
    with (
        running(cors_origins=f"{PAGE}, https://other.example:8443") as server,
        server.client() as client,
    ):
        assert preflight(client, PAGE).headers["Access-Control-Allow-Origin"] == PAGE
        for answer in (preflight(client, "https://evil.example"), preflight(client, PAGE, "x-a")):
            problem(answer, 400, "bad_request")
        client.headers["X-Request-ID"] = "mine"
        assert preflight(client, "https://evil.example").json()["request_id"] == "mine"
        for body in (grey(204), bytes(100)):  # an error can be read as well
            answer = client.post("/detect", content=body, headers={"Origin": PAGE})
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
        answer = client.get("/livez", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_target_with_its_host_is_that_hosts_path() -> None:
    """As a proxy is asked; the Host header then says nothing (RFC 9112, 3.2.2)."""
    close = b" HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
    with running(allowed_hosts=("good.example",)) as server:
        for target, host, status in (
            (b"http://good.example/model", b"bad.example", 200),
            (b"HTTPS://good.example:8/model?", b"bad.example", 200),
            (b"http://bad.example/model", b"good.example", 421),
            (b"http://good.example", b"good.example", 200),  # the page
            (b"/http://good.example/model", b"good.example", 404),
        ):
            assert statuses(talk(server, b"GET " + target + close % host)) == [status], target


def test_a_page_whose_name_is_made_to_resolve_here_gets_nothing() -> None:
    with (
        running(allowed_hosts="localhost,[::1],*.example.com") as server,
        server.client() as client,
    ):

        def ask(host: str, path: str = "/model") -> httpx.Response:
            return client.get(path, headers={"Host": host})

        for host in (
            "localhost",
            "LOCALHOST:8000",
            "[::1]:8000",
            "a.example.com",
            "a.b.example.com",
        ):
            assert ask(host).status_code == 200, host
        for host in ("evil.example", "example.com", "localhost.evil.example", "", "127.0.0.1"):
            for path in ("/model", "/docs", "/nowhere"):
                told = problem(ask(host, path), 421, "unknown_host")["detail"]
                assert "NSNET_ALLOWED_HOSTS" in told
                assert not host or host not in told
        for path in ("/livez", "/metrics"):  # as orchestrators and scrapers ask
            assert ask("10.0.0.1:8000", path).status_code == 200


MODELS = ("/v2/models/{name}", "/v2/models/{name}/infer")


def test_the_document_says_how_a_key_is_sent_where_one_is_needed(server: Running) -> None:
    with server.client() as client:
        assert "securitySchemes" not in client.get("/openapi.json").json()["components"]
    with running(api_keys="k" * 32) as keyed, keyed.client() as client:
        document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    kinds = {name: (one["type"], one.get("scheme") or one["name"]) for name, one in schemes.items()}
    assert sorted(kinds.values()) == [("apiKey", "X-API-Key"), ("http", "bearer")]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            either: list[dict[str, list[str]]] = (
                [{name: []} for name in kinds]
                if path in ("/detect", "/detect/batch", "/model", *MODELS)
                else []
            )
            assert sorted(map(str, operation.get("security", []))) == sorted(map(str, either))
