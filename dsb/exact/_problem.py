"""What every problem with a known answer can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from .._check import F32, F64, I64, MAX_ROWS, afford, array, choice, described, integer
from ..history import DIRECTIONS, Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._reference import ReferenceProcess


@runtime_checkable
class Law(Protocol):
    """A distribution on R^d. `dsb.Gaussian` is one."""

    @property
    def dim(self) -> int:
        """d."""

    @property
    def mean(self) -> F64:
        """Shape (d,)."""

    @property
    def cov(self) -> F64:
        """Shape (d, d)."""

    def sample(self, n: int, seed: int = 0) -> F32:
        """n independent draws, shape (n, d): the same for the same seed."""


@runtime_checkable
class Coupling(Protocol):
    """The joint law of both ends, (X_0, X_N), each in R^d."""

    @property
    def dim(self) -> int:
        """d, the dimension of one end."""

    @property
    def mean(self) -> F64:
        """Shape (2 d,), the source's end first."""

    @property
    def cov(self) -> F64:
        """Shape (2 d, 2 d)."""

    @property
    def cross(self) -> F64:
        """Cov(X_0, X_N), shape (d, d): the upper right block of `cov`."""

    def sample(self, n: int, seed: int = 0) -> tuple[F32, F32]:
        """n independent pairs (X_0, X_N), each of shape (n, d)."""


class Problem(ABC):
    r"""A process on [0, T] between two ends, of which everything is known.

    The reference adds noise of variance 2 (t - s) between times s and t (2 g_k per step), so T is half
    of the variance that Brownian motion would reach, and eps = 2 T is the regularisation of the entropic
    transport problem with cost \|x - y\|^2 / 2.

    Time counts from the source, 0, to the prior, T, in both directions. Problems are immutable, and
    draws are the same for the same seed.
    """

    _process: ReferenceProcess

    @property
    def dim(self) -> int:
        """Dimension d of a point."""
        return self._process.dim

    @property
    def T(self) -> float:
        """Final time."""
        return self._process.T

    @property
    def reference(self) -> OU | Brownian:
        """The process that the bridge stays close to."""
        return self._process.reference

    @property
    def schedule(self) -> Schedule | None:
        """The steps; None where the problem was made with T alone."""
        return self._process.schedule

    @abstractmethod
    def marginal(self, t: float) -> Law:
        """The law of X_t.

        Parameters
        ----------
        t : float
            In [0, T]; a time of the grid where the reference is a discretised one.
        """

    @abstractmethod
    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F64:
        """Drift of a direction's own process per unit of time, as `Bridge.drift` gives it.

        Parameters
        ----------
        x : array_like, shape (n, d)
        t : float or array_like, shape (n,)
            Times in [0, T], counted from the source in both directions.
        direction : {"backward", "forward"}

        Returns
        -------
        ndarray, shape (n, d), float64
            In units of data per unit of t. With a discretised reference (step mean - x) / g_k of the step
            by which the direction leaves t, which then has to be a time of the grid.
        """

    def velocity(self, x: ArrayLike, t: float | ArrayLike) -> F64:
        """Probability flow, (forward drift - backward drift) / 2, shape (n, d), float64."""
        return (self.drift(x, t, "forward") - self.drift(x, t, "backward")) / 2.0

    @abstractmethod
    def coupling(self) -> Coupling:
        """The joint law of (X_0, X_N)."""

    @abstractmethod
    def sample_paths(self, n: int, schedule: Schedule | None = None, seed: int = 0) -> F32:
        """n independent paths at the times of `schedule` (the problem's own), drawn exactly.

        Returns
        -------
        ndarray, shape (n, N + 1, d), float32
            In order of time, t_0 .. t_N.
        """

    # ---- what the problems share ----

    def _points(self, x: ArrayLike) -> F64:
        return points("x", x, self.dim)

    def _groups(self, t: float | ArrayLike, n: int) -> Iterator[tuple[float, slice | I64]]:
        """Each different time of `t`, checked, and the rows that have it."""
        times = array("t", t)
        if times.dtype.kind not in "fiu":
            raise TypeError(f"t: expected numbers, got {described(times, t)}")
        if times.ndim > 1 or (times.ndim == 1 and len(times) != n):
            raise ValueError(
                f"t: expected a number or shape ({n},), one for each row of x, got shape {times.shape}"
            )
        if times.ndim == 0:
            yield self._process.time(times[()]), slice(None)
            return
        different, where = np.unique(times, return_inverse=True)
        for i, value in enumerate(different):
            yield self._process.time(value), np.flatnonzero(where == i)

    def _room(self, n: object, schedule: Schedule | None, seed: object) -> tuple[int, F64, int]:
        """(n, times, seed) of `sample_paths`, checked, and memory for them."""
        times = self._process.times_of(schedule)
        many, seed = draws(n, seed)
        afford("n", many, 4 * self.dim * len(times) + 16 * self.dim)
        return many, times, seed

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ or not name.startswith("_"):
            raise AttributeError(f"a {type(self).__name__} is immutable: {name} cannot be set")
        object.__setattr__(self, name, value)


def draws(n: object, seed: object) -> tuple[int, int]:
    """A number of draws and a seed, checked."""
    return integer("n", n, 1, MAX_ROWS), integer("seed", seed, 0)


def direction_of(value: object) -> Direction:
    """A direction, checked."""
    return choice("direction", value, DIRECTIONS)


def points(name: str, x: object, dim: int) -> F64:
    """Finite points as float64, [n, dim]; unlike the data of a `Bridge` they keep double precision."""
    found = array(name, x)
    if found.dtype.kind != "f":
        raise TypeError(f"{name}: expected floats, got {described(found, x)}")
    if found.ndim != 2 or found.shape[1] != dim:
        raise ValueError(f"{name}: expected shape (n, {dim}), got {found.shape}")
    if len(found) == 0:
        raise ValueError(f"{name}: expected at least one row, got shape {found.shape}")
    result = found.astype(np.float64)
    if not np.isfinite(result).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise ValueError(
            f"{name}: expected finite numbers, got {result[row, column]} in row {row}, column {column}"
        )
    return result
