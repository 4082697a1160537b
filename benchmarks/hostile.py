"""What hostile files cost a server: each alone, and others' requests beside them.

    python benchmarks/hostile.py FOLDER [--seconds 20] [--rounds 3] [--detector fake]

Starts a real server (cache off) with the environment's detector (`real`), or with one that answers
at once (`fake`, from a checkout's root). Every file below FOLDER but README.md is sent to it:

* Alone: its answer, the seconds to it (median of 3), and the most resident memory of the server and
  its decoders over idle, looked at while the file is sent once more. Below 1 s and 300 MiB. A
  `.http` file is a request as it stands, sent on a socket of its own: it has one answer.
* Beside others: 4 clients, one request at a time each, send 512 px JPEGs: alone, beside one client
  who uploads 12-megapixel JPEGs one after another, and beside one who uploads the files (those that
  are no `.http`). The three take turns of so many seconds, all rounds are counted together: beside
  the files, the p99 is at most 1.5 times that beside the large JPEGs.

Every aim says PASS or FAIL; any FAIL makes the exit status 1.
"""

import argparse
import contextlib
import http.client
import json
import re
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.fuzz import FAKE
from benchmarks.load import Closed, Latency, Load, Target, apply_load, latency
from benchmarks.local import SERVE, Local, local_server
from benchmarks.memory import photograph, resident, watched
from benchmarks.serving import Check, at_most, photographs

MOST_S = 1.0
MOST_BYTES = 300 << 20
MOST_RATIO = 1.5
CLIENTS = 4
ALONE, LARGE, FILES = "alone", "beside large JPEGs", "beside the files"
_TIMES = 3
_TIMEOUT_S = 60.0
_QUIET_S = 1.0  # after which no further answer is to come
_BACKOFF_S = 0.1  # of a client without an answer: without it, it would spin
_STATUS_LINE = re.compile(rb"HTTP/1\.\d (?!100)(\d{3}) ")  # 100 announces an answer, and is none

# --- one request --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        status: of HTTP; 0 where no answer came.
        said: the verdict with its warnings, or the problem's code.
        seconds: from its sending until all of the answer was there.
        count: answers to it.
    """

    status: int
    said: str
    seconds: float
    count: int = 1


def connect(url: str) -> http.client.HTTPConnection:
    """A client: a connection that opens with its first request, and again where it was closed."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)


def post(client: http.client.HTTPConnection, image: bytes, path: str = "/detect") -> Answer:
    """Send a file."""
    start = time.perf_counter()
    try:
        client.request("POST", path, image, {"Content-Type": "application/octet-stream"})
        response = client.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        client.close()
        return Answer(0, type(error).__name__, time.perf_counter() - start, 0)
    return Answer(response.status, said(body), time.perf_counter() - start)


def send(url: str, request: bytes) -> Answer:
    """Send bytes as they are, and count the answers until nothing more comes.

    The seconds are those to the last answer, the status is the first one's.
    """
    address = urlsplit(url)
    received = b""
    start = time.perf_counter()
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address.hostname, address.port), _TIMEOUT_S) as connection,
    ):
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            received += part
            done = time.perf_counter()
            connection.settimeout(_QUIET_S)
    statuses = _STATUS_LINE.findall(received)
    if not statuses:
        return Answer(0, "no answer", time.perf_counter() - start, 0)
    body = received.partition(b"\r\n\r\n")[2]
    return Answer(int(statuses[0]), said(body), done - start, len(statuses))


def said(body: bytes) -> str:
    """The verdict with its warnings, or the problem's code; empty where there is neither."""
    try:
        # Another answer may follow.
        answer, _ = json.JSONDecoder().raw_decode(body.decode(errors="replace"))
        if "verdict" in answer:
            return ", ".join([answer["verdict"], *answer["warnings"]])
        return str(answer["code"])
    except (ValueError, TypeError, KeyError):
        return ""


# --- each file alone ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A file and what it cost.

    Attributes:
        name: path below the folder.
        answer: one like the others; where one was wrong, that.
        seconds: to the answer, median.
        memory: resident bytes over idle, the most that was seen.
    """

    name: str
    answer: Answer
    seconds: float
    memory: int

    @property
    def cheap(self) -> bool:
        """Whether it stayed below the limits."""
        return self.seconds < MOST_S and self.memory < MOST_BYTES

    def __str__(self) -> str:
        answers = "" if self.answer.count == 1 else f" ({self.answer.count} answers)"
        return (
            f"| {self.name} | {self.answer.status}{answers} | {self.answer.said} "
            f"| {self.seconds:.3f} | {self.memory / 2**20:.0f} | {'yes' if self.cheap else 'NO'} |"
        )


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file but README.md, by its path below the folder.

    Raises:
        SystemExit: there is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    if not paths:
        raise SystemExit(f"no file below {folder}")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def is_request(name: str) -> bool:
    """Whether a file is a whole request, no image."""
    return name.endswith(".http")


def attempt(server: Local, name: str, data: bytes, idle: int) -> Case:
    """Send one file, with nobody beside it.

    Args:
        server: where to.
        name: path below the folder.
        data: the file.
        idle: the server's resident bytes without any request.
    """
    with contextlib.closing(connect(server.url)) as client:

        def ask() -> Answer:
            return send(server.url, data) if is_request(name) else post(client, data)

        answers = [ask() for _ in range(_TIMES)]
        seconds = statistics.median(answer.seconds for answer in answers)
        # Apart from those that are timed: looking takes processor time.
        last, most = watched(server.pid, ask)
    worst = max([last, *answers], key=lambda answer: (answer.count != 1, answer.status == 500))
    return Case(name, worst, seconds, max(0, most - idle))


def judged(cases: Sequence[Case]) -> list[Check]:
    """What each file may cost, and how it is answered."""
    requests = [case for case in cases if is_request(case.name)]
    return [
        at_most(f"files of {MOST_S:g} s or more", sum(c.seconds >= MOST_S for c in cases), 0),
        at_most(
            f"files of {MOST_BYTES >> 20} MiB over idle or more",
            sum(c.memory >= MOST_BYTES for c in cases),
            0,
        ),
        at_most("files with 500 or no answer", sum(c.answer.status in (0, 500) for c in cases), 0),
        at_most(
            "requests with more or less than one answer",
            sum(c.answer.count != 1 for c in requests),
            0,
        ),
    ]


# --- beside others ------------------------------------------------------------------------------


@dataclass(slots=True)
class Phase:
    """One kind of turn, over all rounds.

    Attributes:
        loads: the stream of ordinary images.
        uploads: answers to the client beside it.
        seconds: for which that client was there.
    """

    loads: list[Load] = field(default_factory=list)
    uploads: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def latency(self) -> Latency | None:
        """Of the stream's results."""
        samples = (sample for load in self.loads for sample in load.samples)
        return latency(s.done - s.due for s in samples if s.status == 200)

    @property
    def failed(self) -> int:
        """Requests of the stream without a result."""
        return sum(sample.status != 200 for load in self.loads for sample in load.samples)


