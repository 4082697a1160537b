"""A day in slices: its limits, and beside the simulation of every image."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fleet
from benchmarks.autoscaler import Autoscaler, Rule
from benchmarks.fleet import MACHINES, Traffic
from benchmarks.replicas import Machine, simulate
from benchmarks.slices import SLICE_S, SYNC_S, first, quantile_s, run, steady

CPU = MACHINES["cpu"]
GUIDE = Path(__file__).parents[2] / "docs" / "scaling.md"


def fixed(replicas: int) -> Rule:
    return Rule(min_replicas=replicas, max_replicas=replicas)


def test_a_load_between_those_of_the_table_is_what_it_would_be() -> None:
    seen = simulate(CPU, [0.75 * 47.0] * 600, 1.0, 1, np.random.default_rng(1), since_s=30.0)
    state = steady(CPU, "random", 1).at(0.75)
    assert state.in_flight == pytest.approx(np.mean(seen.in_flight), rel=0.2)
    assert state.quantile_s(0.99) == pytest.approx(np.quantile(seen.latencies, 0.99), rel=0.15)
    assert state.answered == 1


def test_enough_replicas_refuse_nothing_and_too_few_what_is_too_much() -> None:
    enough = run(CPU, [0.6 * 47 * 10] * 100, fixed(10), balancer="random", start_s=15)
    assert enough.refused == 0
    few = run(CPU, [3 * 47 * 10] * 100, fixed(10), balancer="random", start_s=15)
    assert few.refused == pytest.approx(2 / 3, abs=0.02)
    assert few.machine_hours == pytest.approx(10 * 100 * SLICE_S / 3600)


def test_a_full_queue_empties_at_the_pace_that_is_to_spare() -> None:
    table = steady(CPU, "random", 1)
    full = table.at(2.0).in_flight
    state, answered = table.after(0.8, full)
    assert state.in_flight == pytest.approx(full - 0.2 * 47 * SLICE_S, rel=0.05)
    assert answered == 1
    assert table.after(0.8, 0.0)[0].in_flight == pytest.approx(table.at(0.8).in_flight)
    filling, answered = table.after(1.05, 0.0)
    assert filling.in_flight < 30
    assert answered > 0.99


def test_more_traffic_takes_more_replicas_once_they_have_started() -> None:
    rates = [50.0] * 60 + [200.0] * 120
    course = run(CPU, rates, Rule(), balancer="random", start_s=15)
    assert course.replicas[:60].max() < 4
    assert course.replicas[-1] >= 200 / 47
    assert course.answered[60:70].sum() < course.offered[60:70].sum()
    assert course.answered[-60:].sum() == course.offered[-60:].sum()
    p99, refused = course.worst(60)
    assert p99 > quantile_s(course.latencies[-60:].sum(0), 0.99)
    assert refused > course.refused > 0


def test_slices_come_to_what_every_image_comes_to() -> None:
    traffic, rule = Traffic(bursts=2, burst=1.5, fade_s=120), Rule()
    figures = []
    for seed in range(3):
        rates = traffic.rates(100, seed, 1200)
        course = run(CPU, rates, rule, balancer="random", start_s=15, seed=seed)
        seen = simulate(
            CPU,
            rates,
            SLICE_S,
            first(CPU, rule, float(rates[0])),
            np.random.default_rng(seed),
            read_s=SYNC_S,
            scale=Autoscaler(rule).sync,
            start_s=15,
        )
        figures.append(
            [
                (course.replicas.mean(), np.mean(seen.replicas)),
                (course.quantile_s(0.5), np.quantile(seen.latencies, 0.5)),
                (course.quantile_s(0.99), np.quantile(seen.latencies, 0.99)),
            ]
        )
    for slices, images in np.mean(figures, 0):
        assert slices == pytest.approx(images, rel=0.25)


def test_the_guides_example_follows_its_own_rule() -> None:
    """Images a second by those of the row, and one more."""
    text = GUIDE.read_text()
    rates = {load: float(rate) for load, rate in re.findall(r"(?m)^\| (0\.\d+) \| ([\d.]+) ", text)}
    example = re.findall(r"(?s)\*An example\.\*.*?\n\n", text)[0]
    [wanted] = re.findall(r"(\d+) images a second", example)
    loads = re.findall(r"row of (0\.\d+)", example)
    told = [int(number) for number in re.findall(r"(?:more: |and )(\d+)(?:\.| of)", example)]
    assert told == [math.ceil(int(wanted) / rates[load]) + 1 for load in loads]


def test_a_day_has_its_trough_its_peak_and_its_bursts() -> None:
    calm = Traffic(bursts=0).rates(100, 0)
    assert len(calm) * SLICE_S == fleet.DAY_S
    assert calm[0] == pytest.approx(25)
    assert calm.max() == pytest.approx(100)
    bursty = Traffic(bursts=12, burst=3).rates(100, 0)
    assert (bursty >= calm).all()
    assert 1.5 < (bursty / calm).max() < 6
    assert (Traffic(bursts=12, burst=3).rates(100, 0) == bursty).all()


def test_days_are_printed_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot = tmp_path / "day.png"
    options = "--machine cpu --balancer random --peaks 40 --cpu-price 0.5"
    monkeypatch.setattr(sys, "argv", ["fleet.py", "day", *options.split(), "--plot", str(plot)])
    fleet.main()
    head, _, row = (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in capsys.readouterr().out.splitlines()
    )
    cells = dict(zip(head, row, strict=True))
    assert cells["machine"] == "cpu"
    assert float(cells["price"]) == pytest.approx(0.5 * float(cells["machine hours"]), abs=0.5)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_shares_are_written_so_that_few_are_not_none() -> None:
    assert [fleet.percent(share) for share in (0, 3e-5, 0.0051, 0.5)] == [
        "0",
        "< 0.01 %",
        "0.51 %",
        "50 %",
    ]


def test_another_machine_is_given_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Machine] = []
    monkeypatch.setattr(fleet, "show_steady", measured.append)
    options = "--single-ms 10 --images-per-s 200 --max-batch 16 --max-queue 32"
    monkeypatch.setattr(sys, "argv", ["fleet.py", "steady", *options.split()])
    fleet.main()
    assert measured == [Machine(0.01, 200, 16, 32)]
