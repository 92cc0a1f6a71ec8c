"""Measures that look at means and covariances only: Gaussian KL and BW2-UVP."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._build import mixed
from .._check import F64
from ..gaussian import check_covariance
from ._kind import kind
from ._samples import DRAWS, Points, Source, checked, draw, is_law, moments

Law = Any  # with .mean (d,) and .cov (d, d)


def law_moments(name: str, law: Law) -> tuple[F64, F64]:
    """Mean and covariance of a law, checked."""
    if not is_law(law):
        raise TypeError(
            f"{name}: expected a law with a mean and a covariance, such as dsb.Gaussian, "
            f"got {type(law).__name__}"
        )
    mean, cov = np.asarray(law.mean, np.float64), np.asarray(law.cov, np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{name}: expected shapes (d,) and (d, d), got {mean.shape} and {cov.shape}"
        )
    if not np.isfinite(mean).all():
        raise ValueError(f"{name}.mean: expected finite numbers, got {mean[~np.isfinite(mean)][0]}")
    check_covariance(f"{name}.cov", cov)
    return mean, cov


def sample_moments(
    name: str, x: Source, n: int, seed: int, dim: int, least: int
) -> tuple[F64, F64]:
    """Mean and covariance of samples (the latter divided by n - 1), of a law its own."""
    if is_law(x):
        mean, cov = law_moments(name, x)
        if len(mean) != dim:
            raise ValueError(f"{name}: expected dimension {dim}, got {len(mean)}")
        return mean, cov
    return moments(draw(name, x, *checked(n, seed), least=least, dim=dim))


def kl_of_variances(name: str, x: Points, mean: F64, var: F64) -> float:
    """sum_i KL(N(mean of x_i, variance of x_i) | N(mean_i, var_i))."""
    found = x.var(axis=0, dtype=np.float64, ddof=1)
    flat = np.flatnonzero(~(found > 0))
    if flat.size:
        raise ValueError(
            f"{name}: expected samples that differ in every column, column {flat[0]} is constant"
        )
    return diagonal_kl(x.mean(axis=0, dtype=np.float64), found, mean, var)


def diagonal_kl(m: F64, v: F64, mean: F64, var: F64) -> float:
    """sum_i KL(N(m_i, v_i) | N(mean_i, var_i))."""
    ratio = v / var
    return float(np.sum(ratio - 1.0 - np.log(ratio) + (m - mean) ** 2 / var) / 2.0)


@kind("law")
def gaussian_kl_per_coordinate(x: Source, law: Law, *, n: int = DRAWS, seed: int = 0) -> float:
    r"""Sum over coordinates of KL(N(m_i, v_i) | N(mu_i, s_i)), m_i and v_i the moments of coordinate i of x.

    Each term is (v/s - 1 - log(v/s) + (m - mu)^2 / s) / 2. It sees the marginals of the coordinates only:
    correlations have no part in it (`gaussian_kl_full` has them).

    Parameters
    ----------
    x : array_like, shape (n, d), or anything to draw samples from
        As in `wasserstein`; at least 2 samples. Variances are divided by n - 1.
    law : Gaussian, or anything with `mean` (d,) and `cov` (d, d)
        mu and s, the diagonal of its covariance.
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        In nats. Samples of `law` itself, if that is Gaussian, give d / n on average.

    Notes
    -----
    The measure of the Gaussian experiment of DSBM, arXiv:2303.16852.
    """
    mean, cov = law_moments("law", law)
    found = draw("x", x, *checked(n, seed), least=2, dim=len(mean))
    return kl_of_variances("x", found, mean, np.diag(cov))


@kind("law")
def gaussian_kl_full(x: Source, law: Law, *, n: int = DRAWS, seed: int = 0) -> float:
    r"""KL(N(m, S) | N(mu, C)), m and S the mean and covariance of x.

    (tr(C^{-1} S) - d - log det(C^{-1} S) + (m - mu)^T C^{-1} (m - mu)) / 2.

    Parameters
    ----------
    x : array_like, shape (n, d), or anything to draw samples from
        As in `wasserstein`; n > d, or S has no inverse. S is divided by n - 1.
    law : Gaussian, or anything with `mean` (d,) and `cov` (d, d)
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        In nats. Samples of `law` itself, if that is Gaussian, give d (d + 3) / (4 n) on average, for n
        much larger than d.
    """
    mean, cov = law_moments("law", law)
    dim = len(mean)
    found = draw("x", x, *checked(n, seed), least=dim + 1, dim=dim)
    return kl_of_covariances("x", *moments(found), mean, cov)


def kl_of_covariances(name: str, m: F64, s: F64, mean: F64, cov: F64) -> float:
    """KL of two Gaussians, of which the second is known to be regular."""
    factor = np.linalg.cholesky(cov)
    half = np.linalg.solve(factor, s)
    values = np.linalg.eigvalsh(np.linalg.solve(factor, half.T))
    if not values[0] > len(m) * np.finfo(np.float64).eps * values[-1]:
        raise ValueError(
            f"{name}: expected samples that span all {len(m)} dimensions, got some on a hyperplane"
        )
    shift = np.linalg.solve(factor, m - mean)
    return float((np.sum(values - 1.0 - np.log(values)) + shift @ shift) / 2.0)


def root_trace(s: F64, t: F64) -> F64:
    """tr (S^{1/2} T S^{1/2})^{1/2} for stacks of covariances [..., d, d]."""
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]  # S = root root^T
    inner = np.swapaxes(root, -1, -2) @ t @ root
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0.0)).sum(axis=-1))


def bw2(m: F64, s: F64, mean: F64, cov: F64) -> F64:
    """BW2, half the squared 2-Wasserstein distance of Gaussians, for stacks [..., d] and [..., d, d]."""
    traces = np.trace(s, axis1=-2, axis2=-1) + np.trace(cov, axis1=-2, axis2=-1)
    shift = ((m - mean) ** 2).sum(axis=-1)
    return np.asarray(np.maximum(shift / 2.0 + traces / 2.0 - root_trace(cov, s), 0.0))


@kind("law")
def bw2_uvp(x: Source, y: Source, *, n: int = DRAWS, seed: int = 0) -> float:
    r"""Unexplained variance in percent, 100 BW2(x, y) / (tr C / 2), between the Gaussians of x and of y.

    BW2 = \|m - mu\|^2 / 2 + tr S / 2 + tr C / 2 - tr (C^{1/2} S C^{1/2})^{1/2} is half the squared
    2-Wasserstein distance of N(m, S), the moments of x, and N(mu, C), those of y.

    Parameters
    ----------
    x : array_like, shape (n, d), or anything to draw samples from
        As in `wasserstein`; a law (with `mean` and `cov`) is not drawn from but gives its own moments.
    y : the same
        The truth, whose variance is to be explained.
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    float
        In percent: 0 where the moments agree, 100 for the best constant. At least 2 samples are needed;
        covariances are divided by n - 1.

    Notes
    -----
    Korotin et al., arXiv:2106.01954, and the benchmark of arXiv:2306.10161.
    """
    many, seed = checked(n, seed)
    if is_law(y):
        mean, cov = law_moments("y", y)
    else:
        mean, cov = moments(draw("y", y, many, mixed(seed, 1), least=2))
    m, s = sample_moments("x", x, many, mixed(seed, 0), len(mean), 2)
    total = float(np.trace(cov))
    if not total > 0:
        raise ValueError("y: expected samples that differ, got equal ones")
    return 100.0 * float(bw2(m, s, mean, cov)) / (total / 2.0)
