"""A comparison as a study: problems are its cases, methods its rows."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from .. import _build
from .._evaluate import Evaluation, How
from ..bridge import Bridge
from ..history import DIRECTIONS, FLOOR, Direction, Record, is_floor
from ..mlp import MLP
from ..reproduce import _setup
from ..reproduce._cost import Cost
from ..reproduce._machine import Watch
from ..reproduce._machine import seconds as spoken
from ..reproduce._report import Column, Entry
from ..reproduce._setup import Settings
from ..reproduce._study import Experiment, Job, Known, Outcome, Values, load
from ..unet import UNet
from ._budget import Budget, Timing, timed
from ._methods import Method
from ._problems import Posed, Task

ABOUT = """\
{budget} of training for each method and seed, {ipf} iterations of two half-bridges, all with the same number
of steps. Nets, their initial weights, training points and evaluation are the same for all methods. Errors are
those of simulated paths with the noise of every step, averaged over both directions."""
FIRST = """\
"{name}": one backward half-bridge with the whole budget, to be compared with the others' backward errors."""
TIMED = """\
How many steps fit into that time is known from short runs of each method; "training" is what they took."""
QUICK = "Quick run: too short to judge the methods by."
LONGEST = 80  # characters of the names in a name of a file

# Errors by name: what they are called, in which unit, its scale, digits.
ERRORS = {
    "kl": ("KL", " x 1e3", 1e3, 2),
    "coupling": ("Cov off by", " %", 1e2, 2),
    "path_kl": ("path KL", "", 1.0, 3),
    "cbw2": ("cBW2-UVP", " %", 1.0, 3),
    "sliced_w2": ("sliced W2", "", 1.0, 3),
}
SAMPLE = "kl_sample"  # the KL of the exact bridge between training points


def _columns() -> Iterable[Column]:
    for name, (called, unit, scale, digits) in ERRORS.items():
        yield Column(name, called + unit, scale, digits)
        yield Column(f"{name}_backward", f"{called} backward", scale, digits)
        yield Column(f"{name}_forward", f"{called} forward", scale, digits, tabled=False)
        if name == "kl":
            yield Column(SAMPLE, "exact bridge of the sample", scale, digits)
        yield Column(name + FLOOR, f"{called} floor", scale, digits)
    yield Column("training", "training, s", 1.0, 2, part="seconds")
    yield Column("evaluations", "net evaluations x 1e6", 1e-6, 2)


