"""The rule of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2) for one Pods metric.

Of its documentation, "Algorithm details" and "Configurable scaling behavior", and of its source
where that says less. Left out: a tolerance for each direction, `selectPolicy`, pods that fail.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """How many replicas may be added or removed in a time.

    Attributes:
        kind: of `value`: replicas, or percent of those that were there when the period began.
        period_s: seconds, back from now.
    """

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float

    def change(self, replicas: int) -> int:
        """The most that may be added or removed; a part of a replica is a whole one."""
        return self.value if self.kind == "Pods" else math.ceil(replicas * self.value / 100)


@dataclass(frozen=True, slots=True)
class Rule:
    """What an HPA's manifest says; the defaults are those of `deploy/kubernetes`.

    Attributes:
        target: of the metric, on average of all replicas.
        tolerance: a ratio of average to target so near to 1 changes nothing.
        up_window_s: of stabilization, seconds: the lowest recommendation in it counts.
        down_window_s: likewise, the highest one.
    """

    target: float = 2.0
    min_replicas: int = 2
    max_replicas: int = 100
    tolerance: float = 0.1
    up_window_s: float = 0
    down_window_s: float = 300
    up: Sequence[Policy] = (Policy("Percent", 100, 60), Policy("Pods", 4, 60))
    down: Sequence[Policy] = (Policy("Percent", 10, 60),)


def recommend(rule: Rule, total: float, measured: int, starting: int) -> int:
    """Replicas that the metric asks for, before windows, policies and bounds.

    Args:
        rule: target and tolerance.
        total: of the metric, over the replicas that it was read of.
        measured: how many those are, at least one.
        starting: others that run or will, and of which there is no metric yet: they count as idle
            where there are too few replicas, and as on target where there are too many.
    """
    ratio = total / (measured * rule.target)
    replicas = measured + starting
    if starting:
        whole = total + (starting * rule.target if ratio < 1 else 0)
        fuller = whole / (replicas * rule.target)
        if (fuller - 1) * (ratio - 1) < 0:
            return replicas
        ratio = fuller
    if abs(ratio - 1) <= rule.tolerance:
        return replicas
    return math.ceil(round(ratio * replicas, 6))  # 1.1 x 10 is no 12


class Autoscaler:
    """One HPA: what it recommended and did is part of what it does next.

    Args:
        rule: what its manifest says.
        lag: syncs by which the metric is old: it is scraped, stored, and only then asked for.
    """

    def __init__(self, rule: Rule, lag: int = 1) -> None:
        self.rule = rule
        self._readings: deque[tuple[float, int]] = deque(maxlen=lag + 1)
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def sync(self, now: float, replicas: int, total: float, measured: int) -> int:
        """Run the control loop once.

        Args:
            now: seconds; never less than in the call before.
            replicas: that there are, those that start included.
            total: of the metric, over the replicas that it is read of.
            measured: how many those are.

        Returns:
            How many there should be from now on.
        """
        rule = self.rule
        self._readings.append((total / measured, measured))
        mean, measured = self._readings[0]
        measured = min(measured, replicas)  # of a replica that has gone, nothing is read
        wanted = recommend(rule, mean * measured, measured, replicas - measured)
        wanted = self._stabilized(now, replicas, wanted)
        wanted = min(
            max(self._limited(now, replicas, wanted), rule.min_replicas), rule.max_replicas
        )
        if wanted != replicas:
            self._changes.append((now, wanted - replicas))
        return wanted

    def _stabilized(self, now: float, replicas: int, wanted: int) -> int:
        rule = self.rule
        self._recommended.append((now, wanted))
        longest = max(rule.up_window_s, rule.down_window_s)
        while self._recommended[0][0] < now - longest:
            self._recommended.popleft()
        up = min(n for at, n in self._recommended if at >= now - rule.up_window_s)
        down = max(n for at, n in self._recommended if at >= now - rule.down_window_s)
        return min(max(replicas, up), down)

    def _limited(self, now: float, replicas: int, wanted: int) -> int:
        rule = self.rule
        longest = max(policy.period_s for policy in (*rule.up, *rule.down))
        while self._changes and self._changes[0][0] <= now - longest:
            self._changes.popleft()

        def before(policy: Policy) -> int:
            """Replicas when the policy's period began."""
            return replicas - sum(n for at, n in self._changes if at > now - policy.period_s)

        if wanted > replicas:
            most = max(before(policy) + policy.change(before(policy)) for policy in rule.up)
            return min(wanted, max(most, replicas))
        least = min(before(policy) - policy.change(before(policy)) for policy in rule.down)
        return max(wanted, min(least, replicas))
