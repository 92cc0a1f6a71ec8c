"""The released program's way to train (JTT94/diffusion_schrodinger_bridge), for its speed.

Paths lie one behind another in the cache, which is a data set whose rows a DataLoader collates one
by one in order; a window simulates 10,000 paths of which 2,560 would do; times are embedded again
for every evaluation; plain Adam, no clipping, no moving average. Left out: its logs, and
`accelerate`, which wraps loader and backward pass and would only add to the time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from work import BATCH, REFRESH, RELEASED_PATHS, STEP_SIZE, STEPS, Problem

Triple = tuple[Tensor, Tensor, Tensor]


class Cache(Dataset[Triple]):
    """Rows (state, target, step), path by path."""

    def __init__(self, states: Tensor, targets: Tensor, steps: Tensor) -> None:
        self._rows = torch.stack([states, targets], dim=2).flatten(0, 1)
        self._steps = steps.flatten(0, 1)

    def __getitem__(self, i: int) -> Triple:
        row = self._rows[i]
        return row[0], row[1], self._steps[i]

    def __len__(self) -> int:
        return len(self._rows)


class Released:
    def __init__(
        self,
        make_net: Callable[[dict[str, Any]], nn.Module],
        embed: Callable[[Tensor], Tensor],
        problem: Problem,
    ) -> None:
        self._embed = embed
        self._other, self._net = make_net(problem.simulating), make_net(problem.initial)
        self._adam = torch.optim.Adam(self._net.parameters(), 1e-4)
        self._mean, self._std = torch.from_numpy(problem.prior_mean), problem.prior_std

    @torch.no_grad()
    def _simulate(self) -> Iterator[Triple]:
        n = RELEASED_PATHS
        x = self._mean + self._std * torch.randn(n, 2)
        steps = torch.arange(STEPS).reshape(1, STEPS, 1).repeat(n, 1, 1)
        states, targets = torch.empty(n, STEPS, 2), torch.empty(n, STEPS, 2)
        for k in range(STEPS):
            t = steps[:, k, 0]
            mean = x + self._other(x, self._embed(t))
            x = mean + math.sqrt(2 * STEP_SIZE) * torch.randn(n, 2)
            states[:, k] = x
            targets[:, k] = mean - (x + self._other(x, self._embed(t)))
        return iter(DataLoader(Cache(states, targets, steps), batch_size=BATCH, num_workers=0))

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, as the program does before every step

    def _step(self, batch: Triple) -> None:
        x, target, step = batch
        t = STEPS * STEP_SIZE - step.flatten()
        torch.autograd.backward(functional.mse_loss(self._net(x, self._embed(t)), target))
        self._adam.step()
        self._adam.zero_grad()

    def seconds_per_step(self, refreshes: int) -> float:
        start = time.perf_counter()
        for window in range(refreshes):
            batches = self._simulate()
            for i in range(REFRESH):
                self._seed(window * REFRESH + i)
                self._step(next(batches))
        return (time.perf_counter() - start) / (refreshes * REFRESH)
