"""The command line: dsb info, dsb reproduce, dsb compare."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class _Cases(NamedTuple):
    """An option that chooses problems of an experiment."""

    option: str
    keyword: str  # of the experiment
    settings: dict[str, Any]  # of add_argument


def _experiments() -> dict[str, tuple[str, list[_Cases]]]:
    """What `dsb reproduce` offers: a line about it, and its own options, whose defaults the experiment
    has."""
    dims = {"type": int, "nargs": "+", "metavar": "D"}
    return {
        "gaussian": (
            "Gaussians in d = 5, 20, 50 against the exact bridge (arXiv:2303.16852)",
            [_Cases("--dim", "dims", dims)],
        ),
        "table2": (
            "2-D sets, W2 to fresh samples (arXiv:2303.16852, table 2)",
            [_Cases("--set", "sets", {"nargs": "+", "metavar": "SET"})],
        ),
        "mixtures": (
            "mixtures whose bridge is known, cBW2-UVP (arXiv:2306.10161, arXiv:2310.01174)",
            [
                _Cases("--dim", "dims", dims),
                _Cases("--eps", "eps", {"type": float, "nargs": "+", "metavar": "E"}),
            ],
        ),
        "singlecell": (
            "three days of single cells, the middle one held out",
            [
                _Cases("--data", "data", {"metavar": "FOLDER"}),
                _Cases("--days", "days", {"metavar": "A,B,C", "nargs": "+"}),
                _Cases("--dim", "dim", {"type": int, "metavar": "D"}),
                _Cases("--scaling", "scaling", {"metavar": "whiten|mean"}),
            ],
        ),
    }


def parser() -> argparse.ArgumentParser:
    """Of the whole command line."""
    from . import __version__

    top = argparse.ArgumentParser(prog="dsb", description="Schrödinger bridges, trained in C.")
    top.add_argument("--version", action="version", version=f"dsb {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="version, instruction sets, threads, memory")
    reproduce = commands.add_parser(
        "reproduce",
        help="published experiments, beside exact answers and floors",
        description="Runs a published experiment: says first what it will cost, ends with a table, a "
        "figure and JSON with every setting. Ctrl-C keeps the finished seeds.",
    )
    names = reproduce.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, (about, cases) in _experiments().items():
        one = names.add_parser(name, help=about, description=about)
        for case in cases:
            one.add_argument(case.option, dest=case.keyword, **case.settings)
        one.add_argument(
            "--row",
            action="append",
            default=[],
            metavar="NAME",
            help="only these settings; repeatable",
        )
        _common(one, "protocol", "a minute's budget; not the protocol", "reproduce-output/NAME")
    _add_compare(commands)
    return top


def _add_compare(commands: Any) -> None:
    """Names are checked by `dsb.compare`, which lists them."""
    one = commands.add_parser(
        "compare",
        help="several methods on one problem, at equal cost",
        description="Trains several methods on a problem with the same nets, seeds and budget: says "
        "first what it will cost, ends with a table, a figure and JSON with every setting. Ctrl-C "
        "keeps the finished seeds.",
    )
    one.add_argument(
        "problem",
        nargs="+",
        metavar="PROBLEM",
        help="gaussian-5, gaussian-20, gaussian-50, gaussian-unequal, moons, scurve, swissroll-5, "
        "mixture-2, mixture-16",
    )
    one.add_argument(
        "--methods",
        nargs="+",
        default=["targets"],
        metavar="NAME",
        help="dsb, simplified, bridge-ipf, bridge-imf (the last three also with +covariance), "
        "first-iteration; targets: all of these (default); bridge: those of bridge targets; "
        "training: one option of Bridge at a time",
    )
    one.add_argument(
        "--budget",
        metavar="B",
        help='training of a method and seed: "90 s", "2 min", "40000 steps" (default "60 s")',
    )
    one.add_argument("--ipf", type=int, metavar="N", help="iterations (default 5)")
    _common(one, "3", "2,000 steps, 2 iterations, 1 seed", "compare-output")


def _common(one: argparse.ArgumentParser, seeds: str, quick: str, out: str) -> None:
    """What every study can be told, with its defaults in words."""
    one.add_argument("--seeds", type=int, metavar="K", help=f"seeds 0 .. K - 1 (default: {seeds})")
    one.add_argument("--quick", action="store_true", help=f"{quick}, and says so")
    one.add_argument("--out", type=Path, metavar="DIR", help=f"folder of results (default {out})")
    one.add_argument("--threads", type=int, metavar="T", help="equal steps give equal figures")
    old = one.add_mutually_exclusive_group()
    old.add_argument("--resume", action="store_true", help="keep the seeds that are there already")
    old.add_argument("--overwrite", action="store_true", help="replace results that are there")
    one.add_argument("--no-figure", action="store_true", help="do without Matplotlib")


def _info(given: argparse.Namespace, command: str) -> None:
    from ._info import info

    print(info())


def _reproduce(given: argparse.Namespace, command: str) -> None:
    from . import reproduce

    name = given.experiment
    asked = {case.keyword: getattr(given, case.keyword) for case in _experiments()[name][1]}
    cases = {keyword: value for keyword, value in asked.items() if value is not None}
    reproduce.run(
        name,
        seeds=given.seeds,
        rows=given.row,
        quick=given.quick,
        out=given.out,
        threads=given.threads,
        resume=given.resume,
        overwrite=given.overwrite,
        figure=not given.no_figure,
        command=command,
        **cases,
    )


def _compare(given: argparse.Namespace, command: str) -> None:
    from .comparison import compare

    compare(
        given.problem,
        given.methods,
        given.budget,
        ipf=given.ipf,
        seeds=given.seeds,
        quick=given.quick,
        out=given.out,
        threads=given.threads,
        resume=given.resume,
        overwrite=given.overwrite,
        figure=not given.no_figure,
        command=command,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, str], None]] = {
    "info": _info,
    "reproduce": _reproduce,
    "compare": _compare,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser().parse_args(words)
    try:
        COMMANDS[given.command](given, shlex.join(["dsb", *words]))
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        print(f"dsb {given.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; seeds that were done are kept" if given.command != "info" else ""
        print(f"dsb {given.command}: stopped{kept}", file=sys.stderr)
        return 130
    return 0
