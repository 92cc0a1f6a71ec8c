"""What each kind of op demands of its inputs and fields, what it makes, and which parameters it has.

A value is a vector, rows of `width` numbers, or an image of `width` channels. Each function here checks
one kind, fills in the defaults of its fields and returns what the op makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._check import F32, choice, flag, integer, real, shown

Op = dict[str, Any]
Size = tuple[int, int]

MAX_WIDTH = 65536  # of a vector that ops compute, or channels
MAX_VECTOR = 1 << 22  # of one that holds an image: x, cond, what flatten makes
MAX_SIDE = 4096  # of an image
STYLES = ("sin_cos", "cos_sin")
CONV = {"kernel": (3, 1), "stride": (1, 2), "axes": (4, 3)}  # the default first


class Value(NamedTuple):
    """What an op makes, or an input, known by `name`: a vector, or an image of `size` (h, w)."""

    name: str
    width: int  # numbers of a vector, channels of an image
    size: Size | None = None


class Parameter(NamedTuple):
    """A trained array: its shape in PyTorch, and how a plane of the core holds it."""

    name: str
    shape: tuple[int, ...]
    conv: bool = False  # [out, in, k, k], or [out, in, 1], is [out, k, k, in] in a plane

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape in a plane."""
        if not self.conv:
            return self.shape
        n_out, n_in, k = self.shape[:3]
        return n_out, k, k, n_in

    def read(self, stored: F32) -> F32:
        """A copy, in PyTorch's shape, of what a plane holds."""
        value = stored.reshape(self.stored)
        return np.array(np.moveaxis(value, 3, 1) if self.conv else value, order="C").reshape(
            self.shape
        )

    def write(self, value: F32) -> F32:
        """What a plane holds of a value in PyTorch's shape."""
        if not self.conv:
            return value.reshape(-1)
        n_out, k, _, n_in = self.stored
        return np.moveaxis(value.reshape(n_out, n_in, k, k), 1, 3).reshape(-1)


class Made(NamedTuple):
    """What an op makes."""

    width: int
    size: Size | None = None
    parameters: tuple[Parameter, ...] = ()


class Kind(NamedTuple):
    """How many inputs an op reads, its fields besides op, name and inputs, and its check."""

    least: int
    most: int
    fields: frozenset[str]
    make: Callable[[str, Op, list[Value]], Made]


def described(value: Value) -> str:
    """As messages call it."""
    if value.size is None:
        return f"the vector {value.name!r} of width {value.width}"
    return f"the image {value.name!r} of {value.width} channels, {times(value.size)}"


