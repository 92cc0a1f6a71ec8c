"""How much training each method gets: a time, or a number of gradient steps."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from .._check import nearest, shown
from .._fit import MAX_STEPS
from ..bridge import Bridge
from ..history import Record
from ..reproduce import _setup

UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
STEPS = ("step", "steps")
FEW = 4  # steps of a half-bridge that is timed, at first
MOST = 3200  # and at most
TIMED = 4  # half-bridges: two iterations, as the first ones may be cheaper
AGAIN = 3  # times; the shortest of each counts, as others may use the machine too


class Timing(NamedTuple):
    """Half-bridges 0 and 1, and the mean of later ones, take fixed + steps * step seconds each.

    What does not grow with the steps is the estimate of a learned covariance, and little else.
    """

    fixed: tuple[float, ...]
    step: tuple[float, ...]

    def seconds(self, half_bridges: int, steps: float) -> float:
        """Of training."""
        told = zip(_counts(half_bridges), self.fixed, self.step, strict=False)
        return sum(count * (fixed + steps * step) for count, fixed, step in told)

    def steps(self, half_bridges: int, seconds: float) -> int:
        """Of each half-bridge, so that training takes no longer; may be 0."""
        each = self.seconds(half_bridges, 1) - self.seconds(half_bridges, 0)
        return max(0, math.floor((seconds - self.seconds(half_bridges, 0)) / each))


def _counts(half_bridges: int) -> tuple[int, int, int]:
    """Of first, second and later half-bridges."""
    return min(half_bridges, 1), min(max(half_bridges - 1, 0), 1), max(half_bridges - 2, 0)


class Budget(NamedTuple):
    """What training of one method and seed may take, evaluation apart."""

    text: str
    seconds: float | None
    gradient_steps: int | None

    @classmethod
    def of(cls, given: object) -> Budget:
        """From "90 s", "2 min", "1 h" or "40000 steps"."""
        wanted = (
            'expected a time or a number of steps, such as "90 s", "2 min", "1 h", "40000 steps"'
        )
        if not isinstance(given, str):
            raise TypeError(f"budget: {wanted}, got {shown(given)}")
        found = re.fullmatch(r"\s*([0-9][0-9_.eE+-]*)\s*([a-zA-Z]+)\s*", given)
        try:
            amount = float(found[1]) if found else math.nan
        except ValueError:
            amount = math.nan
        if found is None or not (amount > 0 and math.isfinite(amount)):
            raise ValueError(f"budget: {wanted}, got {shown(given)}")
        unit = found[2].lower()
        if unit in STEPS and amount == int(amount):
            return cls(f"{int(amount)} steps", None, int(amount))
        if unit in UNITS:
            seconds = UNITS[unit] * amount
            return cls(f"{seconds:g} s", seconds, None)
        raise ValueError(f"budget: {wanted}, got {shown(given)}{nearest(unit, [*UNITS, *STEPS])}")

    def steps(self, half_bridges: int, timing: Callable[[], Timing], whose: str) -> int:
        """Gradient steps of each half-bridge; ValueError where that would be none, or too many."""
        if self.gradient_steps is not None:
            steps = self.gradient_steps // half_bridges
            least = f"{half_bridges} steps"
        else:
            assert self.seconds is not None
            timed = timing()
            steps = timed.steps(half_bridges, self.seconds)
            least = f"{timed.seconds(half_bridges, 1):.2g} s"
        many = f"{half_bridges} half-bridge{'s' * (half_bridges > 1)}"
        if steps < 1:
            raise ValueError(
                f"budget: {self.text} does not suffice for a step in each of the {many} of {whose}; "
                f"that takes {least}, or fewer iterations (ipf)"
            )
        if steps > MAX_STEPS:
            raise ValueError(
                f"budget: {self.text} makes {steps:,} steps in each of the {many} of {whose}; "
                f"expected at most {MAX_STEPS:,}, so a smaller budget or more iterations (ipf)"
            )
        return steps

    def missed(self, seconds: float) -> bool:
        """Whether a time was asked for, and this one is more than a tenth off."""
        return self.seconds is not None and abs(seconds / self.seconds - 1.0) > 0.1


def timed(make: Callable[[], Bridge], half_bridges: int, enough: float) -> Timing:
    """Times short runs of new bridges, of which an iteration takes about `enough` seconds."""
    bridge = make()
    several = min(half_bridges, TIMED)
    _lasting(bridge, several, FEW)  # pages of memory, caches
    least = sum(_lasting(bridge, 2, FEW))
    enough = max(enough, least / 2)  # so that steps stand out of what else there is
    few = FEW
    while few < MOST:
        few = min(2 * few, MOST)
        if sum(_lasting(bridge, 2, few)) - least >= enough:
            break
    short, long = (
        [
            min(each)
            for each in zip(*(_lasting(make(), several, n) for _ in range(AGAIN)), strict=True)
        ]
        for n in (max(few // 4, 1), few)
    )
    shorter = few - max(few // 4, 1)
    fixed, step = [], []
    for a, b in zip(_folded(short), _folded(long), strict=True):
        slope = (b - a) / shorter
        if slope <= 0:  # too short to be told from the noise of the clock
            slope = b / few
        step.append(slope)
        fixed.append(max(0.0, b - few * slope))
    return Timing(tuple(fixed), tuple(step))


def _lasting(bridge: Bridge, half_bridges: int, steps: int) -> list[float]:
    """Seconds of each of so many half-bridges."""
    ends = [time.perf_counter()]

    def after(given: Bridge, record: Record) -> None:
        ends.append(time.perf_counter())

    _setup.train(bridge, half_bridges, steps, after, progress=False)
    return [later - end for end, later in pairwise(ends)]


def _folded(seconds: list[float]) -> list[float]:
    """Those of the first, the second, and the mean of later half-bridges."""
    later = seconds[2:]
    return seconds[:2] + ([sum(later) / len(later)] if later else [])
