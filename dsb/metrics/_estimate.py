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


class Estimate(NamedTuple):
    """What `estimate` finds: values are means over the repeats, errors their standard errors."""

    value: float
    error: float
    low: float  # 95 % interval of Student's t around the value
    high: float
    floor: float  # the metric between fresh samples of y and y itself
    floor_error: float
    excess: float  # what is left of the value without the floor
    n: int  # samples of each side
    repeats: int

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        value, floor = (
            _with_error(*pair)
            for pair in ((self.value, self.error), (self.floor, self.floor_error))
        )
        interval = f"[{self.low:.4g}, {self.high:.4g}]"
        return (
            f"Estimate({value}, 95 % {interval}; floor {floor}, excess {self.excess:.3g}; "
            f"{self.repeats} x {self.n:,} samples)"
        )


def estimate(
    metric: Callable[..., float],
    x: Source,
    y: Source,
    n: int = DRAWS,
    repeats: int = 5,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    r"""A metric of fresh samples, repeated: value, standard error, 95 % interval, floor and excess.

    The floor is what the metric gives where both sides are y: between two fresh samples of y, or, where
    the metric compares with a law or a problem as such, of a sample of it.

    Parameters
    ----------
    metric : function of `dsb.metrics`, or any callable (x, y, \*\*options) -> float
        A callable of your own is given two arrays of n rows.
    x, y : as the metric takes them
        y is the reference. What is drawn from is drawn anew in every repeat. Of an array every repeat
        takes n rows at random without replacement, never more than half of it: n is cut to that, and
        the two samples of the floor share no row. While an array has rows enough, the repeats share none
        either; from there on they overlap, and the standard error is enlarged by what a resampled half
        hides, s^2 (1/repeats + n / (rows - n)) in place of s^2 / repeats.
    n : int
        Samples of each side. Metrics that draw for themselves (of processes) are given it.
    repeats : int
        At least 2.
    seed : int
        Equal seeds, equal results. Directions, and a bandwidth that is not given, are the same in all
        repeats.
    **options
        Of the metric.

    Returns
    -------
    Estimate
        A named tuple (value, error, low, high, floor, floor_error, excess, n, repeats). `excess` is
        sqrt(max(value^2 - floor^2, 0)) for distances (Wasserstein, sliced, those with root=True), whose
        squares add, and value - floor for the others, which may be negative.

    Raises
    ------
    TypeError, ValueError
        As the metric; or too few samples for it, or repeats.
    """
    if not callable(metric):
        raise TypeError(f"metric: expected a function, got {shown(metric)}")
    n, seed = integer("n", n, 1, MAX_ROWS), integer("seed", seed, 0)
    repeats = integer("repeats", repeats, 2, 10_000)
    kind = kind_of(metric)
    shared = 0.0
    if kind.takes == "process":
        values, floors = _of_processes(metric, x, y, n, repeats, seed, options)
    else:
        left = _Pool("x", x, 1, repeats, mixed(seed, 0))
        right = _Pool("y", y, 2, repeats, mixed(seed, 1))
        # A law as such is compared with its moments: of it only the floor's samples are drawn.
        law = y if kind.takes == "law" and is_law(y) else None
        n = min(n, left.most, right.most)
        if _takes_seed(metric):
            options = {"seed": seed, **options}
        values, floors = [], []
        for i in range(repeats):
            (a,), (second, first) = left.take(n, i), right.take(n, i)
            reference = first if law is None else law
            values.append(_number(metric, a, reference, options))
            floors.append(_number(metric, second, reference, options))
        shared = max(left.shared(n), right.shared(n))
    value, error = _mean(values, shared)
    floor, floor_error = _mean(floors, shared)
    half = student(repeats - 1) * error
    excess = value - floor
    if kind.root(options):
        excess = math.sqrt(max(value**2 - floor**2, 0.0))
    interval = (value - half, value + half)
    return Estimate(value, error, *interval, floor, floor_error, excess, n, repeats)


def _of_processes(
    metric: Callable[..., float],
    x: Source,
    y: Any,
    n: int,
    repeats: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[list[float], list[float]]:
    """Values and floors of a metric that draws for itself."""
    if is_array(x):
        raise TypeError("x: expected something to draw paths from anew, got an array")

    def once(judged: Any, i: int) -> float:
        return _number(metric, judged, y, {**options, "n": n, "seed": mixed(seed, i)})

    values = [once(x, 2 * i) for i in range(repeats)]
    if isinstance(y, str):  # path_energy: which velocity; there is nothing to compare with
        return values, [math.nan] * repeats
    return values, [once(y, 2 * i + 1) for i in range(repeats)]


def _takes_seed(metric: Callable[..., float]) -> bool:
    """Whether directions or a heuristic are drawn too: with one seed all repeats are comparable."""
    try:
        return "seed" in inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return False


def _number(metric: Callable[..., float], x: Any, y: Any, options: dict[str, Any]) -> float:
    value = metric(x, y, **options)
    if not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"metric: expected one that returns a number, got {shown(value)}")
    return float(value)


class _Pool:
    """One side, of which every repeat takes what no other has, as long as there is any."""

    def __init__(self, name: str, source: Source, each: int, repeats: int, seed: int) -> None:
        self.name, self.source, self.seed = name, source, seed
        self.each, self.repeats = each, repeats  # samples that a repeat takes
        self.rows = samples(name, source, least=2) if is_array(source) else None

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
