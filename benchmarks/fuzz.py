"""Damaged and hostile files against the decoders, and against a whole server.

    python benchmarks/fuzz.py decoder [--files 200000] [--jobs 2] [--seed 0]
    python benchmarks/fuzz.py http [--files 20000] [--clients 4] [--seed 0] [--detector fake]
    python benchmarks/fuzz.py one --number 4711 [--seed 0]

Files are mutants of small ones of every format and mode (`mutants.py`); a number and a seed make
the same file again, on the same versions of the libraries that write the originals. Prints what
came of them, by format, then what must not be, each with PASS or FAIL; any FAIL makes the exit
status 1. `--keep FOLDER` writes the files that are findings there; else no file is kept.

* decoder: through `app.decoding`, one pool a job. No process may die, hang or meet its limits; no
  file may cost more than 5 CPU seconds, nor more memory than 17 bytes a pixel beside itself. What
  the pixels of a refused file would have been is not known: it may cost what the largest accepted
  one may; `--megapixels 1` makes that a sharp bound.
* http: a real server on loopback, with a detector that answers at once (`fake`, from a checkout's
  root) or the environment's (`real`). Every file is answered, none by 500, 503 or 504, probes are
  answered all the while, and memory is back 10 s later.
* one: decodes a single file in this very process, where a debugger can see it.
"""

import argparse
import asyncio
import itertools
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

import aiohttp
import psutil

from app.decoding import pool
from benchmarks.local import SERVE, local_server
from benchmarks.memory import RETURNED_BYTES, resident
from benchmarks.mutants import Mutant, Mutants, Original, originals
from benchmarks.serving import Check, at_most
from model.images import ImageError, Limits, Picture, decode

CPU_S = 5
WALL_S = 20.0
BYTES_PER_PIXEL = 17
SLACK_BYTES = 48 << 20  # tables, threads and copies of a file that do not grow with an image
_SETTLED_S = 10.0
_SILENT_S = 120.0  # after which a job that says nothing hangs
_TELL_S = 10.0
_TOLD = 20  # findings of each fault
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
FAKE = (sys.executable, "-m", "tests.server.serve_calm")

# --- what came of it ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one file.

    Attributes:
        number: of the mutant.
        format: of what it was made of.
        outcome: `ok`, or the error's code; over HTTP, with the status before it.
        fault: what must not be; empty where all is well.
        wall_s: seconds to the answer.
        cpu_s: CPU seconds; 0 over HTTP.
        memory: bytes at the peak; 0 over HTTP.
    """

    number: int
    format: str
    outcome: str
    fault: str
    wall_s: float
    cpu_s: float = 0.0
    memory: int = 0


@dataclass(slots=True)
class Tally:
    """All trials, as far as they are told.

    Attributes:
        outcomes: by outcome and format.
        findings: those with a fault.
        costly: by what it costs most of, the trial.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Trial] = field(default_factory=list)
    costly: dict[str, Trial] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        """Count one."""
        self.outcomes[trial.outcome, trial.format] += 1
        if trial.fault:
            self.findings.append(trial)
        for what in ("wall_s", "cpu_s", "memory"):
            most = self.costly.get(what)
            if most is None or getattr(trial, what) > getattr(most, what):
                self.costly[what] = trial

    @property
    def count(self) -> int:
        """Trials so far."""
        return self.outcomes.total()

    def show(self, files: Mutants) -> None:
        """Print the table, what cost most, and the findings."""
        formats = list(dict.fromkeys(name for _, name in self.outcomes))
        print(f"\n| outcome | {' | '.join(formats)} | all |")
        print("|---|" + "---|" * (len(formats) + 1))
        for outcome in sorted({outcome for outcome, _ in self.outcomes}):
            row = [self.outcomes[outcome, name] for name in formats]
            print(f"| {outcome} | {' | '.join(map(str, row))} | {sum(row)} |")
        for what, trial in self.costly.items():
            value = getattr(trial, what)
            if value:
                text = f"{value / 2**20:.0f} MiB" if what == "memory" else f"{value:.2f}"
                print(f"most {what}: {text}, number {trial.number}: {files[trial.number].name}")
        for fault, count in Counter(trial.fault for trial in self.findings).items():
            print(f"FOUND  {fault}: {count}{', of which' if count > _TOLD else ''}")
            some = (trial for trial in self.findings if trial.fault == fault)
            for trial in itertools.islice(some, _TOLD):
                print(
                    f"  number {trial.number}: {trial.outcome}, {trial.wall_s:.2f} s, "
                    f"{trial.cpu_s:.2f} CPU s, {trial.memory / 2**20:.0f} MiB, "
                    f"{files[trial.number].name}"
                )
        print(flush=True)

    def checks(self, faults: Sequence[str]) -> list[Check]:
        """That none of these faults was seen, nor any other."""
        seen = Counter(trial.fault for trial in self.findings)
        return [at_most(fault, seen[fault], 0) for fault in dict.fromkeys([*faults, *seen])]


