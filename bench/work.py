"""What is measured, the same for all sides: sizes, network, data and its multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BATCH = 512
STEPS = 20  # of a path
STEP_SIZE = 0.01
REFRESH = 100  # gradient steps to a window of the cache
PATHS = BATCH * REFRESH // STEPS  # that supply exactly the pairs of a window
HALF_BRIDGE = 5000
SAMPLES = 10_000
RELEASED_PATHS = 10_000  # that the released code simulates for each window
LEARNING_RATE, CLIP, EMA = 1e-3, 1.0, 0.999

# The released two-dimensional network: layer -> (inputs, outputs), 26,498 parameters in all.
LAYERS: dict[str, tuple[int, int]] = {
    "x_encoder.layers.0": (2, 16),
    "x_encoder.layers.1": (16, 32),
    "t_encoder.layers.0": (16, 16),
    "t_encoder.layers.1": (16, 32),
    "net.layers.0": (64, 128),
    "net.layers.1": (128, 128),
    "net.layers.2": (128, 2),
}


def labels() -> F32:
    """The label of state i, 1000 t_i / T."""
    return np.linspace(0, 1000, STEPS + 1, dtype=np.float32)


def step_multiply_adds() -> int:
    """Of one gradient step: forward, weights' gradients, and the inputs' gradients that are needed
    (not those of x and of the embedded time)."""
    forward = sum(a * b for a, b in LAYERS.values())
    unneeded = sum(a * b for name, (a, b) in LAYERS.items() if name.endswith("encoder.layers.0"))
    return BATCH * (3 * forward - unneeded)


def evaluation_multiply_adds() -> int:
    """Of one evaluation for one particle in a simulation, where all share one encoded time."""
    return sum(a * b for name, (a, b) in LAYERS.items() if not name.startswith("t_encoder"))


class Problem(NamedTuple):
    """A half-bridge that trains the forward net on what the backward net simulates."""

    source: F32  # [n, 2]
    prior_mean: F32  # [2]
    prior_std: float
    simulating: dict[str, F32]  # parameters of the backward net
    initial: dict[str, F32]  # of the forward net before its first step

    def save(self, path: Path) -> None:
        nets = {f"simulating/{k}": v for k, v in self.simulating.items()}
        nets |= {f"initial/{k}": v for k, v in self.initial.items()}
        ends = {"source": self.source, "mean": self.prior_mean, "std": np.array(self.prior_std)}
        np.savez(path, allow_pickle=False, **ends, **nets)

    @classmethod
    def load(cls, path: Path) -> Problem:
        with np.load(path) as file:
            nets: dict[str, dict[str, F32]] = {"simulating": {}, "initial": {}}
            for key in file.files:
                kind, slash, name = key.partition("/")
                if slash:
                    nets[kind][name] = file[key]
            return cls(file["source"], file["mean"], float(file["std"]), **nets)


def swiss_roll(n: int, seed: int) -> F32:
    """Centred, with a joint standard deviation of 7, as the released code has it."""
    angle = 1.5 * np.pi * (1 + 2 * np.random.default_rng(seed).random(n))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1)
    scaled: F32 = (7 * (points - points.mean()) / points.std()).astype(np.float32)
    return scaled
