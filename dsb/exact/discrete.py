"""The bridge between two samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import F32, F64
from ..history import Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._problem import Problem, direction_of
from .gaussian import leaving
from .plan import Plan, kernel_rows
from .sinkhorn import sinkhorn


class PlanCoupling:
    """The law of (x_i, y_j) with (i, j) drawn from a plan; moments with the plan's own masses."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def dim(self) -> int:
        """d, the dimension of one end."""
        return self._plan.dim

    @property
    def mean(self) -> F64:
        """Shape (2 d,), the source's end first."""
        rows, columns = _masses(self._plan)
        return np.concatenate([rows @ self._plan.x, columns @ self._plan.y])

    @property
    def cov(self) -> F64:
        """Shape (2 d, 2 d)."""
        d, rows_columns, mean = self.dim, _masses(self._plan), self.mean
        cov = np.empty((2 * d, 2 * d))
        ends = (self._plan.x - mean[:d], self._plan.y - mean[d:])
        for k, (mass, end) in enumerate(zip(rows_columns, ends, strict=True)):
            part = slice(k * d, (k + 1) * d)
            cov[part, part] = (mass[:, None] * end).T @ end
        cov[:d, d:] = cross = self.cross
        cov[d:, :d] = cross.T
        return cov

    @property
    def cross(self) -> F64:
        """Cov(X_0, X_N), shape (d, d)."""
        d, (rows, _), mean = self.dim, _masses(self._plan), self.mean
        towards = self._plan.barycentric() - mean[d:]
        return np.asarray((rows[:, None] * (self._plan.x - mean[:d])).T @ towards)

    def sample(self, n: int, seed: int = 0) -> tuple[F32, F32]:
        """n independent pairs (X_0, X_N), each of shape (n, d)."""
        i, j = self._plan.pairs(n, seed)
        x, y = self._plan.x, self._plan.y
        return np.asarray(x[i], np.float32), np.asarray(y[j], np.float32)


class PlanMarginal:
    """The law of X_t: a pair from the plan, then the pinned reference between its ends."""

    def __init__(self, plan: Plan, t: float) -> None:
        self._plan, self._t = plan, t
        process = plan.samples.process
        self._pinned = process.pinned(0.0, t, process.T)

    @property
    def dim(self) -> int:
        """d."""
        return self._plan.dim

    @property
    def mean(self) -> F64:
        """Shape (d,)."""
        p, q, _, c = self._pinned
        mean = PlanCoupling(self._plan).mean
        return np.asarray(p * mean[: self.dim] + q * mean[self.dim :] + c)

    @property
    def cov(self) -> F64:
        """Shape (d, d), exactly: of the pinned means, and r I within."""
        p, q, r, _ = self._pinned
        d, cov = self.dim, PlanCoupling(self._plan).cov
        cross = p * q * cov[:d, d:]
        between = p**2 * cov[:d, :d] + q**2 * cov[d:, d:] + cross + cross.T
        return np.asarray(between + r * np.eye(d))

    def sample(self, n: int, seed: int = 0) -> F32:
        """n independent draws, shape (n, d)."""
        x, y = PlanCoupling(self._plan).sample(n, seed)
        return self._plan.samples.process.bridge_at(x, y, self._t, seed)


