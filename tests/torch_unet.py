"""The U-Net of improved diffusion in PyTorch, parameters called as in its published code.

Written for the tests, from the description in arXiv:2102.09672, so that outputs, gradients and losses can be
compared.
"""

import math

import torch
from torch import nn
from torch.nn import functional

GROUPS = 32


class Residual(nn.Module):
    """x -> S x + out(in(x), time)."""

    def __init__(self, c_in, c_out, c_time, dropout, scale_shift):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, c_out * (1 + scale_shift)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, c_out),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, time):
        h = self.in_layers(x)
        told = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """x -> x + W softmax(q k^T / sqrt(d)) v over the pixels."""

    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, c)
        self.qkv = nn.Conv1d(c, 3 * c, 1)
        self.proj_out = nn.Conv1d(c, c, 1)

    def forward(self, x, time):
        rows, c, h, w = x.shape
        flat = x.reshape(rows, c, h * w)
        qkv = self.qkv(self.norm(flat)).reshape(rows, self.heads, 3, c // self.heads, h * w)
        q, k, v = qkv.unbind(dim=2)
        score = torch.einsum("rhdp,rhds->rhps", q, k) / math.sqrt(c // self.heads)
        exact = torch.float32 if score.dtype == torch.bfloat16 else None  # under autocast
        weight = functional.softmax(score, dim=3, dtype=exact).to(v.dtype)
        y = torch.einsum("rhps,rhds->rhdp", weight, v)
        return (flat + self.proj_out(y.reshape(rows, c, h * w))).reshape(x.shape)


class Halved(nn.Module):
    def __init__(self, c, plain):
        super().__init__()
        if plain:
            self.pool = nn.AvgPool2d(2)
        else:
            self.op = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x, time):
        return self.op(x) if hasattr(self, "op") else self.pool(x)


class Doubled(nn.Module):
    def __init__(self, c, plain):
        super().__init__()
        if not plain:
            self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x, time):
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if hasattr(self, "conv") else x


class First(nn.Conv2d):
    def forward(self, x, time):
        return super().forward(x)


class TorchUNet(nn.Module):
    """Arguments are those of `dsb.UNet`, and the channels of the images and their height."""

    def __init__(
        self,
        image_channels,
        height,
        channels=64,
        multipliers=(1, 2, 2),
        blocks=2,
        attention_resolutions=(),
        heads=4,
        scale_shift=True,
        dropout=0.0,
        resample="conv",
        cond_channels=0,
        classes=None,
    ):
        super().__init__()
        self.channels, wide, plain = channels, 4 * channels, resample == "plain"
        self.time_embed = nn.Sequential(nn.Linear(channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, wide)

        def block(c_in, c_out, level):
            layers = [Residual(c_in, c_out, wide, dropout, scale_shift)]
            if height >> level in attention_resolutions:
                layers.append(Attention(c_out, heads))
            return layers

        c, skipped = channels, [channels]
        down = [[First(image_channels + cond_channels, channels, 3, padding=1)]]
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                down.append([Halved(c, plain)])
                skipped.append(c)
            for _ in range(blocks):
                down.append(block(c, multiplier * channels, level))
                c = multiplier * channels
                skipped.append(c)
        middle = [Residual(c, c, wide, dropout, scale_shift) for _ in range(2)]
        middle.insert(1, Attention(c, heads))
        up = []
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                up.append(block(c + skipped.pop(), multiplier * channels, level))
                c = multiplier * channels
                if level > 0 and i == blocks:
                    up[-1].append(Doubled(c, plain))
        self.input_blocks = nn.ModuleList([nn.ModuleList(layers) for layers in down])
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList([nn.ModuleList(layers) for layers in up])
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, c), nn.SiLU(), nn.Conv2d(c, image_channels, 3, padding=1)
        )

    def forward(self, x, t, cond=None, label=None):
        half = self.channels // 2
        frequency = torch.exp(-math.log(1e4) * torch.arange(half, dtype=t.dtype) / half)
        angle = t[:, None] * frequency
        time = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1))
        if label is not None:
            time = time + self.label_emb(label.long())
        h = x if cond is None else torch.cat([x, cond], dim=1)
        skipped = []
        for layers in self.input_blocks:
            for layer in layers:
                h = layer(h, time)
            skipped.append(h)
        for layer in self.middle_block:
            h = layer(h, time)
        for layers in self.output_blocks:
            h = torch.cat([h, skipped.pop()], dim=1)
            for layer in layers:
                h = layer(h, time)
        return self.out(h)
