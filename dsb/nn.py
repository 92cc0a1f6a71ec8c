"""Nets as lists of ops: what `Bridge(net=...)` takes, a checkpoint holds and the C core runs.

A small net with one residual block:

    g = nn.Graph()
    x, t = g.input("x", 2), g.input("t")
    h = g.concat(x, g.embed(t, 32))
    h = g.silu(g.linear(h, 128))
    h = g.add(h, g.linear(g.silu(g.linear(h, 128)), 128))
    g.linear(h, 2)                      # the last op makes the output, as wide as x
    dsb.Bridge(data, net=g)

and one for grey images of 28 x 28 pixels:

    x, t = g.input("x", 28 * 28), g.input("t")
    h = g.conv(g.image(x, (28, 28)), 32)
    h = g.add(h, g.linear(g.embed(t, 32), 32))      # one vector for all pixels
    h = g.conv(g.group_norm(h, silu=True), 1)
    g.flatten(h)

A graph is a straight list: each op reads inputs and results of earlier ops, by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ._check import F32, choice, nearest, shown
from ._ops import KINDS, MAX_VECTOR, MAX_WIDTH, Op, Parameter, Value, described, times

__all__ = ["MAX_WIDTH", "Graph", "Op", "Parameter", "Specification", "Value"]

MAX_OPS = 4096
MAX_NAME = 87
PANEL = 16  # parameters start on 64-byte lines of a plane
INPUTS = ("x", "t", "cond", "label")
READERS = {"t": "embed", "label": "lookup"}  # of an input that nothing else reads
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", re.ASCII)


@runtime_checkable
class Specification(Protocol):
    """A net whose dimension is still open, such as `dsb.MLP()`."""

    def build(self, dim: int) -> list[Op]:
        """The ops of the net for points in R^dim."""
        ...


class Graph:
    r"""A net (x, t) -> y built op by op; y has the width of x.

    Values are vectors, or images of some channels; `image` and `flatten` lead from one to the other, and
    both ends of a net are vectors. Linear layers are y = x W^T + b with W (width, width of x) and start as
    PyTorch's, uniform on +-1/sqrt(width of x), or at zero; convolutions likewise. Parameters are called
    `<name of the op>.weight` and `.bias` and have PyTorch's shapes.

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
        self._parameters: dict[str, Parameter] = {}
        for op in ops:
            self._append(op)

    # ---- ops ----

    def input(self, name: str, width: int = 1) -> Value:
        """Declares the input "x" (width d), "t" (one number a row), "cond", or "label" (one a row)."""
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
        """y = a + b; a vector b is added to every pixel of an image a."""
        return self._apply("add", [a, b], name)

    def concat(self, *values: Value, name: str | None = None) -> Value:
        """y = [a, b, ..], two to four vectors side by side, or images of one size by channels."""
        return self._apply("concat", list(values), name)

    def lookup(self, label: Value, classes: int, width: int, name: str | None = None) -> Value:
        """y = W[label], W (classes, width), for labels 0 .. classes - 1; starts as N(0, 1)."""
        return self._apply("lookup", [label], name, classes=classes, width=width)

    def image(self, x: Value, size: tuple[int, int], name: str | None = None) -> Value:
        """The image of height and width `size` that a vector holds channel by channel."""
        return self._apply("image", [x], name, size=size)

    def flatten(self, x: Value, name: str | None = None) -> Value:
        """The vector that holds an image channel by channel."""
        return self._apply("flatten", [x], name)

    def conv(
        self,
        x: Value,
        width: int,
        kernel: int = 3,
        stride: int = 1,
        up: bool = False,
        zero: bool = False,
        axes: int = 4,
        name: str | None = None,
    ) -> Value:
        """y = W * x + b, W (width, channels of x, kernel, kernel), with zeros around the image.

        kernel is 1 or 3, stride 1 or 2: height and width n become (n - 1) // stride + 1. up=True
        doubles the image first, each pixel becoming 2 x 2. axes=3: W is (width, channels of x, 1), as
        PyTorch's Conv1d has it.
        """
        fields = {"kernel": kernel, "stride": stride, "up": up, "zero": zero, "axes": axes}
        return self._apply("conv", [x], name, width=width, **fields)

    def group_norm(
        self,
        x: Value,
        scale_shift: Value | None = None,
        groups: int = 32,
        silu: bool = False,
        name: str | None = None,
    ) -> Value:
        """y = w (x - mean) / sqrt(variance + 1e-5) + b over the pixels of each group of channels.

        With a vector [scale, shift], twice as wide as the channels, y (1 + scale) + shift in its place;
        silu=True applies SiLU to the result. w starts at 1 and b at 0.
        """
        inputs = [x] if scale_shift is None else [x, scale_shift]
        return self._apply("group_norm", inputs, name, groups=groups, silu=silu)

    def attention(self, x: Value, heads: int = 1, name: str | None = None) -> Value:
        """y = softmax(q k^T / sqrt(d)) v over the pixels, in each head; x = [heads][q, k, v][d]."""
        return self._apply("attention", [x], name, heads=heads)

    def upsample(self, x: Value, name: str | None = None) -> Value:
        """Each pixel becomes 2 x 2."""
        return self._apply("upsample", [x], name)

    def pool(self, x: Value, name: str | None = None) -> Value:
        """Means over 2 x 2 pixels; height and width are even."""
        return self._apply("pool", [x], name)

    def dropout(self, x: Value, rate: float, name: str | None = None) -> Value:
        """y = x / (1 - rate) or, with probability `rate`, 0; y = x outside of training. Images only."""
        return self._apply("dropout", [x], name, rate=rate)

    # ---- what was built ----

    @property
    def ops(self) -> list[Op]:
        """The ops, copied: the form that the C core takes."""
        return [{k: [*v] if isinstance(v, list) else v for k, v in op.items()} for op in self._ops]

    @property
    def dim(self) -> int:
        """Width of x."""
        if "x" not in self._values:
            raise ValueError("net: expected an input 'x', got none")
        return self._values["x"].width

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name, as PyTorch has it, in the order of a plane."""
        return {name: parameter.shape for name, parameter in self._parameters.items()}

    @property
    def n_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(p.shape) for p in self._parameters.values())

    @property
    def plane(self) -> int:
        """Floats in a plane of the core: each parameter begins on a 64-byte line."""
        sizes = (math.prod(p.shape) for p in self._parameters.values())
        return sum(-(-size // PANEL) * PANEL for size in sizes)

    @property
    def convolves(self) -> bool:
        """Whether there is a convolution in it."""
        return any(op["op"] == "conv" for op in self._ops)

    def reads(self, name: str) -> bool:
        """Whether there is an input of this name."""
        return any(op["op"] == "input" and op["name"] == name for op in self._ops)

    def spans(self) -> Iterator[tuple[Parameter, slice]]:
        """Every parameter and its place in a plane."""
        offset = 0
        for parameter in self._parameters.values():
            size = math.prod(parameter.shape)
            yield parameter, slice(offset, offset + size)
            offset += -(-size // PANEL) * PANEL

    def unpack(self, plane: F32) -> dict[str, F32]:
        """Copies of the parameters in a plane of the core, by name, in PyTorch's shapes."""
        return {parameter.name: parameter.read(plane[span]) for parameter, span in self.spans()}

    def pack(self, values: Mapping[str, F32], onto: F32 | None = None) -> F32:
        """A plane of the core with `values`, in PyTorch's shapes; others are as in `onto`, or 0."""
        plane = np.zeros(self.plane, np.float32) if onto is None else onto.copy()
        for parameter, span in self.spans():
            if parameter.name in values:
                plane[span] = parameter.write(np.asarray(values[parameter.name]))
        return plane

    def check(self, dim: int | None = None) -> Graph:
        """This graph, if it is a net from R^dim to R^dim; ValueError otherwise."""
        if not self._ops or self._ops[-1]["op"] == "input":
            raise ValueError("net: expected an op that makes the output at the end of the list")
        last = self._values[self._ops[-1]["name"]]
        if last.size is not None:
            raise ValueError(
                f"net: expected a vector at the end, got {described(last)}: flatten it"
            )
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
        longest = max((len(op["name"]) for op in self._ops), default=0)
        for op in self._ops:
            name = op["name"]
            told = [
                k if v is True else f"{k}={v}"
                for k, v in op.items()
                if k not in ("op", "name", "inputs", "width", "size") and v and (k, v) not in _PLAIN
            ]
            inputs = ", ".join(op.get("inputs", []))
            value = self._values[name]
            made = (
                str(value.width) if value.size is None else f"{value.width} @ {times(value.size)}"
            )
            lines.append(
                f"  {name:<{longest}}  {op['op']:<10} {made:>5}  {inputs} {' '.join(told)}".rstrip()
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
        kind = choice("op", op.get("op"), KINDS)
        where = f"{kind} {op.get('name')!r:.60}"
        if len(self._ops) >= MAX_OPS:
            raise ValueError(f"net: expected at most {MAX_OPS} ops, got more")
        known = KINDS[kind].fields | {"op", "name"} | ({"inputs"} if kind != "input" else set())
        for key in op:
            if key not in known:
                raise ValueError(f"{where}: unknown field {shown(key)}{nearest(key, known)}")
        self._check_name(kind, where, op.get("name"))
        made = KINDS[kind].make(where, op, self._inputs(kind, where, op))
        most = MAX_VECTOR if kind in ("input", "flatten") else MAX_WIDTH
        if not 1 <= made.width <= most:
            raise ValueError(f"{where}: expected a width of at most {most}, got {made.width}")
        self._ops.append(op)
        self._parameters |= {parameter.name: parameter for parameter in made.parameters}
        self._values[op["name"]] = Value(op["name"], made.width, made.size)
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
        least, most = KINDS[kind].least, KINDS[kind].most
        if not isinstance(names, (list, tuple)) or not least <= len(names) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"{where}: expected {count} inputs, got {shown(names)}")
        for name in names:
            if not isinstance(name, str) or name not in self._values:
                hint = nearest(name, self._values) if isinstance(name, str) else ""
                raise ValueError(f"{where}: its input {shown(name)} names no earlier value{hint}")
            for port, reader in READERS.items():
                if (name == port) != (kind == reader):
                    what = "the time" if port == "t" else "the label"
                    told = (
                        f"{what} is read through {reader} only"
                        if name == port
                        else f"{reader} reads {port} only"
                    )
                    raise ValueError(f"{where}: {told}, got input {shown(name)}")
        if kind != "input":
            op["inputs"] = list(names)
        return [self._values[name] for name in names]


_PLAIN = (
    ("kernel", 3),
    ("stride", 1),
    ("axes", 4),
    ("groups", 32),
    ("heads", 1),
    ("style", "sin_cos"),
)
