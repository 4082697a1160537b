"""The simulation of every image, by the formulas of queueing theory."""

import numpy as np
import pytest

from benchmarks.replicas import Balancer, Machine, Seen, simulate

ONE_BY_ONE = Machine(single_s=0.02, images_per_s=50, max_batch=1, max_queue=10_000)
BATCHES = Machine(single_s=0.035, images_per_s=47)


def steady(machine: Machine, load: float, replicas: int = 1, balancer: Balancer = "random") -> Seen:
    rate = load * machine.capacity * replicas
    rng = np.random.default_rng(0)
    return simulate(
        machine, [rate] * 700, 1.0, replicas, rng, balancer=balancer, since_s=60.0, read_s=0.25
    )


def test_a_batch_takes_what_was_measured_of_one_image_and_of_full_batches() -> None:
    assert BATCHES.batch_s(1) == 0.035
    assert BATCHES.batch_s(8) == pytest.approx(8 / 47)
    assert BATCHES.batch_s(4) == pytest.approx((BATCHES.batch_s(3) + BATCHES.batch_s(5)) / 2)
    assert BATCHES.capacity == pytest.approx(47)
    assert ONE_BY_ONE.capacity == 50


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_by_one_it_is_the_queue_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: D + load x D / (2 (1 - load))."""
    seen = steady(ONE_BY_ONE, load)
    expected = 0.02 * (1 + load / (2 * (1 - load)))
    assert np.mean(seen.latencies) == pytest.approx(expected, rel=0.05)
    # Little: images in flight are the rate times the latency.
    assert np.mean(seen.in_flight) == pytest.approx(load * 50 * expected, rel=0.07)
    assert seen.refused == 0


def test_without_a_queue_it_loses_what_erlang_says() -> None:
    seen = steady(Machine(0.02, 50, max_batch=1, max_queue=1), 0.5)
    assert seen.refused / seen.offered == pytest.approx(0.5 / 1.5, rel=0.05)


def test_below_capacity_nothing_is_refused_and_beyond_it_only_what_is_too_much() -> None:
    assert steady(BATCHES, 0.8).refused == 0
    seen = steady(BATCHES, 1.5)
    assert seen.refused / seen.offered == pytest.approx(1 - 1 / 1.5, rel=0.03)
    # A full queue: those before, a batch at most that had begun, and the own one.
    assert max(seen.latencies) < 64 / 47 + 2 * BATCHES.batch_s(8)


def test_two_choices_make_shorter_queues_than_one() -> None:
    one, two = (steady(BATCHES, 0.8, 4, name) for name in ("random", "two"))
    assert np.quantile(two.latencies, 0.99) < 0.8 * np.quantile(one.latencies, 0.99)


def test_replicas_that_are_asked_for_come_when_they_have_started() -> None:
    asked: list[tuple[float, int]] = []

    def scale(now: float, replicas: int, total: float, ready: int) -> int:
        asked.append((now, ready))
        return 3 if now < 60 else 1

    simulate(
        BATCHES, [20.0] * 90, 1.0, 1, np.random.default_rng(0), scale=scale, read_s=10, start_s=15
    )
    assert asked == [(10, 1), (20, 1), (30, 3), (40, 3), (50, 3), (60, 3), (70, 1), (80, 1)]
