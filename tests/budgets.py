"""Budgets of seconds for the experiments of `dsb reproduce`, and cells to go with them."""

import numpy as np

SMALL = {"width": 16, "depth": 2, "embedding": 8}
BUDGETS = {  # seconds, not hours
    "gaussian": {
        "problem": {"points": 500},
        "net": SMALL,
        "training": {"iterations": 2, "steps": 40},
        "evaluation": {"paths": 400},
    },
    "table2": {
        "problem": {"points": 300},
        "net": SMALL,
        "training": {"iterations": 2, "steps": 40},
        "evaluation": {"points": 300, "projections": 20, "known": 2},
    },
    "mixtures": {
        "problem": {"points": 500, "sinkhorn": 300},
        "schedule": {"N": 5},
        "net": SMALL,
        "bridge": {"batch": 64},
        "training": {"iterations": 2, "steps": 40},
        "evaluation": {"given": 60, "each": 60, "points": 400, "paths": 50},
    },
    "singlecell": {
        "net": SMALL,
        "training": {"iterations": 2, "steps": 40},
        "evaluation": {"most": 150, "projections": 20},
    },
}
CASES = {
    "gaussian": {"dims": [2]},
    "table2": {"sets": ["moons", "moons-8gaussians"]},
    "mixtures": {"dims": [2], "eps": [1.0]},
    "singlecell": {},
}


def write_cells(folder):
    """Four days of a blob that moves and spreads, 400 cells of 8 components each."""
    rng = np.random.default_rng(0)
    for day in (2, 3, 4, 7):
        points = rng.normal(size=(400, 8)) * np.linspace(3, 1, 8) * (1 + 0.1 * day) + day
        np.save(folder / f"some_day_{day}.npy", points.astype(np.float32))
