"""Multilayer perceptrons for vectors: descriptions whose dimension the bridge fills in."""

from __future__ import annotations

from collections.abc import Sequence

from ._check import choice, flag, integer, real, shown
from .nn import MAX_WIDTH, Graph, Op, Value

MAX_DEPTH = 256
_ARGUMENTS = ("width", "depth", "embedding", "activation", "residual", "slope", "widths")


class MLP:
    r"""h = act(W [x, e(t)] + b), then hidden layers, then a linear layer back to R^d.

    e(t) are sinusoids of the time (`nn.Graph.embed`). Hidden layers are h <- act(W h + b), or, with
    residual=True, h <- h + W2 act(W1 h + b1) + b2.

    Parameters
    ----------
    width : int, optional
        Of the hidden layers. Default: the power of two at or above 4 d, from 128 to 512. There is no
        narrow encoder in front: one of width 16 doubles the error at d = 20.
    depth : int
        Number of hidden layers (the first, and depth - 1 more), at least 1.
    embedding : int
        Width of e(t), even, at least 4.
    activation : {"silu", "leaky_relu"}
    residual : bool
        About half the error at twice the time.
    slope : float
        Of leaky_relu.
    widths : sequence of int, optional
        The hidden widths one by one, in place of `width` and `depth`.

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range; also `widths` together with `width`, and residual layers of
        unequal widths.

    Notes
    -----
    The nets B and F of section 3.3 of arXiv:2106.01357.
    """

    __slots__ = _ARGUMENTS

    def __init__(
        self,
        width: int | None = None,
        depth: int = 3,
        embedding: int = 32,
        activation: str = "silu",
        residual: bool = False,
        slope: float = 0.01,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.width = None if width is None else integer("width", width, 1, MAX_WIDTH)
        self.depth = integer("depth", depth, 1, MAX_DEPTH)
        self.embedding = integer("embedding", embedding, 4, MAX_WIDTH)
        if self.embedding % 2:
            raise ValueError(f"embedding: expected an even number, got {embedding}")
        self.activation = choice("activation", activation, ("silu", "leaky_relu"))
        self.residual = flag("residual", residual)
        self.slope = real("slope", slope, above=0)
        if self.slope > 1:
            raise ValueError(f"slope: expected at most 1, got {slope}")
        self.widths = None if widths is None else self._checked(widths)

    def _checked(self, given: Sequence[int]) -> tuple[int, ...]:
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            raise TypeError(f"widths: expected a list of whole numbers, got {shown(given)}")
        widths = tuple(integer("widths", width, 1, MAX_WIDTH) for width in given)
        if not 1 <= len(widths) <= MAX_DEPTH:
            raise ValueError(f"widths: expected 1 to {MAX_DEPTH} hidden layers, got {len(widths)}")
        if self.width is not None:
            raise ValueError("widths: expected either width or widths, got both")
        if self.residual and len(set(widths)) > 1:
            raise ValueError(f"widths: expected equal ones where residual=True, got {list(widths)}")
        return widths

    @staticmethod
    def official() -> OfficialMLP:
        """The released 2-D network, for any d (26,498 parameters at d = 2)."""
        return OfficialMLP()

    def hidden(self, dim: int) -> tuple[int, ...]:
        """Widths of the hidden layers in dimension `dim`."""
        if self.widths is not None:
            return self.widths
        width = self.width
        if width is None:
            width = min(max(128, 1 << (4 * dim - 1).bit_length()), 512)
        return (width,) * self.depth

    def build(self, dim: int) -> list[Op]:
        """The ops of the net for points in R^dim."""
        dim = integer("dim", dim, 1, MAX_WIDTH)
        g = Graph()
        x, t = g.input("x", dim), g.input("t")
        h = g.concat(x, g.embed(t, self.embedding, "sin_cos", name="time"), name="x_and_time")
        first, *rest = self.hidden(dim)
        h = self._act(g, g.linear(h, first, name="layers.0"))
        for i, width in enumerate(rest, 1):
            if self.residual:
                z = self._act(g, g.linear(h, width, name=f"layers.{i}.0"))
                h = g.add(h, g.linear(z, width, name=f"layers.{i}.1"))
            else:
                h = self._act(g, g.linear(h, width, name=f"layers.{i}"))
        g.linear(h, dim, name=f"layers.{len(rest) + 1}")
        return g.ops

    def _act(self, g: Graph, h: Value) -> Value:
        return g.silu(h) if self.activation == "silu" else g.leaky_relu(h, self.slope)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MLP) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        told = []
        for name, default in zip(_ARGUMENTS, MLP.__init__.__defaults__ or (), strict=True):
            value = getattr(self, name)
            if value != default:
                told.append(f"{name}={list(value) if name == 'widths' else value!r}")
        return f"MLP({', '.join(told)})"


class OfficialMLP:
    r"""net([x_encoder(x), t_encoder(e(t))]), the released network of the 2-D experiments.

    Encoders d-16-32 and 16-16-32, trunk 64-128-128-d, LeakyReLU(0.01) inside each, none after the
    encoders. Parameters are called as in the released code's `state_dict`.
    """

    def build(self, dim: int) -> list[Op]:
        """The ops of the net for points in R^dim."""
        dim = integer("dim", dim, 1, MAX_WIDTH)
        g = Graph()
        x, t = g.input("x", dim), g.input("t")
        encoded_x = _layers(g, x, "x_encoder", [16, 32])
        encoded_t = _layers(g, g.embed(t, 16, "sin_cos", name="time"), "t_encoder", [16, 32])
        _layers(g, g.concat(encoded_x, encoded_t), "net", [128, 128, dim])
        return g.ops

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OfficialMLP)

    def __hash__(self) -> int:
        return hash(OfficialMLP)

    def __repr__(self) -> str:
        return "MLP.official()"


def _layers(g: Graph, h: Value, name: str, widths: list[int]) -> Value:
    for i, width in enumerate(widths):
        h = g.linear(h if i == 0 else g.leaky_relu(h), width, name=f"{name}.layers.{i}")
    return h
