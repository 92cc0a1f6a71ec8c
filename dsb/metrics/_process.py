"""A trained bridge and an exact problem, asked in the same way."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .._build import mixed
from .._check import F32, F64, array, choice, described, shown
from ..history import Direction
from ..schedule import Schedule
from ._samples import samples

Start = Literal["exact", "own"] | ArrayLike


def is_bridge(value: object) -> bool:
    """Whether it is a `dsb.Bridge`."""
    from ..bridge import Bridge

    return isinstance(value, Bridge)


class Process:
    """What a metric asks of a bridge or a problem: paths in order of time, and drifts of rows."""

    def __init__(self, name: str, given: Any) -> None:
        self.name, self.given = name, given
        self.trained = is_bridge(given)
        if not self.trained and not (hasattr(given, "sample_paths") and hasattr(given, "drift")):
            raise TypeError(
                f"{name}: expected a dsb.Bridge or a problem of dsb.exact, got {shown(given)}"
            )

    @property
    def dim(self) -> int:
        """d."""
        return int(self.given.dim)

    @property
    def schedule(self) -> Schedule | None:
        """Its own steps."""
        found: Schedule | None = self.given.schedule
        return found

    def paths(
        self,
        n: int,
        seed: int,
        direction: Direction,
        schedule: Schedule,
        start: ArrayLike | None = None,
        final_noise: bool = True,
    ) -> F32:
        """n paths [n, N + 1, d] at t_0 .. t_N, of a bridge those of `direction`."""
        if not self.trained:
            found: F32 = self.given.sample_paths(n, schedule=schedule, seed=seed)
            return found
        grid = None if schedule == self.given.schedule else schedule
        if start is not None and len(self.given.shape) == 3:
            start = np.asarray(start).reshape(-1, *self.given.shape)
        drawn = self.given.paths(
            n if start is None else start,
            direction=direction,
            seed=seed,
            schedule=grid,
            final_noise=final_noise,
        )
        flat: F32 = drawn.reshape(*drawn.shape[:2], -1)
        return flat if direction == "forward" else flat[:, ::-1]

    def drift(self, x: F32 | F64, t: float, direction: Direction) -> F64:
        """Of rows [n, d]; float64."""
        if not self.trained:
            return np.asarray(self.given.drift(x, t, direction), np.float64)
        rows = x.reshape(-1, *self.given.shape)
        drift = self.given.drift(rows, min(t, self.given.schedule.T), direction)
        return np.asarray(drift, np.float64).reshape(x.shape)


def schedule_of(given: Schedule | None, *processes: Process) -> Schedule:
    """The steps to go by: those given, or the first that a process has; with the T of all of them."""
    if given is not None and not isinstance(given, Schedule):
        raise TypeError(f"schedule: expected a dsb.Schedule, got {shown(given)}")
    own = [process.schedule for process in processes]
    found = given or next((schedule for schedule in own if schedule is not None), None)
    if found is None:
        raise ValueError("schedule: expected a dsb.Schedule, since none of the processes has one")
    for process, schedule in zip(processes, own, strict=True):
        T = process.given.T if schedule is None else schedule.T
        if not np.isclose(T, found.T, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"{process.name}: expected T = {found.T:g}, that of the schedule, got {T:g}"
            )
    return found


def same_dimension(one: Process, other: Process) -> None:
    """ValueError where they do not live in the same space."""
    if one.dim != other.dim:
        raise ValueError(
            f"{other.name}: expected dimension {one.dim}, that of {one.name}, got {other.dim}"
        )


def paths_of(
    process: Process,
    problem: Any,
    direction: Direction,
    schedule: Schedule,
    start: Start,
    n: int,
    seed: int,
    final_noise: bool,
) -> F32:
    """Paths of `process` from where `start` says: exact draws, its own, or given points."""
    own = isinstance(start, str) and choice("start", start, ("exact", "own")) == "own"
    if not process.trained:
        refuse_start(start)
    if not process.trained or own:
        return process.paths(n, mixed(seed, 0), direction, schedule, None, final_noise)
    if isinstance(start, str):
        if not hasattr(problem, "marginal"):
            raise ValueError(
                "start: expected 'own' or points, since no exact problem is here to draw them"
            )
        end = schedule.T if direction == "backward" else 0.0
        begin = problem.marginal(end).sample(n, seed=mixed(seed, 1))
    else:
        begin = samples("start", start, dim=process.dim)
    return process.paths(n, mixed(seed, 0), direction, schedule, begin, final_noise)


def refuse_start(start: Start) -> None:
    """ValueError for points to start from where no paths of a bridge are simulated."""
    if isinstance(start, str):
        choice("start", start, ("exact", "own"))
        return
    raise ValueError(
        "start: expected to be left out where no bridge walks, since only the paths of one start where they "
        f"are told to, got {shown(start)}"
    )


def given_paths(name: str, value: object, dim: int, states: int | None = None) -> F32 | F64:
    """Paths given as an array [n, N + 1, d], in order of time."""
    found = array(name, value)
    if found.dtype.kind != "f":
        raise TypeError(f"{name}: expected floats, got {described(found, value)}")
    if found.ndim != 3 or found.shape[2] != dim or states not in (None, found.shape[1]):
        wanted = f"(n, {'N + 1' if states is None else states}, {dim})"
        raise ValueError(f"{name}: expected paths of shape {wanted}, got {found.shape}")
    if len(found) < 2:
        raise ValueError(f"{name}: expected at least 2 paths, got {len(found)}")
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        raise ValueError(
            f"{name}: expected finite numbers, got {found[tuple(bad[0])]} in path {bad[0][0]}"
        )
    return found
