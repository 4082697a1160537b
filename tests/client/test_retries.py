"""What is tried again, when, and how often; and what is never told to anybody."""

import gzip
import json
import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from nsnet_client import ApiError, Client, ItemError, ItemOk, TransportError, _wire
from tests.client.conftest import HANG, Either, answer, scripted
from tests.client.test_client import grey
from tests.server.conftest import Running

KEY = "a-key-of-more-than-16-characters"
IMAGE = b"the bytes of an image"


def problem(status: int, code: str, **headers: str) -> bytes:
    body = {"code": code, "detail": "It is so.", "request_id": "r1", "status": status}
    return answer(status, json.dumps(body), **headers)


BUSY = problem(503, "overloaded")


@pytest.fixture
def good(server: Running) -> bytes:
    """What the real server says of an image."""
    with server.client() as client:
        return answer(200, client.post("/detect", files={"file": grey(10)}).content)


@pytest.fixture
def model(server: Running) -> bytes:
    with server.client() as client:
        return answer(200, client.get("/model").content)


def line(index: int, good: bytes) -> str:
    result = json.loads(good.partition(b"\r\n\r\n")[2])
    item = {"index": index, "filename": None, "status": "ok", "result": result}
    return json.dumps(item) + "\n"


SUMMARY = '{"model":{},"summary":{"ok":0,"error":0}}\n'


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", ["queue_full", "overloaded"])
def test_a_busy_server_is_asked_again(either: Either, good: bytes, code: str) -> None:
    status = {"queue_full": 429, "overloaded": 503}[code]
    with scripted(problem(status, code), problem(status, code), good) as server:
        assert either.detect(server.url, IMAGE).verdict == "real"
    assert [request.body for request in server.requests] == [IMAGE] * 3


@pytest.mark.usefixtures("at_once")
def test_it_is_waited_for_as_long_as_it_asks(either: Either, good: bytes) -> None:
    with scripted(problem(429, "queue_full", Retry_After="1"), good) as server:
        before = time.monotonic()
        either.detect(server.url, IMAGE)
    assert 1 <= time.monotonic() - before < 2


@pytest.mark.parametrize("text", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_a_wait_beyond_all_reckoning_is_not_waited_for(either: Either, text: str) -> None:
    server = scripted(problem(503, "draining", Retry_After=text))
    with server as busy, pytest.raises(ApiError, match="draining") as told:
        either.detect(busy.url, IMAGE)
    assert told.value.retry_after is not None
    assert told.value.retry_after > 1e9


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_who_asks_for_too_long_a_wait_is_not_waited_for(either: Either, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    text = {"seconds": "3600", "date": date}[form]
    server = scripted(problem(503, "draining", Retry_After=text))
    with server as busy, pytest.raises(ApiError) as told:
        either.detect(busy.url, IMAGE)
    error = told.value
    assert error.retry_after == pytest.approx(3600, abs=5)
    assert (error.status, error.code, error.detail) == (503, "draining", "It is so.")
    assert error.request_id == "r1"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "-1",
        "²",
        "nan",
        "Wed, 99 Nov 2026 00:00:00 GMT",
        "Sat, 31 Feb 99999999 00:00:00 GMT",
        f"Sat, 1 Jan {'9' * 30} 00:00:00 GMT",
        "Sat, 1 Jan 0001 00:00:00 +2359",  # long ago
    ],
)
def test_a_wait_that_is_none_is_as_if_none_were_asked_for(
    either: Either, good: bytes, text: str
) -> None:
    with scripted(problem(503, "x", Retry_After=text), good) as server:
        assert either.detect(server.url, IMAGE).verdict == "real"


@pytest.mark.usefixtures("at_once")
def test_attempts_are_bounded(either: Either) -> None:
    either.options["retries"] = 2
    with scripted(BUSY, BUSY, BUSY) as server, pytest.raises(ApiError) as told:
        either.detect(server.url, IMAGE)
    assert told.value.code == "overloaded"
    assert len(server.requests) == 3


def test_time_is_bounded(either: Either) -> None:
    either.options["retry_for"] = 0.0001
    with scripted(BUSY) as server, pytest.raises(ApiError):
        either.detect(server.url, IMAGE)


@pytest.mark.usefixtures("at_once")
def test_other_errors_are_not_tried_again(either: Either) -> None:
    with scripted(problem(500, "inference_failed")) as server, pytest.raises(ApiError) as told:
        either.detect(server.url, IMAGE)
    assert told.value.code == "inference_failed"


@pytest.mark.usefixtures("at_once")
def test_no_connection_is_another_error_than_a_refusal(either: Either) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(TransportError, match="ConnectError"):
        either.detect(url, IMAGE)


