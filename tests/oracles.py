"""What the tests compare with, in float64 NumPy and written from the equations, not from the C code."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Op = dict[str, Any]
Map = tuple[Array, Array]  # x -> A x + c

# ---- Philox4x32-10 ----

STREAMS = {
    name: number
    for number, name in enumerate(
        (
            "init",
            "order",
            "prior",
            "noise",
            "shuffle",
            "pair",
            "sample",
            "start",
            "user",
            "dropout",
            "pinned",
        ),
        1,
    )
} | {"far": 14}


def stream_word(name: str, number: int = 0) -> int:
    """First word of the counter: what is drawn, and for which half-bridge (or net)."""
    return STREAMS[name] | number << 8


def philox(key: tuple[int, int], *counter: Any) -> Array:
    """Philox4x32-10 of the counter (c0, c1, c2, c3), each a number or an array: uint32 [..., 4]."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) & low for word in np.broadcast_arrays(*counter)]
    k = [np.uint64(word) for word in key]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ k[0], p1 & low, high0 ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, axis=-1).astype(np.uint32)


def key_of(seed: int) -> tuple[int, int]:
    """The key is the seed, low word first."""
    return seed & 0xFFFFFFFF, seed >> 32


def words(seed: int, stream: int, step: int, sample: int, rows: int, dim: int) -> Array:
    """The words behind `rows` rows of `dim` numbers: a draw serves four columns."""
    quads = np.arange((dim + 3) // 4)
    sample = sample + np.arange(rows)[:, None]
    return philox(key_of(seed), stream, step, sample, quads).reshape(rows, -1)


def uniforms(seed: int, stream: int, step: int, sample: int, rows: int, dim: int) -> Array:
    """(2k + 1) 2^-24 with the upper 23 bits of each word."""
    bits = words(seed, stream, step, sample, rows, dim)[:, :dim]
    return (2.0 * (bits >> 9) + 1.0) * 2.0**-24


def box_muller(a: Array, b: Array) -> tuple[Array, Array]:
    """Radius from the first word, angle 2 pi b / 2^32 from the second."""
    radius = np.sqrt(-2.0 * np.log((2.0 * (a >> 9) + 1.0) * 2.0**-24))
    angle = 2.0 * np.pi * b.astype(np.float64) / 2.0**32
    return radius * np.cos(angle), radius * np.sin(angle)


def normals(seed: int, stream: int, step: int, sample: int, rows: int, dim: int) -> Array:
    """Standard normals [rows, dim] in float64."""
    bits = words(seed, stream, step, sample, rows, dim).reshape(rows, -1, 2)
    z = np.stack(box_muller(bits[..., 0], bits[..., 1]), axis=-1)
    return z.reshape(rows, -1)[:, :dim]


def permutation(seed: int, stream: int, step: int, n: int) -> list[int]:
    """Eight Feistel rounds on the smallest power of two >= max(4, n), walked until inside."""
    key = key_of(seed)
    keys = [int(w) for i in (0, 1) for w in philox(key, stream, step, i, 0)]
    bits = max(2, (n - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1

    def mix(x: int, k: int) -> int:
        x = (x ^ k) * 0xCC9E2D51 & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x1B873593 & 0xFFFFFFFF
        x ^= x >> 13
        x = (x + k) * 0x85EBCA6B & 0xFFFFFFFF
        return x ^ x >> 16

    def scramble(i: int) -> int:
        low, high = i & low_mask, i >> low_bits
        for r in range(0, 8, 2):
            low ^= mix(high, keys[r]) & low_mask
            high ^= mix(low, keys[r + 1]) & high_mask
        return high << low_bits | low

    out = []
    for i in range(n):
        i = scramble(i)
        while i >= n:
            i = scramble(i)
        out.append(i)
    return out


# ---- nets ----


def embedding(t: Array, width: int, style: str) -> Array:
    """[sin, cos] with frequencies 1e4^(-i/(h-1)), or [cos, sin] with 1e4^(-i/h)."""
    h = width // 2
    last = h - 1 if style == "sin_cos" else h
    angle = t[:, None] * np.exp(-math.log(1e4) * np.arange(h) / last)
    parts = (np.sin(angle), np.cos(angle))
    return np.concatenate(parts if style == "sin_cos" else parts[::-1], axis=1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


# Functions of images [rows, channels, h, w]; each backward takes the gradient g of its result.


def patches(x: Array, kernel: int, stride: int, up: int) -> Array:
    """What a convolution reads for each of its pixels: [rows, channels, ho, wo, kernel, kernel]."""
    x = x.repeat(up, 2).repeat(up, 3)
    edge = (kernel - 1) // 2
    x = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    window = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))
    return window[:, :, ::stride, ::stride]


def conv(x: Array, w: Array, b: Array, stride: int, up: int) -> Array:
    """w is [out, kernel, kernel, in]."""
    seen = patches(x, w.shape[1], stride, up)
    y = np.tensordot(seen, w, ((1, 4, 5), (3, 1, 2))) + b
    return np.moveaxis(y, 3, 1)


def conv_backward(x: Array, w: Array, stride: int, up: int, g: Array) -> tuple[Array, Array, Array]:
    """Gradients to x, w and b."""
    seen = patches(x, w.shape[1], stride, up)
    dw = np.moveaxis(np.tensordot(g, seen, ((0, 2, 3), (0, 2, 3))), 1, 3)
    d_seen = np.tensordot(g, w, (1, 0))  # [rows, ho, wo, kernel, kernel, in]
    edge, (rows, c, h, width) = (w.shape[1] - 1) // 2, x.shape
    padded = np.zeros((rows, c, h * up + 2 * edge, width * up + 2 * edge))
    ho, wo = g.shape[2:]
    for i in range(w.shape[1]):
        for j in range(w.shape[1]):
            part = padded[:, :, i : i + stride * ho : stride, j : j + stride * wo : stride]
            part += np.moveaxis(d_seen[:, :, :, i, j], 3, 1)
    inner = padded[:, :, edge : edge + h * up, edge : edge + width * up]
    dx = inner.reshape(rows, c, h, up, width, up).sum((3, 5))
    return dx, dw, g.sum((0, 2, 3))


def of_pixels(v: Array) -> Array:
    """A vector for every pixel."""
    return v[..., None, None]


def normalised(x: Array, groups: int) -> tuple[Array, Array]:
    """(x - mean) / deviation over each group of each row, and 1 / deviation."""
    split = x.reshape(len(x), groups, -1)
    inverse = 1.0 / np.sqrt(split.var(axis=2, keepdims=True) + 1e-5)
    return ((split - split.mean(axis=2, keepdims=True)) * inverse).reshape(x.shape), inverse


def normalised_backward(n: Array, inverse: Array, g: Array) -> Array:
    """To x: what the group's mean and deviation pass on is taken out of g."""
    g, n = g.reshape(len(g), inverse.shape[1], -1), n.reshape(len(g), inverse.shape[1], -1)
    rest = g - g.mean(axis=2, keepdims=True) - n * (g * n).mean(axis=2, keepdims=True)
    return rest * inverse


def heads_of(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each [rows, heads, d, pixels]; channels are [heads][q, k, v][d]."""
    split = qkv.reshape(len(qkv), heads, 3, -1, math.prod(qkv.shape[2:]))
    return split[:, :, 0], split[:, :, 1], split[:, :, 2]


def attention(qkv: Array, heads: int) -> tuple[Array, Array]:
    """y [rows, c, h, w] and the weights [rows, heads, pixel, of pixel]."""
    q, k, v = heads_of(qkv, heads)
    score = np.einsum("rhdp,rhds->rhps", q, k) / math.sqrt(q.shape[2])
    weight = np.exp(score - score.max(axis=3, keepdims=True))
    weight /= weight.sum(axis=3, keepdims=True)
    y = np.einsum("rhps,rhds->rhdp", weight, v)
    return y.reshape(len(qkv), -1, *qkv.shape[2:]), weight


def attention_backward(qkv: Array, heads: int, weight: Array, g: Array) -> Array:
    q, k, v = heads_of(qkv, heads)
    g = g.reshape(q.shape)
    d_weight = np.einsum("rhdp,rhds->rhps", g, v)
    d_score = weight * (d_weight - (d_weight * weight).sum(axis=3, keepdims=True))
    d_score /= math.sqrt(q.shape[2])
    parts = [
        np.einsum("rhps,rhds->rhdp", d_score, k),
        np.einsum("rhps,rhdp->rhds", d_score, q),
        np.einsum("rhps,rhdp->rhds", weight, g),
    ]
    return np.stack(parts, axis=2).reshape(qkv.shape)


def silu_backward(x: Array, g: Array) -> Array:
    s = sigmoid(x)
    return g * s * (1.0 + x * (1.0 - s))


def dropout_mask(
    seed: int,
    number: int,
    rate: float,
    rows: int,
    pixels: int,
    c: int,
    half_bridge: int = 0,
    step: int = 0,
) -> Array:
    """Factors [rows, pixels, c] of the net's dropout `number`, counted from 0."""
    word = stream_word("dropout", half_bridge)
    u = uniforms(seed, word, step, number << 24, rows, pixels * c)
    return np.where(u >= rate, 1.0 / (1.0 - rate), 0.0).reshape(rows, pixels, c)


class Net64:
    """The net of a list of ops in float64; planes are laid out as the core's, images are NCHW."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = list(ops)
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.kinds: dict[str, str] = {}  # op of a parameter
        self.plane = 0
        self.widths: dict[str, int] = {}
        self.sizes: dict[str, tuple[int, int] | None] = {}
        for op in self.ops:
            self.declare(op)
        self.output = self.ops[-1]["name"]

    def declare(self, op: Op) -> None:
        """Notes what an op makes and which parameters it has."""
        name, kind, ins = op["name"], op["op"], op.get("inputs", [])
        width = op.get("width", sum(self.widths[i] for i in ins) if kind == "concat" else 1)
        size = self.sizes[ins[0]] if ins and kind not in ("embed", "lookup") else None
        first = self.widths[ins[0]] if ins else 0
        if kind == "linear":
            self._place(op, (op["width"], first), (op["width"],))
        elif kind == "conv":
            k, up, stride = op.get("kernel", 3), 1 + op.get("up", False), op.get("stride", 1)
            self._place(op, (op["width"], k, k, first), (op["width"],))
            size = ((size[0] * up - 1) // stride + 1, (size[1] * up - 1) // stride + 1)
        elif kind == "lookup":
            self._place(op, (op["classes"], op["width"]))
        elif kind == "image":
            size = tuple(op["size"])
            width = first // math.prod(size)
        elif kind == "flatten":
            width, size = first * math.prod(size), None
        elif kind == "upsample":
            width, size = first, (2 * size[0], 2 * size[1])
        elif kind == "pool":
            width, size = first, (size[0] // 2, size[1] // 2)
        elif kind == "attention":
            width = first // 3
        elif kind in ("silu", "leaky_relu", "add", "dropout", "group_norm"):
            width = first
            if kind == "group_norm":
                self._place(op, (first,), (first,))
        self.widths[name], self.sizes[name] = width, size

    def _place(self, op: Op, *shapes: tuple[int, ...]) -> None:
        for suffix, shape in zip(("weight", "bias"), shapes, strict=False):
            name = f"{op['name']}.{suffix}"
            self.places[name], self.kinds[name] = (self.plane, shape), op["op"]
            self.plane += -(-math.prod(shape) // 16) * 16

    def get(self, plane: Array, name: str) -> Array:
        """The parameter `name` as a view of a plane."""
        offset, shape = self.places[name]
        return plane[offset : offset + math.prod(shape)].reshape(shape)

    def forward(
        self,
        theta: Array,
        x: Array,
        t: Array,
        cond: Array | None = None,
        label: Array | None = None,
        masks: dict[str, Array] | None = None,
    ) -> Array:
        """y [rows, width of the output]; keeps every value for `backward`.

        `masks` are the factors of dropout by name of the op; None: outside of training.
        """
        given = {"x": x, "t": t, "cond": cond, "label": label}
        self.values = {k: np.asarray(v, np.float64) for k, v in given.items() if v is not None}
        self.saved: dict[str, tuple[Array, ...]] = {}
        self.masks = masks or {}
        for op in self.ops:
            if op["op"] != "input":
                self.values[op["name"]] = self._forward(op, theta)
        return self.values[self.output]

    def _weights(self, theta: Array, name: str) -> list[Array]:
        return [self.get(theta, f"{name}.{s}").astype(np.float64) for s in ("weight", "bias")]

    def _forward(self, op: Op, theta: Array) -> Array:
        name, kind = op["name"], op["op"]
        ins = [self.values[i] for i in op["inputs"]]
        if kind == "embed":
            return embedding(ins[0], op["width"], op.get("style", "sin_cos"))
        if kind == "linear":
            w, b = self._weights(theta, name)
            return ins[0] @ w.T + b
        if kind == "leaky_relu":
            return np.where(ins[0] > 0, ins[0], op.get("slope", 0.01) * ins[0])
        if kind == "silu":
            return ins[0] * sigmoid(ins[0])
        if kind == "add":
            return ins[0] + (of_pixels(ins[1]) if ins[0].ndim > ins[1].ndim else ins[1])
        if kind == "concat":
            return np.concatenate(ins, axis=1)
        if kind == "lookup":
            return self.get(theta, f"{name}.weight").astype(np.float64)[ins[0].astype(int)]
        if kind == "image":
            return ins[0].reshape(len(ins[0]), -1, *op["size"])
        if kind == "flatten":
            return ins[0].reshape(len(ins[0]), -1)
        if kind == "conv":
            return conv(ins[0], *self._weights(theta, name), *self._strides(op))
        if kind == "group_norm":
            return self._group_norm(op, theta, ins)
        if kind == "attention":
            y, weight = attention(ins[0], op.get("heads", 1))
            self.saved[name] = (weight,)
            return y
        if kind == "upsample":
            return ins[0].repeat(2, 2).repeat(2, 3)
        if kind == "pool":
            rows, c, h, w = ins[0].shape
            return ins[0].reshape(rows, c, h // 2, 2, w // 2, 2).mean((3, 5))
        assert kind == "dropout"
        return ins[0] * self.masks.get(name, 1.0)

    def _strides(self, op: Op) -> tuple[int, int]:
        return op.get("stride", 1), 1 + op.get("up", False)

    def _group_norm(self, op: Op, theta: Array, ins: list[Array]) -> Array:
        weight, bias = (of_pixels(p) for p in self._weights(theta, op["name"]))
        n, inverse = normalised(ins[0], op.get("groups", 32))
        z = y = weight * n + bias
        if len(ins) == 2:
            scale, shift = (of_pixels(p) for p in np.split(ins[1], 2, axis=1))
            y = z * (1.0 + scale) + shift
        self.saved[op["name"]] = (n, inverse, z, y)
        return y * sigmoid(y) if op.get("silu") else y

    def backward(self, theta: Array, dy: Array) -> tuple[Array, Array]:
        """Gradients of sum(y dy) to the plane and to x, after `forward`."""
        d = {name: np.zeros_like(value) for name, value in self.values.items()}
        d[self.output] += dy
        grad = np.zeros(self.plane)
        for op in reversed(self.ops):
            if op["op"] not in ("input", "embed"):
                self._backward(op, theta, d, grad)
        return grad, d["x"]

    def _backward(self, op: Op, theta: Array, d: dict[str, Array], grad: Array) -> None:
        name, kind, ins, g = op["name"], op["op"], op["inputs"], d[op["name"]]
        x = self.values[ins[0]]
        if kind in ("linear", "conv"):
            w, _ = self._weights(theta, name)
            if kind == "linear":
                dx, dw, db = g @ w, g.T @ x, g.sum(axis=0)
            else:
                dx, dw, db = conv_backward(x, w, *self._strides(op), g)
            self.get(grad, name + ".weight")[...] = dw
            self.get(grad, name + ".bias")[...] = db
            d[ins[0]] += dx
        elif kind == "leaky_relu":
            d[ins[0]] += np.where(x > 0, 1.0, op.get("slope", 0.01)) * g
        elif kind == "silu":
            d[ins[0]] += silu_backward(x, g)
        elif kind == "add":
            d[ins[0]] += g
            d[ins[1]] += g.sum((2, 3)) if g.ndim > d[ins[1]].ndim else g
        elif kind == "concat":
            at = 0
            for i in ins:
                d[i] += g[:, at : at + self.widths[i]]
                at += self.widths[i]
        elif kind == "lookup":
            np.add.at(self.get(grad, name + ".weight"), x.astype(int), g)
        elif kind in ("image", "flatten"):
            d[ins[0]] += g.reshape(x.shape)
        elif kind == "group_norm":
            self._group_norm_backward(op, theta, d, grad)
        elif kind == "attention":
            d[ins[0]] += attention_backward(x, op.get("heads", 1), *self.saved[name], g)
        elif kind == "upsample":
            rows, c, h, w = x.shape
            d[ins[0]] += g.reshape(rows, c, h, 2, w, 2).sum((3, 5))
        elif kind == "pool":
            d[ins[0]] += g.repeat(2, 2).repeat(2, 3) / 4.0
        else:
            assert kind == "dropout"
            d[ins[0]] += g * self.masks.get(name, 1.0)

    def _group_norm_backward(self, op: Op, theta: Array, d: dict[str, Array], grad: Array) -> None:
        name, ins, g = op["name"], op["inputs"], d[op["name"]]
        n, inverse, z, y = self.saved[name]
        if op.get("silu"):
            g = silu_backward(y, g)
        if len(ins) == 2:
            d[ins[1]] += np.concatenate([(g * z).sum((2, 3)), g.sum((2, 3))], axis=1)
            g = g * (1.0 + of_pixels(np.split(self.values[ins[1]], 2, axis=1)[0]))
        self.get(grad, name + ".weight")[...] = (g * n).sum((0, 2, 3))
        self.get(grad, name + ".bias")[...] = g.sum((0, 2, 3))
        g = g * of_pixels(self._weights(theta, name)[0])
        d[ins[0]] += normalised_backward(n, inverse, g).reshape(n.shape)


def initial_weights(net: Net64, seed: int, draw: int) -> Array:
    """PyTorch's: uniform on +-1/sqrt(fan in), norms 1 and 0, tables normal; from the init stream."""
    plane = np.zeros(net.plane)
    word = stream_word("init", draw)
    for number, (name, (_, shape)) in enumerate(net.places.items()):
        size = math.prod(shape)
        quads = -(-size // 4)
        if net.kinds[name] == "group_norm":
            value: Any = float(name.endswith("weight"))
        elif net.kinds[name] == "lookup":
            value = normals(seed, word, number, 0, quads, 4).ravel()[:size].reshape(shape)
        else:
            fan_in = math.prod(net.places[name.rsplit(".", 1)[0] + ".weight"][1][1:])
            u = uniforms(seed, word, number, 0, quads, 4).ravel()[:size]
            value = ((2.0 * u - 1.0) / math.sqrt(fan_in)).reshape(shape)
        net.get(plane, name)[...] = value
    return plane


def mlp(
    dim: int, width: int, depth: int = 2, embed: int = 16, act: str = "silu", residual: bool = False
) -> list[Op]:
    """[x, e(t)] through `depth` hidden layers, the later ones residual if wished."""
    ops: list[Op] = [
        {"op": "input", "name": "x", "width": dim},
        {"op": "input", "name": "t"},
        {"op": "embed", "name": "e", "inputs": ["t"], "width": embed, "style": "sin_cos"},
        {"op": "concat", "name": "xe", "inputs": ["x", "e"]},
    ]
    last = "xe"
    for i in range(depth):
        ops.append({"op": "linear", "name": f"l{i}", "inputs": [last], "width": width})
        ops.append({"op": act, "name": f"a{i}", "inputs": [f"l{i}"]})
        if residual and i > 0:
            ops.append({"op": "linear", "name": f"m{i}", "inputs": [f"a{i}"], "width": width})
            ops.append({"op": "add", "name": f"r{i}", "inputs": [last, f"m{i}"]})
        last = f"r{i}" if residual and i > 0 else f"a{i}"
    ops.append({"op": "linear", "name": "out", "inputs": [last], "width": dim})
    return ops


def official_mlp(dim: int = 2) -> list[Op]:
    """The released 2-D network; parameters are called as in its state_dict."""
    ops: list[Op] = [{"op": "input", "name": "x", "width": dim}, {"op": "input", "name": "t"}]

    def layers(name: str, last: str, widths: Sequence[int]) -> str:
        for i, width in enumerate(widths):
            if i > 0:
                ops.append({"op": "leaky_relu", "name": f"{name}.act{i}", "inputs": [last]})
                last = f"{name}.act{i}"
            name_i = f"{name}.layers.{i}"
            ops.append({"op": "linear", "name": name_i, "inputs": [last], "width": width})
            last = name_i
        return last

    x = layers("x_encoder", "x", (16, 32))
    ops.append({"op": "embed", "name": "e", "inputs": ["t"], "width": 16, "style": "sin_cos"})
    t = layers("t_encoder", "e", (16, 32))
    ops.append({"op": "concat", "name": "h", "inputs": [x, t]})
    layers("net", "h", (128, 128, dim))
    return ops


# ---- optimiser ----


@dataclass
class Adam64:
    """clip_grad_norm_, Adam and moving average, in PyTorch's order."""

    theta: Array
    rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 0.0
    decay: float = 0.0
    fresh: bool = True  # whether the average begins anew with every half-bridge
    steps: int = 0
    since: list[Array] = field(default_factory=list)  # weights after each step of the half-bridge
    m: Array = field(init=False)
    v: Array = field(init=False)
    ema: Array = field(init=False)

    def __post_init__(self) -> None:
        self.m, self.v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.ema = self.theta.copy()

    def begin(self) -> None:
        """Of a half-bridge."""
        self.since = []

    def step(self, grad: Array, factor: float = 1.0) -> float:
        """One step at `factor` times the rate; the norm of the gradient before clipping."""
        norm = float(np.sqrt((grad**2).sum()))
        if self.clip > 0.0:
            grad = grad * min(1.0, self.clip / (norm + 1e-6))
        self.steps += 1
        self.m = self.beta1 * self.m + (1.0 - self.beta1) * grad
        self.v = self.beta2 * self.v + (1.0 - self.beta2) * grad**2
        root = np.sqrt(self.v / (1.0 - self.beta2**self.steps)) + self.epsilon
        self.theta = self.theta - factor * self.rate * self.m / (1 - self.beta1**self.steps) / root
        self.since.append(self.theta)
        if self.fresh:
            weights = self.decay ** np.arange(len(self.since))[::-1]
            self.ema = np.einsum("i,ip->p", weights / weights.sum(), np.array(self.since))
        else:
            self.ema = self.decay * self.ema + (1.0 - self.decay) * self.theta
        return norm


# ---- the training loop, batch by batch ----


@dataclass
class Batch:
    """What one gradient step reads."""

    x: Array
    target: Array
    t: Array
    weight: Array


@dataclass
class Training:
    """A training run of the core retold in NumPy; names are those of the core's arguments."""

    steps: Array
    source: Any  # rows [n, d], or (mean, factor)
    prior: Any
    reference_mean: Array
    reference_precision: float
    seed: int = 0
    batch: int = 8
    refresh: int = 100
    reuse: int = 1
    antithetic: bool = False
    closed_form: bool = True
    objective: str = "dsb"
    first_coupling: str = "reference"
    output: str = "drift"
    convention: str = "grid"

    def __post_init__(self) -> None:
        self.g = np.asarray(self.steps, np.float64)
        self.times = np.concatenate([[0.0], np.cumsum(self.g)])
        self.n = len(self.g)
        self.dim = len(self.reference_mean)

    def label(self, state: int) -> float:
        """tau of a state, 0 at the data, 1000 at the prior."""
        return 1000.0 * self.times[state] / self.times[-1]

    def reference(self, x: Array, g: float) -> Array:
        """The mean after a step of the reference process."""
        return x + g * self.reference_precision * (self.reference_mean - x)

    def starts(
        self,
        end: Any,
        half_bridge: int,
        paths: Array,
        streams: tuple[str, str] = ("prior", "order"),
    ) -> Array:
        """Where paths start: a Gaussian draw each, or data in epochs, shuffled anew in each."""
        if isinstance(end, tuple):
            mean, factor = end
            word = stream_word(streams[0], half_bridge)
            z = [normals(self.seed, word, 0, int(p), 1, self.dim)[0] for p in paths]
            return np.array(z) @ np.asarray(factor, np.float64).T + mean
        word, n = stream_word(streams[1], half_bridge), len(end)
        orders = {e: permutation(self.seed, word, e, n) for e in {int(p) // n for p in paths}}
        return np.array([end[orders[int(p) // n][int(p) % n]] for p in paths], np.float64)

    def noise(self, stream: int, step: int, numbers: Array) -> Array:
        """Normals of the samples `numbers`, consecutive ones."""
        return normals(self.seed, stream, step, int(numbers[0]), len(numbers), self.dim)

    def row(self, k: int, backward: bool, x: Array, mean: Array) -> tuple[Array, ...]:
        """Training rows for the pair (k, k+1) from the inputs x and the means to be learnt."""
        target = {
            "mean": mean,
            "step": mean - x,
            "drift": (mean - x) / self.g[k],
        }[self.output]
        t = self.label(k + 1 if backward else k)
        if self.convention == "official":  # told as step j of the simulating direction
            j = k if backward else self.n - 1 - k
            t = self.times[-1] - self.times[j + 1]
        weight = self.g[k] / self.g.mean() if self.output == "drift" else 1.0
        return x, target, np.full(len(x), t), np.full(len(x), weight)

    def closed_pairs(self, first: int, units: int) -> list[Array]:
        """[x, target, t, weight] of pairs of the reference, each [units, group, ...]."""
        numbers = first + np.arange(units)
        word = stream_word("pair", 0)
        bits = philox(key_of(self.seed), word, 0, numbers, 0)[:, 0]
        ks = (bits.astype(np.uint64) * np.uint64(self.n) >> np.uint64(32)).astype(int)
        x0 = self.starts(self.source, 0, numbers)
        z = self.noise(word, 1, numbers)
        m = np.asarray(self.reference_mean, np.float64)
        rows = []
        for i, k in enumerate(ks):
            a = 1.0 - self.g * self.reference_precision
            big_a = [float(np.prod(a[:j])) for j in range(self.n + 1)]
            v = [0.0]
            for j in range(self.n):
                v.append(a[j] ** 2 * v[j] + 2.0 * self.g[j])
            for sign in (1.0, -1.0)[: 2 if self.antithetic else 1]:
                centre = big_a[k + 1] * x0[i] + (1.0 - big_a[k + 1]) * m
                x = centre + math.sqrt(v[k + 1]) * sign * z[i]
                expected = big_a[k] * x0[i] + (1.0 - big_a[k]) * m
                expected = expected + v[k] * a[k] / v[k + 1] * (x - centre)
                if self.objective == "dsb":
                    expected = (
                        x + self.reference(expected, self.g[k]) - self.reference(x, self.g[k])
                    )
                rows.append(self.row(k, True, x[None], expected[None]))
        return self.join(rows, units)

    def known(self) -> tuple[Array, Array]:
        """Factors of (x_0, m) in the means of X_0 .. X_N given X_0 = x_0, and their covariance."""
        factors, cov = [np.array([1.0, 0.0])], np.zeros((self.n + 1, self.n + 1))
        for k, g in enumerate(self.g):
            a = 1.0 - g * self.reference_precision
            factors.append(a * factors[-1] + [0.0, 1.0 - a])
            cov[k + 1, : k + 1] = cov[: k + 1, k + 1] = a * cov[k, : k + 1]
            cov[k + 1, k + 1] = a**2 * cov[k, k] + 2.0 * g
        return np.array(factors), cov

    def given(self, i: int, j: int, x_0: Array, x_j: Array) -> tuple[Array, float]:
        """Mean and variance of X_i given X_0 and X_j, of the reference: a Gaussian, conditioned."""
        factors, cov = self.known()
        m = np.asarray(self.reference_mean, np.float64)
        mean = [f[0] * x_0 + f[1] * m for f in factors]
        gain = cov[i, j] / cov[j, j] if j > 0 else 0.0
        return mean[i] + gain * (x_j - mean[j]), float(cov[i, i] - gain * cov[i, j])

    def onwards(self, k: int, x_k: Array, x_end: Array) -> Array:
        """E[X_{k+1} given X_k, X_N] of the reference: that of the chain which begins with X_k."""
        return replace(self, steps=self.g[k:]).given(1, self.n - k, x_k, x_end)[0]

    def pin(self, k: int, backward: bool, start: Array, end: Array, z: Array) -> tuple[Array, ...]:
        """A row of training between the ends of one path, which began at `start`."""
        x_0, x_end = (start, end) if backward else (end, start)
        mean, variance = self.given(k + 1 if backward else k, self.n, x_0, x_end)
        x = mean + math.sqrt(max(variance, 0.0)) * z
        target = self.given(k, k + 1, x_0, x)[0] if backward else self.onwards(k, x, x_end)
        return self.row(k, backward, x[None], target[None])

    def pinned_pairs(self, half_bridge: int, first: int, units: int) -> list[Array]:
        """States between points of both ends, each unit with ends and a step of its own."""
        backward = half_bridge % 2 == 0
        numbers = first + np.arange(units)
        word = stream_word("pair", half_bridge)
        bits = philox(key_of(self.seed), word, 0, numbers, 0)[:, 0]
        steps = (bits.astype(np.uint64) * np.uint64(self.n) >> np.uint64(32)).astype(int)
        here, there = (self.source, self.prior) if backward else (self.prior, self.source)
        starts = self.starts(here, half_bridge, numbers)
        if self.first_coupling == "pairs":
            ends = self.starts(there, half_bridge, numbers)
        else:
            ends = self.starts(there, half_bridge, numbers, ("far", "far"))
        z = self.noise(word, 1, numbers)
        rows = []
        for i, j in enumerate(steps):
            k = j if backward else self.n - 1 - j
            for sign in (1.0, -1.0)[: 2 if self.antithetic else 1]:
                rows.append(self.pin(k, backward, starts[i], ends[i], sign * z[i]))
        return self.join(rows, units)

    def pairs_between(
        self, half_bridge: int, first: int, starts: Array, ends: Array
    ) -> list[Array]:
        """One state of each step between the ends of every path; unit = step * paths + path."""
        backward = half_bridge % 2 == 0
        numbers = first + np.arange(len(starts))
        rows = []
        for j in range(self.n):
            k = j if backward else self.n - 1 - j
            z = self.noise(stream_word("pinned", half_bridge), j, numbers)
            for i in range(len(starts)):
                for sign in (1.0, -1.0)[: 2 if self.antithetic else 1]:
                    rows.append(self.pin(k, backward, starts[i], ends[i], sign * z[i]))
        return self.join(rows, self.n * len(starts))

    def join(self, rows: list[tuple[Array, ...]], units: int) -> list[Array]:
        """Rows behind one another, then split into units."""
        group = 2 if self.antithetic else 1
        joined = [np.concatenate(column) for column in zip(*rows, strict=True)]
        return [c.reshape(units, group, *c.shape[1:]) for c in joined]

    def simulated_pairs(
        self, half_bridge: int, first: int, paths: int, net: Callable[[Array, float], Array] | None
    ) -> list[Array]:
        """All pairs of `paths` paths of the other direction; unit = step * paths + path."""
        backward = half_bridge % 2 == 0  # what is trained; the other one simulates
        numbers = first + np.arange(paths)
        x = began = self.starts(self.source if backward else self.prior, half_bridge, numbers)
        pairs: list[list[Array]] = [[], [], [], []]
        elapsed = 0.0
        for j in range(self.n):
            k = j if backward else self.n - 1 - j
            elapsed += self.g[j]
            told = self.label(k if backward else k + 1)
            told = elapsed if self.convention == "official" else told

            def mean_of(y: Array, k: int = k, told: float = told) -> Array:
                if net is None:
                    return self.reference(y, self.g[k])
                o = net(y, told)
                return {"mean": o, "step": y + o, "drift": y + self.g[k] * o}[self.output]

            mean = mean_of(x)
            z = self.noise(stream_word("noise", half_bridge), j, numbers)
            members = []
            for sign in (1.0, -1.0)[: 2 if self.antithetic else 1]:
                after = mean + sign * math.sqrt(2.0 * self.g[k]) * z
                target = x if self.objective == "simplified" else after + mean - mean_of(after)
                members.append((after, self.row(k, backward, after, target)))
            for column, parts in zip(
                pairs, zip(*(m[1] for m in members), strict=True), strict=True
            ):
                column.append(np.stack(parts, axis=1))
            x = members[0][0]
        if self.objective == "bridge":
            return self.pairs_between(half_bridge, first, began, x)
        return [np.concatenate(column) for column in pairs]

    def batches(
        self, half_bridge: int, steps: int, net: Callable[[Array, float], Array] | None
    ) -> Iterator[Batch]:
        """The batch of every gradient step; `net` is the other direction's, None: the reference."""
        group = 2 if self.antithetic else 1
        independent = self.first_coupling == "independent" and half_bridge == 0
        pinned = independent or (self.first_coupling == "pairs" and half_bridge < 2)
        closed = pinned or (half_bridge == 0 and self.closed_form)

        def size(gradient_steps: int) -> tuple[int, int]:
            units = -(-gradient_steps * self.batch // group // self.reuse)
            return units, units if closed else -(-units // self.n)

        for window in range(-(-steps // self.refresh)):
            todo = min(self.refresh, steps - window * self.refresh)
            units, draws = size(todo)
            first = window * size(self.refresh)[1]
            if pinned:
                pairs, stored = self.pinned_pairs(half_bridge, first, draws), draws
            elif closed:
                pairs, stored = self.closed_pairs(first, draws), draws
            else:
                pairs, stored = self.simulated_pairs(half_bridge, first, draws, net), draws * self.n
            word = stream_word("shuffle", half_bridge)
            order = permutation(self.seed, word, window, stored)
            reads = []
            for i in range(todo * self.batch // group):
                turn, place = divmod(i, units)
                if turn > 0:
                    place = permutation(self.seed, word, window | turn << 24, units)[place]
                reads.append(order[place])
            for s in range(todo):
                chosen = reads[s * self.batch // group : (s + 1) * self.batch // group]
                yield Batch(*(c[chosen].reshape(self.batch, *c.shape[2:]) for c in pairs))


# ---- Gaussian answers ----


def half_bridge(
    maps: Sequence[Map], mean: Array, cov: Array, g: Sequence[float], objective: str
) -> list[Map]:
    """Perfect regression on paths of `maps` with noise 2 g: the other direction's maps, in its order."""
    eye = np.eye(len(mean))
    learnt: list[Map] = []
    for (a, c), step in zip(maps, g, strict=True):
        next_mean, next_cov = a @ mean + c, a @ cov @ a.T + 2.0 * step * eye
        gain = cov @ a.T @ np.linalg.inv(next_cov)
        h = mean - gain @ next_mean
        learnt.append((gain, h) if objective == "simplified" else (eye + a @ (gain - eye), a @ h))
        mean, cov = next_mean, next_cov
    return learnt[::-1]


def end_of(
    maps: Sequence[Map], mean: Array, cov: Array, g: Sequence[float]
) -> tuple[Array, Array, Array]:
    """Mean and covariance at the end of the chain, and Cov(start, end)."""
    eye, cross = np.eye(len(mean)), cov
    for (a, c), step in zip(maps, g, strict=True):
        mean, cov, cross = a @ mean + c, a @ cov @ a.T + 2.0 * step * eye, cross @ a.T
    return mean, cov, cross


def population_dsb(
    source: tuple[Array, Array],
    prior: tuple[Array, Array],
    g: Sequence[float],
    reference: tuple[Array, float],
    iterations: int,
    objective: str = "dsb",
) -> list[dict[str, tuple[Array, Array, Array]]]:
    """Per iteration, for "backward" and "forward": mean and covariance at the end, Cov(start, end)."""
    centre, precision = np.atleast_1d(reference[0]), reference[1]
    ends = [tuple(np.atleast_1d(np.asarray(p, np.float64)) for p in e) for e in (source, prior)]
    (m0, s0), (m1, s1) = ((m, s.reshape(len(m), len(m))) for m, s in ends)
    eye, back = np.eye(len(m0)), list(g)[::-1]
    forward = [((1.0 - step * precision) * eye, step * precision * centre) for step in g]
    found = []
    for _ in range(iterations):
        backward = half_bridge(forward, m0, s0, g, objective)
        forward = half_bridge(backward, m1, s1, back, objective)
        found.append(
            {"backward": end_of(backward, m1, s1, back), "forward": end_of(forward, m0, s0, g)}
        )
    return found


# ---- exact IPF on samples, and its yardstick ----


def logsumexp(a: Array, axis: int) -> Array:
    """log sum exp along an axis."""
    top = a.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(a - top).sum(axis=axis, keepdims=True))).squeeze(axis)


def exact_ipf(
    x: Array, y: Array, g: Sequence[float], reference: tuple[Array, float], iterations: int
) -> list[Array]:
    """Weights of the rows of x under the backward process after each iteration, log domain.

    x and y are samples of the ends; the reference's N-step transition is Gaussian.
    """
    centre, precision = reference
    a = 1.0 - np.asarray(g) * precision
    product, v = 1.0, 0.0
    for step, factor in zip(g, a, strict=True):
        product, v = product * factor, factor**2 * v + 2.0 * step
    at = product * x + (1.0 - product) * centre
    log_k = -(((at[:, None] - y[None]) ** 2).sum(axis=2)) / (2.0 * v)
    potential = np.full(len(x), -math.log(len(x)))  # of the data end; the prior's follows
    found = []
    for _ in range(iterations):
        other = -math.log(len(y)) - logsumexp(potential[:, None] + log_k, 0)
        row = logsumexp(log_k + other[None], 1)
        found.append(np.exp(potential + row))
        potential = -math.log(len(x)) - row
    return found


def sliced_w2(x: Array, y: Array, directions: int = 200) -> float:
    """Root mean over directions of the squared 2-Wasserstein distance of equally many points."""
    u = np.random.default_rng(0).normal(size=(x.shape[1], directions))
    u /= np.linalg.norm(u, axis=0)
    return float(np.sqrt(((np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)) ** 2).mean()))


def swiss_roll(n: int, seed: int) -> Array:
    """Columns 0 and 2 of scikit-learn's, minus the joint mean, over the joint deviation, times 7."""
    rng = np.random.default_rng(seed)
    t = 1.5 * np.pi * (1.0 + 2.0 * rng.uniform(size=n))
    x = np.stack([t * np.cos(t), t * np.sin(t)], axis=1)
    return 7.0 * (x - x.mean()) / x.std()


# ---- other processes ----


def run_python(code: str, isa: str | None = None, timeout: float = 120.0) -> str:
    """Standard output of a Python process of its own, on an instruction set if one is named."""
    env = os.environ | ({"DSB_ISA": isa} if isa else {})
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
