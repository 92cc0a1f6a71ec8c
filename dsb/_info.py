"""What this installation is and where it runs."""

from __future__ import annotations

from typing import Any

from . import _core
from ._check import integer

MAX_THREADS = 256


class Info(dict[str, Any]):
    """A dict that shows itself as a table."""

    def __repr__(self) -> str:
        def shown(value: Any) -> str:
            return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

        return "\n".join(f"{name:<18} {shown(value)}" for name, value in self.items())


def info() -> Info:
    """Version, instruction sets, threads, memory: a dict; `print(dsb.info())` shows it as a table.

    "instruction set" is the one in use (the environment variable DSB_ISA, read at import, forces
    another of "available"), and "precisions" are those that it computes itself.
    """
    import platform

    import numpy as np

    from . import __version__

    found = Info(dsb=__version__)
    found["device"] = "cpu"
    found["instruction set"] = _core.isa()
    found["available"] = _core.isas()
    found["precisions"] = _core.precisions()
    found["threads"] = _core.get_num_threads()
    found["memory"] = f"{_core.memory_available() / 2**30:.1f} GiB available"
    found["compiler"] = _core.compiler()
    found["numpy"] = np.__version__
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def set_num_threads(threads: int) -> None:
    """Sets the number of threads, 1 to 256, of all bridges; results do not depend on it."""
    _core.set_num_threads(integer("threads", threads, 1, MAX_THREADS))
