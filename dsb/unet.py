"""The U-Net for images: a description whose shape the bridge fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ._check import choice, flag, integer, real, shown, single
from ._ops import MAX_SIDE, MAX_VECTOR, MAX_WIDTH, Size, times
from .nn import Graph, Op, Value

GROUPS = 32  # of every normalisation
LEAST = 4  # pixels: how far images are halved where nobody says
MAX_LEVELS = 12
RELEASED = "168"
_ARGUMENTS = (
    *("channels", "multipliers", "blocks", "attention_resolutions", "heads", "scale_shift"),
    *("dropout", "resample", "cond_channels", "classes"),
)


class UNet:
    r"""h_0 = W x + b; down: h_{l+1} = D(R .. R h_l); middle: R A R; up: h_l <- U(R .. R [h_l, skipped]).

    A residual block with the time embedding e = W2 silu(W1 [cos, sin](t) + b1) + b2 is

        R h = S h + W3 silu(norm(W4 silu(norm h) + b4) (1 + a) + c) + b3,    [a, c] = W5 silu(e) + b5,

    or, with scale_shift=False, W3 silu(norm(W4 silu(norm h) + b4 + W5 silu(e) + b5)) + b3. S is the
    identity, or a 1 x 1 convolution where the number of channels changes; W3 and W4 are 3 x 3. An attention
    block is A h = h + W6 softmax(q k^T / sqrt(d)) v over the pixels, with q, k, v of a normalisation of h.
    D is a 3 x 3 convolution of stride 2, U doubles the image before one of stride 1. Every block of the
    way down hands its result over to one of the way up. All normalisations have 32 groups; the last
    convolution of every block, and of the net, starts at zero.

    Parameters
    ----------
    channels : int
        Of the first level, a multiple of 32.
    multipliers : sequence of int, optional
        Channels of each level, from the finest, in units of `channels`: one entry more than there are
        halvings. Default: (1, 2, 2) for 28 x 28 pixels, (1, 2, 2, 2) for 32 x 32, (1, 2, 3, 4) for
        64 x 64; in general as many halvings as leave 4 pixels (8 from 64 on) and whole numbers.
    blocks : int
        Residual blocks in a level on the way down; one more on the way up.
    attention_resolutions : sequence of int, or "168"
        Levels with attention in every block, named by the height of the image there: (16, 8) for a 32 x 32
        image attends in the second and third. The middle always attends. "168" is what the released
        configurations say; it was to mean 16 and 8, but is read as the one number 168, the height of no
        level, and so asks for nothing but the middle: the same as ().
    heads : int
        Of each attention; they share the channels.
    scale_shift : bool
        How the time enters a residual block.
    dropout : float
        Rate before the last convolution of each residual block, in training.
    resample : {"conv", "plain"}
        "plain": D is a mean over 2 x 2 pixels and U only doubles, without weights.
    cond_channels : int
        Channels of a second image, of the same size, that the net reads beside x. A `Bridge` has none to
        give yet, and refuses such a net; nor has it labels.
    classes : int, optional
        Number of labels; each has a trained vector that is added to e.

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range, or does not fit the size of the images.

    Notes
    -----
    The net of Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672,
    as used for images in arXiv:2106.01357 (section 3.3 and appendix); parameters are called as in its
    published code. `UNet.mnist()` has 6,615,361 parameters, `UNet.celeba32()` 9.26 and
    `UNet.celeba64()` 20.97 million.
    """

    __slots__ = _ARGUMENTS

    def __init__(
        self,
        channels: int = 64,
        multipliers: Sequence[int] | None = None,
        blocks: int = 2,
        attention_resolutions: Sequence[int] | str = (),
        heads: int = 4,
        scale_shift: bool = True,
        dropout: float = 0.0,
        resample: str = "conv",
        cond_channels: int = 0,
        classes: int | None = None,
    ) -> None:
        self.channels = integer("channels", channels, GROUPS, MAX_WIDTH)
        if self.channels % GROUPS:
            below = self.channels // GROUPS * GROUPS
            raise ValueError(
                f"channels: expected a multiple of {GROUPS}, the groups of a normalisation, such as "
                f"{below} or {below + GROUPS}, got {channels}"
            )
        self.multipliers = None if multipliers is None else _numbers("multipliers", multipliers)
        if self.multipliers is not None and not 1 <= len(self.multipliers) <= MAX_LEVELS:
            raise ValueError(
                f"multipliers: expected 1 to {MAX_LEVELS} levels, got {len(self.multipliers)}"
            )
        self.blocks = integer("blocks", blocks, 1, 64)
        self.attention_resolutions: tuple[int, ...] | str
        if isinstance(attention_resolutions, str):
            if attention_resolutions != RELEASED:
                raise ValueError(
                    "attention_resolutions: expected heights such as (16, 8), or the released "
                    f"{RELEASED!r} (attention in the middle only), got {shown(attention_resolutions)}"
                )
            self.attention_resolutions = attention_resolutions
        else:
            self.attention_resolutions = _numbers("attention_resolutions", attention_resolutions)
        self.heads = integer("heads", heads, 1, MAX_WIDTH)
        self.scale_shift = flag("scale_shift", scale_shift)
        self.dropout = single("dropout", real("dropout", dropout, least=0, below=1), below=1)
        self.resample = choice("resample", resample, ("conv", "plain"))
        self.cond_channels = integer("cond_channels", cond_channels, 0, MAX_WIDTH)
        self.classes = None if classes is None else integer("classes", classes, 1, MAX_WIDTH)
        for multiplier in self.multipliers or ():
            self._check_heads(multiplier)

    def _check_heads(self, multiplier: int) -> None:
        wide = multiplier * self.channels
        if wide > MAX_WIDTH or 3 * wide > MAX_WIDTH:
            raise ValueError(f"multipliers: expected up to {MAX_WIDTH // 3} channels, got {wide}")
        if wide % self.heads:
            raise ValueError(
                f"heads: {wide} channels cannot be split into {self.heads} equal heads"
            )

    @staticmethod
    def mnist() -> UNet:
        """The released network for MNIST, 28 x 28: 6,615,361 parameters with one channel."""
        return UNet(multipliers=(1, 2, 2), attention_resolutions=RELEASED)

    @staticmethod
    def celeba32() -> UNet:
        """The released network for CelebA at 32 x 32: 9.26 million parameters with three channels."""
        return UNet(multipliers=(1, 2, 2, 2), attention_resolutions=RELEASED)

    @staticmethod
    def celeba64() -> UNet:
        """The released network for CelebA at 64 x 64: 20,972,867 parameters with three channels."""
        return UNet(multipliers=(1, 2, 3, 4), attention_resolutions=RELEASED)

    def levels(self, size: Size) -> tuple[int, ...]:
        """Multipliers for images of height and width `size`."""
        h, w = size
        if self.multipliers is not None:
            deep = len(self.multipliers) - 1
            if h % 2**deep or w % 2**deep:
                raise ValueError(_unfit(size, deep))
            return self.multipliers
        deep, least = 0, LEAST * (2 if min(h, w) >= 64 else 1)
        while h % 2 == w % 2 == 0 and min(h, w) // 2 >= least and deep < MAX_LEVELS - 1:
            h, w, deep = h // 2, w // 2, deep + 1
        if least > LEAST and deep >= 3:
            return (1,) * (deep - 3) + (1, 2, 3, 4)
        return (1,) + (2,) * deep

    def build(self, shape: tuple[int, int, int]) -> list[Op]:
        """The ops of the net for images of shape (channels, height, width)."""
        try:
            c, h, w = shape
        except (TypeError, ValueError):
            raise TypeError(
                f"shape: expected (channels, height, width), got {shown(shape)}"
            ) from None
        c = integer("shape", c, 1, MAX_WIDTH)
        h, w = (integer("shape", side, 1, MAX_SIDE) for side in (h, w))
        if (c + self.cond_channels) * h * w > MAX_VECTOR:
            raise ValueError(
                f"net: expected images of up to {MAX_VECTOR} numbers, got {c + self.cond_channels} x "
                f"{h} x {w}"
            )
        return _Builder(self, c, (h, w)).whole()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UNet) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        told = []
        for name, default in zip(_ARGUMENTS, UNet.__init__.__defaults__ or (), strict=True):
            value = getattr(self, name)
            if value != default:
                told.append(f"{name}={value!r}")
        return f"UNet({', '.join(told)})"


class _Level(NamedTuple):
    channels: int
    attends: bool


class _Builder:
    """One graph under way: its input, the embedding, and the results that wait for the way up."""

    def __init__(self, net: UNet, channels: int, size: Size) -> None:
        self.net, self.channels, self.size = net, channels, size
        multipliers = net.levels(size)
        heights = [size[0] >> i for i in range(len(multipliers))]
        attends = net.attention_resolutions
        wanted = () if isinstance(attends, str) else attends
        for height in wanted:
            if height not in heights:
                raise ValueError(
                    f"attention_resolutions: the levels of {times(size)} images have heights "
                    f"{', '.join(map(str, heights))}, got {height}"
                )
        for multiplier in multipliers:
            net._check_heads(multiplier)
        self.levels = [
            _Level(multiplier * net.channels, height in wanted)
            for multiplier, height in zip(multipliers, heights, strict=True)
        ]
        self.g = Graph()
        self.skipped: list[Value] = []

    def whole(self) -> list[Op]:
        g, net = self.g, self.net
        x = g.input("x", self.channels * self.size[0] * self.size[1])
        h = g.image(x, self.size, name="image")
        if net.cond_channels:
            cond = g.input("cond", net.cond_channels * self.size[0] * self.size[1])
            h = g.concat(h, g.image(cond, self.size, name="cond_image"), name="image_and_cond")
        self.time = self.embedding()
        h = self.middle(self.down(h))
        h = self.up(h)
        h = g.group_norm(h, groups=GROUPS, silu=True, name="out.0")
        g.flatten(g.conv(h, self.channels, zero=True, name="out.2"), name="output")
        return g.ops

    def embedding(self) -> Value:
        """silu(e), which every residual block reads."""
        g, net = self.g, self.net
        wide = 4 * net.channels
        e = g.embed(g.input("t"), net.channels, "cos_sin", name="time")
        e = g.silu(g.linear(e, wide, name="time_embed.0"), name="time_embed.1")
        e = g.linear(e, wide, name="time_embed.2")
        if net.classes is not None:
            label = g.lookup(g.input("label"), net.classes, wide, name="label_emb")
            e = g.add(e, label, name="time_and_label")
        return g.silu(e, name="embedding")

    def down(self, h: Value) -> Value:
        h = self.g.conv(h, self.net.channels, name="input_blocks.0.0")
        self.skipped.append(h)
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.halved(h, f"input_blocks.{len(self.skipped)}.0")
                self.skipped.append(h)
            for _ in range(self.net.blocks):
                name = f"input_blocks.{len(self.skipped)}"
                h = self.residual(h, level.channels, f"{name}.0")
                if level.attends:
                    h = self.attention(h, f"{name}.1")
                self.skipped.append(h)
        return h

    def middle(self, h: Value) -> Value:
        h = self.residual(h, h.width, "middle_block.0")
        h = self.attention(h, "middle_block.1")
        return self.residual(h, h.width, "middle_block.2")

    def up(self, h: Value) -> Value:
        number = 0
        for i, level in reversed(list(enumerate(self.levels))):
            for block in range(self.net.blocks + 1):
                name = f"output_blocks.{number}"
                h = self.g.concat(h, self.skipped.pop(), name=f"{name}.input")
                h = self.residual(h, level.channels, f"{name}.0")
                if level.attends:
                    h = self.attention(h, f"{name}.1")
                if i > 0 and block == self.net.blocks:
                    h = self.doubled(h, f"{name}.{1 + level.attends}")
                number += 1
        return h

    def residual(self, x: Value, wide: int, name: str) -> Value:
        """R x with `wide` channels."""
        g, net = self.g, self.net
        told = g.linear(self.time, wide * (1 + net.scale_shift), name=f"{name}.emb_layers.1")
        h = g.group_norm(x, groups=GROUPS, silu=True, name=f"{name}.in_layers.0")
        h = g.conv(h, wide, name=f"{name}.in_layers.2")
        norm = f"{name}.out_layers.0"
        if net.scale_shift:
            h = g.group_norm(h, told, groups=GROUPS, silu=True, name=norm)
        else:
            h = g.add(h, told, name=f"{name}.told")
            h = g.group_norm(h, groups=GROUPS, silu=True, name=norm)
        if net.dropout:
            h = g.dropout(h, net.dropout, name=f"{name}.out_layers.2")
        # Before the last convolution, which can then add it to its own result.
        if x.width != wide:
            x = g.conv(x, wide, kernel=1, name=f"{name}.skip_connection")
        h = g.conv(h, wide, zero=True, name=f"{name}.out_layers.3")
        return g.add(x, h, name=name)

    def attention(self, x: Value, name: str) -> Value:
        """A x."""
        g = self.g
        h = g.group_norm(x, groups=GROUPS, name=f"{name}.norm")
        h = g.conv(h, 3 * x.width, kernel=1, axes=3, name=f"{name}.qkv")
        h = g.attention(h, self.net.heads, name=f"{name}.attention")
        h = g.conv(h, x.width, kernel=1, axes=3, zero=True, name=f"{name}.proj_out")
        return g.add(x, h, name=name)

    def halved(self, x: Value, name: str) -> Value:
        if self.net.resample == "plain":
            return self.g.pool(x, name=name)
        return self.g.conv(x, x.width, stride=2, name=f"{name}.op")

    def doubled(self, x: Value, name: str) -> Value:
        if self.net.resample == "plain":
            return self.g.upsample(x, name=name)
        return self.g.conv(x, x.width, up=True, name=f"{name}.conv")


def _numbers(argument: str, given: Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{argument}: expected a list of whole numbers, got {shown(given)}")
    return tuple(integer(argument, number, 1, MAX_WIDTH) for number in given)


def _unfit(size: Size, deep: int) -> str:
    """What to do about images that cannot be halved `deep` times."""
    step = 2**deep
    near = [max(round(side / step), 1) * step for side in size]
    fit = next(n for n in range(deep, -1, -1) if not any(side % 2**n for side in size))
    many = f"{fit + 1} multipliers" if fit else "1 multiplier"
    return (
        f"net: {deep + 1} multipliers halve images {deep} times, which {times(size)} do not allow: "
        f"{step} must divide both; {near[0]} x {near[1]} would do, or {many}"
    )