# --- against the decoders -----------------------------------------------------------------------

CRASH, HANG, BUG, LACK = "crashes", "hangs", "answers of 500", "answers of 503"
SLOW, LARGE = f"files of more than {CPU_S} CPU s", "files beyond the stated memory"
_DECODER_FAULTS = (CRASH, HANG, BUG, LACK, SLOW, LARGE)


def attack_decoders(
    files: Sequence[Original], numbers: range, jobs: int, seed: int, limits: Limits, folder: str
) -> Iterator[Trial]:
    """Decode mutants, in so many processes with a pool each.

    Args:
        files: what is damaged.
        numbers: of the mutants.
        jobs: processes.
        seed: of the mutants.
        limits: what a file may have.
        folder: for temporary files.

    Raises:
        SystemExit: a job ended, or says nothing for long.
    """
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    workers = []
    for job in range(jobs):
        ours, theirs = context.Pipe(duplex=False)
        share = numbers[job::jobs]
        worker = context.Process(
            target=_decode_share, args=(theirs, files, share, seed, limits, folder), daemon=True
        )
        worker.start()
        theirs.close()
        ends.append(ours)
        workers.append(worker)
    try:
        while ends:
            ready = wait(ends, _SILENT_S)
            if not ready:
                raise SystemExit("FAIL  the pool itself hangs")
            for end in ready:
                try:
                    trial = cast(Connection, end).recv()
                except EOFError:
                    raise SystemExit("FAIL  a job ended before its time") from None
                if trial is None:
                    ends.remove(cast(Connection, end))
                else:
                    yield trial
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _decode_share(
    connection: Connection,
    files: Sequence[Original],
    numbers: range,
    seed: int,
    limits: Limits,
    folder: str,
) -> None:
    """One job."""
    logging.disable()  # of every process that is replaced
    os.environ["TMPDIR"] = folder  # what the decoders leave is to lie where it is counted
    mutants, ends = Mutants(files, seed), list[str]()
    decoders = pool.Decoders(1, cpu_s=CPU_S, wall_s=WALL_S, replaced=ends.append)
    decoders.start()
    try:
        meter = _Meter()
        for number in numbers:
            mutant = mutants[number]
            data = mutant.data
            meter.start()
            start = time.monotonic()
            outcome, picture = _outcome(decoders, data, limits)
            wall_s = time.monotonic() - start
            cpu_s, memory = meter.stop()
            trial = Trial(number, mutant.format, outcome, "", wall_s, cpu_s, memory)
            connection.send(judged(trial, ends[-1] if ends else "", stated(data, picture, limits)))
            if ends:
                ends.clear()
                meter = _Meter()
    finally:
        decoders.stop()
    connection.send(None)


def _outcome(decoders: pool.Decoders, data: bytes, limits: Limits) -> tuple[str, Picture | None]:
    try:
        return "ok", decoders.decode([data], limits)
    except ImageError as error:
        return error.code, None
    except pool.DecodersError:
        return LACK, None
    except RuntimeError:
        return BUG, None


def stated(data: bytes, picture: Picture | None, limits: Limits) -> int:
    """Bytes that a file may take; where its pixels are not known, as many as may be."""
    pixels = picture.facts.width * picture.facts.height if picture else limits.max_pixels
    return BYTES_PER_PIXEL * pixels + len(data) + SLACK_BYTES


def judged(trial: Trial, end: str, most_bytes: int) -> Trial:
    """The trial with its fault.

    Args:
        trial: without.
        end: why a decoder was replaced after it, as the pool says; empty where none was.
        most_bytes: that it may take.
    """
    faults = {
        CRASH: end in ("crashed", "killed"),
        HANG: trial.wall_s >= WALL_S,
        BUG: trial.outcome == BUG,
        LACK: trial.outcome == LACK,
        SLOW: trial.cpu_s > CPU_S or (end == "too_expensive" and trial.wall_s >= CPU_S),
        LARGE: trial.memory > most_bytes or end == "too_expensive",
    }
    return replace(trial, fault=next((fault for fault, found in faults.items() if found), ""))


