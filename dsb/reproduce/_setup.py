"""From a row of settings, which JSON can hold, to a bridge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._check import nearest, shown
from ..bridge import Bridge
from ..gaussian import Gaussian
from ..history import Record
from ..mlp import MLP, OfficialMLP
from ..reference import OU, Brownian
from ..schedule import Schedule

Settings = dict[str, Any]

# What is random in one seed of a run, each with a seed of its own.
ROLES = (
    *("source", "prior", "bridge", "test source", "test prior", "fresh source", "fresh prior"),
    *("evaluation", "exact", "metric"),
)


def shift(seed: int) -> int:
    """How far the seeds of a run's seeds lie apart."""
    return 100 * seed


def seeds(seed: int) -> dict[str, int]:
    """The seed of every role: no two equal, in no two seeds of a run."""
    return {role: shift(seed) + i + 1 for i, role in enumerate(ROLES)}


def schedule(told: Settings) -> Schedule:
    """{"shape", "N", "T"}, and for shapes other than "constant" the "ratio" of the middle steps (of the
    last one where "symmetric" is False) to the first."""
    N, T = told["N"], told["T"]
    if told["shape"] == "constant":
        return Schedule.constant(N, T / N)
    make = {"linear": Schedule.linear, "geometric": Schedule.geometric}[told["shape"]]
    steps = make(N, 1.0, told["ratio"], told.get("symmetric", True)).steps
    return Schedule(steps * (T / steps.sum()))


def reference(name: str, prior: Gaussian | None = None) -> OU | Brownian:
    """ "Brownian", or "OU": towards the Gaussian prior, with its mean and its variance."""
    if name == "OU" and prior is not None:
        return OU(prior.mean, prior.var)
    if name != "Brownian":
        raise ValueError(f"reference: expected 'Brownian' or 'OU', got {shown(name)}")
    return Brownian()


def net(told: Settings) -> MLP | OfficialMLP:
    """{"official": True}, the released 2-D network, or arguments of `MLP`."""
    return MLP.official() if told == {"official": True} else MLP(**told)


def bridge(source: Any, prior: Any, settings: Settings, seed: int) -> Bridge:
    """The bridge of a row: "bridge" holds arguments of `Bridge`."""
    end = prior if isinstance(prior, Gaussian) else None
    return Bridge(
        source,
        prior,
        schedule=schedule(settings["schedule"]),
        reference=reference(settings["reference"], end),
        net=net(settings["net"]),
        seed=seed,
        **settings["bridge"],
    )


class _Enough(Exception):
    """As many half-bridges as were asked for."""


def train(
    trained: Bridge,
    half_bridges: int,
    steps: int,
    after: Callable[[Bridge, Record], object],
    progress: bool | None = None,
) -> None:
    """As many half-bridges, backward first; `after` at the end of each."""
    left = half_bridges

    def callback(given: Bridge, record: Record) -> None:
        nonlocal left
        if record.finished:
            after(given, record)
            left -= 1
            if left == 0:
                raise _Enough

    iterations = -(-half_bridges // 2)
    with contextlib.suppress(_Enough):
        trained.fit(iterations, steps, callback=callback, log_every=steps, progress=progress)


def measured(
    trained: Bridge,
    settings: Settings,
    after: Callable[[Bridge, Record], object],
    last: Callable[[Bridge], dict[str, float]],
) -> tuple[dict[str, float], dict[str, float]]:
    """All iterations, `after` at the end of each half-bridge and `last` at the very end: what `last`
    returns, and the seconds of "training" and of "evaluation", which is both of them."""
    begun, evaluation = time.perf_counter(), 0.0

    def timed(given: Bridge, record: Record) -> None:
        nonlocal evaluation
        start = time.perf_counter()
        after(given, record)
        evaluation += time.perf_counter() - start

    told = settings["training"]
    train(trained, told.get("half_bridges", 2 * told["iterations"]), told["steps"], timed)
    trained_at = time.perf_counter()
    training = trained_at - begun - evaluation
    values = last(trained)
    evaluation += time.perf_counter() - trained_at
    return values, {"training": training, "evaluation": evaluation}


def changed(settings: Settings, budget: Settings) -> Settings:
    """A copy in which `budget` has the last word; only what is there can be changed."""
    result = deepcopy(settings)
    for name, value in budget.items():
        if name not in result:
            raise ValueError(
                f"budget: expected names of settings, got {shown(name)}{nearest(name, result)}"
            )
        if isinstance(value, dict) and isinstance(result[name], dict) and name not in ("net",):
            inner = changed(result[name], value) if name != "bridge" else result[name] | value
            result[name] = inner
        else:
            result[name] = value
    return result


def mean_and_error(values: ArrayLike) -> tuple[float, float | None]:
    """Mean and its standard error, None where one value has none."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) == 1:
        return float(found[0]), None
    return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)
