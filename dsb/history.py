"""What training recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ._check import F32, F64, I64

Direction = Literal["backward", "forward"]
DIRECTIONS: tuple[Direction, Direction] = ("backward", "forward")


FLOOR = "_floor"  # ends the name of what two exact samples measure, which stands beside an error

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
    errors: dict[str, float]  # as in `HalfBridge`; empty until the half-bridge is finished


class HalfBridge(NamedTuple):
    """Training of one direction: loss and gradient norm at every step, and what it came to."""

    iteration: int  # of IPF, from 1
    direction: Direction
    loss: F32
    grad_norm: F32
    errors: dict[str, float]  # by `evaluate` of `Bridge.fit`; empty where there was none


def is_floor(name: str) -> bool:
    """Whether an error of this name is the sampling floor of another."""
    return name.endswith(FLOOR)


def half_bridge(
    number: int, loss: F32, grad_norm: F32, errors: dict[str, float] | None = None
) -> HalfBridge:
    """Half-bridge `number`, counted from 0: backward ones are even."""
    told = {} if errors is None else errors
    return HalfBridge(number // 2 + 1, DIRECTIONS[number % 2], loss, grad_norm, told)


class History(Sequence[HalfBridge]):
    r"""Loss (mean over rows and coordinates, weighted) and gradient norm before clipping.

    A sequence of `HalfBridge`, oldest first; `loss`, `grad_norm`, `iteration`, `direction` and `step`
    are vectors over all steps, one behind the other, ready to plot; `errors`, which `evaluate` of
    `Bridge.fit` measured, has a number for each half-bridge.

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

    @property
    def errors(self) -> dict[str, F64]:
        """By name, the error after every half-bridge, shape (len(history),); NaN where none was measured."""
        names = dict.fromkeys(name for part in self._parts for name in part.errors)
        return {
            name: np.array([part.errors.get(name, np.nan) for part in self._parts])
            for name in names
        }

    def numpy(self) -> dict[str, NDArray[Any]]:
        """The vectors by name, all of one length.

        An error is called "errors." and its name; it stands at the last step of its half-bridge, the
        other steps have NaN.
        """
        names = ("iteration", "direction", "step", "loss", "grad_norm")
        told: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        counts = self._counts()
        last = np.cumsum(counts) - 1
        for name, values in self.errors.items():
            told[f"errors.{name}"] = np.full(int(counts.sum()), np.nan)
            told[f"errors.{name}"][last[counts > 0]] = values[counts > 0]
        return told

    def _counts(self) -> I64:
        return np.array([len(part.loss) for part in self._parts], dtype=np.int64)

    def __repr__(self) -> str:
        if not self._parts:
            return "History: no steps yet"
        wide = {name: max(len(name), 10) for name in self.errors if not is_floor(name)}
        lines = [f"{'IPF':>4} {'direction':<9} {'steps':>7} {'loss, first':>12} {'last tenth':>12} "
                 f"{'grad norm':>10}" + "".join(f" {name:>{w}}" for name, w in wide.items())]  # fmt: skip
        for part in self._parts:
            n = len(part.loss)
            tenth = max(1, n // 10)
            told = [part.loss[:tenth], part.loss[-tenth:], part.grad_norm]
            first, last, norm = (f"{a.mean():.4g}" if n else "-" for a in told)
            measured = "".join(
                f" {format(part.errors[name], '.4g') if name in part.errors else '-':>{w}}"
                for name, w in wide.items()
            )
            lines.append(
                f"{part.iteration:>4} {part.direction:<9} {n:>7} {first:>12} {last:>12} {norm:>10}"
                + measured
            )
        return "\n".join(lines)


def _joined(parts: list[F32]) -> F32:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
