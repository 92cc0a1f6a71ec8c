"""The reference process between two times, and pinned at both ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from .._check import F32, F64, real, shown, single
from ..gaussian import USER_STREAM
from ..reference import OU, Brownian
from ..schedule import Schedule

# First words of the Philox counter. The numbers above the low byte keep these draws apart from each
# other, from those of `Gaussian.sample` (0), the data sets (1, 2, ..) and the metrics (from 192).
COUPLING, PATHS, MARGINAL, MIXTURE, SPHERE, CONDITIONAL, IMPORTANCE = (
    USER_STREAM | (128 + number) << 8 for number in range(7)
)
CLOSE = 1e-6  # relative to T: times that float32 has rounded are still times of the grid


class Pinned(NamedTuple):
    """X_t given X_s = x and X_u = y, s <= t <= u, is N(p x + q y + c, r I)."""

    p: float
    q: float
    r: float
    c: F64  # (d,)


class ReferenceProcess:
    r"""The reference, started anywhere: X_t given X_s = x is N(a x + (1 - a) m, v I).

    Brownian motion: a = 1, v = 2 (t - s), at any times. The discretised Ornstein-Uhlenbeck process
    X_{k+1} = a_k X_k + (1 - a_k) m + sqrt(2 g_k) Z with a_k = 1 - g_k / var, between times of the grid:
    a = prod a_k, and v <- a_k^2 v + 2 g_k.

    Parameters
    ----------
    reference : OU or Brownian
    schedule : Schedule or float
        The steps; Brownian motion is content with the final time T.
    dim : int
    discrete : bool
        Whether only times of the grid are defined; with an OU reference they always are.

    Raises
    ------
    TypeError, ValueError
        An OU reference without steps, or one whose mean has another dimension.
    """

    __slots__ = (
        "T",
        "_factors",
        "_noise",
        "_times",
        "dim",
        "mean",
        "on_grid",
        "reference",
        "schedule",
    )

    def __init__(
        self,
        reference: OU | Brownian,
        schedule: Schedule | float,
        dim: int,
        discrete: bool = False,
    ) -> None:
        if not isinstance(reference, (OU, Brownian)):
            raise TypeError(
                f"reference: expected dsb.OU or dsb.Brownian, got {type(reference).__name__}"
            )
        self.reference = reference
        self.on_grid = discrete or isinstance(reference, OU)
        self.schedule: Schedule | None = None
        if isinstance(schedule, Schedule):
            self.schedule, self.T = schedule, schedule.T
        elif isinstance(reference, OU):
            raise TypeError(
                "schedule: expected a dsb.Schedule (the exact OU reference is the discretised one), "
                f"got {shown(schedule)}"
            )
        else:
            # Noise of variance 2 T is drawn in float32; its square has to be within float64.
            self.T = single("schedule", real("schedule", schedule, above=0))
        self.dim = dim
        reference.centre(dim)  # refuses a mean of another dimension
        self.mean: F64 = np.zeros(dim)
        if isinstance(reference, OU):
            self.mean = np.full(dim, reference.mean)
        steps = schedule.steps if isinstance(schedule, Schedule) else np.zeros(0)
        self._times = schedule.times if isinstance(schedule, Schedule) else np.zeros(0)
        self._factors: F64 = 1.0 - steps * reference.precision
        self._noise: F64 = 2.0 * steps
        with np.errstate(over="ignore", invalid="ignore"):
            a, v = self.transition(0.0, self.T)
            if not np.isfinite(a * a * v):
                raise ValueError(
                    f"schedule: expected steps below 2 var = {2.0 / reference.precision:g}, beyond which "
                    f"the discretised OU process explodes, got {steps.max():g}"
                )

    def index(self, t: float) -> int:
        """The k with t = t_k.

        Raises
        ------
        ValueError
            t is not a time of the grid; the message names the nearest one.
        """
        k = int(np.abs(self._times - t).argmin())
        if not abs(self._times[k] - t) <= CLOSE * self.T:
            raise ValueError(
                f"t: expected a time of the schedule, got {t:g}; the nearest is "
                f"t_{k} = {self._times[k]:.9g}"
            )
        return k

    def time(self, t: object) -> float:
        """A time in [0, T], and of the grid where that is needed."""
        found = real("t", t)
        if not -CLOSE * self.T <= found <= (1 + CLOSE) * self.T:
            raise ValueError(f"t: expected a time in [0, {self.T:g}], got {found:g}")
        if self.on_grid:
            return float(self._times[self.index(found)])
        return min(max(found, 0.0), self.T)

    def transition(self, s: float, t: float) -> tuple[float, float]:
        """(a, v) from time s to time t >= s."""
        if not self.on_grid:
            return 1.0, 2.0 * (t - s)
        i, j = self.index(s), self.index(t)
        # What is left at t of the noise of step k has been multiplied by all factors behind it.
        behind = np.append(np.cumprod(self._factors[i:j][::-1])[::-1], 1.0)
        return float(behind[0]), float(self._noise[i:j] @ np.square(behind[1:]))

    def pinned(self, s: float, t: float, u: float) -> Pinned:
        """X_t given X_s and X_u, s <= t <= u and s < u: arXiv:2303.16852, section 2, in steps."""
        before, noise_before = self.transition(s, t)
        after, noise_after = self.transition(t, u)
        # With (a, v) and (b, w) of the two parts, X_u given X_s has the variance w + b^2 v.
        total = noise_after + after**2 * noise_before
        q = after * noise_before / total
        rest = noise_after / total
        c = (rest * (1.0 - before) - q * (1.0 - after)) * self.mean
        return Pinned(rest * before, q, rest * noise_before, c)

    def steps_of(self, schedule: Schedule | None) -> Schedule:
        """The schedule of paths: the one given, or the own one.

        Raises
        ------
        TypeError, ValueError
            There is none, T disagrees, or the reference is defined on another grid only.
        """
        if schedule is None:
            if self.schedule is None:
                raise ValueError(
                    "schedule: expected a dsb.Schedule, as the problem was made with T alone, got None"
                )
            return self.schedule
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}")
        if not abs(schedule.T - self.T) <= CLOSE * self.T:
            raise ValueError(f"schedule: expected one with T = {self.T:g}, got T = {schedule.T:g}")
        if self.on_grid and schedule != self.schedule:
            raise ValueError(
                f"schedule: expected {self.schedule!r}, the steps for which the problem is defined, "
                f"got {schedule!r}"
            )
        return schedule

    def times_of(self, schedule: Schedule | None) -> F64:
        """t_0 .. t_N of `steps_of`, the last of them T exactly."""
        times = self.steps_of(schedule).times
        times[-1] = self.T
        return times

    def bridge_at(self, x0: F32, xN: F32, t: float, seed: int) -> F32:
        """A draw of X_t for every pair of ends, shape [n, d]."""
        pinned = self.pinned(0.0, t, self.T)
        z = _core.normals(seed, MARGINAL, 0, 0, len(x0), self.dim)
        middle = pinned.p * x0 + pinned.q * xN + pinned.c + np.sqrt(pinned.r) * z
        return np.asarray(middle, dtype=np.float32)

    def bridge_paths(self, x0: F32, xN: F32, schedule: Schedule | None, seed: int) -> F32:
        """A draw of X_{t_0} .. X_{t_N} for every pair of ends, shape [n, N + 1, d]."""
        times = self.times_of(schedule)
        paths = np.empty((len(x0), len(times), self.dim), dtype=np.float32)
        paths[:, 0], paths[:, -1] = x0, xN
        now = x0.astype(np.float64)
        for k in range(1, len(times) - 1):
            pinned = self.pinned(times[k - 1], times[k], self.T)
            z = _core.normals(seed, PATHS, k, 0, len(x0), self.dim)
            now = pinned.p * now + pinned.q * xN + pinned.c + np.sqrt(pinned.r) * z
            paths[:, k] = now
        return paths
