"""Gaussians as ends of a bridge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._check import (
    F32,
    F64,
    FINITE_SINGLE,
    MAX_ROWS,
    Rows,
    afford,
    array,
    blocks,
    described,
    integer,
    rows,
    vector,
)
from .reference import short

LEAST_STD, MOST_STD = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
USER_STREAM = 9  # csrc/base/philox.h, DSB_STREAM_USER: never met by training or sampling


class Gaussian:
    r"""N(m, S), one end of a bridge.

    Parameters
    ----------
    mean : float or array_like, shape (d,)
        m, in units of the data. A number is taken for every coordinate; d then comes from `cov`.
    cov : float or array_like, shape (d,) or (d, d)
        S, in units of squared data: a number v means v I, a vector the diagonal.

    Raises
    ------
    TypeError, ValueError
        Entries are not finite, shapes do not fit, `cov` is not symmetric or not positive definite.

    Examples
    --------
    >>> Gaussian([0.0, 0.0], 4.0)
    Gaussian(mean=[0, 0], cov=4 I)
    """

    __slots__ = ("_cov", "_mean")
    _mean: F64
    _cov: F64  # rank 0, 1 or 2, as given

    def __init__(self, mean: ArrayLike, cov: ArrayLike) -> None:
        centre = vector("mean", mean)
        given = array("cov", cov)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"cov: expected numbers, got {described(given, cov)}")
        spread = np.array(given, dtype=np.float64)
        dim = spread.shape[0] if spread.ndim else len(centre)
        if len(centre) == 1:
            centre = np.full(dim, centre[0])
        if spread.ndim > 2 or spread.shape != (len(centre),) * spread.ndim:
            d = len(centre)
            raise ValueError(
                f"cov: expected a number or shape ({d},) or ({d}, {d}) to go with a mean of {d} "
                f"entries, got shape {spread.shape}"
            )
        check_covariance("cov", spread)
        centre.flags.writeable = spread.flags.writeable = False
        object.__setattr__(self, "_mean", centre)
        object.__setattr__(self, "_cov", spread)

    @classmethod
    def of(cls, data: ArrayLike) -> Gaussian:
        """N(m, v I) with the data's mean and its variance, averaged over the coordinates.

        Parameters
        ----------
        data : array_like, shape (n, d) or (n, c, h, w)
            At least two rows, or images, each taken as a point in R^(c h w); uint8 is read on the
            scale -1 .. 1, as `Bridge` reads it.

        Raises
        ------
        ValueError
            All rows are the same: the variance is zero.
        """
        found = rows("data", data)
        mean, var = moments(found, *scaling(found.dtype))
        if not var > 0:
            raise ValueError(f"data: expected rows that differ, got {len(found)} equal ones")
        return cls(mean, var)

    @property
    def dim(self) -> int:
        """Dimension d."""
        return len(self._mean)

    @property
    def mean(self) -> F64:
        """m, shape (d,), read-only."""
        return self._mean

    @property
    def cov(self) -> F64:
        """S, shape (d, d)."""
        if self._cov.ndim == 2:
            return self._cov
        return np.diag(np.broadcast_to(self._cov, self.dim))

    @property
    def var(self) -> float:
        """Variance averaged over the coordinates, tr S / d."""
        if self._cov.ndim == 2:
            return float(np.trace(self._cov)) / self.dim
        return float(np.mean(self._cov))

    @property
    def isotropic(self) -> bool:
        """Whether S was given as one number, S = v I."""
        return self._cov.ndim == 0

    @property
    def factor(self) -> F32:
        """Lower triangular L with L L^T = S, shape (d, d)."""
        if self._cov.ndim == 2:
            return np.ascontiguousarray(np.linalg.cholesky(self._cov), dtype=np.float32)
        return np.diag(np.broadcast_to(np.sqrt(self._cov), self.dim)).astype(np.float32)

    def sample(self, n: int, seed: int = 0) -> F32:
        """n draws, shape (n, d): the same for the same seed, on any machine up to rounding."""
        n, seed = integer("n", n, 1, MAX_ROWS), integer("seed", seed, 0)
        afford("n", n, (4 + 8) * self.dim)
        z = _core.normals(seed, USER_STREAM, 0, 0, n, self.dim)
        spread = z @ self.factor.T if self._cov.ndim == 2 else z * np.sqrt(self._cov)
        return (spread + self._mean).astype(np.float32)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Gaussian is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type[Gaussian], tuple[F64, F64]]:
        return Gaussian, (self._mean, self._cov)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gaussian):
            return NotImplemented
        return np.array_equal(self._mean, other._mean) and np.array_equal(self.cov, other.cov)

    def __hash__(self) -> int:
        return hash(self._mean.tobytes())

    def __repr__(self) -> str:
        if self._cov.ndim == 0:
            spread = f"{float(self._cov):.4g} I"
        elif self._cov.ndim == 1:
            spread = f"diag({short(self._cov)})"
        else:
            spread = f"a {self.dim} x {self.dim} matrix of trace {np.trace(self._cov):.4g}"
        return f"Gaussian(mean={short(self._mean)}, cov={spread})"


def main_variance(data: Rows, scale: float) -> float:
    r"""tr S^2 / tr S: the variance along principal axes, each weighted by its share of the whole.

    E (x . y)^2 = tr S^2 for independent centred x and y, so pairs of rows give it without the matrix.
    """
    some = data[:: -(-len(data) // 1024)].astype(np.float64)
    some -= some.mean(axis=0)
    gram = some @ some.T
    squares = np.diag(gram).copy()
    np.fill_diagonal(gram, 0.0)
    pairs = len(some) * (len(some) - 1)
    total = float(squares.mean())
    return float(np.square(gram).sum()) / pairs / total * scale**2 if total > 0 else 0.0


def check_covariance(name: str, spread: F64) -> None:
    """ValueError where `spread` is no number, vector or matrix of variances, none of which is 0."""
    if not np.isfinite(spread).all():
        raise ValueError(f"{name}: expected finite numbers, got {spread[~np.isfinite(spread)][0]}")
    if spread.ndim < 2:
        if not (spread > 0).all():
            raise ValueError(f"{name}: expected positive variances, got {spread.min()}")
        least, most = float(spread.min()), float(spread.max())
        if not (least**0.5 >= LEAST_STD and most**0.5 <= MOST_STD):
            bad = least if least**0.5 < LEAST_STD else most
            raise ValueError(
                f"{name}: expected standard deviations {FINITE_SINGLE[8:]}, got {bad:g}"
            )
        return
    gap = float(np.abs(spread - spread.T).max())
    if gap > 1e-6 * float(np.abs(spread).max()):
        raise ValueError(
            f"{name}: expected a symmetric matrix, got one with |S - S^T| up to {gap:.3g}"
        )
    try:
        np.linalg.cholesky(spread)
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(spread)[0])
        raise ValueError(
            f"{name}: expected a positive definite matrix, got one with eigenvalue {least:.3g}"
        ) from None


def scaling(dtype: object) -> tuple[float, float]:
    """(scale, shift) with which the core reads rows: bytes 0 .. 255 become -1 .. 1."""
    return (2.0 / 255.0, -1.0) if str(dtype) == "uint8" else (1.0, 0.0)


def floats(found: Rows) -> F32:
    """Rows as numbers in single precision, bytes on the scale -1 .. 1."""
    values = np.asarray(found, np.float32)
    if found.dtype == np.uint8:
        scale, shift = scaling(found.dtype)
        values = values * np.float32(scale) + np.float32(shift)
    return values


def exact_floats(name: str, found: Rows, given: object) -> F32 | F64:
    """The same of the rows that were found in `given`, but double precision stays as it was given."""
    own = array(name, given)
    return own.reshape(found.shape) if own.dtype == np.float64 else floats(found)


def moments(data: Rows, scale: float, shift: float) -> tuple[F64, float]:
    """Mean and variance (averaged over coordinates) of value * scale + shift, in float64."""
    n = len(data)
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(data)) / n
    square = sum(float(np.square(block - mean).sum()) for _, block in blocks(data))
    return np.asarray(mean * scale + shift), square / data.size * scale**2
