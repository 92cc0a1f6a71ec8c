"""Weights of a bridge's nets by name, as PyTorch has them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._check import F32, array, path_of
from .history import NOTHING, Direction

if TYPE_CHECKING:
    from .bridge import Bridge
    from .nn import Graph

LISTED = 3  # names in a message
DTYPES = ("float16", "float32", "float64")


class Loaded(NamedTuple):
    """What `Bridge.load_state_dict` left alone."""

    missing: list[str]  # names of the net that were not loaded
    unexpected: list[str]  # names given that were not used


def get(bridge: Bridge, direction: Direction, ema: bool) -> dict[str, F32]:
    """`Bridge.state_dict`."""
    if ema and not bridge._settings.ema:
        raise ValueError("ema: expected a bridge made with ema=, this one keeps no average")
    with bridge._in_line(), bridge._turn:
        plane = bridge._core.get_plane(direction, "ema" if ema else "theta")
    return bridge._graph.unpack(plane)


def save(bridge: Bridge, path: str | os.PathLike[str], direction: Direction, ema: bool) -> None:
    """`Bridge.save_state_dict`."""
    from safetensors.numpy import save as serialise

    from ._files import target_of, write

    path = path_of(path)
    target_of(path)
    weights = get(bridge, direction, ema)
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise FloatingPointError(f"{name}: holds NaN or infinity; nothing was saved")
    write(path, serialise(weights, metadata={"format": "pt"}))  # as PyTorch's own files say


def load(bridge: Bridge, direction: Direction, weights: object, strict: bool) -> Loaded:
    """`Bridge.load_state_dict`."""
    given = weights if isinstance(weights, Mapping) else _read(weights)
    values, left = _fitting(bridge._graph, given, strict)
    core = bridge._core
    with bridge._in_line(), bridge._turn:
        if core.steps:
            raise RuntimeError("a half-bridge is under way: finish it with fit(ipf=0) first")
        bridge._collect()
        for which in ("theta", "ema") if bridge._settings.ema else ("theta",):
            plane = bridge._graph.pack(values, core.get_plane(direction, which))
            core.set_plane(direction, which, plane)
        for moment in ("m", "v"):
            core.set_plane(direction, moment, np.zeros(bridge._graph.plane, np.float32))
        position = core.get_position()
        position[f"adam_{direction}"], position[f"trained_{direction}"] = 0, 1
        core.set_position(position, NOTHING, NOTHING)
        core.set_covariance(direction, None, 0)  # it belonged to the old weights
    return left


def _fitting(
    graph: Graph, given: Mapping[Any, object], strict: bool
) -> tuple[dict[str, F32], Loaded]:
    """The weights that have their place in the net, checked, and the names without."""
    wanted = graph.parameters
    found = {name: _array(name, given[name]) for name in wanted if name in given}
    misshapen = [name for name, value in found.items() if value.shape != wanted[name]]
    missing = [name for name in wanted if name not in found]
    unexpected = [str(name) for name in given if name not in wanted]
    if strict and (missing or unexpected or misshapen):
        shapes = (f"{n} (expected {wanted[n]}, got {found[n].shape})" for n in misshapen)
        told = [
            _listed("missing", len(missing), missing),
            _listed("unexpected", len(unexpected), unexpected),
            _listed("of another shape", len(misshapen), shapes),
        ]
        raise ValueError(
            f"weights: expected exactly the names and shapes of state_dict(); {'; '.join(filter(None, told))}"
        )
    values = {}
    for name, value in found.items():
        if name not in misshapen:
            with np.errstate(all="ignore"):  # what does not fit is refused in the next line
                values[name] = value.astype(np.float32)
            if not np.isfinite(values[name]).all():
                raise ValueError(f"weights[{name!r}]: expected finite numbers, got NaN or infinity")
    return values, Loaded(missing + misshapen, unexpected + misshapen)


def _listed(what: str, many: int, names: Iterable[str]) -> str:
    """`what`: the first few names."""
    if many == 0:
        return ""
    first = [name[:120] for name, _ in zip(names, range(LISTED), strict=False)]
    more = f" and {many - LISTED} more" if many > LISTED else ""
    return f"{what}: {', '.join(first)}{more}"


def _array(name: str, value: Any) -> NDArray[Any]:
    """A weight as NumPy sees it; a tensor of PyTorch's lets go of its history first."""
    for step in ("detach", "cpu"):
        if not isinstance(value, np.ndarray) and callable(getattr(value, step, None)):
            value = getattr(value, step)()
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # NumPy has none; float32 holds it
        value = value.float()
    found = array(f"weights[{name!r}]", value)
    if found.dtype.name not in DTYPES:
        raise TypeError(f"weights[{name!r}]: expected {', '.join(DTYPES)}, got {found.dtype}")
    return found


def _read(path: object) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"weights: expected a dict of arrays or the path of a file, got {type(path).__name__}"
        )
    from safetensors import SafetensorError, safe_open

    from .checkpoint import KEY

    path = path_of(path)
    with open(path, "rb"):  # the usual OSError
        pass
    try:
        file: Any = safe_open(path, framework="numpy")
        if KEY in (file.metadata() or {}):
            raise ValueError(f"{path}: a checkpoint of a whole bridge; read it with dsb.load(path)")
        names: list[str] = file.keys()
        return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError) as error:
        advice = "; write bfloat16 as float32" if "bfloat16" in str(error) else ""
        raise ValueError(f"{path}: not a safetensors file of weights: {error}{advice}") from None
