"""What a trained bridge answers: samples, paths and drifts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._build import mixed
from ._check import F32, array, choice, flag, integer, rows
from .history import DIRECTIONS, Direction
from .schedule import Schedule

if TYPE_CHECKING:
    from .bridge import Bridge


class Request(NamedTuple):
    """How to simulate."""

    direction: Direction
    seed: int | None
    schedule: Schedule | None
    final_noise: bool
    paths: bool


def sample(bridge: Bridge, n: int | None, x: object, how: Request) -> F32:
    """`Bridge.sample` and `Bridge.paths`."""
    choice("direction", how.direction, DIRECTIONS)
    flag("final_noise", how.final_noise)
    if (n is None) == (x is None):
        raise ValueError(f"n: expected either n or x, got {'neither' if x is None else 'both'}")
    steps = None if how.schedule is None else _steps(bridge, how.schedule)
    told: dict[str, Any]
    if x is not None:
        told = {"x": _points(bridge, x)}
    else:
        end = bridge._ends[how.direction == "backward"]
        if end.missing:
            raise ValueError(
                f"n: starts cannot be drawn, the checkpoint was saved without the {end.name} data; "
                f"give x=, or load it with dsb.load(path, {end.name}=...)"
            )
        told = {"n": integer("n", n, 1, 2**31 - 1)}
    if how.seed is None:
        seed = mixed(bridge._settings.seed, bridge._draws)
        bridge._draws += 1
    else:
        seed = integer("seed", how.seed, 0)
    with bridge._in_line(), bridge._turn:
        return bridge._core.sample(
            how.direction, seed, steps=steps, final_noise=how.final_noise, paths=how.paths, **told
        )


def drift(bridge: Bridge, x: object, t: object, direction: Direction) -> F32:
    """`Bridge.drift`."""
    choice("direction", direction, DIRECTIONS)
    points = _points(bridge, x)
    times = array("t", t)
    if times.dtype.kind not in "fiu":
        raise TypeError(f"t: expected numbers, got an array of dtype {times.dtype}")
    if times.ndim > 1 or (times.ndim == 1 and len(times) != len(points)):
        raise ValueError(
            f"t: expected a number or shape ({len(points)},), one for each row of x, "
            f"got shape {times.shape}"
        )
    T = bridge.schedule.T
    if not ((times >= 0) & (times <= T * (1 + 1e-6))).all():
        raise ValueError(f"t: expected times in [0, {T:g}], got {times.min():g} .. {times.max():g}")
    single = np.full(len(points), times, dtype=np.float32)
    with bridge._in_line(), bridge._turn:
        return bridge._core.drift(direction, points, single)


def _points(bridge: Bridge, x: object) -> F32:
    points = rows("x", x, least=1, dim=bridge.dim)
    if points.dtype == np.uint8:
        return (points * np.float32(2 / 255) - np.float32(1)).astype(np.float32)
    return points  # type: ignore[return-value]


def _steps(bridge: Bridge, schedule: Schedule) -> Any:
    """Steps other than those of training, checked; None where they are the same."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}")
    settings, T = bridge._settings, bridge.schedule.T
    if schedule == bridge.schedule:
        return None
    if settings.output != "drift" or settings.convention != "grid":
        raise ValueError(
            "schedule: sampling with other steps than in training needs output='drift' and "
            f"convention='grid', got {settings.output!r} and {settings.convention!r}"
        )
    if not np.isclose(schedule.T, T, rtol=1e-6, atol=0.0):
        raise ValueError(f"schedule: expected the T of training, {T:g}, got {schedule.T:g}")
    return schedule.steps
