"""What is measured of the U-Net, the same for all sides: network, images, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BATCH = 128
SIZE, COLOURS = (28, 28), 1
DIM = COLOURS * SIZE[0] * SIZE[1]
CHANNELS, MULTIPLIERS, BLOCKS, HEADS = 64, (1, 2, 2), 2, 4
PARAMETERS = 6_615_361
OPERATIONS = (
    833_581_678_592  # of a step at batch 128: two for each product of convolution, layer, attention
)
STEPS, STEP_SIZE = 4, 0.01  # of a path
REFRESH = 4  # gradient steps of the half-bridge that is timed with its simulation, one window
LEARNING_RATE, CLIP, EMA = 1e-4, 1.0, 0.999
PRECISIONS = ("float32", "bf16x3", "bf16")


def labels() -> F32:
    """The label of state i, 1000 t_i / T."""
    return np.linspace(0, 1000, STEPS + 1, dtype=np.float32)


def images(n: int, seed: int) -> NDArray[np.uint8]:
    """Blots with about the share of black that digits have."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centre = generator.uniform(8, 20, (n, 2, 1, 1))
    width = generator.uniform(3, 40, (n, 1, 1))
    blot = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / width)
    return (255 * np.repeat(blot[:, None], COLOURS, axis=1)).astype(np.uint8).reshape(n, DIM)


class Problem(NamedTuple):
    """Data, and one set of weights that all sides start from."""

    images: NDArray[np.uint8]  # [n, DIM]
    weights: dict[str, F32]  # in PyTorch's shapes

    def save(self, path: Path) -> None:
        np.savez(path, allow_pickle=False, images=self.images, **self.weights)

    @classmethod
    def load(cls, path: Path, weights: bool = True) -> Problem:
        with np.load(path) as file:
            names = [key for key in file.files if weights and key != "images"]
            return cls(file["images"], {name: file[name] for name in names})


def process_bytes(what: str) -> int:
    """This process's memory: "VmRSS" now, "VmHWM" at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {what}")
