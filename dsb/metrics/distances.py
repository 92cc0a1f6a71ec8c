"""Distances between two sets of samples: Wasserstein, sliced, energy, MMD."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import _core
from .._build import mixed
from .._check import F32, choice, flag, integer, real
from .._extras import need
from ..gaussian import USER_STREAM
from ._kind import kind
from ._samples import DRAWS, Comparable, Source, comparable, draw_both

# First word of the Philox counter: the metrics have 192 to 255 above the low byte, as told in
# exact/_reference.py.
_DIRECTIONS = USER_STREAM | 255 << 8
_HEURISTIC = 1000  # points of which the median distance is taken
_WIDEST = 100.0  # of the spread: beyond that the float32 kernel is 1 as near as makes no difference
_RESOLVED = 1e-5  # of the spread: below that float32 does not tell points apart

Statistic = Literal["v", "u"]


@kind("samples", root=True)
def wasserstein(
    x: Source,
    y: Source,
    p: int = 2,
    *,
    n: int = DRAWS,
    seed: int = 0,
    max_iterations: int = 100_000_000,
) -> float:
    r"""Wasserstein distance of two samples, exactly: (min_P sum_ij P_ij |x_i - y_j|^p)^(1/p).

    P runs over the matrices with row sums 1/n and column sums 1/m. The minimum is found by POT's network
    simplex, which computes distances as it needs them: memory is O(n + m).

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images, or anything to draw samples from
        A `Bridge` (its backward samples), a `Gaussian` or another law, any object with
        `sample(n, seed=)`, or a callable `(n, seed)`. Bytes are read on the scale -1 .. 1.
    p : {1, 2}
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.
    max_iterations : int
        Of the solver.

    Returns
    -------
    float
        In units of the data. Two samples of one distribution do not give 0 but a floor of order
        n^(-1/d) for d > 2 p: `estimate` measures it.

    Raises
    ------
    TypeError, ValueError
        As for the data of a `Bridge`.
    ImportError
        POT is not installed.
    RuntimeError
        The solver stopped before it had the minimum.
    """
    power = integer("p", p, 1, 2)
    limit = integer("max_iterations", max_iterations, 1)
    lp = need("ot.lp", "metrics", "dsb.metrics.wasserstein")
    if not hasattr(lp, "emd2_lazy"):
        raise ImportError(
            "dsb.metrics.wasserstein needs POT 0.9.7 or newer: "
            "pip install 'schrodinger-bridge[metrics]'"
        )
    a, b, unit = comparable(*draw_both(x, y, n, seed))
    metric = "sqeuclidean" if power == 2 else "euclidean"
    weights = [np.full(len(points), 1.0 / len(points)) for points in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same words stand in the log
        cost, log = lp.emd2_lazy(
            *(points.astype(np.float64) for points in (a, b)),
            *weights,
            metric=metric,
            numItermax=limit,
            log=True,
        )[:2]
    if log["warning"] is not None:
        raise RuntimeError(
            f"wasserstein: the solver stopped before it had the minimum ({log['warning']}); "
            f"max_iterations was {limit:,}"
        )
    return _root(unit, float(cost), power)


@kind("samples", root=True)
def sliced_wasserstein(
    x: Source,
    y: Source,
    projections: int = 200,
    seed: int = 0,
    *,
    p: int = 2,
    n: int = DRAWS,
) -> float:
    r"""Sliced p-Wasserstein distance, (E_u W_p^p(u . x, u . y))^(1/p), u uniform on the unit sphere.

    On a line W_p^p = int_0^1 |Qx(s) - Qy(s)|^p ds with the quantile functions Q of the samples, which is
    computed exactly, for samples of unequal sizes too; the mean over u is over random directions.

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images, or anything to draw samples from
        As in `wasserstein`.
    projections : int
        Number of directions.
    seed : int
        Of the directions, and of what is drawn: equal seeds make values comparable.
    p : {1, 2}
    n : int
        Number of samples of what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        In units of the data. Two samples of one distribution do not give 0 but a floor of order
        n^(-1/2); look at it beside the value. The same for any number of threads.

    Raises
    ------
    TypeError, ValueError
        As for the data of a `Bridge`.

    Notes
    -----
    Rabin, Peyre, Delon and Bernot, Wasserstein barycenter and its application to texture mixing, 2011;
    Bonneel et al., J. Math. Imaging Vision 51, 2015.
    """
    count = integer("projections", projections, 1, 2**24)
    power = integer("p", p, 1, 2)
    a, b, unit = comparable(*draw_both(x, y, n, seed))
    lines = _core.sliced(a, b, directions(seed, count, a.shape[1]), power)
    return _root(unit, float(np.mean(lines)), power)


def _root(unit: float, cost: float, p: int) -> float:
    """unit * cost^(1/p)."""
    return unit * (math.sqrt(max(cost, 0.0)) if p == 2 else cost)


def directions(seed: int, count: int, dim: int) -> F32:
    """Uniform on the unit sphere of R^dim, shape (count, dim)."""
    normals = _core.normals(seed, _DIRECTIONS, 0, 0, count, dim)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.ascontiguousarray(normals / lengths, np.float32)


class Means(NamedTuple):
    """Means over pairs: of x with y, of x with x, of y with y."""

    between: float
    x: float
    y: float


def _means(both: Comparable, statistic: Statistic, scale: float | None) -> Means:
    """Of distances, or of exp(-scale |.|^2); "u" leaves pairs of a point with itself out."""
    n, m = len(both.x), len(both.y)
    gaussian, factor = scale is not None, scale or 0.0

    def within(points: F32) -> float:
        many, total = len(points), _core.pair_sum(points, None, gaussian, factor)
        if statistic == "v":
            return total / many**2
        return (total - many * gaussian) / (many * (many - 1))  # exp(0) is 1, |0| is 0

    between = _core.pair_sum(both.x, both.y, gaussian, factor) / (n * m)
    return Means(between, within(both.x), within(both.y))


def _drawn(
    x: Source, y: Source, statistic: object, n: object, seed: object
) -> tuple[Comparable, Statistic]:
    which: Statistic = choice("statistic", statistic, ("v", "u"))
    least = 2 if which == "u" else 1
    return comparable(*draw_both(x, y, n, seed, least=least)), which


def _rooted(squared: float, statistic: str, root: bool) -> float:
    if not root:
        return squared
    if statistic == "u":
        raise ValueError(
            "root: expected False with statistic='u', which is unbiased and so may be negative, got True"
        )
    return math.sqrt(max(squared, 0.0))  # of a "v" negative by rounding only


def _is_root(default: bool) -> Any:
    return lambda options: bool(options.get("root", default))


@kind("samples", root=_is_root(False))
def energy_distance(
    x: Source,
    y: Source,
    *,
    statistic: Statistic = "v",
    root: bool = False,
    n: int = DRAWS,
    seed: int = 0,
) -> float:
    r"""Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, zero for equal laws only.

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images, or anything to draw samples from
        As in `wasserstein`.
    statistic : {"v", "u"}
        "v": means over all pairs, those of a point with itself too; never negative, zero for equal
        samples, and of mean E|X - X'| / n + E|Y - Y'| / m where the laws are equal. "u": means over
        pairs of different points; unbiased, so it may be negative. Needs 2 samples of each.
    root : bool
        The square root of it, which is a metric; with "v" only.
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        In units of the data; with `root` in units of their square root. The same for any number of
        threads; memory is O(n + m).

    Notes
    -----
    Szekely and Rizzo, J. Statist. Plann. Inference 143, 2013. Distances are computed in float32 from
    differences of coordinates and added in float64: the value is right to about 1e-7 E|X - Y|.
    """
    root = flag("root", root)
    both, which = _drawn(x, y, statistic, n, seed)
    mean = _means(both, which, None)
    squared = both.unit * (2.0 * mean.between - mean.x - mean.y)
    return _rooted(squared if which == "u" else max(squared, 0.0), which, root)


@kind("samples", root=_is_root(True))
def mmd(
    x: Source,
    y: Source,
    kernel: Literal["gaussian"] = "gaussian",
    bandwidth: float | None = None,
    *,
    statistic: Statistic = "v",
    root: bool = True,
    n: int = DRAWS,
    seed: int = 0,
) -> float:
    r"""Maximum mean discrepancy, (E k(X, X') + E k(Y, Y') - 2 E k(X, Y))^(1/2), k = exp(-|.|^2 / (2 h^2)).

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images, or anything to draw samples from
        As in `wasserstein`.
    kernel : {"gaussian"}
    bandwidth : float, optional
        h, in units of the data. Default: the median distance between points of both samples together,
        of 1,000 of them drawn by `seed`. Values are comparable for equal bandwidths only.
    statistic : {"v", "u"}
        "v": means over all pairs, biased, never negative. "u": means over pairs of different points,
        unbiased, so it may be negative and is given without the root. Needs 2 samples of each.
    root : bool
        False: MMD^2. With "u" it must be False.
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        Without unit, at most sqrt(2). The same for any number of threads; memory is O(n + m).

    Notes
    -----
    Gretton et al., J. Mach. Learn. Res. 13, 2012, equations (3) and (5). Where the laws are equal the mean
    of MMD^2 is 0 ("u") or (1/n + 1/m) (1 - E k(X, X')) ("v").
    """
    choice("kernel", kernel, ("gaussian",))
    root = flag("root", root)
    both, which = _drawn(x, y, statistic, n, seed)
    if bandwidth is None:
        h = _median_distance(both, seed)
        if not h > 0:
            raise ValueError(
                "bandwidth: the median distance between the samples is 0, so it has to be given"
            )
    else:
        h = real("bandwidth", bandwidth, above=0) / both.unit
    if h < _RESOLVED:
        raise ValueError(
            f"bandwidth: expected at least {_RESOLVED * both.unit:.3g}, {_RESOLVED:g} of the spread of "
            f"the samples, which float32 resolves, got {h * both.unit:.3g}"
        )
    if h > _WIDEST:
        raise ValueError(
            f"bandwidth: expected at most {_WIDEST * both.unit:.3g}, {_WIDEST:g} times the spread of the "
            f"samples, beyond which float32 rounds what sets them apart, got {h * both.unit:.3g}"
        )
    mean = _means(both, which, 0.5 / h**2)
    squared = mean.x + mean.y - 2.0 * mean.between
    return _rooted(squared if which == "u" else max(squared, 0.0), which, root)


def _median_distance(both: Comparable, seed: int) -> float:
    """Between different ones of up to 1,000 points, in units of `both.unit`."""
    every = np.concatenate([both.x, both.y])
    if len(every) > _HEURISTIC:
        picked = np.random.Generator(np.random.Philox(key=mixed(seed, 2)))
        every = every[picked.choice(len(every), _HEURISTIC, replace=False)]
    rows, columns = np.triu_indices(len(every), 1)
    points = every.astype(np.float64)
    if len(points) < 2:
        return 0.0
    squares = np.zeros(len(rows))
    for c in range(points.shape[1]):
        squares += (points[rows, c] - points[columns, c]) ** 2
    return float(np.sqrt(np.median(squares)))
