"""How the server's process starts, tells of itself, and ends."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.tower.sources import fetch
from tests.fakes import POISON
from tests.images import jpeg
from tests.server.conftest import Process, eventually, running
from tests.server.test_detect import grey

KEY, OTHER = "web-0123456789abcdef", "app-0123456789abcdef"

# --- start --------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_start_that_lets_everybody_in_is_one_line(process: Callable[..., Process]) -> None:
    server = process(fake=False, NSNET_HOST="0.0.0.0")  # noqa: S104
    assert server.exit_status(60) == 1
    [line] = server.log
    assert line.startswith("nsnet: NSNET_HOST=0.0.0.0 is reached by other machines: ")
    assert "NSNET_ALLOW_ANONYMOUS=true" in line


@pytest.mark.process
@pytest.mark.parametrize(
    "wrong", [{"NSNET_PORT": "x"}, {"NSNET_API_KEYS_FILE": "/none"}, {"NSNET_HOST": "192.0.2.1"}]
)
def test_what_keeps_it_from_starting_is_said_in_one_way(
    process: Callable[..., Process], wrong: dict[str, str]
) -> None:
    """Some were a line of the log, some were none."""
    server = process(fake=False, **{"NSNET_LOG_FORMAT": "json", "NSNET_HOST": "127.0.0.1"} | wrong)
    assert server.exit_status(60) == 1
    [line] = server.log
    assert line.startswith(f"nsnet: {next(iter(wrong))}")


@pytest.mark.process
def test_settings_of_other_servers_change_nothing(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    """uvicorn took the one for a number, and Prometheus's client wrote its values into the other's
    folder; or, where there is none, could not begin."""
    folder = tmp_path / "multiprocess"
    server = process(WEB_CONCURRENCY="many", PROMETHEUS_MULTIPROC_DIR=str(folder))
    url = server.ready()
    assert (
        'http_requests_total{method="GET",route="/readyz"'
        in httpx.get(f"{url}/metrics", timeout=30).text
    )
    server.terminate()
    assert server.exit_status() == 0
    assert not folder.exists()
    assert sum("WEB_CONCURRENCY is not read" in line for line in server.log) == 1


def test_wrong_keys_are_refused_for_a_while_and_right_ones_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"web:{KEY}\n")
    with running(api_keys_file=str(file)) as server, server.client() as client:

        def status(key: str) -> int:
            return client.get("/model", headers={"Authorization": f"Bearer {key}"}).status_code

        assert status(KEY) == 200
        file.write_text(f"web:{OTHER}\n")
        eventually(lambda: status(OTHER) == 200)
        assert eventually(lambda: status("wrong") == 429)
        assert status(OTHER) == 200
        answer = client.get("/model", headers={"X-API-Key": "wrong"})
        assert answer.json()["code"] == "rate_limited"
        assert 1 <= int(answer.headers["Retry-After"]) <= 6


# As in a container: nobody's home, no name for the user, no place to write. Rights go with `exec`.
UNSHARE = [
    *("unshare", "--user", "--map-user=10001", "--map-group=10001"),
    *("--keep-caps", "--mount", "--"),
]
READ_ONLY = """
import ctypes, os, struct, sys

MOUNT_SETATTR, HERE, RECURSIVE, READ_ONLY, CLEAR_AMBIENT = 442, -100, 0x8000, 1, (47, 4, 0, 0, 0)
libc = ctypes.CDLL(None, use_errno=True)
attributes = ctypes.create_string_buffer(struct.pack("4Q", READ_ONLY, 0, 0, 0), 32)
if libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, attributes, 32):
    sys.exit(os.strerror(ctypes.get_errno()))
libc.prctl(*CLEAR_AMBIENT)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def read_only(*arguments: str) -> list[str]:
    """Python with these arguments, as uid 10001 where nothing can be written."""
    command = [*UNSHARE, sys.executable, "-c", READ_ONLY, *arguments]
    probe = [*UNSHARE, sys.executable, "-c", READ_ONLY, "-c", "open('/tmp/probe', 'w')"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `unshare` here")
    if "Read-only file system" not in done.stderr:
        pytest.skip(f"no mount namespace can be had here: {done.stderr.strip()}")
    return command


@pytest.mark.backbone
@pytest.mark.slow
@pytest.mark.process
def test_it_serves_where_nothing_can_be_written() -> None:
    """torch wanted a folder for what it might compile, and the load ended without a word."""
    tower = str(fetch())
    command = read_only("-m", "cli.main", "serve")
    server = Process(command, NSNET_BACKBONE=tower, HOME="/tmp")  # noqa: S108
    try:
        url = server.ready(120)
        answer = httpx.post(f"{url}/detect", files={"file": jpeg(400, 300)}, timeout=30)
        assert answer.status_code == 200, answer.text
        server.terminate()
        assert server.exit_status() == 0
    finally:
        server.popen.kill()
        server.popen.wait(10)


# --- logs ---------------------------------------------------------------------------------------


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.process
def test_a_log_that_is_no_terminal_is_json_line_by_line(process: Callable[..., Process]) -> None:
    server = process(NSNET_API_KEYS=f"web:{KEY}")
    url = server.ready()
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "mine"}
    name = "holiday-in-rome.jpg"
    files = {"file": (name, jpeg())}
    asked = f"{url}/detect?threshold=0.5"
    assert httpx.post(asked, files=files, headers=headers, timeout=30).status_code == 200
    assert httpx.post(f"{url}/detect", files=files, timeout=30).status_code == 401
    server.terminate()
    assert server.exit_status() == 0
    text = "".join(server.log)
    lines = lines_of(text)
    assert all({"timestamp", "level", "logger", "event"} <= line.keys() for line in lines)
    assert {"uvicorn.error", "app.service", "nsnet.access"} <= {line["logger"] for line in lines}
    good, refused = [line for line in lines if line["event"] == "request"]  # no probes among them
    assert good.pop("duration_ms") > 0
    del good["timestamp"]
    assert good == {
        "level": "info",
        "logger": "nsnet.access",
        "event": "request",
        "request_id": "mine",
        "key": "web",
        "method": "POST",
        "route": "/detect",
        "status": 200,
    }
    assert refused["status"] == 401
    assert "key" not in refused
    for secret in (name, KEY, "threshold", "127.0.0.1:"):
        assert secret not in text.replace(url, "")


