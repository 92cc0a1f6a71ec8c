"""A coupling of two samples, never stored as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import (
    F32,
    F64,
    FINITE_SINGLE,
    I64,
    MAX_ROWS,
    afford,
    array,
    described,
    first_nonfinite,
    integer,
)
from ..gaussian import USER_STREAM
from ..history import Direction
from ._problem import direction_of, points
from ._reference import ReferenceProcess

PAIRS = USER_STREAM | 144 << 8  # the Philox stream of pairs, apart from those of _reference.py
FINEST = 2.0**-23  # of one word's uniform numbers: (2 k + 1) / 2 of them


class Half(NamedTuple):
    """One half step: a potential is renewed, which fits its end."""

    variance: float  # s2 of its scale
    error: float  # L1 error of the other marginal after it
    seconds: float  # since the beginning


@dataclass(frozen=True, eq=False)
class Samples:
    """Two weighted samples and the reference between them."""

    source: F32 | F64  # [n, d], as given
    target: F32 | F64  # [m, d]
    a: F64
    b: F64
    process: ReferenceProcess
    factor: float  # A of the reference's transition, X_N | X_0 ~ N(A x + (1 - A) m, V I)
    variance: float  # V; 2 T for Brownian motion
    centre: F64  # [d]: what is taken off the points below
    x: F32  # [n, d]: A x + (1 - A) m, centred; the kernel is that of Brownian motion between x and y
    y: F32  # [m, d], centred

    @classmethod
    def of(
        cls, source: F32 | F64, target: F32 | F64, a: F64, b: F64, process: ReferenceProcess
    ) -> Samples:
        factor, variance = process.transition(0.0, process.T)
        shift = (1.0 - factor) * process.mean
        starts = factor * source.mean(axis=0, dtype=np.float64) + shift
        centre = (starts + target.mean(axis=0, dtype=np.float64)) / 2.0
        x = np.ascontiguousarray(factor * source + (shift - centre), np.float32)
        y = np.ascontiguousarray(target - centre, np.float32)
        for part in (a, b):
            part.flags.writeable = False
        return cls(source, target, a, b, process, factor, variance, centre, x, y)

    @property
    def dim(self) -> int:
        return self.process.dim

    @property
    def reach(self) -> float:
        """A bound on |x - y|^2, from both balls and both boxes."""
        balls = sum(float(np.sqrt(np.square(p, dtype=np.float64).sum(1).max())) for p in self._both)
        low, high = (
            np.array([edge(p, axis=0) for p in self._both], np.float64) for edge in (np.min, np.max)
        )
        widest = np.maximum(high[0] - low[1], high[1] - low[0])
        return min(balls**2, float(np.square(widest).sum()))

    @property
    def _both(self) -> tuple[F32, F32]:
        return self.x, self.y

    def values(self, direction: Direction) -> tuple[F32, F64]:
        """The points that the direction goes to, centred, and the centre."""
        if direction == "forward":
            return self.y, self.centre
        middle = self.source.mean(axis=0, dtype=np.float64)
        return np.ascontiguousarray(self.source - middle, np.float32), middle

    def places(self, z: F64, direction: Direction) -> F32:
        """Points z of the direction's start as rows for the kernel."""
        if direction == "backward":
            return kernel_rows("z", z, z - self.centre)
        moved = self.factor * z + ((1.0 - self.factor) * self.process.mean - self.centre)
        return kernel_rows("z", z, moved)


