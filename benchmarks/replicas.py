"""Replicas behind a balancer, image by image: the exact simulation (simpy).

A replica admits up to `max_queue` images and answers the rest 429. Its device takes what waits,
`max_batch` at most, as soon as it is free. An image that was refused does not come back.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray

Balancer = Literal["random", "two"]
"""Which replica has the next image: any, as kube-proxy chooses; or the emptier one of two."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one replica can do: a batch of b images takes a + b x c seconds.

    Attributes:
        single_s: what one image alone takes, from its first byte to the answer.
        images_per_s: in full batches.
        max_batch: images in one forward.
        max_queue: images admitted and not yet answered.
    """

    single_s: float
    images_per_s: float
    max_batch: int = 8
    max_queue: int = 64

    def batch_s(self, images: int) -> float:
        """Seconds that a batch takes."""
        if self.max_batch == 1:
            return self.single_s
        more = (self.max_batch / self.images_per_s - self.single_s) / (self.max_batch - 1)
        return self.single_s + more * (images - 1)

    @property
    def capacity(self) -> float:
        """Images per second, all batches full."""
        return self.max_batch / self.batch_s(self.max_batch)


class _Replica:
    def __init__(
        self, env: simpy.Environment, machine: Machine, answered: Callable[[float], None]
    ) -> None:
        self._env = env
        self._machine = machine
        self._answered = answered
        self._waiting: deque[float] = deque()
        self._device = 0
        self._work: simpy.Event | None = None
        env.process(self._run())

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + self._device

    def admit(self) -> bool:
        if self.in_flight >= self._machine.max_queue:
            return False
        self._waiting.append(self._env.now)
        if self._work is not None:
            self._work.succeed()
            self._work = None
        return True

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self._waiting:
                self._work = self._env.event()
                yield self._work
            batch = [
                self._waiting.popleft()
                for _ in range(min(len(self._waiting), self._machine.max_batch))
            ]
            self._device = len(batch)
            yield self._env.timeout(self._machine.batch_s(len(batch)))
            self._device = 0
            for came in batch:
                self._answered(came)


@dataclass(slots=True)
class Seen:
    """What came of it.

    Attributes:
        latencies: of each answer, seconds.
        offered: images that arrived.
        refused: of these.
        in_flight: mean over the ready replicas, at each reading.
        replicas: that there were then, those that start included.
    """

    latencies: list[float] = field(default_factory=list)
    offered: int = 0
    refused: int = 0
    in_flight: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)


Scale = Callable[[float, int, float, int], int]
"""Now, replicas, images in flight, in how many of them: how many replicas from now on."""


def simulate(
    machine: Machine,
    rates: Sequence[float] | NDArray[np.float64],
    slice_s: float,
    replicas: int,
    rng: np.random.Generator,
    *,
    balancer: Balancer = "random",
    read_s: float = 1.0,
    scale: Scale | None = None,
    start_s: float = 0.0,
    since_s: float = 0.0,
) -> Seen:
    """Simulate every image.

    Args:
        machine: each replica.
        rates: images per second that arrive, by slice of time (a Poisson process).
        slice_s: length of each slice, seconds.
        replicas: at the beginning, ready.
        rng: of arrivals and of the balancer.
        balancer: who has the next image.
        read_s: seconds between two readings of what is in flight.
        scale: asked at each reading; None: the replicas stay as they are.
        start_s: from asking for a replica until it is ready.
        since_s: what comes of images that arrive earlier is not counted.
    """
    env = simpy.Environment()
    seen = Seen()

    def answered(came: float) -> None:
        if came >= since_s:
            seen.latencies.append(env.now - came)

    ready = [_Replica(env, machine, answered) for _ in range(replicas)]
    wanted = replicas

    def pick() -> _Replica:
        if len(ready) == 1:
            return ready[0]
        one = int(rng.random() * len(ready))
        if balancer == "random":
            return ready[one]
        other = (one + 1 + int(rng.random() * (len(ready) - 1))) % len(ready)
        return min(ready[one], ready[other], key=lambda replica: replica.in_flight)

    def arrive() -> Generator[simpy.Event, Any, None]:
        for index, rate in enumerate(rates):
            times = index * slice_s + np.sort(rng.random(rng.poisson(rate * slice_s))) * slice_s
            for at in times.tolist():
                yield env.timeout(max(at - env.now, 0.0))
                admitted = pick().admit()
                if at >= since_s:
                    seen.offered += 1
                    seen.refused += not admitted

    def start() -> Generator[simpy.Event, Any, None]:
        yield env.timeout(start_s)
        if len(ready) < wanted:  # not asked for any longer, where it has not been waited for
            ready.append(_Replica(env, machine, answered))

    def read() -> Generator[simpy.Event, Any, None]:
        nonlocal wanted
        while True:
            yield env.timeout(read_s)
            total = sum(replica.in_flight for replica in ready)
            if env.now >= since_s:
                seen.in_flight.append(total / len(ready))
                seen.replicas.append(wanted)
            if scale is None:
                continue
            before, wanted = wanted, scale(env.now, wanted, total, len(ready))
            for _ in range(wanted - before):
                env.process(start())
            del ready[wanted:]  # they finish what they hold, and get nothing more

    env.process(arrive())
    env.process(read())
    env.run(len(rates) * slice_s)
    return seen
