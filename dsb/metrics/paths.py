"""Measures of whole processes: KL of marginals and of path measures, energy, coupling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .._build import mixed
from .._check import F32, F64, choice, flag
from ..exact._problem import direction_of
from ..history import Direction
from ..schedule import Schedule
from ._kind import kind
from ._process import (
    Process,
    Start,
    given_paths,
    paths_of,
    refuse_start,
    same_dimension,
    schedule_of,
)
from ._samples import DRAWS, checked, is_array, moments, samples
from .gaussian import kl_of_covariances, kl_of_variances, law_moments

Velocity = Literal["forward", "backward", "flow"]


@kind("process")
def path_gaussian_kl(
    process: Any,
    problem: Any,
    direction: Direction = "backward",
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    start: Start = "exact",
    schedule: Schedule | None = None,
    final_noise: bool = True,
    n: int = DRAWS,
    seed: int = 0,
) -> float:
    r"""Gaussian KL of the marginals to the exact ones, averaged over the N + 1 times of the grid.

    At every t_k: `gaussian_kl_per_coordinate` (covariance="diagonal") or `gaussian_kl_full` ("full") of
    the states of n paths with respect to problem.marginal(t_k). The start of the paths counts too, with
    the floor of its samples.

    Parameters
    ----------
    process : Bridge, problem of dsb.exact, or array_like, shape (n, N + 1, d)
        What is judged; paths given as an array are in order of time, t_0 .. t_N.
    problem : problem of dsb.exact
        The truth.
    direction : {"backward", "forward"}
        Which process of a bridge.
    covariance : {"diagonal", "full"}
    start : {"exact", "own"} or array_like, shape (n, d)
        Where the paths of a bridge start: draws from the problem's law at that end, the bridge's own
        starts (rows of its data where the end is a data set), or given points.
    schedule : Schedule, optional
        Default: that of `process`, else of `problem`.
    final_noise : bool
        Whether the last step of a bridge adds its noise, as the process does; without it the last
        marginal lacks a variance of 2 g.
    n, seed : int
        Number of paths, and seed.

    Returns
    -------
    float
        In nats, summed over coordinates. Exact paths of a Gaussian problem give d / n ("diagonal") or
        d (d + 3) / (4 n) ("full") on average.

    Notes
    -----
    "Diagonal" and "exact" is the measure of the Gaussian experiment of DSBM, arXiv:2303.16852, which
    prints it times 1,000.
    """
    full = choice("covariance", covariance, ("diagonal", "full")) == "full"
    direction, final_noise = direction_of(direction), flag("final_noise", final_noise)
    many, seed = checked(n, seed)
    truth = Process("problem", problem)
    least = truth.dim + 1 if full else 2
    if is_array(process):
        grid = schedule_of(schedule, truth)
        refuse_start(start)
        drawn: F32 | F64 = given_paths("process", process, truth.dim, grid.N + 1)
        many = len(drawn)
    else:
        judged = Process("process", process)
        same_dimension(truth, judged)
        grid = schedule_of(schedule, judged, truth)
    if many < least:
        raise ValueError(f"n: expected at least {least} paths, got {many}")
    if not is_array(process):
        drawn = paths_of(judged, problem, direction, grid, start, many, seed, final_noise)
    total = 0.0
    for k, t in enumerate(grid.times):
        mean, cov = law_moments("problem", problem.marginal(min(float(t), problem.T)))
        name = f"process at t = {t:g}"
        if full:
            total += kl_of_covariances(name, *moments(drawn[:, k]), mean, cov)
        else:
            total += kl_of_variances(name, drawn[:, k], mean, np.diag(cov))
    return total / (grid.N + 1)


def _leaving(schedule: Schedule, direction: Direction) -> Iterator[tuple[int, float, float]]:
    """Of every step: which state it leaves, when, and its size g."""
    times = schedule.times
    for k, g in enumerate(schedule.steps):
        at = k if direction == "forward" else k + 1
        yield at, float(times[at]), float(g)


@kind("process")
def path_kl(
    p: Any,
    q: Any,
    direction: Direction = "backward",
    *,
    under: Any = None,
    start: Start = "own",
    schedule: Schedule | None = None,
    n: int = 2000,
    seed: int = 0,
) -> float:
    r"""KL between two processes that start alike and have noise sqrt(2) dB, from their drifts.

    KL(P | Q) = sum_k g_k E_P |b_P(t_k, X) - b_Q(t_k, X)|^2 / 4, the states X being those that the steps of
    `direction` leave: X_0 .. X_{N-1} forward, X_1 .. X_N backward.

    Parameters
    ----------
    p, q : Bridge or problem of dsb.exact
        Each asked for the drift of its own process of `direction`.
    direction : {"backward", "forward"}
    under : Bridge, problem or array_like, shape (n, N + 1, d), optional
        Along whose paths the mean is taken. Default: p's, which makes it KL(P | Q); given q, it is
        KL(Q | P). Paths given as an array are in order of time.
    start : {"exact", "own"} or array_like, shape (n, d)
        Where the paths of a bridge start; "exact" are draws from the end of q (of p, where q is a bridge).
    schedule : Schedule, optional
        Default: p's, else q's.
    n, seed : int
        Number of paths, and seed.

    Returns
    -------
    float
        In nats; 0 for equal drifts, and then without a floor.

    Notes
    -----
    Girsanov's theorem; in discrete time exact for chains with noise of variance 2 g_k, as a `Bridge` and
    the population iterates with covariance="reference" have it. Any other `LinearChain` is refused, as
    its noise may be anything. The problems' noise is sqrt(2) dB too, but what is computed of them is the
    KL of the means of steps. Of a Brownian one the drift is that of continuous time, from which a perfect
    discretised bridge is O(g^2) per unit of time away. Of one with an OU reference it is (step mean - x)
    / g, in place of the step N(m, Q) stands N(m, 2 g I): a bridge with exact step means has 0. As the
    end that is tied changes Q by O(g) of itself only, the part of the covariances that is left out, for
    KL(P | Q) the sum of (tr R - d - log det R) / 2 with R = 2 g Q^-1, falls in proportion to g; it is no
    fault of a bridge, whose noise is 2 g whatever it has learned.
    """
    direction = direction_of(direction)
    many, seed = checked(n, seed)
    one, other = Process("p", p), Process("q", q)
    same_dimension(one, other)
    grid = schedule_of(schedule, one, other)
    _refuse_other_noise(grid, direction, one, other)
    exact = p if other.trained else q
    drawn = _under(under, one, exact, direction, grid, start, many, seed)
    total = 0.0
    for at, t, g in _leaving(grid, direction):
        gap = one.drift(drawn[:, at], t, direction) - other.drift(drawn[:, at], t, direction)
        total += g * float(np.mean((gap**2).sum(axis=1))) / 4.0
    return total


def _under(
    under: Any,
    first: Process,
    exact: Any,
    direction: Direction,
    grid: Schedule,
    start: Start,
    n: int,
    seed: int,
) -> F32 | F64:
    """The paths along which a mean is taken, those of `first` where nothing else is said."""
    if under is not None and is_array(under):
        refuse_start(start)
        return given_paths("under", under, first.dim, grid.N + 1)
    walker = first if under is None else Process("under", under)
    same_dimension(first, walker)
    schedule_of(grid, walker)
    return paths_of(walker, exact, direction, grid, start, n, seed, True)


def _refuse_other_noise(grid: Schedule, direction: Direction, *processes: Process) -> None:
    """ValueError for a chain whose noise is not 2 g: of such the KL is another.

    A problem with an OU reference has no noise that is free: that of its steps follows from 2 g.
    """
    for process in processes:
        if getattr(process.given, "direction", direction) != direction:
            raise ValueError(
                f"{process.name}: expected a {direction} chain, got a {process.given.direction} one"
            )
        for k, step in enumerate(getattr(process.given, "maps", ())):
            noise = 2.0 * grid.steps[k] * np.eye(process.dim) if k < grid.N else step.Q
            if not np.allclose(step.Q, noise, rtol=1e-6, atol=1e-9 * float(noise[0, 0])):
                raise ValueError(
                    f"{process.name}: expected noise of variance 2 g, got another at step {k}; "
                    "drifts alone do not give the KL then"
                )


@kind("alone")
def path_energy(
    process: Any,
    velocity: Velocity = "forward",
    *,
    start: Start = "own",
    schedule: Schedule | None = None,
    n: int = 2000,
    seed: int = 0,
) -> float:
    r"""Kinetic energy of a process, E sum_k g_k |v(t_k, X_k)|^2, an approximation of E int |v|^2 dt.

    Parameters
    ----------
    process : Bridge or problem of dsb.exact
    velocity : {"forward", "backward", "flow"}
        What v is. "forward", "backward": the drift of that process, at the states that its steps leave,
        along its own paths. "flow": the velocity of the probability flow, (forward - backward) / 2, along
        forward paths at t_1 .. t_{N-1} with weights (g_{k-1} + g_k) / 2, the outer ones taking half of
        the first and of the last step too; it needs N > 1.
    start : {"own"} or array_like, shape (n, d)
        Where the paths of a bridge start.
    schedule : Schedule, optional
        Default: that of `process`.
    n, seed : int
        Number of paths, and seed.

    Returns
    -------
    float
        In squared units of the data per unit of time. A quarter of the "forward" energy is the KL to
        Brownian motion sqrt(2) dB that is started alike, which the bridge makes least.
    """
    choice("velocity", velocity, ("forward", "backward", "flow"))
    if isinstance(start, str):
        choice("start", start, ("own",))
    many, seed = checked(n, seed)
    judged = Process("process", process)
    grid = schedule_of(schedule, judged)
    direction: Direction = "backward" if velocity == "backward" else "forward"
    drawn = paths_of(judged, None, direction, grid, start, many, seed, True)
    if velocity != "flow":
        return sum(
            g * _square(judged.drift(drawn[:, at], t, direction))
            for at, t, g in _leaving(grid, direction)
        )
    if grid.N < 2:
        raise ValueError(f"schedule: expected at least 2 steps for velocity='flow', got {grid.N}")
    weights = (grid.steps[1:] + grid.steps[:-1]) / 2.0
    weights[0] += grid.steps[0] / 2.0
    weights[-1] += grid.steps[-1] / 2.0
    total = 0.0
    for k, weight in enumerate(weights, 1):
        t = float(grid.times[k])
        forward = judged.drift(drawn[:, k], t, "forward")
        total += float(weight) * _square((forward - judged.drift(drawn[:, k], t, "backward")) / 2.0)
    return total


def _square(v: F64) -> float:
    """E |v|^2 over rows."""
    return float(np.mean((v**2).sum(axis=1)))


@kind("process")
def coupling_error(
    process: Any,
    problem: Any,
    direction: Direction = "backward",
    *,
    start: Start = "exact",
    final_noise: bool = True,
    n: int = DRAWS,
    seed: int = 0,
) -> float:
    r"""Relative error of the coupling, |C_hat - C|_F / |C|_F with C = Cov(X_0, X_N).

    Parameters
    ----------
    process : Bridge, problem of dsb.exact, or pair of array_like (x_0, x_N), each of shape (n, d)
        What is judged; row i of x_0 belongs to row i of x_N.
    problem : problem of dsb.exact
        The truth: problem.coupling().cross.
    direction : {"backward", "forward"}
        Which process of a bridge.
    start : {"exact", "own"} or array_like, shape (n, d)
        Where the paths of a bridge start, as in `path_gaussian_kl`.
    final_noise : bool
        Whether the last step of a bridge adds its noise.
    n, seed : int
        Number of pairs, and seed.

    Returns
    -------
    float
        Without unit; samples of the problem itself give an error of order d n^(-1/2) |S|/|C|.
    """
    direction, final_noise = direction_of(direction), flag("final_noise", final_noise)
    many, seed = checked(n, seed)
    truth = Process("problem", problem)
    cross = np.asarray(problem.coupling().cross, np.float64)
    size = float(np.linalg.norm(cross))
    if not size > 0:
        raise ValueError("problem: expected ends that are correlated, got Cov(X_0, X_N) = 0")
    first: ArrayLike
    last: ArrayLike
    if isinstance(process, tuple) and len(process) == 2:
        refuse_start(start)
        first, last = process
    elif is_bridge_or_problem(process):
        judged = Process("process", process)
        same_dimension(truth, judged)
        if judged.trained:
            grid = schedule_of(None, judged, truth)
            drawn = paths_of(judged, problem, direction, grid, start, many, seed, final_noise)
            first, last = drawn[:, 0], drawn[:, -1]
        else:
            refuse_start(start)
            first, last = process.coupling().sample(many, seed=mixed(seed, 0))
    else:
        raise TypeError(
            "process: expected a dsb.Bridge, a problem of dsb.exact or a pair (x_0, x_N), got "
            f"{type(process).__name__}"
        )
    a = samples("x_0", first, least=2, dim=truth.dim)
    b = samples("x_N", last, least=2, dim=truth.dim)
    if len(a) != len(b):
        raise ValueError(f"x_N: expected {len(a)} rows, one for each of x_0, got {len(b)}")
    found = (a - a.mean(axis=0, dtype=np.float64)).T @ (b - b.mean(axis=0, dtype=np.float64))
    return float(np.linalg.norm(found / (len(a) - 1) - cross)) / size


def is_bridge_or_problem(value: object) -> bool:
    """Whether paths can be drawn of it."""
    return hasattr(value, "drift") and (hasattr(value, "paths") or hasattr(value, "coupling"))
