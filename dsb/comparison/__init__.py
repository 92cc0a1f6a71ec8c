"""Several methods on one problem, at equal cost: `dsb.compare`, and `dsb compare` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .._build import Net
from .._check import integer
from ..reference import OU, Brownian
from ..reproduce import _machine
from ..reproduce._study import Options, study
from ..schedule import Schedule
from ._budget import Budget
from ._experiment import Comparison
from ._methods import GROUPS, METHODS, methods_of
from ._problems import PROBLEMS, problems_of

__all__ = ["GROUPS", "METHODS", "PROBLEMS", "compare"]

BUDGET, IPF = "60 s", 5
QUICK_BUDGET, QUICK_IPF = "2000 steps", 2
FOLDER = "compare-output"


def compare(
    problem: Any,
    methods: str | Iterable[str] | Mapping[str, Mapping[str, Any]] = "targets",
    budget: str | None = None,
    *,
    schedule: Schedule | None = None,
    reference: OU | Brownian | None = None,
    net: Net | None = None,
    ipf: int | None = None,
    seeds: int | None = None,
    quick: bool = False,
    out: str | Path | None = None,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    figure: bool = True,
    command: str = "",
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    r"""Trains several methods on one problem with the same nets, seeds and budget, and measures them.

    Nets, initial weights, training points, evaluation points and noise of a seed are the same for all
    methods. A method has L iterations, 2 L half-bridges of S gradient steps each; of a budget of M steps
    S = M / (2 L), and of a budget in seconds S follows from short runs of that very method, the estimate of
    a learned covariance included. Every error is the mean of the backward and the forward process, where
    both have one, beside its floor: what exact draws, as many as were measured, are off by.

    Parameters
    ----------
    problem : str, sequence of str, GaussianBridge, MixtureBridge, or pair (source, prior)
        Names of `dsb.comparison.PROBLEMS`: "gaussian-5", "gaussian-20", "gaussian-50", "gaussian-unequal",
        "moons", "scurve", "swissroll-5", "mixture-2", "mixture-16"; or a problem of `dsb.exact`; or both
        ends, each samples (n, d) or (n, c, h, w), or a `Gaussian`, or, of the prior, "gaussian". Of samples
        half of the rows are trained on, and the other half is what generated points are compared with.
    methods : str, iterable of str, or mapping of str to mapping
        Names of `dsb.comparison.METHODS` or of groups of them: "targets" (objectives of the regression,
        with and without a learned covariance), "bridge" (those of bridge targets), "training" (one option of
        `Bridge` at a time against the default). Or keyword arguments of `Bridge` by a name of one's own,
        {"plain": {}, "slow": {"learning_rate": 1e-4}}. "first-iteration" is a score-based model, the backward
        half-bridge of the first iteration with the whole budget; the backward process alone is measured.
    budget : str, optional
        "90 s", "2 min", "1 h": seconds of training of one method and seed, evaluation apart; or
        "40000 steps": gradient steps of all half-bridges together. Default: "60 s".
    schedule, reference : optional
        Of a pair of ends, as `Bridge` takes them. Problems have their own.
    net : MLP, UNet, nn.Graph or list of ops, optional
        Architecture for all methods. Default: the problem's; of a problem that is given, `MLP()` or `UNet()`.
    ipf : int, optional
        Iterations L. Default: 5.
    seeds : int, optional
        Seeds 0 .. seeds - 1. Default: 3.
    quick : bool
        2,000 steps, 2 iterations and 1 seed where nothing else is said, to see it work.
    out : path-like, optional
        Folder of table, figure and JSON. Default: compare-output.
    threads : int, optional
        Of the core, for this run. What a budget in steps gives does not depend on it.
    resume, overwrite : bool
        Whether results that are there are gone on with, with the steps that they were made with, or
        replaced. Otherwise they are an error.
    figure : bool
        Whether to draw (needs Matplotlib).
    command : str
        What the results say made them.
    say : callable
        Is given the lines to print.

    Returns
    -------
    dict
        What was written as JSON: every setting, seed, error, number of net evaluations, second, and where it
        ran. "notes" names the methods whose training missed the time asked for by more than a tenth.

    Raises
    ------
    ImportError
        Matplotlib is missing; the message names the command that installs it.
    FileExistsError
        There are results already, and neither `resume` nor `overwrite` says what to do with them.
    KeyboardInterrupt
        Ctrl-C; finished seeds are written.
    ValueError, TypeError
        An argument is out of its range, an unknown name, or a budget that does not suffice for a step in
        every half-bridge.

    Notes
    -----
    Equal seeds and budgets in steps give equal figures, to the bit. A budget in seconds is turned into steps
    once, for all seeds; the results hold these steps.

    Examples
    --------
    >>> found = dsb.compare("gaussian-unequal", ("dsb", "bridge"), budget="20000 steps")
    >>> found = dsb.compare((x, y), {"plain": {}, "pairs": {"antithetic": True}}, budget="2 min")
    """
    told = budget if budget is not None else QUICK_BUDGET if quick else BUDGET
    iterations = ipf if ipf is not None else QUICK_IPF if quick else IPF
    comparison = Comparison(
        problems_of(problem, schedule, reference),
        methods_of(methods),
        Budget.of(told),
        integer("ipf", iterations, 1, 100_000),
        net,
        quick,
        say,
    )
    folder = Path(FOLDER) if out is None else Path(out)
    if resume:
        comparison.adopt(folder)
    many = (1 if quick else comparison.seeds) if seeds is None else seeds
    with _machine.threads(threads):
        return study(comparison, Options(folder, many, resume, overwrite, figure, command, say))
