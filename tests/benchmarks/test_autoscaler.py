"""The autoscaler's rule, by the examples of Kubernetes' documentation."""

import pytest

from benchmarks.autoscaler import Autoscaler, Policy, Rule, recommend


@pytest.mark.parametrize(
    ("average", "target", "replicas", "wanted"),
    [
        (200, 100, 4, 8),  # "the number of replicas will be doubled"
        (50, 100, 4, 2),  # "you'll halve the number"
        (90, 75, 50, 60),
        (109, 100, 10, 10),  # within the tolerance of 0.1
        (91, 100, 10, 10),
        (112, 100, 10, 12),
    ],
)
def test_replicas_follow_the_ratio_of_average_and_target(
    average: float, target: float, replicas: int, wanted: int
) -> None:
    assert recommend(Rule(target), average * replicas, replicas, 0) == wanted


def test_replicas_that_start_are_not_asked_for_twice() -> None:
    rule = Rule(10)
    assert recommend(rule, 40, 2, 0) == 4
    assert recommend(rule, 40, 2, 2) == 4  # idle, once there are too few
    assert recommend(rule, 45, 2, 2) == 5
    assert recommend(rule, 21, 2, 2) == 4  # their being idle reverses the direction: stay
    assert recommend(rule, 5, 2, 2) == 3  # on target, where there are too many


def shrinking(rule: Rule, replicas: int, to: float, every_s: float, times: int) -> list[int]:
    """Replicas after each sync, of a metric that asks for `to` replicas."""
    scaler = Autoscaler(rule, lag=0)
    course = []
    for index in range(times):
        replicas = scaler.sync(index * every_s, replicas, to * rule.target, replicas)
        course.append(replicas)
    return course


def test_the_policy_that_allows_the_most_limits_how_fast_replicas_go() -> None:
    """The documentation's: 8 of 80, 7.2 of 72 rounded up, and 4 at a time below 40."""
    rule = Rule(1, down_window_s=0, down=(Policy("Pods", 4, 60), Policy("Percent", 10, 60)))
    course = shrinking(rule, 80, 10, 60, 16)
    assert course == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10, 10, 10]


def test_a_period_counts_what_was_changed_within_it() -> None:
    rule = Rule(1, down_window_s=0, down=(Policy("Percent", 10, 60),))
    assert shrinking(rule, 100, 10, 15, 6) == [90, 90, 90, 90, 81, 81]


def test_up_doubles_or_adds_four_every_fifteen_seconds_by_default() -> None:
    rule = Rule(1, max_replicas=1000, up=(Policy("Percent", 100, 15), Policy("Pods", 4, 15)))
    assert shrinking(rule, 1, 100, 15, 6) == [5, 10, 20, 40, 80, 100]


def test_down_waits_for_the_highest_recommendation_of_the_window() -> None:
    rule = Rule(1, down_window_s=300, down=(Policy("Percent", 100, 15),))
    scaler = Autoscaler(rule, lag=0)
    assert scaler.sync(0, 10, 20, 10) == 20
    assert scaler.sync(15, 20, 5, 20) == 20
    assert scaler.sync(300, 20, 5, 20) == 20
    assert scaler.sync(315, 20, 5, 20) == 5


def test_up_waits_for_the_lowest_one() -> None:
    scaler = Autoscaler(Rule(1, up_window_s=60), lag=0)
    assert scaler.sync(0, 10, 10, 10) == 10
    assert scaler.sync(15, 10, 14, 10) == 10
    assert scaler.sync(61, 10, 14, 10) == 14


def test_bounds_are_kept() -> None:
    rule = Rule(1, min_replicas=3, max_replicas=12, down_window_s=0)
    assert Autoscaler(rule).sync(0, 10, 1000, 10) == 12
    assert Autoscaler(rule).sync(0, 3, 0, 3) == 3


def test_the_metric_is_as_old_as_it_is_scraped() -> None:
    scaler = Autoscaler(Rule(1), lag=1)
    assert scaler.sync(0, 10, 10, 10) == 10
    assert scaler.sync(15, 10, 20, 10) == 10
    assert scaler.sync(30, 10, 10, 10) == 20
