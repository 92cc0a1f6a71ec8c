"""dsb's side. As a program: a worker, `ours.py THREADS PROBLEM`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from work import (
    BATCH,
    CLIP,
    EMA,
    F32,
    LEARNING_RATE,
    REFRESH,
    SAMPLES,
    STEP_SIZE,
    STEPS,
    Problem,
    swiss_roll,
)
from worker import serve

from dsb import MLP, _core

FOREVER = 1e9  # seconds that a run may take


def make_net() -> _core.Net:
    return _core.Net(MLP.official().build(2))


def make_bridge(
    net: _core.Net, source: F32, mean: F32, std: float, seed: int = 0, **settings: Any
) -> _core.Bridge:
    return _core.Bridge(
        net,
        source=source,
        prior_mean=mean,
        prior_factor=(std * np.eye(2)).astype(np.float32),
        reference_mean=mean,
        reference_precision=1 / std**2,
        steps=np.full(STEPS, STEP_SIZE),
        output="step",
        batch=BATCH,
        refresh=REFRESH,
        learning_rate=LEARNING_RATE,
        clip=CLIP,
        ema=EMA,
        seed=seed,
        **settings,
    )


def parameters(net: _core.Net, plane: F32) -> dict[str, F32]:
    return {
        p["name"]: plane[p["offset"] : p["offset"] + int(np.prod(p["shape"]))].reshape(p["shape"])
        for p in net.parameters
    }


def plane(net: _core.Net, values: dict[str, F32]) -> F32:
    out = np.zeros(net.plane, np.float32)
    for p in net.parameters:
        out[p["offset"] : p["offset"] + int(np.prod(p["shape"]))] = values[p["name"]].ravel()
    return out


def make_problem(steps: int) -> Problem:
    """Trains the backward net for `steps` steps, as the one that simulates for all sides."""
    net, source = make_net(), swiss_roll(10_000, 0)
    mean, std = source.mean(axis=0), float(source.std())
    bridge = make_bridge(net, source, mean, std)
    bridge.begin(steps)
    bridge.run(steps, FOREVER)
    simulating = parameters(net, bridge.get_plane("backward", "ema"))
    initial = parameters(net, bridge.get_plane("forward", "theta"))
    return Problem(source, mean, std, simulating, initial)


class Ours:
    """The second half-bridge: the forward net learns what the backward net simulates."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._net = make_net()
        self._bursts = self._fresh(seed=1)
        self._bursts.begin(100_000)
        self._seed = 1

    def _fresh(self, seed: int) -> _core.Bridge:
        p = self._problem
        bridge = make_bridge(self._net, p.source, p.prior_mean, p.prior_std, seed)
        bridge.begin(1)  # the first half-bridge, whose result is then replaced
        bridge.run(1, FOREVER)
        for which in ("theta", "ema"):
            bridge.set_plane("backward", which, plane(self._net, p.simulating))
            bridge.set_plane("forward", which, plane(self._net, p.initial))
        return bridge

    def step(self, windows: int) -> float:
        """Seconds for a gradient step, the simulation left out: the first step of a window makes
        its pairs and is not timed."""
        seconds = 0.0
        for _ in range(windows):
            self._bursts.run(1, FOREVER)
            start = time.perf_counter()
            self._bursts.run(REFRESH - 1, FOREVER)
            seconds += time.perf_counter() - start
        return seconds / (windows * (REFRESH - 1))

    def half_bridge(self, steps: int) -> dict[str, Any]:
        self._seed += 1
        bridge = self._fresh(self._seed)
        start = time.perf_counter()
        bridge.begin(steps)
        bridge.run(steps, FOREVER)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "losses": bridge.log()[0].tolist()}

    def sample(self) -> float:
        """Seconds for SAMPLES particles from the prior to the data."""
        self._seed += 1
        start = time.perf_counter()
        self._bursts.sample("backward", self._seed, n=SAMPLES)
        return time.perf_counter() - start

    def spread(self) -> float:
        """Standard deviation of a sample: a check that all sides draw the same thing."""
        return float(self._bursts.sample("backward", 0, n=SAMPLES).std())


def main() -> None:
    threads, problem = int(sys.argv[1]), Path(sys.argv[2])
    _core.set_num_threads(threads)
    ours = Ours(Problem.load(problem))
    serve(
        {
            "step": ours.step,
            "half_bridge": ours.half_bridge,
            "sample": ours.sample,
            "spread": ours.spread,
        }
    )


if __name__ == "__main__":
    main()
