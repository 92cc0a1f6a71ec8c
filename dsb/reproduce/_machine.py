"""Where a run takes place, and what it takes of the place."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import _core
from .._info import set_num_threads

_PACKAGES = ("numpy", "POT", "matplotlib")


def describe() -> dict[str, Any]:
    """Everything about the machine and the programs that a figure may depend on."""
    import numpy as np

    from .. import __version__

    found: dict[str, Any] = {
        "dsb": __version__,
        "processor": _processor(),
        "instruction set": _core.isa(),
        "threads": _core.get_num_threads(),
        "compiler": _core.compiler(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
    }
    for name in _PACKAGES[1:]:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The model's name, with family and number where the name alone says little."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            told[key.strip()] = value.strip()
    name = told.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in told and "model" in told:
        name += f" (family {told['cpu family']}, model {told['model']})"
    return name


def _status(field: str) -> int:
    """A number of bytes from /proc/self/status; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def memory_in_use() -> int:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes of this process that were in memory, since it began or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """From now on `peak_memory` is about what comes; not everywhere permitted, then nothing happens."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Of the core, as many within; None changes nothing."""
    before = _core.get_num_threads()
    if number is not None:
        set_num_threads(number)
    try:
        yield
    finally:
        _core.set_num_threads(before)


class Watch:
    """`with Watch() as watch:` seconds taken, and bytes at the peak above those at the start."""

    def __enter__(self) -> Watch:
        forget_peak()
        self._before = memory_in_use()
        self._start = time.perf_counter()
        self.seconds, self.bytes = 0.0, 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self.bytes = max(0, peak_memory() - self._before)


def seconds(number: float) -> str:
    """A duration as one reads it."""
    if number < 0.0995:
        return f"{1e3 * number:.3g} ms"
    if number < 99.5:
        return f"{number:.2g} s" if number < 9.95 else f"{number:.0f} s"
    if number < 5970:
        return f"{number / 60:.0f} min"
    return f"{number / 3600:.1f} h"


def size(number: float) -> str:
    """An amount of memory as one reads it."""
    return f"{number / 2**20:.0f} MiB" if number < 2**30 else f"{number / 2**30:.1f} GiB"