class _Meter:
    """What the decoders, this process's children, take of processor and memory.

    One that dies takes its figures with it, except for its CPU time.
    """

    def __init__(self) -> None:
        """Wait until all are idle: one that starts would be measured with the next file."""
        before = -1.0
        while True:
            self._pids = [child.pid for child in psutil.Process().children()]
            now = self._cpu_s()
            if now == before:
                break
            before = now
            time.sleep(0.05)

    def start(self) -> None:
        """Begin with a file."""
        self._resident = [self._memory(pid, "VmRSS") for pid in self._pids]
        for pid in self._pids:
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
            except OSError:
                continue
        self._began = self._cpu_s()

    def stop(self) -> tuple[float, int]:
        """CPU seconds and bytes at the peak, since `start`."""
        peaks = [self._memory(pid, "VmHWM") for pid in self._pids]
        memory = max(
            (peak - was for peak, was in zip(peaks, self._resident, strict=True)), default=0
        )
        return max(0.0, self._cpu_s() - self._began), max(0, memory)

    def _cpu_s(self) -> float:
        """Of all, those that are no more too, but not of those that came since."""
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = dead.ru_utime + dead.ru_stime
        for pid in self._pids:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += _TICK_S * (int(fields[11]) + int(fields[12]))
        return total

    @staticmethod
    def _memory(pid: int, name: str) -> int:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        _, found, rest = status.partition(f"{name}:")
        return 1024 * int(rest.split()[0]) if found else 0


def decoder(chosen: argparse.Namespace) -> list[Check]:
    """The pool of decoders."""
    files = chosen_originals(chosen.formats)
    limits = Limits(max_pixels=round(chosen.megapixels * 1e6))
    numbers = range(chosen.first, chosen.first + chosen.files)
    with tempfile.TemporaryDirectory() as folder:
        trials = attack_decoders(files, numbers, chosen.jobs, chosen.seed, limits, folder)
        tally = tell(trials, chosen.files)
        left = len(_inside(folder))
    mutants = Mutants(files, chosen.seed)
    tally.show(mutants)
    keep(chosen.keep, tally, mutants)
    return [*tally.checks(_DECODER_FAULTS), at_most("temporary files left", left, 0)]


# --- against a server ---------------------------------------------------------------------------

SILENT, LATE = "files without an answer", "answers of 504, or none in time"
_HTTP_FAULTS = (BUG, LACK, LATE, SILENT)
_TYPES = (None, "application/octet-stream", "image/jpeg", "multipart/form-data")


async def attack_server(url: str, mutants: Mutants, numbers: range, clients: int) -> list[Trial]:
    """Post mutants to `/detect`, each client one after another, in four ways in turns."""
    trials: list[Trial] = []
    queue = iter(numbers)
    async with aiohttp.ClientSession(
        f"{url}/", timeout=aiohttp.ClientTimeout(2 * WALL_S)
    ) as session:

        async def client() -> None:
            for number in queue:
                trial = await _post(session, number, mutants[number])
                trials.append(trial)

        async def watch() -> None:
            while True:
                await asyncio.sleep(_TELL_S)
                print(f"  {len(trials)} of {len(numbers)} files", flush=True)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(client() for _ in range(clients)))
        watcher.cancel()
    return trials


