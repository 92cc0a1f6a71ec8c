"""Schrödinger bridges between two sets of samples, trained in C.

Five iterations between a Gaussian and a Swiss roll:

    x = dsb.datasets.toy("swiss_roll", 10_000, seed=0)
    bridge = dsb.Bridge(x, schedule=dsb.Schedule.constant(20, 0.25))
    bridge.fit(ipf=5)
    y = bridge.sample(1000)
    bridge.save("swiss.safetensors")
    bridge = dsb.load("swiss.safetensors")

Images are arrays (n, c, h, w), and their nets `dsb.UNet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from ._core import DeviceError, get_num_threads
except ValueError as error:  # DSB_ISA: the core names what it offers
    from os import environ

    from ._check import nearest

    _offered = str(error).rpartition("offers ")[2].split(", ")
    raise ValueError(f"{error}{nearest(environ.get('DSB_ISA', ''), _offered)}") from None
from ._info import info, set_num_threads
from .bridge import Bridge
from .gaussian import Gaussian
from .history import History, Record
from .mlp import MLP
from .reference import OU, Brownian
from .schedule import Schedule
from .unet import UNet

if TYPE_CHECKING:
    from . import datasets, exact, metrics, nn, plot, reproduce
    from .checkpoint import load
    from .comparison import compare

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "OU",
    "Bridge",
    "Brownian",
    "DeviceError",
    "Gaussian",
    "History",
    "Record",
    "Schedule",
    "UNet",
    "compare",
    "datasets",
    "exact",
    "get_num_threads",
    "info",
    "load",
    "metrics",
    "nn",
    "plot",
    "reproduce",
    "set_num_threads",
]

_LAZY = ("datasets", "exact", "metrics", "nn", "plot", "reproduce")
_FROM = {"compare": "comparison", "load": "checkpoint"}


def __getattr__(name: str) -> Any:
    """What not every program needs is imported when it is first asked for."""
    from importlib import import_module

    if name in _LAZY:
        return import_module(f".{name}", __name__)
    if name in _FROM:
        globals()[name] = getattr(import_module(f".{_FROM[name]}", __name__), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
