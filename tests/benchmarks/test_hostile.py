"""What hostile files cost: the arithmetic, and a second of it on a real server."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.hostile import (
    ALONE,
    FILES,
    LARGE,
    MOST_BYTES,
    Answer,
    Case,
    Phase,
    compared,
    connect,
    files_below,
    judged,
    post,
    send,
    take_turns,
)
from benchmarks.load import Closed, Sample, Target, summarise
from benchmarks.memory import resident, watched
from tests.images import jpeg, png_header
from tests.server.conftest import ROOT, running

PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def upgrade(body: bytes) -> bytes:
    """An upload that offers another protocol."""
    head = (
        "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        f"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_answers_say_what_came_and_those_to_raw_bytes_are_counted() -> None:
    with running() as server:
        client = connect(server.url)
        read, refused = (post(client, file) for file in (jpeg(), png_header(30_000, 30_000)))
        client.close()
        single, double = send(server.url, upgrade(PROBE)), send(server.url, upgrade(b"0") + PROBE)
    assert (read.status, read.said, read.count) == (200, "uncertain", 1)
    assert (refused.status, refused.said) == (413, "too_many_pixels")
    assert (single.status, single.said, single.count) == (415, "unsupported_media_type", 1)
    assert (double.status, double.said, double.count) == (415, "unsupported_media_type", 2)
    assert 0 < double.seconds < 1  # the silence after the answer is no part of it


def test_no_answer_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, but nobody listens
        answers = post(connect(url), b"x"), send(url, PROBE)
        phases = take_turns(Target(url, [jpeg()]), {LARGE: [], FILES: [b"x"]}, 0.2, 1)
    assert [(answer.status, answer.count) for answer in answers] == [(0, 0)] * 2
    ratio, failed, unanswered = compared(phases)
    assert ratio.value == float("inf")
    assert not any(check.passed for check in (ratio, failed, unanswered))


def test_memory_that_is_held_for_a_moment_is_seen() -> None:
    def ask() -> Answer:
        held = bytearray(os.urandom(1) * (64 << 20))
        time.sleep(0.3)
        return Answer(200, str(held[0]), 0.3)

    before = resident(os.getpid())
    answer, most = watched(os.getpid(), ask)
    assert answer.status == 200
    assert most - before > 48 << 20


@pytest.mark.parametrize(
    ("name", "answer", "seconds", "memory", "missed"),
    [
        ("a.png", Answer(413, "too_many_pixels", 0.1), 0.99, MOST_BYTES - 1, None),
        ("a.png", Answer(200, "real", 0.1), 1.0, 0, 0),
        ("a.png", Answer(200, "real", 0.1), 0.1, MOST_BYTES, 1),
        ("a.png", Answer(500, "inference_failed", 0.1), 0.1, 0, 2),
        ("a.http", Answer(415, "unsupported_media_type", 0.1, 2), 0.1, 0, 3),
    ],
)
def test_each_aim_can_be_missed(
    name: str, answer: Answer, seconds: float, memory: int, missed: int | None
) -> None:
    case = Case(name, answer, seconds, memory)
    failed = [index for index, check in enumerate(judged([case])) if not check.passed]
    assert failed == ([] if missed is None else [missed])
    assert case.cheap is (missed not in (0, 1))


def phase(*seconds: float) -> Phase:
    """A stream whose requests took so long."""
    samples = [Sample(1, 1, 1 + took, 200, "") for took in seconds]
    load = summarise(Closed(4), samples, 0, 100, generator_cpu_s=0.0, batches={}, server=[])
    return Phase([load], [], 1.0)


@pytest.mark.parametrize(("files", "passed"), [(0.29, True), (0.31, False)])
def test_the_ratio_is_of_the_p99_beside_files_and_beside_large_ones(
    files: float, passed: bool
) -> None:
    phases = {
        ALONE: phase(0.01),
        LARGE: phase(*[0.1] * 98, 0.2, 9.0),
        FILES: phase(*[0.1] * 98, files, 9.0),
    }
    ratio = compared(phases)[0]
    assert ratio.value == pytest.approx(files / 0.2)
    assert ratio.passed is passed


def test_every_file_below_the_folder_is_one_but_its_readme(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no file"):
        files_below(tmp_path)
    below = tmp_path / "kind"
    below.mkdir()
    for path in (below / "a.png", below / "README.md", tmp_path / "b"):
        path.write_bytes(path.name.encode())
    assert files_below(tmp_path) == {"b": b"b", "kind/a.png": b"a.png"}


@pytest.mark.process
def test_a_folder_is_measured_on_a_server(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(30_000, 30_000))
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    (tmp_path / "desync.http").write_bytes(upgrade(PROBE))
    options = ("--seconds", "0.5", "--rounds", "2", "--megapixels", "0.2", "--detector", "fake")
    done = subprocess.run(
        [sys.executable, "benchmarks/hostile.py", str(tmp_path), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    for case in (
        r"desync\.http \| 415 \| unsupported_media_type",
        r"large\.png \| 413 \| too_many_pixels",
        r"photo\.jpg \| 200 \| uncertain",
    ):
        assert re.search(rf"^\| {case} \| \d\.\d+ \| \d+ \| (yes|NO) \|$", said, re.MULTILINE), said
    streams = re.findall(
        r"^\| (alone|beside.*) \| \d+ \| \d+ \| \d+ \| \d+ \d+ \| (\S+) \|$", said, re.MULTILINE
    )
    assert [name for name, _ in streams] == [ALONE, LARGE, FILES], said
    assert [float(uploads) > 0 for _, uploads in streams] == [False, True, True]
    # How fast a busy machine is decides of the figures, and those of the status.
    assert "PASS  requests with more or less than one answer: 0" in said
    assert "PASS  requests of the stream without a result: 0" in said
    assert done.returncode == ("FAIL" in said)
