"""What a trained bridge answers: samples, paths and drifts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._build import mixed
from ._check import F32, MAX_ROWS, afford, array, choice, first_nonfinite, flag, integer, points
from .gaussian import floats
from .history import DIRECTIONS, Direction
from .schedule import Schedule

if TYPE_CHECKING:
    from ._answers import Answers


class Request(NamedTuple):
    """How to simulate."""

    direction: Direction
    seed: int | None
    schedule: Schedule | None
    final_noise: bool
    paths: bool = False


def paths(bridge: Answers, start: object, how: Request) -> F32:
    """`Bridge.paths`."""
    if isinstance(start, (int, np.integer)):
        return _simulate(bridge, ("start", "start"), start, None, how)
    return _simulate(bridge, ("start", "start"), None, start, how)


def sample(bridge: Answers, n: object, x: object, how: Request) -> F32:
    """`Bridge.sample`."""
    if (n is None) == (x is None):
        raise ValueError(f"n: expected either n or x, got {'neither' if x is None else 'both'}")
    if not isinstance(n, (int, np.integer)) and hasattr(n, "__len__") and not isinstance(n, str):
        raise TypeError(
            f"n: expected a whole number, got {type(n).__name__}; write sample(x=...) to give the starts"
        )
    return _simulate(bridge, ("n", "x"), n, x, how)


def _simulate(bridge: Answers, names: tuple[str, str], n: object, x: object, how: Request) -> F32:
    """From `n` starts that are drawn or from the starts `x`; `names` are those of the arguments."""
    choice("direction", how.direction, DIRECTIONS)
    flag("final_noise", how.final_noise)
    steps = None if how.schedule is None else _steps(bridge, how.schedule)
    told: dict[str, Any]
    if x is not None:
        told = {"x": _points(names[1], bridge, x)}
        many = len(told["x"])
    else:
        end = bridge._ends[how.direction == "backward"]
        if end.missing:
            raise ValueError(
                f"{names[0]}: starts cannot be drawn, the checkpoint was saved without the {end.name} "
                f"data; give {names[1]}=, or load it with dsb.load(path, {end.name}=...)"
            )
        many = integer(names[0], n, 1, MAX_ROWS)
        told = {"n": many}
    states = 1
    if how.paths:
        states += bridge.schedule.N if steps is None else len(steps)
    what = "paths" if how.paths else "sample"
    afford(what, many, 4 * bridge.dim * states)
    if how.seed is None:
        seed = mixed(bridge._settings.seed, bridge._draws)
        bridge._draws += 1
    else:
        seed = integer("seed", how.seed, 0)
    with bridge._in_line(), bridge._turn:
        result = bridge._core.sample(
            how.direction, seed, steps=steps, final_noise=how.final_noise, paths=how.paths, **told
        )
    return _finite(what, how.direction, result).reshape(*result.shape[:-1], *bridge.shape)


def drift(bridge: Answers, given: object, t: object, direction: Direction) -> F32:
    """`Bridge.drift`."""
    choice("direction", direction, DIRECTIONS)
    x = _points("x", bridge, given)
    times = array("t", t)
    if times.dtype.kind not in "fiu":
        raise TypeError(f"t: expected numbers, got an array of dtype {times.dtype}")
    if times.ndim > 1 or (times.ndim == 1 and len(times) != len(x)):
        raise ValueError(
            f"t: expected a number or shape ({len(x)},), one for each row of x, "
            f"got shape {times.shape}"
        )
    T = bridge.schedule.T
    if not ((times >= 0) & (times <= T * (1 + 1e-6))).all():
        raise ValueError(f"t: expected times in [0, {T:g}], got {times.min():g} .. {times.max():g}")
    single = np.full(len(x), times, dtype=np.float32)
    afford("drift", len(x), 4 * bridge.dim)
    with bridge._in_line(), bridge._turn:
        result = bridge._core.drift(direction, x, single)
    return _finite("drift", direction, result).reshape(-1, *bridge.shape)


def _finite(what: str, direction: Direction, result: F32) -> F32:
    row = first_nonfinite(result)
    if row is not None:
        raise FloatingPointError(
            f"{what}: NaN or infinity in row {row} of the result: the starts lie too far out, or the "
            f"{direction} net has diverged"
        )
    return result


def _points(name: str, bridge: Answers, x: object) -> F32:
    """Points given by the user as rows, [n, d]."""
    found, _ = points(name, x, least=1, shape=bridge.shape)
    return floats(found)


def _steps(bridge: Answers, schedule: Schedule) -> Any:
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
