"""What training recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ._check import F32, I64

Direction = Literal["backward", "forward"]
DIRECTIONS: tuple[Direction, Direction] = ("backward", "forward")


# An empty log.
NOTHING: F32 = np.zeros(0, np.float32)


class Record(NamedTuple):
    """What a callback of `Bridge.fit` is told; loss and norm are means since the record before."""

    iteration: int  # of IPF, from 1
    direction: Direction
    step: int  # done in this half-bridge
    steps: int  # that this half-bridge has
    loss: float
    grad_norm: float
    finished: bool  # this half-bridge ends here


class HalfBridge(NamedTuple):
    """Training of one direction: loss and gradient norm at every step."""

    iteration: int  # of IPF, from 1
    direction: Direction
    loss: F32
    grad_norm: F32


def half_bridge(number: int, loss: F32, grad_norm: F32) -> HalfBridge:
    """Half-bridge `number`, counted from 0: backward ones are even."""
    return HalfBridge(number // 2 + 1, DIRECTIONS[number % 2], loss, grad_norm)


class History(Sequence[HalfBridge]):
    r"""Loss (mean over rows and coordinates, weighted) and gradient norm before clipping.

    A sequence of `HalfBridge`, oldest first; `loss`, `grad_norm`, `iteration`, `direction` and `step`
    are vectors over all steps, one behind the other, ready to plot.

    The loss has a positive floor, the variance of its target, and jumps after the first half-bridge,
    whose closed-form target has less noise.
    """

    def __init__(self, parts: Sequence[HalfBridge] = ()) -> None:
        self._parts = tuple(parts)

    @overload
    def __getitem__(self, index: int) -> HalfBridge: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> HalfBridge | History:
        if isinstance(index, slice):
            return History(self._parts[index])
        return self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[HalfBridge]:
        return iter(self._parts)

    @property
    def loss(self) -> F32:
        """Loss of every step."""
        return _joined([part.loss for part in self._parts])

    @property
    def grad_norm(self) -> F32:
        """Norm of the gradient at every step."""
        return _joined([part.grad_norm for part in self._parts])

    @property
    def iteration(self) -> I64:
        """IPF iteration, from 1, of every step."""
        return np.repeat(
            np.array([part.iteration for part in self._parts], np.int64), self._counts()
        )

    @property
    def direction(self) -> NDArray[np.str_]:
        """ "backward" or "forward" for every step."""
        return np.repeat(np.array([part.direction for part in self._parts], "U8"), self._counts())

    @property
    def step(self) -> I64:
        """Number of every step in its half-bridge, from 0."""
        counts = [np.arange(count, dtype=np.int64) for count in self._counts()]
        return np.concatenate(counts) if counts else np.empty(0, np.int64)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """The vectors by name."""
        names = ("iteration", "direction", "step", "loss", "grad_norm")
        return {name: getattr(self, name) for name in names}

    def _counts(self) -> I64:
        return np.array([len(part.loss) for part in self._parts], dtype=np.int64)

    def __repr__(self) -> str:
        if not self._parts:
            return "History: no steps yet"
        lines = [f"{'IPF':>4} {'direction':<9} {'steps':>7} {'loss, first':>12} {'last tenth':>12} "
                 f"{'grad norm':>10}"]  # fmt: skip
        for part in self._parts:
            n = len(part.loss)
            tenth = max(1, n // 10)
            told = [part.loss[:tenth], part.loss[-tenth:], part.grad_norm]
            first, last, norm = (f"{a.mean():.4g}" if n else "-" for a in told)
            lines.append(
                f"{part.iteration:>4} {part.direction:<9} {n:>7} {first:>12} {last:>12} {norm:>10}"
            )
        return "\n".join(lines)


def _joined(parts: list[F32]) -> F32:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