@pytest.mark.process
def test_a_log_of_everything_has_probes_and_can_be_text(process: Callable[..., Process]) -> None:
    server = process(NSNET_LOG_LEVEL="debug", NSNET_LOG_FORMAT="text")
    server.ready()
    line = eventually(lambda: next((line for line in server.log if "/readyz" in line), None))
    assert "route=/readyz" in line
    assert "\x1b" not in line  # colours are for terminals


# --- audit --------------------------------------------------------------------------------------


def test_the_audit_log_says_of_each_image_what_was_said_to_whom(tmp_path: Path) -> None:
    file, name = tmp_path / "audit.jsonl", "holiday-in-rome.jpg"
    with (
        running(cached=True, api_keys=f"web:{KEY},{OTHER}", audit_log=str(file)) as server,
        server.client() as client,
    ):

        def post(path: str, key: str, files: Any, identifier: str) -> Any:
            headers = {"Authorization": f"Bearer {key}", "X-Request-ID": identifier}
            return client.post(path, files=files, headers=headers).json()

        for identifier in ("first", "kept"):
            answer = post("/detect", KEY, {"file": (name, grey(200))}, identifier)
        post("/detect", OTHER, {"file": (name, b"no image")}, "bad")
        batch = [("files", (name, grey(20))), ("files", (name, grey(POISON)))]
        post("/detect/batch", OTHER, batch, "many")
        post("/detect", "wrong", {"file": grey(1)}, "refused")
    lines = lines_of(file.read_text())
    assert all(line.pop("time").endswith("+00:00") for line in lines)
    assert all(line.pop("model") == server.fake.about.sha256 for line in lines)
    first, kept, bad, *many = lines
    assert first == {
        "request_id": "first",
        "id": "first",
        "key": "web",
        "sha256": hashlib.sha256(grey(200)).hexdigest(),
        "verdict": answer["verdict"],
        "score": answer["score"],
        "declares": "nothing",
        "error": None,
    }
    assert kept == first | {"request_id": "kept", "id": "kept"}
    assert (bad["key"], bad["error"], bad["verdict"]) == ("key-2", "unsupported_media_type", None)
    assert bad["sha256"] == hashlib.sha256(b"no image").hexdigest()
    many.sort(key=lambda line: line["id"])
    assert [(line["request_id"], line["id"], line["error"]) for line in many] == [
        ("many", "many-0", None),
        ("many", "many-1", "inference_failed"),
    ]
    assert name not in file.read_text()
    assert file.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_full_disk_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with running(audit_log="/dev/full") as server, server.client() as client:
        for value in (20, 30):
            assert client.post("/detect", files={"file": grey(value)}).status_code == 200
        assert server.metric("nsnet_audit_lost_total") == 2
    assert sum("audit lines are lost: no space left" in line for line in caplog.messages) == 1


@pytest.mark.process
def test_the_audit_log_can_be_standard_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = 'exec "$0" -m tests.server.serve_fake >"$1"'
    server = Process(["sh", "-c", command, sys.executable, str(out)], NSNET_AUDIT_LOG="-")
    try:
        url = server.ready()
        httpx.post(f"{url}/detect", files={"file": jpeg()}, timeout=30)
        server.terminate()
        assert server.exit_status() == 0
    finally:
        server.popen.kill()
        server.popen.wait(10)
    [line] = lines_of(out.read_text())
    assert line["sha256"] == hashlib.sha256(jpeg()).hexdigest()


@pytest.mark.process
def test_an_audit_log_that_cannot_be_written_stops_the_start(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    server = process(fake=False, NSNET_AUDIT_LOG=str(tmp_path / "none" / "audit"))
    assert server.exit_status(60) == 1
    [line] = server.log
    assert line == "nsnet: NSNET_AUDIT_LOG: no such file or directory\n"