class DiscreteBridge(Problem):
    r"""The Schrödinger bridge between two weighted samples: the reference, pinned at pairs of a plan.

    With (i, j) ~ P, X_t given the ends is the reference's law between x_i and y_j: for Brownian motion
    N((1 - u) x_i + u y_j, 2 T u (1 - u) I), u = t / T. Its drifts are those of the h-transform,

        forward  (E[y_j | X_t = x] - x) / (T - t),   weights b_j exp(g_j - |x - y_j|^2 / (4 (T - t))),
        backward (E[x_i | X_t = x] - x) / t,         weights a_i exp(f_i - |x - x_i|^2 / (4 t)),

    the plug-in drifts by which samples estimate those of the bridge between their laws.

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images
        The source's and the prior's end.
    schedule : Schedule or float
        The steps, or T; an OU reference needs steps.
    reference : Brownian or OU, default Brownian()
    a, b : array_like, shapes (n,) and (m,), optional
        Weights, as for `sinkhorn`.
    **options
        Of `sinkhorn`: tolerance, max_iterations, epsilon_scaling, warm_start, unconverged.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `sinkhorn`.

    Notes
    -----
    Section 2.2 of arXiv:2106.01357 for the static problem, proposition 2 of arXiv:2303.16852 for its
    mixture of pinned processes. As a process of finitely many ends its drifts grow without bound at both:
    like 1 / sqrt(T - t) near the prior's.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        schedule: Schedule | float,
        reference: OU | Brownian | None = None,
        *,
        a: ArrayLike | None = None,
        b: ArrayLike | None = None,
        **options: Any,
    ) -> None:
        self._plan = sinkhorn(x, y, schedule, reference, a=a, b=b, **options)
        self._process = self._plan.samples.process

    @classmethod
    def of(cls, plan: Plan) -> DiscreteBridge:
        """The process of a plan that is there already; one of `sinkhorn_iterates` keeps its own ends."""
        if not isinstance(plan, Plan):
            raise TypeError(f"plan: expected a Plan, got {type(plan).__name__}")
        made = cls.__new__(cls)
        made._plan = plan
        made._process = plan.samples.process
        return made

    @property
    def plan(self) -> Plan:
        """The law of the ends' numbers (i, j)."""
        return self._plan

    def marginal(self, t: float) -> PlanMarginal:
        """The law of X_t; at t = 0 and T that of the sample's points with the plan's masses."""
        return PlanMarginal(self._plan, self._process.time(t))

    def coupling(self) -> PlanCoupling:
        """The law of (X_0, X_N)."""
        return PlanCoupling(self._plan)

    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F64:
        """See `Problem.drift`. At the time where a direction ends it has no drift: ValueError."""
        x, direction = self._points(x), direction_of(direction)
        kernel_rows("x", x, x)  # before they are grouped, so that a message counts all rows
        result = np.empty_like(x)
        for time, where in self._groups(t, len(x)):
            result[where] = self._drift(x[where], time, direction)
        return result

    def _drift(self, x: F64, t: float, direction: Direction) -> F64:
        process = self._process
        if process.on_grid:
            k = leaving(process, t, direction)
            times = process.times_of(None)
            assert process.schedule is not None
            g = process.schedule.steps[k]
            if direction == "forward":
                step = process.pinned(times[k], times[k + 1], process.T)
                mean = step.p * x + step.q * self._end(x, t, direction) + step.c
            else:
                step = process.pinned(0.0, times[k], times[k + 1])
                mean = step.p * self._end(x, t, direction) + step.q * x + step.c
            return np.asarray((mean - x) / g)
        left = process.T - t if direction == "forward" else t
        if not left > 0:
            raise ValueError(
                f"t: expected a time that the {direction} process leaves, got {t:g}, where it ends"
            )
        return np.asarray((self._end(x, t, direction) - x) / left)

    def _end(self, x: F64, t: float, direction: Direction) -> F64:
        """E[X_N | X_t = x], or with "backward" E[X_0 | X_t = x]."""
        process, plan, s = self._process, self._plan, self._plan.samples
        if direction == "forward":
            factor, variance = process.transition(t, process.T)
            rows = factor * x + (1.0 - factor) * process.mean - s.centre
            mean = _means(kernel_rows("x", x, rows), s.y, plan, direction, variance, s.y)
            return np.asarray(mean + s.centre)
        factor, variance = process.transition(0.0, t)
        starts = np.asarray(s.source, np.float64)
        middle = starts.mean(axis=0)
        columns = factor * (
            starts - middle
        )  # and factor * middle + (1 - factor) m goes to the rows
        rows = x - (factor * middle + (1.0 - factor) * process.mean)
        values = (starts - middle).astype(np.float32)
        mean = _means(kernel_rows("x", x, rows), columns, plan, direction, variance, values)
        return np.asarray(mean + middle)

    def sample_paths(self, n: int, schedule: Schedule | None = None, seed: int = 0) -> F32:
        """n paths at the times of the schedule: a pair from the plan, then the pinned reference."""
        n, _, seed = self._room(n, schedule, seed)
        x, y = self.coupling().sample(n, seed)
        return self._process.bridge_paths(x, y, schedule, seed)

    def __copy__(self) -> DiscreteBridge:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DiscreteBridge:
        return self


def _masses(plan: Plan) -> tuple[F64, F64]:
    """Of rows and columns, each with sum one."""
    rows, columns = plan.row_masses(), plan.column_masses()
    return rows / rows.sum(), columns / columns.sum()


def _means(
    rows: F32, columns: F64 | F32, plan: Plan, direction: Direction, variance: float, values: F32
) -> F64:
    """Means of values over the columns, with the weights that they have at each row."""
    points = np.ascontiguousarray(columns, np.float32)
    return _core.conditional_mean(rows, points, plan.heights(direction), variance, values)[1]


__all__ = ["DiscreteBridge", "PlanCoupling", "PlanMarginal"]
