"""Gaussian Markov chains, which run in one direction by linear steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import F32, F64, array, described, integer
from ..gaussian import Gaussian
from ..history import Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._linear import GaussianCoupling, Step, gaussian, root, symmetric
from ._problem import Problem, direction_of
from ._reference import PATHS
from .gaussian import leaving, process_between

ROUNDED = 1e-6  # of the largest entry of Q: what single precision leaves of symmetry and sign


class LinearChain(Problem):
    """A Gaussian Markov chain X_0 .. X_N that runs in one direction by steps N(A_k x + c_k, Q_k).

    Parameters
    ----------
    start : Gaussian
        Where the direction starts: the law of X_0 ("forward") or of X_N ("backward").
    maps : sequence of Step
        Shapes ((d, d), (d,), (d, d)); maps[k] leads from X_k to X_{k+1} or back, in order of time for both
        directions.
    schedule : Schedule
        As many steps.
    direction : {"backward", "forward"}
    reference : OU or Brownian
        What the chain stays close to; it has no part in its law.

    Raises
    ------
    TypeError, ValueError
        Shapes or numbers of steps disagree, numbers are not finite, or a Q is no covariance: symmetric and
        without negative eigenvalues, up to rounding.
    """

    def __init__(
        self,
        start: Gaussian,
        maps: Sequence[Step],
        schedule: Schedule,
        direction: Direction,
        reference: OU | Brownian = Brownian(),  # noqa: B008 (immutable)
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}")
        self._process = process_between(start, start, schedule, reference, discrete=True)
        self._start, self._direction = start, direction_of(direction)
        self._maps = tuple(_map(k, step, start.dim) for k, step in enumerate(maps))
        if len(self._maps) != schedule.N:
            raise ValueError(
                f"maps: expected {schedule.N}, one for each step, got {len(self._maps)}"
            )
        self._moments = moments(start, self._order())

    @property
    def direction(self) -> Direction:
        """The direction in which the steps run."""
        return self._direction

    @property
    def maps(self) -> tuple[Step, ...]:
        """(A, c, Q) of every step, in order of time for both directions."""
        return self._maps

    @property
    def start(self) -> Gaussian:
        """The law at the end where the direction starts."""
        return self._start

    @property
    def end(self) -> Gaussian:
        """The law at the far end, which a half-bridge should bring close to the other end's."""
        return gaussian(*self._moments[-1])

    def marginal(self, t: float) -> Gaussian:
        """The law of X_k, t = t_k."""
        k = self._process.index(self._process.time(t))
        done = k if self._direction == "forward" else len(self._maps) - k
        return gaussian(*self._moments[done]) if done else self._start

    def coupling(self) -> GaussianCoupling:
        """The joint law of (X_0, X_N)."""
        return coupling_of(self._start, self._order(), self._direction)

    def step(self, k: int, direction: Direction = "backward") -> Step:
        """The law of X_{k+1} given X_k ("forward") or of X_k given X_{k+1} ("backward").

        In the chain's own direction one of the maps; in the other their time reversal, by Bayes' rule.
        """
        k = integer("k", k, 0, len(self._maps) - 1)
        if direction_of(direction) == self._direction:
            return self._maps[k]
        done = k if self._direction == "forward" else len(self._maps) - 1 - k
        return reversal(self._maps[k], *self._moments[done], *self._moments[done + 1])

    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F64:
        """(step mean - x) / g_k of the step by which the direction leaves t = t_k, shape (n, d)."""
        x, direction = self._points(x), direction_of(direction)
        assert self.schedule is not None
        result = np.empty_like(x)
        for time, where in self._groups(t, len(x)):
            k = leaving(self._process, time, direction)
            some = x[where]
            result[where] = (self.step(k, direction).mean(some) - some) / self.schedule.steps[k]
        return result

    def sample_paths(self, n: int, schedule: Schedule | None = None, seed: int = 0) -> F32:
        """n paths, in order of time, drawn step by step in the chain's direction."""
        n, times, seed = self._room(n, schedule, seed)
        order = range(len(times)) if self._direction == "forward" else range(len(times))[::-1]
        paths = np.empty((n, len(times), self.dim), dtype=np.float32)
        z = _core.normals(seed, PATHS, 0, 0, n, self.dim)
        x = z @ np.linalg.cholesky(self._start.cov).T + self._start.mean
        paths[:, order[0]] = x
        for number, step in enumerate(self._order(), 1):
            x = step.draw(x, seed, number)
            paths[:, order[number]] = x
        return paths

    def __repr__(self) -> str:
        return f"LinearChain({self._direction}, dim={self.dim}, {self.schedule!r})"

    def _order(self) -> Sequence[Step]:
        return self._maps if self._direction == "forward" else self._maps[::-1]


