"""Exact iterative proportional fitting between two Gaussians."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._check import F64, integer
from ..gaussian import Gaussian
from ..history import Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._linear import GaussianCoupling
from ._problem import direction_of
from .gaussian import GaussianBridge, process_between

MOST = 10_000_000


class State(NamedTuple):
    """After half-bridge `number`: means of both ends, and the conditional covariances."""

    number: int
    mean: F64  # (2 d,)
    backward: F64  # al^{-1} = Cov(X_0 given X_N)
    forward: F64  # be^{-1} = Cov(X_N given X_0)


class GaussianIPF:
    r"""Every half-bridge of exact IPF between N(m0, S0) and N(m1, S1).

    With the reference X_N given X_0 ~ N(A X_0 + b, V I) and r = A / V, the precision of (X_0, X_N) is
    [[al, -r I], [-r I, be]] throughout, from al = S0^{-1} + (A^2 / V) I, be = I / V on:

        odd half-bridges (backward, the prior's end is fixed):
            be = S1^{-1} + r^2 al^{-1},  E X_0 += r al^{-1} (m1 - E X_N),  E X_N = m1,
        even ones (forward, the source's end is fixed):
            al = S0^{-1} + r^2 be^{-1},  E X_N += r be^{-1} (m0 - E X_0),  E X_0 = m0.

    This is what DSB would do with perfect nets, infinite data and steps that go to zero; `PopulationDSB`
    is what it does with the steps it has (the same, where steps have conditional means and covariances).

    Parameters
    ----------
    source, prior, schedule, reference
        As for `GaussianBridge`, which is the limit.

    Notes
    -----
    Equation (6) of arXiv:2106.01357; its proposition 4 states which divergences fall.

    Examples
    --------
    >>> ipf = GaussianIPF(dsb.Gaussian([0.0], 1.0), dsb.Gaussian([0.0], 1.0), 0.5)
    >>> [round(ipf.iterate(n).cross.item(), 4) for n in (1, 2, 3)]
    [0.5, 0.6, 0.6154]
    """

    def __init__(
        self,
        source: Gaussian,
        prior: Gaussian,
        schedule: Schedule | float,
        reference: OU | Brownian = Brownian(),  # noqa: B008 (immutable)
    ) -> None:
        self._process = process_between(source, prior, schedule, reference)
        self._given = (source, prior, schedule, reference)
        self._ends = source, prior
        self._roots = np.linalg.cholesky(source.cov), np.linalg.cholesky(prior.cov)
        a, v = self._process.transition(0.0, self._process.T)
        self._r = a / v
        spread = v * np.eye(source.dim)
        mean = np.concatenate([source.mean, a * source.mean + (1.0 - a) * self._process.mean])
        self._start = State(0, mean, self._conditional(0, spread), spread)
        self._last = self._start

    @property
    def dim(self) -> int:
        """Dimension d of a point."""
        return self._process.dim

    def half_bridge(self, number: int) -> GaussianCoupling:
        """The joint law of the ends after so many half-bridges; 0 is the reference from the source."""
        state = self._state(integer("number", number, 0, MOST))
        if number % 2:
            root, spread = self._roots[1], state.backward
        else:
            root, spread = self._roots[0], state.forward
        of_fixed = np.concatenate([root, np.zeros_like(root)], axis=1)
        of_other = np.concatenate([self._r * spread @ root, np.linalg.cholesky(spread)], axis=1)
        parts = (of_other, of_fixed) if number % 2 else (of_fixed, of_other)
        return GaussianCoupling(state.mean, np.concatenate(parts))

    def iterate(self, n: int, direction: Direction = "backward") -> GaussianCoupling:
        """The joint law of the ends after iteration n = 1, 2, ..

        Parameters
        ----------
        n : int
            As `Bridge.fit` counts: each iteration is a backward half-bridge and then a forward one.
        direction : {"backward", "forward"}
            "backward" is half-bridge 2 n - 1, whose prior's end is exact, "forward" 2 n, whose source's is.
        """
        return self.half_bridge(self._number(n, direction))

    def process(self, n: int, direction: Direction = "backward") -> GaussianBridge:
        """The whole process after iteration n: as every iterate, the bridge between its own ends."""
        coupling = self.half_bridge(self._number(n, direction))
        source, prior = self._ends
        if direction == "backward":
            source = coupling.source
        else:
            prior = coupling.prior
        return GaussianBridge(source, prior, *self._given[2:])

    def limit(self) -> GaussianBridge:
        """What the iterates converge to."""
        return GaussianBridge(*self._given)

    def __repr__(self) -> str:
        source, prior, schedule, reference = self._given
        return f"GaussianIPF({source!r}, {prior!r}, {schedule!r}, {reference!r})"

    # ---- how ----

    def _number(self, n: object, direction: object) -> int:
        n = integer("n", n, 1, MOST // 2)
        return 2 * n - (direction_of(direction) == "backward")

    def _conditional(self, end: int, other: F64) -> F64:
        """(S^{-1} + r^2 G)^{-1} with G the other end's conditional covariance, S = K K^T this end's."""
        root = self._roots[end]
        inner = np.eye(self.dim) + self._r**2 * root.T @ other @ root
        half = np.linalg.solve(np.linalg.cholesky(inner), root.T)
        return np.asarray(half.T @ half)

    def _state(self, number: int) -> State:
        state = self._last if self._last.number <= number else self._start
        d = self.dim
        for k in range(state.number + 1, number + 1):
            mean, backward, forward = state.mean.copy(), state.backward, state.forward
            if k % 2:
                mean[:d] += self._r * backward @ (self._ends[1].mean - mean[d:])
                mean[d:] = self._ends[1].mean
                forward = self._conditional(1, backward)
            else:
                mean[d:] += self._r * forward @ (self._ends[0].mean - mean[:d])
                mean[:d] = self._ends[0].mean
                backward = self._conditional(0, forward)
            state = State(k, mean, backward, forward)
        self._last = state
        return state
