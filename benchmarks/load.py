"""Load on a server, and what it makes of it: latencies, rates, refusals, batches, memory.

Closed loop: so many clients, each waiting for its answer before it asks again; what they get is
the server's capacity. Open loop: requests fall due by the clock whatever the server does, and
latency counts from the moment one was due, so that a stalled server cannot hide the requests that
it kept from being sent (coordinated omission).

Every image is unlike all before it, by a comment of 16 bytes: no result cache can answer. The
server may share the cores with this generator, so that it does next to nothing per request, and
reports the CPU time it took.
"""

import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

REFUSALS = (429, 503)

_SOI = b"\xff\xd8"
_COMMENT = b"\xff\xfe\x00\x12"  # the segment's length counts itself: 2 + 16 bytes
_JPEG = {"Content-Type": "image/jpeg"}
_TIMEOUT_S = 120.0  # after which a request has no answer
_BACKOFF_S = 0.1  # of a closed-loop client that was refused: without it, it would spin
_TICK_S = 1.0
# Below the 5 s after which uvicorn closes an idle connection: a request must not meet that close.
_KEEPALIVE_S = 2.0

# --- images -------------------------------------------------------------------------------------


def unlike(images: Sequence[bytes]) -> Iterator[bytes]:
    """Go round these JPEGs for ever, no two files the same, nor the same as in another run.

    The pixels stay: only a comment is put in.

    Args:
        images: at least one JPEG file.

    Raises:
        ValueError: there is none, or one of them is no JPEG.
    """
    if not images or not all(image.startswith(_SOI) for image in images):
        raise ValueError("one JPEG at least, and nothing else")
    run = os.urandom(8)
    tails = [image[2:] for image in images]  # one copy per request is enough
    return (
        b"".join((_SOI, _COMMENT, run, number.to_bytes(8, "big"), tail))
        for number, tail in enumerate(itertools.cycle(tails))
    )


def synthetic(count: int = 8, side: int = 512, seed: int = 0) -> list[bytes]:
    """Make JPEGs of soft shapes, edges and uneven texture.

    They take a little longer to decode than photographs, and leave the default checkpoint in doubt
    after its first look: what they cost is the most that images of their size do.

    Args:
        count: images.
        side: pixels.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)

    def soft(cells: int, channels: int) -> Any:
        small = rng.integers(0, 256, (cells, cells, channels), dtype=np.uint8)
        large = Image.fromarray(small.squeeze()).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(large, dtype=np.float32).reshape(side, side, channels)

    files = []
    for _ in range(count):
        shapes = np.where(soft(6, 1) > 128, soft(4, 3), soft(10, 3))
        texture = rng.normal(0, 1, (side, side, 1)) * soft(5, 1) / 8
        buffer = io.BytesIO()
        pixels = np.clip(shapes + texture, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


# --- what is asked for --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A server and what it is sent.

    Attributes:
        url: without the path.
        images: JPEG files.
        pid: its process, where it is ours to look at.
        key: its API key.
    """

    url: str
    images: Sequence[bytes]
    pid: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """So many clients, each with one request at a time."""

    clients: int

    def __str__(self) -> str:
        return f"{self.clients} client{'s' * (self.clients > 1)}"


@dataclass(frozen=True, slots=True)
class Open:
    """Requests by the clock.

    Attributes:
        rate: requests per second.
        seed: of the Poisson process; None: at even distances.
    """

    rate: float
    seed: int | None = 0

    def __str__(self) -> str:
        return f"{self.rate:.4g} images/s"


def arrivals(traffic: Open, seconds: float) -> Iterator[float]:
    """When requests fall due, seconds from the start, in order, all before `seconds`."""
    gaps = random.Random(traffic.seed)  # noqa: S311  (no secret)
    at = 0.0
    while True:
        at += 1 / traffic.rate if traffic.seed is None else gaps.expovariate(traffic.rate)
        if at >= seconds:
            return
        yield at


# --- what comes of it ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times are seconds of `time.perf_counter()`.

    Attributes:
        due: when it should have been sent; in closed loop, when it was.
        sent: when it was.
        done: when the whole answer was there.
        status: of HTTP; 0 where no answer came.
        problem: the problem's code, or the name of the transport's error; empty for a result.
    """

    due: float
    sent: float
    done: float
    status: int
    problem: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Nearest-rank percentiles: each is a latency that was seen. Seconds."""

    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


