"""Entropic transport between two samples, by Sinkhorn's iteration in C."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._check import F64, afford, array, choice, described, flag, integer, real, rows
from ..gaussian import exact_floats
from ..reference import OU, Brownian
from ..schedule import Schedule
from ._reference import ReferenceProcess
from .laws import probabilities
from .plan import Half, Plan, Samples

MOST_COST = 32768.0  # csrc/exact/cloud.h, DSB_MOST_COST
RATIO = 0.25  # between scales, where no other is asked for
LEAST_RATIO, MOST_RATIO = 1e-30, 0.99  # at most some 800 scales, as MOST_COST bounds their range
LOOSE = 1e-2  # marginal error at which a scale above the target is left
CHUNK = 1000  # half steps of one call of the core, which has room for the error of each
FIRST_COST = 8.0  # largest cost over eps at the first scale


def sinkhorn(
    x: ArrayLike,
    y: ArrayLike,
    schedule: Schedule | float,
    reference: OU | Brownian | None = None,
    *,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    epsilon_scaling: bool | float = True,
    warm_start: Plan | tuple[ArrayLike, ArrayLike] | None = None,
    unconverged: Literal["raise", "return"] = "raise",
) -> Plan:
    r"""The static Schrödinger bridge between two weighted samples: the plan

        P_ij = a_i b_j exp(f_i + g_j - |x_i - y_j|^2 / (2 s2)),   sum_j P_ij = a_i,   sum_i P_ij = b_j,

    which minimises sum_ij P_ij |x_i - y_j|^2 / 2 + s2 KL(P | a b^T), with s2 = 2 T the variance of the
    reference over the whole time.

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or images
        The source's and the prior's end. Bytes are read on the scale -1 .. 1, as `Bridge` reads them.
    schedule : Schedule or float
        The steps, of which only T counts with Brownian motion, or T.
    reference : Brownian or OU, default Brownian()
        With `OU` |x - y|^2 becomes |y - A x - (1 - A) m|^2, and s2 the variance V of the discretised
        transition X_N | X_0 ~ N(A x + (1 - A) m, V I); a schedule is then needed.
    a, b : array_like, shapes (n,) and (m,), optional
        Weights, nonnegative with sum 1 (to 1e-6); equal ones where they are not given.
    tolerance : float
        Stop as soon as sum_i |sum_j P_ij - a_i| + sum_j |sum_i P_ij - b_j| is below: one of the two is
        zero after each half step.
    max_iterations : int
        Of two half steps each, over all scales.
    epsilon_scaling : bool or float
        Begin with a large s2 and multiply it by this number (True: 1/4) whenever the marginal error is
        below max(tolerance, .01). A number is at most .99. False: begin with the s2 that is asked for.
    warm_start : Plan or (f, g), optional
        Potentials to begin with, a plan's scaled by its s2. There is no epsilon scaling then.
    unconverged : {"raise", "return"}
        What to do where `max_iterations` do not suffice.

    Returns
    -------
    Plan
        With potentials f (n,) and g (m,), the error, the history, and what can be read off.

    Raises
    ------
    TypeError, ValueError
        Bad samples or weights, or T is too small for the arithmetic: the message names the smallest T.
    RuntimeError
        Not converged; the message says how far it came.

    Notes
    -----
    In the log domain, float32 pairs with float64 potentials and sums, memory O(n + m), the same bits for
    any number of threads. At convergence the logarithm of an entry of P is good to 4 ulp(c) + 1e-5, ulp(c)
    being the spacing of float32 at the largest c = |x_i - y_j|^2 / (2 s2); c is refused beyond 32,768,
    where that is more than one per cent.

    One half step is one half-bridge of iterative proportional fitting, arXiv:2106.01357, section 2.2.
    POT calls the problem `ot.sinkhorn(a, b, M, reg)` with M = |x - y|^2 and reg = 2 s2 = 4 T.
    """
    samples = _samples(x, y, schedule, reference, a, b)
    _check_reach(samples)
    tolerance = real("tolerance", tolerance, above=0, below=1)
    halves = 2 * integer("max_iterations", max_iterations, 1, 10**9)
    unconverged = choice("unconverged", unconverged, ("raise", "return"))
    f, g = _start(samples, warm_start)
    scales = [samples.variance]
    if warm_start is None:
        scales = _scales(samples, _ratio(epsilon_scaling))
    history: list[Half] = []
    scale = scales[0]
    for k, variance in enumerate(scales):
        last = k + 1 == len(scales)
        left = halves - len(history)
        if not last and left < 2:  # what is left belongs to the scale that is asked for
            continue
        factor = scale / variance  # s2 f is what scales have in common
        f, g, steps = _fit(
            samples,
            (f * factor, g * factor),
            variance,
            tolerance if last else max(tolerance, LOOSE),
            left if last else left - 1,
        )
        past, scale = history[-1].seconds if history else 0.0, variance
        history += [Half(variance, error, past + seconds) for error, seconds in steps]
    error = history[-1].error
    plan = Plan(samples, f, g, history, error, error < tolerance)
    if not plan.converged and unconverged == "raise":
        raise RuntimeError(
            f"sinkhorn: the marginal error is {plan.error:.3g} after {plan.iterations} iterations, "
            f"expected less than tolerance={tolerance:g}; raise max_iterations, the tolerance or T, or "
            "take the plan as it is with unconverged='return'"
        )
    return plan


def sinkhorn_iterates(
    x: ArrayLike,
    y: ArrayLike,
    schedule: Schedule | float,
    reference: OU | Brownian | None = None,
    n: int = 1,
    *,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
) -> list[Plan]:
    r"""The half-bridges 1 .. n of iterative proportional fitting between two samples, as plans.

    It begins with the reference started from the source, f = 0: half-bridges 1, 3, .. (those of backward
    nets) change g so that the prior's end is fitted, 2, 4, .. (forward nets) f so that the source's is. The
    other end is that of a process that perfect nets would simulate: `row_masses` and `column_masses` are its
    weights, and `pairs` draws with them.

    Parameters
    ----------
    x, y, schedule, reference, a, b
        As for `sinkhorn`.
    n : int
        Number of half-bridges, each a plan with potentials of its own; iteration k of a `Bridge` ends with
        half-bridge 2 k.

    Notes
    -----
    Equation 8 of arXiv:2106.01357 on samples.
    """
    samples = _samples(x, y, schedule, reference, a, b)
    _check_reach(samples)
    n = integer("n", n, 1, 10**6)
    afford("n", n, 8 * (len(samples.a) + len(samples.b)))
    f, g = _start(samples, None)
    found: list[F64] = []
    _, _, steps = _fit(samples, (f, g), samples.variance, 0.0, n, found)
    plans: list[Plan] = []
    history: list[Half] = []  # of all plans, each of which knows how much of it is its own
    for k, (error, seconds) in enumerate(steps):
        f, g = (found[k], g) if k % 2 else (f, found[k])
        history.append(Half(samples.variance, error, seconds))
        plans.append(Plan(samples, f, g, history, error, converged=False))
    return plans


def _fit(
    samples: Samples,
    start: tuple[F64, F64],
    variance: float,
    tolerance: float,
    most: int,
    every: list[F64] | None = None,
) -> tuple[F64, F64, list[tuple[float, float]]]:
    """Potentials after at most `most` half steps at one scale, the first of which changes g; error and
    seconds of each. `every` is given the potential that each of them found."""
    first: Literal["source", "target"] = "target"
    (f, g), steps = start, list[tuple[float, float]]()
    while True:
        past = steps[-1][1] if steps else 0.0
        f, g, errors, seconds, _, first, kept = _core.sinkhorn(
            samples.x,
            samples.y,
            samples.a,
            samples.b,
            f,
            g,
            variance,
            first=first,
            tolerance=tolerance,
            most=min(most - len(steps), CHUNK),
            keep=every is not None,
        )
        if every is not None:
            sizes = (len(f), len(g))
            every += [row[: sizes[1 - k % 2]].copy() for k, row in enumerate(kept, len(every))]
        told = zip(errors[1:], seconds[1:], strict=True)
        steps += [(float(error), past + float(second)) for error, second in told]
        if len(steps) == most or errors[-1] < tolerance:
            return f, g, steps


# ---- what is asked for ----


def _weights(name: str, value: ArrayLike | None, n: int) -> F64:
    if value is None:
        return np.full(n, 1.0 / n)
    found = probabilities(name, value)
    if len(found) != n:
        raise ValueError(f"{name}: expected {n} weights, one for each point, got {len(found)}")
    return found


def _samples(
    x: ArrayLike,
    y: ArrayLike,
    schedule: Schedule | float,
    reference: OU | Brownian | None,
    a: ArrayLike | None,
    b: ArrayLike | None,
) -> Samples:
    source = exact_floats("x", rows("x", x, least=1), x)
    target = exact_floats("y", rows("y", y, least=1, dim=source.shape[1]), y)
    process = ReferenceProcess(
        Brownian() if reference is None else reference, schedule, source.shape[1]
    )
    return Samples.of(
        source,
        target,
        _weights("a", a, len(source)),
        _weights("b", b, len(target)),
        process,
    )


def _check_reach(samples: Samples) -> None:
    """Refuses a variance for which float32 would not do."""
    cost = samples.reach / (2.0 * samples.variance)
    if cost <= MOST_COST:
        return
    least = samples.reach / (2.0 * MOST_COST)
    what = f"T: expected at least {least / 2.0:.3g}"
    got = f"{samples.process.T:g}"
    if samples.process.on_grid:
        what = f"schedule: expected a reference that reaches a variance of at least {least:.3g}"
        got = f"{samples.variance:g}"
    raise ValueError(
        f"{what} for points {samples.reach**0.5:.3g} apart, so that float32 holds |x - y|^2 / (2 s2) "
        f"(at most {MOST_COST:,.0f}) to one per cent, got {got}"
    )


def _ratio(epsilon_scaling: bool | float) -> float | None:
    if isinstance(epsilon_scaling, (bool, np.bool_)):
        return RATIO if flag("epsilon_scaling", epsilon_scaling) else None
    return real("epsilon_scaling", epsilon_scaling, least=LEAST_RATIO, most=MOST_RATIO)


def _scales(samples: Samples, ratio: float | None) -> list[float]:
    """Variances, the target last."""
    first = samples.reach / (2.0 * FIRST_COST)
    if ratio is None or not first > samples.variance:
        return [samples.variance]
    count = int(np.ceil(np.log(samples.variance / first) / np.log(ratio)))
    return [float(samples.variance * ratio**-k) for k in range(count, -1, -1)]


def _start(samples: Samples, given: Any) -> tuple[F64, F64]:
    """Potentials to begin with."""
    n, m = len(samples.a), len(samples.b)
    if given is None:
        return np.zeros(n), np.zeros(m)
    if isinstance(given, Plan):
        factor = given.variance / samples.variance
        pair: Any = (given.f * factor, given.g * factor)
    elif isinstance(given, tuple) and len(given) == 2:
        pair = given
    else:
        raise TypeError(f"warm_start: expected a Plan or (f, g), got {type(given).__name__}")
    found: list[F64] = []
    for name, part, size in zip("fg", pair, (n, m), strict=True):
        potential = array("warm_start", part)
        if potential.dtype.kind not in "fiu":
            raise TypeError(
                f"warm_start: expected {name} of numbers, got {described(potential, part)}"
            )
        if potential.shape != (size,):
            raise ValueError(
                f"warm_start: expected {name} of shape ({size},), got shape {potential.shape}"
            )
        found.append(np.array(potential, np.float64))
        if not np.isfinite(found[-1]).all():
            raise ValueError(f"warm_start: expected finite potentials, got {name} with NaN or inf")
    f, g = found
    with np.errstate(over="ignore"):  # what overflows is refused
        spread = max(np.ptp(f), np.ptp(g))
    if spread > MOST_COST:
        raise ValueError(
            f"warm_start: expected potentials in units of s2 that differ by less than {MOST_COST:,.0f}, "
            f"got {spread:.3g}"
        )
    middle = g.max() / 2.0 + g.min() / 2.0
    with np.errstate(over="ignore"):
        f, g = f + middle, g - middle  # the plan does not tell one constant from another
    level = np.abs(f).max()
    if level > MOST_COST:
        raise ValueError(
            f"warm_start: expected f and g in units of s2 whose sum is at most {MOST_COST:,.0f} in size, "
            f"got {level:.3g}"
        )
    return f, g


__all__ = ["Half", "Plan", "sinkhorn", "sinkhorn_iterates"]
