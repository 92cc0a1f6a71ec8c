"""What a run will cost, from a few steps of the very nets and data on this very machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..bridge import Bridge
from ._machine import Watch, memory_in_use

ENOUGH = 0.25  # seconds of an iteration that is timed
MOST_STEPS = 3200


class Cost(NamedTuple):
    """Of one seed."""

    parameters: int  # of each of the two nets
    gradient_steps: int
    step: float  # seconds of one, its share of the simulation included
    training: float  # seconds
    evaluation: float  # seconds
    memory: int  # bytes of the process at its peak, all that it holds besides included
    known: float = 0.0  # seconds of `Experiment.expected`, once for all seeds
    estimates: float = 0.0  # of the seconds of training, those that learned covariances take

    @property
    def seconds(self) -> float:
        return self.training + self.evaluation


def of_training(bridge: Bridge, iterations: int, steps: int) -> Cost:
    """Times an iteration of a few steps, and counts all iterations alike.

    The bridge is trained by that: it is to be thrown away. Simulation is foreseen with it, because the
    core simulates just the pairs that these few steps read. The first half-bridge, which needs none
    where it is in closed form, is left out: one of many.
    """
    # With the bridge's data and whatever else is kept; nets and cache come on top as they are trained.
    held = memory_in_use() + bridge.memory()["total"]
    few = min(steps, 4)
    bridge.fit(1, few, progress=False)  # pages of memory, caches
    while True:
        with Watch() as later:
            bridge.fit(1, few, progress=False)
        most = min(steps, MOST_STEPS)
        if later.seconds >= ENOUGH or few >= most:
            break
        few = min(most, max(2 * few, math.ceil(few * ENOUGH / max(later.seconds, 1e-4))))
    total = later.seconds / few * steps * iterations
    done = 2 * iterations * steps
    return Cost(bridge.net.n_parameters, done, total / done, total, 0.0, held)


def scaled(
    call: Callable[[int], object], n: int, powers: tuple[float, float], small: tuple[int, int]
) -> tuple[float, int]:
    """Seconds and bytes of call(n), from the sizes `small`.

    Where n is no larger than these it is run itself. Otherwise both grow with the power that the two
    sizes show, held within `powers` for seconds, and between 0 and 2 for bytes.
    """
    low, high = small
    if n <= high:
        with Watch() as watch:
            call(n)
        return watch.seconds, watch.bytes
    with Watch() as first:
        call(low)
    with Watch() as second:
        call(high)
    growth = n / high
    lead = math.log(high / low)

    def power(small: float, large: float, least: float, most: float) -> float:
        found = math.log(max(large, 1e-9) / max(small, 1e-9)) / lead
        return min(max(found, least), most)

    time = second.seconds * growth ** power(first.seconds, second.seconds, *powers)
    return time, int(second.bytes * growth ** power(first.bytes, second.bytes, 0.0, 2.0))
