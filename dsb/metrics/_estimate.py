"""A metric with its error bar and its sampling floor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._build import mixed
from .._check import MAX_ROWS, integer, shown
from ._kind import kind_of
from ._samples import DRAWS, Points, Source, draw, is_array, is_law, samples

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)

_LEAST = 20  # rows of an array: a sample takes half of them at most


class Estimate(NamedTuple):
    """What `estimate` finds: values are means over the repeats, errors their standard errors."""

    value: float
    error: float
    low: float  # 95 % interval of Student's t around the value
    high: float
    floor: float | None  # the metric between two fresh samples of y; None: y gives no samples
    floor_error: float | None
    excess: float | None  # what is left of the value without the floor
    n: int  # samples of each side
    repeats: int

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        told = f"Estimate({_with_error(self.value, self.error)}, 95 % [{self.low:.4g}, {self.high:.4g}]"
        if self.floor is not None and self.floor_error is not None:
            told += f"; floor {_with_error(self.floor, self.floor_error)}, excess {self.excess:.3g}"
        return f"{told}; {self.repeats} x {self.n:,} samples)"


def estimate(
    metric: Callable[..., Any],
    x: Source,
    y: Source = None,
    n: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    *,
    field: str | None = None,
    **options: Any,
) -> Estimate:
    r"""A metric of fresh samples, repeated: value, standard error, 95 % interval, floor and excess.

    The floor is what the metric gives where both sides are y: between two fresh samples of y, or, where
    the metric compares with a law or a problem as such, of a sample of it. There is none where y cannot
    be drawn from (centres of `mode_coverage`), and none without y.

    Parameters
    ----------
    metric : function of `dsb.metrics`, or any callable (x, y, \*\*options) -> float
        A callable of your own is given two arrays of n rows.
    x, y : as the metric takes them
        y is the reference; `path_energy` has none, and its `velocity` is an option. What is drawn from is
        drawn anew in every repeat. Of an array every repeat takes n rows at random without replacement,
        never more than half of it: n is cut to that, and the two samples of the floor share no row. While
        an array has rows enough, the repeats share none either; from there on they overlap, and the
        standard error is enlarged by what a resampled half hides, s^2 (1/repeats + n / (rows - n)) in
        place of s^2 / repeats. Centres are taken whole.
    n : int, optional
        Samples of each side. Metrics that draw for themselves (of processes) are given it. Default: the
        metric's own, 10,000 for a callable of your own.
    repeats : int
        At least 2.
    seed : int
        Equal seeds, equal results. Directions, and a bandwidth that is not given, are the same in all
        repeats.
    field : str, optional
        Which number to take of a metric that returns several: "hit" of `mode_coverage`.
    **options
        Of the metric.

    Returns
    -------
    Estimate
        A named tuple (value, error, low, high, floor, floor_error, excess, n, repeats). `excess` is
        sqrt(max(value^2 - floor^2, 0)) for distances (Wasserstein, sliced, those with root=True), whose
        squares add, and value - floor for the others, which may be negative. Where there is no floor,
        floor, floor_error and excess are None.

    Raises
    ------
    TypeError, ValueError
        As the metric; or too few samples for it, or repeats; or y for a metric without one.
    """
    if not callable(metric):
        raise TypeError(f"metric: expected a function, got {shown(metric)}")
    n = integer("n", _own_n(metric) if n is None else n, 1, MAX_ROWS)
    seed, repeats = integer("seed", seed, 0), integer("repeats", repeats, 2, 10_000)
    kind = kind_of(metric)

    def once(*sides: Any, **more: Any) -> float:
        return _number(metric(*sides, **{**options, **more}), field)

    shared, values, floors = 0.0, list[float](), list[float]()
    if kind.takes in ("process", "alone"):
        if is_array(x):
            raise TypeError("x: expected something to draw paths from anew, got an array")
        alone = kind.takes == "alone"
        if alone and y is not None:
            raise TypeError(
                f"y: expected none, as {metric.__name__} compares with nothing and the rest is options "
                f"by name, got {shown(y)}"
            )
        behind = () if alone else (y,)
        for i in range(repeats):
            values.append(once(x, *behind, n=n, seed=mixed(seed, 2 * i)))
            if not alone and kind.judges(y):
                floors.append(once(y, y, n=n, seed=mixed(seed, 2 * i + 1)))
    else:
        left, right = _Pool("x", x, 1, repeats, mixed(seed, 0)), None
        # A law as such is compared with its moments: of it only the floor's samples are drawn.
        whole = kind.takes == "centres" or (kind.takes == "law" and is_law(y))
        if not whole or kind.judges(y):
            right = _Pool("y", y, 2, repeats, mixed(seed, 1))
        pools = [left] if right is None else [left, right]
        n = min(n, *(pool.most for pool in pools))
        if _takes_seed(metric):
            options = {"seed": seed, **options}
        for i in range(repeats):
            (a,) = left.take(n, i)
            second, first = (None, None) if right is None else right.take(n, i)
            reference = y if whole else first
            values.append(once(a, reference))
            if second is not None:
                floors.append(once(second, reference))
        shared = max(pool.shared(n) for pool in pools)
    value, error = _mean(values, shared)
    half = student(repeats - 1) * error
    interval = (value - half, value + half)
    if not floors:
        return Estimate(value, error, *interval, None, None, None, n, repeats)
    floor, floor_error = _mean(floors, shared)
    beyond = excess(value, floor) if kind.root(options) else value - floor
    return Estimate(value, error, *interval, floor, floor_error, beyond, n, repeats)


def excess(value: float, floor: float) -> float:
    """sqrt(max(value^2 - floor^2, 0)): what of a distance two fresh samples do not have."""
    return math.sqrt(max(value**2 - floor**2, 0.0))


def _own_n(metric: Callable[..., Any]) -> int:
    """How many samples a function of `dsb.metrics` takes by itself."""
    if not hasattr(metric, "_dsb_kind"):
        return DRAWS  # the n of a stranger may mean anything
    return int(inspect.signature(metric).parameters["n"].default)


def _takes_seed(metric: Callable[..., float]) -> bool:
    """Whether directions or a heuristic are drawn too: with one seed all repeats are comparable."""
    try:
        return "seed" in inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return False


def _number(found: Any, field: str | None) -> float:
    """A metric's value, or the field of it."""
    names = ", ".join(getattr(found, "_fields", ()))
    if field is not None:
        if field not in getattr(found, "_fields", ()):
            raise ValueError(
                f"field: expected one of what the metric returns, {names or 'a number'}, got {shown(field)}"
            )
        found = getattr(found, field)
    if not isinstance(found, (int, float, np.floating, np.integer)):
        told = f"; say which with field=, one of {names}" if names else ""
        raise TypeError(f"metric: expected one that returns a number, got {shown(found)}{told}")
    return float(found)


