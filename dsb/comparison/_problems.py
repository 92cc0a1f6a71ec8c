"""What methods are compared on: a few problems by name, and whatever is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import datasets, metrics
from .._build import Net
from .._check import Rows, Shape, choice, shown
from .._ends import End
from .._evaluate import LEAST_ROWS
from ..bridge import Bridge
from ..exact import GaussianBridge, MixtureBridge, Problem
from ..gaussian import Gaussian
from ..mlp import MLP
from ..reference import OU, Brownian
from ..reproduce import _setup, gaussian, mixtures, table2
from ..reproduce._setup import Settings
from ..reproduce._study import Values
from ..schedule import Schedule

STEPS = 20  # of a problem that has none of its own
POINTS = 100_000  # of a mixture's end, to train on
GIVEN, EACH = 100, 1000  # X_0, and draws of X_N for each, from which cBW2-UVP is computed
LISTED = 1000  # numbers of a law that settings hold one by one

Ends = tuple[Any, Any]  # source and prior: arrays, or Gaussians


def nothing(bridge: Bridge) -> Values:
    """Where the errors of the half-bridges are all there is to measure."""
    return {}


class Task(NamedTuple):
    """What a seed of a problem trains between and is measured by."""

    ends: Ends
    evaluate: Any  # as `evaluate` of `Bridge.fit`
    last: Callable[[Bridge], Values] = nothing  # what is measured at the end besides


class Posed(NamedTuple):
    """Everything but the methods and their budget."""

    name: str
    about: str
    error: str  # that the figure shows
    shape: Shape  # of a point
    schedule: Schedule
    reference: OU | Brownian
    net: Net | None
    settings: Settings  # what decides the rest, in JSON
    task: Callable[[int], Task]  # by seed


# ---- Gaussians ----

KL = """\
"KL": KL(N(mean, var) of a coordinate of the paths || the exact bridge's), summed over coordinates, averaged
over the grid times, x 1e3; "Cov off by": |C - C*| / |C*| in the Frobenius norm for C = Cov(X_0, X_N); from
10,000 paths that start in fresh exact draws. "Floor": what exact paths measure."""


def _gaussian(dim: int) -> Posed:
    made = gaussian.GaussianExperiment((dim,), rows=("improved",))
    settings = made.jobs()[0].settings
    told = {name: settings[name] for name in ("problem", "evaluation")}

    def task(seed: int) -> Task:
        drawn = gaussian.Drawn(settings, seed)
        ends = drawn.points["source"], drawn.points["prior"]

        def last(bridge: Bridge) -> Values:
            return {"kl_sample": drawn.exact_of_sample()}

        return Task(ends, drawn.exact, last)

    return Posed(
        f"gaussian-{dim}",
        f"N(-.1 1, I) to N(.1 1, I) in d = {dim}, Brownian reference with T = 1/2, N = 20, 10,000 training\n"
        'points of each end (the problem of arXiv:2303.16852). "Exact bridge of the sample": paths of the\n'
        f"exact bridge between Gaussians with the moments of these points.\n{KL}",
        "kl",
        (dim,),
        _setup.schedule(settings["schedule"]),
        Brownian(),
        _setup.net(settings["net"]),
        told,
        task,
    )


def _unequal() -> Posed:
    exact = GaussianBridge(
        Gaussian([0.0], 0.25), Gaussian([0.0], 4.0), Schedule.constant(20, 0.025)
    )
    return _of_gaussians(exact, "gaussian-unequal")._replace(
        about="N(0, .25) to N(0, 4) in d = 1, Brownian reference with T = 1/2, N = 20, fresh training\n"
        f"points in every step: few steps and unequal ends, so that methods part.\n{KL}"
    )


def _of_gaussians(exact: GaussianBridge, name: str = "GaussianBridge") -> Posed:
    return Posed(
        name,
        f"{exact!r}, fresh training points in every step.\n{KL}",
        "kl",
        (exact.dim,),
        exact.schedule or Schedule.constant(STEPS, exact.T / STEPS),
        exact.reference,
        None,
        {"problem": {"source": described(exact.source), "prior": described(exact.prior)}},
        lambda seed: Task((exact.source, exact.prior), exact),
    )


# ---- sets of points ----

SLICED = """\
"Sliced W2" of generated points to fresh ones at the end that a direction generates, {many}; "floor":
between two fresh samples of that size."""


def _plane(name: str) -> Posed:
    made = table2.Table2((name,), rows=("improved",))
    settings = made.jobs()[0].settings
    normal = Gaussian([0.0, 0.0], 1.0)

    def task(seed: int) -> Task:
        drawn = table2.Drawn(settings, seed)
        return Task((drawn.first, normal), (np.concatenate((drawn.test, drawn.fresh)), normal))

    return Posed(
        name,
        f"{name} to N(0, I), 10,000 training points, OU reference, T = 3 in N = 20 steps that grow from the\n"
        f"data on (those of `dsb reproduce table2 --row improved`).\n{SLICED.format(many='10,000 twice')}",
        "sliced_w2",
        (2,),
        _setup.schedule(settings["schedule"]),
        OU(normal.mean, normal.var),
        _setup.net(settings["net"]),
        {"problem": settings["problem"], "evaluation": {"points": 20_000}},
        task,
    )


def _swiss_roll() -> Posed:
    prior, points = Gaussian([0.0, 0.0], 49.0), 10_000

    def task(seed: int) -> Task:
        seeds = _setup.seeds(seed)
        first, test = (
            datasets.toy("swiss_roll", n, seeds[role])
            for n, role in ((points, "source"), (2 * points, "test source"))
        )
        return Task((first, prior), (test, prior))

    return Posed(
        "swissroll-5",
        "Swiss roll of standard deviation 7 to N(0, 49 I), 10,000 training points, OU reference, T = 5,\n"
        f"N = 20.\n{SLICED.format(many='10,000 twice')}",
        "sliced_w2",
        (2,),
        Schedule.constant(20, 0.25),
        OU(prior.mean, prior.var),
        MLP(),
        {"problem": {"source": "swiss_roll", "prior": described(prior), "points": points}},
        task,
    )


def _of_points(ends: Any, schedule: Schedule | None, reference: OU | Brownian | None) -> Posed:
    """Half of the rows of each end to train on, the other half to be compared with."""
    source, prior = ends
    for name, end in (("source", source), ("prior", prior)):
        if end is None:
            raise ValueError(f"problem: expected samples of both ends, or Gaussians, got no {name}")
    first = End.of("source", source)
    if isinstance(prior, str) and prior == "gaussian":
        prior = Gaussian(*first.moments())
    last = End.of("prior", prior, first)
    halves = [_halves(end) for end in (first, last)]
    train, held = (tuple(one[i] for one in halves) for i in (0, 1))
    filled = Bridge(*train, schedule=schedule, reference=reference)
    return Posed(
        "samples",
        f"{first!r} to {last!r}, {filled.reference!r}, {filled.schedule!r}; half of the rows to train on.\n"
        + SLICED.format(many="as many as half of the other rows, twice (10,000 of a Gaussian)"),
        "sliced_w2",
        filled.shape,
        filled.schedule,
        filled.reference,
        None,
        {"problem": {end.name: described(end.given) for end in (first, last)}},
        lambda seed: Task((train[0], train[1]), (held[0], held[1])),
    )


def _halves(end: End) -> tuple[Rows | Gaussian, Rows | Gaussian]:
    """Rows to train on and rows that are held out, the same ones of two ends with as many rows."""
    if end.gaussian is not None:
        return end.gaussian, end.gaussian
    rows = end.given
    assert isinstance(rows, np.ndarray)
    if len(rows) < 2 * LEAST_ROWS:
        raise ValueError(
            f"problem: expected at least {2 * LEAST_ROWS} rows of {end.name}, as half of them are held "
            f"out, got {len(rows)}"
        )
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


# ---- mixtures ----

MIXTURE = f"""\
"Path KL": of the forward drift against the exact one, along exact paths, in nats. "cBW2-UVP": distance
between means and covariances of the learnt and the exact X_N given X_0, averaged over {GIVEN} X_0 with
{EACH:,} paths each, in % of half the variance of X_N; "floor": of exact draws. Of the
backward process only samples are judged. """ + SLICED.format(many="10,000 twice")


def _mixture(dim: int) -> Posed:
    made = mixtures.Mixtures((dim,), (1.0,), rows=("improved",))
    settings = made.jobs()[0].settings
    pair = mixtures.Drawn(settings, 0).pair  # one for all seeds

    def task(seed: int) -> Task:
        training = mixtures.Drawn(settings, seed).training
        return Task((pair.source, training), pair, _conditional(pair, seed))

    return Posed(
        f"mixture-{dim}",
        f"N(0, .25 I) in d = {dim} to five Gaussians, a pair whose bridge is known (arXiv:2310.01174),\n"
        "Brownian reference with T = 1/2, N = 20, 100,000 training points (those of\n"
        "`dsb reproduce mixtures --eps 1`).\n" + MIXTURE,
        "path_kl",
        (dim,),
        _setup.schedule(settings["schedule"]),
        Brownian(),
        _setup.net(settings["net"]),
        {"problem": settings["problem"], "evaluation": {"given": GIVEN, "each": EACH}},
        task,
    )


def _of_mixture(exact: MixtureBridge) -> Posed:
    schedule = exact.schedule or Schedule.constant(STEPS, exact.T / STEPS)
    potential = exact.potential

    def task(seed: int) -> Task:
        seeds = _setup.seeds(seed)
        source = exact.source
        if not isinstance(source, Gaussian):
            source = source.sample(POINTS, seed=seeds["source"])
        training = exact.coupling().sample(POINTS, seeds["prior"])[1]
        return Task((source, training), exact, _conditional(exact, seed))

    return Posed(
        "MixtureBridge",
        f"{exact!r}, {POINTS:,} training points.\n{MIXTURE}",
        "path_kl",
        (exact.dim,),
        schedule,
        Brownian(),
        None,
        {
            "problem": {
                "source": described(exact.source),
                "weights": listed(potential.weights),
                "means": listed(potential.means),
                "covs": listed(potential.covs),
                "eps": exact.eps,
                "points": POINTS,
            },
            "evaluation": {"given": GIVEN, "each": EACH},
        },
        task,
    )


def _conditional(exact: MixtureBridge, seed: int) -> Callable[[Bridge], Values]:
    """cBW2-UVP, of the bridge and of exact draws."""

    def last(bridge: Bridge) -> Values:
        one = _setup.seeds(seed)["evaluation"]
        judged = {"cbw2": bridge, "cbw2_floor": exact}
        return {
            name: metrics.cbw2_uvp(process, exact, GIVEN, EACH, seed=one)
            for name, process in judged.items()
        }

    return last


# ---- by name, or given ----

PROBLEMS: dict[str, Callable[[], Posed]] = {
    **{f"gaussian-{dim}": partial(_gaussian, dim) for dim in (5, 20, 50)},
    "gaussian-unequal": _unequal,
    **{name: partial(_plane, name) for name in ("moons", "scurve")},
    "swissroll-5": _swiss_roll,
    **{f"mixture-{dim}": partial(_mixture, dim) for dim in (2, 16)},
}


def problems_of(
    given: Any, schedule: Schedule | None, reference: OU | Brownian | None
) -> list[Posed]:
    """From names, a problem of `dsb.exact`, or a pair of ends."""
    names = [given] if isinstance(given, str) else given
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        _no_process("a named problem", schedule, reference)
        return [PROBLEMS[choice("problem", name, PROBLEMS)]() for name in dict.fromkeys(names)]
    if isinstance(given, (GaussianBridge, MixtureBridge)):
        _no_process("a problem of dsb.exact", schedule, reference)
        return [_of_gaussians(given) if isinstance(given, GaussianBridge) else _of_mixture(given)]
    if isinstance(given, (list, tuple)) and len(given) == 2:
        return [_of_points(given, schedule, reference)]
    what = f"a {type(given).__name__}" if isinstance(given, Problem) else shown(given)
    raise TypeError(
        "problem: expected a name, names, a GaussianBridge or MixtureBridge of dsb.exact, or a pair "
        f"(source, prior) of samples or Gaussians, got {what}"
    )


def _no_process(what: str, schedule: object, reference: object) -> None:
    for name, value in (("schedule", schedule), ("reference", reference)):
        if value is not None:
            raise ValueError(f"{name}: {what} has its own; it goes with a pair (source, prior)")


def described(law: Any) -> Any:
    """An end, in JSON."""
    if isinstance(law, Gaussian):
        return {"mean": listed(law.mean), "cov": law.var if law.isotropic else listed(law.cov)}
    return listed(law) if isinstance(law, np.ndarray) else repr(law)


def listed(values: ArrayLike) -> Any:
    """Numbers in JSON, and of many their shape and digest."""
    found: NDArray[Any] = np.ascontiguousarray(values)
    if found.size <= LISTED:
        return found.tolist()
    digest = hashlib.sha256(found.tobytes()).hexdigest()
    return {"shape": list(found.shape), "dtype": str(found.dtype), "sha256": digest}
