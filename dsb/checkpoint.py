"""Checkpoints: safetensors files from which a bridge goes on bit for bit.

Layout: one metadata entry "dsb" with JSON (settings, net, position, layout of the history, SHA-256 of
every tensor and of the JSON itself), and tensors: planes `<direction>.theta`, `.m`, `.v`, `.ema` as the
core lays them out, `history.loss`, `history.grad_norm`, `schedule.steps`, `reference.mean`, and for each
end either `<end>.data` or `<end>.mean` and `<end>.cov`; `<direction>.covariance`, in order of time, where it
was estimated, with the number of raised eigenvalues under "raised" in the metadata. Where errors were
measured, "errors" in the metadata has their names for each finished half-bridge, and `history.errors` the
values one behind the other.

A file is input from strangers. Everything that it claims is compared with the sizes in its header, which
safetensors has compared with the length of the file, before anything of a claimed size is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import _build, _core
from ._check import Shape, path_of, shown
from ._ends import End
from ._evaluate import is_recorded_name
from ._files import target_of, write
from ._settings import PRECISIONS, Settings, clip_of, rate_of
from .gaussian import Gaussian
from .history import DIRECTIONS, NOTHING, half_bridge
from .nn import Graph
from .reference import OU, Brownian
from .schedule import MAX_STEPS, Schedule

if TYPE_CHECKING:
    from .bridge import Bridge

FORMAT = 3
KEY = "dsb"
AUTO_DATA = 64 << 20
MAX_HEADER = 16 << 20
ENDS = ("source", "prior")
POSITION = ("half_bridge", "step", "steps", "adam_backward", "adam_forward", "trained_backward",
            "trained_forward")  # fmt: skip
DTYPES = {"F32": "float32", "F64": "float64", "U8": "uint8"}

REFERENCES = ("OU", "Brownian")
SEAL = "metadata_sha256"

_warned: set[tuple[str, str]] = set()


class _Refusal(ValueError):
    """What is wrong with a file; the name of the file is put before it."""


# ---- writing ----


def save(bridge: Bridge, path: str | os.PathLike[str], data: bool | Literal["auto"]) -> None:
    """`Bridge.save`."""
    from safetensors.numpy import save as serialise

    if not isinstance(data, (bool, np.bool_)) and not (isinstance(data, str) and data == "auto"):
        raise ValueError(f"data: expected True, False or 'auto', got {shown(data)}")
    path = path_of(path)
    target_of(path)
    tensors, told = _state(bridge, data)
    told["sha256"] = {name: _digest(tensor) for name, tensor in sorted(tensors.items())}
    told[SEAL] = _seal(told)
    write(path, serialise(tensors, metadata={KEY: _canonical(told)}))


def _state(
    bridge: Bridge, data: bool | Literal["auto"]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata, taken between two chunks of steps."""
    settings = bridge.settings
    tensors: dict[str, NDArray[Any]] = {"schedule.steps": bridge.schedule.steps}
    raised: dict[str, int] = {}
    with bridge._in_line(), bridge._turn:
        parts = bridge._parts()
        position = bridge._core.get_position()
        for direction in DIRECTIONS:
            for plane in _planes(settings):
                tensors[f"{direction}.{plane}"] = bridge._core.get_plane(direction, plane)
            covariance, raised[direction] = bridge._core.get_covariance(direction)
            if covariance is not None:
                tensors[f"{direction}.covariance"] = covariance
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise FloatingPointError(
                f"{name}: holds NaN or infinity; training has diverged, and nothing was saved"
            )
    empty = np.empty(0, np.float32)
    tensors["history.loss"] = np.concatenate([empty, *(part.loss for part in parts)])
    tensors["history.grad_norm"] = np.concatenate([empty, *(part.grad_norm for part in parts)])
    errors = [part.errors for part in parts]
    if any(errors):
        tensors["history.errors"] = np.array(
            [e for some in errors for e in some.values()], np.float64
        )
    reference = bridge.reference
    if isinstance(reference, OU):
        tensors["reference.mean"] = reference.mean
    told = {
        "format": FORMAT,
        "version": _version(),
        "isa": _core.isa(),
        "compiler": _core.compiler(),
        "precision": _build.precision_in_use(settings.precision),
        "shape": list(bridge.shape),
        "net": bridge._graph.ops,
        "net_label": bridge._label,
        "settings": settings._asdict(),
        "loss_weight": settings.loss_weight,
        "reference": {"kind": "OU", "var": reference.var}
        if isinstance(reference, OU)
        else {"kind": "Brownian"},
        "position": {name: position[name] for name in POSITION},
        "history": [len(part.loss) for part in parts],
        "ends": _save_ends(bridge._ends, data, tensors),
        "raised": raised,
    }
    if any(errors):
        told["errors"] = [list(some) for some in errors[: position["half_bridge"]]]
    return tensors, told


