"""What can be read off a bridge."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

from . import _core, _turns
from ._check import Rows, Shape
from ._ends import End
from ._fit import Fit
from ._settings import Settings
from .gaussian import Gaussian
from .history import HalfBridge
from .nn import Graph
from .reference import OU, Brownian
from .schedule import Schedule


class Evaluations(NamedTuple):
    """Rows of x that went through a net."""

    simulation: int  # to fill the cache and to estimate covariances; the reference is no net
    training: int  # forth and back, in gradient steps


class Facts:
    """What a `Bridge` is made of, and its properties."""

    _core: _core.Bridge
    _ends: tuple[End, End]
    _schedule: Schedule
    _reference: OU | Brownian
    _settings: Settings
    _graph: Graph
    _label: str  # of the net
    _finished: list[HalfBridge]
    _draws: int  # samples drawn without a seed

    # Set by _turns.enrol.
    _guard: _turns.Lock
    _turn: _turns.Lock
    _queue: _turns.Lock
    _run: Fit | None

    @property
    def dim(self) -> int:
        """Dimension d; c h w for images."""
        return self._ends[0].dim

    @property
    def shape(self) -> Shape:
        """Shape of one point: (d,), or (c, h, w) for images."""
        return self._ends[0].image or self._ends[1].image or (self.dim,)

    @property
    def source(self) -> Rows | Gaussian | None:
        """The samples or the Gaussian at time 0; None where a checkpoint did not hold them."""
        return self._ends[0].given

    @property
    def prior(self) -> Rows | Gaussian | None:
        """The samples or the Gaussian at time T; None where a checkpoint did not hold them."""
        return self._ends[1].given

    @property
    def schedule(self) -> Schedule:
        """The steps of training."""
        return self._schedule

    @property
    def reference(self) -> OU | Brownian:
        """The process that the bridge stays close to."""
        return self._reference

    @property
    def net(self) -> Graph:
        """Architecture of both nets (a copy)."""
        return Graph(self._graph.ops)

    @property
    def settings(self) -> Settings:
        """Convention, objective, batch, optimiser, seed and so on, with every default filled in."""
        return self._settings._replace(
            microbatch=self.microbatch, lanes=self.lanes, refresh=self._core.refresh
        )

    @property
    def microbatch(self) -> int:
        """Rows that one worker takes at a time."""
        return self._core.microbatch

    @property
    def lanes(self) -> int:
        """Partial sums of the gradient."""
        return self._core.lanes

    @property
    def iteration(self) -> int:
        """Finished IPF iterations."""
        return self._core.half_bridge // 2

    @property
    def half_bridge(self) -> int:
        """Finished half-bridges: two an iteration, backward first."""
        return self._core.half_bridge

    @property
    def step(self) -> int:
        """Gradient steps done in the half-bridge under way, 0 where none is."""
        return self._core.step

    @property
    def evaluations(self) -> Evaluations:
        """Rows put through a net by `fit` since the bridge was made or loaded: what methods cost.

        A simulation that was interrupted is done again, and counts once.
        """
        return Evaluations(self._core.simulation_evaluations, self._core.training_evaluations)

    def memory(self) -> dict[str, int]:
        """Bytes that the bridge holds or will hold, by purpose and in total; data not counted."""
        return self._core.memory()

    def _in_line(self) -> AbstractContextManager[object]:
        """`with bridge._in_line(), bridge._turn:` has the core between two chunks of steps."""
        if self._turn._is_owned():  # as threading.Condition asks
            raise RuntimeError(
                "the bridge was called by a signal handler in the middle of its own work; raise "
                "KeyboardInterrupt there, and call the bridge once that has ended"
            )
        queue: AbstractContextManager[object] = self._queue
        return queue
