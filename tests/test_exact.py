"""Closed forms between Gaussians, against chains written out in full and printed numbers."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import dsb
from dsb import OU, Brownian, Gaussian, Schedule
from dsb._extras import need
from dsb.exact import (
    GaussianBridge,
    GaussianIPF,
    LinearChain,
    PopulationDSB,
    Problem,
    Step,
    gaussian_kl,
)
from dsb.exact._linear import GaussianCoupling
from dsb.exact._reference import ReferenceProcess

DIRECTIONS = ("backward", "forward")
SYMMETRIC = (Gaussian([-0.1], 1.0), Gaussian([0.1], 1.0), Schedule.constant(20, 1 / 40))
ASYMMETRIC = (
    *(Gaussian([-0.5], 0.5), Gaussian([0.3], 2.0), Schedule([0.02, 0.05, 0.1, 0.2, 0.13])),
    OU(0.3, 2.0),
)
UNEQUAL = (Gaussian([0.0], 0.25), Gaussian([0.0], 4.0))
STEPS = [0.05, 0.3, 0.1, 0.15, 0.2]
REFERENCES = {"brownian": Brownian(), "ou": OU([0.4, -0.3, 0.2], 0.7)}


def gaussian(rng, d=3):
    root = rng.normal(size=(d, d))
    return Gaussian(rng.normal(size=d), 0.1 * np.eye(d) + 0.5 * root @ root.T)


def problem(name, seed=0):
    rng = np.random.default_rng(seed)
    return gaussian(rng), gaussian(rng), Schedule(STEPS), REFERENCES[name]


# ---- the whole chain as one Gaussian ----


def whole_chain(source, steps, reference):
    """Mean and covariance of (X_0, .., X_N) under the reference from the source, state by state."""
    d, n = source.dim, len(steps)
    centre = np.zeros(d) if isinstance(reference, Brownian) else np.full(d, reference.mean)
    mean, cov = np.zeros((n + 1, d)), np.zeros((n + 1, d, n + 1, d))
    mean[0], cov[0, :, 0] = source.mean, source.cov
    for k, g in enumerate(steps):
        a = 1 - g * reference.precision
        mean[k + 1] = a * mean[k] + (1 - a) * centre
        for j in range(k + 1):
            cov[k + 1, :, j] = a * cov[k, :, j]
            cov[j, :, k + 1] = cov[k + 1, :, j].T
        cov[k + 1, :, k + 1] = a**2 * cov[k, :, k] + 2 * g * np.eye(d)
    return mean.ravel(), cov.reshape((n + 1) * d, (n + 1) * d)


def with_marginal(mean, cov, where, law):
    """The joint law with the marginal of one state replaced, conditionals kept."""
    gain = cov[:, where] @ np.linalg.inv(cov[where, where])
    moved = mean + gain @ (law.mean - mean[where])
    return moved, cov + gain @ (law.cov - cov[where, where]) @ gain.T


def ipf_on_the_chain(source, prior, schedule, reference, half_bridges):
    """(mean, cov) of the whole chain after each half-bridge."""
    d = source.dim
    ends = slice(schedule.N * d, None), slice(0, d)
    mean, cov = whole_chain(source, schedule.steps, reference)
    for number in range(half_bridges):
        law = source if number % 2 else prior
        mean, cov = with_marginal(mean, cov, ends[number % 2], law)
        yield mean, cov


def ends_of(mean, cov, d):
    at = np.r_[:d, len(mean) - d : len(mean)]
    return mean[at], cov[np.ix_(at, at)]


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_ipf_is_that_of_the_whole_chain(name, seed):
    given = problem(name, seed)
    ipf = GaussianIPF(*given)
    for number, (mean, cov) in enumerate(ipf_on_the_chain(*given, 6), 1):
        found = ipf.half_bridge(number)
        for got, exact in zip((found.mean, found.cov), ends_of(mean, cov, 3), strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-11)
        n, direction = (number + 1) // 2, DIRECTIONS[(number + 1) % 2]
        np.testing.assert_array_equal(ipf.iterate(n, direction).cov, found.cov)
        process = ipf.process(n, direction)
        np.testing.assert_allclose(process.coupling().cov, found.cov, atol=1e-11)
        for k, t in enumerate(given[2].times):
            at = slice(3 * k, 3 * k + 3)
            np.testing.assert_allclose(process.marginal(t).mean, mean[at], atol=1e-10)
            np.testing.assert_allclose(process.marginal(t).cov, cov[at, at], atol=1e-10)
    start = ends_of(*whole_chain(given[0], given[2].steps, given[3]), 3)
    np.testing.assert_allclose(ipf.half_bridge(0).mean, start[0], atol=1e-12)
    np.testing.assert_allclose(ipf.half_bridge(0).cov, start[1], atol=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_bridge_is_the_limit_on_the_whole_chain(name, seed):
    """Couplings, marginals, joint laws, steps and drifts from one big covariance matrix."""
    given = problem(name, seed)
    *_, (mean, cov) = ipf_on_the_chain(*given, 400)
    bridge, times, steps = GaussianBridge(*given), given[2].times, given[2].steps
    ends = ends_of(mean, cov, 3)
    np.testing.assert_allclose(bridge.coupling().mean, ends[0], atol=1e-10)
    np.testing.assert_allclose(bridge.coupling().cov, ends[1], atol=1e-10)
    np.testing.assert_allclose(bridge.coupling().cross, ends[1][:3, 3:], atol=1e-10)
    x = np.random.default_rng(seed).normal(size=(4, 3))
    for i, s in enumerate(times):
        for j, t in enumerate(times):
            if i == j:
                continue
            at = np.r_[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            joint = bridge.joint(s, t)
            np.testing.assert_allclose(joint.mean, mean[at], atol=1e-10)
            np.testing.assert_allclose(joint.cov, cov[np.ix_(at, at)], atol=1e-10)
    for k, g in enumerate(steps):
        early, late = slice(3 * k, 3 * k + 3), slice(3 * k + 3, 3 * k + 6)
        for direction, here, there, t in (
            ("forward", early, late, times[k]),
            ("backward", late, early, times[k + 1]),
        ):
            A = cov[there, here] @ np.linalg.inv(cov[here, here])
            Q = cov[there, there] - A @ cov[here, there]
            step = bridge.step(k, direction)
            np.testing.assert_allclose(step.A, A, atol=1e-9)
            np.testing.assert_allclose(step.Q, Q, atol=1e-9)
            np.testing.assert_allclose(step.c, mean[there] - A @ mean[here], atol=1e-9)
            if name == "ou":
                expected = (x @ A.T + step.c - x) / g
                np.testing.assert_allclose(bridge.drift(x, t, direction), expected, atol=1e-7)


def test_maps_of_rank_one():
    """A covariance without full rank is one; what rounding makes negative is taken for zero."""
    v = np.random.default_rng(0).normal(size=(3, 1)) * [1.0]
    Q = (v @ v.T).astype(np.float32)
    Q[0, 1] = np.nextafter(Q[0, 1], np.float32(np.inf))
    step = Step(np.eye(3), np.zeros(3), Q)
    for scale in (0.0, 1e-30, 1.0, 1e30):
        chain = LinearChain(
            Gaussian(np.zeros(3), 1.0), [step._replace(Q=scale * Q)], Schedule([1.0]), "forward"
        )
        expected = np.eye(3) + scale * Q.astype(np.float64)
        np.testing.assert_allclose(chain._moments[-1][1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_steps_compose_to_the_marginals(name, direction):
    given = problem(name)
    bridge, schedule = GaussianBridge(*given), given[2]
    steps = [bridge.step(k, direction) for k in range(schedule.N)]
    start = given[1] if direction == "backward" else given[0]
    chain = LinearChain(start, steps, schedule, direction, given[3])
    for t in schedule.times:
        np.testing.assert_allclose(chain.marginal(t).mean, bridge.marginal(t).mean, atol=1e-12)
        np.testing.assert_allclose(chain.marginal(t).cov, bridge.marginal(t).cov, atol=1e-12)
    np.testing.assert_allclose(chain.coupling().cov, bridge.coupling().cov, atol=1e-12)
    np.testing.assert_allclose(chain.coupling().mean, bridge.coupling().mean, atol=1e-12)
    other = DIRECTIONS[direction == "backward"]
    for k in range(schedule.N):
        for got, exact in zip(chain.step(k, other), bridge.step(k, other), strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-12)


# ---- Brownian motion in continuous time ----


def closed_drift(source, prior, T, x, t, direction):
    """The formula with inverses, d X = f dt + sqrt(2) dB."""
    s2, u = 2 * T, t / T
    values, vectors = np.linalg.eigh(source.cov)
    R, back = (vectors * values**p @ vectors.T for p in (0.5, -0.5))
    S0, S1 = source.cov, prior.cov
    values, vectors = np.linalg.eigh(4 * R @ S1 @ R + s2**2 * np.eye(len(S0)))
    C = (R @ (vectors * values**0.5 @ vectors.T) @ back - s2 * np.eye(len(S0))) / 2
    cov = (1 - u) ** 2 * S0 + u**2 * S1 + u * (1 - u) * (C + C.T + s2 * np.eye(len(S0)))
    toward, away = (u * S1 + (1 - u) * C).T, (1 - u) * S0 + u * C
    slope = (prior.mean - source.mean) / T
    if direction == "forward":
        M = toward - away - s2 * u * np.eye(len(S0))
    else:
        M, slope = away - toward - s2 * (1 - u) * np.eye(len(S0)), -slope
    mean = (1 - u) * source.mean + u * prior.mean
    return (x - mean) @ (M @ np.linalg.inv(cov)).T / T + slope, mean, cov


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_brownian_drift(direction, seed):
    source, prior, _, _ = problem("brownian", seed)
    bridge = GaussianBridge(source, prior, 0.8)
    x = np.random.default_rng(seed).normal(size=(7, 3))
    times = [0.0, 0.01, 0.3, 0.4, 0.41, 0.79, 0.8]
    for t in times:
        expected, mean, cov = closed_drift(source, prior, 0.8, x, t, direction)
        np.testing.assert_allclose(bridge.drift(x, t, direction), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(bridge.marginal(t).mean, mean, atol=1e-12)
        np.testing.assert_allclose(bridge.marginal(t).cov, cov, atol=1e-12)
    together = bridge.drift(x, times, direction)
    for i, t in enumerate(times):
        np.testing.assert_allclose(together[i], bridge.drift(x[i : i + 1], t, direction)[0])
    half = bridge.velocity(x, 0.3)
    found = [bridge.drift(x, 0.3, d) for d in ("forward", "backward")]
    np.testing.assert_array_equal(half, (found[0] - found[1]) / 2)


def test_velocity_moves_the_marginals():
    """dm/dt = v(m) and dS/dt = K S + S K^T with the velocity's linear part K."""
    source, prior, _, _ = problem("brownian", 4)
    bridge, t, h = GaussianBridge(source, prior, 0.5), 0.2, 1e-5
    mean, cov = bridge.marginal(t).mean, bridge.marginal(t).cov
    at_mean = bridge.velocity(mean[None], t)[0]
    K = (bridge.velocity(mean + np.eye(3), t) - at_mean).T
    after, before = bridge.marginal(t + h), bridge.marginal(t - h)
    np.testing.assert_allclose((after.mean - before.mean) / (2 * h), at_mean, atol=1e-8)
    np.testing.assert_allclose((after.cov - before.cov) / (2 * h), K @ cov + cov @ K.T, atol=1e-7)


