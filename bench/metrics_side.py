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
BLOCK = 1000  # rows of a matrix of distances that stay in the caches


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
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    u = torch.from_numpy(data["units"]).T.contiguous()
    scale = -0.5 / float(data["bandwidth"]) ** 2

    def blocks(a: Any, b: Any, total: Callable[[Any, Any], Any]) -> float:
        return sum(float(total(part, b)) for part in a.split(BLOCK)) / (len(a) * len(b))

    def far(a: Any, b: Any) -> Any:
        return torch.cdist(a, b).sum(dtype=torch.float64)

    def plain(a: Any, b: Any) -> Any:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").sum(
            dtype=torch.float64
        )

    def near(a: Any, b: Any) -> Any:
        squares = torch.addmm((b * b).sum(1), a, b.T, alpha=-2.0).add_((a * a).sum(1)[:, None])
        return squares.clamp_(min=0.0).mul_(scale).exp_().sum(dtype=torch.float64)

    def whole(a: Any, b: Any, total: Callable[[Any, Any], Any]) -> float:
        return float(total(a, b)) / (len(a) * len(b))

    def energy(mean: Any, total: Any) -> float:
        return float(2 * mean(x, y, total) - mean(x, x, total) - mean(y, y, total))

    def triangles() -> float:
        within = [float(torch.pdist(p).sum(dtype=torch.float64)) * 2 / len(p) ** 2 for p in (x, y)]
        return 2 * blocks(x, y, far) - sum(within)

    def mmd(mean: Any) -> float:
        return float(mean(x, x, near) + mean(y, y, near) - 2 * mean(x, y, near)) ** 0.5

    def by_hand() -> float:
        a, b = (torch.sort((p @ u).T.contiguous(), dim=1).values for p in (x, y))
        return float((a - b).square().mean().sqrt())

    return {
        "sliced/PyTorch, by hand": by_hand,
        "energy/PyTorch, cdist": lambda: energy(whole, far),
        "energy/PyTorch, cdist, blocks": lambda: energy(blocks, far),
        "energy/PyTorch, cdist without mm, blocks": lambda: energy(blocks, plain),
        "energy/PyTorch, cdist and pdist": triangles,
        "mmd/PyTorch, matrix": lambda: mmd(whole),
        "mmd/PyTorch, blocks": lambda: mmd(blocks),
    }


def pot(threads: int, data: dict[str, Any]) -> dict[str, Way]:
    import ot
    import torch

    torch.set_num_threads(threads)
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

    def run(way: str, repeats: int) -> list[float]:
        """Seconds of the fastest of `repeats` calls, and the value."""
        best = float("inf")
        for _ in range(repeats):
            begun = time.perf_counter()
            value = ways[way]()
            best = min(best, time.perf_counter() - begun)
        return [best, value]

    serve({"ways": lambda: list(ways), "run": run})


if __name__ == "__main__":
    main()
