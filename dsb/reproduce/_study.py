"""A study: several settings, several seeds, one file of results."""

from __future__ import annotations

import gc
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from .. import __version__, _files
from .._check import integer, nearest, shown
from . import _machine, _report
from ._cost import Cost
from ._report import Column, Entry, Published
from ._setup import Settings, changed

FORMAT = 1
Values = dict[str, float]
Known = dict[str, list[float]]  # one value, or several of which mean and error are shown


class Job(NamedTuple):
    """One line of the table."""

    case: str  # of the problem: "d = 50"
    row: str  # of the settings: "published"
    settings: Settings  # everything that decides the result, besides the seed


class Outcome(NamedTuple):
    """What one seed of one job gave."""

    values: Values
    curve: dict[str, list[float]]  # of errors, over half-bridges or iterations, to be drawn
    seconds: dict[str, float]  # "training", "evaluation"
    resolved: dict[str, Any]  # settings with every default of the library filled in


class Experiment(ABC):
    """A protocol: which jobs there are, and how a seed of one is run and measured."""

    name: ClassVar[str]
    title: ClassVar[str]  # the command
    row_head: ClassVar[str] = "settings"  # what the rows of a case are
    everything: ClassVar[tuple[Any, ...]] = ()  # cases that are asked for as a rule
    about: str  # the protocol, in the words that are printed
    columns: tuple[Column, ...]
    published: ClassVar[tuple[Published, ...]] = ()
    # Of the figure, upwards, and columns that it draws as lines. By the name of the case where each is
    # measured in a way of its own, and has a table of its own.
    axis: str | dict[str, str]
    levels: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    comparable: ClassVar[bool] = False  # whether the figure's axis is what was published
    seeds: ClassVar[int] = 5
    rows: dict[str, Any]  # settings by the name of the row
    quick_budget: ClassVar[Settings] = {}  # what --quick changes

    def __init__(
        self,
        cases: Iterable[Any],
        rows: Iterable[str] = (),
        quick: bool = False,
        budget: Settings | None = None,
    ) -> None:
        self.cases = tuple(dict.fromkeys(cases))
        self.chosen = tuple(dict.fromkeys(rows)) or tuple(self.rows)
        for name in self.chosen:
            if name not in self.rows:
                listed = ", ".join(map(repr, self.rows))
                raise ValueError(
                    f"row: expected one of {listed}, got {shown(name)}{nearest(name, self.rows)}"
                )
        self.budget = "quick" if quick else "full"
        self.changes = dict(self.quick_budget) if quick else {}
        if budget:
            self.budget, self.changes = "custom", budget

    @property
    def label(self) -> str:
        """Name of the files of results: what was asked for, and at which budget."""
        parts = [self.case_label(case) for case in self.cases]
        if len(parts) > 1 and self.cases == self.everything:
            parts = ["all"]
        if self.chosen != tuple(self.rows):
            parts += self.chosen
        return "-".join([*parts, *([] if self.budget == "full" else [self.budget])])

    def jobs(self) -> list[Job]:
        """Every case with every row, in the order of the table."""
        return [
            Job(self.case_name(case), row, changed(self.settings(case, row), self.changes))
            for case in self.cases
            for row in self.chosen
        ]

    def case_name(self, case: Any) -> str:
        """As the table has it."""
        return str(case)

    def case_label(self, case: Any) -> str:
        """In the name of a file."""
        return str(case)

    @abstractmethod
    def settings(self, case: Any, row: str) -> Settings:
        """All settings of a job at the full budget."""

    def check(self) -> None:  # noqa: B027
        """Raises where something is missing that the run would need, packages or data; here nothing."""

    def notes(self, results: list[Entry]) -> list[str]:
        """What a reader of these results has to know beside the protocol."""
        return []

    @abstractmethod
    def cost(self, settings: Settings) -> Cost:
        """Of one seed, measured."""

    @abstractmethod
    def expected(self, settings: Settings) -> Known:
        """What perfect nets would give, and what else is known before. May be empty."""

    @classmethod
    def known_seeds(cls, settings: Settings) -> int:
        """How many values `expected` has of each number: those of seeds 0, 1, .. where there are several."""
        return 1

    @classmethod
    def decides(cls, settings: Settings) -> str:
        """The settings on which `expected` depends: all but the nets and how they are trained."""
        kept = {name: told for name, told in settings.items() if name not in ("net", "bridge")}
        kept["training"] = {"iterations": settings["training"]["iterations"]}
        kept["objective"] = settings["bridge"].get("objective", "dsb")
        return json.dumps(kept, sort_keys=True)

    @abstractmethod
    def run(self, settings: Settings, seed: int) -> Outcome:
        """Trains and measures one seed: a function of its arguments, bit for bit."""


