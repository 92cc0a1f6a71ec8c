"""The numbers behind dsb.plot.convergence: measured errors beside those of perfect nets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._check import F64, real, shown, vector
from .history import DIRECTIONS, FLOOR, Direction, History, is_floor

if TYPE_CHECKING:
    from .exact import Problem

LABELS = {  # of the errors that `evaluate` measures itself, with their units
    "kl": "KL of the marginals, nats",
    "coupling": "error of Cov$(X_0, X_N)$, relative",
    "path_kl": "path KL, nats",
    "sliced_w2": "sliced $W_2$, units of the data",
}


class Curve(NamedTuple):
    """An error of one direction against the number of the half-bridge, from 1."""

    direction: Direction
    at: F64
    value: F64  # mean over runs
    low: F64  # least and greatest of the runs
    high: F64


class Panel(NamedTuple):
    """What is drawn of one error."""

    name: str
    label: str  # of the vertical axis; empty where nothing is known but the name
    runs: int
    measured: list[Curve]
    ipf: list[Curve]
    population: list[Curve]
    floors: dict[Direction, tuple[float, float]]  # by direction; the band of all runs


def panels(
    histories: Sequence[History],
    name: str | Sequence[str] | None,
    problem: Problem | None,
    ipf: object,
    population: object,
    floor: object,
) -> list[Panel]:
    """One for each error, or for those called `name`."""
    _check_problem(problem)
    names = list(dict.fromkeys(n for history in histories for n in history.errors))
    if name is None:
        chosen = [n for n in names if not is_floor(n)]
        if not chosen:
            raise ValueError(
                "history: expected one with errors, as fit(evaluate=...) records; it has none"
            )
    else:
        one = isinstance(name, str) or not isinstance(name, Sequence)
        chosen = [str(name)] if one else list(name)
    wanted = f"name: expected one of the errors recorded, {', '.join(map(repr, names)) or 'none'}"
    if not chosen:
        raise ValueError(f"{wanted}, or several of them, got {shown(name)}")
    for known in chosen:
        if known not in names:
            raise ValueError(f"{wanted}, got {shown(known)}")
    if len(chosen) > 1:
        for argument, given in (("ipf", ipf), ("population", population), ("floor", floor)):
            if given is not None and (argument == "floor" or _is_numbers(given)):
                raise ValueError(
                    f"{argument}: numbers are those of one error, and {len(chosen)} were recorded: "
                    f"choose one with name={chosen[0]!r}"
                )
    return [_panel(histories, n, problem, ipf, population, floor) for n in chosen]


def _check_problem(given: object) -> None:
    from .exact import Problem

    if given is not None and not isinstance(given, Problem):
        raise TypeError(f"problem: expected a problem of dsb.exact, got {shown(given)}")


def _panel(
    histories: Sequence[History],
    name: str,
    problem: Problem | None,
    ipf: object,
    population: object,
    floor: object,
) -> Panel:
    most = max(len(history) for history in histories)
    measured = _curves(np.stack([_padded(h.errors.get(name), most) for h in histories]))
    if floor is None:
        floors = {
            curve.direction: (float(np.min(curve.low)), float(np.max(curve.high)))
            for curve in _curves(
                np.stack([_padded(h.errors.get(name + FLOOR), most) for h in histories])
            )
        }
    else:
        floors = dict.fromkeys(DIRECTIONS, _band(floor))
    last = name.rpartition(" ")[2]
    of = _Perfect(problem, last, most)
    return Panel(
        name,
        LABELS.get(last, ""),
        len(histories),
        measured,
        _theory("ipf", ipf, of.ipf),
        _theory("population", population, of.population),
        floors,
    )


def _padded(values: F64 | None, most: int) -> F64:
    padded = np.full(most, np.nan)
    if values is not None:
        padded[: len(values)] = values
    return padded


def _curves(values: F64) -> list[Curve]:
    """Of both directions, [runs, half-bridges]; what no run has measured is left out."""
    curves = []
    for first, direction in enumerate(DIRECTIONS):
        own = values[:, first::2]
        there = np.flatnonzero((~np.isnan(own)).any(axis=0))
        if there.size:
            own = own[:, there]
            at = np.asarray(2 * there + 1 + first, np.float64)
            mean = np.asarray(np.nanmean(own, axis=0), np.float64)
            curves.append(
                Curve(direction, at, mean, np.nanmin(own, axis=0), np.nanmax(own, axis=0))
            )
    return curves


def _band(floor: object) -> tuple[float, float]:
    if isinstance(floor, (tuple, list)):
        if len(floor) != 2:
            raise ValueError(f"floor: expected a number or a pair (low, high), got {shown(floor)}")
        low, high = (real("floor", part, least=0) for part in floor)
        if low > high:
            raise ValueError(f"floor: expected low <= high, got {shown(floor)}")
        return low, high
    number = real("floor", floor, least=0)
    return number, number


# ---- perfect nets ----


def _is_numbers(given: object) -> bool:
    return not hasattr(given, "iterate")


def _theory(argument: str, given: object, compute: Callable[[object], F64 | None]) -> list[Curve]:
    """Curves from numbers, one for each half-bridge, or computed from a recursion."""
    if given is None:
        return []
    values = vector(argument, given) if _is_numbers(given) else compute(given)
    return [] if values is None else _curves(values[None])


class _Perfect:
    """The error called "kl" or "coupling" of exact iterates, half-bridge by half-bridge."""

    def __init__(self, problem: Problem | None, error: str, most: int) -> None:
        self._problem, self._error, self._most = problem, error, most

    def ipf(self, iterates: object) -> F64 | None:
        """Of exact iterative proportional fitting."""
        from .exact import GaussianIPF

        if not isinstance(iterates, GaussianIPF):
            raise TypeError(
                f"ipf: expected dsb.exact.GaussianIPF or numbers, got {shown(iterates)}"
            )
        return self._errors(iterates.limit(), iterates.process)

    def population(self, iterates: object) -> F64 | None:
        """Of nets that learn their targets exactly from infinite data."""
        from .exact import PopulationDSB

        if not isinstance(iterates, PopulationDSB):
            raise TypeError(
                f"population: expected dsb.exact.PopulationDSB or numbers, got {shown(iterates)}"
            )
        return self._errors(iterates.limit(), lambda n, way: iterates.iterate(n).process(way))

    def _errors(self, limit: Problem, process: Callable[[int, Direction], Problem]) -> F64 | None:
        """None where the error is another than these can be asked for."""
        problem = limit if self._problem is None else self._problem
        if problem.dim != limit.dim:
            raise ValueError(f"problem: expected dimension {limit.dim}, got {problem.dim}")
        if self._error == "coupling":
            error = coupling_gap
        elif self._error == "kl":
            error = marginal_kl
        else:
            return None
        return np.array(
            [error(process(k // 2 + 1, DIRECTIONS[k % 2]), problem) for k in range(self._most)]
        )


def coupling_gap(found: Problem, exact: Problem) -> float:
    """|C - C*|_F / |C*|_F for C = Cov(X_0, X_N)."""
    right = exact.coupling().cross
    return float(np.linalg.norm(found.coupling().cross - right) / np.linalg.norm(right))


def marginal_kl(found: Problem, exact: Problem) -> float:
    """Sum over coordinates of the KL between the marginals, averaged over the times of the schedule."""
    from .metrics.gaussian import diagonal_kl

    schedule = found.schedule or exact.schedule
    if schedule is None:
        raise ValueError("problem: expected one with a schedule, got one made with T alone")
    total = 0.0
    for t in schedule.times:
        one, other = found.marginal(float(t)), exact.marginal(float(t))
        total += diagonal_kl(one.mean, np.diag(one.cov), other.mean, np.diag(other.cov))
    return total / len(schedule.times)