async def _post(session: aiohttp.ClientSession, number: int, mutant: Mutant) -> Trial:
    media = _TYPES[number // 2 % len(_TYPES)]
    form: aiohttp.FormData | bytes = mutant.data
    headers = {"Content-Type": media} if media else {}
    if media == "multipart/form-data":
        form, headers = aiohttp.FormData(), {}
        form.add_field("file", mutant.data, filename="image")
    skip = () if headers or isinstance(form, aiohttp.FormData) else ("Content-Type",)
    start = time.monotonic()
    try:
        async with session.post(
            "detect", data=form, headers=headers, skip_auto_headers=skip
        ) as response:
            status, body = response.status, await response.read()
    except TimeoutError:
        return Trial(number, mutant.format, LATE, LATE, time.monotonic() - start)
    except aiohttp.ClientError as error:
        what = f"no answer, {type(error).__name__}"
        return Trial(number, mutant.format, what, SILENT, time.monotonic() - start)
    wall_s = time.monotonic() - start
    code = "ok" if status == 200 else str(json.loads(body).get("code"))
    fault = {500: BUG, 503: LACK, 504: LATE}.get(status, "")
    return Trial(number, mutant.format, f"{status} {code}", fault, wall_s)


async def _attacked(
    url: str, mutants: Mutants, numbers: range, clients: int, pid: int
) -> tuple[list[Trial], int, int]:
    """The trials, failed probes, and most resident bytes of server and decoders."""
    failed, peak = 0, 0

    async def probe() -> None:
        nonlocal failed, peak
        async with aiohttp.ClientSession(
            f"{url}/", timeout=aiohttp.ClientTimeout(_TELL_S)
        ) as session:
            while True:
                peak = max(peak, resident(pid))
                try:
                    async with session.get("livez") as response:
                        failed += response.status != 200
                except (aiohttp.ClientError, TimeoutError):
                    failed += 1
                await asyncio.sleep(0.2)

    prober = asyncio.create_task(probe())
    trials = await attack_server(url, mutants, numbers, clients)
    prober.cancel()
    return trials, failed, peak


def settled(pid: int, idle: int) -> int:
    """Resident bytes once they are as near to `idle` as they have to be, 10 s later at most."""
    end = time.monotonic() + _SETTLED_S
    while (now := resident(pid)) > idle + RETURNED_BYTES and time.monotonic() < end:
        time.sleep(0.1)
    return now


def http(chosen: argparse.Namespace) -> list[Check]:
    """A whole server."""
    mutants = Mutants(chosen_originals(chosen.formats), chosen.seed)
    numbers = range(chosen.first, chosen.first + chosen.files)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        with local_server(FAKE if chosen.detector == "fake" else SERVE) as server:
            idle, there = resident(server.pid), _inside(folder)
            trials, failed, peak = asyncio.run(
                _attacked(server.url, mutants, numbers, chosen.clients, server.pid)
            )
            after = settled(server.pid, idle)
        left = len(_inside(folder) - there)  # some come with the start
    tally = Tally()
    for trial in trials:
        tally.add(trial)
    tally.show(mutants)
    print(f"resident: {_mib(idle)} idle, {_mib(peak)} at most, {_mib(after)} after\n")
    keep(chosen.keep, tally, mutants)
    return [
        *tally.checks(_HTTP_FAULTS),
        at_most("probes that fail", failed, 0),
        at_most("temporary files left", left, 0),
        at_most(
            "MiB over idle, after 10 s at most", (after - idle) / 2**20, RETURNED_BYTES / 2**20
        ),
    ]


# --- a single one -------------------------------------------------------------------------------


def one(chosen: argparse.Namespace) -> list[Check]:
    """A single mutant, decoded here."""
    mutant = Mutants(chosen_originals(chosen.formats), chosen.seed)[chosen.number]
    print(f"{mutant.name}, {len(mutant.data)} bytes", flush=True)
    if chosen.keep:
        print(f"written to {_written(chosen.keep, chosen.number, mutant.data)}")
    start = time.process_time()
    try:
        facts = decode(mutant.data, Limits(max_pixels=round(chosen.megapixels * 1e6))).facts
        print(facts)
    except ImageError as error:
        print(f"{error.code}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.process_time() - start:.2f} CPU s; the whole process, {peak:.0f} MiB at most")
    return []


# --- command line -------------------------------------------------------------------------------


def chosen_originals(formats: Sequence[str]) -> list[Original]:
    """Files of these formats; of all, where none is named. Numbers then mean other mutants."""
    files = [file for file in originals() if not formats or file.format in formats]
    if not files:
        raise SystemExit(f"no such format: {', '.join(formats)}")
    return files


def tell(trials: Iterator[Trial], count: int) -> Tally:
    """Count trials, and print how far they are."""
    tally, start = Tally(), time.monotonic()
    said = start
    for trial in trials:
        tally.add(trial)
        now = time.monotonic()
        if now - said >= _TELL_S:
            said = now
            print(
                f"  {tally.count} of {count} files, {tally.count / (now - start):.0f}/s, "
                f"{len(tally.findings)} findings",
                flush=True,
            )
    return tally


def keep(folder: Path | None, tally: Tally, mutants: Mutants) -> None:
    """Write the files that are findings; the first hundred of each fault."""
    if folder is None:
        return
    for fault in {trial.fault for trial in tally.findings}:
        found = (trial.number for trial in tally.findings if trial.fault == fault)
        for number in itertools.islice(found, 100):
            _written(folder, number, mutants[number].data)


def _written(folder: Path, number: int, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.bin"
    path.write_bytes(data)
    return path


def _inside(folder: str) -> set[Path]:
    return set(Path(folder).iterdir())


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def main() -> None:
    """Run one of them; print its checks."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=0)
    shared.add_argument("--formats", nargs="*", default=[], help="as JPEG PNG WEBP; all of them")
    shared.add_argument("--megapixels", type=float, default=Limits().max_pixels / 1e6)
    shared.add_argument("--keep", type=Path, metavar="FOLDER")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run, count in ((decoder, 200_000), (http, 20_000), (one, 0)):
        command = commands.add_parser(run.__name__, parents=[shared], description=run.__doc__)
        command.set_defaults(run=run)
        if count:
            command.add_argument("--files", type=int, default=count)
            command.add_argument("--first", type=int, default=0, help="number of the first one")
        else:
            command.add_argument("--number", type=int, required=True)
        if run is decoder:
            command.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
        if run is http:
            command.add_argument("--clients", type=int, default=4)
            command.add_argument("--detector", choices=["fake", "real"], default="fake")
    chosen = parser.parse_args()
    checks = chosen.run(chosen)
    for check in checks:
        print(check)
    sys.exit(not all(check.passed for check in checks))


if __name__ == "__main__":
    main()
