"""Published experiments, run again: our figure, the published one and the floor side by side.

`dsb reproduce gaussian --dim 50 --seeds 3` on the command line is

    report = dsb.reproduce.run("gaussian", dims=[50], seeds=3)

in Python. Settings stand in one table, ROWS, in the module of each experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from .._check import choice, shown
from . import _machine
from ._study import Options, Outcome, Reproduction, load, study

__all__ = ["NAMES", "again", "experiment", "load", "run"]

_CLASSES = {
    "gaussian": "GaussianExperiment",
    "table2": "Table2",
    "mixtures": "Mixtures",
    "singlecell": "SingleCell",
}
NAMES = tuple(_CLASSES)


def experiment(name: str) -> type[Reproduction]:
    """The class of an experiment, by name."""
    found = choice("name", name, NAMES)
    made: type[Reproduction] = getattr(import_module(f".{found}", __name__), _CLASSES[found])
    return made


def run(
    name: str,
    *,
    seeds: int | None = None,
    rows: Iterable[str] = (),
    quick: bool = False,
    budget: dict[str, Any] | None = None,
    out: str | Path | None = None,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    figure: bool = True,
    command: str = "",
    say: Callable[[str], object] = print,
    **cases: Any,
) -> dict[str, Any]:
    """Runs an experiment: says what it will cost, trains, and writes table, figure and JSON.

    Parameters
    ----------
    name : {"gaussian", "table2", "mixtures", "singlecell"}
    seeds : int, optional
        Seeds 0 .. seeds - 1. Default: the protocol's number; 1 where `quick`.
    rows : iterable of str
        Settings by name. Default: all.
    quick : bool
        A budget of about a minute, to see it work: its figures are not those of the protocol, and its
        results say so.
    budget : dict, optional
        Settings to change, such as {"training": {"iterations": 2}}; the results say so.
    out : path-like, optional
        Folder. Default: reproduce-output/NAME.
    threads : int, optional
        Of the core, for this run; no figure depends on it.
    resume, overwrite : bool
        Whether results that are there are gone on with, or replaced. Otherwise they are an error.
    figure : bool
        Whether to draw (needs Matplotlib).
    command : str
        What the results say made them.
    say : callable
        Is given the lines to print.
    **cases
        Which problems: dims= (gaussian, mixtures), sets= (table2), eps= (mixtures), data=, days=,
        dim= (singlecell).

    Returns
    -------
    dict
        What was written as JSON: every setting, seed, value, and where it ran.

    Raises
    ------
    ImportError
        A package is missing; the message names the command that installs it.
    FileExistsError
        There are results already, and neither `resume` nor `overwrite` says what to do with them.
    KeyboardInterrupt
        Ctrl-C; finished seeds are written.
    ValueError, TypeError, FileNotFoundError
        An argument is out of its range, or data are missing.
    """
    made = experiment(name)
    told: dict[str, Any] = {"rows": rows, "quick": quick, "budget": budget}
    try:
        chosen = made(**cases, **told)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise TypeError(f"{name}: has no such cases: {shown(sorted(cases))}") from None
        raise
    folder = Path("reproduce-output") / name if out is None else Path(out)
    many = (1 if quick else made.seeds) if seeds is None else seeds
    with _machine.threads(threads):
        return study(chosen, Options(folder, many, resume, overwrite, figure, command, say))


def again(report: dict[str, Any] | str | Path, case: str, row: str, seed: int) -> Outcome:
    """One seed of a report, run again from the settings that it holds: the same values, bit for bit.

    That is, with the same build and instruction set. The report itself is not changed.
    """
    told = report if isinstance(report, dict) else load(report)
    for entry in told["results"]:
        if (entry["case"], entry["row"]) == (case, row):
            return experiment(told["experiment"]).run(entry["settings"], seed)
    have = ", ".join(f"({one['case']!r}, {one['row']!r})" for one in told["results"])
    raise ValueError(f"case, row: expected one of {have}, got ({case!r}, {row!r})")
