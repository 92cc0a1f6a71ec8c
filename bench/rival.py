"""PyTorch's side. As a program: a worker, `rival.py THREADS PROBLEM`.

The same arithmetic as dsb's: whole-tensor indexing of a window in random order, the embedded times
looked up in a table, and one encoded time for all particles of a simulation.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from released import Released
from torch import Tensor, nn
from torch.nn import functional
from work import (
    BATCH,
    CLIP,
    EMA,
    LAYERS,
    LEARNING_RATE,
    PATHS,
    REFRESH,
    SAMPLES,
    STEP_SIZE,
    STEPS,
    Problem,
    labels,
)
from worker import serve

TRAINERS = ("eager", "foreach Adam", "fused Adam", "compiled, fused Adam")
# How a simulation is run, and how many particles go together.
SAMPLERS = {
    "eager": ("eager", SAMPLES),
    "eager, chunks of 1,000": ("eager", 1000),
    "eager, chunks of 500": ("eager", 500),
    "compiled": ("compiled", SAMPLES),
    "compiled, chunks of 1,000": ("compiled", 1000),
}


class Layers(nn.Module):
    """Linear layers with LeakyReLU between them."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        shapes = [shape for name, shape in LAYERS.items() if name.startswith(prefix)]
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.leaky_relu(layer(x), 0.01)
        out: Tensor = self.layers[-1](x)
        return out


class Net(nn.Module):
    """The released network; `time` is the embedded time."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__()
        self.x_encoder, self.t_encoder = Layers("x_encoder"), Layers("t_encoder")
        self.net = Layers("net.")
        self.load_state_dict({k: torch.from_numpy(v) for k, v in parameters.items()})

    def encoded(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([self.x_encoder(x), time.expand(x.shape[0], -1)], -1))
        return out

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.encoded(x, self.t_encoder(time))


def embed(t: Tensor) -> Tensor:
    """[sin, cos] of eight frequencies."""
    angles = t[:, None] * torch.exp(torch.arange(8) * (-math.log(10_000) / 7))
    return torch.cat([angles.sin(), angles.cos()], -1)


def move(net: Net, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    return x + net.encoded(x, time) + math.sqrt(2 * STEP_SIZE) * noise


def move_and_aim(net: Net, x: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The next state and the step that the other direction's net should take there."""
    mean = x + net.encoded(x, time)
    there = mean + math.sqrt(2 * STEP_SIZE) * noise
    return there, mean - there - net.encoded(there, time)


class Simulator:
    """The backward process, from the prior to the data."""

    def __init__(self, problem: Problem) -> None:
        self._net = Net(problem.simulating)
        self._mean, self._std = torch.from_numpy(problem.prior_mean), problem.prior_std
        self._times = embed(torch.from_numpy(labels()[:0:-1].copy()))  # of the states that move
        self._moves: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
            "eager": (move, move_and_aim),
            "compiled": (torch.compile(move), torch.compile(move_and_aim)),
        }

    def _start(self, n: int) -> Tensor:
        return self._mean + self._std * torch.randn(n, 2)

    @torch.inference_mode()
    def sample(self, n: int, kind: str) -> Tensor:
        way, chunk = SAMPLERS[kind]
        step, times = self._moves[way][0], self._net.t_encoder(self._times)
        out = []
        for first in range(0, n, chunk):
            x = self._start(min(chunk, n - first))
            for time_row in times[:-1]:
                x = step(self._net, x, time_row, torch.randn_like(x))
            out.append(x + self._net.encoded(x, times[-1]))
        return torch.cat(out)

    @torch.no_grad()
    def window(self, kind: str) -> tuple[Tensor, Tensor]:
        """States [STEPS * PATHS, 2], step by step, and the targets there."""
        way, chunk = SAMPLERS[kind]
        step, times = self._moves[way][1], self._net.t_encoder(self._times)
        states, targets = torch.empty(STEPS, PATHS, 2), torch.empty(STEPS, PATHS, 2)
        for first in range(0, PATHS, chunk):
            part = slice(first, min(first + chunk, PATHS))
            x = self._start(part.stop - first)
            for j, time_row in enumerate(times):
                x, aim = step(self._net, x, time_row, torch.randn_like(x))
                states[j, part], targets[j, part] = x, aim
        return states.flatten(0, 1), targets.flatten(0, 1)


class Trainer:
    """The forward net in one way of training it."""

    def __init__(self, problem: Problem, kind: str) -> None:
        self._net = Net(problem.initial)
        self._parameters: list[Tensor] = list(self._net.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]
        how: dict[str, Any] = {"foreach": True} if "foreach" in kind else {}
        how = {"fused": True} if "fused" in kind else how
        self._adam = torch.optim.Adam(self._parameters, LEARNING_RATE, **how)
        self._loss = torch.compile(self._mean_square) if "compiled" in kind else self._mean_square
        # A state that step j reaches, of the 20, has the label of the forward net's own step there.
        self._times = embed(torch.from_numpy(labels()[-2::-1].copy()))
        self._step_of = torch.arange(STEPS).repeat_interleave(PATHS)

    def _mean_square(self, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(self._net(x, time), target)

    def read(self, window: tuple[Tensor, Tensor]) -> None:
        self._x, self._target = window
        self._order = torch.randperm(STEPS * PATHS)

    def step(self, i: int) -> Tensor:
        rows = self._order[i * BATCH : (i + 1) * BATCH]
        loss = self._loss(self._x[rows], self._times[self._step_of[rows]], self._target[rows])
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self._averages, self._parameters, 1 - EMA)
        return loss.detach()


class Rival:
    def __init__(self, problem: Problem) -> None:
        torch.manual_seed(0)
        self._problem = problem
        self._simulator = Simulator(problem)
        self._trainers = {kind: Trainer(problem, kind) for kind in TRAINERS}
        self._released = Released(Net, embed, problem)

    def step(self, kind: str, steps: int) -> float:
        """Seconds for a gradient step."""
        trainer = self._trainers[kind]
        trainer.read(self._simulator.window("eager"))
        trainer.step(0)
        start = time.perf_counter()
        for i in range(steps):
            trainer.step(i % REFRESH)
        return (time.perf_counter() - start) / steps

    def half_bridge(self, kind: str, sampler: str, steps: int) -> dict[str, Any]:
        trainer = Trainer(self._problem, kind)
        losses = []
        start = time.perf_counter()
        for i in range(steps):
            if i % REFRESH == 0:
                trainer.read(self._simulator.window(sampler))
            losses.append(trainer.step(i % REFRESH))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "losses": torch.stack(losses).tolist()}

    def window(self, kind: str) -> float:
        start = time.perf_counter()
        self._simulator.window(kind)
        return time.perf_counter() - start

    def sample(self, kind: str) -> float:
        start = time.perf_counter()
        self._simulator.sample(SAMPLES, kind)
        return time.perf_counter() - start

    def spread(self) -> float:
        return float(self._simulator.sample(SAMPLES, "eager").std())

    def released(self, refreshes: int) -> float:
        """Seconds for a step of the released program, simulation included."""
        return self._released.seconds_per_step(refreshes)


def main() -> None:
    threads, problem = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(threads)
    rival = Rival(Problem.load(problem))
    serve(
        {
            "step": rival.step,
            "half_bridge": rival.half_bridge,
            "window": rival.window,
            "sample": rival.sample,
            "spread": rival.spread,
            "released": rival.released,
        }
    )


if __name__ == "__main__":
    main()
