"""What DSB with perfect nets and infinite data gives, iteration by iteration."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .._check import F64, choice, integer
from ..gaussian import Gaussian
from ..history import DIRECTIONS, Direction
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._linear import Step
from ._mixed import independent, mixed_step, pinned_steps
from ._problem import direction_of
from .chain import LinearChain, coupling_of, moments, reversal
from .gaussian import GaussianBridge, process_between

Objective = Literal["dsb", "simplified", "bridge"]
Covariance = Literal["reference", "scalar", "diagonal", "full"]
FirstCoupling = Literal["reference", "independent"]
OBJECTIVES: tuple[Objective, ...] = ("dsb", "simplified", "bridge")
COVARIANCES: tuple[Covariance, ...] = ("reference", "scalar", "diagonal", "full")
FIRST_COUPLINGS: tuple[FirstCoupling, ...] = ("reference", "independent")
MOST = 10_000_000


class Iterate:
    """Both directions of DSB after iteration n.

    Parameters
    ----------
    n : int
    backward, forward : LinearChain
    """

    __slots__ = ("_chains", "_n")

    def __init__(self, n: int, backward: LinearChain, forward: LinearChain) -> None:
        self._n = n
        self._chains: dict[Direction, LinearChain] = {"backward": backward, "forward": forward}

    @property
    def n(self) -> int:
        """Number of the iteration, from 1."""
        return self._n

    def process(self, direction: Direction = "backward") -> LinearChain:
        """The process of one direction: "backward" from the prior, "forward" from the source."""
        return self._chains[direction_of(direction)]

    def __repr__(self) -> str:
        return f"Iterate({self._n}, {self._chains['backward']!r}, {self._chains['forward']!r})"


class PopulationDSB:
    r"""DSB between Gaussians as perfect nets and infinite data would do it, with the steps it has.

    A half-bridge learns from the chain that the other direction simulates, X_{k+1} given X_k ~ N(F_k x +
    c_k, Q_k) with moments m_k, S_k; here for the backward direction:

        S_{k+1} = F_k S_k F_k^T + Q_k,   G = S_k F_k^T S_{k+1}^{-1},   h = m_k - G m_{k+1},
        "dsb":         x -> (I + F_k (G - I)) x + F_k h,     equations (12), (13) of arXiv:2106.01357,
        "simplified":  x -> G x + h = E[X_k given X_{k+1} = x],
        "bridge":      the same, where (X_k, X_{k+1}) is the reference pinned at the ends (X_0, X_N) of that
                       chain (arXiv:2303.16852, arXiv:2304.00917).

    Parameters
    ----------
    source, prior : Gaussian
    schedule : Schedule
    reference : OU or Brownian
    objective : {"dsb", "simplified", "bridge"}
        What the nets regress on.
    covariance : {"reference", "scalar", "diagonal", "full"}
        Noise of the steps that a direction simulates with: the reference's 2 g_k I, as DSB does, or
        Cov(X_k given X_{k+1}) of what it learnt from: its trace / d times I, its diagonal, or the whole.
    first_coupling : {"reference", "independent"}
        Ends that the first half-bridge of "bridge" pins: of the reference that starts in the source, or
        draws of source and prior that know nothing of each other.

    Raises
    ------
    TypeError, ValueError
        As `GaussianBridge`; a schedule is needed here, and "independent" is for "bridge" only.

    Notes
    -----
    "simplified" and "bridge" with "full" are exact: every iteration is that of `GaussianIPF` on the same
    steps, however few (to 1e-14 over 40 iterations, in one and in three dimensions). From "independent" on,
    "bridge" with "full" has exact ends after each half-bridge, and comes to the same bridge.

    All else is off by O(g). With N(0, 1/4) and N(0, 4), T = 1/2, N = 20, Brownian, where the exact
    Cov(X_0, X_N) is .618, the larger error of the two directions after 5, 40 and 1,000 iterations is

        objective    covariance    of the end's variance    of Cov(X_0, X_N)
        dsb          reference     19.9, 19.6, 19.9 %       22.5, 33.0, 33.7 %
        dsb          full           8.0, 10.5,  0.0 %       13.2, 39.0, 59.5 %
        simplified   reference     18.3, 14.4, 14.1 %       15.1, 23.4, 24.3 %
        bridge       reference     14.0, 14.0, 14.0 %        4.6,  4.6,  4.6 %

    The coupling of "dsb" and "simplified" drifts, as each half-bridge loses a little of the reference and
    nothing restores it; "bridge" pins the reference anew each time and stands still. Its marginals with
    "reference" are not always the better ones: at N = 5 their error is 64.8 %, that of "simplified" 58.7 %.
    In more dimensions "scalar" and "diagonal" do not stop the drift of "simplified". Do not give "dsb" any
    noise but "reference": its map is not the conditional mean to which the covariance belongs, and in three
    dimensions "diagonal" and "full" diverge.

    Examples
    --------
    >>> problem = PopulationDSB(dsb.Gaussian([-0.1], 1), dsb.Gaussian([0.1], 1),
    ...                         dsb.Schedule.constant(20, 1 / 40))
    >>> problem.iterate(2).process("backward").end
    Gaussian(mean=-0.05669, cov=a 1 x 1 matrix of trace 0.9783)
    """

    def __init__(
        self,
        source: Gaussian,
        prior: Gaussian,
        schedule: Schedule,
        reference: OU | Brownian = Brownian(),  # noqa: B008 (immutable)
        objective: Objective = "dsb",
        covariance: Covariance = "reference",
        first_coupling: FirstCoupling = "reference",
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}")
        self._process = process_between(source, prior, schedule, reference, discrete=True)
        self._source, self._prior = source, prior
        self._schedule, self._reference = schedule, reference
        self._objective = choice("objective", objective, OBJECTIVES)
        self._covariance = choice("covariance", covariance, COVARIANCES)
        self._first = choice("first_coupling", first_coupling, FIRST_COUPLINGS)
        if self._first != "reference" and self._objective != "bridge":
            raise ValueError(
                f"first_coupling: expected 'reference' for objective '{self._objective}', which learns "
                f"from whole paths, got '{self._first}'"
            )
        self._pinned = {way: pinned_steps(self._process, way) for way in DIRECTIONS}
        eye, lost = np.eye(source.dim), schedule.steps * reference.precision
        noise = 2.0 * schedule.steps
        self._start = [
            Step((1.0 - lost[k]) * eye, lost[k] * self._process.mean, noise[k] * eye)
            for k in range(schedule.N)
        ]
        self._last: tuple[int, list[Step], list[Step]] = (0, [], self._start)

    @property
    def dim(self) -> int:
        """Dimension d of a point."""
        return self._source.dim

    def limit(self) -> GaussianBridge:
        """The bridge that exact IPF would converge to; DSB itself only comes near it."""
        return GaussianBridge(self._source, self._prior, self._schedule, self._reference)

    def iterate(self, n: int) -> Iterate:
        """Both directions after iteration n = 1, 2, .., of a backward and a forward half-bridge each.

        Raises
        ------
        FloatingPointError
            The iterations diverge: float64 cannot hold this one.
        """
        n = integer("n", n, 1, MOST)
        done, backward, forward = self._last if self._last[0] <= n else (0, [], self._start)
        grid = (self._schedule,)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                for _ in range(done, n):
                    backward = self._learnt("backward", forward)
                    forward = self._learnt("forward", backward)
                found = Iterate(
                    n,
                    LinearChain(self._prior, backward, *grid, "backward", self._reference),
                    LinearChain(self._source, forward, *grid, "forward", self._reference),
                )
        except ValueError as error:  # a covariance is none any more, a number not finite
            raise FloatingPointError(
                f"{self!r} diverges: iteration {n} is beyond float64"
            ) from error
        self._last = (n, backward, forward)
        return found

    def __repr__(self) -> str:
        return (
            f"PopulationDSB({self._source!r}, {self._prior!r}, {self._schedule!r}, "
            f"{self._reference!r}, {self._objective!r}, {self._covariance!r}, {self._first!r})"
        )

    # ---- how ----

    def _learnt(self, direction: Direction, steps: list[Step]) -> list[Step]:
        """The direction's maps, learnt from the other direction's `steps`; all in order of time."""
        exact = (
            self._mixture(direction, steps)
            if self._objective == "bridge"
            else self._reversed(direction, steps)
        )
        eye = np.eye(self.dim)
        learnt = []
        for k, (G, h, Q) in enumerate(exact):
            if self._objective == "dsb":
                of = steps[k].A
                G, h = eye + of @ (G - eye), of @ h
            learnt.append(Step(G, h, self._noise(k, Q)))
        return learnt

    def _reversed(self, direction: Direction, steps: list[Step]) -> list[Step]:
        """Every step of a direction as it is in the chain of the other one."""
        start, order, _ = self._running(direction, steps)
        known = moments(start, order)
        exact = [reversal(step, *known[k], *known[k + 1]) for k, step in enumerate(order)]
        return exact if direction == "backward" else exact[::-1]

    def _mixture(self, direction: Direction, steps: list[Step]) -> list[Step]:
        """Every step of a direction under the reference pinned at the ends of the other one's chain."""
        if steps is self._start and self._first == "independent":
            ends = independent(self._source, self._prior)
        else:
            ends = coupling_of(*self._running(direction, steps))
        return [mixed_step(ends, pinned, direction) for pinned in self._pinned[direction]]

    def _running(
        self, direction: Direction, steps: list[Step]
    ) -> tuple[Gaussian, list[Step], Direction]:
        """The chain from which a direction learns: its start, its steps as they run, its direction."""
        if direction == "backward":
            return self._source, steps, "forward"
        return self._prior, steps[::-1], "backward"

    def _noise(self, k: int, posterior: F64) -> F64:
        """Covariance of the noise that a direction's step k is simulated with."""
        if self._covariance == "reference":
            return self._start[k].Q
        if self._covariance == "scalar":
            return np.asarray(np.trace(posterior) / self.dim * np.eye(self.dim))
        if self._covariance == "diagonal":
            return np.diag(np.diag(posterior))
        return posterior
