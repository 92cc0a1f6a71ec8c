"""Objective "bridge": the law of its training pairs, what it learns, and what comes with it."""

from dataclasses import dataclass

import numpy as np
import oracles
import pytest
from conftest import assert_equal_bits, planes, small

import dsb
from dsb import _core

DIRECTIONS = ("backward", "forward")
G = np.array([0.05, 0.4, 0.1, 0.02, 0.25])
CENTRE = np.array([0.3, -0.5])
ENDS = {  # mean, factor
    "source": (np.array([0.5, -1.0]), np.array([[0.8, 0.0], [0.3, 0.6]])),
    "prior": (np.array([-0.4, 0.7]), np.array([[1.5, 0.0], [-0.5, 1.0]])),
}
RNG = np.random.default_rng(3)
FIRST = RNG.normal(size=(200, 2)).astype(np.float32)
SECOND = (FIRST @ [[1.2, 0.5], [-0.4, 0.8]] + 0.3 * RNG.normal(size=(200, 2)) + 1).astype(
    np.float32
)
ROWS = {"source": FIRST, "prior": SECOND}
COUPLINGS = ("reference", "independent", "pairs")


@dataclass
class Joint:
    """Mean and covariance of (X_0, X_N), d numbers each."""

    mean: np.ndarray
    cov: np.ndarray

    @classmethod
    def of(cls, coupling, precision, g=G, ends=ENDS, centre=CENTRE):
        """Of the first coupling."""
        (m0, r0), (m1, r1) = ends["source"], ends["prior"]
        d = len(m0)
        if coupling == "pairs":
            both = np.concatenate([ROWS["source"], ROWS["prior"]], axis=1).astype(np.float64)
            return cls(both.mean(axis=0), np.cov(both.T, bias=True))
        if coupling == "independent":
            zero = np.zeros((d, d))
            return cls(np.concatenate([m0, m1]), np.block([[r0 @ r0.T, zero], [zero, r1 @ r1.T]]))
        keep = [1.0 - step * precision for step in g]
        maps = [(a * np.eye(d), (1.0 - a) * centre) for a in keep]
        return cls.along(maps, m0, r0 @ r0.T, g, True)

    @classmethod
    def along(cls, maps, mean, cov, g, forward):
        """Of a chain x -> A x + c with noise 2 g, in the order in which it runs."""
        end, end_cov, cross = oracles.end_of(maps, mean, cov, g)
        near, far = (mean, cov), (end, end_cov)
        if not forward:
            near, far, cross = far, near, cross.T
        return cls(
            np.concatenate([near[0], far[0]]), np.block([[near[1], cross], [cross.T, far[1]]])
        )


def pinned(g, precision, i, j, k):
    """Of the reference, given X_i and X_k: factors of X_i, X_k and m in the mean of X_j; its variance.

    The chain's covariance given X_i, conditioned on its last state.
    """
    keep = 1.0 - np.asarray(g, np.float64) * precision
    size = k - i + 1
    factor, cov = np.ones(size), np.zeros((size, size))
    for s in range(1, size):
        a = keep[i + s - 1]
        factor[s] = a * factor[s - 1]
        cov[s, :s] = cov[:s, s] = a * cov[s - 1, :s]
        cov[s, s] = a**2 * cov[s - 1, s - 1] + 2.0 * g[i + s - 1]
    at, last = j - i, size - 1
    gain = cov[at, last] / cov[last, last]
    left = factor[at] - gain * factor[last]
    return np.array([left, gain, 1.0 - left - gain]), cov[at, at] - gain * cov[last, at]


