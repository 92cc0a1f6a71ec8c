"""dsb's U-Net. As a program: a worker, `unet_ours.py THREADS PROBLEM PRECISION [BATCH]`."""

from __future__ import annotations

import math
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from unet_work import (
    BATCH,
    CLIP,
    COLOURS,
    DIM,
    EMA,
    F32,
    LEARNING_RATE,
    REFRESH,
    SIZE,
    STEP_SIZE,
    STEPS,
    Problem,
    images,
    process_bytes,
)
from worker import serve

from dsb import UNet, _core

FOREVER = 1e9  # seconds that a run may take


def make_net() -> _core.Net:
    return _core.Net(UNet.mnist().build((COLOURS, *SIZE)))


def to_torch(shape: tuple[int, ...], value: F32) -> F32:
    """From a plane's layout to PyTorch's: [out, kh, kw, in] to [out, in, kh, kw]."""
    return value.reshape(shape).transpose(0, 3, 1, 2) if len(shape) == 4 else value.reshape(shape)


def from_torch(shape: tuple[int, ...], value: F32) -> F32:
    return (value.transpose(0, 2, 3, 1) if len(shape) == 4 else value).ravel()


def make_problem() -> Problem:
    """Weights as a net starts, and a little noise, as some of them start at zero."""
    net = make_net()
    generator = np.random.default_rng(0)
    plane, weights = net.initial(0), {}
    for p in net.parameters:
        values = plane[p["offset"] :][: math.prod(p["shape"])]
        values = values + 0.02 * generator.standard_normal(values.shape, dtype=np.float32)
        weights[p["name"]] = np.ascontiguousarray(to_torch(p["shape"], values))
    return Problem(images(1024, 0), weights)


def plane_of(net: _core.Net, weights: dict[str, F32]) -> F32:
    out = np.zeros(net.plane, np.float32)
    for p in net.parameters:
        out[p["offset"] :][: math.prod(p["shape"])] = from_torch(p["shape"], weights[p["name"]])
    return out


class Ours:
    def __init__(self, problem: Path, precision: str, batch: int) -> None:
        self._problem, self._precision, self._batch = problem, precision, batch
        self._net, self._images = make_net(), Problem.load(problem, weights=False).images
        self._before, self._seed = process_bytes("VmRSS"), 0

    @cached_property
    def _plane(self) -> F32:
        return plane_of(self._net, Problem.load(self._problem).weights)

    @cached_property
    def _bridge(self) -> _core.Bridge:
        """In a first half-bridge, whose pairs are drawn directly."""
        bridge = self._with_weights(refresh=100)
        bridge.begin(100_000)
        return bridge

    def _with_weights(self, refresh: int) -> _core.Bridge:
        bridge = self._fresh(refresh)
        for direction in ("backward", "forward"):
            for which in ("theta", "ema"):
                bridge.set_plane(direction, which, self._plane)
        return bridge

    def _fresh(self, refresh: int) -> _core.Bridge:
        """From images to noise."""
        self._seed += 1
        return _core.Bridge(
            self._net,
            source=self._images,
            source_scale=2 / 255,
            source_shift=-1.0,
            prior_mean=np.zeros(DIM, np.float32),
            reference_mean=np.zeros(DIM, np.float32),
            reference_precision=1.0,
            steps=np.full(STEPS, STEP_SIZE),
            output="step",
            batch=self._batch,
            refresh=refresh,
            learning_rate=LEARNING_RATE,
            clip=CLIP,
            ema=EMA,
            seed=self._seed,
            precision=self._precision,
        )

    def step(self, steps: int) -> float:
        """Seconds for a gradient step."""
        bridge, start = self._bridge, time.perf_counter()
        bridge.run(steps, FOREVER)
        return (time.perf_counter() - start) / steps

    def sample(self) -> float:
        """Seconds for a step of as many images as a batch has."""
        self._seed += 1
        bridge, start = self._bridge, time.perf_counter()
        bridge.sample("backward", self._seed, n=self._batch)
        return (time.perf_counter() - start) / STEPS

    def half_bridge(self) -> float:
        """Seconds for REFRESH steps with their simulation, in a second half-bridge."""
        bridge = self._with_weights(refresh=REFRESH)
        bridge.begin(1)
        bridge.run(1, FOREVER)
        start = time.perf_counter()
        bridge.begin(REFRESH)
        bridge.run(REFRESH, FOREVER)
        return time.perf_counter() - start

    def outputs(self, n: int) -> list[float]:
        x = self._images[:n].astype(np.float32) * np.float32(2 / 255) - 1
        t = np.linspace(0, 1000, n, dtype=np.float32)
        y = self._net.forward(self._plane, x, t, precision=self._precision)
        values: list[float] = y.ravel().tolist()
        return values

    def memory(self) -> dict[str, int]:
        """Peak of a process that has done nothing but train, what it had before it made the bridge,
        and what the bridge says that it takes."""
        bridge = self._fresh(refresh=100)
        told = bridge.memory()["total"]
        bridge.begin(2)
        bridge.run(2, FOREVER)
        return {"before": self._before, "peak": process_bytes("VmHWM"), "told": told}

    def settings(self) -> dict[str, Any]:
        return {
            "isa": _core.isa(),
            "microbatch": self._bridge.microbatch,
            "lanes": self._bridge.lanes,
            "parameters": self._net.n_parameters,
            "colours": COLOURS,
        }


def main() -> None:
    threads, problem, precision = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    _core.set_num_threads(threads)
    ours = Ours(problem, precision, int(sys.argv[4]) if sys.argv[4:] else BATCH)
    serve(
        {
            "step": ours.step,
            "sample": ours.sample,
            "half_bridge": ours.half_bridge,
            "outputs": ours.outputs,
            "memory": ours.memory,
            "settings": ours.settings,
        }
    )


if __name__ == "__main__":
    main()