class Plan:
    r"""P_ij = a_i b_j exp(f_i + g_j - |x_i - y_j|^2 / (2 s2)) between x (n, d) and y (m, d).

    What `sinkhorn` and `sinkhorn_iterates` return. The matrix is never stored: everything below takes
    O(n + m) memory and a pass or two over the pairs. "forward" is from x to y, "backward" from y to x.
    Immutable.
    """

    __slots__ = ("_converged", "_error", "_f", "_g", "_halves", "_history", "_masses", "_samples")

    def __init__(
        self,
        samples: Samples,
        f: F64,
        g: F64,
        history: list[Half],
        error: float,
        converged: bool,
    ) -> None:
        f.flags.writeable = g.flags.writeable = False
        self._samples, self._f, self._g = samples, f, g
        # The list may grow with the plans of later half steps, which share it.
        self._history, self._halves = history, len(history)
        self._error, self._converged = error, converged
        self._masses: dict[Direction, F64] = {}

    # ---- what it consists of ----

    @property
    def f(self) -> F64:
        """Potential of the source's end, shape (n,), without unit (s2 f is in squared data)."""
        return self._f

    @property
    def g(self) -> F64:
        """Potential of the prior's end, shape (m,)."""
        return self._g

    @property
    def a(self) -> F64:
        """Weights of the source's points, shape (n,)."""
        return self._samples.a

    @property
    def b(self) -> F64:
        """Weights of the prior's points, shape (m,)."""
        return self._samples.b

    @property
    def x(self) -> F32 | F64:
        """The source's points, shape (n, d)."""
        return self._samples.source

    @property
    def y(self) -> F32 | F64:
        """The prior's points, shape (m, d)."""
        return self._samples.target

    @property
    def variance(self) -> float:
        """s2, the variance of the reference over the whole time: 2 T for Brownian motion."""
        return self._samples.variance

    @property
    def eps(self) -> float:
        """The regularisation for the cost |x - y|^2 / 2, which is s2."""
        return self._samples.variance

    @property
    def dim(self) -> int:
        """d."""
        return self._samples.dim

    @property
    def samples(self) -> Samples:
        """Both samples, and the reference between them."""
        return self._samples

    @property
    def error(self) -> float:
        """L1 error of both marginals together."""
        return self._error

    @property
    def converged(self) -> bool:
        """Whether the error is below the tolerance that was asked for."""
        return self._converged

    @property
    def history(self) -> tuple[Half, ...]:
        """Every half step: its s2, the error after it, the seconds since the beginning."""
        return tuple(self._history[: self._halves])

    @property
    def iterations(self) -> int:
        """Pairs of half steps, an odd one counted as a pair."""
        return (self._halves + 1) // 2

    # ---- what is read off ----

    def heights(self, direction: Direction) -> F64:
        """Heights of the points that the direction goes to: potential + log weight."""
        s = self._samples
        potential, weight = (self._g, s.b) if direction == "forward" else (self._f, s.a)
        with np.errstate(divide="ignore"):
            return np.asarray(potential + np.log(weight))

    def _ends(self, direction: Direction) -> tuple[F32, F32]:
        """Rows and columns for the kernel."""
        s = self._samples
        return (s.x, s.y) if direction == "forward" else (s.y, s.x)

    def _mean(self, rows: F32, direction: Direction, values: F32) -> tuple[F64, F64]:
        columns = self._ends(direction)[1]
        return _core.conditional_mean(rows, columns, self.heights(direction), self.variance, values)

    def row_masses(self) -> F64:
        """sum_j P_ij, shape (n,): the plan's own weights of the source's points."""
        return self._masses_of("forward")

    def column_masses(self) -> F64:
        """sum_i P_ij, shape (m,)."""
        return self._masses_of("backward")

    def _masses_of(self, direction: Direction) -> F64:
        if direction not in self._masses:
            s = self._samples
            weight, potential = (s.a, self._f) if direction == "forward" else (s.b, self._g)
            rows, columns = self._ends(direction)
            log_sum, _ = self._mean(rows, direction, np.zeros((len(columns), 0), np.float32))
            found = np.zeros(len(weight))
            some = weight > 0
            found[some] = weight[some] * np.exp(potential[some] + log_sum[some])
            found.flags.writeable = False
            self._masses[direction] = found
        return self._masses[direction]

    def barycentric(self, direction: Direction = "forward") -> F64:
        """E[y | x_i], shape (n, d), or with "backward" E[x | y_j], shape (m, d), under the plan."""
        direction = direction_of(direction)
        return self._map(self._ends(direction)[0], direction)

    def entropic_map(self, z: ArrayLike, direction: Direction = "forward") -> F64:
        r"""The barycentric projection continued to any points,

            sum_j w_j y_j / sum_j w_j,    w_j = b_j exp(g_j - |z - y_j|^2 / (2 s2)),

        which for z = x_i is E[y | x_i] (Pooladian, Niles-Weed, arXiv:2109.12004).

        Parameters
        ----------
        z : array_like, shape (k, d)
        direction : {"forward", "backward"}
            Backward: from the prior's end to the source's.
        """
        direction = direction_of(direction)
        rows = self._samples.places(points("z", z, self.dim), direction)
        return self._map(rows, direction)

    def _map(self, rows: F32, direction: Direction) -> F64:
        values, middle = self._samples.values(direction)
        return np.asarray(self._mean(rows, direction, values)[1] + middle)

    def pairs(self, n: int, seed: int = 0) -> tuple[I64, I64]:
        """n independent draws (i, j) from the plan, each of shape (n,): the same for the same seed.

        Rows are drawn by `row_masses`, a row's column by the cumulative sum over its entries.
        """
        n, seed = integer("n", n, 1, MAX_ROWS), integer("seed", seed, 0)
        afford("n", n, 8 * 8 + 4 * self.dim)
        words = _core.uniforms(seed, PAIRS, 0, 0, n, 4).astype(np.float64)
        # 46 random bits, so that rows and columns of little weight are drawn as often as they should.
        u, v = (words[:, k] + (words[:, k + 1] - 0.5) * FINEST * (1.0 - FINEST) for k in (0, 2))
        sums = np.cumsum(self.row_masses())
        i = np.searchsorted(sums, u * sums[-1], side="left").astype(np.int64)
        i = np.minimum(i, np.flatnonzero(self.row_masses())[-1])
        order = np.argsort(i, kind="stable")  # equal rows side by side share the cache
        rows = np.ascontiguousarray(self._samples.x[i[order]])
        j = np.empty(n, np.int64)
        j[order] = _core.conditional_pick(
            rows, self._samples.y, self.heights("forward"), self.variance, v[order]
        )
        return i, j

    def log_plan(self, i: ArrayLike, j: ArrayLike | None = None) -> F64:
        """log P_ij in float64: of pairs (i, j), shape (k,), or without j of whole rows, shape (k, m)."""
        s = self._samples
        row = _indices("i", i, len(s.a))
        every = j is None
        column = np.arange(len(s.b)) if j is None else _indices("j", j, len(s.b))
        if not every and len(row) != len(column):
            raise ValueError(f"j: expected {len(row)} columns, one for each row, got {len(column)}")
        if every:
            afford("i", len(row), 8 * len(s.b) * (s.dim + 2))
            row = row[:, None]
        start = s.factor * np.asarray(s.source[row], np.float64) + (1.0 - s.factor) * s.process.mean
        square = np.square(start - np.asarray(s.target[column], np.float64)).sum(axis=-1)
        forward, backward = self.heights("backward")[row], self.heights("forward")[column]
        return np.asarray(forward + backward - square / (2.0 * s.variance))

    def cost(self) -> float:
        """Primal transport cost sum_ij P_ij |x_i - y_j|^2 / 2, in units of squared data.

        With an OU reference x_i is replaced by A x_i + (1 - A) m.
        """
        s = self._samples
        squares = np.square(s.y, dtype=np.float64).sum(axis=1)
        values = np.concatenate([s.y, squares[:, None].astype(np.float32)], axis=1)
        _, mean = self._mean(s.x, "forward", values)
        x = s.x.astype(np.float64)
        each = np.square(x).sum(axis=1) - 2.0 * (x * mean[:, :-1]).sum(axis=1) + mean[:, -1]
        return float(self.row_masses() @ each) / 2.0

    def objective(self) -> float:
        """cost() + s2 KL(P | a b^T): what the converged plan minimises.

        KL(P | Q) = sum P log(P / Q) - P + Q, so that plans of any mass compare.
        """
        # sum_ij P_ij (f_i + g_j - c_ij), where the potential of a point without weight does not count
        inner = float(self.row_masses() @ self._f + self.column_masses() @ self._g)
        return self.variance * (inner + 1.0 - float(self.row_masses().sum()))

    def __repr__(self) -> str:
        state = "converged" if self._converged else "not converged"
        return (
            f"Plan({len(self.a)} x {len(self.b)} points in {self.dim} dimensions, s2={self.variance:.6g}, "
            f"error {self._error:.2g} after {self.iterations} iterations, {state})"
        )

    def __copy__(self) -> Plan:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    def __getstate__(self) -> Any:
        raise TypeError("a Plan is not pickled: keep f and g, and give them as warm_start")


def kernel_rows(name: str, given: F64, moved: F64) -> F32:
    """`moved`, which are the points `given` seen from the kernel's centre, in single precision.

    Raises
    ------
    ValueError
        A point is too far away for it.
    """
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(moved, np.float32)
    row = first_nonfinite(result)
    if row is not None:
        column = int(np.argmin(np.isfinite(result[row])))
        raise ValueError(
            f"{name}: expected {FINITE_SINGLE}, got {given[row, column]} in row {row}, column {column}"
        )
    return result


def _indices(name: str, value: ArrayLike, size: int) -> I64:
    found = array(name, value)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected whole numbers, got {described(found, value)}")
    if found.ndim > 1:
        raise ValueError(f"{name}: expected a number or shape (k,), got shape {found.shape}")
    result = np.array(found, np.int64, ndmin=1)
    if result.size and not (result.min() >= 0 and result.max() < size):
        bad = result[(result < 0) | (result >= size)][0]
        raise ValueError(f"{name}: expected numbers from 0 to {size - 1}, got {bad}")
    return result
