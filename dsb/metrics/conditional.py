"""cBW2-UVP: how well the law of the other end, given a point, is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._build import mixed
from .._check import F32, F64, afford, array, flag, integer, shown
from ._kind import kind
from ._process import is_bridge
from .gaussian import bw2

_BLOCK = 1 << 22  # numbers drawn together

Conditional = Callable[[F32, int, int], NDArray[Any]]  # (x [k, d], m, seed) -> [k, m, d]


@kind("process", judges=lambda y: callable(getattr(y, "sample_conditional", y)))
def cbw2_uvp(
    process: Any,
    problem: Any,
    n: int = 1000,
    m: int = 1000,
    *,
    final_noise: bool = True,
    seed: int = 0,
) -> float:
    r"""Unexplained conditional variance in percent, 100 E_x BW2(pi_hat(.|x), pi(.|x)) / (tr Cov(X_N) / 2).

    pi(.|x) is the law of X_N given X_0 = x, of which the problem knows mean and covariance; pi_hat is what
    is judged, by m samples for each of n points x ~ X_0; BW2 as in `bw2_uvp`.

    Parameters
    ----------
    process : Bridge, object with `sample_conditional(x0, m, seed)`, or callable (x0, m, seed)
        Of a bridge the forward process is judged. What the last two return has shape (k, m, d) for
        x0 of shape (k, d).
    problem : MixtureBridge, or another problem with `conditional(x0)`
        The truth.
    n, m : int
        Points x, and samples for each: m > 1.
    final_noise : bool
        Whether the last step of a bridge adds its noise, as the process does.
    seed : int

    Returns
    -------
    float
        In percent. Exact samples give a floor of the order 100 d / m: `estimate` measures it.

    Notes
    -----
    Gushchin et al., arXiv:2306.10161, who take n = m = 1,000; the problems are those of Korotin et al.,
    arXiv:2310.01174.
    """
    if not hasattr(problem, "conditional"):
        raise TypeError(f"problem: expected one with conditional(x0), got {shown(problem)}")
    many, each = integer("n", n, 1, 2**31 - 1), integer("m", m, 2, 2**31 - 1)
    seed = integer("seed", seed, 0)
    judged = conditional_of(process, flag("final_noise", final_noise))
    dim = int(problem.dim)
    if is_bridge(process) and process.dim != dim:
        raise ValueError(f"process: expected dimension {dim}, got {process.dim}")
    if is_bridge(process) and not np.isclose(process.schedule.T, problem.T, rtol=1e-6, atol=0.0):
        raise ValueError(
            f"process: expected T = {problem.T:g}, that of the problem, got {process.schedule.T:g}"
        )
    afford("m", each, 16 * dim)
    spread = float(np.trace(problem.marginal(problem.T).cov))
    points = problem.marginal(0.0).sample(many, seed=mixed(seed, 0))
    block = max(1, _BLOCK // (each * dim))
    total = 0.0
    for first in range(0, many, block):
        x = np.ascontiguousarray(points[first : first + block])
        mean, cov = stacked_moments(judged(x, each, mixed(seed, 1 + first)), len(x), each, dim)
        total += float(bw2(mean, cov, *problem.conditional(x)).sum())
    return 100.0 * total / many / (spread / 2.0)


def conditional_of(process: Any, final_noise: bool) -> Conditional:
    """(x, m, seed) -> m samples of X_N for each row of x."""
    if is_bridge(process):

        def walk(x: F32, m: int, seed: int) -> NDArray[Any]:
            starts = np.repeat(x, m, axis=0).reshape(-1, *process.shape)
            drawn: F32 = process.sample(
                x=starts, direction="forward", seed=seed, final_noise=final_noise
            )
            return drawn.reshape(len(x), m, -1)

        return walk
    found = getattr(process, "sample_conditional", process)
    if not callable(found):
        raise TypeError(
            "process: expected a dsb.Bridge, an object with sample_conditional(x0, m, seed) or a callable, "
            f"got {shown(process)}"
        )
    return found  # type: ignore[no-any-return]


def stacked_moments(drawn: object, k: int, m: int, dim: int) -> tuple[F64, F64]:
    """Means [k, d] and covariances [k, d, d] of samples [k, m, d]."""
    found = array("process", drawn)
    if found.shape != (k, m, dim) or found.dtype.kind != "f":
        raise ValueError(
            f"process: expected floats of shape {(k, m, dim)} from the conditional sampler, got "
            f"{found.dtype} {found.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(
            "process: expected finite numbers from the conditional sampler, got NaN or infinity"
        )
    mean = found.mean(axis=1, dtype=np.float64)
    moved = found - mean[:, None]
    return mean, np.swapaxes(moved, 1, 2) @ moved / (m - 1)