@pytest.mark.usefixtures("at_once")
def test_who_does_not_answer_in_time_is_asked_again(either: Either, good: bytes) -> None:
    either.options["timeout"] = 0.1
    with scripted(HANG, good) as server:
        assert either.detect(server.url, IMAGE).verdict == "real"
    assert len(server.requests) == 2


@pytest.mark.usefixtures("at_once")
def test_an_answer_that_is_cut_off_is_asked_for_again(either: Either, good: bytes) -> None:
    with scripted(good[:-10], good) as server:
        assert either.detect(server.url, IMAGE).verdict == "real"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("cut", "left"),
    [(None, [1]), (-1, [1]), (-40, [0, 1])],
    ids=["after a line", "before its end", "in its middle"],
)
def test_a_batch_that_breaks_off_sends_only_what_is_missing(
    either: Either, good: bytes, model: bytes, cut: int | None, left: list[int]
) -> None:
    first = (line(2, good) + line(0, good)).encode()
    broken = b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n" + first[:cut]
    rest = "".join(line(index, good) for index in range(len(left)))
    images = [b"image number %d" % number for number in range(3)]
    with scripted(model, broken, answer(200, rest + SUMMARY)) as server:
        items = either.batch(server.url, images)
    assert sorted(item.index for item in items) == [0, 1, 2]
    second = server.requests[2].body
    assert [number for number in range(3) if images[number] in second] == left


@pytest.mark.usefixtures("at_once")
def test_a_batch_that_never_gets_on_ends(either: Either, good: bytes, model: bytes) -> None:
    either.options["retries"] = 1
    with scripted(model, answer(200, line(0, good)), BUSY, BUSY) as server:
        items: list[Any] = []
        with pytest.raises(ApiError, match="overloaded"):
            either.batch(server.url, [b"a", b"b"], items.append)
    assert [item.index for item in items] == [0]


DEEP = "[" * 200_000


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"code": 1}', "null", DEEP])
def test_an_error_that_is_nobodys_is_told_as_such(either: Either, body: str) -> None:
    with scripted(answer(502, body)) as server, pytest.raises(ApiError) as told:
        either.detect(server.url, IMAGE)
    assert (told.value.status, told.value.code) == (502, "unexpected_answer")


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"id": 1}', "null", DEEP])
def test_an_answer_that_is_nobodys_is_told_as_such(either: Either, body: str) -> None:
    with scripted(answer(200, body)) as server, pytest.raises(ApiError) as told:
        either.detect(server.url, IMAGE)
    assert (told.value.status, told.value.code) == (200, "unexpected_answer")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_nobodys(either: Either, good: bytes, number: str) -> None:
    value = json.loads(good.partition(b"\r\n\r\n")[2])
    body = json.dumps(value | {"score": "here"}).replace('"here"', number)
    with scripted(answer(200, body)) as server, pytest.raises(ApiError) as told:
        either.detect(server.url, IMAGE)
    assert (told.value.status, told.value.code) == (200, "unexpected_answer")


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"status": "ok"}', '{"status": "ok", "index": 7}', '{"status": []}', DEEP]
)
def test_a_line_that_is_nobodys_is_told_as_such(either: Either, model: bytes, text: str) -> None:
    server = scripted(model, answer(200, text + "\n" + SUMMARY))
    with server as other, pytest.raises(ApiError, match="unexpected_answer"):
        either.batch(other.url, [IMAGE])


