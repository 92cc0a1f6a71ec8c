"""Gaussians and linear maps in square-root form, which neither cancels nor loses positivity."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._check import F32, F64, afford, array, described
from ..gaussian import Gaussian
from ._problem import draws
from ._reference import COUPLING, PATHS


class Step(NamedTuple):
    """One step of a Gaussian Markov chain: the next state given x is N(A x + c, Q)."""

    A: F64  # (d, d)
    c: F64  # (d,)
    Q: F64  # (d, d)

    def mean(self, x: F64) -> F64:
        """A x + c for every row of x."""
        return x @ self.A.T + self.c

    def draw(self, x: F64, seed: int, number: int) -> F64:
        """The next state of every row of x, with the normals of step `number`."""
        z = _core.normals(seed, PATHS, number, 0, len(x), len(self.c))
        return self.mean(x) + z @ root(self.Q).T


def root(cov: F64) -> F64:
    """F with F F^T = cov, symmetric and positive semidefinite up to rounding."""
    try:
        return np.asarray(np.linalg.cholesky(cov), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def triangle(*parts: F64) -> F64:
    """Lower triangular L with L L^T the sum of F F^T over the parts, never formed: by QR."""
    upper: Any = np.linalg.qr(np.concatenate(parts, axis=1).T, mode="r")
    return np.ascontiguousarray(upper.T)


def symmetric(cov: F64) -> F64:
    """The symmetric part."""
    return (cov + cov.T) / 2.0


def gaussian(mean: F64, cov: F64) -> Gaussian:
    """N(mean, cov), of which eigenvalues that rounding made negative are raised to rounding's size."""
    cov = symmetric(cov)
    try:
        return Gaussian(mean, cov)
    except ValueError:
        values, vectors = np.linalg.eigh(cov)
        rounding = 4.0 * len(mean) * float(np.finfo(np.float64).eps) * float(np.abs(values).max())
        if values[0] < -rounding or not np.isfinite(values).all():
            raise
        return Gaussian(mean, symmetric(vectors * np.maximum(values, rounding) @ vectors.T))


def gaussian_kl(p: Gaussian, q: Gaussian) -> float:
    r"""Kullback-Leibler divergence KL(p | q) = E_p log p/q of two Gaussians, in nats.

    (tr(S_q^{-1} S_p) - d - log det(S_q^{-1} S_p) + (m_p - m_q)^T S_q^{-1} (m_p - m_q)) / 2, computed from
    the eigenvalues of S_q^{-1} (S_p - S_q), so that it is accurate however close the two are.

    Parameters
    ----------
    p, q : Gaussian
        Of one dimension.

    Raises
    ------
    TypeError, ValueError
        Not Gaussians, or of different dimensions.
    """
    for name, law in (("p", p), ("q", q)):
        if not isinstance(law, Gaussian):
            raise TypeError(f"{name}: expected a dsb.Gaussian, got {type(law).__name__}")
    if p.dim != q.dim:
        raise ValueError(f"q: expected dimension {p.dim}, that of p, got {q.dim}")
    factor = np.linalg.cholesky(q.cov)
    shift = np.linalg.solve(factor, p.mean - q.mean)
    half = np.linalg.solve(factor, p.cov - q.cov)
    excess = np.linalg.eigvalsh(symmetric(np.linalg.solve(factor, half.T)))
    # An eigenvalue at -1 is a direction in which p has no spread as far as float64 can tell.
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(excess > -1.0, excess - np.log1p(excess), np.inf)
    return float((spread.sum() + shift @ shift) / 2.0)


class GaussianCoupling:
    r"""A Gaussian joint law of both ends, (X_0, X_N) ~ N(m, F F^T) in R^(2 d).

    Parameters
    ----------
    mean : ndarray, shape (2 d,)
    factor : ndarray, shape (2 d, 2 d)
        F.

    Raises
    ------
    TypeError, ValueError
        Shapes disagree, or numbers are not finite.
    """

    __slots__ = ("_factor", "_mean")
    _mean: F64
    _factor: F64

    def __init__(self, mean: F64, factor: F64) -> None:
        for name, value in (("mean", mean), ("factor", factor)):
            found = array(name, value)
            if found.dtype.kind not in "fiu":
                raise TypeError(f"{name}: expected numbers, got {described(found, value)}")
            kept = np.array(found, dtype=np.float64)
            if not np.isfinite(kept).all():
                bad = kept[~np.isfinite(kept)][0]
                raise ValueError(f"{name}: expected finite numbers, got {bad}")
            kept.flags.writeable = False
            object.__setattr__(self, f"_{name}", kept)
        if self._mean.ndim != 1 or self._mean.size == 0 or self._mean.size % 2:
            raise ValueError(f"mean: expected shape (2 d,), got {self._mean.shape}")
        many = len(self._mean)
        if self._factor.shape != (many, many):
            raise ValueError(f"factor: expected shape ({many}, {many}), got {self._factor.shape}")

    @property
    def dim(self) -> int:
        """d, the dimension of one end."""
        return len(self._mean) // 2

    @property
    def mean(self) -> F64:
        """(E X_0, E X_N), shape (2 d,)."""
        return self._mean

    @property
    def cov(self) -> F64:
        """Shape (2 d, 2 d)."""
        return np.asarray(self._factor @ self._factor.T)

    @property
    def cross(self) -> F64:
        """Cov(X_0, X_N), shape (d, d)."""
        return np.asarray(self._factor[: self.dim] @ self._factor[self.dim :].T)

    @property
    def source(self) -> Gaussian:
        """The law of X_0."""
        first = self._factor[: self.dim]
        return gaussian(self._mean[: self.dim], first @ first.T)

    @property
    def prior(self) -> Gaussian:
        """The law of X_N."""
        second = self._factor[self.dim :]
        return gaussian(self._mean[self.dim :], second @ second.T)

    @property
    def joint(self) -> Gaussian:
        """The law of (X_0, X_N) as one Gaussian in R^(2 d)."""
        return gaussian(self._mean, self.cov)

    def sample(self, n: int, seed: int = 0) -> tuple[F32, F32]:
        """n pairs (X_0, X_N), each of shape (n, d): the same for the same seed."""
        n, seed = draws(n, seed)
        afford("n", n, 2 * (4 + 8 + 4) * self.dim)
        z = _core.normals(seed, COUPLING, 0, 0, n, 2 * self.dim)
        both = (z @ self._factor.T + self._mean).astype(np.float32)
        return both[:, : self.dim].copy(), both[:, self.dim :].copy()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a GaussianCoupling is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type[GaussianCoupling], tuple[F64, F64]]:
        return GaussianCoupling, (self._mean, self._factor)

    def __repr__(self) -> str:
        return f"GaussianCoupling(dim={self.dim}, tr Cov(X_0, X_N)={np.trace(self.cross):.4g})"