class Reproduction(Experiment):
    """A published experiment, whose settings say everything: they are enough to run a seed again."""

    @classmethod
    @abstractmethod
    def run(cls, settings: Settings, seed: int) -> Outcome:
        """As `Experiment.run`."""


class Options(NamedTuple):
    """How a study is run; none of it changes a figure."""

    out: Path
    seeds: int
    resume: bool = False
    overwrite: bool = False
    figure: bool = True
    command: str = ""
    say: Callable[[str], object] = print


def study(experiment: Experiment, options: Options) -> dict[str, Any]:
    """Forecast, seeds, table, figure, JSON. Ctrl-C keeps the finished seeds, and is raised again."""
    integer("seeds", options.seeds, 1, 10_000)
    experiment.check()
    if options.figure:
        _report.check_figure()
    path = options.out / f"{experiment.label}.json"
    old = _old(path, options)
    jobs = experiment.jobs()
    report = _begun(experiment, jobs, path, old)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"out: cannot make the folder {options.out}: {error.strerror}") from None
    say = options.say
    say(_report.heading(experiment, report))
    todo = _todo(report, options.seeds)
    run = {
        "command": options.command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _machine.describe(),
        "seeds asked for": options.seeds,
    }
    report["runs"].append(run)
    if todo:
        run["forecast"] = _forecast(experiment, jobs, todo, say)
    start = time.perf_counter()
    _machine.forget_peak()

    def finish() -> None:
        run["spent"] = {
            "seconds": time.perf_counter() - start,
            "memory": _machine.peak_memory(),
        }
        report["notes"] = experiment.notes(report["results"])
        _finish(report, path, options)

    try:
        _work(experiment, report, todo, path, say)
    except KeyboardInterrupt:
        finish()
        raise
    finish()
    return report


def _work(
    experiment: Experiment,
    report: dict[str, Any],
    todo: list[tuple[int, int]],
    path: Path,
    say: Callable[[str], object],
) -> None:
    _before(experiment, report, say)
    _write(path, report)
    for done, (number, seed) in enumerate(todo, 1):
        entry = report["results"][number]
        began = time.perf_counter()
        gc.collect()  # the bridge of the seed before, which is part of a cycle
        try:
            entry["seeds"].append(_of(experiment.run(entry["settings"], seed), seed, report, entry))
        except FloatingPointError as error:  # it diverged: a result, and one to be seen
            entry["seeds"].append(
                {"seed": seed, "run": len(report["runs"]) - 1, "failed": str(error)}
            )
        entry["seeds"].sort(key=lambda one: one["seed"])
        _write(path, report)
        told = _report.seed_line(
            experiment.columns, next(one for one in entry["seeds"] if one["seed"] == seed)
        )
        took = _machine.seconds(time.perf_counter() - began)
        say(f"[{done}/{len(todo)}] {entry['case']}, {entry['row']}: {told}, {took}")


def _before(experiment: Experiment, report: dict[str, Any], say: Callable[[str], object]) -> None:
    """What is known before training, once for rows that share it."""
    first: dict[str, Entry] = {}
    for entry in report["results"]:
        what = experiment.decides(entry["settings"])
        # A report that is gone on with may be from when fewer seeds of them were asked for.
        many = experiment.known_seeds(entry["settings"])
        have = min(map(len, entry["expected"].values()), default=0)
        if have < many and what in first:
            entry["expected"] = first[what]["expected"]
        elif have < many:
            entry["expected"] = experiment.expected(entry["settings"])
            line = _report.expected_line(experiment.columns, entry)
            if line:
                say(line)
        first.setdefault(what, entry)


def _of(
    outcome: Outcome, seed: int, report: dict[str, Any], entry: dict[str, Any]
) -> dict[str, Any]:
    for name, value in outcome.values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
    entry["resolved"] = outcome.resolved
    return {
        "seed": seed,
        "run": len(report["runs"]) - 1,
        "values": outcome.values,
        "curve": outcome.curve,
        "seconds": outcome.seconds,
    }