def test_a_line_without_an_end_is_not_waited_for(
    either: Either, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wire, "_MOST_BYTES", 1 << 16)
    with scripted(model, endless(200)) as other, pytest.raises(ApiError, match="unexpected_answer"):
        either.batch(other.url, [IMAGE])


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_an_end_is_not_waited_for(
    either: Either, model: bytes, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Nor one that says it is short, and is packed: a few kilobytes would be as many megabytes."""
    monkeypatch.setattr(_wire, "_MOST_BYTES", 1 << 16)
    packed = answer(status, gzip.compress(problem_text(b" " * (1 << 24))), Content_Encoding="gzip")
    assert len(packed) < 1 << 16
    for said in (endless(status), packed):
        with scripted(said) as other, pytest.raises(ApiError) as told:
            either.detect(other.url, IMAGE)
        assert (told.value.status, told.value.code) == (status, "unexpected_answer")
        assert "identity" in other.requests[0].headers["accept-encoding"]
    with scripted(endless(200)) as other, pytest.raises(ApiError, match="unexpected_answer"):
        either.model(other.url)
    with scripted(model, endless(500)) as other, pytest.raises(ApiError, match="500 unexpected"):
        either.batch(other.url, [IMAGE])


def endless(status: int) -> bytes:
    """A problem that would be one, did it ever end: more than a socket holds."""
    return b"HTTP/1.1 %d x\r\nConnection: close\r\n\r\n" % status + problem_text(b" " * (1 << 24))


def problem_text(space: bytes) -> bytes:
    return b'{"code": "here", "detail": "It is so.",' + space + b'"status": 500}'


def test_a_line_ends_where_a_line_feed_is(either: Either, good: bytes, model: bytes) -> None:
    """U+2028 and others are text, as JSON has it."""
    text = line(0, good).replace('"fake"', '"\u2028\x85"')
    with scripted(model, answer(200, f"\n{text}\n{SUMMARY}")) as server:
        [item] = either.batch(server.url, [IMAGE])
    assert isinstance(item, ItemOk)
    assert item.result.model.name == "\u2028\x85"


@pytest.mark.parametrize("indexes", [[-1], [2], [0, 0]])
def test_an_answer_to_what_was_not_asked_is_nobodys(
    either: Either, good: bytes, model: bytes, indexes: list[int]
) -> None:
    lines = "".join(line(index, good) for index in indexes)
    server = scripted(model, answer(200, lines + SUMMARY))
    with server as other, pytest.raises(ApiError, match="unexpected_answer"):
        either.batch(other.url, [b"a", b"b"])


def test_what_a_newer_server_adds_is_left_out(either: Either, good: bytes) -> None:
    value = json.loads(good.partition(b"\r\n\r\n")[2])
    value |= {"news": {"a": 1}, "warnings": ["of_tomorrow"], "verdict": "unheard_of", "score": 1}
    value["image"]["depth"] = 8
    value.pop("evidence", None)
    with scripted(answer(200, json.dumps(value))) as server:
        found = either.detect(server.url, IMAGE)
    assert found.warnings == ("of_tomorrow",)
    assert found.evidence is None
    assert isinstance(found.score, float)


def test_an_item_that_failed_is_told_in_the_servers_words(either: Either, model: bytes) -> None:
    error = {
        "type": "urn:nsnet:problem:corrupt_image",
        "title": "The image is damaged",
        "status": 422,
        "detail": "It ends early.",
        "instance": "urn:nsnet:request:r1-0",
        "code": "corrupt_image",
        "request_id": "r1-0",
    }
    item = {"index": 0, "filename": "of the server", "status": "error", "error": error}
    with scripted(model, answer(200, json.dumps(item) + "\n" + SUMMARY)) as server:
        [found] = either.batch(server.url, [IMAGE])
    assert isinstance(found, ItemError)
    assert (found.error.code, found.filename) == ("corrupt_image", None)


def test_a_redirect_is_not_followed(either: Either) -> None:
    """It would take image and key to another place."""
    with scripted() as other, scripted(answer(307, Location=other.url)) as server:
        with pytest.raises(ApiError, match="unexpected_answer"):
            either.detect(server.url, IMAGE)
        assert not other.requests


@pytest.mark.usefixtures("at_once")
def test_nothing_of_an_image_its_name_or_the_key_is_told_to_others(
    either: Either,
    good: bytes,
    model: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not to the log, whatever goes wrong, and no name to the server; nothing is printed."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "secret-name.jpg"
    path.write_bytes(b"secret-image")
    either.options |= {"api_key": KEY, "timeout": 0.2, "retries": 1}
    with scripted(BUSY, good, HANG, good[:-10], model, b"", answer(200, line(0, good))) as server:
        either.detect(server.url, path)
        with pytest.raises(TransportError) as cut_off:
            either.detect(server.url, path)
        [item] = either.batch(server.url, [path])
    assert isinstance(item, ItemOk)
    assert item.filename == "secret-name.jpg"
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "HTTP Request: POST" in logged
    assert capsys.readouterr() == ("", "")
    for secret in ("secret", KEY):
        assert secret not in logged
        assert secret not in repr(cut_off.value)
        assert secret not in repr(item).replace("filename='secret-name.jpg'", "")
    for request in server.requests:
        assert "secret-name" not in f"{request.line} {request.headers} {request.body!r}"
        assert request.headers["authorization"] == f"Bearer {KEY}"


def test_a_prefix_of_the_service_stays(good: bytes) -> None:
    for prefix in ("/below/here", "/below/here/"):
        with scripted(good) as server, Client(server.url + prefix) as client:
            client.detect(IMAGE, explain=True, heatmap="png", threshold=0.5)
            [request] = server.requests
            path = "/below/here/detect?threshold=0.5&heatmap=png&explain=true"
            assert request.line == f"POST {path} HTTP/1.1"
