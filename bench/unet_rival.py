"""PyTorch's U-Net. As a program: a worker, `unet_rival.py THREADS PROBLEM PRECISION`.

Adam is the fused one, clipping and moving average run over all parameters at once; the batch is at
hand, so that a step has no data loader. A window of the cache is simulated with whole batches.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from unet_net import GROUPS, UNet
from unet_work import (
    BATCH,
    BLOCKS,
    CHANNELS,
    CLIP,
    COLOURS,
    EMA,
    HEADS,
    LEARNING_RATE,
    MULTIPLIERS,
    REFRESH,
    SIZE,
    STEP_SIZE,
    STEPS,
    Problem,
    labels,
    process_bytes,
)
from worker import serve

# Inductor lays the images of convolutions out channels last by itself: there is one compiled way.
KINDS = ("contiguous", "channels last", "compiled")
CHUNKS = (BATCH, 32)  # images that a simulation takes at a time
NOISE = math.sqrt(2 * STEP_SIZE)


class Net:
    """A U-Net in one layout and precision, eager or compiled."""

    def __init__(self, problem: Problem, kind: str, precision: str) -> None:
        self.module = UNet(COLOURS, CHANNELS, MULTIPLIERS, BLOCKS, HEADS)
        self.module.load_state_dict(
            {  # PyTorch's attention keeps convolutions of 1 x 1 with one axis for both sides
                name: torch.from_numpy(problem.weights[name]).reshape(value.shape)
                for name, value in self.module.state_dict().items()
            }
        )
        last = kind == "channels last"
        self._format = torch.channels_last if last else torch.contiguous_format
        self.module.to(memory_format=self._format)
        self._half = precision == "bf16"
        wrap: Callable[..., Any] = torch.compile if kind == "compiled" else lambda f: f
        self.forward: Callable[[Tensor, Tensor], Tensor] = wrap(self._forward)
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = wrap(self._loss)

    def laid_out(self, x: Tensor) -> Tensor:
        return x.reshape(-1, COLOURS, *SIZE).to(memory_format=self._format)

    def _forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
            out: Tensor = self.module(x, t)
        return out.float()

    def _loss(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(self._forward(x, t), target)


class Trainer:
    def __init__(self, net: Net) -> None:
        self._net = net
        self._parameters: list[Tensor] = list(net.module.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]
        self._adam = torch.optim.Adam(self._parameters, LEARNING_RATE, fused=True)

    def step(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        loss = self._net.loss(x, t, target)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self._averages, self._parameters, 1 - EMA)
        return loss.detach()


@torch.inference_mode()
def sample(net: Net, n: int, chunk: int) -> Tensor:
    """n images through all steps, chunk after chunk."""
    out = []
    for first in range(0, n, chunk):
        x = net.laid_out(torch.randn(min(chunk, n - first), COLOURS, *SIZE))
        for label in labels()[:0:-1]:
            x = x + net.forward(x, torch.full((len(x),), float(label)))
            x = x + NOISE * torch.randn_like(x)
        out.append(x)
    return torch.cat(out)


@torch.no_grad()
def window(net: Net, n: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, times and targets of n paths, two evaluations a pair."""
    states, times, targets = [], [], []
    for first in range(0, n, chunk):
        x = net.laid_out(torch.randn(min(chunk, n - first), COLOURS, *SIZE))
        for label in labels()[:0:-1]:
            t = torch.full((len(x),), float(label))
            mean = x + net.forward(x, t)
            x = mean + NOISE * torch.randn_like(x)
            states.append(x)
            times.append(t)
            targets.append(mean - x - net.forward(x, t))
    return torch.cat(states), torch.cat(times), torch.cat(targets)


def norm_seconds(layout: str, compiled: bool, dtype: torch.dtype, repeats: int) -> float:
    """Median seconds of GroupNorm and SiLU forward over a batch."""
    last = layout == "channels last"
    shape = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(BATCH, CHANNELS, *SIZE).to(dtype).contiguous(memory_format=shape)
    weight, bias = torch.rand(CHANNELS, dtype=dtype), torch.rand(CHANNELS, dtype=dtype)

    def run(x: Tensor) -> Tensor:
        return functional.silu(functional.group_norm(x, GROUPS, weight, bias))

    called, seconds = torch.compile(run) if compiled else run, []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            called(x)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class Rival:
    def __init__(self, problem: Problem, precision: str) -> None:
        torch.manual_seed(0)
        self._problem, self._precision = problem, precision
        self._nets: dict[str, Net] = {}
        self._trainers: dict[str, Trainer] = {}
        rows = torch.from_numpy(problem.images[:BATCH]).float() * (2 / 255) - 1
        self._batch = (rows, 1000 * torch.rand(BATCH), torch.randn(BATCH, rows.shape[1]))

    def _net(self, kind: str) -> Net:
        if kind not in self._nets:
            self._nets[kind] = Net(self._problem, kind, self._precision)
            self._trainers[kind] = Trainer(self._nets[kind])
        return self._nets[kind]

    def step(self, kind: str, steps: int, batch: int = BATCH) -> float:
        """Seconds for a gradient step; the first call compiles."""
        net = self._net(kind)
        x, t, target = (part[:batch] for part in self._batch)
        x, target = net.laid_out(x), net.laid_out(target)
        start = time.perf_counter()
        for _ in range(steps):
            self._trainers[kind].step(x, t, target)
        return (time.perf_counter() - start) / steps

    def sample(self, kind: str, chunk: int, n: int = BATCH) -> float:
        """Seconds for a step of n images; the first call compiles."""
        net = self._net(kind)
        start = time.perf_counter()
        sample(net, n, chunk)
        return (time.perf_counter() - start) / STEPS

    def half_bridge(self, kind: str, sampler: str, chunk: int, batch: int = BATCH) -> float:
        net, other = self._net(kind), self._net(sampler)
        trainer = self._trainers[kind]
        start = time.perf_counter()
        states, times, targets = window(other, batch * REFRESH // STEPS, chunk)
        order = torch.randperm(batch * REFRESH)
        for rows in order.split(batch):
            parts = net.laid_out(states[rows]), times[rows], net.laid_out(targets[rows])
            trainer.step(*parts)
        return time.perf_counter() - start

    def norm(self, layout: str, compiled: bool, half: bool, repeats: int) -> float:
        return norm_seconds(layout, compiled, torch.bfloat16 if half else torch.float32, repeats)

    def outputs(self, n: int) -> list[float]:
        """Of the network for the first n images at times 0 .. 1000: all sides give the same."""
        net = self._net("contiguous")
        with torch.inference_mode():
            y = net.forward(net.laid_out(self._batch[0][:n]), torch.linspace(0, 1000, n))
        values: list[float] = y.flatten().tolist()
        return values

    def rest(self) -> None:
        """Gives memory back before a long sleep."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def memory(self, kind: str, batch: int = BATCH) -> dict[str, int]:
        """Peak of a process that has done nothing but train."""
        self.step(kind, 2, batch)
        return {"peak": process_bytes("VmHWM")}


def main() -> None:
    threads, problem, precision = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    rival = Rival(Problem.load(problem), precision)
    serve(
        {
            "step": rival.step,
            "sample": rival.sample,
            "half_bridge": rival.half_bridge,
            "norm": rival.norm,
            "outputs": rival.outputs,
            "memory": rival.memory,
            "rest": rival.rest,
        }
    )


if __name__ == "__main__":
    main()