def moments(start: Gaussian, steps: Sequence[Step]) -> list[tuple[F64, F64]]:
    """Mean and covariance of every state of a chain, in the order in which it runs."""
    mean, cov = start.mean, start.cov
    found = [(mean, cov)]
    for A, c, Q in steps:
        mean, cov = A @ mean + c, symmetric(A @ cov @ A.T + Q)
        found.append((mean, cov))
    return found


def coupling_of(start: Gaussian, steps: Sequence[Step], direction: Direction) -> GaussianCoupling:
    """The joint law of (X_0, X_N) of a chain whose steps are in the order in which it runs."""
    first = np.linalg.cholesky(start.cov)
    mean, last, noise = start.mean, first, np.zeros_like(first)
    for A, c, Q in steps:
        mean, last, noise = A @ mean + c, A @ last, symmetric(A @ noise @ A.T + Q)
    of_start = np.concatenate([first, np.zeros_like(first)], axis=1)
    of_end = np.concatenate([last, root(noise)], axis=1)
    means, parts = [start.mean, mean], [of_start, of_end]
    if direction == "backward":
        means.reverse()
        parts.reverse()
    return GaussianCoupling(np.concatenate(means), np.concatenate(parts))


def reversal(step: Step, mean: F64, cov: F64, next_mean: F64, next_cov: F64) -> Step:
    """The law of the state before a step given the one behind it, by Bayes' rule."""
    G = np.asarray(np.linalg.solve(next_cov, step.A @ cov).T, np.float64)
    rest = (
        np.eye(len(mean)) - G @ step.A
    )  # both terms below are positive, unlike S_k - G S_{k+1} G^T
    posterior = symmetric(rest @ cov @ rest.T + G @ step.Q @ G.T)
    return Step(G, mean - G @ next_mean, posterior)


def _map(k: int, given: Step, d: int) -> Step:
    """The step k of a chain in float64, checked."""
    parts = [array("maps", part) for part in given]
    shapes = tuple(part.shape for part in parts)
    if shapes != ((d, d), (d,), (d, d)):
        raise ValueError(
            f"maps: expected shapes ({d}, {d}), ({d},) and ({d}, {d}), got {shapes} at step {k}"
        )
    for name, part in zip("AcQ", parts, strict=True):
        if part.dtype.kind not in "fiu":
            raise TypeError(
                f"maps: expected numbers, got {described(part, part)} for {name} at step {k}"
            )
        if not np.isfinite(part).all():
            bad = part[~np.isfinite(part)][0]
            raise ValueError(f"maps: expected finite numbers, got {bad} in {name} at step {k}")
    step = Step(*(np.asarray(part, np.float64) for part in parts))
    size = float(np.abs(step.Q).max())
    if not size:
        return step
    Q = step.Q / size  # lest differences overflow
    gap = float(np.abs(Q - Q.T).max())
    if gap > ROUNDED:
        raise ValueError(
            f"maps: expected a symmetric Q, got |Q - Q^T| up to {gap * size:.3g} at step {k}"
        )
    try:
        np.linalg.cholesky(symmetric(Q))  # takes less time than the eigenvalues
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(symmetric(Q))[0])
        if least < -ROUNDED:
            raise ValueError(
                "maps: expected a positive semidefinite Q, got one with eigenvalue "
                f"{least * size:.3g} at step {k}"
            ) from None
    return step