def test_joint_laws():
    """The ends' is the coupling; exchanged times exchange the blocks; a step regresses one on the other."""
    source, prior, _, _ = problem("brownian", 6)
    bridge = GaussianBridge(source, prior, Schedule([0.2, 0.3]))
    np.testing.assert_allclose(bridge.joint(0.0, 0.5).cov, bridge.coupling().cov, atol=1e-12)
    np.testing.assert_allclose(bridge.joint(0.0, 0.5).mean, bridge.coupling().mean, atol=1e-12)
    forth, back = bridge.joint(0.2, 0.5), bridge.joint(0.5, 0.2)
    turned = np.r_[3:6, :3]
    np.testing.assert_array_equal(back.mean, forth.mean[turned])
    np.testing.assert_allclose(back.cov, forth.cov[np.ix_(turned, turned)], rtol=1e-14)
    A = bridge.step(1, "forward").A
    np.testing.assert_allclose(forth.cov[3:, :3], A @ forth.cov[:3, :3], atol=1e-11)


def test_drift_is_the_limit_of_steps():
    source, prior, _, _ = problem("brownian", 5)
    schedule = Schedule([0.3, 1e-6, 0.2])
    bridge, x = GaussianBridge(source, prior, schedule), np.ones((1, 3))
    for direction, t in (("forward", 0.3), ("backward", 0.300001)):
        step = (bridge.step(1, direction).mean(x) - x) / 1e-6
        np.testing.assert_allclose(bridge.drift(x, t, direction), step, atol=1e-4)


