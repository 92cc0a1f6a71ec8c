"""Vectors: the released two-dimensional network, and what the package itself costs.

Every side, at every number of threads, is a process of its own that sleeps while another works; short
bursts of all of them take turns, and medians are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import package
import work
from machine import Peak, describe, say
from ours import make_problem
from report import Figure, Report, Series
from rival import SAMPLERS, TRAINERS
from worker import Worker

from dsb import _core

PAUSE = 0.02  # seconds until the threads of the side before are asleep
STEP, HALF, SAMPLE, PEAK = "(a) training step", "(b) half-bridge", "(c) sampling", "FMA peak"
OURS, RELEASED = "dsb", "released way"


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    repeats: int = 15
    windows: int = 3  # of 99 steps in a burst of ours
    rival_steps: int = 100
    half_bridges: int = 3
    half_bridge: int = work.HALF_BRIDGE
    refreshes: int = 3  # of the released way
    simulating: int = 2000  # steps by which the simulating net is trained
    imports: int = 21
    compiled: bool = True  # torch.compile takes a minute at each number of threads


QUICK = Effort(3, 1, 20, 1, 300, 1, 200, 5, compiled=False)


class Bench:
    """The measurements at one number of threads."""

    def __init__(self, effort: Effort, threads: int, problem: Path, peak: Peak) -> None:
        self._effort, self._threads, self._peak = effort, threads, peak
        self._ours, self._rival = (Worker(s, threads, problem) for s in ("ours", "rival"))
        self._trainers, self._samplers = (
            [way for way in ways if effort.compiled or "compiled" not in way]
            for ways in (TRAINERS, SAMPLERS)
        )
        self.series: dict[tuple[str, str], Series] = {}
        self._windows: dict[str, Series] = {}
        self.losses: dict[str, list[float]] = {}

    def close(self) -> None:
        self._ours.close()
        self._rival.close()

    def _add(self, task: str, side: str, value: float) -> None:
        self.series.setdefault((task, side), Series()).add(value)
        time.sleep(PAUSE)

    def fastest(self, task: str) -> str:
        """PyTorch's fastest way."""
        sides = (side for t, side in self.series if t == task and side not in (OURS, RELEASED))
        return min(sides, key=lambda side: self.series[task, side].median)

    def warm(self) -> None:
        """Compiles what is to be compiled, and everyone's first touch of memory."""
        self._ours.call("step", windows=2)
        self._ours.call("sample")
        for kind in self._trainers:
            self._rival.call("step", kind=kind, steps=20)
        for kind in self._samplers:
            self._rival.call("sample", kind=kind)
            self._rival.call("window", kind=kind)

    def steps(self) -> None:
        self._add(PEAK, "probe", self._peak.measure(self._threads, 60) or 0.0)
        seconds = self._ours.call("step", windows=self._effort.windows)
        self._add(STEP, OURS, seconds)
        for kind in self._trainers:
            seconds = self._rival.call("step", kind=kind, steps=self._effort.rival_steps)
            self._add(STEP, kind, seconds)

    def samples(self) -> None:
        self._add(SAMPLE, OURS, self._ours.call("sample"))
        for kind in self._samplers:
            self._add(SAMPLE, kind, self._rival.call("sample", kind=kind))
            self._windows.setdefault(kind, Series()).add(self._rival.call("window", kind=kind))

    def half_bridges(self) -> None:
        """The way that trained fastest, with the way that made a window fastest."""
        steps, kind = self._effort.half_bridge, self.fastest(STEP)
        sampler = min(self._windows, key=lambda way: self._windows[way].median)
        name = f"{kind}; simulation {sampler}"
        ours = self._ours.call("half_bridge", steps=steps)
        self._add(HALF, OURS, ours["seconds"])
        theirs = self._rival.call("half_bridge", kind=kind, sampler=sampler, steps=steps)
        self._add(HALF, name, theirs["seconds"])
        self.losses.setdefault(OURS, []).extend(ours["losses"])
        self.losses.setdefault(name, []).extend(theirs["losses"])
        released = self._rival.call("released", refreshes=self._effort.refreshes)
        self._add(HALF, RELEASED, released * steps)

    def spreads(self) -> tuple[float, float]:
        return self._ours.call("spread"), self._rival.call("spread")


