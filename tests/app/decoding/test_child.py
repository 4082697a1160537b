"""What a decoding process says of what it was handed."""

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from app.decoding import child
from app.decoding.child import MESSAGE_BYTES, READY, Job
from model.images import Limits
from tests.images import jpeg


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """To a child that is a thread of this process, and so has no limits."""
    monkeypatch.setattr(child, "_limit", lambda _job, _virtual: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        with theirs:
            child.serve(theirs)

    thread = threading.Thread(target=serve)
    with ours:
        ours.settimeout(20)
        thread.start()
        yield ours
    thread.join(20)
    assert not thread.is_alive()


def ask(connection: socket.socket, data: bytes) -> tuple[dict[str, object], bytes]:
    file = os.memfd_create("test")
    try:
        os.write(file, data)
        socket.send_fds(connection, [Job(Limits(), 5).encode()], [file])
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
