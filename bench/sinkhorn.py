"""Entropic transport: Sinkhorn's iteration against POT, and OTT and GeomLoss where they are installed.

All sides solve the same problem at the same s2; one iteration renews both potentials. Ours runs to the L1
marginal error asked for, with its own scales: that time is measured, and an iteration's is the mean of those
at the target, so without the scales before it where there are such. The others are timed by iteration (a
longer run less a shorter one); their time to the end is computed, for as many iterations as ours took.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import HERE, ROOT, compiler, describe, march, output, say
from numpy.typing import NDArray
from report import Figure, Report, Series, Table, three

from dsb import _core
from dsb.exact import sinkhorn
from dsb.exact.plan import Half

F32 = NDArray[np.float32]
FLAGS = shlex.split("-std=gnu11 -O3 -ffp-contract=fast -fno-math-errno")
OURS, FLOOR = "dsb", "floor: exp and FMA alone"
DIM, STD, TOLERANCE = 2, 7.0, 1e-3
ATTEMPTS = 3  # at a difference of times
MEMORY = """
import re
import numpy as np
from dsb import _core
from dsb.exact import sinkhorn
_core.set_num_threads({threads})
rng = np.random.default_rng(0)
x, y = ({std} * rng.normal(size=({n}, {dim})) for _ in range(2))
x, y = x.astype(np.float32), y.astype(np.float32)
sinkhorn(x[:100], y[:100], 50.0)
def kilobytes(what):
    return int(re.search(what + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
sinkhorn(x, y, 5.0)
print(kilobytes("VmHWM") - before)
"""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    points: int = 10_000
    repeats: int = 5
    rival_repeats: int = 2
    variances: tuple[float, ...] = (0.4, 10.0, 100.0)


QUICK = Effort(1000, 1, 1, (10.0,))


class Floor:
    """The program floor.c, compiled for the instruction set in use."""

    def __init__(self, isa: str, folder: Path) -> None:
        self._program = folder / "floor"
        command = [*compiler(), *FLAGS, *march(isa), f"-I{ROOT / 'csrc'}", str(HERE / "floor.c")]
        command += ["-o", str(self._program), "-lpthread", "-lm"]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"the probe does not compile: {shlex.join(command)}")

    def seconds(self, threads: int, pairs: float) -> float:
        """Of that many pairs."""
        return 1e-12 * pairs * float(output(str(self._program), str(threads), "150", str(DIM)))


# ---- the others: seconds of one iteration ----


def by_difference(run: Callable[[int], Any], few: int, more: int) -> float:
    """Seconds of one iteration, without what is done once. The first call only warms up."""
    run(few)
    for _ in range(ATTEMPTS):
        taken = []
        for count in (few, more):
            start = time.perf_counter()
            run(count)
            taken.append(time.perf_counter() - start)
        if taken[1] > taken[0]:
            return (taken[1] - taken[0]) / (more - few)
    sys.exit(f"{more} iterations took no longer than {few}: the machine is too busy to measure on")


def pot(x: F32, y: F32, s2: float) -> float:
    import ot

    weights = (np.full(len(p), 1.0 / len(p)) for p in (x, y))
    a, b = weights
    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))

    def run(count: int) -> Any:
        return ot.bregman.sinkhorn_log(
            a, b, cost, 2.0 * s2, numItermax=count, stopThr=0.0, warn=False
        )

    return by_difference(run, 1, 3)


def ott(x: F32, y: F32, s2: float) -> float:
    import jax
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as solver

    def compiled(count: int) -> Any:
        def solve(x: Any, y: Any) -> Any:
            cloud = pointcloud.PointCloud(x, y, epsilon=2.0 * s2, batch_size=1024)
            made = solver.Sinkhorn(
                lse_mode=True, min_iterations=count, max_iterations=count, inner_iterations=count
            )
            found = made(linear_problem.LinearProblem(cloud))
            return found.f, found.g

        return jax.jit(solve).lower(x, y).compile()

    ready = {count: compiled(count) for count in (1, 4)}
    return by_difference(lambda count: jax.block_until_ready(ready[count](x, y)), 1, 4)


def geomloss(x: F32, y: F32, s2: float) -> float:
    import torch
    from geomloss import SamplesLoss

    first, second = torch.from_numpy(x), torch.from_numpy(y)
    blur, diameter = math.sqrt(s2), 2.0 * math.sqrt(s2)

    def run(count: int) -> Any:
        # It makes one iteration at each scale of arange(log diameter, log blur, log scaling), up to a
        # constant number at the ends. Half a step less than all the way: rounding cannot add one.
        loss = SamplesLoss(
            "sinkhorn",
            p=2,
            blur=blur,
            diameter=diameter,
            scaling=0.5 ** (1.0 / (count - 0.5)),
            debias=False,
            potentials=True,
            backend="tensorized",
        )
        return loss(first, second)

    return by_difference(run, 1, 6)


RIVALS = {"POT, sinkhorn_log": pot, "OTT, online": ott, "GeomLoss, tensorized": geomloss}
MODULES = {"POT, sinkhorn_log": "ot", "OTT, online": "ott", "GeomLoss, tensorized": "geomloss"}


# ---- the run ----


def samples(points: int) -> tuple[F32, F32]:
    rng = np.random.default_rng(0)
    x, y = (STD * rng.normal(size=(points, DIM)) for _ in range(2))
    return x.astype(np.float32), y.astype(np.float32)


def memory(effort: Effort, threads: int) -> float:
    """Megabytes that a solution takes beyond the data."""
    code = MEMORY.format(threads=threads, std=STD, n=effort.points, dim=DIM)
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(told.stdout) * 1024 / 1e6


def at_target(history: Sequence[Half]) -> float:
    """Seconds of an iteration, two half steps, at the last scale; its first sets up, and is left out."""
    last = [half for half in history if half.variance == history[-1].variance]
    if len(last) == 1:
        return 2.0 * history[-1].seconds / len(history)
    return 2.0 * (last[-1].seconds - last[0].seconds) / (len(last) - 1)


class Bench:
    """One number of threads."""

    def __init__(self, effort: Effort, threads: int, floor: Floor) -> None:
        self.effort, self.threads, self._floor = effort, threads, floor
        self._x, self._y = samples(effort.points)
        self.series: dict[tuple[float, str], Series] = {}
        self.totals: dict[float, Series] = {}
        self.iterations: dict[float, int] = {}
        self.dense: dict[float, Series] = {}

    def _add(self, s2: float, side: str, value: float) -> None:
        self.series.setdefault((s2, side), Series()).add(value)

    def ours(self, s2: float) -> None:
        _core.set_num_threads(self.threads)
        pairs = 2.0 * self.effort.points**2
        self._add(s2, FLOOR, self._floor.seconds(self.threads, pairs))
        start = time.perf_counter()
        plan = sinkhorn(self._x, self._y, s2 / 2.0, tolerance=TOLERANCE)
        self.totals.setdefault(s2, Series()).add(time.perf_counter() - start)
        self.iterations[s2] = plan.iterations
        self._add(s2, OURS, at_target(plan.history))
        # With all pairs: in dimension 7 nothing is left out; here the costs are those of the plane.
        self.dense.setdefault(s2, Series()).add(self._every_pair(s2))

    def _every_pair(self, s2: float) -> float:
        """Seconds of one iteration at a scale so large that every pair counts."""
        weights = np.full(self.effort.points, 1.0 / self.effort.points)
        wide = np.zeros(self.effort.points)
        start = time.perf_counter()
        _core.sinkhorn(self._x, self._y, weights, weights, wide, wide, 1e4 * s2 + 1e4, most=7)
        return (time.perf_counter() - start) / 4.0

    def rivals(self, s2: float) -> None:
        for side, measure in RIVALS.items():
            if find_spec(MODULES[side]) is not None:
                self._add(s2, side, measure(self._x, self._y, s2))


def figures(bench: Bench) -> list[Figure]:
    out = []
    for s2 in bench.effort.variances:
        name = f"s2 = {s2:g}"
        total = Series([1e3 * v for v in bench.totals[s2].values])
        out.append(Figure(f"{name}: to the end", OURS, bench.threads, "ms", total))
        for (variance, side), series in bench.series.items():
            if variance == s2:
                scaled = Series([1e3 * v for v in series.values])
                out.append(Figure(f"{name}: an iteration", side, bench.threads, "ms", scaled))
        every = Series([1e3 * v for v in bench.dense[s2].values])
        out.append(Figure(f"{name}: an iteration", "dsb, every pair", bench.threads, "ms", every))
    return out


def goals(bench: Bench) -> dict[str, float]:
    """The worst of the variances."""
    against: dict[str, list[float]] = {}
    for (s2, side), series in bench.series.items():
        ours = bench.series[s2, OURS].median
        if side == FLOOR:
            every = bench.dense[s2].median
            against.setdefault("sinkhorn_floor", []).append(every / series.median)
        elif side != OURS:
            key = "sinkhorn_pot" if MODULES[side] == "ot" else "sinkhorn_others"
            against.setdefault(key, []).append(series.median / ours)
    return {key: max(v) if key == "sinkhorn_floor" else min(v) for key, v in against.items()}


def measure(effort: Effort, counts: list[int]) -> Report:
    threads = max(counts)
    settings = {"threads": threads, "quick": effort == QUICK, "points": effort.points}
    report = Report(describe(_core.isa()), settings)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(effort, threads, Floor(_core.isa(), Path(folder)))
        for i in range(effort.repeats):
            for s2 in effort.variances:
                say(f"s2 = {s2:g}, round {i + 1} of {effort.repeats}")
                bench.ours(s2)
                if i < effort.rival_repeats:
                    bench.rivals(s2)
    report.figures += figures(bench)
    report.goals |= goals(bench)
    report.goals["sinkhorn_memory"] = memory(effort, threads)
    rows = []
    for (s2, side), series in bench.series.items():
        count = bench.iterations[s2]
        ours = side == OURS
        seconds = bench.totals[s2].median if ours else count * series.median
        how = "measured" if ours else "computed: iterations times seconds"
        rows.append([f"{s2:g}", str(count), side, f"{three(seconds)} s", how])
    head = ["s2", "iterations", "side", "to the end", "how"]
    report.tables.append(Table("To the end", head, rows))
    missing = [side for side, module in MODULES.items() if find_spec(module) is None]
    report.notes += [
        f"{effort.points:,} points against as many, both N(0, {STD**2:g} I) in dimension {DIM}; "
        f"L1 marginal error {TOLERANCE:g}; {threads} thread(s). Sides take turns; medians.",
        "POT computes in float64 with the matrix in memory; its time leaves out the matrix itself.",
        "'every pair': a scale so large that no group of columns is left out, which is what the floor "
        "is compared with. The floor is float32 sums of exp(<x, y> + height) from the nearest cache.",
        f"Not installed: {', '.join(missing) or 'none'}.",
    ]
    return report