def pairs_of(joint, g, precision, centre, k, backward):
    """Mean and covariance of (state that the net reads, mean to put out) of step k."""
    n, d = len(g), len(centre)
    start, end = np.eye(2 * d + d)[:d], np.eye(2 * d + d)[d : 2 * d]  # of (X_0, X_N, Z)
    ends, variance = pinned(g, precision, 0, k + 1 if backward else k, n)
    state = ends[0] * start + ends[1] * end + np.sqrt(max(variance, 0.0)) * np.eye(3 * d)[2 * d :]
    if backward:
        near, _ = pinned(g, precision, 0, k, k + 1)
        mean, constant = near[0] * start + near[1] * state, near[1] * ends[2] + near[2]
    else:
        near, _ = pinned(g, precision, k, k + 1, n)
        mean, constant = near[0] * state + near[1] * end, near[0] * ends[2] + near[2]
    rows = np.concatenate([state, mean])
    cov = np.zeros((3 * d, 3 * d))
    cov[: 2 * d, : 2 * d], cov[2 * d :, 2 * d :] = joint.cov, np.eye(d)
    told = rows[:, : 2 * d] @ joint.mean + np.concatenate([ends[2] * centre, constant * centre])
    return told, rows @ cov @ rows.T


# ---- the law of the training pairs ----

LINEAR = [{"op": "input", "name": "x", "width": 2}, {"op": "input", "name": "t"},
          {"op": "linear", "name": "out", "inputs": ["x"], "width": 2}]  # fmt: skip


def frozen(coupling, weights, precision, seed=0, **changed):
    """A core bridge whose nets are W x + b and stay so."""
    given = {}
    for end, (mean, factor) in ENDS.items():
        given[end] = ROWS[end] if coupling == "pairs" else None
        if coupling != "pairs":
            given[f"{end}_mean"], given[f"{end}_factor"] = np.float32(mean), np.float32(factor)
    bridge = _core.Bridge(
        _core.Net(LINEAR),
        **given,
        reference_mean=np.float32(CENTRE),
        reference_precision=precision,
        steps=G,
        objective="bridge",
        first_coupling=coupling,
        learning_rate=1e-20,
        batch=4000,
        refresh=1,
        seed=seed,
        **changed,
    )
    for direction, (w, b) in zip(DIRECTIONS, weights, strict=True):
        plane = bridge.get_plane(direction, "theta")
        shape = oracles.Net64(LINEAR)
        shape.get(plane, "out.weight")[...], shape.get(plane, "out.bias")[...] = w, b
        bridge.set_plane(direction, "theta", plane)
    return bridge


def expected_loss(joint, precision, net, backward):
    """E of the weighted square, output "drift"."""
    (w, b), total = net, 0.0
    for k, g in enumerate(G):
        mean, cov = pairs_of(joint, G, precision, CENTRE, k, backward)
        rows = np.concatenate([w + np.eye(2) / g, -np.eye(2) / g], axis=1)  # net - (mean - x) / g
        total += g / G.mean() * (np.trace(rows @ cov @ rows.T) + ((rows @ mean + b) ** 2).sum())
    return total / len(G) / 2


def learnt_from(weights, half_bridge, precision):
    """The coupling of what the other direction's frozen net simulates."""
    backward = half_bridge % 2 == 0
    w, b = weights[1 if backward else 0]
    order = G if backward else G[::-1]
    maps = [(np.eye(2) + g * w, g * b) for g in order]
    mean, factor = ENDS["source" if backward else "prior"]
    return Joint.along(maps, mean, factor @ factor.T, order, backward)


@pytest.mark.parametrize("precision", [0.0, 0.8])
@pytest.mark.parametrize(
    ("coupling", "changed"),
    [
        ("reference", {}),
        ("reference", {"closed_form": False}),
        ("reference", {"closed_form": False, "antithetic": True}),
        ("independent", {}),
        ("independent", {"antithetic": True}),
        ("pairs", {}),
    ],
)
def test_moments_of_the_pairs(coupling, changed, precision):
    """The loss of frozen linear nets is a quadratic form of states and targets: within its own error."""
    rng = np.random.default_rng(6)
    for seed in range(3):
        weights = [(rng.normal(size=(2, 2)).astype(np.float32) - np.eye(2), rng.normal(size=2))
                   for _ in DIRECTIONS]  # fmt: skip
        bridge = frozen(coupling, weights, precision, seed, **changed)
        for half_bridge in range(3 if coupling != "pairs" else 2):
            bridge.begin(30)
            while bridge.steps:
                bridge.run(30, 100.0)
            loss = bridge.log()[0].astype(np.float64)
            begins = half_bridge < (2 if coupling == "pairs" else 1)
            joint = (
                Joint.of(coupling, precision)
                if begins
                else learnt_from(weights, half_bridge, precision)
            )
            trained = half_bridge % 2
            exact = expected_loss(joint, precision, weights[trained], trained == 0)
            error = loss.std() / np.sqrt(len(loss))
            assert error < 0.02 * exact
            assert abs(loss.mean() - exact) < 5.0 * error, (seed, half_bridge, loss.mean(), exact)


