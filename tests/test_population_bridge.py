"""Bridge targets with perfect nets, against chains written out in full, and what is said of them."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_exact import REFERENCES, STEPS, UNEQUAL, gaussian, problem, whole_chain

import dsb
from dsb import OU, Brownian, Gaussian, Schedule
from dsb.exact import GaussianBridge, GaussianIPF, PopulationDSB

DIRECTIONS = ("backward", "forward")
COVARIANCES = ("reference", "scalar", "diagonal", "full")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def line(seed, steps, reference):
    rng = np.random.default_rng(seed)
    return gaussian(rng, 1), gaussian(rng, 1), Schedule(steps), reference


PROBLEMS = {name: problem(name, 5) for name in REFERENCES} | {
    "line": line(1, STEPS, Brownian()),
    "line, ou": line(3, [0.05, 0.3, 0.6, 0.1], OU(0.4, 0.7)),
}
FORGETS = line(4, [0.05, 0.7, 0.1], OU(0.4, 0.7))  # a step with g = v leaves nothing of the past


# ---- the mixture of pinned references as one Gaussian ----


def ends_of_chain(start, steps):
    """Mean and covariance of (first, last) of a chain, by propagation."""
    mean, cov, through = start.mean, start.cov, np.eye(start.dim)
    for A, c, Q in steps:
        mean, cov, through = A @ mean + c, A @ cov @ A.T + Q, A @ through
    cross = start.cov @ through.T
    return np.concatenate([start.mean, mean]), np.block([[start.cov, cross], [cross.T, cov]])


def swapped(mean, cov):
    d = len(mean) // 2
    order = np.r_[d : 2 * d, :d]
    return mean[order], cov[np.ix_(order, order)]


def pinned_mixture(ends_mean, ends_cov, schedule, reference):
    """Mean and covariance of (X_0, .., X_N): the reference's law given its ends, with these ends."""
    d = len(ends_mean) // 2
    mean, cov = whole_chain(Gaussian(np.ones(d), 1.3), schedule.steps, reference)
    at = np.r_[:d, len(mean) - d : len(mean)]
    gain = cov[:, at] @ np.linalg.inv(cov[np.ix_(at, at)])
    moved = mean + gain @ (ends_mean - mean[at])
    return moved, cov + gain @ (ends_cov - cov[np.ix_(at, at)]) @ gain.T


def read_off(mean, cov, k, direction, d):
    """(A, c, Q) of the law of one state given the one beside it."""
    new, old = slice(k * d, (k + 1) * d), slice((k + 1) * d, (k + 2) * d)
    if direction == "forward":
        new, old = old, new
    A = cov[new, old] @ np.linalg.inv(cov[old, old])
    return A, mean[new] - A @ mean[old], cov[new, new] - A @ cov[old, new]


def noise(covariance, Q, g):
    d = len(Q)
    return {
        "reference": 2 * g * np.eye(d),
        "scalar": np.trace(Q) / d * np.eye(d),
        "diagonal": np.diag(np.diag(Q)),
        "full": Q,
    }[covariance]


def brute_force(given, covariance, first_coupling, n):
    """Maps of both directions after n iterations, from (N + 1) d x (N + 1) d covariances."""
    source, prior, schedule, reference = given
    d, zero = source.dim, np.zeros((source.dim, source.dim))
    ends = (
        np.concatenate([source.mean, prior.mean]),
        np.block([[source.cov, zero], [zero, prior.cov]]),
    )
    if first_coupling == "reference":
        mean, cov = whole_chain(source, schedule.steps, reference)
        at = np.r_[:d, len(mean) - d : len(mean)]
        ends = mean[at], cov[np.ix_(at, at)]
    learnt = {}
    for number in range(2 * n):
        direction = DIRECTIONS[number % 2]
        mixture = pinned_mixture(*ends, schedule, reference)
        steps = [read_off(*mixture, k, direction, d) for k in range(schedule.N)]
        learnt[direction] = steps = [
            (A, c, noise(covariance, Q, g))
            for (A, c, Q), g in zip(steps, schedule.steps, strict=True)
        ]
        if direction == "backward":
            ends = swapped(*ends_of_chain(prior, steps[::-1]))
        else:
            ends = ends_of_chain(source, steps)
    return learnt


@pytest.mark.parametrize("first", ["reference", "independent"])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("given", [*PROBLEMS.values(), FORGETS], ids=[*PROBLEMS, "forgets"])
def test_bridge_targets_are_conditionals_of_the_whole_mixture(given, covariance, first):
    population = PopulationDSB(*given, "bridge", covariance, first)
    for n in (1, 2, 4):
        expected, found = brute_force(given, covariance, first, n), population.iterate(n)
        for direction in DIRECTIONS:
            maps = found.process(direction).maps
            for got, exact in zip(maps, expected[direction], strict=True):
                for one, other in zip(got, exact, strict=True):
                    np.testing.assert_allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_first_half_bridge_learns_what_simplified_learns(name, covariance):
    """The reference pinned at its own ends is the reference."""
    given = PROBLEMS[name]
    pinned, plain = (
        PopulationDSB(*given, objective, covariance).iterate(1).process().maps
        for objective in ("bridge", "simplified")
    )
    for one, other in zip(pinned, plain, strict=True):
        for got, exact in zip(one, other, strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-12)


