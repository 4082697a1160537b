"""A day of up to thousands of replicas, by slices of time: each is in the steady state of its load.

`max_queue` keeps a queue so short that it settles within seconds, while traffic and replicas change
within minutes. What a load comes to is looked up in `Steady`, which the simulation of every image
fills: under `random` with one replica, since a Poisson process that is split at random is as many
Poisson processes; under `two` with pools of 1, 2, 4, 8 and 16, of which the largest that is not
larger than the fleet stands for it. What the autoscaler reads is drawn: the mean over all replicas,
with the spread that the pool's had. `python benchmarks/fleet.py check` holds the result against the
simulation of every image.
"""

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.autoscaler import Autoscaler, Rule
from benchmarks.replicas import Balancer, Machine, simulate

Array = NDArray[np.float64]

LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.15, 1.4, 2.0)
"""Images that arrive per image that can be answered; beyond the last, only refusals become more."""
POOLS = (1, 2, 4, 8, 16)
EDGES = np.geomspace(1e-3, 100.0, 401)
"""Of the bins in which latencies are counted, seconds: each is 3 % wide."""
SLICE_S = 5.0
SYNC_S = 15.0

_SETTLE_S = 30.0
_READ_S = 0.25


@dataclass(frozen=True, slots=True)
class State:
    """Replicas under one load.

    Attributes:
        in_flight: images, mean of a replica.
        spread: standard deviation of that mean over the replicas, times the root of their number.
        answered: share of the images.
        latencies: of those, share by bin of `EDGES`.
    """

    in_flight: float
    spread: float
    answered: float
    latencies: Array

    def quantile_s(self, q: float) -> float:
        """Latency that a share `q` of the answers does not exceed."""
        return quantile_s(self.latencies, q)


class Steady:
    """What becomes of each load; measured once.

    Args:
        machine: each replica.
        balancer: who has the next image.
        pool: replicas that are simulated.
        images: to simulate for each load.
    """

    def __init__(self, machine: Machine, balancer: Balancer, pool: int, images: int) -> None:
        self.machine = machine
        rng = np.random.default_rng(0)
        states = [self._measure(machine, balancer, pool, images, load, rng) for load in LOADS]
        self._table = np.array(
            [
                [state.in_flight, state.spread, load * state.answered, *state.latencies]
                for load, state in zip(LOADS, states, strict=True)
            ]
        )

    @staticmethod
    def _measure(
        machine: Machine,
        balancer: Balancer,
        pool: int,
        images: int,
        load: float,
        rng: np.random.Generator,
    ) -> State:
        rate = load * machine.capacity * pool
        seconds = math.ceil(_SETTLE_S + images / rate)
        seen = simulate(
            machine,
            [rate] * seconds,
            1.0,
            pool,
            rng,
            balancer=balancer,
            read_s=_READ_S,
            since_s=_SETTLE_S,
        )
        return State(
            float(np.mean(seen.in_flight)),
            float(np.std(seen.in_flight)) * math.sqrt(pool),
            1 - seen.refused / seen.offered,
            np.histogram(np.clip(seen.latencies, EDGES[0], EDGES[-1]), EDGES)[0]
            / len(seen.latencies),
        )

    def at(self, load: float) -> State:
        """Look a load up: images that arrive per image that can be answered."""
        place = float(np.interp(load, LOADS, range(len(LOADS))))
        below = min(int(place), len(LOADS) - 2)
        in_flight, spread, answered, *latencies = self._table[below] + (place - below) * (
            self._table[below + 1] - self._table[below]
        )
        share = min(1.0, answered / max(load, LOADS[0]))
        return State(in_flight, spread, share, np.array(latencies))

    def load_of(self, in_flight: float) -> float:
        """The load of which so many images in flight are the steady state."""
        return float(np.interp(in_flight, self._table[:, 0], LOADS))

    def after(self, load: float, held: float) -> tuple[State, float]:
        """Look up what a load comes to within one slice.

        A queue grows by no more than what comes beyond what can be answered, and by chance, as a
        random walk does; it shrinks by no more than what comes short of that.

        Args:
            load: as in `at`.
            held: images in flight before, mean of a replica.

        Returns:
            The state, and the share of the images that is answered.
        """
        aim = self.at(load)
        answerable = self.machine.capacity * SLICE_S
        least = held - max(1 - load, 0) * answerable
        most = math.sqrt(held**2 + load * answerable) + max(load - 1, 0) * answerable
        reached = min(max(aim.in_flight, least), most)
        if reached == aim.in_flight:
            return aim, aim.answered
        like = self.load_of(reached)
        return self.at(like), self.at(min(load, like)).answered


