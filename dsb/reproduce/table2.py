"""Sets in the plane: table 2 of arXiv:2303.16852, W2 of generated points to fresh ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import metrics
from .._check import F32, choice
from .._extras import need
from ..bridge import Bridge
from ..datasets import toy
from ..exact import DiscreteBridge, sinkhorn_iterates
from ..gaussian import Gaussian
from ..history import Direction, Record
from ..metrics._estimate import excess
from . import _setup
from ._cost import Cost, of_training, scaled
from ._machine import Watch
from ._report import Column, Published
from ._setup import Settings
from ._study import Known, Outcome, Reproduction, Values

ABOUT = """\
N(0, I) to moons, scurve and 8gaussians, and moons to 8gaussians. "W2": exact 2-Wasserstein distance
between 10,000 points generated in 20 Euler steps (no noise in the last) from fresh starts and 10,000
fresh points of the set; "floor": between two such fresh samples, one pair for each seed; "excess":
sqrt(max(W2^2 - floor^2, 0)), seed by seed. T, steps, iterations, nets and the 10,000 training points
are chosen here, because they are not published: this is NOT the published protocol. "Exact IPF": the
marginal that exact iterative proportional fitting on the training points has at this iteration, without
discretisation; "exact drift": as many Euler steps with the drift of the exact bridge between the
training points. These two are what perfect nets would give, averaged over seeds 0 to 2, whatever the
number of seeds that are trained."""

# The two ends, and the direction of which the far end is judged.
SETS: dict[str, tuple[str, str, Direction]] = {
    "moons": ("moons-table2", "gaussian", "backward"),
    "scurve": ("scurve-table2", "gaussian", "backward"),
    "8gaussians": ("8gaussians-table2", "gaussian", "backward"),
    "moons-8gaussians": ("moons-table2-pair", "8gaussians", "forward"),
}
COMMON: Settings = {
    "problem": {"source": "", "prior": "", "direction": "", "points": 10_000},
    "schedule": {"shape": "constant", "N": 20, "T": 1.0},
    "reference": "Brownian",
    "training": {"iterations": 10, "steps": 5000},
    "evaluation": {"points": 10_000, "projections": 200, "known": 3},
}
ROWS: dict[str, Settings] = {
    "released": {
        "net": {"official": True},
        "bridge": {
            "batch": 512,
            "learning_rate": 1e-4,
            "lr_schedule": "constant",
            "output": "step",
            "closed_form": False,
        },
    },
    # Small steps beside the data, and noise enough that few iterations come close to the limit.
    "improved": {
        "schedule": {"shape": "geometric", "N": 20, "T": 3.0, "ratio": 100.0, "symmetric": False},
        "reference": "OU",
        "training": {"iterations": 5, "steps": 5000},
        "net": {"width": 128, "depth": 3},
        "bridge": {"batch": 512, "learning_rate": 3e-3, "lr_schedule": "cosine"},
    },
}
# Where both ends are data sets. These have a spread of 7, and as much more noise to go with it.
PAIR: dict[str, Settings] = {
    "released": {"schedule": {"shape": "constant", "N": 20, "T": 50.0}},
    "improved": {
        "schedule": {"shape": "geometric", "N": 20, "T": 50.0, "ratio": 30.0, "symmetric": True},
        "reference": "Brownian",
    },
}
QUICK: Settings = {
    "training": {"iterations": 3, "steps": 500},
    "problem": {"points": 2000},
    "evaluation": {"points": 2000, "known": 1},
}

DSBM = "Shi et al., arXiv:2303.16852, table 2 (2-Wasserstein, 10,000 samples, 20 Euler steps)"
_TOLD = {
    "DSB": (0.190, 0.272, 0.411, 0.987),
    "DSBM-IPF": (0.140, 0.140, 0.315, 0.812),
    "DSBM-IMF": (0.144, 0.145, 0.338, 0.838),
    "OT-CFM": (0.111, 0.102, 0.253, 0.716),
}
PUBLISHED = tuple(
    Published(method, DSBM, dict(zip(SETS, values, strict=True)))
    for method, values in _TOLD.items()
)


class Table2(Reproduction):
    """`dsb reproduce table2`."""

    name = "table2"
    title = "dsb reproduce table2"
    about = ABOUT
    axis = "sliced W2"
    rows = ROWS
    quick_budget = QUICK
    published = PUBLISHED
    levels = ("sliced_floor", "sliced_ipf")
    everything = tuple(SETS)
    columns = (
        Column("w2", "W2"),
        Column("floor", "floor"),
        Column("excess", "excess"),
        Column("ipf", "exact IPF"),
        Column("drift", "exact drift"),
        Column("sliced", "sliced W2"),
        Column("sliced_floor", "sliced floor"),
        Column("sliced_ipf", "sliced exact IPF"),
    )

    def __init__(self, sets: Iterable[str] = everything, **options: Any) -> None:
        super().__init__([choice("set", name, SETS) for name in sets], **options)

    def settings(self, case: str, row: str) -> Settings:
        source, prior, direction = SETS[case]
        told = COMMON | self.rows[row] | (PAIR[row] if prior != "gaussian" else {})
        problem = {"source": source, "prior": prior, "direction": direction}
        return told | {"problem": told["problem"] | problem}

    def check(self) -> None:
        need("ot", "metrics", "dsb reproduce table2")

    @classmethod
    def cost(cls, settings: Settings) -> Cost:
        drawn = Drawn(settings, 0)
        training = settings["training"]
        trained = drawn.bridge()
        found = of_training(trained, training["iterations"], training["steps"])
        with Watch() as watch:
            drawn.sliced(drawn.generated(trained))
        n = settings["evaluation"]["points"]
        # The solver's time grows between n^2 and n^3.
        exact, memory = scaled(
            lambda few: metrics.wasserstein(drawn.test[:few], drawn.fresh[:few]),
            n,
            (2.0, 3.0),
            (1000, 2000),
        )
        seconds = 2 * exact + watch.seconds * (training["iterations"] + 1)
        with Watch() as plans:
            drawn.ipf()
        with Watch() as steps:
            drawn.euler(most=1)
        each = 2 * exact + plans.seconds + steps.seconds * drawn.process[0].N
        memory = max(memory, watch.bytes, plans.bytes, steps.bytes)
        return found._replace(
            evaluation=seconds,
            memory=found.memory + memory,
            known=each * cls.known_seeds(settings),
        )

    @classmethod
    def expected(cls, settings: Settings) -> Known:
        found: Known = {"ipf": [], "sliced_ipf": [], "drift": []}
        for seed in range(cls.known_seeds(settings)):
            drawn = Drawn(settings, seed)
            points = drawn.ipf()
            found["ipf"].append(drawn.w2(points))
            found["sliced_ipf"].append(drawn.sliced(points))
            found["drift"].append(drawn.w2(drawn.euler()))
        return found

    @classmethod
    def known_seeds(cls, settings: Settings) -> int:
        return int(settings["evaluation"]["known"])

    @classmethod
    def run(cls, settings: Settings, seed: int) -> Outcome:
        drawn = Drawn(settings, seed)
        trained = drawn.bridge()
        curve: list[float] = []

        def after(given: Bridge, record: Record) -> None:
            if record.direction == drawn.direction:
                curve.append(drawn.sliced(drawn.generated(given)))

        values, seconds = _setup.measured(trained, settings, after, drawn.values)
        return Outcome(values, {drawn.direction: curve}, seconds, trained.settings._asdict())


class Drawn:
    """What is drawn for one seed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seeds = settings, _setup.seeds(seed)
        told = settings["problem"]
        self.names: tuple[str, str] = (told["source"], told["prior"])
        self.direction: Direction = told["direction"]
        self.normal = Gaussian([0.0, 0.0], 1.0)
        reference = _setup.reference(settings["reference"], self.normal)
        self.process = _setup.schedule(settings["schedule"]), reference
        far = int(self.direction == "forward")  # the end that is judged
        role = ("source", "prior")[far]
        self.first = self._draw(0, "source", told["points"])
        self.last = self._draw(1, "prior", told["points"])
        many = settings["evaluation"]["points"]
        self.starts = self._draw(1 - far, f"test {('prior', 'source')[far]}", many)
        self.test = self._draw(far, f"test {role}", many)
        self.fresh = self._draw(far, f"fresh {role}", many)

    def _draw(self, end: int, role: str, n: int) -> F32:
        name, seed = self.names[end], self.seeds[role]
        return self.normal.sample(n, seed) if name == "gaussian" else toy(name, n, seed)

    def bridge(self) -> Bridge:
        prior = self.normal if self.names[1] == "gaussian" else self.last
        return _setup.bridge(self.first, prior, self.settings, self.seeds["bridge"])

    def generated(self, trained: Bridge) -> F32:
        seed = self.seeds["evaluation"]
        return trained.sample(x=self.starts, direction=self.direction, seed=seed)

    def w2(self, points: F32) -> float:
        return metrics.wasserstein(points, self.test)

    def sliced(self, points: F32) -> float:
        many = self.settings["evaluation"]["projections"]
        return metrics.sliced_wasserstein(points, self.test, many, self.seeds["metric"])

    def values(self, trained: Bridge) -> Values:
        """What is measured at the end."""
        points = self.generated(trained)
        w2, floor = self.w2(points), self.w2(self.fresh)
        return {
            "w2": w2,
            "floor": floor,
            "excess": excess(w2, floor),
            "sliced": self.sliced(points),
            "sliced_floor": self.sliced(self.fresh),
        }

    def ipf(self) -> F32:
        """Points of the judged end, from exact IPF on the training points at the last iteration."""
        half_bridges = 2 * self.settings["training"]["iterations"] - (self.direction == "backward")
        plan = sinkhorn_iterates(self.first, self.last, *self.process, n=half_bridges)[-1]
        i, j = plan.pairs(len(self.test), seed=self.seeds["exact"])
        return self.first[i] if self.direction == "backward" else self.last[j]

    def euler(self, most: int | None = None) -> F32:
        """The judged end of N Euler steps from the starts (or of the first), with the exact drift
        between the training points."""
        steps, reference = self.process
        known = DiscreteBridge(self.first, self.last, steps, reference)
        x = self.starts.astype(np.float64)
        rng = np.random.default_rng(self.seeds["exact"])
        order = range(steps.N) if self.direction == "forward" else range(steps.N, 0, -1)
        for done, k in enumerate(list(order)[:most], 1):
            g = steps.steps[k if self.direction == "forward" else k - 1]
            x = x + g * known.drift(x, float(steps.times[k]), self.direction)
            if done < steps.N:
                x += np.sqrt(2.0 * g) * rng.standard_normal(x.shape)
        return x.astype(np.float32)
