"""How many machines a day of traffic takes behind the autoscaler, simulated: nothing is served.

    python benchmarks/fleet.py steady  [--machine cpu|gpu]
    python benchmarks/fleet.py targets [--machine cpu|gpu] [--peak 500] [--targets 1,1.5,2,3,4,8,32]
    python benchmarks/fleet.py day     [--peaks 20,200,2000,10000] [--cpu-price P] [--gpu-price P]
                                       [--plot FILE]
    python benchmarks/fleet.py check   [--peaks 40,150,400] [--minutes 30] [--seeds 3]

Needs `nsnet[bench]`, and `nsnet[train]` for the plot. Each prints a table in Markdown:

* steady: what one replica and the images in flight on it come to at each load. Images per second
  that you expect, divided by those of the row that is fast enough, are the machines you need.
* targets: the autoscaler's target, compared on the same days.
* day: fleets of 2 to 1,000 replicas on CPUs and on GPUs; a price is of a machine's hour, in your
  money.
* check: the time slices of the other commands against the simulation of every image.

What a machine can do was measured: `--single-ms`, `--images-per-s`, `--max-batch`, `--max-queue`.
The defaults are those of two cores (benchmarks/RESULTS.md, "Beside 0.6.0") and of an H200
(docs/history.md, "On a GPU", one process). A day rises from `--trough` of its peak to the peak and
back, and is hit by `--bursts` at random: each grows within `--rise` seconds to `--burst` times the
traffic of its hour, and fades with a time constant of `--fade`. Arrivals are Poisson, an image a
request; one that is refused does not come back.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.autoscaler import Autoscaler, Rule
from benchmarks.replicas import Machine, simulate
from benchmarks.slices import LOADS, SLICE_S, SYNC_S, Array, Course, first, run, steady

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MACHINES = {
    "cpu": Machine(single_s=0.035, images_per_s=47, max_batch=8, max_queue=64),
    "gpu": Machine(single_s=0.0079, images_per_s=359, max_batch=32, max_queue=128),
}
TARGETS = {"cpu": 2.0, "gpu": 4.0}
"""Images in flight on a replica, of the overlays in `deploy/kubernetes`."""
DAY_S = 86400.0
WORST_S = 300.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """A day's.

    Attributes:
        trough: its quietest moment, a share of its peak.
        bursts: a day, on average.
        burst: times the traffic of its hour, at its top.
        rise_s: seconds from its beginning to its top.
        fade_s: time constant with which it fades.
    """

    trough: float = 0.25
    bursts: float = 12
    burst: float = 2.0
    rise_s: float = 60.0
    fade_s: float = 600.0

    def rates(self, peak: float, seed: int, seconds: float = DAY_S) -> Array:
        """Images per second by slice.

        Args:
            peak: images per second at noon, without a burst.
            seed: of the bursts.
            seconds: that the day has.
        """
        rng = np.random.default_rng(seed)
        times = np.arange(0, seconds, SLICE_S)
        daily = (1 - np.cos(2 * np.pi * times / seconds)) / 2
        more = np.zeros_like(times)
        for begin in rng.uniform(0, seconds, rng.poisson(self.bursts)):
            age = times - begin
            fading = np.exp(-(age - self.rise_s) / self.fade_s)
            shape = np.where(age < self.rise_s, age / self.rise_s, fading)
            more += np.where(age < 0, 0, (self.burst - 1) * shape)
        rates: Array = peak * (self.trough + (1 - self.trough) * daily) * (1 + more)
        return rates


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    for cells in (head, ["---:"] * len(head), *rows):
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def percent(share: float) -> str:
    """As people write it."""
    if share < 1e-4:
        return "< 0.01 %" if share > 1e-9 else "0"
    return f"{100 * share:.2g} %"


def show_steady(machine: Machine) -> None:
    """Each load, by balancer."""
    rows = []
    for load in (load for load in LOADS if load >= 0.1):
        one, two = (steady(machine, name, 16).at(load) for name in ("random", "two"))
        cells = [
            (f"{s.in_flight:.1f}", f"{1000 * s.quantile_s(0.5):.0f}",
             f"{1000 * s.quantile_s(0.99):.0f}", percent(1 - s.answered))
            for s in (one, two)
        ]  # fmt: skip
        rows.append([f"{load:g}", f"{load * machine.capacity:.1f}", *cells[0], *cells[1]])
    each = ("in flight", "p50, ms", "p99, ms", "refused")
    table(["load", "images/s", *each, *(f"{name}, two choices" for name in each)], rows)


def show_targets(
    machine: Machine, days: Sequence[Array], targets: Sequence[float], go: "Go"
) -> None:
    """The same days, by target."""
    rows = []
    for target in targets:
        courses = [go(machine, rates, target, seed) for seed, rates in enumerate(days)]
        worst = [course.worst(WORST_S) for course in courses]
        rows.append(
            [
                f"{target:g}",
                f"{np.mean([course.replicas.mean() for course in courses]):.1f}",
                f"{max(course.replicas.max() for course in courses):.0f}",
                percent(float(np.mean([course.refused for course in courses]))),
                f"{1000 * np.mean([course.quantile_s(0.99) for course in courses]):.0f}",
                f"{1000 * np.mean([p99 for p99, _ in worst]):.0f}",
                percent(float(np.mean([refused for _, refused in worst]))),
                f"{np.mean([course.machine_hours for course in courses]):.0f}",
            ]
        )
    table(
        ["target", "replicas", "most", "refused", "p99, ms", "p99 of the worst 5 minutes",
         "refused in the worst", "machine hours a day"],
        rows,
    )  # fmt: skip


def show_days(days: Sequence[tuple[str, float, float | None, Course]]) -> None:
    """Machine, peak, price of an hour, and what the day was."""
    rows = []
    for name, peak, price, course in days:
        p99, refused = course.worst(WORST_S)
        spent = None if price is None else price * course.machine_hours
        rows.append(
            [
                name,
                f"{peak:,.0f}",
                f"{course.replicas.min():.0f}-{course.replicas.max():.0f}",
                f"{course.replicas.mean():.1f}",
                percent(course.refused),
                f"{1000 * course.quantile_s(0.5):.0f}",
                f"{1000 * course.quantile_s(0.99):.0f}",
                f"{1000 * p99:.0f}",
                percent(refused),
                f"{course.machine_hours:,.0f}",
                "" if spent is None else f"{spent:,.2f}",
                "" if spent is None else f"{spent / course.answered.sum() * 1e6:,.2f}",
            ]
        )
    table(
        ["machine", "peak, images/s", "replicas", "mean", "refused", "p50, ms", "p99, ms",
         "p99 of the worst 5 minutes", "refused in the worst", "machine hours", "price",
         "per million images"],
        rows,
    )  # fmt: skip


def show_check(
    machine: Machine,
    traffic: Traffic,
    rule: Rule,
    peaks: Sequence[float],
    seconds: float,
    seeds: int,
    start_s: float,
) -> None:
    """Each peak and balancer, by slices and by images; means over the seeds."""
    rows = []
    for peak in peaks:
        for balancer in ("random", "two"):
            figures = []
            for seed in range(seeds):
                rates = traffic.rates(peak, seed, seconds)
                course = run(machine, rates, rule, balancer=balancer, start_s=start_s, seed=seed)
                seen = simulate(
                    machine,
                    rates,
                    SLICE_S,
                    first(machine, rule, float(rates[0])),
                    np.random.default_rng(seed),
                    balancer=balancer,
                    read_s=SYNC_S,
                    scale=Autoscaler(rule).sync,
                    start_s=start_s,
                )
                p50, p99 = np.quantile(seen.latencies, [0.5, 0.99])
                figures.append(
                    [
                        (course.replicas.mean(), np.mean(seen.replicas)),
                        (1000 * course.quantile_s(0.5), 1000 * p50),
                        (1000 * course.quantile_s(0.99), 1000 * p99),
                        (100 * course.refused, 100 * seen.refused / seen.offered),
                    ]
                )
            means = np.mean(figures, 0)
            rows.append(
                [f"{peak:,.0f}", balancer, *(f"{a:.3g} / {b:.3g}" for a, b in means.tolist())]
            )
    table(
        ["peak, images/s", "balancer", "replicas: slices / every image", "p50, ms", "p99, ms",
         "refused, %"],
        rows,
    )  # fmt: skip


def draw(days: Sequence[tuple[str, float, Course]], machines: dict[str, Machine]) -> "Figure":
    """Traffic, what the replicas can answer, and p99, a column a day."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(days), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(days), squeeze=False, sharex=True)
    size = round(WORST_S / SLICE_S)
    for column, (name, peak, course) in enumerate(days):
        hours = np.arange(len(course.offered)) * SLICE_S / 3600
        above, below = axes[0, column], axes[1, column]
        capacity = course.replicas * machines[name].capacity
        above.plot(hours, course.offered / SLICE_S, lw=0.8, label="images/s that arrive")
        above.plot(hours, capacity, lw=0.8, label="that the replicas can answer")
        above.set(title=f"{name}, {peak:,.0f} images/s", ylim=(0, None))
        starts = range(0, len(hours) - size + 1, size)
        p99 = [
            dataclasses.replace(course, latencies=course.latencies[at : at + size]).quantile_s(0.99)
            for at in starts
        ]
        below.plot(hours[::size][: len(p99)], p99, lw=0.8, drawstyle="steps-post")
        below.set(xlabel="hour", yscale="log", xlim=(0, hours[-1]))
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].set(ylabel="p99 of five minutes, s")
    return figure


