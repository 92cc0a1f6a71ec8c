"""Who may use a bridge's core: one fit, everyone else in turn; and what a fork leaves of it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ._fit import Fit
    from .bridge import Bridge

Lock = Any  # threading.RLock is a function to type checkers
_bridges: weakref.WeakSet[Bridge] = weakref.WeakSet()

FORKED = (
    "this bridge was in use by another thread when the process was forked, so that its state here may "
    "be half updated; load a checkpoint of it with dsb.load(path)"
)


class Forked:
    """Stands in a child for the core that another thread of the parent was using."""

    def __init__(self, core: object) -> None:
        self.core = core  # never freed: its lock stays locked

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(FORKED)


def enrol(bridge: Bridge) -> None:
    """Gives a bridge its locks.

    `_turn` is held by whoever uses the core. Others than fit hold `_queue` too while they wait and
    work; fit passes through it between two chunks of steps, so that it cannot starve them. `_guard` is
    held for a moment to look at `_run`, the fit that is under way. All may be taken again by the
    thread that holds them, as a signal handler would.
    """
    bridge._guard, bridge._turn, bridge._queue = (threading.RLock() for _ in range(3))
    bridge._run = None
    _bridges.add(bridge)


def begin(bridge: Bridge, run: Fit) -> None:
    """Makes `run` the one fit that is active."""
    with bridge._guard:
        if bridge._run is not None and bridge._run.active:
            raise RuntimeError("this bridge is being fitted already: one fit at a time")
        bridge._run = run
        run.thread = threading.get_ident()
        run.active = True


def end(bridge: Bridge, run: Fit) -> None:
    """`run` is over, and what it holds, the bridge itself among it, may go with its last user."""
    run.active = False
    with bridge._guard:
        if bridge._run is run:
            bridge._run = None


def _after_fork() -> None:
    """In the child only the thread that forked lives on; what others held is held for ever."""
    for bridge in list(_bridges):
        turn: Any = bridge._turn
        mine = turn._is_owned()
        if not mine and not turn.acquire(blocking=False):
            bridge.__dict__["_core"] = Forked(bridge._core)
        if not mine:  # else a signal handler forked, and goes back to the work that it interrupted
            bridge._guard, bridge._turn, bridge._queue = (threading.RLock() for _ in range(3))
        run = bridge._run
        if run is not None and run.thread != threading.get_ident():
            run.active = False


os.register_at_fork(after_in_child=_after_fork)
