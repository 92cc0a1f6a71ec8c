"""The loop of Bridge.fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ._check import flag, integer, shown
from ._covariance import warn_of_raised
from ._evaluate import Evaluation, warn_of_nan
from ._progress import Progress
from .history import DIRECTIONS, Direction, Record

if TYPE_CHECKING:
    from .bridge import Bridge

MAX_STEPS = 10_000_000  # of a half-bridge: its log is 80 MB then
FIRST_STEPS = 5000  # of a half-bridge, where none was begun before and nothing is asked for
CHUNK = 0.1  # seconds of work between two looks at the progress bar


class Fit:
    """One call: its arguments, checked."""

    def __init__(
        self,
        bridge: Bridge,
        ipf: int,
        steps: int | None,
        callback: Callable[[Bridge, Record], object] | None,
        log_every: int,
        progress: bool | None,
        evaluate: object = None,
    ) -> None:
        self.active, self.thread = False, 0
        self.bridge = bridge
        for end in bridge._ends:
            end.refuse_missing()
        self.ipf = integer("ipf", ipf, 0)
        self.steps = 0 if steps is None else integer("steps", steps, 1, MAX_STEPS)
        self.log_every = integer("log_every", log_every, 1)
        self.callback = callback
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function, got {shown(callback)}")
        self.progress = None if progress is None else flag("progress", progress)
        self.evaluation = None if evaluate is None else Evaluation(bridge, evaluate)

    def __call__(self) -> None:
        core = self.bridge._core
        for end in self.bridge._ends:
            end.fingerprint()
        self.steps = self.steps or self.steps_before()
        begun = int(core.steps > 0)
        target = 2 * ((core.half_bridge + begun + 1) // 2 + self.ipf)
        left = (target - core.half_bridge - begun) * self.steps + core.steps - core.step
        with Progress(self.progress, left) as bar:
            while core.half_bridge < target:
                bar.begin(core.half_bridge // 2 + 1, target // 2, DIRECTIONS[core.half_bridge % 2])
                self.half_bridge(bar)

    def steps_before(self) -> int:
        """Of the last half-bridge that was begun."""
        bridge = self.bridge
        with bridge._in_line(), bridge._turn:
            parts = bridge._parts()
            return bridge._core.steps or (len(parts[-1].loss) if parts else FIRST_STEPS)

    def half_bridge(self, bar: Progress) -> None:
        """The rest of one half-bridge, which is begun first if need be."""
        bridge, core = self.bridge, self.bridge._core
        number = core.half_bridge
        iteration, direction = number // 2 + 1, DIRECTIONS[number % 2]
        with bridge._turn:
            if core.steps == 0:
                bridge._collect()
                core.begin(self.steps)
        steps, step = core.steps, core.step
        # Where only the estimate of covariances is missing, the last record is: it is told here.
        reported = step if step < steps else (step - 1) // self.log_every * self.log_every
        while core.half_bridge == number:
            boundary = min(steps, (step // self.log_every + 1) * self.log_every)
            done = self.run(boundary - step) if step < steps else 0
            step += done
            first = min(reported, max(step - self.log_every, 0))
            loss, norm = core.log(first)
            bar.advance(done, float(loss[-self.log_every :].mean()))
            if step == steps and core.half_bridge == number:
                self.estimate(bar, direction)
            errors = self.measure(bar, number) if step == steps else {}
            if self.callback is not None and step == boundary:
                new = slice(reported - first, None)
                means = float(loss[new].mean()), float(norm[new].mean())
                reported = step
                record = Record(iteration, direction, step, steps, *means, step == steps, errors)
                self.callback(bridge, record)

    def estimate(self, bar: Progress, direction: Direction) -> None:
        """The covariances of the steps just trained, which ends the half-bridge."""
        bar.doing("covariances")
        self.run(0)
        bar.doing("")
        warn_of_raised(self.bridge, direction)

    def measure(self, bar: Progress, number: int) -> dict[str, float]:
        """Errors of half-bridge `number`, which has just ended; they go into its history."""
        if self.evaluation is None:
            return {}
        bridge, direction = self.bridge, DIRECTIONS[number % 2]
        bar.doing("evaluating")
        errors = self.evaluation(direction)
        with bridge._in_line(), bridge._turn:
            bridge._collect()
            bridge._finished[number] = bridge._finished[number]._replace(errors=errors)
        bar.evaluated(direction, errors)
        warn_of_nan(errors, number // 2 + 1, direction)
        return dict(errors)

    def run(self, steps: int) -> int:
        """Some of `steps` gradient steps, or the estimate behind the last, once nobody else waits."""
        bridge = self.bridge
        with bridge._queue:
            pass
        with bridge._turn:
            return bridge._core.run(steps, CHUNK)
