"""Steps of the discretised time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._check import F64, array, described, flag, integer, real

MAX_STEPS = 100_000
LEAST, MOST = 1e-30, 1e30  # steps that float32 can still add, multiply and divide by


class Schedule:
    r"""Step sizes g_0 .. g_{N-1} > 0 of a chain X_0 .. X_N; X_k lives at time t_k = g_0 + .. + g_{k-1}.

    One step of the reference adds noise of variance 2 g_k per coordinate, so a chain that starts in a
    point has spread to a variance of about 2 T, T = t_N, at its end (exactly, for Brownian motion).

    Parameters
    ----------
    steps : array_like, shape (N,)
        The g_k, in units of squared data: twice a step is a variance. N is at least 1,
        each step between 1e-30 and 1e30.

    Raises
    ------
    TypeError, ValueError
        `steps` is not a vector of finite positive numbers.

    Notes
    -----
    Algorithm 1 and section 3.3 of De Bortoli et al., arXiv:2106.01357, where g_k is gamma_{k+1}.
    Immutable; equal when the steps are.
    """

    __slots__ = ("_steps",)
    _steps: F64

    def __init__(self, steps: ArrayLike) -> None:
        found = array("steps", steps)
        if found.dtype.kind not in "fiu":
            raise TypeError(f"steps: expected numbers, got {described(found, steps)}")
        if found.ndim != 1 or not 1 <= found.size <= MAX_STEPS:
            raise ValueError(
                f"steps: expected shape (N,) with N from 1 to {MAX_STEPS}, got {found.shape}"
            )
        values = np.array(found, dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(
                f"steps: expected finite positive numbers, got {values[bad[0]]} at index {bad[0]}"
            )
        bad = np.flatnonzero((values < LEAST) | (values > MOST))
        if bad.size:
            raise ValueError(
                f"steps: expected numbers in [{LEAST:g}, {MOST:g}], got {values[bad[0]]} "
                f"at index {bad[0]}"
            )
        values.flags.writeable = False
        object.__setattr__(self, "_steps", values)

    @classmethod
    def constant(cls, N: int, g: float) -> Schedule:
        """N steps of size g."""
        return cls(np.full(_count(N), real("g", g, above=0)))

    @classmethod
    def linear(cls, N: int, lo: float, hi: float, symmetric: bool = True) -> Schedule:
        """Steps that grow evenly from lo to hi; when symmetric, up to the middle and back.

        The symmetric form is the released code's: linspace(lo, hi, N // 2), then the same mirrored.
        Where N is odd, the middle step is hi, once.
        """
        lo, hi = real("lo", lo, above=0), real("hi", hi, above=0)
        return cls(_mirrored(np.linspace, _count(N), lo, hi, flag("symmetric", symmetric)))

    @classmethod
    def geometric(cls, N: int, lo: float, hi: float, symmetric: bool = True) -> Schedule:
        """Steps that grow by a constant factor from lo to hi; symmetric as in `linear`."""
        lo, hi = real("lo", lo, above=0), real("hi", hi, above=0)
        return cls(_mirrored(np.geomspace, _count(N), lo, hi, flag("symmetric", symmetric)))

    @property
    def steps(self) -> F64:
        """g_0 .. g_{N-1}, read-only."""
        return self._steps

    @property
    def times(self) -> F64:
        """t_0 = 0 .. t_N = T, shape (N + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self._steps)])

    @property
    def N(self) -> int:
        """Number of steps."""
        return len(self._steps)

    @property
    def T(self) -> float:
        """Final time, the sum of the steps."""
        return float(self.times[-1])

    @property
    def symmetric(self) -> bool:
        """Whether the steps read the same from both ends."""
        return bool(np.allclose(self._steps, self._steps[::-1], rtol=1e-9, atol=0.0))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Schedule is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type[Schedule], tuple[F64]]:
        return Schedule, (self._steps,)

    def __len__(self) -> int:
        return self.N

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return np.array_equal(self._steps, other._steps)

    def __hash__(self) -> int:
        return hash(self._steps.tobytes())

    def __repr__(self) -> str:
        g = self._steps
        if (g == g[0]).all():
            return f"Schedule.constant({self.N}, {g[0]:.6g})"
        if self.N <= 8:
            return f"Schedule([{', '.join(f'{step:.6g}' for step in g)}])"
        shape = ", symmetric" if self.symmetric else ""
        return f"Schedule(N={self.N}, T={self.T:.6g}, g from {g.min():.6g} to {g.max():.6g}{shape})"


def _count(N: int) -> int:
    return integer("N", N, 1, MAX_STEPS)


def _mirrored(space: Any, n: int, lo: float, hi: float, symmetric: bool) -> F64:
    if not symmetric:
        steps: F64 = space(lo, hi, n)
        return steps
    # linspace(lo, hi, 1) is lo; the middle of an odd number of steps has to be hi.
    rise: F64 = space(lo, hi, n // 2 + n % 2) if n > 1 else np.array([hi])
    return np.concatenate([rise, rise[::-1][n % 2 :]])
