"""Bridges that are not Gaussian and known all the same, in any dimension."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._build import mixed
from .._check import F32, F64, I64, afford, array, described, integer, real, rows, single
from ..gaussian import Gaussian
from ..history import Direction
from ..reference import Brownian
from ..schedule import Schedule
from ._backward import Estimated, estimate, forms
from ._problem import Law, Problem, direction_of, draws, points
from ._reference import CLOSE, CONDITIONAL, SPHERE, ReferenceProcess
from .laws import Mixture, as_mixture, groups

BLOCK = 1 << 20  # numbers of a temporary array
STARTS = 1 << 16  # over which moments of the far end are averaged
PAIRS = 128  # antithetic pairs of draws of the backward drift


class Moments(NamedTuple):
    """Of (X_0, X_N), and the standard error of E X_N."""

    mean: F64  # (2 d,)
    cov: F64  # (2 d, 2 d)
    error: float


class MixtureBridge(Problem):
    r"""The bridge from any law p_0 by Brownian motion towards a potential that is a mixture of Gaussians.

    With u = t / T and eps = 2 T,

        pi(y | x) = sum_k r_k(x) N(y; mu_k + S_k (S_k + eps I)^{-1} (x - mu_k), eps S_k (S_k + eps I)^{-1}),
        r_k(x) ~ w_k N(x; mu_k, S_k + eps I),      phi_t(x) = sum_k w_k N(x; mu_k, S_k + eps (1 - u) I),
        forward drift 2 grad log phi_t(x).

    The problem is posed by its answer: the law to train on as the prior's end is that of X_N, from which
    `coupling().sample` draws. (Which end is called prior is a convention; it is the one at time T.)

    Parameters
    ----------
    source : Gaussian, Mixture or any law
        p_0: what has a method sample(n, seed=) that gives rows.
    weights, means, covs : array_like
        w, mu and S of the potential, as `Mixture` takes them.
    eps : float
        2 T, in units of squared data.
    schedule : Schedule, optional
        The steps for `sample_paths`, with T = eps / 2.

    Raises
    ------
    TypeError, ValueError
        As `Mixture`; dimensions disagree, or the schedule has another T.

    Notes
    -----
    Korotin, Gushchin, Burnaev, arXiv:2310.01174; pairs of this kind are the benchmark of Gushchin et al.,
    arXiv:2306.10161, with reference sqrt(eps) dW on [0, 1]: drifts there are T times those here.

    Everything about the far end given the near one is exact. Moments that average over p_0 (`mean`, `cov`
    of marginals and coupling) come from 65,536 draws, and the coupling's `error` is the standard error.
    """

    def __init__(
        self,
        source: Any,
        weights: ArrayLike,
        means: ArrayLike,
        covs: ArrayLike,
        eps: float,
        schedule: Schedule | None = None,
    ) -> None:
        self._potential = Mixture(weights, means, covs)
        self._eps = single("eps", real("eps", eps, above=0))
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}")
        if schedule is not None and not abs(2.0 * schedule.T / self._eps - 1.0) <= CLOSE:
            raise ValueError(
                f"schedule: expected one with T = eps / 2 = {self._eps / 2:g}, got T = {schedule.T:g}"
            )
        dim = self._potential.dim
        own = _dimension(source)
        if own != dim:
            raise ValueError(f"means: expected {own} columns, the dimension of source, got {dim}")
        self._process = ReferenceProcess(Brownian(), schedule or self._eps / 2.0, dim)
        self._source = source
        self._end = self._potential.convolved(self._eps)
        parts = as_mixture(source)
        self._parts = parts
        self._forms = None if parts is None else forms(parts, self._end)

    @classmethod
    def from_sphere(
        cls,
        dim: int,
        eps: float,
        components: int = 5,
        radius: float = 5.0,
        var: float = 0.05,
        source_var: float = 0.25,
        seed: int = 0,
        schedule: Schedule | None = None,
    ) -> MixtureBridge:
        """Equal components N(mu_k, var I) with mu_k uniform on a sphere, from N(0, source_var I)."""
        dim, count = integer("dim", dim, 1), integer("components", components, 1)
        radius = real("radius", radius, least=0)
        z = _core.normals(integer("seed", seed, 0), SPHERE, 0, 0, count, dim).astype(np.float64)
        means = radius * z / np.linalg.norm(z, axis=1, keepdims=True)
        source = Gaussian(np.zeros(dim), real("source_var", source_var, above=0))
        var = real("var", var, above=0)
        return cls(source, np.full(count, 1.0 / count), means, var, eps, schedule)

    @property
    def source(self) -> Any:
        """p_0, as it was given."""
        return self._source

    @property
    def potential(self) -> Mixture:
        """sum_k w_k N(mu_k, S_k)."""
        return self._potential

    @property
    def eps(self) -> float:
        """2 T."""
        return self._eps

    def log_potential(self, x: ArrayLike, t: float) -> F64:
        """log phi_t at every row of x, shape (n,): the forward drift is twice its gradient."""
        return self._seen_from(self._process.time(t)).log_density(x)

    def conditional(self, x0: ArrayLike) -> tuple[F64, F64]:
        """Mean and covariance of X_N given X_0 = x0, shapes (n, d) and (n, d, d), for every row of x0."""
        x = points("x0", x0, self.dim)
        d = self.dim
        afford("x0", len(x), 8 * d * (d + 1))
        mean, cov = np.empty_like(x), np.empty((len(x), d, d))
        within = self._potential.spectral(self._spread())
        many = max(1, BLOCK // (d * max(d, len(self._potential))))
        for first in range(0, len(x), many):
            rows = slice(first, first + many)
            given, means = self._ahead(x[rows])
            mean[rows] = np.einsum("ik,ikd->id", given, means)
            cov[rows] = np.einsum("ik,kde->ide", given, within)
            means -= mean[rows, None]
            cov[rows] += np.einsum("ikd,ike->ide", means * given[..., None], means)
        return mean, cov

    def sample_conditional(self, x0: ArrayLike, m: int, seed: int = 0) -> F32:
        """m draws of X_N given X_0 = x0 for every row of x0, shape (n, m, d)."""
        x = points("x0", x0, self.dim)
        m, seed = draws(m, seed)
        afford("m", m * len(x), 4 * self.dim)
        result = np.empty((len(x), m, self.dim), dtype=np.float32)
        many = max(1, BLOCK // (m * self.dim))
        for first in range(0, len(x), many):
            some = np.repeat(x[first : first + many], m, axis=0)
            ends = self._draw_ends(some, first * m, seed)
            result[first : first + many] = ends.reshape(-1, m, self.dim)
        return result

    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F64:
        """Drift of a direction's own process per unit of time, shape (n, d), float64.

        Forward it is 2 grad log phi_t. Backward there is no closed form: it is estimated as `backward_drift`
        does by default.
        """
        x = self._points(x)
        if direction_of(direction) == "backward":
            return self.backward_drift(x, t).value
        result = np.empty_like(x)
        for time, where in self._groups(t, len(x)):
            result[where] = 2.0 * self._seen_from(time).score(x[where])
        return result

    def backward_drift(
        self, x: ArrayLike, t: float | ArrayLike, pairs: int = PAIRS, seed: int = 0
    ) -> Estimated:
        """(E[X_0 given X_t = x] - x) / t by importance sampling, with its standard error.

        Parameters
        ----------
        x : array_like, shape (n, d)
        t : float or array_like, shape (n,)
        pairs : int
            Antithetic pairs of draws for every point; the same for all points, so that the estimate is a
            smooth function of x.
        seed : int

        Returns
        -------
        Estimated
            (value, error): shape (n, d) in units of data per unit of t, and shape (n,), the standard error
            (root mean square over the coordinates). Exact at t = 0 and with a single component.

        Raises
        ------
        ValueError
            The density of the source is not known (it is neither a Gaussian nor a `Mixture`), or too few of
            the draws have weight.
        """
        x = self._points(x)
        pairs, seed = draws(pairs, seed)
        if self._parts is None or self._forms is None:
            raise ValueError(
                "direction: the backward drift needs the density of the source, expected a dsb.Gaussian "
                f"or a dsb.exact.Mixture, got {type(self._source).__name__}"
            )
        found = Estimated(np.empty_like(x), np.empty(len(x)))
        for time, where in self._groups(t, len(x)):
            some = estimate(self._parts, self._end, self._forms, x[where], time, pairs, seed)
            found.value[where], found.error[where] = some
        return found

    def marginal(self, t: float) -> MixtureMarginal:
        """The law of X_t: exact draws; mean and covariance by averages over the source."""
        return MixtureMarginal(self, self._process.time(t))

    def coupling(self) -> MixtureCoupling:
        """The joint law of (X_0, X_N): exact draws; moments of X_N by averages over the source."""
        return MixtureCoupling(self)

    def sample_paths(self, n: int, schedule: Schedule | None = None, seed: int = 0) -> F32:
        """n paths: ends drawn from the plan, and the Brownian bridge between them."""
        n, _, seed = self._room(n, schedule, seed)
        x0, xN = self.coupling().sample(n, seed)
        return self._process.bridge_paths(x0, xN, schedule, seed)

    def __repr__(self) -> str:
        return f"MixtureBridge({self._source!r}, {self._potential!r}, eps={self._eps:g})"

    # ---- how ----

    def _seen_from(self, t: float) -> Mixture:
        """The mixture whose density is phi_t."""
        return self._potential.convolved(2.0 * (self.T - t))

    def _spread(self) -> F64:
        """Variances of X_N given X_0 and the component, along its axes, (K, d)."""
        values = self._potential._values
        return np.asarray(self._eps * values / (values + self._eps))

    def _ahead(self, x: F64) -> tuple[F64, F64]:
        """Responsibilities r_k(x), (n, K), and means of X_N given x and k, (n, K, d)."""
        mixture = self._potential
        means = np.empty((len(x), len(mixture), self.dim))
        for k, values in enumerate(mixture._values):
            y = mixture.to_axes(k, x - mixture._means[k]) * (values / (values + self._eps))
            means[:, k] = mixture._means[k] + mixture.from_axes(k, y)
        return self._end.responsibilities(x), means

    def _draw_ends(self, x: F64, first: int, seed: int) -> F32:
        """A draw of X_N for every row; the rows are numbered from `first`."""
        mixture, spread = self._potential, np.sqrt(self._spread())
        uniform = _core.uniforms(seed, CONDITIONAL, 0, first, len(x), 1)[:, 0]
        edges = np.cumsum(self._end.responsibilities(x), axis=1)
        chosen: I64 = (uniform[:, None] * edges[:, -1:] > edges[:, :-1]).sum(axis=1)
        z = _core.normals(seed, CONDITIONAL, 1, first, len(x), self.dim)
        result = np.empty(x.shape, dtype=np.float32)
        for k, where in groups(chosen):
            values = mixture._values[k]
            y = mixture.to_axes(k, x[where] - mixture._means[k]) * (values / (values + self._eps))
            result[where] = mixture._means[k] + mixture.from_axes(k, y + z[where] * spread[k])
        return result

    def _moments(self) -> Moments:
        """Moments of the ends, averaged once over draws of the source."""
        kept: Moments | None = self.__dict__.get("_kept")
        if kept is None:
            kept = self._kept = self._averaged()
        return kept

    def _averaged(self) -> Moments:
        d = self.dim
        x = points("source", _drawn(self._source, STARTS, 0, d), d)
        within = self._potential.spectral(self._spread())
        ends, given = np.empty_like(x), np.zeros(len(self._potential))
        between = np.zeros((d, d))
        many = max(1, BLOCK // (d * len(self._potential)))
        for first in range(0, len(x), many):
            shares, means = self._ahead(x[first : first + many])
            mean = np.einsum("ik,ikd->id", shares, means)
            ends[first : first + many] = mean
            means -= mean[:, None]
            flat = means.reshape(-1, d)
            between += (flat * shares.reshape(-1, 1)).T @ flat
            given += shares.sum(axis=0)
        n = len(x)
        own = self._source if isinstance(self._source, Law) else None
        start = x.mean(axis=0) if own is None else own.mean
        centred, x = ends - ends.mean(axis=0), x - x.mean(axis=0)
        moved = centred.T @ centred / n
        cov = np.empty((2 * d, 2 * d))
        cov[:d, :d] = x.T @ x / n if own is None else own.cov
        cov[d:, d:] = np.einsum("k,kde->de", given / n, within) + between / n + moved
        cov[:d, d:] = x.T @ centred / n
        cov[d:, :d] = cov[:d, d:].T
        mean = np.concatenate([start, ends.mean(axis=0)])
        return Moments(mean, cov, float(np.sqrt(np.diag(moved).max() / n)))


class MixtureCoupling:
    """The plan of a `MixtureBridge`."""

    __slots__ = ("_problem",)

    def __init__(self, problem: MixtureBridge) -> None:
        self._problem = problem

    @property
    def dim(self) -> int:
        """d, the dimension of one end."""
        return self._problem.dim

    @property
    def mean(self) -> F64:
        """(E X_0, E X_N), shape (2 d,)."""
        return self._problem._moments().mean

    @property
    def cov(self) -> F64:
        """Shape (2 d, 2 d)."""
        return self._problem._moments().cov

    @property
    def cross(self) -> F64:
        """Cov(X_0, X_N), shape (d, d)."""
        return self.cov[: self.dim, self.dim :]

    @property
    def error(self) -> float:
        """Standard error of E X_N, the largest over the coordinates."""
        return self._problem._moments().error

    def sample(self, n: int, seed: int = 0) -> tuple[F32, F32]:
        """n pairs (X_0, X_N), each of shape (n, d): the same for the same seed."""
        n, seed = draws(n, seed)
        problem = self._problem
        afford("n", n, 8 * self.dim)
        # A seed apart: the source may be a law of this package that draws with the same counters.
        drawn = _drawn(problem._source, n, mixed(seed, 1), self.dim)
        x0 = np.asarray(rows("source", drawn, least=1), dtype=np.float32)
        xN = np.empty_like(x0)
        many = max(1, BLOCK // self.dim)
        for first in range(0, n, many):
            some = x0[first : first + many].astype(np.float64)
            xN[first : first + many] = problem._draw_ends(some, first, seed)
        return x0, xN


class MixtureMarginal:
    """The law of X_t in a `MixtureBridge`."""

    __slots__ = ("_problem", "_t")

    def __init__(self, problem: MixtureBridge, t: float) -> None:
        self._problem, self._t = problem, t

    @property
    def dim(self) -> int:
        """d."""
        return self._problem.dim

    @property
    def mean(self) -> F64:
        """Shape (d,)."""
        u, d = self._t / self._problem.T, self.dim
        both = self._problem._moments().mean
        return np.asarray((1.0 - u) * both[:d] + u * both[d:])

    @property
    def cov(self) -> F64:
        """Shape (d, d)."""
        u, d = self._t / self._problem.T, self.dim
        both = self._problem._moments().cov
        cross = u * (1.0 - u) * (both[:d, d:] + both[d:, :d])
        noise = self._problem.eps * u * (1.0 - u) * np.eye(d)
        return np.asarray((1.0 - u) ** 2 * both[:d, :d] + u**2 * both[d:, d:] + cross + noise)

    def sample(self, n: int, seed: int = 0) -> F32:
        """n draws, shape (n, d): the same for the same seed."""
        x0, xN = self._problem.coupling().sample(n, seed)
        return self._problem._process.bridge_at(x0, xN, self._t, seed)


def _dimension(source: Any) -> int:
    """d of a law, which is drawn from where it does not say."""
    if not callable(getattr(source, "sample", None)):
        raise TypeError(
            f"source: expected a law with a method sample(n, seed=), got {type(source).__name__}"
        )
    if isinstance(getattr(source, "dim", None), int):
        return int(source.dim)
    drawn = array("source", source.sample(1, seed=0))
    if drawn.ndim != 2:
        raise ValueError(f"source: expected samples of shape (n, d), got {drawn.shape}")
    return int(drawn.shape[1])


def _drawn(source: Any, n: int, seed: int, dim: int) -> NDArray[Any]:
    """n rows of a source, as many as were asked for."""
    found = array("source", source.sample(n, seed=seed))
    if found.dtype.kind != "f":
        raise TypeError(f"source: expected samples of floats, got {described(found, found)}")
    if found.shape != (n, dim):
        raise ValueError(
            f"source: expected samples of shape ({n}, {dim}) from sample({n}), got {found.shape}"
        )
    return found