def test_scalar():
    bridge = GaussianBridge(Gaussian([0.0], 1.0), Gaussian([0.0], 1.0), 0.5)
    np.testing.assert_allclose(bridge.coupling().cross, [[0.6180339887498949]], rtol=1e-15)
    assert bridge.schedule is None and bridge.reference == Brownian() and bridge.T == 0.5
    assert isinstance(bridge, Problem) and bridge.dim == 1
    assert bridge.marginal(0) == bridge.source and bridge.marginal(0.5) == bridge.prior


def test_ou_with_steps_that_turn_around():
    """Factors a_k that are zero or negative: the ends are independent, or repel each other."""
    for steps, sign in (([0.5, 1.0], 0), ([1.5, 0.5], -1), ([1.5, 1.5], 1)):
        given = (*UNEQUAL, Schedule(steps), OU(0.2, 1.0))
        *_, (mean, cov) = ipf_on_the_chain(*given, 200)
        found = GaussianBridge(*given)
        np.testing.assert_allclose(found.coupling().cov, ends_of(mean, cov, 1)[1], atol=1e-12)
        assert np.sign(found.coupling().cross) == sign
        np.testing.assert_allclose(found.marginal(steps[0]).cov, cov[1:2, 1:2], atol=1e-12)


# ---- the reference ----


@pytest.mark.parametrize("reference", [Brownian(), OU([0.5], 0.6)], ids=["brownian", "ou"])
def test_pinned_reference_against_simulation(reference):
    """Regression of the middle on both ends of a million simulated chains."""
    rng, steps, n = np.random.default_rng(0), np.array([0.1, 0.4, 0.2, 0.3]), 1_000_000
    states = [rng.normal(1.0, 2.0, size=n)]
    for g in steps:
        pull = 0 if isinstance(reference, Brownian) else g * (0.5 - states[-1]) / 0.6
        states.append(states[-1] + pull + np.sqrt(2 * g) * rng.normal(size=n))
    process = ReferenceProcess(reference, Schedule(steps), 1)
    times = Schedule(steps).times
    for i, k, j in ((0, 2, 4), (0, 1, 4), (1, 3, 4), (0, 1, 2)):
        features = np.stack([states[i], states[j], np.ones(n)], axis=1)
        found, residual, *_ = np.linalg.lstsq(features, states[k])
        p, q, r, c = process.pinned(times[i], times[k], times[j])
        np.testing.assert_allclose(found, [p, q, c[0]], atol=5e-3)
        np.testing.assert_allclose(residual / n, r, rtol=7e-3)
        a, v = process.transition(times[i], times[j])
        start, end = states[i], states[j]
        np.testing.assert_allclose(np.polyfit(start, end, 1)[0], a, atol=5e-3)
        np.testing.assert_allclose((end - a * start).var(), v, rtol=7e-3)


