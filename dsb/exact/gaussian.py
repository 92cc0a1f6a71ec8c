"""The bridge between two Gaussians."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import F32, F64, integer
from ..gaussian import Gaussian
from ..history import Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._linear import GaussianCoupling, Step, gaussian, symmetric, triangle
from ._problem import Problem, direction_of
from ._reference import PATHS, Pinned, ReferenceProcess


class Canonical(NamedTuple):
    """X_0 = m0 + P a and X_N = m1 + Q b, where (a, b) are standard normal pairs of correlation c."""

    P: F64  # (d, d), P P^T = S0
    Q: F64  # (d, d), Q Q^T = S1
    c: F64  # (d,)
    rest: F64  # (d,), 1 - c^2


def canonical(first: F64, second: F64, a: float, v: float) -> Canonical:
    r"""The entropic coupling of N(., S0) and N(., S1) under X_N given X_0 ~ N(a X_0 + b, v I).

    Its covariance is C = (R D R^{-1} - v I) / (2 a), D = (4 a^2 R S1 R + v^2 I)^{1/2}, R = S0^{1/2}. With
    S0 = L L^T, S1 = M M^T and the singular values M^T L = U diag(s) W^T this is P diag(c) Q^T for P = L W,
    Q = M U and c = 2 a s / ((4 a^2 s^2 + v^2)^{1/2} + v): nothing is inverted, and nothing cancels.
    """
    left, right = np.linalg.cholesky(first), np.linalg.cholesky(second)
    u, s, w = np.linalg.svd(right.T @ left)
    total = np.hypot(2.0 * a * s, v) + v
    return Canonical(left @ w.T, right @ u, 2.0 * a * s / total, 2.0 * v / total)


class End(NamedTuple):
    """The end that a direction runs to, given x at a time: N(m_end + G (x - m_t), F F^T)."""

    G: F64
    F: F64


def averaged(step: Pinned, direction: Direction, here: F64, end: F64, law: End) -> Step:
    """A step of the pinned reference averaged over the end to which it runs.

    `step` is the law of the new state given the present one, of mean `here`, and the end, of mean `end`,
    which has the law `law` given the present state.
    """
    own, toward = (step.p, step.q) if direction == "forward" else (step.q, step.p)
    eye = np.eye(len(here))
    return Step(
        own * eye + toward * law.G,
        toward * (end - law.G @ here) + step.c,
        symmetric(step.r * eye + toward**2 * law.F @ law.F.T),
    )


class GaussianBridge(Problem):
    r"""The Schrödinger bridge between N(m0, S0) at time 0 and N(m1, S1) at time T.

    With s2 = 2 T, R = S0^{1/2}, D = (4 R S1 R + s2^2 I)^{1/2} and u = t / T, for Brownian motion:

        C = Cov(X_0, X_N) = (R D R^{-1} - s2 I) / 2,      E X_t = (1 - u) m0 + u m1,
        Cov X_t = (1 - u)^2 S0 + u^2 S1 + u (1 - u) (C + C^T) + s2 u (1 - u) I.

    For the discretised OU process, X_N given X_0 ~ N(A x + b, V I), C is (1 / A) times the same with
    A^2 S0 for S0 and V for s2; it is the exact answer to the discretised problem, defined at times of
    the grid.

    Parameters
    ----------
    source, prior : Gaussian
        N(m0, S0) and N(m1, S1).
    schedule : Schedule or float
        The steps, or for Brownian motion the final time T alone.
    reference : OU or Brownian

    Raises
    ------
    TypeError, ValueError
        Dimensions disagree, or the OU process is not given its steps.

    Notes
    -----
    Bunne et al., arXiv:2202.05722; Mallasto et al., arXiv:2006.03416. Joint laws, steps and drifts follow
    from the ends: given both, X_t is the pinned reference.

    Examples
    --------
    >>> bridge = GaussianBridge(dsb.Gaussian([0.0], 1.0), dsb.Gaussian([0.0], 1.0), 0.5)
    >>> bridge.coupling().cross
    array([[0.61803399]])
    """

    _source: Gaussian
    _prior: Gaussian
    _ends: Canonical

    def __init__(
        self,
        source: Gaussian,
        prior: Gaussian,
        schedule: Schedule | float,
        reference: OU | Brownian = Brownian(),  # noqa: B008 (immutable)
    ) -> None:
        self._process = process_between(source, prior, schedule, reference)
        self._source, self._prior = source, prior
        a, v = self._process.transition(0.0, self.T)
        self._ends = canonical(source.cov, prior.cov, a, v)

    @property
    def source(self) -> Gaussian:
        """The law at time 0."""
        return self._source

    @property
    def prior(self) -> Gaussian:
        """The law at time T."""
        return self._prior

    def coupling(self) -> GaussianCoupling:
        """The joint law of (X_0, X_N), the entropic transport plan."""
        P, Q, c, rest = self._ends
        zero = np.zeros_like(P)
        mean = np.concatenate([self._source.mean, self._prior.mean])
        return GaussianCoupling(mean, np.block([[P, zero], [Q * c, Q * np.sqrt(rest)]]))

    def marginal(self, t: float) -> Gaussian:
        """The law of X_t; at 0 and T the source and the prior themselves."""
        t = self._process.time(t)
        if t == 0.0:
            return self._source
        if t == self.T:
            return self._prior
        mean, factor = self._mean(t), self._factor(t)
        return gaussian(mean, factor @ factor.T)

    def joint(self, s: float, t: float) -> Gaussian:
        """The law of (X_s, X_t) in R^(2 d), for two different times.

        Raises
        ------
        ValueError
            The times are the same: the law is then degenerate.
        """
        s, t = self._process.time(s), self._process.time(t)
        if s == t:
            raise ValueError(f"t: expected a time other than s, got {t:g} for both")
        early, late = min(s, t), max(s, t)
        cross = self._cross(early, late)
        first, second = self.marginal(s), self.marginal(t)
        cross = cross if s < t else cross.T
        cov = np.block([[first.cov, cross], [cross.T, second.cov]])
        return gaussian(np.concatenate([first.mean, second.mean]), cov)

    def step(self, k: int, direction: Direction = "backward") -> Step:
        """The exact law of X_{k+1} given X_k ("forward") or of X_k given X_{k+1} ("backward").

        Parameters
        ----------
        k : int
            0 .. N - 1, the number of the step in order of time in both directions.

        Returns
        -------
        Step
            (A, c, Q): N(A x + c, Q). Q is smaller or larger than the reference's 2 g_k I.

        Raises
        ------
        ValueError
            The problem has no steps, or not this one.
        """
        times = self._process.times_of(None)
        k = integer("k", k, 0, len(times) - 2)
        return self._between(float(times[k]), float(times[k + 1]), direction_of(direction))

    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F64:
        r"""Drift of a direction's own process per unit of time, shape (n, d), float64.

        For Brownian motion (E[X_N given X_t = x] - x) / (T - t) forward and (E[X_0 given X_t = x] - x) / t
        backward, continued to the ends. For the OU process (step mean - x) / g_k of `step`, at the times of
        the grid that the direction leaves.
        """
        x, direction = self._points(x), direction_of(direction)
        result = np.empty_like(x)
        for time, where in self._groups(t, len(x)):
            result[where] = self._drift(x[where], time, direction)
        return result

    def sample_paths(self, n: int, schedule: Schedule | None = None, seed: int = 0) -> F32:
        """n paths at the times of the schedule, by exact Gaussian steps from the source."""
        n, times, seed = self._room(n, schedule, seed)
        paths = np.empty((n, len(times), self.dim), dtype=np.float32)
        z = _core.normals(seed, PATHS, 0, 0, n, self.dim)
        x = z @ self._ends.P.T + self._source.mean
        paths[:, 0] = x
        for k in range(len(times) - 1):
            x = self._between(float(times[k]), float(times[k + 1]), "forward").draw(x, seed, k + 1)
            paths[:, k + 1] = x
        return paths

    def __repr__(self) -> str:
        steps = self.schedule or f"{self.T:g}"
        return f"GaussianBridge({self._source!r}, {self._prior!r}, {steps}, {self.reference!r})"

    # ---- how ----

    def _mean(self, t: float) -> F64:
        p, q, _, c = self._process.pinned(0.0, t, self.T)
        return p * self._source.mean + q * self._prior.mean + c

    def _factor(self, t: float) -> F64:
        """L with Cov X_t = L L^T."""
        P, Q, c, rest = self._ends
        p, q, r, _ = self._process.pinned(0.0, t, self.T)
        eye = np.sqrt(r) * np.eye(self.dim)
        return triangle(p * P + q * Q * c, q * Q * np.sqrt(rest), eye)

    def _cross(self, s: float, t: float) -> F64:
        """Cov(X_s, X_t), s <= t."""
        first = self._process.pinned(0.0, s, self.T)
        second = self._process.pinned(0.0, t, self.T)
        P, Q, c, _ = self._ends
        C = P * c @ Q.T
        # Given the ends, Cov(X_s, X_t) = v a w / V: what of the noise up to s is left at t and not pinned.
        a, _ = self._process.transition(s, t)
        _, v = self._process.transition(0.0, s)
        _, w = self._process.transition(t, self.T)
        _, total = self._process.transition(0.0, self.T)
        return np.asarray(
            first.p * second.p * self._source.cov
            + first.q * second.q * self._prior.cov
            + first.p * second.q * C
            + first.q * second.p * C.T
            + v * a * w / total * np.eye(self.dim)
        )

    def _end(self, t: float, direction: Direction) -> End:
        """The end that the direction runs to, given X_t.

        X_t - m_t = H b + e with the end's own normals b and independent e ~ N(0, L L^T), so with the
        singular values L^{-1} H = U diag(s) W^T, Cov(b given X_t) = W diag(1 / (1 + s^2)) W^T.
        """
        P, Q, c, rest = self._ends
        p, q, r, _ = self._process.pinned(0.0, t, self.T)
        if direction == "forward":
            end, of_end, other = Q, p * P * c + q * Q, p * P
        else:
            end, of_end, other = P, p * P + q * Q * c, q * Q
        noise = triangle(other * np.sqrt(rest), np.sqrt(r) * np.eye(self.dim))
        u, s, w = np.linalg.svd(np.linalg.solve(noise, of_end))
        end = end @ w.T
        gain = np.linalg.solve(noise.T, u).T
        return End(end * (s / (1.0 + s * s)) @ gain, end / np.sqrt(1.0 + s * s))

    def _between(self, s: float, t: float, direction: Direction) -> Step:
        """X_t given X_s, or X_s given X_t, s < t: the pinned reference, averaged over the end."""
        if direction == "forward":
            pinned, here = self._process.pinned(s, t, self.T), self._mean(s)
            return averaged(pinned, direction, here, self._prior.mean, self._end(s, direction))
        pinned, here = self._process.pinned(0.0, s, t), self._mean(t)
        return averaged(pinned, direction, here, self._source.mean, self._end(t, direction))

    def _drift(self, x: F64, t: float, direction: Direction) -> F64:
        if self._process.on_grid:
            k = leaving(self._process, t, direction)
            step = self.step(k, direction)
            assert self.schedule is not None
            return np.asarray((step.mean(x) - x) / self.schedule.steps[k])
        centred = x - self._mean(t)
        slope = (self._prior.mean - self._source.mean) / self.T
        # Towards the farther end, the expectation of that end gives the drift without cancellation; the
        # other direction's drift is then 2 grad log p_t less that one.
        farther: Direction = "forward" if t <= self.T / 2 else "backward"
        G, _ = self._end(t, farther)
        if farther == "forward":
            drift = (centred @ G.T - centred) / (self.T - t) + slope
        else:
            drift = (centred @ G.T - centred) / t - slope
        if direction == farther:
            return drift
        factor = self._factor(t)
        score = -np.linalg.solve(factor.T, np.linalg.solve(factor, centred.T)).T
        return np.asarray(2.0 * score - drift)


def leaving(process: ReferenceProcess, t: float, direction: Direction) -> int:
    """Number of the step by which the direction leaves the grid's time t.

    Raises
    ------
    ValueError
        t is the time at which the direction ends.
    """
    k = process.index(t)
    last = 0 if direction == "backward" else len(process._times) - 1
    if k == last:
        raise ValueError(
            f"t: expected a time that the {direction} process leaves, got {t:g}, where it ends"
        )
    return k - 1 if direction == "backward" else k


def process_between(
    source: Gaussian,
    prior: Gaussian,
    schedule: Schedule | float,
    reference: OU | Brownian,
    discrete: bool = False,
) -> ReferenceProcess:
    """The reference process for two Gaussian ends, checked."""
    for name, law in (("source", source), ("prior", prior)):
        if not isinstance(law, Gaussian):
            raise TypeError(f"{name}: expected a dsb.Gaussian, got {type(law).__name__}")
    if source.dim != prior.dim:
        raise ValueError(f"prior: expected dimension {source.dim}, that of source, got {prior.dim}")
    return ReferenceProcess(reference, schedule, source.dim, discrete)