class Comparison(Experiment):
    """`dsb compare`."""

    name = "compare"
    title = "dsb compare"
    row_head = "method"
    columns = tuple(_columns())
    seeds: ClassVar[int] = 3

    def __init__(
        self,
        problems: Iterable[Posed],
        methods: Mapping[str, Method],
        budget: Budget,
        ipf: int,
        net: _build.Net | None = None,
        quick: bool = False,
        say: Callable[[str], object] = print,
    ) -> None:
        self.problems = {one.name: one for one in problems}
        self.rows = dict(methods)
        super().__init__(self.problems)
        self.training, self.ipf, self.net = budget, ipf, net
        self.quick, self.say = quick, say
        self.steps: dict[tuple[str, str], int] = {}  # of a half-bridge, by problem and method
        self._timings: dict[tuple[str, str], Timing] = {}
        self.axis = {name: "".join(ERRORS[one.error][:2]) for name, one in self.problems.items()}
        self.levels = {
            name: (one.error + FLOOR, *(SAMPLE for _ in range(one.error == "kl")))
            for name, one in self.problems.items()
        }
        told = [ABOUT.format(budget=budget.text, ipf=ipf)]
        told += [FIRST.format(name=name) for name, one in methods.items() if one.half_bridges == 1]
        told += [TIMED] if budget.seconds is not None else []
        told += [f"{name}: {one.about}" for name, one in self.problems.items()]
        self.about = "\n".join(told)

    @property
    def label(self) -> str:
        """Problems, methods, budget and iterations; a digest of the methods where they are many."""
        methods = "-".join(self.rows)
        if len(methods) > LONGEST:
            digest = hashlib.sha256(json.dumps(list(self.rows)).encode()).hexdigest()[:8]
            methods = f"{len(self.rows)}-methods-{digest}"
        told = [*self.problems, methods, self.training.text.replace(" ", ""), f"ipf{self.ipf}"]
        return re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(told))

    def adopt(self, folder: Path) -> None:
        """The steps of results that are to be gone on with: timed again they would be others."""
        path = folder / f"{self.label}.json"
        if self.training.seconds is None or not path.exists():
            return
        for entry in load(path)["results"]:
            self.steps[entry["case"], entry["row"]] = entry["settings"]["training"]["steps"]

    def jobs(self) -> list[Job]:
        """Every method on every problem; of a budget in seconds those whose steps are open are timed."""
        unknown = len(self.problems) * len(self.rows) - len(self.steps)
        if self.training.seconds is not None and unknown:
            self.say(
                f"Timing short runs, {unknown} in all, for the steps that fit the budget ...\n"
            )
        return super().jobs()

    # ---- settings ----

    def settings(self, case: str, row: str) -> Settings:
        """Everything that decides the result. How many steps fit into a time is found out here."""
        problem, method = self.problems[case], self.rows[row]
        half_bridges = method.half_bridges or 2 * self.ipf
        if (case, row) not in self.steps:
            self.steps[case, row] = self.training.steps(
                half_bridges,
                lambda: self._timing(case, row, half_bridges),
                f"{row!r} on {case}",
            )
        steps = self.steps[case, row]
        return {
            **problem.settings,
            "problem": {"name": case, **problem.settings["problem"]},
            "method": row,
            "schedule": {"steps": problem.schedule.steps.tolist()},
            "reference": repr(problem.reference),
            "net": self._net_told(problem),
            "bridge": method.of(problem.shape),
            "training": {
                "budget": self.training.text,
                "iterations": self.ipf,
                "half_bridges": half_bridges,
                "steps": steps,
                "gradient_steps": half_bridges * steps,
            },
        }

    def _net(self, problem: Posed) -> _build.Net:
        if self.net is not None:
            return self.net
        return problem.net or (UNet() if len(problem.shape) == 3 else MLP())

    def _net_told(self, problem: Posed) -> Any:
        """In JSON: what the net is called, or its list of ops where it has no name."""
        net = self._net(problem)
        graph, label = _build.net_of(net, problem.shape, False)
        return label if label == repr(net) else graph.ops

    def bridge(self, case: str, row: str, task: Task, seed: int, **changed: Any) -> Bridge:
        """The bridge of one method, which differs from those of the others in its own options alone."""
        problem = self.problems[case]
        options = self.rows[row].of(problem.shape) | changed
        return Bridge(
            *task.ends,
            schedule=problem.schedule,
            reference=problem.reference,
            net=self._net(problem),
            seed=_setup.seeds(seed)["bridge"],
            **options,
        )

    def check(self) -> None:
        """Makes every bridge once: what `Bridge` refuses is told with the method's name."""
        for case, problem in self.problems.items():
            task = problem.task(0)
            for row in self.chosen:
                try:
                    self.bridge(case, row, task, 0)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"method {row!r} on {case}: {error}") from None

    # ---- forecast ----

    def _to_time(self, case: str, row: str, task: Task) -> Bridge:
        """A bridge whose weights hardly move: whether a method diverges, its seeds will tell."""
        return self.bridge(case, row, task, 0, learning_rate=1e-9)

    def _timing(self, case: str, row: str, half_bridges: int) -> Timing:
        """Of a method on a problem, measured when it is first asked for."""
        if (case, row) not in self._timings:
            task, seconds = self.problems[case].task(0), self.training.seconds
            enough = 0.02 if seconds is None else min(max(seconds / 100.0, 0.02), 0.5)
            self._timings[case, row] = timed(
                lambda: self._to_time(case, row, task), half_bridges, enough
            )
        return self._timings[case, row]

    def cost(self, settings: Settings) -> Cost:
        """By a few timed steps, and one evaluation of each direction."""
        case, row, told = settings["problem"]["name"], settings["method"], settings["training"]
        half_bridges, many = told["half_bridges"], told["gradient_steps"]
        timing = self._timing(case, row, half_bridges)
        training = timing.seconds(half_bridges, told["steps"])
        learned = settings["bridge"].get("covariance", "reference") != "reference"
        task = self.problems[case].task(0)
        bridge = self._to_time(case, row, task)
        both = min(half_bridges, 2)
        _setup.train(bridge, both, 1, lambda given, record: None, progress=False)
        with Watch() as once:
            evaluation = Evaluation(bridge, task.evaluate, How(final_noise=True))
            if both == 2:
                task.last(bridge)
        with Watch() as often:
            for direction in DIRECTIONS[:both]:
                evaluation(direction)
        return Cost(
            parameters=bridge.net.n_parameters,
            gradient_steps=many,
            step=training / many,
            training=training,
            evaluation=once.seconds + often.seconds * half_bridges / both,
            memory=bridge.memory()["total"] + max(once.bytes, often.bytes),
            estimates=timing.seconds(half_bridges, 0) if learned else 0.0,
        )

    def expected(self, settings: Settings) -> Known:
        """Nothing: floors belong to the draws of a seed."""
        return {}

    # ---- a seed ----

    def run(self, settings: Settings, seed: int) -> Outcome:
        """Trains and measures; every method has the same draws of a seed."""
        case, row = settings["problem"]["name"], settings["method"]
        problem = self.problems[case]
        task = problem.task(seed)
        bridge = self.bridge(case, row, task, seed)
        evaluation = Evaluation(bridge, task.evaluate, How(_setup.shift(seed), final_noise=True))
        errors: dict[Direction, Values] = {}
        curve: dict[str, list[float]] = {}
        name = "backward" if settings["training"]["half_bridges"] == 1 else ""

        def after(given: Bridge, record: Record) -> None:
            errors[record.direction] = evaluation(record.direction)
            found = [told[problem.error] for told in errors.values() if problem.error in told]
            if found and (record.direction == "forward" or name):
                mean = ERRORS[problem.error][2] * math.fsum(found) / len(found)
                curve.setdefault(name, []).append(mean)

        def last(given: Bridge) -> Values:
            besides = task.last(given) if len(errors) == 2 else {}
            return _joined(errors) | besides | {"evaluations": float(sum(given.evaluations))}

        values, seconds = _setup.measured(bridge, settings, after, last)
        if not all(math.isfinite(error) for points in curve.values() for error in points):
            raise FloatingPointError(f"{problem.error} is no number after some half-bridge")
        return Outcome(values, curve, seconds, bridge.settings._asdict())

    def notes(self, results: list[Entry]) -> list[str]:
        """Short runs, and times that were missed."""
        found = [QUICK] if self.quick else []
        for entry in results:
            took = [one["seconds"]["training"] for one in entry["seeds"] if "seconds" in one]
            mean = math.fsum(took) / max(len(took), 1)
            if took and self.training.missed(mean):
                found.append(
                    f"{entry['row']} on {entry['case']}: training took {spoken(mean)} where "
                    f"{self.training.text} were asked for."
                )
        return found


def _joined(errors: Mapping[Direction, Values]) -> Values:
    """Means over the directions that have an error; of one direction alone there is no such mean."""
    found: Values = {}
    for name in dict.fromkeys(name for told in errors.values() for name in told):
        each = {direction: told[name] for direction, told in errors.items() if name in told}
        if is_floor(name) or len(errors) == 2:
            found[name] = math.fsum(each.values()) / len(each)
        if not is_floor(name) and (len(each) == 2 or len(errors) == 1):
            found |= {f"{name}_{direction}": value for direction, value in each.items()}
    return found