def times(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def vector(where: str, value: Value, advice: str = "") -> int:
    """Width of a value, which is a vector."""
    if value.size is not None:
        raise ValueError(f"{where}: expected a vector, got {described(value)}{advice}")
    return value.width


def image(where: str, value: Value) -> Size:
    """Size of a value, which is an image."""
    if value.size is None:
        raise ValueError(
            f"{where}: expected an image, got {described(value)}; the op 'image' makes one of it"
        )
    return value.size


# ---- vectors ----


def _input(where: str, op: Op, inputs: list[Value]) -> Made:
    op["width"] = integer(f"{where}: width", op.get("width", 1), 1, MAX_VECTOR)
    if op["name"] in ("t", "label") and op["width"] != 1:
        raise ValueError(f"{where}: expected width 1, one number a row, got {op['width']}")
    return Made(op["width"])


def _embed(where: str, op: Op, inputs: list[Value]) -> Made:
    op["width"] = integer(f"{where}: width", op.get("width"), 4, MAX_WIDTH)
    op["style"] = choice(f"{where}: style", op.get("style", STYLES[0]), STYLES)
    if op["width"] % 2:
        raise ValueError(f"{where}: expected an even width, got {op['width']}")
    return Made(op["width"])


def _linear(where: str, op: Op, inputs: list[Value]) -> Made:
    n_in = vector(where, inputs[0], "; a conv with kernel=1 is linear in every pixel")
    op["width"] = integer(f"{where}: width", op.get("width"), 1, MAX_WIDTH)
    op["zero"] = flag(f"{where}: zero", op.get("zero", False))
    weight = Parameter(f"{op['name']}.weight", (op["width"], n_in))
    return Made(op["width"], None, (weight, Parameter(f"{op['name']}.bias", (op["width"],))))


def _lookup(where: str, op: Op, inputs: list[Value]) -> Made:
    op["classes"] = integer(f"{where}: classes", op.get("classes"), 1, MAX_WIDTH)
    op["width"] = integer(f"{where}: width", op.get("width"), 1, MAX_WIDTH)
    table = Parameter(f"{op['name']}.weight", (op["classes"], op["width"]))
    return Made(op["width"], None, (table,))


# ---- vectors and images ----


def _leaky_relu(where: str, op: Op, inputs: list[Value]) -> Made:
    op["slope"] = real(f"{where}: slope", op.get("slope", 0.01), above=0)
    if op["slope"] > 1:
        raise ValueError(f"{where}: expected a slope of at most 1, got {op['slope']}")
    return _same(where, op, inputs)


def _same(where: str, op: Op, inputs: list[Value]) -> Made:
    return Made(inputs[0].width, inputs[0].size)


def _add(where: str, op: Op, inputs: list[Value]) -> Made:
    a, b = inputs
    if a.width != b.width:
        raise ValueError(f"{where}: expected equal widths, got {a.width} and {b.width}")
    if b.size is not None and a.size != b.size:
        told = "sizes" if a.size is not None else "kinds, or the image first"
        raise ValueError(f"{where}: expected equal {told}, got {described(a)} and {described(b)}")
    return Made(a.width, a.size)


def _concat(where: str, op: Op, inputs: list[Value]) -> Made:
    first = inputs[0]
    for other in inputs[1:]:
        if other.size != first.size:
            raise ValueError(
                f"{where}: expected vectors, or images of one size, got {described(first)} and "
                f"{described(other)}"
            )
    return Made(sum(value.width for value in inputs), first.size)


# ---- images ----


def _image(where: str, op: Op, inputs: list[Value]) -> Made:
    width = vector(where, inputs[0])
    size = op.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise TypeError(f"{where}: size: expected a pair, height and width, got {shown(size)}")
    h, w = (integer(f"{where}: size", side, 1, MAX_SIDE) for side in size)
    op["size"] = [h, w]
    if width % (h * w):
        raise ValueError(
            f"{where}: expected a multiple of {h} x {w} = {h * w} numbers, got {width}"
        )
    return Made(width // (h * w), (h, w))


def _flatten(where: str, op: Op, inputs: list[Value]) -> Made:
    h, w = image(where, inputs[0])
    return Made(inputs[0].width * h * w)


def _conv(where: str, op: Op, inputs: list[Value]) -> Made:
    size = image(where, inputs[0])
    for field, known in CONV.items():
        op[field] = integer(f"{where}: {field}", op.get(field, known[0]), 1, MAX_WIDTH)
        if op[field] not in known:
            one, two = sorted(known)
            raise ValueError(f"{where}: {field}: expected {one} or {two}, got {op[field]}")
    op["width"] = integer(f"{where}: width", op.get("width"), 1, MAX_WIDTH)
    for field in ("up", "zero"):
        op[field] = flag(f"{where}: {field}", op.get(field, False))
    if op["up"] and op["stride"] != 1:
        raise ValueError(f"{where}: expected stride 1 where up=True, got 2")
    if op["axes"] == 3 and op["kernel"] != 1:
        raise ValueError(f"{where}: axes: expected 4 where the kernel is 3 wide, got 3")
    h, w = (((2 * n if op["up"] else n) - 1) // op["stride"] + 1 for n in size)
    if max(h, w) > MAX_SIDE:
        raise ValueError(f"{where}: expected sizes up to {MAX_SIDE}, got {times((h, w))}")
    shape = (op["width"], inputs[0].width, op["kernel"], op["kernel"])[: op["axes"]]
    weight = Parameter(f"{op['name']}.weight", shape, conv=True)
    return Made(op["width"], (h, w), (weight, Parameter(f"{op['name']}.bias", (op["width"],))))


def _group_norm(where: str, op: Op, inputs: list[Value]) -> Made:
    size, c = image(where, inputs[0]), inputs[0].width
    op["groups"] = integer(f"{where}: groups", op.get("groups", 32), 1, MAX_WIDTH)
    op["silu"] = flag(f"{where}: silu", op.get("silu", False))
    if c % op["groups"]:
        raise ValueError(f"{where}: {c} channels cannot be split into {op['groups']} equal groups")
    if len(inputs) == 2 and vector(where, inputs[1]) != 2 * c:
        raise ValueError(
            f"{where}: expected a vector of width {2 * c}, scale and then shift of {c} channels, "
            f"got width {inputs[1].width}"
        )
    both = (Parameter(f"{op['name']}.{name}", (c,)) for name in ("weight", "bias"))
    return Made(c, size, tuple(both))


def _attention(where: str, op: Op, inputs: list[Value]) -> Made:
    size, c = image(where, inputs[0]), inputs[0].width
    op["heads"] = integer(f"{where}: heads", op.get("heads", 1), 1, MAX_WIDTH)
    if c % 3:
        raise ValueError(f"{where}: expected 3 c channels, queries, keys and values, got {c}")
    if c // 3 % op["heads"]:
        raise ValueError(
            f"{where}: {c // 3} channels cannot be split into {op['heads']} equal heads"
        )
    return Made(c // 3, size)


def _upsample(where: str, op: Op, inputs: list[Value]) -> Made:
    h, w = image(where, inputs[0])
    if 2 * max(h, w) > MAX_SIDE:
        raise ValueError(f"{where}: expected sizes up to {MAX_SIDE}, got {times((2 * h, 2 * w))}")
    return Made(inputs[0].width, (2 * h, 2 * w))


def _pool(where: str, op: Op, inputs: list[Value]) -> Made:
    h, w = image(where, inputs[0])
    if h % 2 or w % 2:
        raise ValueError(f"{where}: expected even height and width, got {described(inputs[0])}")
    return Made(inputs[0].width, (h // 2, w // 2))


def _dropout(where: str, op: Op, inputs: list[Value]) -> Made:
    size = image(where, inputs[0])
    op["rate"] = real(f"{where}: rate", op.get("rate"), least=0, below=1)
    return Made(inputs[0].width, size)


def _kind(make: Callable[[str, Op, list[Value]], Made], inputs: str, *fields: str) -> Kind:
    least, most = int(inputs[0]), int(inputs[-1])
    return Kind(least, most, frozenset(fields), make)


KINDS = {
    "input": _kind(_input, "0", "width"),
    "embed": _kind(_embed, "1", "width", "style"),
    "linear": _kind(_linear, "1", "width", "zero"),
    "leaky_relu": _kind(_leaky_relu, "1", "slope"),
    "silu": _kind(_same, "1"),
    "add": _kind(_add, "2"),
    "concat": _kind(_concat, "2-4"),
    "lookup": _kind(_lookup, "1", "classes", "width"),
    "image": _kind(_image, "1", "size"),
    "flatten": _kind(_flatten, "1"),
    "conv": _kind(_conv, "1", "width", "kernel", "stride", "up", "zero", "axes"),
    "group_norm": _kind(_group_norm, "1-2", "groups", "silu"),
    "attention": _kind(_attention, "1", "heads"),
    "upsample": _kind(_upsample, "1"),
    "pool": _kind(_pool, "1"),
    "dropout": _kind(_dropout, "1", "rate"),
}
