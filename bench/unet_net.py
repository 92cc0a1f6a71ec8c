"""The U-Net of improved-diffusion in PyTorch, with the parameter names of its released weights.

One departure, to PyTorch's favour: normalisation takes bfloat16 as it is, in place of a detour through
float32 (its sums are float32 either way).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32


def embed(t: Tensor, width: int) -> Tensor:
    """[cos, sin] of width / 2 frequencies."""
    half = width // 2
    angles = t[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / half))
    return torch.cat([angles.cos(), angles.sin()], -1)


class Residual(nn.Module):
    """Two normalised convolutions beside a shortcut; the time scales and shifts between them."""

    def __init__(self, c_in: int, c_out: int, c_time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, 2 * c_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, c_out),
            nn.SiLU(),
            nn.Identity(),  # dropout, which the benchmark has not
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        same = c_in == c_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        out: Tensor = self.skip_connection(x) + self.out_layers[1:](h)
        return out


class Attention(nn.Module):
    """Over the pixels, heads outermost: channels [heads][q, k, v][d]."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(GROUPS, c), heads
        self.qkv, self.proj_out = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        n, c, h, w = x.shape
        flat = x.reshape(n, c, h * w)
        qkv = self.qkv(self.norm(flat)).reshape(n, self.heads, 3, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(2)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return (flat + self.proj_out(seen.reshape(n, c, h * w))).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Up(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class First(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Block(nn.Sequential):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, time)
        return x


class UNet(nn.Module):
    """Attention in the middle only, as in the released settings for 28 x 28 images."""

    def __init__(
        self, colours: int, channels: int, multipliers: Sequence[int], blocks: int, heads: int
    ) -> None:
        super().__init__()
        self.channels, c_time = channels, 4 * channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, c_time), nn.SiLU(), nn.Linear(c_time, c_time)
        )
        c, levels = channels, len(multipliers)
        self.input_blocks = nn.ModuleList([Block(First(colours, c, 3, padding=1))])
        kept = [c]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.input_blocks.append(Block(Residual(c, multiplier * channels, c_time)))
                c = multiplier * channels
                kept.append(c)
            if level < levels - 1:
                self.input_blocks.append(Block(Down(c)))
                kept.append(c)
        self.middle_block = Block(
            Residual(c, c, c_time), Attention(c, heads), Residual(c, c, c_time)
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                layers: list[nn.Module] = [Residual(c + kept.pop(), multiplier * channels, c_time)]
                c = multiplier * channels
                if level > 0 and i == blocks:
                    layers.append(Up(c))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, c), nn.SiLU(), nn.Conv2d(c, colours, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time_embed(embed(t, self.channels))
        kept = []
        for block in self.input_blocks:
            x = block(x, time)
            kept.append(x)
        x = self.middle_block(x, time)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), time)
        out: Tensor = self.out(x)
        return out
