"""Gaussians in d = 5, 20 and 50, where the bridge is known: the experiment of arXiv:2303.16852."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import _core, metrics
from .._check import F32, F64, integer
from .._convergence import marginal_kl
from ..bridge import Bridge
from ..exact import GaussianBridge, PopulationDSB
from ..gaussian import USER_STREAM, Gaussian
from ..history import DIRECTIONS, Direction, Record
from ..reference import Brownian
from ..schedule import Schedule
from . import _setup
from ._cost import Cost, of_training
from ._machine import Watch
from ._report import Column, Published
from ._setup import Settings
from ._study import Known, Outcome, Reproduction, Values

_STREAM = USER_STREAM | 200 << 8  # apart from the data sets

ABOUT = """\
N(-.1 1, I) to N(.1 1, I), Brownian reference with T = 1/2 (noise of variance 1 in all), N = 20 steps,
10,000 training points of each end, never redrawn; 20 iterations of two half-bridges of 10,000 steps.
"KL": KL(N(mean, var) of a coordinate of the paths || the exact bridge's), summed over coordinates,
averaged over the 21 grid times and both directions, x 1e3, from 10,000 paths of each direction that
start in fresh exact draws (final noise kept); "training starts": in the training points instead;
"redrawn starts": in draws from the Gaussian with their moments. "Exact bridge of the sample": paths of
the exact bridge between the Gaussians with these moments (full covariances), from the exact draws;
"excess": ours less that. "Perfect nets": likewise of what DSB gives with perfect nets on these points
at this N and iteration; "DSB, no sampling error": with infinitely many points, in closed form.
"Floor": paths of the true bridge, d / 10. "Cov off by": relative error of the sum of Cov(X_0, X_N)
over coordinates. Settings "published": those of the publication as far as it states them (Adam,
constant rate 1e-4); "improved": chosen here, same budget."""

# Everything that decides a figure. Problem, budget and evaluation are those of arXiv:2303.16852.
COMMON: Settings = {
    "problem": {"dim": 5, "shift": 0.1, "points": 10_000},
    "schedule": {"shape": "constant", "N": 20, "T": 0.5},
    "reference": "Brownian",
    "training": {"iterations": 20, "steps": 10_000},
    "evaluation": {"paths": 10_000},
}
ROWS: dict[str, Settings] = {
    "published": {
        "net": {"widths": [256, 256], "activation": "silu"},
        "bridge": {"batch": 128, "learning_rate": 1e-4, "lr_schedule": "constant"},
    },
    "improved": {
        "net": {"widths": [256, 256], "activation": "silu"},
        "bridge": {"batch": 128, "learning_rate": 1e-4, "lr_schedule": "cosine"},
    },
}
QUICK: Settings = {"training": {"iterations": 4, "steps": 500}}

DSBM = "Shi et al., arXiv:2303.16852, Gaussian experiment (20 iterations, KL x 1e3)"
PUBLISHED = (
    Published("DSB", DSBM, {"d = 5": 3.26, "d = 20": 13.0, "d = 50": 32.8}),
    Published("DSBM-IPF", DSBM, {"d = 5": 1.23, "d = 20": 4.42, "d = 50": 8.75}),
)


class GaussianExperiment(Reproduction):
    """`dsb reproduce gaussian`."""

    name = "gaussian"
    title = "dsb reproduce gaussian"
    about = ABOUT
    axis = "KL x 1e3"
    rows = ROWS
    quick_budget = QUICK
    published = PUBLISHED
    levels = ("exact", "floor")
    comparable = True
    everything = (5, 20, 50)
    columns = (
        Column("kl", "KL x 1e3", 1e3, 2),
        Column("exact", "exact bridge of the sample", 1e3, 2),
        Column("excess", "excess", 1e3, 2),
        Column("perfect", "perfect nets", 1e3, 2),
        Column("kl_backward", "backward", 1e3, 2, False),
        Column("kl_forward", "forward", 1e3, 2, False),
        Column("kl_training", "training starts", 1e3, 2),
        Column("kl_redrawn", "redrawn starts", 1e3, 2, False),
        Column("perfect_redrawn", "perfect nets, redrawn starts", 1e3, 2, False),
        Column("coupling", "Cov off by %", 1e2, 2),
        Column("floor", "floor", 1e3, 2),
        Column("population", "DSB, no sampling error", 1e3, 3),
    )

    def __init__(self, dims: Iterable[int] = everything, **options: Any) -> None:
        super().__init__([integer("dim", dim, 1, 1000) for dim in dims], **options)

    def case_name(self, case: int) -> str:
        return f"d = {case}"

    def case_label(self, case: int) -> str:
        return f"d{case}"

    def settings(self, case: int, row: str) -> Settings:
        told = COMMON | self.rows[row]
        return told | {"problem": told["problem"] | {"dim": case}}

    @classmethod
    def cost(cls, settings: Settings) -> Cost:
        drawn = Drawn(settings, 0)
        trained = drawn.bridge()
        training = settings["training"]
        found = of_training(trained, training["iterations"], training["steps"])
        with Watch() as often:
            for direction in DIRECTIONS:
                drawn.measure(trained, direction)
        with Watch() as last:
            drawn.values(trained)
        return found._replace(
            evaluation=often.seconds * training["iterations"] + last.seconds,
            memory=found.memory + max(often.bytes, last.bytes),
        )

    @classmethod
    def expected(cls, settings: Settings) -> Known:
        ends, steps = _ends(settings), _setup.schedule(settings["schedule"])
        exact = GaussianBridge(*ends, steps, Brownian())
        found = _population(*ends, steps, settings)
        errors = [marginal_kl(found.process(direction), exact) for direction in DIRECTIONS]
        # Mean and variance of n draws each add 1 / (2 n) a coordinate.
        floor = settings["problem"]["dim"] / settings["evaluation"]["paths"]
        return {"floor": [floor], "population": [float(np.mean(errors))]}

    @classmethod
    def run(cls, settings: Settings, seed: int) -> Outcome:
        drawn = Drawn(settings, seed)
        trained = drawn.bridge()
        curve: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}

        def after(given: Bridge, record: Record) -> None:
            error = drawn.measure(given, record.direction)
            curve[record.direction].append(1e3 * error)

        values, seconds = _setup.measured(trained, settings, after, drawn.values)
        return Outcome(values, curve, seconds, trained.settings._asdict())


class Drawn:
    """What is drawn for one seed, and how paths are measured."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seeds = settings, _setup.seeds(seed)
        self.ends = _ends(settings)
        self.schedule = _setup.schedule(settings["schedule"])
        self.exact = GaussianBridge(*self.ends, self.schedule, Brownian())
        points, paths = settings["problem"]["points"], settings["evaluation"]["paths"]
        first, last = self.ends
        self.points = {
            "source": first.sample(points, self.seeds["source"]),
            "prior": last.sample(points, self.seeds["prior"]),
        }
        self.fitted = _moments(self.points["source"]), _moments(self.points["prior"])
        self.starts: dict[Direction, F32] = {
            "backward": last.sample(paths, self.seeds["test prior"]),
            "forward": first.sample(paths, self.seeds["test source"]),
        }

    def bridge(self) -> Bridge:
        points, seed = self.points, self.seeds["bridge"]
        return _setup.bridge(points["source"], points["prior"], self.settings, seed)

    def paths(self, trained: Bridge, direction: Direction, starts: F32 | None = None) -> F32:
        """In the order of time; the starts are exact draws unless they are given."""
        found = trained.paths(
            self.starts[direction] if starts is None else starts,
            direction=direction,
            seed=self.seeds["evaluation"],
            final_noise=True,
        )
        return found[:, ::-1] if direction == "backward" else found

    def error(self, paths: F32) -> float:
        """KL, in nats: per coordinate, summed over these, averaged over the grid times."""
        return metrics.path_gaussian_kl(paths, self.exact, schedule=self.schedule)

    def measure(self, trained: Bridge, direction: Direction) -> float:
        return self.error(self.paths(trained, direction))

    def walked(
        self,
        maps: Sequence[tuple[F64, F64, F64]],
        direction: Direction,
        starts: F32 | None = None,
    ) -> float:
        """Error of the linear chain of these maps, from the same starts as `paths`."""
        x = (self.starts[direction] if starts is None else starts).astype(np.float64)
        forward = direction == "forward"
        paths = np.empty((len(x), len(maps) + 1, x.shape[1]), dtype=np.float32)
        paths[:, 0 if forward else -1] = x
        word = _STREAM | DIRECTIONS.index(direction) << 20
        for k in range(len(maps)) if forward else reversed(range(len(maps))):
            A, c, Q = maps[k]
            z = _core.normals(self.seeds["exact"], word, k, 0, len(x), x.shape[1])
            x = x @ A.T + c + z @ np.linalg.cholesky(Q).T
            paths[:, k + 1 if forward else k] = x
        return self.error(paths)

    def exact_of_sample(self) -> float:
        """Mean error, over directions, of the exact bridge between Gaussians with the points' moments."""
        exact = GaussianBridge(*self.fitted, self.schedule, Brownian())
        steps = range(self.schedule.N)
        errors = [
            self.walked([exact.step(k, direction) for k in steps], direction)
            for direction in DIRECTIONS
        ]
        return float(np.mean(errors))

    def values(self, trained: Bridge) -> Values:
        """All that is measured at the end."""
        perfect = _population(*self.fitted, self.schedule, self.settings)
        found: dict[str, list[float]] = {}
        true = float(np.trace(self.exact.coupling().cross))
        for direction in DIRECTIONS:
            role = "prior" if direction == "backward" else "source"
            paths = self.paths(trained, direction)
            first, last = (paths[:, i].astype(np.float64) for i in (0, -1))
            cross = np.mean((first - first.mean(axis=0)) * (last - last.mean(axis=0)), axis=0)
            moments = self.fitted[role == "prior"]
            redrawn = moments.sample(len(paths), self.seeds[f"fresh {role}"])
            maps = perfect.process(direction).maps
            for name, value in {
                f"kl_{direction}": self.error(paths),
                "kl_training": self.error(self.paths(trained, direction, self.points[role])),
                "kl_redrawn": self.error(self.paths(trained, direction, redrawn)),
                "perfect": self.walked(maps, direction),
                "perfect_redrawn": self.walked(maps, direction, redrawn),
                "coupling": abs(float(cross.sum()) / true - 1.0),
            }.items():
                found.setdefault(name, []).append(value)
        values = {name: float(np.mean(both)) for name, both in found.items()}
        values["exact"] = self.exact_of_sample()
        values["kl"] = (values["kl_backward"] + values["kl_forward"]) / 2.0
        values["excess"] = values["kl"] - values["exact"]
        return values


def _ends(settings: Settings) -> tuple[Gaussian, Gaussian]:
    told = settings["problem"]
    shift = np.full(told["dim"], told["shift"])
    return Gaussian(-shift, 1.0), Gaussian(shift, 1.0)


def _moments(points: F32) -> Gaussian:
    """Mean and full covariance of training points."""
    exact = points.astype(np.float64)
    return Gaussian(exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False, bias=True)))


def _population(source: Gaussian, prior: Gaussian, steps: Schedule, settings: Settings) -> Any:
    """What perfect nets give after as many iterations."""
    told = ("objective", "first_coupling", "covariance")
    chosen = {name: settings["bridge"][name] for name in told if name in settings["bridge"]}
    problem = PopulationDSB(source, prior, steps, Brownian(), **chosen)
    return problem.iterate(settings["training"]["iterations"])
