"""The progress bar of fit: tqdm's, in a terminal or a notebook."""

from __future__ import annotations

import sys
import warnings
from types import TracebackType
from typing import Any

from .history import is_floor


class Progress:
    """A bar over the gradient steps of one call; does nothing where it is not shown."""

    def __init__(self, shown: bool | None, total: int) -> None:
        self._bar: Any = None
        self._place = self._loss = self._measured = ""
        if _wanted(shown):
            with warnings.catch_warnings():  # without widgets a notebook shows the bar as text
                warnings.filterwarnings("ignore", message="IProgress not found")
                from tqdm.auto import tqdm  # 50 ms: only where a bar is drawn

            self._bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def begin(self, iteration: int, last: int, direction: str) -> None:
        self._place = f"IPF {iteration}/{last} {direction}"
        if self._bar is not None:
            self._bar.set_description(self._place)

    def advance(self, steps: int, loss: float) -> None:
        self._loss = f"loss {loss:.4g}"
        if self._bar is not None:
            self._bar.set_postfix_str(self._loss + self._measured, refresh=False)
            self._bar.update(steps)

    def doing(self, what: str) -> None:
        """Between gradient steps; "" when it is done."""
        if self._bar is not None:
            self._bar.set_description(f"{self._place}, {what}" if what else self._place)

    def evaluated(self, direction: str, errors: dict[str, float]) -> None:
        """Shows the errors of the half-bridge that ended, until those of the next are known."""
        told = ", ".join(f"{name} {brief(e)}" for name, e in errors.items() if not is_floor(name))
        if told:
            self._measured = f"; {direction}: {told}"
        if self._bar is not None:
            self._bar.set_description(self._place, refresh=False)
            self._bar.set_postfix_str(self._loss + self._measured)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def brief(value: float) -> str:
    """Three digits, and no 0 before the point: a progress line is short."""
    text = f"{value:.3g}"
    return text[1:] if text.startswith("0.") else text


def _wanted(shown: bool | None) -> bool:
    if shown is not None:
        return shown
    shell = sys.modules.get("IPython")
    kernel = shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
    # A notebook's stderr is no terminal, but it shows bars.
    return kernel or bool(getattr(sys.stderr, "isatty", lambda: False)())