def _old(path: Path, options: Options) -> dict[str, Any] | None:
    """The report to go on with; FileExistsError where nobody says what to do with one that is there."""
    if not path.exists() or options.overwrite:
        return None
    old = load(path)
    if options.resume:
        return old
    if not any(entry["seeds"] for entry in old["results"]):
        return None
    raise FileExistsError(
        f"{path} holds results already: --resume keeps its seeds and adds those that are "
        "missing, --overwrite throws them away, --out writes to another folder"
    )


def _begun(
    experiment: Experiment, jobs: list[Job], path: Path, old: dict[str, Any] | None
) -> dict[str, Any]:
    """A new report, or the old one, which has to be of the same settings."""
    new: dict[str, Any] = {
        "format": FORMAT,
        "experiment": experiment.name,
        "title": experiment.title,
        "budget": experiment.budget,
        "complete": False,
        "protocol": experiment.about,
        "columns": [column._asdict() for column in experiment.columns],
        "published": [one._asdict() for one in experiment.published],
        "row head": experiment.row_head,
        "axis": experiment.axis,
        "levels": experiment.levels,
        "published in figure": experiment.comparable,
        "notes": [],
        "runs": [],
        "results": [{**job._asdict(), "resolved": {}, "expected": {}, "seeds": []} for job in jobs],
    }
    new = dict(json.loads(json.dumps(new)))  # as a file would give it
    if old is None:
        return new
    theirs = [[one[name] for name in Job._fields] for one in old["results"]]
    if theirs != [[one[name] for name in Job._fields] for one in new["results"]]:
        raise ValueError(f"{path}: its settings are not those asked for; choose another --out")
    version = old["runs"][-1]["machine"]["dsb"]
    if version != __version__:
        raise ValueError(
            f"{path}: was made by dsb {version}, this is {__version__}; choose another --out"
        )
    # The same settings, perhaps in clearer words.
    return old | {name: new[name] for name in ("title", "protocol", "row head", "notes")}


def _todo(report: dict[str, Any], seeds: int) -> list[tuple[int, int]]:
    """(result, seed) pairs that are missing, seed by seed, so that all rows grow alike."""
    have = [{one["seed"] for one in entry["seeds"]} for entry in report["results"]]
    return [(i, seed) for seed in range(seeds) for i, done in enumerate(have) if seed not in done]


def _forecast(
    experiment: Experiment,
    jobs: list[Job],
    todo: list[tuple[int, int]],
    say: Callable[[str], object],
) -> dict[str, Any]:
    """What is to come, told and returned."""
    counts = [sum(number == i for number, _ in todo) for i in range(len(jobs))]
    known: list[tuple[Job, Cost, int]] = []
    for job, n in zip(jobs, counts, strict=True):
        if n:
            gc.collect()
            known.append((job, experiment.cost(job.settings), n))
    once = sum({experiment.decides(job.settings): cost.known for job, cost, _ in known}.values())
    total = sum(cost.seconds * n for _, cost, n in known) + once
    memory = max(cost.memory for _, cost, _ in known)
    lines = [((job.case, job.row), cost, n) for job, cost, n in known]
    say(_report.forecast(experiment.row_head, lines, once, total, memory))
    return {
        "seconds": total,
        "memory": memory,
        "of a seed": [
            {"case": job.case, "row": job.row, **cost._asdict()} for job, cost, _ in known
        ],
    }


def _finish(report: dict[str, Any], path: Path, options: Options) -> None:
    """Table, figure and JSON of whatever there is."""
    for entry in report["results"]:
        entry["summary"] = _report.summary(report["columns"], entry)
    most = options.seeds
    report["complete"] = all(len(entry["seeds"]) >= most for entry in report["results"])
    _write(path, report)
    if not any(entry["seeds"] for entry in report["results"]):
        return
    text = _report.markdown(report)
    _files.write(str(path.with_suffix(".md")), text.encode())
    wrote = [path, path.with_suffix(".md")]
    if options.figure:
        picture = _report.figure(report)
        if picture is not None:
            wrote.append(path.with_suffix(".png"))
            _files.write(str(wrote[-1]), picture)
    told = _report.markdown(report, protocol=False)  # that was printed first
    options.say("\n" + told + "\nwrote " + ", ".join(map(str, wrote)))


def _write(path: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    _files.write(str(path), (text + "\n").encode())


def load(path: Path | str) -> dict[str, Any]:
    """A report that `study` wrote; ValueError where it is none."""
    try:
        found = json.loads(Path(path).read_text())
        if not isinstance(found, dict):
            raise ValueError(f"a JSON {type(found).__name__}")
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected results of dsb reproduce or compare: {error}") from None
    return dict(found)
