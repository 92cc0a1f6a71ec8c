"""The progress bar of fit: tqdm's, in a terminal or a notebook."""

from __future__ import annotations

import sys
import warnings
from types import TracebackType
from typing import Any


class Progress:
    """A bar over the gradient steps of one call; does nothing where it is not shown."""

    def __init__(self, shown: bool | None, total: int) -> None:
        self._bar: Any = None
        if _wanted(shown):
            with warnings.catch_warnings():  # without widgets a notebook shows the bar as text
                warnings.filterwarnings("ignore", message="IProgress not found")
                from tqdm.auto import tqdm  # 50 ms: only where a bar is drawn

            self._bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def begin(self, iteration: int, last: int, direction: str) -> None:
        if self._bar is not None:
            self._bar.set_description(f"IPF {iteration}/{last} {direction}")

    def advance(self, steps: int, loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(steps)

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


def _wanted(shown: bool | None) -> bool:
    if shown is not None:
        return shown
    shell = sys.modules.get("IPython")
    kernel = shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
    # A notebook's stderr is no terminal, but it shows bars.
    return kernel or bool(getattr(sys.stderr, "isatty", lambda: False)())