def test_bridges_between_given_ends():
    """Paths and single times of the pinned reference have its moments."""
    for name, reference in REFERENCES.items():
        process = ReferenceProcess(reference, Schedule(STEPS), 3)
        n, times = 100_000, Schedule(STEPS).times
        x0, xN = np.full((n, 3), 0.5, np.float32), np.full((n, 3), -1.0, np.float32)
        paths = process.bridge_paths(x0, xN, None, 3)
        assert (paths[:, 0] == 0.5).all() and (paths[:, -1] == -1.0).all()
        for k, t in enumerate(times[1:-1], 1):
            p, q, r, c = process.pinned(0.0, t, process.T)
            for found in (paths[:, k], process.bridge_at(x0, xN, t, 3)):
                np.testing.assert_allclose(
                    found.mean(axis=0), 0.5 * p - q + c, atol=0.01, err_msg=name
                )
                np.testing.assert_allclose(np.cov(found.T), r * np.eye(3), atol=0.02 * r)


# ---- stability ----


@pytest.mark.parametrize("d", [1, 2, 40])
@pytest.mark.parametrize("T", [1e-3, 0.5, 100.0])
def test_ill_conditioned(d, T):
    """Variances from 1e-6 to 1e6: C C + s2 C = S0 S1, and known where the axes are shared."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    first, second = 10.0 ** rng.uniform(-6, 6, size=(2, d))
    shared = [Gaussian(np.zeros(d), axes * v @ axes.T) for v in (first, second)]
    c = 2 * first * second / (np.sqrt(4 * first * second + 4 * T**2) + 2 * T)
    bridge = GaussianBridge(*shared, T)
    cross = axes.T @ bridge.coupling().cross @ axes
    scale = np.sqrt(first[:, None] * second)
    assert np.abs((cross - np.diag(c)) / scale).max() < 1e-4  # what the ends' own rounding allows
    turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
    other = Gaussian(np.zeros(d), turned * second @ turned.T)
    C = GaussianBridge(shared[0], other, T).coupling().cross
    error = C @ C + 2 * T * C - shared[0].cov @ other.cov
    assert np.abs(error).max() < 1e-12 * first.max() * second.max() * d
    for t in (0.0, T / 3, T / 2, T):
        law = bridge.marginal(t)
        assert np.isfinite(law.factor).all()
        x = law.sample(5).astype(np.float64)
        assert np.isfinite(bridge.velocity(x, t)).all()
    paths = bridge.sample_paths(10, Schedule.constant(3, T / 3))
    assert np.isfinite(paths).all()


def test_narrow_diagonal():
    """Each axis by itself, to full precision, where covariances are diagonal."""
    first, second = np.array([1e-6, 1e6, 1e-6, 1.0]), np.array([1e6, 1e6, 1e-6, 1e-6])
    bridge = GaussianBridge(Gaussian(np.zeros(4), first), Gaussian(np.ones(4), second), 0.5)
    c = 2 * first * second / (np.sqrt(4 * first * second + 1) + 1)
    np.testing.assert_allclose(np.diag(bridge.coupling().cross), c, rtol=1e-12)
    for t in (0.0, 0.1, 0.4, 0.5):
        for direction in DIRECTIONS:
            found = bridge.drift(np.full((1, 4), 0.3), t, direction)[0]
            for i in range(4):
                line = Gaussian([0.0], first[i]), Gaussian([1.0], second[i])
                alone, *_ = closed_drift(*line, 0.5, np.array([[0.3]]), t, direction)
                np.testing.assert_allclose(found[i], alone[0, 0], rtol=1e-5)


def test_many_dimensions():
    rng = np.random.default_rng(0)
    source, prior = gaussian(rng, 200), gaussian(rng, 200)
    bridge = GaussianBridge(source, prior, Schedule.constant(4, 0.1), OU(0.1, 2.0))
    steps = [bridge.step(k, "forward") for k in range(4)]
    chain = LinearChain(source, steps, bridge.schedule, "forward", bridge.reference)
    assert np.abs(chain.end.cov - prior.cov).max() < 1e-9 * np.trace(prior.cov)
    cross = np.abs(chain.coupling().cross - bridge.coupling().cross).max()
    assert cross < 1e-9 * np.trace(prior.cov)


# ---- draws ----


def moments_of(paths):
    flat = paths.reshape(len(paths), -1).astype(np.float64)
    return flat.mean(axis=0), np.cov(flat.T)


@pytest.mark.parametrize("name", REFERENCES)
def test_paths_have_the_joint_law(name):
    given = problem(name)
    bridge, chains = GaussianBridge(*given), PopulationDSB(*given).iterate(2)
    n, times = 100_000, given[2].times
    *_, (mean, cov) = ipf_on_the_chain(*given, 200)
    found = moments_of(bridge.sample_paths(n, seed=1))
    assert np.abs(found[0] - mean).max() < 0.03
    assert np.abs(found[1] - cov).max() < 0.015 * np.diag(cov).max()
    for direction in DIRECTIONS:
        chain = chains.process(direction)
        paths = chain.sample_paths(n, seed=2)
        assert paths.dtype == np.float32 and paths.shape == (n, 6, 3)
        for k in (0, 2, 5):
            law = chain.marginal(times[k])
            assert np.abs(paths[:, k].mean(axis=0) - law.mean).max() < 0.03
            assert np.abs(np.cov(paths[:, k].T) - law.cov).max() < 0.015 * law.cov.max()
        both = moments_of(paths[:, [0, -1]])
        for exact, got in zip((chain.coupling().mean, chain.coupling().cov), both, strict=True):
            assert np.abs(exact - got).max() < 0.05
        pairs = moments_of(np.stack(chain.coupling().sample(n, seed=4), axis=1))
        assert np.abs(pairs[1] - chain.coupling().cov).max() < 0.05
    x0, xN = bridge.coupling().sample(n, seed=3)
    pairs = moments_of(np.stack([x0, xN], axis=1))
    assert np.abs(pairs[1] - ends_of(mean, cov, 3)[1]).max() < 0.05


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_paths_are_in_order_of_time(direction):
    far = Gaussian([-10.0], 1.0), Gaussian([10.0], 1.0), Schedule.constant(4, 0.1)
    chain = PopulationDSB(*far).iterate(5).process(direction)
    for made in (chain, GaussianBridge(*far)):
        x = made.sample_paths(10)[..., 0]
        assert (np.diff(x.mean(axis=0)) > 0).all() and x[:, 0].max() < 0 < x[:, -1].min()
    start = 0 if direction == "forward" else -1
    x = chain.sample_paths(20_000)[:, start, 0]
    assert abs(x.mean() - chain.start.mean[0]) < 0.05 and abs(x.std() - 1) < 0.03


def test_draws_repeat():
    given = problem("ou")
    for made in (GaussianBridge(*given), PopulationDSB(*given).iterate(1).process()):
        first, again = made.sample_paths(50, seed=7), made.sample_paths(50, seed=7)
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - made.sample_paths(50, seed=8)).max() > 0.1
        np.testing.assert_array_equal(first[:20], made.sample_paths(20, seed=7))
        copy = pickle.loads(pickle.dumps(made))
        np.testing.assert_array_equal(first, copy.sample_paths(50, seed=7))


def test_paths_of_brownian_problems_take_any_steps():
    bridge = GaussianBridge(*UNEQUAL, 0.5)
    paths = bridge.sample_paths(200_000, Schedule([0.1, 0.4]), seed=0)
    expected = bridge.joint(0.1, 0.5)
    assert np.abs(np.cov(paths[:, 1:, 0].T) - expected.cov).max() < 0.05
    with pytest.raises(ValueError, match=r"schedule: expected a dsb.Schedule, as .* got None"):
        bridge.sample_paths(3)
    with pytest.raises(ValueError, match=r"schedule: expected one with T = 0.5, got T = 1"):
        bridge.sample_paths(3, Schedule([1.0]))


# ---- what DSB does ----


def numbers(chain):
    return np.ravel([chain.end.mean[0], chain.end.cov[0, 0], chain.coupling().cross[0, 0]])


PUBLISHED = [
    (SYMMETRIC, "dsb", 1, "backward", (0.0, 0.769114, 0.500000)),
    (SYMMETRIC, "dsb", 2, "backward", (-0.056691, 0.978270, 0.600566)),
    (SYMMETRIC, "dsb", 3, "backward", (-0.078513, 1.007514, 0.613968)),
    (SYMMETRIC, "dsb", 5, "backward", (-0.089239, 1.011786, 0.615978)),
    (SYMMETRIC, "dsb", 8, "backward", (-0.090742, 1.011854, 0.616092)),
    (ASYMMETRIC, "dsb", 1, "backward", (-0.264771, 0.735496, 0.736426)),
    (ASYMMETRIC, "dsb", 2, "backward", (-0.376494, 0.650925, 0.675801)),
    (ASYMMETRIC, "dsb", 5, "backward", (-0.418287, 0.630220, 0.674784)),
    (ASYMMETRIC, "dsb", 1, "forward", (-0.061828, 1.500995, 0.504201)),
    (ASYMMETRIC, "dsb", 2, "forward", (0.016970, 1.547194, 0.520261)),
    (ASYMMETRIC, "dsb", 5, "forward", (0.058796, 1.576956, 0.534240)),
    (ASYMMETRIC, "simplified", 1, "backward", (-0.290568, 0.680624, 0.678523)),
    (ASYMMETRIC, "simplified", 2, "backward", (-0.430567, 0.649487, 0.665115)),
    (ASYMMETRIC, "simplified", 5, "backward", (-0.497080, 0.637305, 0.673108)),
    (ASYMMETRIC, "simplified", 1, "forward", (0.091215, 1.498859, 0.498457)),
    (ASYMMETRIC, "simplified", 2, "forward", (0.228896, 1.532998, 0.512031)),
    (ASYMMETRIC, "simplified", 5, "forward", (0.296916, 1.564427, 0.528090)),
]


@pytest.mark.parametrize(("given", "objective", "n", "direction", "expected"), PUBLISHED)
def test_population(given, objective, n, direction, expected):
    chain = PopulationDSB(*given, objective=objective).iterate(n).process(direction)
    np.testing.assert_allclose(numbers(chain), expected, atol=6e-7)
    assert chain.direction == direction and chain.end == chain.marginal(
        0.0 if direction == "backward" else chain.T
    )


def test_population_limit():
    found = numbers(PopulationDSB(*SYMMETRIC).iterate(2000).process())
    np.testing.assert_allclose(found, (-0.090823, 1.01184, 0.61632), atol=6e-6)


@pytest.mark.parametrize(
    ("N", "expected"),
    [
        (20, {2: 0.630, 3: 0.601, 5: 0.576, 8: 0.549, 20: 0.508, 1000: 0.489}),
        (320, {2: 0.642, 3: 0.620, 5: 0.614, 8: 0.610, 20: 0.597}),
    ],
)
def test_coupling_drifts(N, expected):
    """Unequal ends: the covariance of (X_0, X_N) leaves the exact .618 for good."""
    dsb_of = PopulationDSB(*UNEQUAL, Schedule.constant(N, 0.5 / N))
    for n, cross in expected.items():
        found = dsb_of.iterate(n).process().coupling().cross[0, 0]
        assert abs(found - cross) < 6e-4


def test_either_alone_is_wrong():
    """Posterior covariance or conditional mean: only both together keep the coupling."""
    simplified = PopulationDSB(*SYMMETRIC, objective="simplified").iterate(200).process()
    np.testing.assert_allclose(numbers(simplified), (-0.1, 1.0, 0.5987), atol=6e-5)
    mean = PopulationDSB(*SYMMETRIC, covariance="full").iterate(2000).process()
    np.testing.assert_allclose(numbers(mean), (-0.0923, 1.0, 0.674), atol=6e-4)
    both = PopulationDSB(
        *UNEQUAL, Schedule.constant(20, 0.025), objective="simplified", covariance="full"
    )
    for n in (5, 8, 50):
        assert abs(both.iterate(n).process().coupling().cross[0, 0] - 0.618034) < 5e-4


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_conditional_mean_and_posterior_covariance_are_exact_ipf(name, seed):
    given = problem(name, seed)
    ipf = GaussianIPF(*given)
    population = PopulationDSB(*given, objective="simplified", covariance="full")
    for n in (1, 2, 3, 7):
        for direction in DIRECTIONS:
            found = population.iterate(n).process(direction).coupling()
            exact = ipf.iterate(n, direction)
            np.testing.assert_allclose(found.mean, exact.mean, atol=1e-11)
            np.testing.assert_allclose(found.cov, exact.cov, atol=1e-11)


def test_iterates_in_any_order():
    population, ipf = PopulationDSB(*ASYMMETRIC), GaussianIPF(*ASYMMETRIC)
    for make in (lambda n: population.iterate(n).process().coupling(), ipf.iterate):
        third, first = make(3).cov, make(1).cov
        np.testing.assert_array_equal(make(3).cov, third)
        np.testing.assert_array_equal(make(1).cov, first)
        assert np.abs(first - third).max() > 1e-3
    np.testing.assert_allclose(ipf.iterate(60).cov, population.limit().coupling().cov, atol=1e-12)
    np.testing.assert_array_equal(ipf.limit().coupling().cov, population.limit().coupling().cov)


def test_drift_of_a_chain():
    """Its own direction by its maps; the other by the time reversal, which velocity needs."""
    chain = PopulationDSB(*ASYMMETRIC).iterate(2).process("backward")
    g, times = chain.schedule.steps, chain.schedule.times
    x = np.linspace(-1, 1, 5)[:, None]
    for k in range(5):
        A, c, Q = chain.maps[k]
        own = chain.drift(x, times[k + 1], "backward")
        np.testing.assert_allclose(own, (x @ A.T + c - x) / g[k], atol=1e-12)
        before, after = chain.marginal(times[k + 1]), chain.marginal(times[k])
        np.testing.assert_allclose(A @ before.cov @ A.T + Q, after.cov, atol=1e-12)
        gain = (before.cov @ A.T @ np.linalg.inv(after.cov))[0, 0]
        back = gain * (x - after.mean) + before.mean
        np.testing.assert_allclose(
            chain.drift(x, times[k], "forward"), (back - x) / g[k], atol=1e-12
        )
    assert chain.velocity(x, times[2]).shape == (5, 1)


# ---- proposition 4 of arXiv:2106.01357 ----


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_divergences_fall(name, seed):
    given = problem(name, seed)
    ipf = GaussianIPF(*given)
    laws = [ipf.half_bridge(number) for number in range(14)]
    joints = [law.joint for law in laws]
    up = [gaussian_kl(b, a) for a, b in pairwise(joints)]
    down = [gaussian_kl(a, b) for a, b in pairwise(joints)]
    # Each half-bridge moves by the divergence of the end that it sets right.
    for number in range(13):
        end = (laws[number].source, given[0]) if number % 2 else (laws[number].prior, given[1])
        np.testing.assert_allclose(up[number], gaussian_kl(end[1], end[0]), rtol=1e-6, atol=1e-12)
    for n in range(1, 13):
        assert up[n] <= down[n - 1] + 1e-13 and down[n] <= up[n - 1] + 1e-13
    jeffreys = np.add(up, down)
    assert (np.diff(jeffreys) <= 1e-13).all() and jeffreys[-1] < 1e-2 * jeffreys[0]
    limit = ipf.limit().coupling().joint
    to_limit = [gaussian_kl(limit, joint) for joint in joints]
    assert (np.diff(to_limit) <= 1e-13).all()
    # The Pythagorean identity of the projections: what is left falls by what each of them moves.
    np.testing.assert_allclose(-np.diff(to_limit), up, rtol=1e-6, atol=1e-12)


def test_gaussian_kl():
    rng = np.random.default_rng(0)
    p, q = gaussian(rng), gaussian(rng)
    x = p.sample(400_000, seed=1).astype(np.float64)

    def log_density(law):
        y = np.linalg.solve(np.linalg.cholesky(law.cov), (x - law.mean).T)
        return -0.5 * (np.square(y).sum(axis=0) + np.linalg.slogdet(law.cov)[1])

    ratio = log_density(p) - log_density(q)
    assert abs(gaussian_kl(p, q) - ratio.mean()) < 5 * ratio.std() / np.sqrt(len(x))
    assert gaussian_kl(p, p) == 0.0
    close = Gaussian(p.mean, p.cov * (1 + 1e-9))
    np.testing.assert_allclose(gaussian_kl(p, close), 3 * 1e-18 / 4, rtol=1e-5)
    np.testing.assert_allclose(
        gaussian_kl(Gaussian([1.0], 2.0), Gaussian([0.0], 1.0)), (2 + 1 - 1 - np.log(2)) / 2
    )


# ---- bad input ----

BRIDGE = GaussianBridge(*SYMMETRIC)
CHAIN = GaussianBridge(*ASYMMETRIC)
X = np.zeros((2, 1))
FLAT = Gaussian([0.0, 0.0], 1.0)
FINE = Step(np.eye(2), np.zeros(2), np.eye(2))


def chain_with(**change):
    """A chain whose second step is not as it should be."""
    return LinearChain(FLAT, [FINE, FINE._replace(**change)], Schedule([1.0, 1.0]), "forward")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: GaussianBridge(X, SYMMETRIC[1], 1.0),
            TypeError,
            "source: expected a dsb.Gaussian",
        ),
        (lambda: GaussianBridge(SYMMETRIC[0], X, 1.0), TypeError, "prior: expected a dsb.Gaussian"),
        (
            lambda: GaussianBridge(SYMMETRIC[0], Gaussian([0, 0], 1.0), 1.0),
            ValueError,
            "prior: expected dimension 1, that of source, got 2",
        ),
        (lambda: GaussianBridge(*UNEQUAL, 0.0), ValueError, "schedule: expected a finite number"),
        (
            lambda: GaussianBridge(*UNEQUAL, 1.7e308),
            ValueError,
            r"schedule: expected numbers within float32's range, got 1.7e\+308",
        ),
        (lambda: GaussianBridge(*UNEQUAL, [0.1]), TypeError, "schedule: expected a number"),
        (
            lambda: GaussianBridge(*UNEQUAL, 0.5, OU(0, 1)),
            TypeError,
            "schedule: expected a dsb.Schedule .* got 0.5",
        ),
        (
            lambda: GaussianBridge(*UNEQUAL, Schedule([0.5]), OU([0, 1], 1)),
            ValueError,
            "reference: expected a mean of 1",
        ),
        (
            lambda: GaussianBridge(*UNEQUAL, Schedule([1.0] * 400), OU(0, 0.1)),
            ValueError,
            "schedule: expected steps below 2 var = 0.2, .* got 1",
        ),
        (lambda: GaussianBridge(*UNEQUAL, 0.5, "ou"), TypeError, "reference: expected dsb.OU or"),
        (lambda: BRIDGE.marginal(0.6), ValueError, r"t: expected a time in \[0, 0.5\], got 0.6"),
        (lambda: BRIDGE.marginal(np.nan), ValueError, "t: expected a finite number, got nan"),
        (lambda: BRIDGE.joint(0.1, 0.1), ValueError, "t: expected a time other than s, got 0.1"),
        (lambda: BRIDGE.step(20), ValueError, "k: expected a whole number of at most 19, got 20"),
        (lambda: BRIDGE.step(0, "up"), ValueError, "direction: expected one of"),
        (lambda: BRIDGE.drift(X[0], 0.1), ValueError, r"x: expected shape \(n, 1\), got \(1,\)"),
        (lambda: BRIDGE.drift(X[:0], 0.1), ValueError, "x: expected at least one row"),
        (lambda: BRIDGE.drift(X.astype(int), 0.1), TypeError, "x: expected floats"),
        (lambda: BRIDGE.drift(X + np.nan, 0.1), ValueError, "x: expected finite numbers, got nan"),
        (lambda: BRIDGE.drift(X, [0.1] * 3), ValueError, r"t: expected a number or shape \(2,\)"),
        (lambda: BRIDGE.drift(X, "now"), TypeError, "t: expected numbers"),
        (lambda: BRIDGE.sample_paths(0), ValueError, "n: expected a whole number of at least 1"),
        (lambda: BRIDGE.sample_paths(2, seed=-1), ValueError, "seed: expected a whole number"),
        (lambda: BRIDGE.sample_paths(2, [0.5]), TypeError, "schedule: expected a dsb.Schedule"),
        (lambda: BRIDGE.coupling().sample(1.5), TypeError, "n: expected a whole number"),
        (
            lambda: CHAIN.marginal(0.1),
            ValueError,
            r"t: expected a time of the schedule, got 0.1; the nearest is t_2 = 0.07",
        ),
        (
            lambda: CHAIN.drift(X, 0.0, "backward"),
            ValueError,
            "t: expected a time that the backward process leaves, got 0",
        ),
        (
            lambda: CHAIN.drift(X, 0.5, "forward"),
            ValueError,
            "t: expected a time that the forward process leaves, got 0.5",
        ),
        (
            lambda: CHAIN.sample_paths(2, Schedule([0.5])),
            ValueError,
            r"schedule: expected Schedule\(\[0.02, .* got Schedule",
        ),
        (lambda: GaussianIPF(*SYMMETRIC).iterate(0), ValueError, "n: expected a whole number"),
        (lambda: GaussianIPF(*SYMMETRIC).half_bridge(-1), ValueError, "number: expected"),
        (lambda: PopulationDSB(*UNEQUAL, 0.5), TypeError, "schedule: expected a dsb.Schedule"),
        (
            lambda: PopulationDSB(*SYMMETRIC, objective="simple"),
            ValueError,
            "objective: .* did you mean 'simplified'",
        ),
        (lambda: PopulationDSB(*SYMMETRIC, covariance=1), TypeError, "covariance: expected one of"),
        (
            lambda: LinearChain(UNEQUAL[0], [], Schedule([1.0]), "forward"),
            ValueError,
            "maps: expected 1, one for each step, got 0",
        ),
        (
            lambda: LinearChain(UNEQUAL[0], [Step(1, 2, 3)], Schedule([1.0]), "forward"),
            ValueError,
            "maps: expected shapes",
        ),
        (
            lambda: chain_with(Q=[[1.0, 2.0], [2.0, 1.0]]),
            ValueError,
            "maps: expected a positive semidefinite Q, got one with eigenvalue -1 at step 1",
        ),
        (lambda: chain_with(Q=-np.eye(2)), ValueError, "semidefinite Q, .* -1 at step 1"),
        (
            lambda: chain_with(Q=[[1.0, 0.5], [0.0, 1.0]]),
            ValueError,
            r"maps: expected a symmetric Q, got \|Q - Q\^T\| up to 0.5 at step 1",
        ),
        (lambda: chain_with(A=np.full((2, 2), np.nan)), ValueError, "got nan in A at step 1"),
        (lambda: chain_with(c=[0.0, -np.inf]), ValueError, "got -inf in c at step 1"),
        (lambda: chain_with(Q=np.diag([1.0, np.inf])), ValueError, "got inf in Q at step 1"),
        (lambda: chain_with(A=1j * np.eye(2)), TypeError, "maps: .* complex128 .* A at step 1"),
        (lambda: chain_with(c=np.zeros(3)), ValueError, "maps: expected shapes .* at step 1"),
        (
            lambda: GaussianCoupling([0.0, np.nan], np.eye(2)),
            ValueError,
            "mean: expected finite numbers, got nan",
        ),
        (
            lambda: GaussianCoupling([0.0, 0.0], np.diag([1.0, np.inf])),
            ValueError,
            "factor: expected finite numbers, got inf",
        ),
        (lambda: GaussianCoupling(["a", "b"], np.eye(2)), TypeError, "mean: expected numbers"),
        (lambda: GaussianCoupling(np.zeros(3), np.eye(3)), ValueError, r"mean: .* \(2 d,\)"),
        (lambda: GaussianCoupling(np.zeros(2), np.eye(3)), ValueError, r"factor: .* \(2, 2\)"),
        (lambda: gaussian_kl(UNEQUAL[0], X), TypeError, "q: expected a dsb.Gaussian"),
        (
            lambda: gaussian_kl(UNEQUAL[0], Gaussian([0, 0], 1.0)),
            ValueError,
            "q: expected dimension 1",
        ),
        (lambda: setattr(BRIDGE, "T", 2.0), AttributeError, "immutable"),
        (lambda: setattr(BRIDGE, "_source", 2.0), AttributeError, "immutable"),
        (lambda: setattr(BRIDGE.coupling(), "mean", 2.0), AttributeError, "immutable"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_missing_extra_names_the_command():
    words = r"sums needs no_such: pip install 'schrodinger-bridge\[metrics\]'"
    with pytest.raises(ImportError, match=words):
        need("no_such.module", "metrics", "sums")
    # A shell such as zsh would take bare brackets for a pattern.
    hints = Path(dsb.__file__).with_name("plot.py").read_text(encoding="utf-8")
    assert hints.count("pip install 'schrodinger-bridge[plot]'") == hints.count("pip install") == 2
    assert need("numpy.linalg", "metrics", "sums") is np.linalg
    assert dsb.exact.GaussianBridge is GaussianBridge
