"""The load generator: its arithmetic, and a second of load on a real server."""

import io
import itertools
import os
import socket

import aiohttp
import numpy as np
import pytest
from PIL import Image

from benchmarks.load import (
    Closed,
    Load,
    Open,
    Sample,
    Target,
    apply_load,
    arrivals,
    batch_sizes,
    latency,
    summarise,
    synthetic,
    unlike,
)
from tests.fakes import SLOW
from tests.images import encoded, jpeg
from tests.server.conftest import running


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_no_two_images_are_the_same_file_and_all_have_their_pixels() -> None:
    images = [jpeg(seed=0), jpeg(seed=1)]
    sent = list(itertools.islice(unlike(images), 50))
    again = list(itertools.islice(unlike(images), 50))  # as in another run against one server
    assert len({*images, *sent, *again}) == 102
    for number, data in enumerate(sent):
        np.testing.assert_array_equal(pixels(data), pixels(images[number % 2]))


@pytest.mark.parametrize("images", [[], [jpeg(), b"\x89PNG"]])
def test_only_jpegs_are_taken(images: list[bytes]) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        unlike(images)


def test_synthetic_images_differ_and_weigh_what_photographs_do() -> None:
    images = synthetic(3)
    assert len(set(images)) == 3
    for data in images:
        assert pixels(data).shape == (512, 512, 3)
        assert 30_000 < len(data) < 200_000  # skimage's photographs: 60 to 110 kB


def test_percentiles_are_latencies_that_were_seen() -> None:
    found = latency(np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000)
    assert found
    assert (found.count, found.p50_s, found.p95_s, found.p99_s, found.max_s) == (
        100,
        0.050,
        0.095,
        0.099,
        0.100,
    )
    assert latency([]) is None


def test_even_arrivals_come_by_the_clock() -> None:
    np.testing.assert_allclose(list(arrivals(Open(4, seed=None), 1.1)), [0.25, 0.5, 0.75, 1.0])


def test_poisson_arrivals_have_the_rate_and_are_the_same_for_a_seed() -> None:
    times = list(arrivals(Open(50, seed=3), 100))
    assert times == list(arrivals(Open(50, seed=3), 100))
    assert times != list(arrivals(Open(50, seed=4), 100))
    assert times == sorted(times)
    assert times[-1] < 100
    assert len(times) == pytest.approx(5000, abs=5 * 5000**0.5)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential: not even


def exposition(*counts: int) -> str:
    bounds = ("1.0", "2.0", "4.0", "8.0", "+Inf")
    lines = [
        f'nsnet_batch_size_bucket{{le="{le}"}} {n}' for le, n in zip(bounds, counts, strict=True)
    ]
    return "\n".join(["# TYPE nsnet_batch_size histogram", *lines, ""])


def test_batches_are_the_difference_of_two_histograms() -> None:
    before, after = exposition(2, 2, 3, 5, 5), exposition(3, 5, 7, 15, 16)
    assert batch_sizes(before, after) == {"1": 1, "2": 2, "3-4": 1, "5-8": 6, ">8": 1}
    assert batch_sizes(after, after) == {}
    assert batch_sizes("", "") == {}  # a server without such a metric


def summary(traffic: Closed | Open, samples: list[Sample], begin: float, end: float) -> Load:
    return summarise(traffic, samples, begin, end, generator_cpu_s=0.0, batches={}, server=[])


def test_the_rate_of_bursts_does_not_depend_on_where_the_window_cuts_them() -> None:
    """A batch of 8 every second is 8 images/s, though 3 or 4 such bursts fall into 3.5 s."""
    samples = [Sample(0, 0, burst, 200, "") for burst in range(1, 20) for _ in range(8)]
    for begin in (4.2, 4.7):
        assert summary(Closed(8), samples, begin, begin + 3.5).images_per_s == pytest.approx(8)
    assert summary(Closed(8), samples, 30, 40).images_per_s == 0


def test_open_loop_counts_what_was_due_and_waits_from_then() -> None:
    samples = [
        Sample(due=0.9, sent=0.9, done=1.5, status=200, problem=""),  # of the warm-up
        Sample(due=1.0, sent=1.5, done=3.0, status=200, problem=""),  # late, answered afterwards
        Sample(due=1.2, sent=1.2, done=1.3, status=429, problem="queue_full"),
        Sample(due=1.3, sent=1.3, done=1.4, status=503, problem="draining"),
        Sample(due=1.4, sent=1.4, done=1.9, status=504, problem="deadline_exceeded"),
        Sample(due=1.5, sent=1.5, done=9.0, status=0, problem="ReadTimeout"),
        Sample(due=2.0, sent=2.0, done=2.1, status=200, problem=""),  # past the end
    ]
    found = summary(Open(5), samples, 1, 2)
    assert found.statuses == {"200": 1, "429": 1, "503": 1, "504": 1, "0": 1}
    assert found.problems == {
        "queue_full": 1,
        "draining": 1,
        "deadline_exceeded": 1,
        "ReadTimeout": 1,
    }
    assert found.admitted
    assert found.admitted.p50_s == pytest.approx(2.0)
    assert found.refused
    assert found.refused.count == 2
    assert found.overall
    assert found.overall.count == 4
    assert found.transport_errors == 1
    assert found.lag
    assert found.lag.max_s == pytest.approx(0.5)
    assert "samples" not in found.figures()


def test_closed_loop_keeps_its_clients_busy_and_reaches_the_network_every_time() -> None:
    with running(cached=True, max_batch=4) as server:
        load = apply_load(
            Target(server.url, [jpeg(seed=0), jpeg(seed=1)], pid=os.getpid()),
            Closed(4),
            seconds=1.0,
            warmup=0.2,
        )
        hits = server.metric('nsnet_cache_requests_total{result="hit"}')
        misses = server.metric('nsnet_cache_requests_total{result="miss"}')
        scored = sum(server.fake.batches)
    assert load.statuses == {"200": len(load.samples)}
    assert len(load.samples) >= 8
    assert load.images_per_s == pytest.approx(len(load.samples), rel=0.3)  # in one second
    assert hits == 0
    assert misses == scored >= len(load.samples)
    assert 0 < sum(load.batches.values()) <= len(server.fake.batches)
    assert load.server_cores is not None
    assert load.rss == max(reading.rss for reading in load.server) > 2**20
    assert load.generator_cpu_s > 0


def test_refusals_of_a_saturated_server_are_counted_and_the_clock_does_not_wait() -> None:
    slow = encoded(Image.new("RGB", (96, 80), (SLOW,) * 3), "JPEG")
    traffic = Open(40, seed=1)
    with running(max_queue=2, max_batch=1) as server:
        load = apply_load(Target(server.url, [slow]), traffic, seconds=1.5, warmup=0)
    assert len(load.samples) == len(list(arrivals(traffic, 1.5)))
    assert load.statuses["429"] == load.problems["queue_full"] > load.statuses["200"] > 0
    assert load.refused
    assert load.refused.count == load.statuses["429"]
    assert load.admitted
    assert load.admitted.max_s > 1  # the second waits for the first


def test_no_answer_is_a_transport_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, but nobody listens
        load = apply_load(Target(url, [jpeg()]), Open(20, seed=None), seconds=0.5, warmup=0)
    assert load.transport_errors == len(load.samples) > 0
    assert load.problems == {aiohttp.ClientConnectorError.__name__: load.transport_errors}
    assert load.overall is None
