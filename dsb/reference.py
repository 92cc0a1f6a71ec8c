"""The process that the bridge stays close to, apart from prior and schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._check import F32, F64, real, vector


class OU:
    r"""Ornstein-Uhlenbeck process dX = (m - X)/v dt + sqrt(2) dB, stationary at N(m, v I).

    In steps: X_{k+1} = X_k + g_k (m - X_k)/v + sqrt(2 g_k) Z.

    Parameters
    ----------
    mean : float or array_like, shape (d,)
        m, in units of the data.
    var : float
        v > 0, in units of squared data: the same in every direction.

    Raises
    ------
    TypeError, ValueError
        `mean` or `var` is not finite, or `var` is not positive.

    Notes
    -----
    The reference of section 3.3 of arXiv:2106.01357 (with alpha = 1/v). With v much larger than the
    final time T it is nearly `Brownian()`.
    """

    __slots__ = ("_mean", "_var")
    _mean: F64
    _var: float

    def __init__(self, mean: ArrayLike, var: float) -> None:
        centre = vector("mean", mean)
        centre.flags.writeable = False
        object.__setattr__(self, "_mean", centre)
        object.__setattr__(self, "_var", real("var", var, above=0))

    @property
    def mean(self) -> F64:
        """m, one entry where it was given as a number, read-only."""
        return self._mean

    @property
    def var(self) -> float:
        """v."""
        return self._var

    @property
    def precision(self) -> float:
        """1/v, the rate of return to the mean per unit of time."""
        return 1.0 / self._var

    def centre(self, dim: int) -> F32:
        """m in dimension `dim`, as the core wants it."""
        if len(self._mean) not in (1, dim):
            raise ValueError(
                f"reference: expected a mean of 1 or {dim} entries, got {len(self._mean)}"
            )
        return np.full(dim, self._mean, dtype=np.float32)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an OU is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type[OU], tuple[F64, float]]:
        return OU, (self._mean, self._var)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OU):
            return NotImplemented
        return self._var == other._var and np.array_equal(self._mean, other._mean)

    def __hash__(self) -> int:
        return hash((self._mean.tobytes(), self._var))

    def __repr__(self) -> str:
        return f"OU(mean={short(self._mean)}, var={self._var:.6g})"


class Brownian:
    r"""Brownian motion dX = sqrt(2) dB: X_{k+1} = X_k + sqrt(2 g_k) Z.

    The static problem is then entropic optimal transport with cost |x - y|^2 / 2 and regularisation
    2 T (section 2.2 of arXiv:2106.01357); POT writes it M = |x - y|^2, reg = 4 T.
    """

    @property
    def precision(self) -> float:
        """0: there is no return to a mean."""
        return 0.0

    def centre(self, dim: int) -> F32:
        """Zeros: the drift has no centre."""
        return np.zeros(dim, dtype=np.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Brownian)

    def __hash__(self) -> int:
        return hash(Brownian)

    def __repr__(self) -> str:
        return "Brownian()"


def short(values: F64, most: int = 4) -> str:
    """A vector in a line of a repr."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    shown = ", ".join(f"{value:.4g}" for value in values[:most])
    return f"[{shown}]" if len(values) <= most else f"[{shown}, ... {len(values)} in all]"
