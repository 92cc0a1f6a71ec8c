"""The loop of Bridge.fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ._check import integer
from ._progress import Progress
from .history import DIRECTIONS, Record

if TYPE_CHECKING:
    from .bridge import Bridge

MAX_STEPS = 10_000_000  # of a half-bridge: its log is 80 MB then
CHUNK = 0.1  # seconds of work between two looks at the progress bar


class Fit:
    """One call: its arguments, checked."""

    def __init__(
        self,
        bridge: Bridge,
        ipf: int,
        steps: int,
        callback: Callable[[Bridge, Record], object] | None,
        log_every: int,
    ) -> None:
        self.bridge = bridge
        self.ipf = integer("ipf", ipf, 0)
        self.steps = integer("steps", steps, 1, MAX_STEPS)
        self.log_every = integer("log_every", log_every, 1)
        self.callback = callback
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function, got {callback!r}")

    def __call__(self, progress: bool | None) -> None:
        core = self.bridge._core
        begun = int(core.steps > 0)
        target = 2 * ((core.half_bridge + begun + 1) // 2 + self.ipf)
        left = (target - core.half_bridge - begun) * self.steps + core.steps - core.step
        with Progress(progress, left) as bar:
            while core.half_bridge < target:
                bar.begin(core.half_bridge // 2 + 1, target // 2, DIRECTIONS[core.half_bridge % 2])
                self.half_bridge(bar)

    def half_bridge(self, bar: Progress) -> None:
        """The rest of one half-bridge, which is begun first if need be."""
        bridge, core = self.bridge, self.bridge._core
        iteration, direction = core.half_bridge // 2 + 1, DIRECTIONS[core.half_bridge % 2]
        with bridge._turn:
            if core.steps == 0:
                bridge._collect()
                core.begin(self.steps)
        steps, step = core.steps, core.step
        reported = step
        while step < steps:
            boundary = min(steps, (step // self.log_every + 1) * self.log_every)
            done = self.run(boundary - step)
            step += done
            loss, norm = core.log()
            bar.advance(done, float(loss[-self.log_every :].mean()))
            if self.callback is not None and step == boundary:
                means = float(loss[reported:].mean()), float(norm[reported:].mean())
                reported = step
                record = Record(iteration, direction, step, steps, *means, step == steps)
                self.callback(bridge, record)

    def run(self, steps: int) -> int:
        """Some of `steps` gradient steps, once nobody else waits for the bridge."""
        bridge = self.bridge
        with bridge._queue:
            pass
        with bridge._turn:
            return bridge._core.run(steps, CHUNK)
