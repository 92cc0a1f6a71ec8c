"""Metrics of samples: sliced W against POT, energy distance and MMD against PyTorch.

Every library is a process of its own that sleeps while another works. A round calls every way once, ours
like the others', and medians over the rounds are compared. The first round warms up; a rival's way that
takes over three times as long in it as the fastest of its task is timed no further. All sides have the same
float32 samples, directions and bandwidth.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import Peak, describe, say
from report import Figure, Report, Series
from worker import Worker

from dsb import _core
from dsb.metrics.distances import directions

PAUSE = 0.02  # seconds until the threads of the side before are asleep
LIMIT = 300.0  # seconds that a call may take
SLOW = 3.0  # times the fastest rival, in the round that warms up: such a way is left out
OURS = "dsb"
TASKS = {"sliced": "sliced W", "energy": "energy distance", "mmd": "MMD"}
LOOSE = {"sliced": 1e-4, "energy": 2e-2, "mmd": 2e-2}  # how far values in float32 may be apart


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    repeats: int = 5
    n: int = 10_000
    dims: tuple[int, ...] = (2, 50)
    projections: int = 200


QUICK = Effort(2, 1000)


def make_problem(effort: Effort, dim: int, path: Path) -> None:
    rng = np.random.default_rng(dim)
    x, y = (rng.normal(mean, 1.0, (effort.n, dim)).astype(np.float32) for mean in (0.0, 0.1))
    np.savez(
        path,
        x=x,
        y=y,
        units=directions(0, effort.projections, dim),
        projections=effort.projections,
        bandwidth=dim**0.5,
    )


class Contest:
    """All sides at one dimension and number of threads."""

    def __init__(self, effort: Effort, dim: int, threads: int, problem: Path) -> None:
        self.dim, self.threads = dim, threads
        workers = [
            Worker("metrics_side", threads, problem, side) for side in ("ours", "rivals", "pot")
        ]
        self._ways = {way: worker for worker in workers for way in worker.call("ways")}
        self._workers = workers
        self.series = {way: Series() for way in self._ways}
        self.values: dict[str, float] = {}
        self.left_out: list[str] = []

    def round(self) -> None:
        for way, worker in self._ways.items():
            time.sleep(PAUSE)
            worker.begin("run", way=way)
            seconds, self.values[way] = worker.finish(LIMIT)
            self.series[way].add(1e3 * seconds)

    def warm(self) -> None:
        """The first round, whose times only tell which ways are slow."""
        self.round()
        self.check()
        kept = {}
        for way, worker in self._ways.items():
            task, _, side = way.partition("/")
            taken = self.series[way].median
            least = min(self.series[other].median for other in self._rivals(task))
            if side == OURS or taken <= SLOW * least:
                kept[way] = worker
            else:
                self.left_out.append(f"{TASKS[task]}, {side} ({taken:.0f} ms)")
        self._ways, self.series = kept, {way: Series() for way in kept}

    def _rivals(self, task: str) -> list[str]:
        return [
            way for way in self.series if way.startswith(f"{task}/") and way != f"{task}/{OURS}"
        ]

    def check(self) -> None:
        """All sides have measured the same thing."""
        for way, value in self.values.items():
            task = way.partition("/")[0]
            own = self.values[f"{task}/{OURS}"]
            if abs(value - own) > LOOSE[task] * abs(own):
                raise SystemExit(f"{way} gives {value}, ours {own}, in {self.dim} dimensions")

    def ratio(self, task: str) -> float:
        """The fastest of the rivals' ways over ours."""
        theirs = [self.series[way].median for way in self._rivals(task)]
        return min(theirs) / self.series[f"{task}/{OURS}"].median

    def figures(self) -> list[Figure]:
        return [
            Figure(f"{TASKS[task]}, d = {self.dim}", side, self.threads, "ms", series)
            for way, series in self.series.items()
            for task, _, side in [way.partition("/")]
        ]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def floor(effort: Effort, contest: Contest, peak: float | None) -> str:
    """What the arithmetic alone would take."""
    pairs, fmas, sums = 2 * effort.n**2, contest.dim, contest.dim
    if contest.dim >= 16:  # by products: of four coordinates three FMAs and two additions
        fmas, sums = contest.dim - contest.dim // 4, contest.dim // 4 * 2
    text = (
        f"d = {contest.dim}: energy distance and MMD take {pairs:.3g} pairs (each triangle of x with x and "
        f"of y with y once), {fmas} FMAs and {sums} additions of vectors each for the squared distance, and "
        "about 6 instructions for the root or 10 for the exponential"
    )
    if peak:
        # The probe counts an FMA as two operations.
        seconds = pairs * fmas / (peak / 2)
        text += f"; at the FMA peak these FMAs alone take {1e3 * seconds:.3g} ms, "
        text += f"{contest.threads} thread(s)"
    return text + "."


def measure(effort: Effort, counts: Sequence[int]) -> Report:
    isa = _core.isa()
    settings = {"threads": list(counts), "quick": effort == QUICK, "n": effort.n}
    report = Report(describe(isa), settings)
    with tempfile.TemporaryDirectory() as name:
        probe = Peak(isa, Path(name))
        for dim in effort.dims:
            problem = Path(name) / f"problem-{dim}.npz"
            make_problem(effort, dim, problem)
            for threads in counts:
                contest = Contest(effort, dim, threads, problem)
                contest.warm()
                for i in range(effort.repeats):
                    say(f"d = {dim}, {threads} thread(s), round {i + 1} of {effort.repeats}")
                    contest.round()
                contest.check()
                peak = probe.measure(threads, 60)
                report.figures += contest.figures()
                report.notes.append(floor(effort, contest, peak))
                if contest.left_out:
                    report.notes.append(
                        f"d = {dim}, {threads} thread(s), slower than three times the fastest and left out "
                        f"(one call): {'; '.join(contest.left_out)}."
                    )
                if threads == max(counts):
                    for task in TASKS:
                        report.goals[f"metrics_{task}_{dim}"] = contest.ratio(task)
                contest.close()
    report.notes.append(
        f"{effort.n:,} points against as many, float32; sliced W with {effort.projections} directions, "
        "sorted in all libraries. Medians of single calls in turns; ratios are to the fastest way of any "
        f"rival, at {max(counts)} thread(s)."
    )
    return report
