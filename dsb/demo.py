"""A bridge from start to finish, with two pictures: python -m dsb.demo

Without files, the Swiss roll and a Gaussian. With --source and --target, your own data (.npy, or .npz
with one array) of floats or whole numbers, a point in each row, in any number of dimensions.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import __version__, _core, datasets
from ._check import F32, F64, integer, rows, shown
from .bridge import Bridge
from .history import Direction, Record
from .metrics import sliced_wasserstein
from .schedule import Schedule

STEPS = 2000  # gradient steps of a half-bridge
HELD_OUT = 2000  # rows of a file, at most, that judge and do not train
PICTURED = (1, 3, 5)  # iterations, besides the last


class Task(NamedTuple):
    """What to solve and how to judge it."""

    bridge: Bridge
    heading: str
    towards: Direction  # where the pictured paths go
    judged: str  # what the distances below are between
    distance: Callable[[], float]
    known: dict[str, float]  # distances to compare with
    finish: Callable[[Path], list[Path]]  # what to write besides pictures
    picture: str = "demo"  # with what the pictures' names begin
    ends: tuple[str, str] = ("source", "prior")
    centre: F64 | float = 0.0  # of the scaling that the pictures undo
    scale: float = 1.0


def swiss_roll(seed: int) -> Task:
    """N = 20, g = .25: T = 5, where a few iterations of exact IPF are visibly enough."""
    n = 10_000
    data, fresh, again = (datasets.toy("swiss_roll", n, seed=seed + i) for i in range(3))
    bridge = Bridge(data, prior="gaussian", schedule=Schedule.constant(20, 0.25), seed=seed)

    def distance() -> float:
        return sliced_wasserstein(bridge.sample(n, seed=seed), fresh)

    return Task(
        bridge,
        f"Swiss roll, {n:,} points, to and from a Gaussian of the same mean and variance",
        "backward",
        f"sliced W2 of {n:,} generated points to {n:,} fresh ones",
        distance,
        {"two fresh samples (floor)": sliced_wasserstein(again, fresh)},
        lambda out: [],
    )


def files(source: Path, target: Path, seed: int) -> Task:
    """A bridge from the rows of one file to those of another, in units of their common spread."""
    a, b = _rows("source", source), _rows("target", target)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{target}: expected {a.shape[1]} columns as in {source}, got {b.shape[1]}"
        )
    both = np.concatenate([a, b])
    centre, scale = both.mean(axis=0), np.float32(both.std(axis=0).mean())
    if not scale > 0:
        raise ValueError(f"{source}, {target}: expected rows that differ, got equal ones")
    (a_train, a_test), (b_train, b_test) = (
        _split((x - centre) / scale, seed, i) for i, x in enumerate((a, b))
    )
    bridge = Bridge(a_train, b_train, seed=seed)

    def between(x: F32, y: F32) -> float:
        return float(scale) * sliced_wasserstein(x, y)

    def distance() -> float:
        return between(bridge.sample(x=a_test, direction="forward", seed=seed), b_test)

    def finish(out: Path) -> list[Path]:
        path = out / "demo-transported.npy"
        moved = bridge.sample(x=(a - centre) / scale, direction="forward", seed=seed)
        np.save(path, moved * scale + centre)
        return [path]

    floor = min(len(b_train), len(b_test))
    return Task(
        bridge,
        f"{source.name} ({len(a):,} x {a.shape[1]}) to {target.name} ({len(b):,} x {b.shape[1]})\n"
        f"Scaled by the mean standard deviation of both together, {scale:.4g}; in these units\n"
        f"T = {bridge.schedule.T:.3g}, a tenth of the variance along the main axes; in the original units\n"
        f"of the pictures T = {bridge.schedule.T * float(scale) ** 2:.3g}",
        "forward",
        f"sliced W2 to {len(b_test):,} rows of the target that were held out, original units",
        distance,
        {
            f"the source's {len(a_test):,} held-out rows themselves (before)": between(
                a_test, b_test
            ),
            "rows of the target (floor)": between(b_train[:floor], b_test),
        },
        finish,
        "demo-transport",
        ("source", "target"),
        centre.astype(np.float64),
        float(scale),
    )


def run(task: Task, ipf: int, steps: int, out: Path) -> None:
    """Trains, prints and draws."""
    from tqdm.auto import tqdm

    from . import plot

    bridge, start = task.bridge, time.perf_counter()
    schedule = bridge.schedule
    out.mkdir(parents=True, exist_ok=True)
    threads = _core.get_num_threads()
    print(f"dsb {__version__}, cpu {_core.isa()}, {threads} thread{'s' * (threads > 1)}")
    print(task.heading)
    print(
        f"N = {schedule.N} steps of {schedule.steps[0]:.4g} (T = {schedule.T:.4g}), "
        f"{bridge.reference!r}\n"
        f"{ipf} iterations of two half-bridges, {steps:,} gradient steps each, on nets of "
        f"{bridge.net.n_parameters:,} parameters\n"
    )
    width = max(len(label) for label in task.known) + 2
    print(f"{task.judged}:")
    for label, value in task.known.items():
        print(f"  {label:<{width}} {value:.3f}")
    shots: list[plot.Snapshot] = []

    def original(points: F32) -> F32:
        return np.asarray(points * task.scale + task.centre, dtype=np.float32)

    def report(bridge: Bridge, record: Record) -> None:
        if not record.finished or record.direction == "backward":
            return
        took = time.perf_counter() - start
        label = f"IPF iteration {record.iteration}"
        # tqdm.write keeps the bar below what is printed.
        tqdm.write(f"  {label:<{width}} {task.distance():.3f}   after {took:.1f} s", sys.stdout)
        if record.iteration in (*PICTURED, ipf):
            shot = plot.snapshot(bridge, 2000)
            backward, forward = original(shot.backward), original(shot.forward)
            times = shot.times * task.scale**2
            shots.append(plot.Snapshot(shot.iteration, times, backward, forward))

    bridge.fit(ipf=ipf, steps=steps, callback=report, log_every=steps)
    paths = original(bridge.paths(60, direction=task.towards, seed=0))
    pictures = {
        f"{task.picture}-marginals.png": plot.marginals(shots[-3:], ends=task.ends),
        f"{task.picture}-paths.png": plot.trajectories(paths),
    }
    print("\nwrote")
    for name, figure in pictures.items():
        figure.savefig(out / name, dpi=110)
        print(f"  {out / name}")
    for path in task.finish(out):
        print(f"  {path}")
    print(f"{time.perf_counter() - start:.1f} s in all")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dsb.demo", description=__doc__)
    parser.add_argument("--source", type=Path, help="rows to start from, .npy or .npz")
    parser.add_argument("--target", type=Path, help="rows to end in, .npy or .npz")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder of the results"
    )
    parser.add_argument("--ipf", type=int, default=5, help="iterations (default 5)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"of a half-bridge (default {STEPS})"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.source is None) != (given.target is None):
        parser.error(
            "--source and --target go together; with make: make demo SOURCE=a.npy TARGET=b.npy"
        )
    try:
        integer("--ipf", given.ipf, 1)
        if given.source is None:
            task = swiss_roll(given.seed)
        else:
            task = files(given.source, given.target, given.seed)
        run(task, given.ipf, given.steps, given.out)
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"dsb.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dsb.demo: stopped", file=sys.stderr)
        return 130
    return 0


def _rows(name: str, path: Path) -> F32:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise ValueError(f"one array is expected, not {shown(loaded.files)}")
                loaded = loaded[loaded.files[0]]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected an array of numbers as np.save or np.savez writes it: {error}"
        ) from None
    if loaded.dtype.kind in "iu":
        loaded = loaded.astype(np.float64)
    return np.asarray(rows(f"{name} {path}", loaded, least=10), dtype=np.float32)


def _split(x: NDArray[np.float32], seed: int, number: int) -> tuple[F32, F32]:
    """Rows to train on and rows to judge by: a fifth of them, in random order."""
    shuffled = x[np.random.default_rng([seed, number]).permutation(len(x))]
    held_out = min(HELD_OUT, len(x) // 5)
    return shuffled[held_out:], shuffled[:held_out]


if __name__ == "__main__":
    sys.exit(main())