def loss_rows(bench: Bench, threads: int, steps: int) -> list[dict[str, Any]]:
    """Mean losses over the first tenth and over the second half of a half-bridge."""
    rows = []
    for side, losses in bench.losses.items():
        runs = [losses[i : i + steps] for i in range(0, len(losses), steps)]
        early = [statistics.fmean(run[: steps // 10]) for run in runs]
        late = [statistics.fmean(run[steps // 2 :]) for run in runs]
        rows.append(
            {
                "side": side,
                "threads": threads,
                "mean of the first tenth": f"{statistics.fmean(early):.5f}",
                "mean of the second half": f"{statistics.fmean(late):.6f}",
                "spread of the latter": f"{max(late) - min(late):.6f}",
            }
        )
    return rows


def figures(bench: Bench, threads: int) -> list[Figure]:
    units = {STEP: (1e6, "us"), SAMPLE: (1e3, "ms"), HALF: (1, "s"), PEAK: (1e-9, "GFLOP/s")}
    out = []
    for (task, side), series in sorted(bench.series.items(), key=lambda item: item[0][0]):
        factor, unit = units[task]
        scaled = Series([factor * v for v in series.values])
        out.append(Figure(task, side, threads, unit, scaled))
    return out


def goals(benches: dict[int, Bench]) -> dict[str, float]:
    """What can be rated with the numbers of threads that were measured."""
    out: dict[str, float] = {}

    def median(threads: int, task: str, side: str | None = None) -> float:
        bench = benches[threads]
        return bench.series[task, side or bench.fastest(task)].median

    if 1 in benches:
        out["step"] = median(1, STEP) / median(1, STEP, OURS)
        operations = 2 * work.step_multiply_adds() / median(1, STEP, OURS)
        out["peak"] = 100 * operations / benches[1].series[PEAK, "probe"].most
        out["sample"] = median(1, SAMPLE) / median(1, SAMPLE, OURS)
    if 2 in benches:
        out["half_bridge"] = median(2, HALF) / median(2, HALF, OURS)
        out["released"] = median(2, HALF, RELEASED) / median(2, HALF, OURS)
    if 1 in benches and 2 in benches:
        for key, task in (("step", STEP), ("half_bridge", HALF), ("sample", SAMPLE)):
            out[f"scaling_{key}"] = median(1, task, OURS) / median(2, task, OURS)
    return out


def notes(effort: Effort, benches: dict[int, Bench]) -> list[str]:
    pairs = work.BATCH * work.REFRESH
    out = [
        f"(a) is one gradient step of the released two-dimensional network (26,498 parameters), "
        f"batch {work.BATCH}, float32, with gather, clipping, Adam and moving average: "
        f"{work.step_multiply_adds():,} multiply-adds on unpadded shapes. Share of peak counts "
        "these alone, in the median time, against the best of the probe's repeats: a busy machine "
        "lowers it.",
        f"(b) is {effort.half_bridge:,} such steps with their simulation by the other direction's "
        f"net: every {work.REFRESH} steps {pairs:,} pairs, two evaluations each, on both sides.",
        f"(c) is {work.SAMPLES:,} particles through {work.STEPS} steps.",
        "PyTorch's sides: whole-tensor indexing, embedded times from a table, one encoded time for "
        "all particles of a simulation. (b) takes the training and the simulation that were each "
        "the fastest.",
        f"The released way is timed over {effort.refreshes * work.REFRESH} steps, whole windows, "
        f"and scaled to {effort.half_bridge:,}; it simulates {work.RELEASED_PATHS:,} paths for each "
        f"window, of which {work.PATHS:,} are read.",
    ]
    for threads, bench in benches.items():
        share = 2 * work.step_multiply_adds() / bench.series[STEP, OURS].median
        share /= bench.series[PEAK, "probe"].most
        out.append(f"{threads} thread(s): (a) runs at {100 * share:.1f} % of the FMA peak.")
        ours, theirs = bench.spreads()
        out.append(f"{threads} thread(s): spread of the samples {ours:.2f}, PyTorch {theirs:.2f}.")
    return out


def measure_package(effort: Effort, report: Report) -> None:
    report.goals["import"] = 1e3 * package.import_seconds(effort.imports)
    report.goals["wheel"] = 1e-6 * package.wheel_bytes()
    if effort != QUICK:
        report.goals["demo"] = package.demo_seconds()


def measure(effort: Effort, counts: Sequence[int], parts: Sequence[str]) -> Report:
    isa = _core.isa()
    settings = {"threads": list(counts), "parts": list(parts), "quick": effort == QUICK}
    report = Report(describe(isa), settings)
    benches: dict[int, Bench] = {}
    with tempfile.TemporaryDirectory() as name:
        problem, peak = Path(name) / "problem.npz", Peak(isa, Path(name))
        make_problem(effort.simulating).save(problem)
        for threads in counts:
            benches[threads] = Bench(effort, threads, problem, peak)
            say(f"warming up, {threads} thread(s)")
            benches[threads].warm()
        rounds = (
            (effort.repeats, Bench.steps),
            (effort.repeats, Bench.samples),
            (effort.half_bridges, Bench.half_bridges),
        )
        for repeats, part in rounds:
            for i in range(repeats):
                say(f"{part.__name__}, round {i + 1} of {repeats}")
                for bench in benches.values():
                    part(bench)
        for threads, bench in benches.items():
            report.figures += figures(bench, threads)
            report.losses += loss_rows(bench, threads, effort.half_bridge)
        report.goals |= goals(benches)
        report.notes += notes(effort, benches)
        for bench in benches.values():
            bench.close()
    if "package" in parts:
        measure_package(effort, report)
    return report
