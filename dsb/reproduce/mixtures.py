"""Mixtures whose bridge is known in any dimension, measured like the benchmark of arXiv:2306.10161."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import metrics
from .._check import F32, F64, integer, real
from ..bridge import Bridge
from ..exact import MixtureBridge, sinkhorn, sinkhorn_iterates
from ..history import Record
from . import _setup
from ._cost import Cost, of_training
from ._machine import Watch
from ._report import Column, Published
from ._setup import Settings
from ._study import Known, Outcome, Reproduction, Values

ABOUT = """\
From N(0, .25 I) by sqrt(eps) dW on [0, 1] to the far end of a bridge whose potential is a mixture of
five Gaussians N(mu, .05 I), mu on a sphere of radius 5: plan and drift are known (arXiv:2310.01174).
"cBW2-UVP": distance between means and covariances of the learnt and the true X_1 given X_0, averaged
over 1,000 X_0 with 1,000 paths each (no noise in the last step), in % of half the variance of X_1;
"BW2-UVP": of X_1 alone, 10,000 points; "path KL": of the forward drift against the true one, along
true paths, in nats. "Floor": the true conditional law, measured in the same way. What perfect nets would
give: "exact drift": as many Euler steps with the true drift; "exact IPF": the plan between samples at
this iteration, and "Sinkhorn": when it has converged; where the two agree the rest is the sample's.
These three are averaged over 50 X_0 only, with 1,000 draws each, and over seeds 0 to 2, whatever the
number of seeds that are trained.
Protocol of the benchmark arXiv:2306.10161: two nets of about a million parameters together, batch
1,000, 10 iterations of two half-bridges of 5,000 steps, 200 Euler steps, 5 repeats; here Adam without
weight decay. Its figures are of OTHER mixture pairs: to be compared in order of magnitude only."""

COMMON: Settings = {
    "problem": {"dim": 2, "eps": 1.0, "points": 100_000, "sinkhorn": 10_000, "pair": 0},
    "reference": "Brownian",
    "training": {"iterations": 10, "steps": 5000},
    "evaluation": {
        "given": 1000,
        "each": 1000,
        "points": 10_000,
        "paths": 1000,
        "final_noise": False,
    },
}
ROWS: dict[str, Settings] = {
    "published": {
        "schedule": {"shape": "constant", "N": 200, "T": 0.5},
        "net": {"widths": [512, 512, 384], "activation": "silu"},
        "bridge": {"batch": 1000, "learning_rate": 1e-4, "lr_schedule": "constant"},
    },
    # Few steps: what a net has to find per step stands out of the noise. Few iterations: later ones lose more
    # of the coupling than they gain at the ends.
    "improved": {
        "schedule": {"shape": "constant", "N": 20, "T": 0.5},
        "training": {"iterations": 5, "steps": 4000},
        "net": {"width": 256, "depth": 3},
        "bridge": {
            "batch": 512,
            "learning_rate": 3e-3,
            "lr_schedule": "cosine",
            "antithetic": True,
        },
    },
}
QUICK: Settings = {
    "problem": {"sinkhorn": 2000},
    "schedule": {"N": 20},
    "net": {"width": 64, "depth": 2},
    "bridge": {"batch": 256},
    "training": {"iterations": 2, "steps": 400},
    "evaluation": {"given": 200, "each": 200, "points": 2000, "paths": 500},
}

DIMS = (2, 16, 64)
EPS = (0.1, 1.0, 10.0)
BLOCK = 1 << 22
BENCHMARK = (
    "Gushchin et al., arXiv:2306.10161, and Korotin et al., arXiv:2310.01174, cBW2-UVP % on the "
    "benchmark's own pairs"
)
_DIMS = (2, 16, 64, 128)
_TOLD = {
    "DSB": {0.1: (7.8, 15.3, 20.1, 29.4), 1.0: (1.66, 5.98, 13.1, 28.9)},
    "IMF": {0.1: (1.07, 4.25, 7.19, 16.6), 1.0: (0.20, 0.53, 2.20, 7.79)},
    "LightSB": {0.1: (0.03, 0.08, 0.28, 0.60)},
}


def case_name(dim: int, eps: float) -> str:
    """As the table has it."""
    return f"d = {dim}, eps = {eps:g}"


PUBLISHED = tuple(
    Published(
        method,
        BENCHMARK,
        {
            case_name(dim, eps): value
            for eps, values in told.items()
            for dim, value in zip(_DIMS, values, strict=True)
        },
        f"{method}, other pairs",
    )
    for method, told in _TOLD.items()
)


class Mixtures(Reproduction):
    """`dsb reproduce mixtures`."""

    name = "mixtures"
    title = "dsb reproduce mixtures"
    about = ABOUT
    axis = "cBW2-UVP %"
    rows = ROWS
    quick_budget = QUICK
    published = PUBLISHED
    levels = ("floor", "drift")
    everything = tuple((dim, eps) for eps in EPS for dim in DIMS)
    columns = (
        Column("cbw2", "cBW2-UVP %", 1.0, 3),
        Column("floor", "floor", 1.0, 3),
        Column("drift", "exact drift", 1.0, 3),
        Column("ipf", "exact IPF", 1.0, 3),
        Column("sinkhorn", "Sinkhorn", 1.0, 3),
        Column("bw2", "BW2-UVP %", 1.0, 3),
        Column("bw2_floor", "BW2 floor", 1.0, 3),
        Column("kl", "path KL", 1.0, 3),
    )

    def __init__(
        self,
        dims: Iterable[int] = DIMS,
        eps: Iterable[float] = EPS,
        **options: Any,
    ) -> None:
        many = [integer("dim", dim, 1, 1000) for dim in dims]
        scales = [real("eps", one, least=1e-3, most=1e3) for one in eps]
        super().__init__([(dim, one) for one in scales for dim in many], **options)

    def case_name(self, case: tuple[int, float]) -> str:
        return case_name(*case)

    def case_label(self, case: tuple[int, float]) -> str:
        return f"d{case[0]}-eps{case[1]:g}"

    def settings(self, case: tuple[int, float], row: str) -> Settings:
        dim, eps = case
        told = COMMON | self.rows[row]
        return told | {
            "problem": told["problem"] | {"dim": dim, "eps": eps},
            "schedule": told["schedule"] | {"T": eps / 2.0},
        }

    @classmethod
    def cost(cls, settings: Settings) -> Cost:
        drawn = Drawn(settings, 0)
        trained = drawn.bridge()
        training = settings["training"]
        found = of_training(trained, training["iterations"], training["steps"])
        drawn.conditional(drawn.pair, 1)  # the pair's moments, which it then keeps
        with Watch() as watch:
            drawn.conditional(trained, drawn.least)
        with Watch() as others:
            drawn.path_kl(trained)
        with Watch() as truth:
            drawn.conditional(drawn.pair, drawn.least)
        told = settings["evaluation"]
        given = told["given"]
        ours = given + training["iterations"] * min(drawn.few, given)
        seconds = (watch.seconds * ours + truth.seconds * given) / drawn.least
        # The metric has a block of these numbers at a time: starts, ends, and moments in float64.
        block = 24 * min(given * told["each"] * settings["problem"]["dim"], BLOCK)
        with Watch() as known:
            drawn.known(rehearsal=True)
        return found._replace(
            evaluation=seconds + others.seconds,
            memory=found.memory + max(block, others.bytes, known.bytes),
            known=known.seconds * drawn.known_few / drawn.least * cls.known_seeds(settings),
        )

    @classmethod
    def expected(cls, settings: Settings) -> Known:
        found: Known = {}
        for seed in range(cls.known_seeds(settings)):
            for name, value in Drawn(settings, seed).known().items():
                found.setdefault(name, []).append(value)
        return found

    @classmethod
    def known_seeds(cls, settings: Settings) -> int:
        return 3

    @classmethod
    def run(cls, settings: Settings, seed: int) -> Outcome:
        drawn = Drawn(settings, seed)
        trained = drawn.bridge()
        curve: list[float] = []

        def after(given: Bridge, record: Record) -> None:
            if record.direction == "forward":
                curve.append(drawn.conditional(given, drawn.few))

        values, seconds = _setup.measured(trained, settings, after, drawn.values)
        return Outcome(values, {"forward": curve}, seconds, trained.settings._asdict())


Conditional = Callable[[F32, int, int], F32]  # (x0 [n, d], m, seed) -> X_N [n, m, d]


class Drawn:
    """The pair, what is drawn for one seed, and how conditional laws are measured."""

    few = 20  # X_0 for the curve over iterations
    known_few = 50  # and for what is known before
    least = 2  # for forecasts of these

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seeds = settings, _setup.seeds(seed)
        told = settings["problem"]
        self.schedule = _setup.schedule(settings["schedule"])
        # One pair for all seeds, dimensions and eps apart.
        self.pair = MixtureBridge.from_sphere(
            told["dim"], told["eps"], schedule=self.schedule, seed=told["pair"]
        )
        self.training = self.pair.coupling().sample(told["points"], self.seeds["prior"])[1]

    def bridge(self) -> Bridge:
        """From the Gaussian itself to the points."""
        return _setup.bridge(self.pair.source, self.training, self.settings, self.seeds["bridge"])

    # ---- conditional laws: X_N given X_0 ----

    def euler(self, x0: F32, m: int, seed: int) -> F32:
        """The N steps of the bridge with the true drift."""
        x = np.repeat(x0.astype(np.float64), m, axis=0)
        rng = np.random.default_rng(seed)
        noisy = self.schedule.N - (not self.settings["evaluation"]["final_noise"])
        for k, g in enumerate(self.schedule.steps):
            x += g * self.pair.drift(x, float(self.schedule.times[k]), "forward")
            if k < noisy:
                x += np.sqrt(2.0 * g) * rng.standard_normal(x.shape)
        return x.reshape(len(x0), m, -1).astype(np.float32)

    def of_plan(self, y: F32, potential: F64) -> Conditional:
        """X_N drawn from the sample y with weights ~ exp(potential_j - |x - y_j|^2 / (2 eps))."""
        eps = self.settings["problem"]["eps"]
        exact = y.astype(np.float64)

        def draw(x0: F32, m: int, seed: int) -> F32:
            rng = np.random.default_rng(seed)
            found = np.empty((len(x0), m, y.shape[1]), dtype=np.float32)
            for i, x in enumerate(x0.astype(np.float64)):
                level = potential - np.sum((exact - x) ** 2, axis=1) / (2.0 * eps)
                weights = np.exp(level - level.max())
                found[i] = y[rng.choice(len(y), size=m, p=weights / weights.sum())]
            return found

        return draw

    # ---- measured ----

    def conditional(self, judged: Any, most: int | None = None) -> float:
        """cBW2-UVP in % of a bridge, of the pair itself or of a sampler."""
        told = self.settings["evaluation"]
        n = told["given"] if most is None else min(most, told["given"])
        noise, seed = told["final_noise"], self.seeds["evaluation"]
        return metrics.cbw2_uvp(judged, self.pair, n, told["each"], final_noise=noise, seed=seed)

    def path_kl(self, trained: Bridge) -> float:
        """In nats, along true paths."""
        n, seed = self.settings["evaluation"]["paths"], self.seeds["metric"]
        return metrics.path_kl(trained, self.pair, "forward", under=self.pair, n=n, seed=seed)

    def known(self, rehearsal: bool = False) -> Values:
        """What is known without training; a rehearsal takes a small part of the time."""
        told, n = self.settings["problem"], self.least if rehearsal else self.known_few
        x, y = self.pair.coupling().sample(told["sinkhorn"], self.seeds["exact"])
        halves = 2 * self.settings["training"]["iterations"]
        plans = [sinkhorn_iterates(x, y, self.schedule, n=-(-halves * n // self.known_few))[-1]]
        if not rehearsal:
            plans.append(sinkhorn(x, y, self.schedule))
        judged = [self.euler, *(self.of_plan(y, plan.g) for plan in plans)]
        names = ("drift", "ipf", "sinkhorn")
        return {name: self.conditional(one, n) for name, one in zip(names, judged, strict=False)}

    def values(self, trained: Bridge) -> Values:
        """What is measured at the end."""
        many = self.settings["evaluation"]["points"]
        law = self.pair.marginal(self.pair.T)
        starts = self.pair.source.sample(many, self.seeds["test source"])
        noise, seed = self.settings["evaluation"]["final_noise"], self.seeds["evaluation"]
        ends = trained.sample(x=starts, direction="forward", seed=seed, final_noise=noise)
        fresh = law.sample(many, self.seeds["fresh prior"])
        return {
            "cbw2": self.conditional(trained),
            "floor": self.conditional(self.pair),
            "bw2": metrics.bw2_uvp(ends, law),
            "bw2_floor": metrics.bw2_uvp(fresh, law),
            "kl": self.path_kl(trained),
        }