def _save_ends(
    ends: tuple[End, End], data: bool | Literal["auto"], tensors: dict[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    arrays = [end.data for end in ends if end.data is not None]
    stored = sum(a.nbytes for a in arrays) <= AUTO_DATA if data == "auto" else bool(data)
    absent = [end.name for end in ends if end.missing]
    if data is not False and data != "auto" and absent:
        raise ValueError(
            f"data: cannot be stored, the rows of {' and '.join(absent)} are not here; "
            f"load the checkpoint with dsb.load(path, {absent[0]}=...)"
        )
    told: list[dict[str, Any]] = []
    for end in ends:
        if end.gaussian is not None:
            tensors[f"{end.name}.mean"] = end.gaussian.mean
            tensors[f"{end.name}.cov"] = end.gaussian._cov
            told.append({})
            continue
        if stored and end.data is not None:
            tensors[f"{end.name}.data"] = end.data
        assert end.shape is not None
        scale, shift = end.scaling
        told.append({"rows": end.shape[0], "columns": end.shape[1], "dtype": end.dtype,
                     "scale": scale, "shift": shift, "sha256": end.unchanged()})  # fmt: skip
    return told


# ---- reading ----


def load(
    path: str | os.PathLike[str],
    source: object = None,
    prior: object = None,
    *,
    learning_rate: float | None = None,
    clip: float | None = None,
) -> Bridge:
    """The bridge that `Bridge.save` wrote, ready to sample and to go on training bit for bit.

    Parameters
    ----------
    path : path-like
    source, prior : array_like, optional
        The data of an end, where the file does not hold them. They must be the rows the bridge was made
        with: their SHA-256 is compared. Without them the bridge samples, but does not fit.
    learning_rate, clip : float, optional
        In place of those the bridge was made with, say after a divergence. It then no longer goes on as
        the uninterrupted run would have. Default: as saved.

    Raises
    ------
    OSError
        The file cannot be read: FileNotFoundError, PermissionError and so on.
    ValueError
        The file is truncated, damaged, not a checkpoint of dsb, or written by a newer version; or the
        data given are not the ones it was made with. The message names the file.

    Warns
    -----
    UserWarning
        Once, where the file was made with another instruction set: the bits then differ from those of
        an uninterrupted run, within rounding.
    """
    path = path_of(path)
    # Wrong arguments are no fault of the file.
    if learning_rate is not None:
        rate_of(learning_rate)
    if clip is not None:
        clip_of(clip)
    try:
        tensors, told = _read(path)
        return _bridge(tensors, told, {"source": source, "prior": prior}, (learning_rate, clip))
    except _Refusal as refusal:
        raise ValueError(f"{path}: {str(refusal)[:500]}") from refusal.__cause__
    except MemoryError as error:
        raise MemoryError(f"{path}: {error}") from None


def _refuse(message: str, cause: BaseException | None = None) -> NoReturn:
    raise _Refusal(message) from cause


class _Tensors:
    """Tensors by name; each is read when it is asked for, in the dtype and shape that are expected."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.names = set(file.keys())
        self.digests: dict[str, str] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.names:
            _refuse(f"the tensor {name!r} is missing")
        return tuple(self._file.get_slice(name).get_shape())

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        found = DTYPES.get(self._file.get_slice(name).get_dtype()) if name in self.names else None
        if self.shape(name) != shape or found != dtype:
            _refuse(f"the tensor {name!r} has shape {self.shape(name)}, expected {dtype} {shape}")
        tensor: NDArray[Any] = self._file.get_tensor(name)
        if self.digests.get(name) != _digest(tensor):
            _refuse(f"the tensor {name!r} is damaged: its SHA-256 differs")
        return tensor


def _read(path: str) -> tuple[_Tensors, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:  # the usual OSError, and a word on what kind of file it is
        head = file.read(9)
        size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:] != b"{":
        _refuse("not a safetensors file, or cut off in its first bytes")
    if length > min(MAX_HEADER, size - 8):
        _refuse(f"truncated or not a checkpoint: its header claims {length} bytes of {size}")
    try:
        opened: Any = safe_open(path, framework="numpy")
        metadata = opened.metadata() or {}
    except SafetensorError as error:
        _refuse(f"truncated or damaged: {error}", error)
    if KEY not in metadata:
        _refuse("a safetensors file, but not a checkpoint of dsb")
    try:
        told = json.loads(metadata[KEY], parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"its metadata cannot be read: {error}", error)
    if not isinstance(told, dict) or not _is_count(told.get("format")) or told["format"] < 1:
        _refuse("its metadata is not that of a checkpoint of dsb")
    if told["format"] > FORMAT:
        by = f"{_word(told.get('version'), 20)}, format {told['format']}"
        _refuse(f"written by a newer dsb ({by}); this is {_version()}, which reads format {FORMAT}")
    seal = told.pop(SEAL, None)
    try:
        whole = seal == _seal(told)
    except RecursionError as error:
        _refuse(f"its metadata cannot be read: {error}", error)
    if not whole:
        _refuse("its metadata are damaged: their SHA-256 differs")
    tensors = _Tensors(opened)
    tensors.digests = _field(told, "sha256", dict)
    return tensors, told


def _bridge(
    tensors: _Tensors,
    told: dict[str, Any],
    given: dict[str, object],
    eased: tuple[float | None, float | None],
) -> Bridge:
    from ._fit import MAX_STEPS as MAX_FIT_STEPS
    from .bridge import Bridge

    try:
        graph = Graph(_field(told, "net", list))
        _build.check_graph(graph, graph.dim)
        settings = Settings.restored(_field(told, "settings", dict))
    except (ValueError, TypeError) as error:
        _refuse(f"its description of the bridge is wrong: {error}", error)
    if told.get("loss_weight") != settings.loss_weight:
        _refuse(f"its loss weight {told.get('loss_weight')!r} is not known")
    planes = {
        (direction, plane): tensors.take(f"{direction}.{plane}", "float32", (graph.plane,))
        for direction in DIRECTIONS
        for plane in _planes(settings)
    }
    for (direction, plane), values in planes.items():
        if not np.isfinite(values).all() or (plane == "v" and (values < 0).any()):
            _refuse(f"the tensor '{direction}.{plane}' holds values that no training leaves there")
    position, parts = _history(tensors, told, MAX_FIT_STEPS, settings.covariance != "reference")
    ends = _load_ends(tensors, told, _shape(told, graph.dim), given)
    bridge = Bridge.__new__(Bridge)
    try:
        schedule = Schedule(_vector(tensors, "schedule.steps", MAX_STEPS))
        reference = _reference(tensors, told, graph.dim)
        label = _word(told.get("net_label"), 200)
        bridge._start(*ends, schedule, reference, graph, label, settings.eased(*eased))
        for (direction, plane), values in planes.items():
            bridge._core.set_plane(direction, plane, values)
        _load_covariances(tensors, told, bridge, position)
        log = parts.pop() if position["steps"] else None
        if log is not None and position["step"]:
            bridge._core.set_position(position, log.loss, log.grad_norm)
        else:
            bridge._core.set_position(position, NOTHING, NOTHING)
    except (ValueError, TypeError, FloatingPointError) as error:
        _refuse(f"its description of the bridge is wrong: {error}", error)
    bridge._finished = parts
    made = (_word(told.get(key), 80) for key in ("isa", "compiler", "version"))
    used = _word(told.get("precision", PRECISIONS[0]), 20)
    _warn_of_build(*made, used=used, use=_build.precision_in_use(settings.precision))
    return bridge


def _history(
    tensors: _Tensors, told: dict[str, Any], most: int, estimates: bool
) -> tuple[dict[str, int], list[Any]]:
    position = _field(told, "position", dict)
    counts = _field(told, "history", list)
    if set(position) != set(POSITION) or not all(map(_is_count, [*position.values(), *counts])):
        _refuse("its position or history is not a list of counts")
    half, step, steps = position["half_bridge"], position["step"], position["steps"]
    # With all steps done a half-bridge is over, unless covariances are still to be estimated.
    if not (steps <= most and (step < steps + estimates or steps == step == 0)):
        _refuse(f"step {step} of {steps} is no position in a half-bridge")
    if len(counts) != half + (steps > 0) or (steps > 0 and counts[-1] != step):
        _refuse(f"its history has {len(counts)} half-bridges, its position says {half}")
    if (half >= 1 and not position["trained_backward"]) or (
        half >= 2 and not position["trained_forward"]
    ):
        _refuse("its position says that a net which must have been trained was not")
    if max(position["trained_backward"], position["trained_forward"]) > 1:
        _refuse("its position says neither trained nor untrained")
    loss = tensors.take("history.loss", "float32", (sum(counts),))
    norm = tensors.take("history.grad_norm", "float32", (sum(counts),))
    edges = np.cumsum(counts, dtype=np.int64)[:-1]
    pairs = zip(np.split(loss, edges), np.split(norm, edges), strict=True)
    errors = [*_errors(tensors, told, half), {}]
    return position, [half_bridge(i, *pair, errors[i]) for i, pair in enumerate(pairs) if counts]


def _errors(tensors: _Tensors, told: dict[str, Any], half: int) -> list[dict[str, float]]:
    """Those of each finished half-bridge, by name."""
    if "errors" not in told:
        return [{} for _ in range(half)]
    names = _field(told, "errors", list)
    if len(names) != half or not all(
        isinstance(some, list) and all(map(is_recorded_name, some)) and len(set(some)) == len(some)
        for some in names
    ):
        _refuse(f"its errors are not lists of names for {half} half-bridges")
    values = iter(tensors.take("history.errors", "float64", (sum(map(len, names)),)).tolist())
    return [dict(zip(some, values, strict=False)) for some in names]


def _load_covariances(
    tensors: _Tensors, told: dict[str, Any], bridge: Bridge, position: dict[str, int]
) -> None:
    """What was estimated. ValueError or FloatingPointError where it is no covariance."""
    n, dim = bridge.schedule.N, bridge.dim
    shapes = {"scalar": (n,), "diagonal": (n, dim), "full": (n, dim, dim)}
    for direction in DIRECTIONS:
        name = f"{direction}.covariance"
        if name not in tensors.names:
            continue
        shape = shapes.get(bridge._settings.covariance)
        raised = _field(told, "raised", dict).get(direction)
        if shape is None or not position[f"trained_{direction}"] or not _is_count(raised):
            _refuse(f"the tensor {name!r} has no place in its settings and position")
        values = tensors.take(name, "float64", shape)
        if not np.isfinite(values).all():
            _refuse(f"the tensor {name!r} holds NaN or infinity")
        if len(shape) == 3 and (values != values.transpose(0, 2, 1)).any():
            _refuse(f"the tensor {name!r} holds a matrix that is not symmetric")
        bridge._core.set_covariance(direction, values, raised)


def _load_ends(
    tensors: _Tensors, told: dict[str, Any], shape: Shape, given: dict[str, object]
) -> tuple[End, End]:
    descriptions = _field(told, "ends", list)
    if len(descriptions) != 2:
        _refuse(f"expected a description of 2 ends, got {len(descriptions)}")
    source, prior = (
        _load_end(tensors, name, description, shape, given[name])
        for name, description in zip(ENDS, descriptions, strict=True)
    )
    return source, prior


def _shape(told: dict[str, Any], dim: int) -> Shape:
    """Shape of a point: (d,), or (c, h, w)."""
    shape = told.get("shape", [dim])
    whole = isinstance(shape, list) and len(shape) in (1, 3) and all(map(_is_count, shape))
    if not whole or math.prod(shape) != dim:
        _refuse(f"its points have shape {shown(shape)}, its net reads {dim} numbers")
    return tuple(shape)


def _load_end(tensors: _Tensors, name: str, told: object, shape: Shape, given: object) -> End:
    dim, image = math.prod(shape), shape if len(shape) == 3 else None
    if not isinstance(told, dict):
        _refuse(f"its description of the {name} is wrong")
    if not told:
        if given is not None:
            raise ValueError(
                f"{name}: the checkpoint's {name} is a Gaussian, which it holds itself"
            )
        mean = tensors.take(f"{name}.mean", "float64", (dim,))
        axes = tensors.shape(f"{name}.cov")
        if axes != (dim,) * len(axes) or len(axes) > 2:
            _refuse(f"the tensor '{name}.cov' has shape {axes} in dimension {dim}")
        try:
            return End(name, gaussian=Gaussian(mean, tensors.take(f"{name}.cov", "float64", axes)))
        except ValueError as error:
            _refuse(f"its {name} is wrong: {error}", error)
    n: Any = told.get("rows")
    dtype = told.get("dtype")
    digest = told.get("sha256")
    if not _is_count(n) or told.get("columns") != dim or dtype not in ("float32", "uint8"):
        _refuse(f"its description of the {name} is wrong")
    if given is not None:
        end = End.of(name, given, End(name, shape=(n, dim), image=image))
    elif f"{name}.data" in tensors.names:
        data = tensors.take(f"{name}.data", str(dtype), (n, dim))
        try:
            end = End.of(name, data.reshape(n, *shape))
        except (ValueError, TypeError) as error:
            _refuse(f"its {name} data are wrong: {error}", error)
    else:
        end = End(name, shape=(n, dim), image=image, dtype=str(dtype),
                  fingerprint=str(digest)[:64])  # fmt: skip
    if [told.get("scale"), told.get("shift")] != list(end.scaling):
        _refuse(f"its {name} has a scale that this version does not know")
    if end.fingerprint() != digest or end.shape != (n, dim):
        if given is None:
            _refuse(f"its {name} data are damaged: their SHA-256 differs")
        raise ValueError(
            f"{name}: expected the {n} x {dim} rows that the checkpoint was made with, got "
            f"{end!r} with another SHA-256"
        )
    return end


def _reference(tensors: _Tensors, told: dict[str, Any], dim: int) -> OU | Brownian:
    described = _field(told, "reference", dict)
    kind = described.get("kind")
    if kind not in REFERENCES:
        _refuse(f"its reference {_word(kind, 40)!r} is not known")
    if kind == "Brownian":
        return Brownian()
    return OU(_vector(tensors, "reference.mean", dim), _field(described, "var", float))


def _vector(tensors: _Tensors, name: str, most: int) -> NDArray[np.float64]:
    shape = tensors.shape(name)
    if len(shape) != 1 or shape[0] > most:
        _refuse(f"the tensor {name!r} has shape {shape}, expected a vector of at most {most}")
    return tensors.take(name, "float64", shape)


# ---- small things ----


def _planes(settings: Settings) -> tuple[Any, ...]:
    return ("theta", "m", "v", "ema") if settings.ema else ("theta", "m", "v")


def _field(told: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(told.get(name), kind):
        _refuse(f"its metadata lacks {name!r}")
    return told[name]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _word(value: object, most: int) -> str:
    """A name from a file, fit to be shown: nothing in it moves a terminal's cursor."""
    return value[:most] if isinstance(value, str) and value.isprintable() else "?"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a checkpoint")


def _digest(tensor: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor).data).hexdigest()


def _canonical(told: dict[str, Any]) -> str:
    return json.dumps(told, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _seal(told: dict[str, Any]) -> str:
    """SHA-256 of the metadata, the seal itself left out."""
    return hashlib.sha256(_canonical(told).encode()).hexdigest()


def _version() -> str:
    from . import __version__

    return __version__


def _warn_of_build(isa: str, compiler: str, version: str, *, used: str, use: str) -> None:
    """Bits are promised for one build and instruction set; elsewhere a run goes on, and says so once."""
    made = f"instruction set {isa}, {compiler}, dsb {version}"
    here = f"instruction set {_core.isa()}, {_core.compiler()}, dsb {_version()}"
    if use != used:
        made, here = f"{made}, precision {used}", f"{here}, precision {use}"
    if made != here and (made, here) not in _warned:
        _warned.add((made, here))
        warnings.warn(
            f"this checkpoint was made with {made}; with {here} it goes on equal within rounding, "
            "not bit for bit",
            stacklevel=4,
        )
