"""What a study tells: lines while it runs, a table, a figure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _machine
from ._cost import Cost
from ._setup import mean_and_error

if TYPE_CHECKING:
    from ._study import Experiment

Report = dict[str, Any]
Entry = dict[str, Any]


class Column(NamedTuple):
    """A number of the table: measured in every seed, or known before (`Experiment.expected`)."""

    key: str
    head: str
    scale: float = 1.0
    digits: int = 3
    tabled: bool = True  # a column of the table, and not of the lines of seeds alone
    part: str = "values"  # of what is told of a seed: "values" or "seconds"

    def of(self, one: Entry) -> float | None:
        """From what is told of a seed; None where this number is not measured, or the seed failed."""
        found = one.get(self.part, {}).get(self.key)
        return None if found is None else float(found)

    def over(self, entry: Entry) -> list[float]:
        """Of all seeds that have it."""
        found = map(self.of, entry["seeds"])
        return [value for value in found if value is not None]

    def shown(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}"


class Published(NamedTuple):
    """Figures of one method from the literature, in the units of the table."""

    method: str
    source: str
    values: dict[str, float]  # by case
    head: str = ""  # of the column, where the method's name alone would mislead


# ---- lines ----


def heading(experiment: Experiment, report: Report) -> str:
    lines = [experiment.title, "", experiment.about]
    if experiment.budget != "full":
        lines += ["", budget_note(report)]
    return "\n".join(lines) + "\n"


def budget_note(report: Report) -> str:
    """What makes such a run not to be compared with others."""
    told = "Quick run" if report["budget"] == "quick" else "Changed budget"
    trained = {str(entry["settings"]["training"]) for entry in report["results"]}
    which = "; ".join(sorted(trained)).translate(str.maketrans("", "", "{}'"))
    return f"{told}: NOT the protocol and not to be compared with published figures ({which})."


def forecast(
    row_head: str,
    parts: Sequence[tuple[tuple[str, str], Cost, int]],
    known: float,
    seconds: float,
    memory: float,
) -> str:
    """The costs to come, as a table."""
    machine = _machine.describe()
    threads = machine["threads"]
    head = ["problem", row_head, "parameters of a net", "gradient steps", "a step", "training",
            "evaluation", "seeds"]  # fmt: skip
    lines = [
        [
            *names,
            f"{cost.parameters:,}",
            f"{cost.gradient_steps:,}",
            _machine.seconds(cost.step),
            _machine.seconds(cost.training),
            _machine.seconds(cost.evaluation),
            str(count),
        ]
        for names, cost, count in parts
    ]
    return (
        f"What it will cost, by a few steps timed on {machine['processor']}, "
        f"{machine['instruction set']}, {threads} thread{'s' * (threads > 1)}:\n\n"
        + table(head, lines)
        + "\n\nTraining and evaluation are those of one seed."
        + (f" Exact answers before training take {_machine.seconds(known)}." if known else "")
        + f"\nIn all about {_machine.seconds(seconds)} and {_machine.size(memory)} of memory.\n"
    )


def expected_line(columns: Iterable[Column], entry: Entry) -> str:
    """What is known before training."""
    told = [
        f"{column.head} {_with_error(column, entry['expected'][column.key])}"
        for column in columns
        if column.key in entry["expected"]
    ]
    return f"{entry['case']}, known before training: {', '.join(told)}" if told else ""


def seed_line(columns: Iterable[Column], one: dict[str, Any]) -> str:
    """The numbers of a seed."""
    if "failed" in one:
        return f"seed {one['seed']}: FAILED, {one['failed']}"
    values = [(column, column.of(one)) for column in columns]
    told = [f"{column.head} {column.shown(v)}" for column, v in values if v is not None]
    return f"seed {one['seed']}: {', '.join(told)}"


# ---- the table ----


def summary(columns: Iterable[dict[str, Any]], entry: Entry) -> dict[str, Any]:
    """Mean, standard error and number of seeds of every column that seeds measure."""
    found: dict[str, Any] = {}
    for column in (Column(**told) for told in columns):
        if values := column.over(entry):
            mean, error = mean_and_error(values)
            found[column.key] = {"mean": mean, "error": error, "seeds": len(values)}
    return found


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns stand in line in a terminal too."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def drawn(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([drawn(rows[0]), "| " + " | ".join(rule) + " |", *map(drawn, rows[1:])])


def markdown(report: Report, protocol: bool = True) -> str:
    """The whole account of a report, from what its JSON holds alone."""
    columns = [Column(**column) for column in report["columns"]]
    others = [Published(**one) for one in report["published"]]
    cases = dict.fromkeys(entry["case"] for entry in report["results"])
    others = [one for one in others if cases.keys() & set(one.values)]
    parts = [f"## {report['experiment']}", report["protocol"] if protocol else ""]
    parts += [f"**{note}**" for note in report.get("notes", ())]
    if report["budget"] != "full":
        parts.append(f"**{budget_note(report)}**")
    if not report["complete"]:
        parts.append("Stopped before all seeds were done.")
    tables = [
        _table(report, [e for e in report["results"] if e["case"] in told], columns, others)
        for told in (
            [[case] for case in cases] if isinstance(report.get("axis"), dict) else [list(cases)]
        )
    ]
    spread = any("±" in text for text in tables)
    head = "Mean ± standard error over seeds; every seed:" if spread else "Every seed:"
    parts += [*tables, f"{head}\n\n{_seeds(columns, report)}"]
    sources = sorted({one.source for one in others})
    if sources:
        parts.append("Published: " + "; ".join(sources) + ".")
    parts.append(_spent(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(
    report: Report, entries: list[Entry], columns: list[Column], others: list[Published]
) -> str:
    """These results beside what was published, with the columns that any of them fills."""
    used = [c for c in columns if c.tabled and any(_cell(c, entry) for entry in entries)]
    # Beside a small budget, what the publication's budget gave.
    full = "" if report["budget"] == "full" else " (full protocol)"
    ours = ["problem", report.get("row head", "settings"), *(c.head for c in used), "seeds"]
    lines = [
        [
            entry["case"],
            entry["row"],
            *(_cell(column, entry) or "-" for column in used),
            _count(entry),
            *(_figure_of(one, entry["case"]) for one in others),
        ]
        for entry in entries
    ]
    return table([*ours, *((one.head or one.method) + full for one in others)], lines)


def _count(entry: Entry) -> str:
    """Of the seeds that the means are of, and of those that diverged and have no part in them."""
    good = sum("values" in one for one in entry["seeds"])
    failed = sum("failed" in one for one in entry["seeds"])
    return f"{good}, {failed} FAILED" if failed else str(good)


def _figure_of(one: Published, case: str) -> str:
    return f"{one.values[case]:g}" if case in one.values else "-"


def _cell(column: Column, entry: Entry) -> str:
    """Mean and standard error over the seeds, or what was known before."""
    if column.key in entry["expected"]:
        return _with_error(column, entry["expected"][column.key])
    values = column.over(entry)
    return _with_error(column, values) if values else ""


def _with_error(column: Column, values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return column.shown(mean) + ("" if error is None else f" ± {column.shown(error)}")


def _seeds(columns: Sequence[Column], report: Report) -> str:
    """Every seed of every row."""
    lines = []
    for entry in report["results"]:
        lines.append(f"* {entry['case']}, {entry['row']}")
        lines += [f"  * {seed_line(columns, one)}" for one in entry["seeds"]]
    return "\n".join(lines)


def _spent(report: Report) -> str:
    """Command, machine, and cost beside its forecast."""
    lines = []
    for run in report["runs"]:
        machine, spent = run["machine"], run.get("spent")
        told = f"`{run['command']}`, {run['date']}, " if run["command"] else f"{run['date']}, "
        told += (
            f"dsb {machine['dsb']}, {machine['processor']}, {machine['instruction set']}, "
            f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
        )
        if spent and "forecast" in run:
            told += (
                f": {_machine.seconds(spent['seconds'])} (foretold "
                f"{_machine.seconds(run['forecast']['seconds'])}), {_machine.size(spent['memory'])} "
                f"(foretold {_machine.size(run['forecast']['memory'])})"
            )
        lines.append(told + ".")
    return "\n".join(lines)


# ---- the figure ----

LEVELS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# And the other two of these colours, which elsewhere stand for the directions.
ROWS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def check_figure() -> None:
    """ImportError, before any work, where Matplotlib is missing."""
    try:
        from .. import plot  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; or do without the figure: --no-figure") from None


def figure(report: Report) -> bytes | None:
    """Errors over training, a panel for each problem: PNG. None where there is nothing to draw."""
    from ..plot import _Figure

    cases = list(dict.fromkeys(entry["case"] for entry in report["results"]))
    drawn = [c for c in cases if any(_curves(e) for e in report["results"] if e["case"] == c)]
    if not drawn:
        return None
    width = max(4.4 * len(drawn), 6.6)
    picture = _Figure(figsize=(width, 4.4), layout="constrained")
    axes = picture.subplots(1, len(drawn), squeeze=False)[0]
    named: dict[str, Any] = {}
    for ax, case in zip(axes, drawn, strict=True):
        _panel(ax, case, report)
        lines, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, lines, strict=True))
    for ax, case in zip(axes, drawn, strict=True):
        if ax is axes[0] or isinstance(report["axis"], dict):
            ax.set_ylabel(_of_case(report["axis"], case))
    picture.legend(
        named.values(),
        named,
        loc="outside lower center",
        ncols=round(width / 2.2),  # inches, for a name of some 25 letters
        frameon=False,
        fontsize="x-small",
        handlelength=3.5,
    )
    note = "" if report["budget"] == "full" else f" ({report['budget']} budget: not the protocol)"
    title = report.get("title", f"dsb reproduce {report['experiment']}")  # of files without one
    picture.suptitle(f"{title}{note}", fontsize="medium")
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _curves(entry: Entry) -> dict[str, np.ndarray[Any, Any]]:
    """Curves of an entry by name, [seeds, points], of the seeds that have as many points as most."""
    found: dict[str, list[list[float]]] = {}
    for one in entry["seeds"]:
        for name, values in one.get("curve", {}).items():
            found.setdefault(name, []).append(values)
    return {
        name: np.array([one for one in many if len(one) == max(map(len, many))])
        for name, many in found.items()
    }


def _panel(ax: Any, case: str, report: Report) -> None:
    from ..plot import BACKWARD, FORWARD, LINES

    entries = [entry for entry in report["results"] if entry["case"] == case]
    curves = [_curves(entry) for entry in entries]
    colours = {"backward": BACKWARD, "forward": FORWARD}
    by_row = any("" in told for told in curves)  # one line each, so that colours are free for rows
    styles = ("-", "--", ":", "-.")
    for number, (entry, told) in enumerate(zip(entries, curves, strict=True)):
        style = styles[number // len(ROWS) if by_row else number % len(styles)]
        for name, values in told.items():
            colour = ROWS[number % len(ROWS)] if by_row else colours.get(name, LINES)
            at = np.arange(1, values.shape[1] + 1)
            label = f"{entry['row']}, {name}" if name else entry["row"]
            size = 2.5 if len(at) > 1 else 5.0  # a point without a line
            ax.plot(at, values.mean(axis=0), style, color=colour, label=label, marker="o", ms=size)
            if len(values) > 1:
                ax.fill_between(
                    at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0
                )
    # A level beside such lines is one of what they show.
    like = [one for one, told in zip(entries, curves, strict=True) if not by_row or "" in told]
    levels = cycle((LINES, "#404040") if by_row else LEVELS)
    for (label, level), colour in zip(_levels(report, like).items(), levels, strict=False):
        ax.axhline(level, color=colour, lw=1, label=label)
    ax.set(xlabel="IPF iteration", title=case, yscale="log")
    ax.xaxis.get_major_locator().set_params(integer=True)


def _of_case(told: Any, case: str) -> Any:
    """What is told of a case, or of all of them."""
    return told[case] if isinstance(told, dict) else told


def _levels(report: Report, entries: Sequence[Entry]) -> dict[str, float]:
    """Horizontal lines: whatever the experiment marks, and the published figures of the case."""
    found: dict[str, float] = {}
    columns = {column["key"]: Column(**column) for column in report["columns"]}
    for key in _of_case(report.get("levels", ()), entries[0]["case"]):
        column = columns[key]
        means: dict[str, float] = {}
        for entry in entries:
            if values := column.over(entry) + list(entry["expected"].get(key, [])):
                means[entry["row"]] = column.scale * float(np.mean(values))
        if len(set(means.values())) == 1:
            found[column.head] = next(iter(means.values()))
        else:  # settings may change what is known, too
            found |= {f"{column.head}, {row}": mean for row, mean in means.items()}
    for told in report["published"] if report["published in figure"] else ():
        if entries[0]["case"] in told["values"]:
            found[told["head"] or told["method"]] = told["values"][entries[0]["case"]]
    return found