def test_pinned_draws_are_the_reference_between_its_ends():
    """States of simulated paths, given their ends: regressed, not derived."""
    rng, n, precision = np.random.default_rng(0), 200_000, 0.8
    states = [rng.normal(size=n)]
    for g in G:
        mean = states[-1] + g * precision * (0.3 - states[-1])
        states.append(mean + np.sqrt(2.0 * g) * rng.normal(size=n))
    given = np.stack([states[0], states[-1], np.ones(n)], axis=1)
    for j in range(1, len(G)):
        (left, right, centre), variance = pinned(G, precision, 0, j, len(G))
        found, squares, *_ = np.linalg.lstsq(given, states[j], rcond=None)
        assert np.abs(found - [left, right, 0.3 * centre]).max() < 0.01
        assert abs(squares[0] / n / variance - 1.0) < 0.02


# ---- what is learnt ----

NET = oracles.mlp(1, 16)
LINE = {  # unequal ends
    "source": (np.array([-0.5]), np.array([[0.5]])),
    "prior": (np.array([0.3]), np.array([[1.5]])),
}
BELONG = np.random.default_rng(1).normal(size=(20_000, 2)) @ [[0.5, 0.9], [0.0, 1.2]] + [-0.5, 0.3]


def population(joint, ends, kept, precision, g, centre):
    """Perfect regression on bridge targets for two iterations, of which `kept` half-bridges learn from the
    first coupling: direction, mean, variance and Cov(start, end)."""
    found, learnt = [], joint
    for half_bridge in range(4):
        backward = half_bridge % 2 == 0
        maps = []
        for k in range(len(g)):
            ends_of = joint if half_bridge < kept else learnt
            mean, cov = pairs_of(ends_of, g, precision, centre, k, backward)
            gain = cov[1, 0] / cov[0, 0]
            maps.append((np.array([[gain]]), mean[1:] - gain * mean[:1]))
        run, order = (maps[::-1], g[::-1]) if backward else (maps, g)
        start = ends["prior" if backward else "source"]
        end = oracles.end_of(run, *start, order)
        found.append((DIRECTIONS[half_bridge % 2], np.ravel([np.ravel(part) for part in end])))
        learnt = Joint.along(run, *start, order, not backward)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("precision", [0.0, 0.6])
def test_population(coupling, precision):
    """Mean, variance and coupling after every half-bridge of two iterations, uneven steps."""
    g, centre = np.array([0.05, 0.1, 0.2, 0.1, 0.15]), np.array([0.2])
    if coupling == "pairs":
        joint = Joint(BELONG.mean(axis=0), np.cov(BELONG.T, bias=True))
        ends = {e: (joint.mean[[i]], joint.cov[[i]][:, [i]]) for i, e in enumerate(LINE)}
        given = {end: np.float32(BELONG[:, [i]]) for i, end in enumerate(LINE)}
    else:
        joint = Joint.of(coupling, precision, g, LINE, centre)
        ends = {end: (mean, factor @ factor.T) for end, (mean, factor) in LINE.items()}
        given = {f"{end}_mean": np.float32(LINE[end][0]) for end in LINE} | {"source": None}
        given |= {f"{end}_factor": np.float32(LINE[end][1]) for end in LINE}
    bridge = _core.Bridge(
        _core.Net(NET),
        **given,
        reference_mean=np.float32(centre),
        reference_precision=precision,
        steps=g,
        objective="bridge",
        first_coupling=coupling,
        batch=1024,
        learning_rate=3e-3,
        cosine=True,
    )
    kept = 2 if coupling == "pairs" else 1
    for direction, exact in population(joint, ends, kept, precision, g, centre):
        bridge.begin(2000)
        while bridge.steps:
            bridge.run(2000, 100.0)
        paths = bridge.sample(direction, 7, n=400_000, final_noise=True, paths=True)
        start, end = (paths[:, i, 0].astype(np.float64) for i in (0, -1))
        got = np.array([end.mean(), end.var(), np.cov(start, end)[0, 1]])
        assert np.abs(got - exact).max() < 0.03, (direction, got, exact)


