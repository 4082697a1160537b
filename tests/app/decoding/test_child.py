"""What a decoding process says of what it was handed."""

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from app.decoding import child
from app.decoding.child import MESSAGE_BYTES, READY, Job
from app.provenance.containers import Blobs
from app.provenance.credentials import report_of
from app.provenance.declarations import Declarations
from app.provenance.report import unsigned, with_credentials
from benchmarks.signing import signed
from model.images import Limits
from tests.app.provenance.files import packet
from tests.images import jpeg


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """To a child that is a thread of this process, and so has no limits."""
    monkeypatch.setattr(child, "_limit", lambda _job, _virtual: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        with theirs:
            child.serve(theirs, Declarations(""))

    thread = threading.Thread(target=serve)
    with ours:
        ours.settimeout(20)
        thread.start()
        yield ours
    thread.join(20)
    assert not thread.is_alive()


def ask(
    connection: socket.socket, data: bytes, *, provenance: bool = False
) -> tuple[dict[str, object], bytes]:
    """The first answer, and what the file is then."""
    file = os.memfd_create("test")
    try:
        os.write(file, data)
        socket.send_fds(connection, [Job(Limits(), 5, provenance).encode()], [file])
        answer = json.loads(connection.recv(MESSAGE_BYTES))
        return answer, os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def test_a_file_becomes_pixels(connection: socket.socket) -> None:
    assert connection.recv(MESSAGE_BYTES) == READY
    answer, pixels = ask(connection, jpeg(40, 30))
    assert answer["facts"]["width"] == 40  # type: ignore[index]
    assert len(pixels) == 40 * 30 * 3
    assert answer["last"] is False


def test_what_a_file_declares_follows_its_pixels_message_by_message(
    connection: socket.socket,
) -> None:
    connection.recv(MESSAGE_BYTES)
    data = signed(jpeg(40, 30), "image/jpeg")
    answer, pixels = ask(connection, data, provenance=True)
    assert answer.keys() == {"facts"}
    assert len(pixels) == 40 * 30 * 3
    reports = [json.loads(connection.recv(MESSAGE_BYTES))["provenance"] for _ in range(2)]
    assert [report["c2pa"]["status"] for report in reports] == ["unverified", "valid"]
    end = json.loads(connection.recv(MESSAGE_BYTES))
    assert end == {"provenance_read": True, "last": False}


def test_a_bug_in_reading_what_a_file_declares_is_told_by_its_name_alone(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise LookupError("a text that may quote the file")

    monkeypatch.setattr(Declarations, "reports", bug)
    connection.recv(MESSAGE_BYTES)
    assert ask(connection, jpeg(), provenance=True)[0].keys() == {"facts"}
    assert json.loads(connection.recv(MESSAGE_BYTES)) == {
        "provenance_bug": "LookupError",
        "last": False,
    }


def test_of_a_file_that_is_not_asked_for_it_nothing_is_read(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Declarations, "reports", None)
    connection.recv(MESSAGE_BYTES)
    assert ask(connection, jpeg())[0].keys() == {"facts", "last"}


def test_the_longest_report_fits_into_a_message() -> None:
    long = "\U0001f3ee" * 500
    actions = [{"action": long, "digitalSourceType": long, "softwareAgent": long}] * 99
    report = with_credentials(
        unsigned(Blobs(xmp=packet(attributes=f'xmp:CreatorTool="{long[:100]}"'))),
        report_of(
            {
                "active_manifest": "a",
                "validation_state": "Trusted",
                "validation_results": {
                    "activeManifest": {
                        "failure": [{"code": f"{number}{long}"} for number in range(99)]
                    }
                },
                "manifests": {
                    "a": {
                        "signature_info": dict.fromkeys(("issuer", "common_name", "time"), long),
                        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
                        "ingredients": [{"relationship": long}] * 99,
                        "claim_generator": long,
                    }
                },
            },
            asked_for_trust=True,
        ),
    )
    assert len(json.dumps({"provenance": report}, ensure_ascii=False).encode()) < MESSAGE_BYTES


def test_of_a_refused_file_nothing_is_left(connection: socket.socket) -> None:
    connection.recv(MESSAGE_BYTES)
    answer, left = ask(connection, b"nonsense")
    assert answer["error"][0] == "unsupported_media_type"  # type: ignore[index]
    assert left == b""


def test_a_bug_is_told_by_its_name_alone(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise LookupError("a text that may quote the file")

    monkeypatch.setattr(child, "decode", bug)
    connection.recv(MESSAGE_BYTES)
    assert ask(connection, jpeg())[0] == {"bug": "LookupError", "last": False}


def test_one_that_has_served_enough_or_grown_says_so_with_its_last_answer(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.recv(MESSAGE_BYTES)
    assert ask(connection, jpeg())[0]["last"] is False
    monkeypatch.setattr(child, "memory", lambda: (1 << 40, 1 << 40))
    answer, _ = ask(connection, jpeg())
    assert answer["last"] is True
    assert "facts" in answer
    assert connection.recv(MESSAGE_BYTES) == b""