@functools.cache
def steady(machine: Machine, balancer: Balancer, replicas: int, images: int = 20_000) -> Steady:
    """The table that stands for so many replicas; measured at the first call."""
    pool = 1 if balancer == "random" else max(size for size in POOLS if size <= replicas)
    if pool != replicas:
        return steady(machine, balancer, pool, images)
    return Steady(machine, balancer, pool, images)


def quantile_s(histogram: Array, q: float) -> float:
    """Latency that a share `q` of a histogram does not exceed: the upper edge of its bin."""
    sums = np.cumsum(histogram)
    return float(EDGES[1 + np.searchsorted(sums, q * sums[-1])])


@dataclass(frozen=True, slots=True)
class Course:
    """What happened, by slice.

    Attributes:
        slice_s: seconds.
        offered: images that arrived.
        answered: of these.
        latencies: answers by bin of `EDGES`; (slices, bins).
        replicas: asked for, those that start included.
        in_flight: images, mean of the ready replicas.
    """

    slice_s: float
    offered: Array
    answered: Array
    latencies: Array
    replicas: Array
    in_flight: Array

    def quantile_s(self, q: float) -> float:
        """Latency that a share `q` of all answers does not exceed."""
        return quantile_s(self.latencies.sum(0), q)

    @property
    def refused(self) -> float:
        """Share of all images."""
        return 1 - float(self.answered.sum() / self.offered.sum())

    @property
    def machine_hours(self) -> float:
        """Of all replicas, from when they were asked for."""
        return float(self.replicas.sum()) * self.slice_s / 3600

    def worst(self, seconds: float) -> tuple[float, float]:
        """The largest p99 (seconds) and share refused of any so many seconds."""
        size = round(seconds / self.slice_s)
        starts = range(0, max(len(self.offered) - size, 0) + 1, max(size // 4, 1))
        p99 = max(quantile_s(self.latencies[at : at + size].sum(0), 0.99) for at in starts)
        refused = max(
            1 - self.answered[at : at + size].sum() / self.offered[at : at + size].sum()
            for at in starts
        )
        return p99, float(refused)


def run(
    machine: Machine,
    rates: Sequence[float] | Array,
    rule: Rule,
    *,
    balancer: Balancer = "two",
    start_s: float,
    seed: int = 0,
) -> Course:
    """Let an autoscaler follow the traffic.

    Args:
        machine: each replica.
        rates: images per second that arrive, by slice of `SLICE_S`.
        rule: the autoscaler's; it begins with the replicas that the first slice asks for.
        balancer: who has the next image.
        start_s: from asking for a replica until it is ready.
        seed: of what the autoscaler reads.
    """
    rng = np.random.default_rng(seed)
    scaler = Autoscaler(rule)
    replicas = ready = first(machine, rule, float(rates[0]))
    starting: deque[tuple[float, int]] = deque()
    held = 0.0
    states, shares, counts = [], [], []
    for index, rate in enumerate(rates):
        now = index * SLICE_S
        before = ready
        while starting and starting[0][0] <= now:
            ready += starting.popleft()[1]
        ready = min(ready, replicas)  # those not wanted any longer are gone, with what they held
        table = steady(machine, balancer, ready)
        state, share = table.after(
            float(rate) / ready / machine.capacity, held * min(before / ready, 1.0)
        )
        held = state.in_flight
        states.append(state)
        shares.append(share)
        counts.append(replicas)
        end = now + SLICE_S
        if end % SYNC_S == 0:
            read = max(rng.normal(held, state.spread / math.sqrt(ready)), 0.0)
            wanted = scaler.sync(end, replicas, read * ready, ready)
            if wanted > replicas:
                starting.append((end + start_s, wanted - replicas))
            replicas = wanted
    offered = np.asarray(rates, float) * SLICE_S
    answered = offered * shares
    return Course(
        SLICE_S,
        offered,
        answered,
        answered[:, None] * np.array([state.latencies for state in states]),
        np.array(counts, float),
        np.array([state.in_flight for state in states]),
    )


def first(machine: Machine, rule: Rule, rate: float) -> int:
    """Replicas with which a run begins: loaded to 60 %, within the rule's bounds."""
    enough = math.ceil(rate / machine.capacity / 0.6)
    return min(max(enough, rule.min_replicas), rule.max_replicas)
