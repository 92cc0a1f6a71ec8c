"""Three days of single cells, the middle one held out: where is a population between two days?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from .._check import F32, choice, integer, rows, shown
from .._extras import need
from ..bridge import Bridge
from ..exact import DiscreteBridge
from ..history import Direction, Record
from . import _setup
from ._cost import Cost, of_training, scaled
from ._machine import Watch
from ._report import Column
from ._setup import Settings
from ._study import Known, Outcome, Reproduction, Values

ABOUT = """\
A bridge between the cells of two days; its marginal at a day between, which took no part in training,
is compared with the cells of that day by exact 1- and 2-Wasserstein distances, averaged over both
directions. Points: the first principal components, scaled over the three days together, by "whiten"
each to variance 1, by "mean" all by their mean standard deviation. The held-out day is split in random
halves, and every distance is to the first, from as many points. "Floor": the second half; "first day",
"last day": cells of the outer days themselves; "discrete": the entropic bridge between the cells, by
Sinkhorn, with the same T. All settings are chosen here; no published figure has the same cells,
components and scaling, so none is shown."""

VARIABLE = "DSB_DATA"  # of the environment: a folder that holds the folder single-cell
DAYS = ((2, 3, 4), (3, 4, 7))
COMMON: Settings = {
    "problem": {"data": "", "sha256": [], "days": [], "dim": 5, "scaling": "whiten"},
    "reference": "Brownian",
    "net": {"width": 128, "depth": 3},
    "bridge": {"batch": 512, "learning_rate": 3e-3, "lr_schedule": "cosine"},
    "training": {"iterations": 5, "steps": 5000},
    "evaluation": {"most": 10_000, "projections": 200},
}
ROWS: dict[str, Settings] = {
    "T = 0.1": {"schedule": {"shape": "constant", "N": 20, "T": 0.1}},
    "T = 0.5": {"schedule": {"shape": "constant", "N": 20, "T": 0.5}},
}
QUICK: Settings = {
    "training": {"iterations": 2, "steps": 500},
    "evaluation": {"most": 1000},
}


class SingleCell(Reproduction):
    """`dsb reproduce singlecell`."""

    name = "singlecell"
    title = "dsb reproduce singlecell"
    about = ABOUT
    axis = "sliced W2 at the held-out day"
    rows = ROWS
    quick_budget = QUICK
    published = ()
    levels = ("sliced_floor", "sliced_discrete")
    everything = DAYS
    columns = (
        Column("w2", "W2"),
        Column("w2_floor", "floor"),
        Column("w2_discrete", "discrete"),
        Column("w2_first", "first day"),
        Column("w2_last", "last day"),
        Column("w1", "W1"),
        Column("w1_floor", "W1 floor"),
        Column("w1_discrete", "W1 discrete"),
        Column("w1_first", "W1 of first day", tabled=False),
        Column("w1_last", "W1 of last day", tabled=False),
        Column("w2_forward", "W2 forward", tabled=False),
        Column("w2_backward", "W2 backward", tabled=False),
        Column("sliced", "sliced W2", tabled=False),
        Column("sliced_floor", "sliced floor", tabled=False),
        Column("sliced_discrete", "sliced discrete", tabled=False),
    )

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        days: Iterable[str] | Iterable[Iterable[int]] | None = None,
        dim: int = COMMON["problem"]["dim"],
        scaling: str = COMMON["problem"]["scaling"],
        **options: Any,
    ) -> None:
        super().__init__([days_of(three) for three in (days or DAYS)], **options)
        self.dim = integer("dim", dim, 1, 10_000)
        self.scaling = choice("scaling", scaling, ("whiten", "mean"))
        self.data = folder(data)

    def case_name(self, case: tuple[int, ...]) -> str:
        first, middle, last = case
        return f"days {first} to {last}, {middle} held out"

    def case_label(self, case: tuple[int, ...]) -> str:
        return "days" + "".join(map(str, case))

    @property
    def label(self) -> str:
        return f"d{self.dim}-" + "mean-" * (self.scaling == "mean") + super().label

    def settings(self, case: tuple[int, ...], row: str) -> Settings:
        told = COMMON | self.rows[row]
        problem = {
            "data": str(self.data),
            "sha256": [
                hashlib.sha256(file_of(self.data, day).read_bytes()).hexdigest() for day in case
            ],
            "days": list(case),
            "dim": self.dim,
            "scaling": self.scaling,
        }
        return told | {"problem": problem}

    def check(self) -> None:
        need("ot", "metrics", "dsb reproduce singlecell")
        for job in self.jobs():
            Drawn(job.settings, 0)

    @classmethod
    def cost(cls, settings: Settings) -> Cost:
        drawn = Drawn(settings, 0)
        training = settings["training"]
        trained = drawn.bridge()
        found = of_training(trained, training["iterations"], training["steps"])
        with Watch() as watch:
            drawn.sliced(drawn.middle(trained, "forward"))
        with Watch() as plan:
            drawn.discrete()
        # Five samples, both distances, and one more for the other direction.
        exact, memory = scaled(
            lambda few: metrics.wasserstein(drawn.test[:few], drawn.other[:few]),
            len(drawn.test),
            (2.0, 3.0),
            (1000, 2000),
        )
        seconds = 12 * exact + plan.seconds + watch.seconds * 2 * training["iterations"]
        return found._replace(
            evaluation=seconds, memory=found.memory + max(memory, watch.bytes, plan.bytes)
        )

    @classmethod
    def expected(cls, settings: Settings) -> Known:
        return {}

    @classmethod
    def run(cls, settings: Settings, seed: int) -> Outcome:
        drawn = Drawn(settings, seed)
        trained = drawn.bridge()
        curve: dict[str, list[float]] = {"backward": [], "forward": []}

        def after(given: Bridge, record: Record) -> None:
            curve[record.direction].append(drawn.sliced(drawn.middle(given, record.direction)))

        values, seconds = _setup.measured(trained, settings, after, drawn.values)
        return Outcome(values, curve, seconds, trained.settings._asdict())


class Drawn:
    """The cells, and how one seed divides them."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seeds = settings, _setup.seeds(seed)
        told = settings["problem"]
        self.schedule = _setup.schedule(settings["schedule"])
        first, middle, last = told["days"]
        self.step = step_of((first, middle, last), self.schedule.N)
        cells = [_read(Path(told["data"]), day, told["dim"]) for day in told["days"]]
        self.first, held_out, self.last = _scaled(cells, told["scaling"])
        n = min(len(held_out) // 2, len(self.first), len(self.last), settings["evaluation"]["most"])
        if n < 10:
            raise ValueError(f"{told['data']}: too few cells: 20 of the middle day are needed")
        rng = np.random.default_rng(self.seeds["test source"])
        order = rng.permutation(len(held_out))
        self.test, self.other = held_out[order[:n]], held_out[order[n : 2 * n]]
        self.starts: dict[Direction, F32] = {
            "forward": self.first[rng.permutation(len(self.first))[:n]],
            "backward": self.last[rng.permutation(len(self.last))[:n]],
        }

    def bridge(self) -> Bridge:
        return _setup.bridge(self.first, self.last, self.settings, self.seeds["bridge"])

    def middle(self, trained: Bridge, direction: Direction) -> F32:
        """Points of the held-out day's time, on paths from the cells of an outer day."""
        paths = trained.paths(
            self.starts[direction], direction=direction, seed=self.seeds["evaluation"]
        )
        k = self.step if direction == "forward" else self.schedule.N - self.step
        return np.ascontiguousarray(paths[:, k])

    def discrete(self) -> F32:
        """Points of that time in the entropic bridge between the cells."""
        known = DiscreteBridge(self.first, self.last, self.schedule)
        law = known.marginal(float(self.schedule.times[self.step]))
        return np.asarray(law.sample(len(self.test), seed=self.seeds["exact"]))

    def sliced(self, points: F32) -> float:
        many = self.settings["evaluation"]["projections"]
        return metrics.sliced_wasserstein(points, self.test, many, self.seeds["metric"])

    def values(self, trained: Bridge) -> Values:
        samples = {
            "forward": self.middle(trained, "forward"),
            "backward": self.middle(trained, "backward"),
            "floor": self.other,
            "discrete": self.discrete(),
            "first": self.starts["forward"],
            "last": self.starts["backward"],
        }
        values: Values = {}
        for p in (1, 2):
            for name, points in samples.items():
                values[f"w{p}_{name}"] = float(metrics.wasserstein(points, self.test, p=p))
            values[f"w{p}"] = (values[f"w{p}_forward"] + values[f"w{p}_backward"]) / 2.0
        for name, points in samples.items():
            values[f"sliced_{name}"] = self.sliced(points)
        values["sliced"] = (values["sliced_forward"] + values["sliced_backward"]) / 2.0
        return values


def days_of(three: Any) -> tuple[int, int, int]:
    """ "2,3,4" or numbers: three different days in order."""
    parts = three.split(",") if isinstance(three, str) else three
    try:
        days = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        days = ()
    if len(days) != 3 or sorted(set(days)) != list(days):
        raise ValueError(f"days: expected three in order, such as 2,3,4, got {shown(three)}")
    return days[0], days[1], days[2]


def step_of(days: tuple[int, int, int], N: int) -> int:
    """Number of the grid time that belongs to the middle day."""
    first, middle, last = days
    share = N * (middle - first) / (last - first)
    if share != round(share):
        raise ValueError(
            f"days: expected the middle one on the grid of {N} equal steps, got {days}"
        )
    return round(share)


def folder(data: str | os.PathLike[str] | None) -> Path:
    """Where the cells are: --data, or the folder single-cell of $DSB_DATA."""
    if data is not None:
        found = Path(data)
    elif os.environ.get(VARIABLE):
        found = Path(os.environ[VARIABLE]) / "single-cell"
    else:
        raise ValueError(
            f"data: expected the folder with a file ...day_D.npy of each day D (cells in rows, principal "
            f"components in columns); give --data FOLDER, or set {VARIABLE} to the folder above it"
        )
    if not found.is_dir():
        raise FileNotFoundError(f"data: no folder {found}")
    return found.resolve()


def file_of(data: Path, day: int) -> Path:
    """The file of one day."""
    found = sorted(data.glob(f"*day_{day}.npy"))
    if len(found) != 1:
        have = ", ".join(path.name for path in sorted(data.glob("*.npy"))) or "no .npy file"
        raise FileNotFoundError(
            f"data: expected one file *day_{day}.npy in {data}, which has {have}"
        )
    return found[0]


def _read(data: Path, day: int, dim: int) -> F32:
    path = file_of(data, day)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected an array as np.save writes it: {error}") from None
    cells = rows(str(path), loaded)
    if cells.shape[1] < dim:
        raise ValueError(
            f"dim: expected at most {cells.shape[1]}, as many as {path} has columns, got {dim}"
        )
    found = np.asarray(cells[:, :dim], dtype=np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: expected finite numbers, got NaN or infinity")
    return found


def _scaled(cells: list[F32], scaling: str) -> list[F32]:
    """Centred, and scaled by the standard deviations over all days together."""
    together = np.concatenate(cells).astype(np.float64)
    spread = together.std(axis=0)
    scale = spread if scaling == "whiten" else np.full_like(spread, spread.mean())
    if not (scale > 0).all():
        raise ValueError("data: expected components that vary, got a constant one")
    return [((day - together.mean(axis=0)) / scale).astype(np.float32) for day in cells]
