"""Mixtures of Gaussians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import F32, F64, I64, afford, array, blocks, described, shown
from ..gaussian import Gaussian
from ._problem import draws, points
from ._reference import MIXTURE

SUM = 1e-6  # by how much weights may miss one


class Mixture:
    r"""sum_k w_k N(mu_k, S_k), with its density.

    Parameters
    ----------
    weights : array_like, shape (K,)
        w_k >= 0 with sum 1 (to 1e-6).
    means : array_like, shape (K, d)
    covs : float or array_like, shape (K,), (K, d) or (K, d, d)
        S_k, in units of squared data: a number v means v I for all, K numbers v_k I, K rows the
        diagonals. (d, d) for all is not among them: where K = d it could not be told from diagonals.

    Raises
    ------
    TypeError, ValueError
        Weights are negative or do not sum to one, shapes disagree, or a covariance is not symmetric and
        positive definite.

    Examples
    --------
    >>> Mixture([0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0]], 0.1)
    Mixture(2 components in 2 dimensions)
    """

    __slots__ = ("_basis", "_means", "_values", "_weights")
    _weights: F64  # (K,)
    _means: F64  # (K, d)
    _values: F64  # (K, d): variances along the axes of the basis
    _basis: F64 | None  # (K, d, d), axes in columns; None: those of the coordinates

    def __init__(self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike) -> None:
        w = probabilities("weights", weights)
        mu = _numbers("means", means)
        if mu.ndim != 2 or len(mu) != len(w) or mu.shape[1] == 0:
            raise ValueError(
                f"means: expected shape ({len(w)}, d), a row for each weight, got {mu.shape}"
            )
        values, basis = _axes(covs, *mu.shape)
        self._set(w, mu, values, basis)

    def _set(self, weights: F64, means: F64, values: F64, basis: F64 | None) -> None:
        for name, value in zip(self.__slots__, (basis, means, values, weights), strict=True):
            if value is not None:
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    @property
    def dim(self) -> int:
        """Dimension d."""
        return int(self._means.shape[1])

    @property
    def weights(self) -> F64:
        """w, shape (K,), read-only."""
        return self._weights

    @property
    def means(self) -> F64:
        """mu_k, shape (K, d), read-only."""
        return self._means

    @property
    def covs(self) -> F64:
        """S_k, shape (K, d, d)."""
        return self.spectral(self._values)

    @property
    def mean(self) -> F64:
        """Mean of the mixture, shape (d,)."""
        return np.asarray(self._weights @ self._means)

    @property
    def cov(self) -> F64:
        """Covariance of the mixture, shape (d, d)."""
        centred = self._means - self.mean
        spread = (self._weights[:, None] * centred).T @ centred
        return np.asarray(np.einsum("k,kij->ij", self._weights, self.covs) + spread)

    def sample(self, n: int, seed: int = 0) -> F32:
        """n draws, shape (n, d): the same for the same seed."""
        n, seed = draws(n, seed)
        afford("n", n, (4 + 4 + 16) * self.dim)
        uniform = _core.uniforms(seed, MIXTURE, 0, 0, n, 1)[:, 0]
        edges = np.cumsum(self._weights)
        chosen = np.searchsorted(edges / edges[-1], uniform)
        z = _core.normals(seed, MIXTURE, 1, 0, n, self.dim)
        result = np.empty((n, self.dim), dtype=np.float32)
        for k, rows in groups(chosen):
            result[rows] = self._means[k] + self.from_axes(k, z[rows] * np.sqrt(self._values[k]))
        return result

    def log_density(self, x: ArrayLike) -> F64:
        """log of the density at every row of x, shape (n,)."""
        x = points("x", x, self.dim)
        return np.concatenate([_fold(self.log_terms(part))[0] for _, part in blocks(x)])

    def responsibilities(self, x: ArrayLike) -> F64:
        """Probability of each component given the point, shape (n, K); rows sum to one."""
        x = points("x", x, self.dim)
        return np.concatenate([_fold(self.log_terms(part))[1] for _, part in blocks(x)])

    def score(self, x: ArrayLike) -> F64:
        """Gradient of the log-density at every row of x, shape (n, d)."""
        x = points("x", x, self.dim)
        result = np.empty_like(x)
        for first, part in blocks(x):
            result[first : first + len(part)] = self.score_of(part, _fold(self.log_terms(part))[1])
        return result

    def convolved(self, variance: float) -> Mixture:
        """The law of X + sqrt(variance) Z: every S_k grows by variance I."""
        result = object.__new__(Mixture)
        result._set(self._weights, self._means, self._values + variance, self._basis)
        return result

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Mixture is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type[Mixture], tuple[F64, F64, F64]]:
        return Mixture, (
            self._weights,
            self._means,
            self._values if self._basis is None else self.covs,
        )

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"Mixture({len(self)} components in {self.dim} dimensions)"

    # ---- for the problems of this package ----

    def spectral(self, values: F64) -> F64:
        """Matrices with the axes of the S_k and the given values along them, shape (K, d, d)."""
        if self._basis is None:
            return np.asarray(values[:, :, None] * np.eye(self.dim))
        return np.asarray((self._basis * values[:, None]) @ self._basis.transpose(0, 2, 1))

    def to_axes(self, k: int, x: F64) -> F64:
        """Rows in the coordinates of the axes of S_k."""
        return x if self._basis is None else x @ self._basis[k]

    def from_axes(self, k: int, y: F64) -> F64:
        """Back again."""
        return y if self._basis is None else y @ self._basis[k].T

    @property
    def isotropic(self) -> F64 | None:
        """Variances (K,) where every S_k is a multiple of I; None where one is not."""
        values = self._values
        return values[:, 0] if self._basis is None and (values == values[:, :1]).all() else None

    def log_terms(self, x: F64) -> F64:
        """log (w_k N(x; mu_k, S_k)), shape (n, K)."""
        squares = np.empty((len(x), len(self)))
        variances = self.isotropic
        if variances is not None:  # products of matrices do then
            means = self._means - self._means.mean(axis=0)  # lest large offsets cancel
            x = x - self._means.mean(axis=0)
            squares = np.square(x).sum(axis=1, keepdims=True) - 2.0 * x @ means.T
            squares = np.maximum(squares + np.square(means).sum(axis=1), 0.0) / variances
        else:
            for k, values in enumerate(self._values):
                y = self.to_axes(k, x - self._means[k])
                squares[:, k] = np.einsum("ij,ij,j->i", y, y, 1.0 / values)
        volumes = np.log(2.0 * np.pi * self._values).sum(axis=1)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self._weights) - 0.5 * (squares + volumes))

    def component_score(self, k: int, x: F64) -> F64:
        """Gradient of log N(x; mu_k, S_k)."""
        return -self.from_axes(k, self.to_axes(k, x - self._means[k]) / self._values[k])

    def score_of(self, x: F64, given: F64) -> F64:
        """Gradient of the log-density where the responsibilities are known already."""
        variances = self.isotropic
        if variances is not None:
            pull = given / variances
            return np.asarray(pull @ self._means - pull.sum(axis=1, keepdims=True) * x)
        result = np.zeros_like(x)
        for k in range(len(self)):
            result += given[:, k, None] * self.component_score(k, x)
        return result


def as_mixture(law: object) -> Mixture | None:
    """A Gaussian or a mixture as a mixture; None for any other law."""
    if isinstance(law, Gaussian):
        cov = np.diag(law.cov) if law._cov.ndim < 2 else law.cov
        return Mixture([1.0], law.mean[None], cov[None])
    return law if isinstance(law, Mixture) else None


def groups(chosen: I64) -> Iterator[tuple[int, I64]]:
    """Each component that was chosen, and the rows that chose it."""
    for k in np.unique(chosen):
        yield int(k), np.flatnonzero(chosen == k)


def probabilities(name: str, value: object) -> F64:
    """Weights that are not negative and sum to one, normalised.

    Raises
    ------
    TypeError, ValueError
        They are not.
    """
    found = _numbers(name, value)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"{name}: expected shape (K,), got {found.shape}")
    if (found < 0).any():
        k = int(np.argmin(found))
        raise ValueError(f"{name}: expected numbers of at least 0, got {found[k]:g} at index {k}")
    total = float(found.sum())
    if not abs(total - 1.0) <= SUM:
        raise ValueError(f"{name}: expected numbers with sum 1, got the sum {total:.9g}")
    return np.asarray(found / total)


def _numbers(name: str, value: object) -> F64:
    """A finite float64 copy."""
    found = array(name, value)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, got {described(found, value)}")
    result = np.array(found, dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError(f"{name}: expected finite numbers, got {result[~np.isfinite(result)][0]}")
    return result


def _axes(covs: object, K: int, d: int) -> tuple[F64, F64 | None]:
    """Variances along axes [K, d], and the axes [K, d, d] where they are not the coordinates'."""
    found = _numbers("covs", covs)
    if found.shape not in ((), (K,), (K, d), (K, d, d)):
        raise ValueError(
            f"covs: expected a number or shape ({K},), ({K}, {d}) or ({K}, {d}, {d}), "
            f"got {found.shape if found.ndim else shown(covs)}"
        )
    if found.ndim < 3:
        if not (found > 0).all():
            raise ValueError(f"covs: expected positive variances, got {found.min():g}")
        wide = found[:, None] if found.ndim == 1 else found
        return np.array(np.broadcast_to(wide, (K, d))), None
    gap = np.abs(found - found.transpose(0, 2, 1)).max(axis=(1, 2))
    for k, cov in enumerate(found):
        if gap[k] > 1e-6 * np.abs(cov).max():
            raise ValueError(
                f"covs: expected symmetric matrices, got |S - S^T| up to {gap[k]:.3g} at index {k}"
            )
    values, basis = np.linalg.eigh((found + found.transpose(0, 2, 1)) / 2.0)
    bad = np.flatnonzero(values[:, 0] <= 0)
    if bad.size:
        raise ValueError(
            "covs: expected positive definite matrices, got one with eigenvalue "
            f"{values[bad[0], 0]:.3g} at index {bad[0]}"
        )
    return values, basis


def _fold(terms: F64) -> tuple[F64, F64]:
    """log sum exp of the rows, and their softmax."""
    top = terms.max(axis=1, keepdims=True)
    terms = np.exp(terms - top)
    total = terms.sum(axis=1, keepdims=True)
    return (np.log(total) + top)[:, 0], terms / total
