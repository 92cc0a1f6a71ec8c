"""Timed bursts, and the state that the tiles were in.

Products of AMX tiles on shared machines run at one of two speeds, about four times apart, and change
between them within seconds. A burst that uses tiles is put between two looks at their speed and belongs
to the state that both agree on; sides are compared within a state.
"""

from __future__ import annotations

from typing import NamedTuple

from machine import Peak
from report import Series

FAST, SLOW, MIXED = "tiles fast", "tiles slow", "tiles changing"
STATES = ("", FAST, SLOW)


class Sample(NamedTuple):
    value: float
    before: float | None  # speed of the tiles; None: not looked at
    after: float | None


class Key(NamedTuple):
    task: str
    side: str
    threads: int


class Tiles:
    def __init__(self, there: bool) -> None:
        self.there = there

    def look(self, peak: Peak, threads: int) -> float | None:
        return peak.measure(threads, 20, "amx") if self.there else None


class Samples:
    def __init__(self) -> None:
        self._all: dict[Key, list[Sample]] = {}

    def add(
        self,
        key: Key,
        value: float,
        before: float | None = None,
        after: float | None = None,
    ) -> None:
        self._all.setdefault(key, []).append(Sample(value, before, after))

    def _bounds(self) -> dict[int, float]:
        """Half of the best look at each number of threads: between the two states."""
        best: dict[int, float] = {}
        for key, samples in self._all.items():
            for sample in samples:
                for look in (sample.before, sample.after):
                    if look is not None:
                        best[key.threads] = max(best.get(key.threads, 0.0), look)
        return {threads: look / 2 for threads, look in best.items()}

    def series(self) -> dict[tuple[Key, str], Series]:
        """By state as well; "" where the tiles were not looked at."""
        bounds, out = self._bounds(), {}
        for key, samples in self._all.items():
            for value, before, after in samples:
                state = ""
                if before is not None and after is not None:
                    bound = bounds[key.threads]
                    fast = (before >= bound, after >= bound)
                    state = FAST if all(fast) else MIXED if any(fast) else SLOW
                out.setdefault((key, state), Series()).add(value)
        return out

    def median(self, task: str, side: str, threads: int) -> float | None:
        """In the first state that there are samples of."""
        series = self.series()
        for state in (*STATES, MIXED):
            found = series.get((Key(task, side, threads), state))
            if found is not None:
                return found.median
        return None

    def rivals(self, task: str) -> list[str]:
        """PyTorch's ways."""
        return [k.side for k in self._all if k.task == task and not k.side.startswith("dsb")]

    def fastest(self, task: str, threads: int) -> str:
        """PyTorch's fastest way."""
        sides = [s for s in self.rivals(task) if self.median(task, s, threads) is not None]
        return min(sides, key=lambda side: self.median(task, side, threads) or 0.0)

    def ratios(self, task: str, side: str, rival_task: str, threads: int) -> dict[str, float]:
        """How many times faster `side` is than PyTorch's fastest way, in each state."""
        series, out = self.series(), {}
        for state in STATES:
            ours = series.get((Key(task, side, threads), state))
            theirs = [
                series[key, of].median
                for key, of in series
                if key.task == rival_task and key.threads == threads and of in ("", state)
                if not key.side.startswith("dsb")
            ]
            if ours is not None and theirs:
                out[state] = min(theirs) / ours.median
        return out
