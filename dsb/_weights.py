"""Weights of a bridge's nets by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ._check import F32, array
from .history import NOTHING, Direction

if TYPE_CHECKING:
    from .bridge import Bridge


def get(bridge: Bridge, direction: Direction, ema: bool) -> dict[str, F32]:
    """`Bridge.state_dict`."""
    if ema and not bridge._settings.ema:
        raise ValueError("ema: expected a bridge made with ema=, this one keeps no average")
    with bridge._in_line(), bridge._turn:
        plane = bridge._core.get_plane(direction, "ema" if ema else "theta")
    return {name: plane[span].reshape(shape).copy() for name, shape, span in bridge._graph.spans()}


def set(bridge: Bridge, direction: Direction, weights: object) -> None:
    """`Bridge.load_state_dict`."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a dict of arrays, got {type(weights).__name__}")
    wanted = bridge._graph.parameters
    missing, unknown = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    if missing or unknown:
        raise ValueError(
            f"weights: expected the names of state_dict(), got {sorted(map(str, unknown))} too many "
            f"and {sorted(missing)} too few"
        )
    plane = np.zeros(bridge._graph.plane, dtype=np.float32)
    for name, shape, span in bridge._graph.spans():
        value = array(f"weights[{name!r}]", weights[name])
        if value.dtype.kind != "f" or value.shape != shape:
            raise ValueError(
                f"weights[{name!r}]: expected floats of shape {shape}, "
                f"got {value.dtype} of shape {value.shape}"
            )
        with np.errstate(all="ignore"):  # what does not fit is refused in the next line
            plane[span] = value.reshape(-1)
        if not np.isfinite(plane[span]).all():
            raise ValueError(f"weights[{name!r}]: expected finite numbers, got NaN or infinity")
    core = bridge._core
    with bridge._in_line(), bridge._turn:
        if core.steps:
            raise RuntimeError("a half-bridge is under way: finish it with fit(ipf=0) first")
        bridge._collect()
        core.set_plane(direction, "theta", plane)
        for moment in ("m", "v"):
            core.set_plane(direction, moment, np.zeros_like(plane))
        if bridge._settings.ema:
            core.set_plane(direction, "ema", plane)
        position = core.get_position()
        position[f"adam_{direction}"], position[f"trained_{direction}"] = 0, 1
        core.set_position(position, NOTHING, NOTHING)
