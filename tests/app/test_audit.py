import json
import os
import socket
import threading
from pathlib import Path

import pytest

from app.audit import AuditLog
from app.settings import SettingsError


class Lost:
    def __init__(self) -> None:
        self.lines = 0

    def __call__(self) -> None:
        self.lines += 1


@pytest.fixture
def lost() -> Lost:
    return Lost()


def record(audit: AuditLog, identifier: str) -> None:
    audit.record(identifier, "0" * 64, "corrupt_image", "f" * 64)


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def test_without_a_target_nothing_is_written(lost: Lost, tmp_path: Path) -> None:
    record(AuditLog("", lost), "a")
    assert not list(tmp_path.iterdir())
    assert lost.lines == 0


def test_lines_are_added_and_there_at_once(tmp_path: Path, lost: Lost) -> None:
    file = tmp_path / "audit"
    for identifier in ("a", "b"):
        record(AuditLog(str(file), lost), identifier)
    assert ids(file) == ["a", "b"]


@pytest.mark.parametrize("by", ["rename", "removal"])
def test_a_rotated_file_is_opened_anew(by: str, tmp_path: Path, lost: Lost) -> None:
    file, old = tmp_path / "audit", tmp_path / "audit.1"
    audit = AuditLog(str(file), lost)
    record(audit, "a")
    if by == "rename":
        file.rename(old)
    else:
        file.unlink()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    record(audit, "b")
    assert ids(file) == ["b"]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_file_that_was_cut_goes_on_at_its_beginning(tmp_path: Path, lost: Lost) -> None:
    """As `copytruncate` of logrotate leaves it."""
    file = tmp_path / "audit"
    audit = AuditLog(str(file), lost)
    record(audit, "a")
    os.truncate(file, 0)
    record(audit, "b")
    assert ids(file) == ["b"]


def test_a_full_disk_is_counted_and_logged_once(
    tmp_path: Path, lost: Lost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes a piece of a line first, then nothing."""
    file = tmp_path / "audit"
    audit = AuditLog(str(file), lost)
    write = os.write
    room = 50

    def scarce(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "a path that must not be logged")
        written = write(fd, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", scarce)
        for _ in range(3):
            record(audit, "a")
    assert lost.lines == 3
    assert caplog.messages == ["audit lines are lost: no space left on device"]
    record(audit, "b")
    record(audit, "c")
    torn, *whole = file.read_text().splitlines()
    assert len(torn) == 50
    assert [json.loads(line)["id"] for line in whole] == ["b", "c"]
    assert lost.lines == 3


def test_a_folder_that_vanishes_fails_no_request(tmp_path: Path, lost: Lost) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = AuditLog(str(folder / "audit"), lost)
    (folder / "audit").unlink()
    folder.rmdir()
    record(audit, "a")
    assert lost.lines == 1
    folder.mkdir()
    record(audit, "b")
    assert ids(folder / "audit") == ["b"]


def test_a_pipe_that_nobody_empties_holds_nobody_up(tmp_path: Path, lost: Lost) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SettingsError, match="NSNET_AUDIT_LOG: no such device"):
        AuditLog(str(pipe), lost)  # nobody reads
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        audit = AuditLog(str(pipe), lost)
        for _ in range(1000):  # 64 KiB fit
            record(audit, "a")
        assert lost.lines > 0
    finally:
        os.close(reader)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_standard_output_that_nobody_empties_holds_nobody_up(
    kind: str, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line waited, and with it all requests."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (one.detach() for one in socket.socketpair())
    monkeypatch.setattr("app.audit._STDOUT", writer)
    audit = AuditLog("-", lost)

    def many() -> None:
        for _ in range(3000):
            record(audit, "a")

    recording = threading.Thread(target=many, daemon=True)
    recording.start()
    try:
        recording.join(10)
        assert not recording.is_alive()
        kept = 3000 - lost.lines
        assert 0 < kept < 3000
        received = b""
        while received.count(b"\n") < kept:
            received += os.read(reader, 65536)
        record(audit, "b")  # there is room again
        lines = (received + os.read(reader, 65536)).splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["a"] * kept + ["b"]
    finally:
        os.close(reader)
        os.close(writer)


def test_what_is_no_file_stops_the_start_without_its_path(tmp_path: Path, lost: Lost) -> None:
    for path in (tmp_path, tmp_path / "none" / "audit"):
        with pytest.raises(SettingsError) as caught:
            AuditLog(str(path), lost)
        assert str(caught.value).startswith("NSNET_AUDIT_LOG: ")
        assert str(tmp_path) not in str(caught.value)