Go = Callable[[Machine, Array, float, int], Course]


def numbers(text: str) -> list[float]:
    """Comma-separated, for argparse."""
    return [float(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["steady", "targets", "day", "check"])
    parser.add_argument("--machine", choices=MACHINES, help="day: both, where it is not given")
    parser.add_argument("--single-ms", type=float)
    parser.add_argument("--images-per-s", type=float)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--max-queue", type=int)
    parser.add_argument("--balancer", choices=["random", "two"], default="two")
    for field in dataclasses.fields(Traffic):
        name = field.name.removesuffix("_s")
        parser.add_argument(f"--{name}", type=float, default=field.default)
    parser.add_argument("--target", type=float, help="images in flight, per replica")
    parser.add_argument("--min", type=int, default=2, help="replicas")
    parser.add_argument("--max", type=int, default=2000, help="replicas")
    parser.add_argument("--window", type=float, default=300, help="of stabilization, seconds")
    parser.add_argument("--up-period", type=float, default=60, help="of its policies, seconds")
    parser.add_argument("--start", type=float, default=15, help="seconds until a replica is ready")
    parser.add_argument("--peak", type=float, default=500, help="targets: images/s")
    parser.add_argument("--peaks", type=numbers, help="day, check: images/s")
    parser.add_argument("--targets", type=numbers, default=[1, 1.5, 2, 3, 4, 8, 32])
    parser.add_argument("--minutes", type=float, default=30, help="check: of a day")
    parser.add_argument("--seeds", type=int, default=3, help="targets, check: days")
    parser.add_argument("--seed", type=int, default=0, help="day")
    parser.add_argument("--cpu-price", type=float)
    parser.add_argument("--gpu-price", type=float)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    """Print the table that was asked for."""
    args = parsed()
    given = {
        "single_s": args.single_ms and args.single_ms / 1000,
        "images_per_s": args.images_per_s,
        "max_batch": args.max_batch,
        "max_queue": args.max_queue,
    }
    given = {name: value for name, value in given.items() if value}
    machines = {
        name: dataclasses.replace(machine, **given)
        for name, machine in MACHINES.items()
        if name == args.machine or (args.command == "day" and not args.machine)
    } or {"cpu": dataclasses.replace(MACHINES["cpu"], **given)}
    machine = next(iter(machines.values()))
    traffic = Traffic(args.trough, args.bursts, args.burst, args.rise, args.fade)
    rule = Rule(
        min_replicas=args.min,
        max_replicas=args.max,
        down_window_s=args.window,
        up=tuple(dataclasses.replace(policy, period_s=args.up_period) for policy in Rule().up),
    )
    targets = {name: args.target or TARGETS[name] for name in machines}

    def go(machine: Machine, rates: Array, target: float, seed: int) -> Course:
        ruled = dataclasses.replace(rule, target=target)
        return run(machine, rates, ruled, balancer=args.balancer, start_s=args.start, seed=seed)

    if args.command == "steady":
        show_steady(machine)
    elif args.command == "targets":
        days = [traffic.rates(args.peak, seed) for seed in range(args.seeds)]
        show_targets(machine, days, args.targets, go)
    elif args.command == "check":
        show_check(
            machine,
            traffic,
            dataclasses.replace(rule, target=next(iter(targets.values()))),
            args.peaks or [40, 150, 400],
            60 * args.minutes,
            args.seeds,
            args.start,
        )
    else:
        prices = {"cpu": args.cpu_price, "gpu": args.gpu_price}
        courses = [
            (name, peak, go(machine, traffic.rates(peak, args.seed), targets[name], args.seed))
            for name, machine in machines.items()
            for peak in args.peaks or [20, 200, 2000, 10000]
        ]
        show_days([(name, peak, prices[name], course) for name, peak, course in courses])
        if args.plot:
            draw(courses, machines).savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
