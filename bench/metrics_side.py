"""One side of the comparison of metrics. As a program: a worker, `metrics_side.py THREADS PROBLEM SIDE`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worker import serve

Way = Callable[[], float]
Total = Callable[[Any, Any], float]
BLOCK = 250  # rows of a matrix of distances that stay near the caches


def ours(threads: int, data: dict[str, Any]) -> dict[str, Way]:
    import dsb

    dsb.set_num_threads(threads)
    x, y, h = data["x"], data["y"], float(data["bandwidth"])
    return {
        "sliced/dsb": lambda: dsb.metrics.sliced_wasserstein(x, y, int(data["projections"])),
        "energy/dsb": lambda: dsb.metrics.energy_distance(x, y),
        "mmd/dsb": lambda: dsb.metrics.mmd(x, y, bandwidth=h),
    }


def rivals(threads: int, data: dict[str, Any]) -> dict[str, Way]:
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise SystemExit(f"PyTorch uses {torch.get_num_threads()} threads in place of {threads}")
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    units = torch.from_numpy(data["units"])
    scale = -0.5 / float(data["bandwidth"]) ** 2

    def add(matrix: Any) -> float:
        # Rows first: a sum in float64 of the matrix itself would begin with a copy of all of it.
        return float(matrix.sum(1).sum(dtype=torch.float64))

    def blocks(a: Any, b: Any, total: Total) -> float:
        return sum(total(part, b) for part in a.split(BLOCK)) / (len(a) * len(b))

    def halves(a: Any, b: Any, total: Total) -> float:
        """Blocks, of a symmetric matrix only those from the diagonal on."""
        if a is not b:
            return blocks(a, b, total)
        every = 0.0
        for first in range(0, len(a), BLOCK):
            part, behind = a[first : first + BLOCK], a[first + BLOCK :]
            every += total(part, part) + (2.0 * total(part, behind) if len(behind) else 0.0)
        return every / len(a) ** 2

    def far(a: Any, b: Any) -> float:
        return add(torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist"))

    def plain(a: Any, b: Any) -> float:
        return add(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist"))

    def near(a: Any, b: Any) -> float:
        squares = torch.addmm((b * b).sum(1), a, b.T, alpha=-2.0).add_((a * a).sum(1)[:, None])
        return add(squares.clamp_(min=0.0).mul_(scale).exp_())

    def whole(a: Any, b: Any, total: Total) -> float:
        return total(a, b) / (len(a) * len(b))

    def energy(mean: Any, total: Any) -> float:
        return float(2 * mean(x, y, total) - mean(x, x, total) - mean(y, y, total))

    def triangles() -> float:
        within = [float(torch.pdist(p).mean()) * (1.0 - 1.0 / len(p)) for p in (x, y)]
        return 2 * blocks(x, y, far) - sum(within)

    def mmd(mean: Any) -> float:
        return float(mean(x, x, near) + mean(y, y, near) - 2 * mean(x, y, near)) ** 0.5

    def by_hand() -> float:
        a, b = (torch.sort(units @ p.T, dim=1).values for p in (x, y))
        return float((a - b).square().mean().sqrt())

    return {
        "sliced/PyTorch, by hand": by_hand,
        "energy/PyTorch, cdist": lambda: energy(whole, far),
        "energy/PyTorch, cdist, blocks": lambda: energy(blocks, far),
        "energy/PyTorch, cdist, half the blocks": lambda: energy(halves, far),
        "energy/PyTorch, cdist without mm": lambda: energy(whole, plain),
        "energy/PyTorch, cdist without mm, half the blocks": lambda: energy(halves, plain),
        "energy/PyTorch, cdist and pdist": triangles,
        "mmd/PyTorch, matrix": lambda: mmd(whole),
        "mmd/PyTorch, blocks": lambda: mmd(blocks),
        "mmd/PyTorch, half the blocks": lambda: mmd(halves),
    }


def pot(threads: int, data: dict[str, Any]) -> dict[str, Way]:
    import ot
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise SystemExit(f"PyTorch uses {torch.get_num_threads()} threads in place of {threads}")
    x, y, u = data["x"], data["y"], data["units"].T.copy()
    tensors = [torch.from_numpy(a) for a in (x, y, u)]

    def sliced(a: Any, b: Any, directions: Any) -> float:
        return float(ot.sliced_wasserstein_distance(a, b, projections=directions))

    return {
        "sliced/POT, NumPy": lambda: sliced(x, y, u),
        "sliced/POT, PyTorch": lambda: sliced(*tensors),
    }


SIDES = {"ours": ours, "rivals": rivals, "pot": pot}


def main() -> None:
    threads, problem, side = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with np.load(problem) as stored:
        ways = SIDES[side](threads, dict(stored))

    def run(way: str) -> list[float]:
        """Seconds of a call, and the value."""
        begun = time.perf_counter()
        value = ways[way]()
        return [time.perf_counter() - begun, value]

    serve({"ways": lambda: list(ways), "run": run})


if __name__ == "__main__":
    main()
