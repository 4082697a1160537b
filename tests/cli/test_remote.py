"""`nsnet detect --server`: the lines that `nsnet detect` prints, of a server's answers."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import cli.remote
from tests.cli.conftest import ROOT, Here
from tests.client.conftest import answer, scripted
from tests.fakes import SLOW
from tests.images import encoded
from tests.server.conftest import Running, eventually, running

KEY = "a-key-of-more-than-16-characters"


def grey(value: int) -> bytes:
    return encoded(Image.new("RGB", (80, 80), (value, value, value)), "PNG")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_upload_bytes=4096) as one:
        yield one


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.remote, "_WAIT_S", 0.001)
    monkeypatch.delenv("NSNET_API_KEYS", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("a", 10), ("b", 230), ("c", 127), ("d", 210)):
        (tmp_path / f"{name}.png").write_bytes(grey(value))
    (tmp_path / "e.png").write_bytes(b"no image")
    (tmp_path / "f.png").write_bytes(b"x" * 4097)
    (tmp_path / "g.png").symlink_to("nowhere")
    return tmp_path


def test_lines_are_those_of_images_scored_here(server: Running, here: Here, folder: Path) -> None:
    status, shown, told = here("detect", "--server", server.url, str(folder), "http://x/a.jpg")
    assert (status, told) == (1, "")
    lines = shown.splitlines()
    assert lines[:4] == [
        f"real          0.039  {folder}/a.png",
        f"ai_generated  0.902  {folder}/b.png",
        f"uncertain     0.498  {folder}/c.png",
        f"uncertain     0.824  {folder}/d.png  low_quality",
    ]
    assert lines[4].startswith(f"error         -      {folder}/e.png: ")
    assert lines[5:] == [
        f"error         -      {folder}/f.png: One image may have 4096 bytes at most.",
        f"error         -      {folder}/g.png: The file cannot be read: No such file or directory.",
        "error         -      http://x/a.jpg: URLs are not fetched: download the image first.",
    ]


def test_json_has_the_fields_of_images_scored_here(
    server: Running, here: Here, folder: Path
) -> None:
    status, shown, _ = here("detect", "--json", "--server", server.url, str(folder))
    assert status == 1
    found = [json.loads(line) for line in shown.splitlines()]
    assert [one["path"][-5:] for one in found] == [f"{name}.png" for name in "abcdefg"]
    for one in found[:4]:
        assert one.keys() == {"path", "verdict", "score", "looks", "warnings", "provenance"}
    assert found[0]["score"] == 0.039216
    codes = [one.get("code") for one in found[4:]]
    assert codes == ["unsupported_media_type", "payload_too_large", "unreadable"]


def test_evidence_is_asked_for_without_its_picture(
    server: Running, here: Here, folder: Path
) -> None:
    command = ("detect", "--explain", "--server", server.url, str(folder / "a.png"))
    status, shown, _ = here(*command)
    assert status == 0
    assert shown.startswith(
        f"real          0.039  {folder}/a.png  highest window 0,0-80,80 (log-odds "
    )
    status, shown, _ = here(*command, "--json")
    evidence = json.loads(shown)["evidence"]
    assert evidence["windows"]
    assert evidence["heatmap"] is None


def test_several_are_under_way_and_the_order_stays(
    server: Running, here: Here, tmp_path: Path
) -> None:
    for number in range(20):
        value = 100 + number if number else SLOW
        (tmp_path / f"{number:02}.png").write_bytes(grey(value))
    server.fake.batches.clear()
    status, shown, _ = here("detect", "--server", server.url, str(tmp_path))
    assert status == 0
    names = [Path(line.split()[2]).name for line in shown.splitlines()]
    assert names == [f"{number:02}.png" for number in range(20)]
    assert max(server.fake.batches) > 1


def test_the_environments_key_is_sent(
    here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(api_keys=f"me:{KEY}") as server:
        command = ("detect", "--server", server.url, str(folder / "a.png"))
        status, shown, told = here(*command)
        assert (status, shown) == (1, "")
        assert told == (
            f"nsnet: the server at {server.url} asks for an API key: set NSNET_API_KEYS to it\n"
        )
        monkeypatch.setenv("NSNET_API_KEYS", "you:another-key-of-16-characters")
        assert "asks for another API key" in here(*command)[2]
        monkeypatch.setenv("NSNET_API_KEYS", f"me:{KEY},more-keys-of-16-characters")
        assert here(*command)[0] == 0
        monkeypatch.setenv("NSNET_API_KEYS", f"not a name:{KEY}")
        assert here(*command)[2].startswith("nsnet: NSNET_API_KEYS: a name before a key's colon")


def test_a_server_that_is_not_there_is_told_in_one_line(here: Here, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    told = f"nsnet: no server answers at {url}: ConnectError\n"
    assert here("detect", "--server", url, str(folder)) == (1, "", told)


@pytest.mark.parametrize("url", ["", "localhost:8000", "http://", "http://a:b"])
def test_what_is_no_address_is_told(here: Here, folder: Path, url: str) -> None:
    told = "nsnet: --server takes an address as http://HOST:PORT\n"
    assert here("detect", "--server", url, str(folder)) == (1, "", told)


FORGED = "\x1b]0;forged\x07\nreal          0.001  other.jpg"
MODEL = answer(200, '{"limits": {"max_upload_bytes": 100000}}')
GOOD = {"verdict": "real", "score": 0.1, "looks": 1, "warnings": []}
SCORED = answer(200, json.dumps(GOOD))


@pytest.mark.parametrize("body", ["<html>", "[]", "null", "{}"])
@pytest.mark.parametrize("before", [[], [MODEL]], ids=["at first", "later"])
def test_another_server_is_told(here: Here, folder: Path, body: str, before: list[bytes]) -> None:
    with scripted(*before, answer(200, body)) as server:
        status, shown, told = here("detect", "--server", server.url, str(folder / "a.png"))
    assert (status, shown) == (1, "")
    assert told == f"nsnet: what answers at {server.url} is no NS-Net server: status 200\n"


DEEP = "[" * 200_000
ODD: tuple[dict[str, Any], ...] = (
    {"verdict": None},
    {"verdict": ["real"]},
    {"score": float("nan")},
    {"score": 7},
    {"score": True},
    {"score": "0.1"},
    {"warnings": [1, 2]},
    {"warnings": "animation"},
    {"provenance": ["camera"]},
    {"provenance": {"declares": {}}},
    {"evidence": {"windows": [{"log_odds": 1.0}]}},
    {"evidence": {"windows": [{"box": {"left": "0"}, "log_odds": 1.0}]}},
)


def limited(number: str) -> str:
    return f'{{"limits": {{"max_upload_bytes": {number}}}}}'


@pytest.mark.parametrize(
    "body",
    [*(json.dumps(GOOD | odd) for odd in ODD), DEEP, '{"a":' * 200_000],
    ids=lambda body: body[:90],
)
def test_an_answer_of_another_shape_is_told_in_one_line(
    here: Here, folder: Path, body: str
) -> None:
    command = ("detect", "--explain", "--server")
    with scripted(MODEL, answer(200, body)) as server:
        status, shown, told = here(*command, server.url, str(folder / "a.png"))
    assert (status, shown) == (1, "")
    assert told == f"nsnet: what answers at {server.url} is no NS-Net server: status 200\n"


@pytest.mark.parametrize(
    "body",
    [*map(limited, ("-5", "0", "Infinity", "1e999", "true", '"9"')), DEEP],
    ids=lambda body: body[:60],
)
def test_limits_of_another_shape_are_told_in_one_line(here: Here, folder: Path, body: str) -> None:
    with scripted(answer(200, body)) as server:
        status, shown, told = here("detect", "--server", server.url, str(folder / "a.png"))
    assert (status, shown) == (1, "")
    assert told == f"nsnet: what answers at {server.url} is no NS-Net server: status 200\n"


def test_a_limit_beyond_all_memory_is_none(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(grey(10))))
    with scripted(answer(200, limited("9" * 30)), SCORED) as server:
        assert here("detect", "--server", server.url, "-") == (0, "real          0.100  -\n", "")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, GOOD | {"verdict": FORGED}),
        (200, GOOD | {"warnings": ["animation", FORGED]}),
        (200, GOOD | {"provenance": {"declares": FORGED}}),
        (400, {"detail": FORGED, "code": "bad_request"}),
    ],
    ids=["verdict", "warning", "declaration", "error"],
)
def test_a_servers_words_are_one_line_and_nothing_but_words(
    here: Here, folder: Path, status: int, body: dict[str, Any]
) -> None:
    with scripted(MODEL, answer(status, json.dumps(body))) as server:
        shown = here("detect", "--server", server.url, str(folder / "a.png"))[1]
    [line] = shown.splitlines()
    assert line.isprintable()
    assert "\\x1b]0;forged\\x07\\n" in line


def test_a_refusal_is_one_line_and_nothing_but_words(here: Here, folder: Path) -> None:
    refusal = answer(400, json.dumps({"detail": FORGED, "code": "bad_request"}))
    with scripted(refusal) as server:
        _, _, told = here("detect", "--server", server.url, str(folder))
    [line] = told.splitlines()
    assert line.isprintable()


def test_no_windows_are_no_highest_one(here: Here, folder: Path) -> None:
    with scripted(MODEL, answer(200, json.dumps(GOOD | {"evidence": {"windows": []}}))) as server:
        command = ("detect", "--explain", "--server", server.url, str(folder / "a.png"))
        assert here(*command) == (0, f"real          0.100  {folder}/a.png\n", "")


def test_a_password_in_the_address_is_not_told(here: Here, folder: Path) -> None:
    other, refusal = answer(200, "[]"), answer(401, "{}")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"127.0.0.1:{closed.getsockname()[1]}"
    with scripted(other, refusal) as server:
        place = server.url.removeprefix("http://")
        for address in (place, place, gone):
            _, _, told = here("detect", "--server", f"http://me:secret@{address}", str(folder))
            assert f"http://{address}" in told
            assert "secret" not in told


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(here: Here, folder: Path, status: int) -> None:
    busy = answer(status, "{}", Retry_After="0")
    with scripted(answer(503, "{}"), MODEL, busy, busy, SCORED) as server:
        found = here("detect", "--server", server.url, str(folder / "a.png"))
    assert found == (0, f"real          0.100  {folder}/a.png\n", "")


def test_a_server_that_stays_busy_is_an_error_of_the_image(
    here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = answer(503, '{"detail": "Later.", "code": "draining"}', Retry_After="3600")
    with scripted(MODEL, far) as server:
        shown = here("detect", "--server", server.url, str(folder / "a.png"))[1]
    assert shown == f"error         -      {folder}/a.png: Later.\n"
    monkeypatch.setattr(cli.remote, "_PATIENCE_S", 0.1)
    full = answer(429, '{"detail": "Every place is taken.", "code": "queue_full"}')
    with scripted(MODEL, *[full] * 200) as server:
        shown = here("detect", "--server", server.url, str(folder / "a.png"))[1]
    assert shown == f"error         -      {folder}/a.png: Every place is taken.\n"


def test_a_server_that_scores_nothing_is_told_in_its_words(here: Here, folder: Path) -> None:
    loading = answer(
        503, '{"detail": "The model is being loaded.", "code": "not_ready"}', Retry_After="3600"
    )
    with scripted(loading) as server:
        _, shown, told = here("detect", "--server", server.url, str(folder))
    expected = f"the server at {server.url} scores nothing now: The model is being loaded."
    assert (shown, told) == ("", f"nsnet: {expected}\n")


def test_a_name_is_not_sent(here: Here, folder: Path) -> None:
    with scripted(MODEL, SCORED) as server:
        here("detect", "--server", server.url, str(folder / "a.png"))
    sent = server.requests[1]
    assert "a.png" not in f"{sent.line}{sent.headers}"
    assert sent.body == grey(10)


@pytest.mark.process
def test_neither_torch_nor_a_setting_is_needed(server: Running, folder: Path) -> None:
    """The settings are the server's: a mistake in one's own is none here."""
    code = "import sys; sys.modules['torch'] = None; from cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "detect", "--server", server.url, str(folder / "a.png")],
        cwd=ROOT,
        env=os.environ | {"NSNET_NONSENSE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
def test_an_interrupt_ends_it_at_once(folder: Path) -> None:
    """Though the server asks to wait for a minute."""
    busy = answer(429, "{}", Retry_After="59")
    with scripted(MODEL, busy) as server:
        command = [sys.executable, "-m", "cli.main", "detect", "--server", server.url]
        with subprocess.Popen(
            [*command, str(folder / "a.png")], cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as process:
            eventually(lambda: len(server.requests) == 2)
            process.send_signal(2)
            _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in told