class _Pool:
    """One side, of which every repeat takes what no other has, as long as there is any."""

    def __init__(self, name: str, source: Source, each: int, repeats: int, seed: int) -> None:
        self.name, self.source, self.seed = name, source, seed
        self.each, self.repeats = each, repeats  # samples that a repeat takes
        self.rows = samples(name, source, least=_LEAST) if is_array(source) else None

    @property
    def most(self) -> int:
        """How many rows a sample can have."""
        return MAX_ROWS if self.rows is None else len(self.rows) // 2

    def shared(self, n: int) -> float:
        """n / (rows - n) where the repeats overlap, else 0."""
        if self.rows is None or len(self.rows) >= self.repeats * self.each * n:
            return 0.0
        return n / (len(self.rows) - n)

    def take(self, n: int, repeat: int) -> list[Points]:
        """The samples of one repeat, which share no row."""
        if self.rows is None:
            seeds = [mixed(self.seed, self.each * repeat + i) for i in range(self.each)]
            return [draw(self.name, self.source, n, seed) for seed in seeds]
        apart = self.shared(n) == 0.0
        key = mixed(self.seed, 0 if apart else repeat)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self.rows))
        first = repeat * self.each if apart else 0
        return [self.rows[order[i * n : (i + 1) * n]] for i in range(first, first + self.each)]


def _mean(values: list[float], shared: float) -> tuple[float, float]:
    """Mean and its standard error."""
    variance = float(np.var(values, ddof=1))
    return float(np.mean(values)), math.sqrt(variance * (1.0 / len(values) + shared))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964  # Cornish and Fisher's expansion around the normal quantile
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _with_error(value: float, error: float) -> str:
    """A number to the place of its error's second digit."""
    if not (math.isfinite(value) and error > 0):
        return f"{value:.4g} ± {error:.2g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return (
        f"{value:.{digits}f} ± {error:.{digits}f}" if digits < 9 else f"{value:.3e} ± {error:.1e}"
    )