# ---- what is exact ----


@pytest.mark.parametrize("objective", ["simplified", "bridge"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_full_covariance_is_exact_ipf(name, objective):
    """Ends in every iteration, and each step as the process of IPF has it."""
    given = PROBLEMS[name]
    ipf, population = GaussianIPF(*given), PopulationDSB(*given, objective, "full")
    for n in (1, 2, 3, 10, 40):
        for direction in DIRECTIONS:
            found, exact = population.iterate(n).process(direction), ipf.process(n, direction)
            np.testing.assert_allclose(found.coupling().cov, exact.coupling().cov, atol=1e-12)
            np.testing.assert_allclose(found.coupling().mean, exact.coupling().mean, atol=1e-12)
            for k, step in enumerate(found.maps):
                for got, right in zip(step, exact.step(k, direction), strict=True):
                    np.testing.assert_allclose(got, right, atol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_independent_ends_keep_both_marginals(name):
    given = PROBLEMS[name]
    population = PopulationDSB(*given, "bridge", "full", "independent")
    exact = population.limit().coupling().cov
    gaps = []
    for n in (1, 2, 60):
        iterate = population.iterate(n)
        for direction, end in zip(DIRECTIONS, given[:2], strict=True):
            chain = iterate.process(direction)
            np.testing.assert_allclose(chain.end.mean, end.mean, atol=1e-12)
            np.testing.assert_allclose(chain.end.cov, end.cov, atol=1e-12)
            gaps.append(np.abs(chain.coupling().cov - exact).max())
    assert gaps[0] > gaps[2] > 1e-6  # an iteration comes nearer, and does not yet arrive
    assert gaps[-1] < 1e-9


def test_one_dimension_has_one_covariance():
    given = PROBLEMS["line, ou"]
    for objective in ("dsb", "simplified", "bridge"):
        found = [
            PopulationDSB(*given, objective, covariance).iterate(3).process().coupling().cov
            for covariance in COVARIANCES
        ]
        np.testing.assert_allclose(found[1], found[3], rtol=1e-14)
        np.testing.assert_array_equal(found[2], found[3])
        assert np.abs(found[0] - found[3]).max() > 1e-3


def test_a_reference_that_forgets():
    """A underflows to 0, as do most of the gains; nothing is divided by it."""
    source, prior = Gaussian([0.5], 0.2), Gaussian([-1.0], 3.0)
    population = PopulationDSB(
        source, prior, Schedule.constant(800, 0.1), OU(0.3, 0.15), "bridge", "full"
    )
    chain = population.iterate(2).process("backward")
    np.testing.assert_allclose([chain.end.mean[0], chain.end.cov[0, 0]], [0.5, 0.2], rtol=1e-12)
    assert chain.coupling().cross[0, 0] == 0.0


# ---- what is said ----


def errors(given, population, n):
    """Of the end's covariance and of the coupling, in per cent, the larger of both directions."""
    exact = GaussianBridge(*given)
    found = []
    for direction, end in zip(DIRECTIONS, given[:2], strict=True):
        chain = population.iterate(n).process(direction)
        pairs = (chain.end.cov, end.cov), (chain.coupling().cross, exact.coupling().cross)
        found.append([100 * np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])
    return np.max(found, axis=0)


def unequal(N=20):
    return (*UNEQUAL, Schedule.constant(N, 0.5 / N), Brownian())


def turned():
    """Three dimensions, covariances that do not commute, OU, uneven steps."""
    first = [[1.0, 0.6, 0.2], [0.6, 0.8, 0.0], [0.2, 0.0, 0.3]]
    second = [[0.5, -0.3, 0.0], [-0.3, 1.5, 0.6], [0.0, 0.6, 2.0]]
    return (
        *(Gaussian([0.5, -0.5, 0.0], first), Gaussian([-0.2, 0.0, 0.4], second)),
        Schedule(np.repeat([0.01, 0.02, 0.03, 0.04], 5)),
        OU([0.0, 0.3, -0.3], 2.0),
    )


SAID = re.findall(
    r"^ +(dsb|simplified|bridge) +(reference|full) +([\d., ]+) % +([\d., ]+) %$",
    PopulationDSB.__doc__,
    re.M,
)


@pytest.mark.parametrize(("objective", "covariance", "variance", "cross"), SAID)
def test_docstring(objective, covariance, variance, cross):
    given = unequal()
    population = PopulationDSB(*given, objective, covariance)
    told = np.array([[float(word) for word in text.split(",")] for text in (variance, cross)])
    found = np.transpose([errors(given, population, n) for n in (5, 40, 1000)])
    np.testing.assert_allclose(found, told, atol=0.0501)


def test_docstring_is_read():
    assert len(SAID) == 4 == PopulationDSB.__doc__.count(" %\n")


ROW = r"^\| (dsb|simplified|bridge) \| (\w+) \| (\w+) \| (.*) \|$"
TABLES = re.split(r"^Three dimensions", PAGE.read_text(), flags=re.M) if PAGE.exists() else ["", ""]
ROWS = [(table, *row) for table in (0, 1) for row in re.findall(ROW, TABLES[table], re.M)]


@pytest.mark.skipif(not PAGE.exists(), reason="docs are not here: these tests run from a wheel")
def test_page_has_every_choice():
    choices = [
        (objective, covariance, first)
        for objective in ("dsb", "simplified", "bridge")
        for covariance in COVARIANCES
        for first in ("reference", "independent")
        if objective == "bridge" or first == "reference"
    ]
    assert [row[1:4] for row in ROWS if row[0] == 1] == choices
    assert [row[1:4] for row in ROWS if row[0] == 0] == [
        choice for choice in choices if choice[1] in ("reference", "full")
    ]


@pytest.mark.parametrize(("table", "objective", "covariance", "first", "told"), ROWS)
def test_page(table, objective, covariance, first, told):
    given = (unequal, turned)[table]()
    population = PopulationDSB(*given, objective, covariance, first)
    expected = [[float(word) for word in cell.split("/")] for cell in told.split("|")]
    found = [errors(given, population, n) for n in (1, 2, 5, 40)]
    np.testing.assert_allclose(found, expected, atol=0.0501)


def test_page_on_steps():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", TABLES[1], re.M)
    assert len(rows) == 4 or not PAGE.exists()
    columns = [
        ("dsb", "reference"),
        ("simplified", "reference"),
        ("bridge", "reference"),
        ("bridge", "full"),
    ]
    for N, told in rows[:3]:
        given = unequal(int(N))
        expected = [[float(word) for word in cell.split("/")] for cell in told.split("|")]
        found = [errors(given, PopulationDSB(*given, *column), 40) for column in columns]
        np.testing.assert_allclose(found, expected, atol=0.0501)


def test_bridge_stands_still_where_simplified_drifts():
    given = turned()
    for covariance in ("reference", "scalar", "diagonal"):
        pinned, plain = (
            np.array(
                [errors(given, PopulationDSB(*given, objective, covariance), n) for n in (20, 80)]
            )
            for objective in ("bridge", "simplified")
        )
        assert np.abs(pinned[1] - pinned[0]).max() < 1e-3
        assert 1 < pinned[1, 1] < 4
        assert plain[1, 1] > plain[0, 1] + 5 > 50


def test_first_coupling_does_not_matter_in_the_end():
    given = turned()
    for covariance in COVARIANCES:
        found = [
            PopulationDSB(*given, "bridge", covariance, first).iterate(60).process().coupling()
            for first in ("reference", "independent")
        ]
        np.testing.assert_allclose(found[0].cov, found[1].cov, atol=1e-9)
        np.testing.assert_allclose(found[0].mean[:3], given[0].mean, atol=1e-9)  # exact means


def test_error_is_of_the_order_of_the_steps():
    found = []
    for N in (5, 20, 80):
        given = unequal(N)
        found.append(errors(given, PopulationDSB(*given, "bridge"), 40))
        if N == 5:
            np.testing.assert_allclose(found[0][0], 64.8, atol=0.05)
            plain = errors(given, PopulationDSB(*given, "simplified"), 40)
            np.testing.assert_allclose(plain[0], 58.7, atol=0.05)
    assert (np.abs(found[1] / found[2] - 4) < 0.6).all()


def test_divergence_is_told():
    population = PopulationDSB(*turned(), "dsb", "full")
    before = population.iterate(40).process().coupling().cov
    with pytest.raises(FloatingPointError, match=r"'dsb', 'full', .* diverges: iteration 400 is"):
        population.iterate(400)
    np.testing.assert_array_equal(population.iterate(40).process().coupling().cov, before)
    worst = errors(turned(), PopulationDSB(*turned(), "dsb", "diagonal"), 300)
    assert worst.min() > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "bridges"}, "objective: .* did you mean 'bridge'"),
        ({"covariance": "posterior"}, "covariance: expected one of .*'full'"),
        ({"objective": "bridge", "first_coupling": "pair"}, "first_coupling: expected one of"),
        (
            {"objective": "simplified", "first_coupling": "independent"},
            "first_coupling: expected 'reference' for objective 'simplified', .* got 'independent'",
        ),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PopulationDSB(*unequal(), **arguments)


def test_repr_names_what_it_computes():
    text = repr(dsb.exact.PopulationDSB(*unequal(), "bridge", "scalar", "independent"))
    assert text.endswith("'bridge', 'scalar', 'independent')")