@contextlib.contextmanager
def uploading(url: str, files: Sequence[bytes], path: str = "/detect") -> Iterator[list[Answer]]:
    """One client who uploads these files round and round until the block ends; of none, nobody.

    Yields:
        the answers so far.
    """
    answers: list[Answer] = []
    ended = threading.Event()

    def upload() -> None:
        with contextlib.closing(connect(url)) as client:
            while not ended.is_set():
                for file in files:
                    answers.append(post(client, file, path))
                    if not answers[-1].status:
                        ended.wait(_BACKOFF_S)
                    if ended.is_set():
                        return

    uploader = threading.Thread(target=upload)
    if files:
        uploader.start()
    try:
        yield answers
    finally:
        ended.set()
        if files:
            uploader.join()


def take_turns(
    target: Target, beside: Mapping[str, Sequence[bytes]], seconds: float, rounds: int
) -> dict[str, Phase]:
    """A stream of ordinary images, beside other uploads in turns.

    Args:
        target: the server, and the ordinary images.
        beside: by name, what one more client uploads.
        seconds: counted time of a turn.
        rounds: turns of each.
    """
    phases = {name: Phase() for name in beside}
    for _ in range(rounds):
        for name, phase in phases.items():
            start = time.perf_counter()
            with uploading(target.url, beside[name]) as answers:
                phase.loads.append(
                    apply_load(target, Closed(CLIENTS), seconds=seconds, warmup=min(2.0, seconds))
                )
            phase.seconds += time.perf_counter() - start
            phase.uploads += answers
    return phases


def row(name: str, phase: Phase) -> str:
    """A line of the table of phases."""
    ms = [f"{1000 * value:.0f}" for value in _percentiles(phase.latency)]
    by_round = [f"{1000 * _percentiles(load.admitted)[1]:.0f}" for load in phase.loads]
    count = phase.latency.count if phase.latency else 0
    return (
        f"| {name} | {count} | {' | '.join(ms)} | {' '.join(by_round)} "
        f"| {len(phase.uploads) / phase.seconds:.1f} |"
    )


def compared(phases: Mapping[str, Phase]) -> list[Check]:
    """That the files slow nobody down more than large photographs do."""
    files, large = (_percentiles(phases[name].latency)[1] for name in (FILES, LARGE))
    failed = sum(phase.failed for phase in phases.values())
    unanswered = sum(not upload.status for phase in phases.values() for upload in phase.uploads)
    ratio = files / large if files < float("inf") else float("inf")
    return [
        at_most(f"p99 {FILES} / p99 {LARGE}", ratio, MOST_RATIO),
        at_most("requests of the stream without a result", failed, 0),
        at_most("uploads beside it without an answer", unanswered, 0),
    ]


def _percentiles(of: Latency | None) -> tuple[float, float]:
    """(p50, p99) in seconds; without any result, they are infinite."""
    return (of.p50_s, of.p99_s) if of else (float("inf"), float("inf"))


# --- command line -------------------------------------------------------------------------------


def main() -> None:
    """Print both tables and the checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=20, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megapixels", type=float, default=12, help="of the large JPEGs")
    parser.add_argument("--detector", choices=["fake", "real"], default="real")
    chosen = parser.parse_args()
    files = files_below(chosen.folder)
    images = [data for name, data in files.items() if not is_request(name)]
    ordinary, large = photographs(), photograph(chosen.megapixels)
    with local_server(FAKE if chosen.detector == "fake" else SERVE) as server:
        idle = resident(server.pid)
        print(f"idle: {idle / 2**20:.0f} MiB\n")
        print("| file | status | answer | s | MiB over idle | below the limits |")
        print("|---|---|---|---|---|---|")
        cases = []
        for name, data in files.items():
            cases.append(attempt(server, name, data, idle))
            print(cases[-1], flush=True)
        phases = take_turns(
            Target(server.url, ordinary, pid=server.pid),
            {ALONE: [], LARGE: [large], FILES: images},
            chosen.seconds,
            chosen.rounds,
        )
    print(
        f"\n| {CLIENTS} clients | results | p50, ms | p99, ms | p99 by round | uploads/s beside |"
    )
    print("|---|---|---|---|---|---|")
    for name, phase in phases.items():
        print(row(name, phase))
    print()
    checks = [*judged(cases), *compared(phases)]
    for check in checks:
        print(check)
    sys.exit(not all(check.passed for check in checks))


if __name__ == "__main__":
    main()