# ---- same bits ----

VARIANTS = {
    "reference": {},
    "simulated": {"closed_form": False, "antithetic": True, "reuse": 2, "ema": 0.9},
    "independent": {"first_coupling": "independent", "antithetic": True, "ema": 0.9},
    "pairs": {"source": FIRST, "prior": SECOND, "first_coupling": "pairs"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_and_resumption_change_no_bit(tmp_path, variant):
    options = {"objective": "bridge"} | VARIANTS[variant]
    before = _core.get_num_threads()
    saved = []

    def save(bridge, record):
        if record.step in (1, 10, 20):
            saved.append(tmp_path / f"{len(saved)}")
            bridge.save(saved[-1])

    try:
        _core.set_num_threads(1)
        whole = small(**options)
        whole.fit(2, 20, callback=save, log_every=1, progress=False)
        for threads in (2, 3):
            _core.set_num_threads(threads)
            other = small(**options)
            other.fit(2, 20, progress=False)
            assert_equal_bits(whole, other)
            assert other.evaluations == whole.evaluations
    finally:
        _core.set_num_threads(before)
    assert len(saved) == 12
    for path in saved:
        other = dsb.load(path)
        begun = (other.half_bridge + (other.step > 0) + 1) // 2
        assert other.evaluations == (0, 0)
        other.fit(2 - begun, 20, progress=False)
        assert_equal_bits(whole, other)
    assert any((plane != 0).any() for plane in planes(whole).values())


# ---- the average ----


@pytest.mark.parametrize("convention", ["grid", "official"])
def test_average(convention):
    """Step by step, from the weights: anew in every half-bridge of "grid", never in "official"."""
    mu = 0.8
    steps = np.array([0.1, 0.25, 0.1])
    bridge = _core.Bridge(
        _core.Net(oracles.mlp(2, 16, embed=8)),
        source=FIRST,
        prior=SECOND,
        reference_mean=np.zeros(2, np.float32),
        reference_precision=0.5,
        steps=steps,
        convention=convention,
        output="step",
        batch=32,
        learning_rate=1e-2,
        ema=mu,
    )
    shadows = {d: bridge.get_plane(d, "theta").astype(np.float64) for d in DIRECTIONS}
    for half_bridge in range(4 if convention == "grid" else 2):
        direction = DIRECTIONS[half_bridge % 2]
        seen = []
        bridge.begin(9)
        while bridge.steps:
            bridge.run(1, 100.0)
            seen.append(bridge.get_plane(direction, "theta").astype(np.float64))
            if convention == "grid":
                weights = mu ** np.arange(len(seen))[::-1]
                shadow = np.tensordot(weights / weights.sum(), seen, 1)
            else:
                shadow = shadows[direction] = mu * shadows[direction] + (1.0 - mu) * seen[-1]
            assert np.abs(bridge.get_plane(direction, "ema") - shadow).max() < 1e-6
        assert np.abs(seen[0] - seen[-1]).max() > 1e-3


# ---- evaluations ----


@pytest.mark.parametrize("objective", ["dsb", "simplified", "bridge"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_evaluations(objective, antithetic):
    """Once a step of a path; equation (12) once more for each pair; the reference is no net."""
    bridge = small(objective=objective, antithetic=antithetic, reuse=2, closed_form=False)
    assert bridge.evaluations == (0, 0)
    bridge.fit(2, 20, progress=False)  # windows of 7, 7 and 6 steps, of 64 rows
    group = 2 if antithetic else 1
    units = [-(-steps * 64 // group // 2) for steps in (7, 7, 6)]
    steps = sum(-(-u // 4) * 4 for u in units)  # whole paths of 4 steps
    each = 1 + (group if objective == "dsb" else 0)
    assert bridge.evaluations.simulation == 3 * steps * each  # the first half-bridge has no net
    assert bridge.evaluations.training == 4 * 20 * 64


def test_what_needs_no_simulation_evaluates_nothing():
    bridge = small(FIRST, SECOND, objective="bridge", first_coupling="pairs")
    bridge.fit(1, 20, progress=False)
    assert bridge.evaluations == (0, 2 * 20 * 64)
    bridge.fit(1, 20, progress=False)
    assert bridge.evaluations.simulation > 0
    bridge = small(FIRST, SECOND, objective="bridge", first_coupling="independent")
    bridge.fit(1, 20, progress=False)
    assert 2 * 20 * 64 > bridge.evaluations.simulation > 0


# ---- what it is told ----

BAD = {
    "another objective": (
        {"objective": "dsb", "first_coupling": "pairs"},
        "first_coupling: 'pairs' needs objective='bridge', got objective 'dsb'",
    ),
    "a name": (
        {"first_coupling": "pair"},
        "first_coupling: expected one of 'reference', 'independent', 'pairs', got 'pair'",
    ),
    "rows": (
        {"first_coupling": "pairs", "prior": SECOND[:-1]},
        "as many rows of the source as of the prior.* got 200 and 199",
    ),
    "a Gaussian": ({"first_coupling": "pairs", "prior": "gaussian"}, "the prior is a Gaussian"),
    "the official convention": ({"convention": "official"}, "objective: 'bridge' needs conv.*grid"),
}


@pytest.mark.parametrize("case", BAD)
def test_bridges_that_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        dsb.Bridge(**{"source": FIRST, "prior": SECOND, "objective": "bridge"} | options)


def test_the_core_refuses_too():
    net = _core.Net(LINEAR)
    given = {
        "source": FIRST,
        "prior": SECOND,
        "reference_mean": np.zeros(2, np.float32),
        "reference_precision": 0.0,
        "steps": np.ones(3),
    }
    bridge = {"objective": "bridge", "first_coupling": "pairs"}
    for changed, message in (
        ({"first_coupling": "pairs"}, "only objective 'bridge'"),
        ({"objective": "bridge", "first_coupling": "both"}, "'reference', 'independent'"),
        ({"objective": "bridge", "convention": "official"}, "convention 'grid'"),
        (bridge | {"prior": SECOND[:-1]}, "two data sets of equal length, got 200 and 199"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.Bridge(net, **given | changed)
    other = {"prior": None, "prior_mean": np.zeros(2, np.float32), "prior_deviation": 1.0}
    with pytest.raises(ValueError, match="pairs are rows of two data sets, which are not both"):
        _core.Bridge(net, **given | bridge | other).begin(10)


def test_checkpoints_and_repr(tmp_path):
    bridge = small(FIRST, SECOND, objective="bridge", first_coupling="pairs")
    assert "objective bridge, output drift, first coupling pairs\n" in repr(bridge)
    assert bridge.settings.first_coupling == "pairs"
    bridge.fit(1, 20, progress=False)
    bridge.save(tmp_path / "without", data=False)
    other = dsb.load(tmp_path / "without")  # draws samples, though it cannot be fitted
    assert other.settings == bridge.settings
    starts = {"x": SECOND[:9], "seed": 1}
    np.testing.assert_array_equal(other.sample(**starts), bridge.sample(**starts))
    with pytest.raises(ValueError, match="source: fitting needs its 200 rows"):
        other.fit()
    other = dsb.load(tmp_path / "without", source=FIRST, prior=SECOND)
    assert_equal_bits(other, bridge)
    assert "coupling" not in repr(small())


def test_older_files_begin_with_the_reference():
    bridge = small()
    told = bridge.settings._asdict()
    del told["first_coupling"]
    assert type(bridge.settings).restored(told).first_coupling == "reference"
