"""Nets as lists of ops: what `Bridge(net=...)` takes, a checkpoint holds and the C core runs.

A small net with one residual block:

    g = nn.Graph()
    x, t = g.input("x", 2), g.input("t")
    h = g.concat(x, g.embed(t, 32))
    h = g.silu(g.linear(h, 128))
    h = g.add(h, g.linear(g.silu(g.linear(h, 128)), 128))
    g.linear(h, 2)                      # the last op makes the output, as wide as x
    dsb.Bridge(data, net=g)

A graph is a straight list: each op reads inputs and results of earlier ops, by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ._check import choice, flag, integer, nearest, real, shown

Op = dict[str, Any]

MAX_WIDTH = 65536
MAX_OPS = 4096
MAX_NAME = 87
PANEL = 16  # parameters start on 64-byte lines of a plane
INPUTS = ("x", "t", "cond", "label")
STYLES = ("sin_cos", "cos_sin")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", re.ASCII)


@runtime_checkable
class Specification(Protocol):
    """A net whose dimension is still open, such as `dsb.MLP()`."""

    def build(self, dim: int) -> list[Op]:
        """The ops of the net for points in R^dim."""
        ...


class Value(NamedTuple):
    """What an op makes, or an input: rows of `width` numbers, known by `name`."""

    name: str
    width: int


class _Kind(NamedTuple):
    least: int  # inputs
    most: int
    fields: frozenset[str]  # besides op, name and inputs


_KINDS = {
    "input": _Kind(0, 0, frozenset({"width"})),
    "embed": _Kind(1, 1, frozenset({"width", "style"})),
    "linear": _Kind(1, 1, frozenset({"width", "zero"})),
    "leaky_relu": _Kind(1, 1, frozenset({"slope"})),
    "silu": _Kind(1, 1, frozenset()),
    "add": _Kind(2, 2, frozenset()),
    "concat": _Kind(2, 4, frozenset()),
}


class Graph:
    r"""A net (x, t) -> y built op by op; y has the width of x.

    Linear layers are y = x W^T + b with W (width, width of x) and start as PyTorch's, uniform on
    +-1/sqrt(width of x), or at zero. Parameters are called `<name of the op>.weight` and `.bias`.

    Parameters
    ----------
    ops : iterable of dict, optional
        Ops to begin with, as `Graph.ops` gives them.

    Raises
    ------
    ValueError
        An op is unknown, a name is taken or unknown, or a width does not fit; each method raises it.

    Notes
    -----
    Every method appends one op and returns its `Value`; `name` is made up where none is given.
    """

    def __init__(self, ops: Iterable[Mapping[str, Any]] = ()) -> None:
        self._ops: list[Op] = []
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, tuple[int, ...]] = {}
        for op in ops:
            self._append(op)

    # ---- ops ----

    def input(self, name: str, width: int = 1) -> Value:
        """Declares the input "x" (width d), "t" (one number a row), "cond" or "label"."""
        return self._append({"op": "input", "name": name, "width": width})

    def embed(self, t: Value, width: int, style: str = "sin_cos", name: str | None = None) -> Value:
        r"""Sinusoids of the time, width 2h.

        "sin_cos": [sin(t w_i), cos(t w_i)], w_i = 10000^(-i/(h-1)), as the released MLP has it;
        "cos_sin": [cos(t w_i), sin(t w_i)], w_i = 10000^(-i/h), as its U-Net.
        """
        return self._apply("embed", [t], name, width=width, style=style)

    def linear(self, x: Value, width: int, zero: bool = False, name: str | None = None) -> Value:
        """y = x W^T + b; zero=True starts W and b at zero."""
        return self._apply("linear", [x], name, width=width, zero=zero)

    def leaky_relu(self, x: Value, slope: float = 0.01, name: str | None = None) -> Value:
        """y = x where x > 0, slope * x elsewhere; 0 < slope <= 1."""
        return self._apply("leaky_relu", [x], name, slope=slope)

    def silu(self, x: Value, name: str | None = None) -> Value:
        """y = x / (1 + exp(-x))."""
        return self._apply("silu", [x], name)

    def add(self, a: Value, b: Value, name: str | None = None) -> Value:
        """y = a + b."""
        return self._apply("add", [a, b], name)

    def concat(self, *values: Value, name: str | None = None) -> Value:
        """y = [a, b, ..], two to four values side by side."""
        return self._apply("concat", list(values), name)

    # ---- what was built ----

    @property
    def ops(self) -> list[Op]:
        """The ops, copied: the form that the C core takes."""
        return [{k: list(v) if k == "inputs" else v for k, v in op.items()} for op in self._ops]

    @property
    def dim(self) -> int:
        """Width of x."""
        if "x" not in self._values:
            raise ValueError("net: expected an input 'x', got none")
        return self._values["x"].width

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name, in the order of a plane."""
        return dict(self._parameters)

    @property
    def n_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(shape) for shape in self._parameters.values())

    @property
    def plane(self) -> int:
        """Floats in a plane of the core: each parameter begins on a 64-byte line."""
        sizes = (math.prod(shape) for shape in self._parameters.values())
        return sum(-(-size // PANEL) * PANEL for size in sizes)

    def spans(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Name, shape and place in a plane of every parameter."""
        offset = 0
        for name, shape in self._parameters.items():
            size = math.prod(shape)
            yield name, shape, slice(offset, offset + size)
            offset += -(-size // PANEL) * PANEL

    def check(self, dim: int | None = None) -> Graph:
        """This graph, if it is a net from R^dim to R^dim; ValueError otherwise."""
        if not self._ops or self._ops[-1]["op"] == "input":
            raise ValueError("net: expected an op that makes the output at the end of the list")
        last = self._values[self._ops[-1]["name"]]
        if last.width != self.dim:
            raise ValueError(
                f"net: expected an output as wide as x, {self.dim}, got {last.width} from {last.name!r}"
            )
        if dim is not None and self.dim != dim:
            raise ValueError(
                f"net: expected an input x of width {dim}, as the data, got {self.dim}"
            )
        return self

    def to_json(self) -> str:
        """The ops as JSON text."""
        import json

        return json.dumps(self._ops, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """The graph that `to_json` wrote; ValueError where the text is no list of ops."""
        import json

        ops = json.loads(text)
        if not isinstance(ops, list):
            raise ValueError(f"net: expected a JSON list of ops, got {type(ops).__name__}")
        return cls(ops)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return self._ops == other._ops

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        lines = [f"Graph of {len(self._ops)} ops, {self.n_parameters:,} parameters"]
        for op in self._ops:
            name = op["name"]
            told = [f"{k}={v}" for k, v in op.items() if k in ("style", "slope", "zero") and v]
            inputs = ", ".join(op.get("inputs", []))
            width = self._values[name].width
            lines.append(
                f"  {name:<24} {op['op']:<10} {width:>5}  {inputs} {' '.join(told)}".rstrip()
            )
        return "\n".join(lines)

    # ---- the one way in ----

    def _apply(self, kind: str, values: list[Value], name: str | None, **fields: Any) -> Value:
        for value in values:
            if not isinstance(value, Value) or self._values.get(value.name) != value:
                raise ValueError(f"{kind}: expected values of this graph, got {shown(value)}")
        if name is None:
            number = sum(op["op"] == kind for op in self._ops)
            while f"{kind}_{number}" in self._values:
                number += 1
            name = f"{kind}_{number}"
        inputs = [value.name for value in values]
        return self._append({"op": kind, "name": name, "inputs": inputs, **fields})

    def _append(self, given: Mapping[str, Any]) -> Value:
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise TypeError(f"net: expected ops that are dicts, got {shown(given)}")
        op = dict(given)
        kind = choice("op", op.get("op"), _KINDS)
        where = f"{kind} {op.get('name')!r:.60}"
        if len(self._ops) >= MAX_OPS:
            raise ValueError(f"net: expected at most {MAX_OPS} ops, got more")
        known = _KINDS[kind].fields | {"op", "name"} | ({"inputs"} if kind != "input" else set())
        for key in op:
            if key not in known:
                raise ValueError(f"{where}: unknown field {shown(key)}{nearest(key, known)}")
        self._check_name(kind, where, op.get("name"))
        width = _BUILD[kind](where, op, self._inputs(kind, where, op))
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"{where}: expected a width of at most {MAX_WIDTH}, got {width}")
        if kind == "linear":
            n_in = self._values[op["inputs"][0]].width
            self._parameters[f"{op['name']}.weight"] = (width, n_in)
            self._parameters[f"{op['name']}.bias"] = (width,)
        self._ops.append(op)
        self._values[op["name"]] = Value(op["name"], width)
        return self._values[op["name"]]

    def _check_name(self, kind: str, where: str, name: object) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(
                f"{where}: expected a name of letters, digits, '_', '.' and '-', at most {MAX_NAME} long"
            )
        if name in self._values:
            raise ValueError(f"{where}: the name is taken")
        if kind == "input":
            choice("name of an input", name, INPUTS)

    def _inputs(self, kind: str, where: str, op: Op) -> list[Value]:
        names = op.get("inputs", [])
        least, most = _KINDS[kind].least, _KINDS[kind].most
        if not isinstance(names, (list, tuple)) or not least <= len(names) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"{where}: expected {count} inputs, got {shown(names)}")
        for name in names:
            if not isinstance(name, str) or name not in self._values:
                hint = nearest(name, self._values) if isinstance(name, str) else ""
                raise ValueError(f"{where}: its input {shown(name)} names no earlier value{hint}")
            if (name == "t") != (kind == "embed"):
                what = (
                    "the time is read through embed only" if name == "t" else "embed reads t only"
                )
                raise ValueError(f"{where}: {what}, got input {shown(name)}")
        if kind != "input":
            op["inputs"] = list(names)
        return [self._values[name] for name in names]


# What each kind demands of its fields; fills in defaults and returns the width of the result.


def _input(where: str, op: Op, inputs: list[Value]) -> int:
    op["width"] = integer(f"{where}: width", op.get("width", 1), 1, MAX_WIDTH)
    if op["name"] == "t" and op["width"] != 1:
        raise ValueError(f"{where}: expected width 1, one number a row, got {op['width']}")
    return int(op["width"])


def _embed(where: str, op: Op, inputs: list[Value]) -> int:
    op["width"] = integer(f"{where}: width", op.get("width"), 4, MAX_WIDTH)
    op["style"] = choice(f"{where}: style", op.get("style", STYLES[0]), STYLES)
    if op["width"] % 2:
        raise ValueError(f"{where}: expected an even width, got {op['width']}")
    return int(op["width"])


def _linear(where: str, op: Op, inputs: list[Value]) -> int:
    op["width"] = integer(f"{where}: width", op.get("width"), 1, MAX_WIDTH)
    op["zero"] = flag(f"{where}: zero", op.get("zero", False))
    return int(op["width"])


def _leaky_relu(where: str, op: Op, inputs: list[Value]) -> int:
    op["slope"] = real(f"{where}: slope", op.get("slope", 0.01), above=0)
    if op["slope"] > 1:
        raise ValueError(f"{where}: expected a slope of at most 1, got {op['slope']}")
    return inputs[0].width


def _silu(where: str, op: Op, inputs: list[Value]) -> int:
    return inputs[0].width


def _add(where: str, op: Op, inputs: list[Value]) -> int:
    a, b = inputs
    if a.width != b.width:
        raise ValueError(f"{where}: expected equal widths, got {a.width} and {b.width}")
    return a.width


def _concat(where: str, op: Op, inputs: list[Value]) -> int:
    return sum(value.width for value in inputs)


_BUILD: dict[str, Callable[[str, Op, list[Value]], int]] = {
    "input": _input,
    "embed": _embed,
    "linear": _linear,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "add": _add,
    "concat": _concat,
}