def latency(seconds: Iterable[float]) -> Latency | None:
    """Summarise latencies; None of none."""
    values = np.fromiter(seconds, float)
    if not values.size:
        return None
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99], method="inverted_cdf").tolist()
    return Latency(values.size, p50, p95, p99, float(values.max()))


@dataclass(frozen=True, slots=True)
class Reading:
    """The server's process at one moment.

    Attributes:
        at_s: seconds since the counted part began.
        rss: resident bytes.
        fds: open file descriptors.
        cpu_s: CPU seconds it has used since it started.
    """

    at_s: float
    rss: int
    fds: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a load, the warm-up left out.

    In closed loop, the requests answered in the counted time; in open loop, those due in it.

    Attributes:
        traffic: what was asked for.
        seconds: counted time.
        statuses: requests by HTTP status; `0` where no answer came.
        problems: requests by problem code, or by the transport's error.
        images_per_s: results per second, from the last one before the counted time to the last
            one in it: answers come in batches, and a window of any other length would count a
            part of one.
        overall: latency of all that were answered, from when each was due.
        admitted: likewise, of those with a result.
        refused: likewise, of those with 429 or 503.
        lag: how late requests were sent: large where the generator could not keep up.
        transport_errors: requests without an answer.
        generator_cpu_s: CPU seconds of this process, for the counted time.
        batches: forwards by number of images, of the server's own count; empty where it has none.
        server: its process, once a second; empty where it is not ours.
        samples: the requests themselves.
    """

    traffic: str
    seconds: float
    statuses: dict[str, int]
    problems: dict[str, int]
    images_per_s: float
    overall: Latency | None
    admitted: Latency | None
    refused: Latency | None
    lag: Latency | None
    transport_errors: int
    generator_cpu_s: float
    batches: dict[str, int]
    server: list[Reading]
    samples: list[Sample] = field(repr=False)

    @property
    def server_cores(self) -> float | None:
        """Cores that the server kept busy; None where it was not looked at."""
        if len(self.server) < 2:
            return None
        first, last = self.server[0], self.server[-1]
        return (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s)

    @property
    def rss(self) -> int | None:
        """Most resident bytes seen; None where the server was not looked at."""
        return max((reading.rss for reading in self.server), default=None)

    def figures(self) -> dict[str, Any]:
        """Everything but the single requests, for JSON."""
        values = asdict(self)
        del values["samples"]
        return values | {"server_cores": self.server_cores}


def summarise(
    traffic: Closed | Open, samples: Sequence[Sample], begin: float, end: float, **rest: Any
) -> Load:
    """Count the samples between two times of `time.perf_counter()`; `rest` as in `Load`."""
    if isinstance(traffic, Closed):
        counted = [s for s in samples if begin < s.done <= end]
    else:
        counted = [s for s in samples if begin <= s.due < end]
    answered = [s for s in counted if s.status]
    return Load(
        traffic=str(traffic),
        seconds=end - begin,
        statuses=dict(Counter(str(s.status) for s in counted)),
        problems=dict(Counter(s.problem for s in counted if s.problem)),
        images_per_s=_rate((s.done for s in samples if s.status == 200), begin, end),
        overall=latency(s.done - s.due for s in answered),
        admitted=latency(s.done - s.due for s in answered if s.status == 200),
        refused=latency(s.done - s.due for s in answered if s.status in REFUSALS),
        lag=latency(s.sent - s.due for s in counted),
        transport_errors=len(counted) - len(answered),
        samples=counted,
        **rest,
    )


def _rate(done: Iterable[float], begin: float, end: float) -> float:
    """Results per second; see `Load.images_per_s`."""
    times = sorted(time for time in done if time <= end)
    inside = [time for time in times if time > begin]
    if not inside:
        return 0.0
    before = times[len(times) - len(inside) - 1] if len(times) > len(inside) else begin
    return len(inside) / (inside[-1] - before)


def batch_sizes(before: str, after: str) -> dict[str, int]:
    """Forwards between two answers of `/metrics`, by number of images: `{"1": 3, "5-8": 40}`."""
    old, new = _buckets(before), _buckets(after)
    sizes, below, low = {}, 0, 0
    for bound in sorted(new):
        upto = new[bound] - old.get(bound, 0)
        if upto > below:
            high = f"{bound:g}"
            name = f">{low}" if bound == float("inf") else f"{low + 1}-{high}"
            sizes[high if bound == low + 1 else name] = upto - below
        below = upto
        low = low if bound == float("inf") else int(bound)
    return sizes


def _buckets(exposition: str) -> dict[float, int]:
    forwards: Counter[float] = Counter()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "nsnet_batch_size_bucket":
                forwards[float(sample.labels["le"])] += int(sample.value)
    return forwards


# --- the loops ----------------------------------------------------------------------------------

Watcher = Callable[[Reading | None, Sequence[Sample]], None]


def apply_load(
    target: Target,
    traffic: Closed | Open,
    *,
    seconds: float,
    warmup: float = 2.0,
    watch: Watcher | None = None,
) -> Load:
    """Put a load on a server.

    Returns when every request is answered, which may be later than `warmup + seconds`.

    Args:
        target: the server.
        traffic: closed or open loop.
        seconds: counted time.
        warmup: seconds of the same load before it.
        watch: called once a second of the counted time with the server's process, where it is
            ours, and all requests so far, those of the warm-up too.
    """
    return asyncio.run(_apply(target, traffic, seconds, warmup, watch))


async def _apply(
    target: Target, traffic: Closed | Open, seconds: float, warmup: float, watch: Watcher | None
) -> Load:
    bodies = unlike(target.images)
    samples: list[Sample] = []
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    # Proxies of the environment are left alone: they would be measured, too.
    async with aiohttp.ClientSession(
        f"{target.url.rstrip('/')}/",
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
        headers=headers,
        timeout=aiohttp.ClientTimeout(_TIMEOUT_S),
    ) as client:

        async def ask(due: float) -> Sample:
            samples.append(sample := await _ask(client, next(bodies), due))
            return sample

        async with asyncio.TaskGroup() as group:
            start = time.perf_counter()
            begin, end = start + warmup, start + warmup + seconds
            if isinstance(traffic, Closed):
                for _ in range(traffic.clients):
                    group.create_task(_one_client(ask, end))
            else:
                due = (start + at for at in arrivals(traffic, warmup + seconds))
                group.create_task(_by_the_clock(group, ask, due))
            seen = await _watch(client, target.pid, begin, end, samples, watch)
    return summarise(traffic, samples, begin, end, **seen)


async def _one_client(ask: Callable[[float], Any], end: float) -> None:
    while (now := time.perf_counter()) < end:
        if (await ask(now)).status != 200:
            await asyncio.sleep(_BACKOFF_S)


async def _by_the_clock(
    group: asyncio.TaskGroup, ask: Callable[[float], Any], due: Iterable[float]
) -> None:
    for moment in due:
        await _until(moment)
        group.create_task(ask(moment))


async def _ask(client: aiohttp.ClientSession, body: bytes, due: float) -> Sample:
    sent = time.perf_counter()
    try:
        async with client.post(
            "detect", data=body, headers=_JPEG, allow_redirects=False
        ) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        return Sample(due, sent, time.perf_counter(), 0, type(error).__name__)
    done = time.perf_counter()
    return Sample(due, sent, done, response.status, _problem(response.status, answer))


def _problem(status: int, answer: bytes) -> str:
    if status == 200:
        return ""
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        return str(json.loads(answer)["code"])
    return f"status_{status}"


async def _watch(
    client: aiohttp.ClientSession,
    pid: int | None,
    begin: float,
    end: float,
    samples: Sequence[Sample],
    watch: Watcher | None,
) -> dict[str, Any]:
    """Look at the server during the counted time; gives the rest of `Load`."""
    await _until(begin)
    before = await _exposition(client)
    readings: list[Reading] = []
    cpu = time.process_time()
    while True:
        now = time.perf_counter()
        reading = _read(pid, now - begin)
        if reading:
            readings.append(reading)
        if watch:
            watch(reading, samples)
        if now >= end:
            break
        await _until(min(end, now + _TICK_S))
    cpu = time.process_time() - cpu
    return {
        "generator_cpu_s": cpu,
        "batches": batch_sizes(before, await _exposition(client)),
        "server": readings,
    }


async def _exposition(client: aiohttp.ClientSession) -> str:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with client.get("metrics") as response:
            if response.status == 200:
                return await response.text()
    return ""


def _read(pid: int | None, at_s: float) -> Reading | None:
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Reading(
                at_s, process.memory_info().rss, process.num_fds(), times.user + times.system
            )
    except psutil.Error:  # it ended: the requests tell
        return None


async def _until(moment: float) -> None:
    # At least one turn of the loop, so that what is late already cannot starve the answers.
    await asyncio.sleep(max(0.0, moment - time.perf_counter()))
