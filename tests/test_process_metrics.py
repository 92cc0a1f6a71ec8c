"""Metrics of whole processes, against closed forms for Gaussian chains and bridges."""

import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose

import dsb
from dsb import exact, metrics
from dsb.exact import GaussianBridge, LinearChain, MixtureBridge, PopulationDSB, Step
from dsb.metrics import estimate

UNEVEN = dsb.Schedule([0.02, 0.05, 0.1, 0.2, 0.13])
SOURCE, PRIOR = (
    dsb.Gaussian([-0.5, 1.0], [[0.5, 0.2], [0.2, 1.0]]),
    dsb.Gaussian([0.3, 0.0], [[2.0, -0.6], [-0.6, 0.8]]),
)
PROBLEM = GaussianBridge(SOURCE, PRIOR, UNEVEN)


def chain(direction, factor=1.0, noise=2.0, slope=-0.4, push=0.7):
    """Steps x + g (slope x + push), noise of variance noise g."""
    g, start = UNEVEN.steps, SOURCE if direction == "forward" else PRIOR
    eye = np.eye(2)
    steps = [
        Step(
            (1 + factor * h * slope) * eye,
            factor * h * push * np.array([1.0, -1.0]),
            noise * h * eye,
        )
        for h in g
    ]
    return LinearChain(start, steps, UNEVEN, direction)


def chain_kl(p, q, direction):
    """sum_k KL of the steps, in closed form: they are Gaussians of one covariance 2 g I."""
    times, total = UNEVEN.times, 0.0
    for k, g in enumerate(UNEVEN.steps):
        law = p.marginal(times[k if direction == "forward" else k + 1])
        a, c = p.maps[k].A - q.maps[k].A, p.maps[k].c - q.maps[k].c
        square = np.trace(a @ law.cov @ a.T) + ((a @ law.mean + c) ** 2).sum()
        total += square / (4 * g)
    return total


# ---- path KL ----


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_path_kl_of_chains_in_closed_form(direction):
    p, q = chain(direction), chain(direction, slope=0.3, push=-0.2)
    expected = chain_kl(p, q, direction)
    found = metrics.path_kl(p, q, direction, n=100_000)
    assert_allclose(found, expected, rtol=0.02)
    assert_allclose(
        metrics.path_kl(p, q, direction, under=q, n=100_000), chain_kl(q, p, direction), rtol=0.02
    )
    assert abs(chain_kl(q, p, direction) / expected - 1) > 0.06  # and so "under" is not ignored
    assert metrics.path_kl(p, p, direction, n=100) == 0.0
    paths = p.sample_paths(1000, seed=5)
    along = metrics.path_kl(p, q, direction, under=paths)
    assert_allclose(along, expected, rtol=0.2)
    assert along != metrics.path_kl(p, q, direction, under=paths[:, ::-1])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_path_kl_looks_at_the_states_that_the_steps_leave(direction):
    """A swapped direction asks for drifts at other states, which the exact KL tells apart."""
    p, q = chain(direction), chain(direction, slope=3.0, push=3.0)
    other = "backward" if direction == "forward" else "forward"
    law = {t: p.marginal(t) for t in UNEVEN.times}
    swapped = 0.0
    for k, g in enumerate(UNEVEN.steps):
        at = law[UNEVEN.times[k if other == "forward" else k + 1]]
        a, c = p.maps[k].A - q.maps[k].A, p.maps[k].c - q.maps[k].c
        swapped += (np.trace(a @ at.cov @ a.T) + ((a @ at.mean + c) ** 2).sum()) / (4 * g)
    expected = chain_kl(p, q, direction)
    found = metrics.path_kl(p, q, direction, n=50_000)
    assert abs(found - expected) < 0.2 * abs(swapped - expected)
    with pytest.raises(ValueError, match=f"p: expected a {other} chain, got a {direction} one"):
        metrics.path_kl(p, q, other)


def test_path_kl_refuses_another_noise():
    """Drifts alone do not give the KL of chains whose noise is not 2 g: a factor of two is seen."""
    p = chain("forward")
    with pytest.raises(
        ValueError, match="q: expected noise of variance 2 g, got another at step 0"
    ):
        metrics.path_kl(p, chain("forward", noise=4.0), "forward")


def rest_of_kl(problem, direction):
    """KL(P | Q) of steps of equal means, P with noise 2 g and Q with the problem's."""
    total = 0.0
    for k, g in enumerate(problem.schedule.steps):
        ratio = 2 * g * np.linalg.inv(problem.step(k, direction).Q)
        total += (np.trace(ratio) - len(ratio) - np.linalg.slogdet(ratio)[1]) / 2
    return total


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_path_kl_to_an_ou_problem_is_that_of_the_means_of_steps(direction):
    problem = GaussianBridge(SOURCE, PRIOR, UNEVEN, dsb.OU(0.0, 2.0))
    steps = [problem.step(k, direction) for k in range(UNEVEN.N)]
    start = SOURCE if direction == "forward" else PRIOR
    means = [Step(s.A, s.c, 2 * g * np.eye(2)) for s, g in zip(steps, UNEVEN.steps, strict=True)]
    same = LinearChain(start, means, UNEVEN, direction)
    assert metrics.path_kl(same, problem, direction, n=500) < 1e-12
    assert not np.allclose(steps[2].Q, means[2].Q, rtol=0.01)
    p = chain(direction)
    found = metrics.path_kl(p, problem, direction, n=50_000)
    assert_allclose(found, chain_kl(p, same, direction), rtol=0.03)
    # What it leaves out falls with the steps.
    rest = [
        rest_of_kl(
            GaussianBridge(SOURCE, PRIOR, dsb.Schedule.constant(N, 0.5 / N), dsb.OU(0.0, 2.0)),
            direction,
        )
        for N in (50, 100, 200)
    ]
    assert_allclose(rest[:-1], 2 * np.array(rest[1:]), rtol=0.1)


def test_path_kl_of_a_perfect_discretisation_falls_with_the_steps():
    """Population iterates of more and more steps come closer to the bridge in continuous time."""
    found = []
    for N in (10, 20, 40):
        schedule = dsb.Schedule.constant(N, 0.5 / N)
        problem = GaussianBridge(SOURCE, PRIOR, schedule)
        limit = PopulationDSB(SOURCE, PRIOR, schedule, dsb.Brownian()).iterate(8)
        found.append(metrics.path_kl(limit.process("backward"), problem, n=5000))
    assert found[0] > 2 * found[1] > 4 * found[2] > 0
    assert found[0] < 0.1


# ---- energy ----


def conditional_kl(problem):
    """E KL(P(X_N | X_0) | Q(X_N | X_0)) to Brownian motion, which for the bridge is all of the path KL."""
    s2, joint = 2 * problem.T, problem.coupling()
    d = problem.dim
    gain = joint.cov[d:, :d] @ np.linalg.inv(joint.cov[:d, :d])
    rest = joint.cov[d:, d:] - gain @ joint.cov[:d, d:]
    moved = gain - np.eye(d)
    square = np.trace(moved @ joint.cov[:d, :d] @ moved.T)
    square += ((joint.mean[d:] - joint.mean[:d]) ** 2).sum()
    return (np.trace(rest) / s2 - d - np.linalg.slogdet(rest / s2)[1] + square / s2) / 2


def test_energy_is_the_kl_to_brownian_motion():
    """By the chain rule: KL of path measures started alike = E int |f|^2 dt / 4. A noise of variance g in
    place of 2 g, or of 4 g, is a factor of two here."""
    fine = dsb.Schedule.constant(400, UNEVEN.T / 400)
    found = metrics.path_energy(PROBLEM, "forward", schedule=fine, n=4000)
    assert_allclose(found / 4, conditional_kl(PROBLEM), rtol=0.03)
    turned = GaussianBridge(PRIOR, SOURCE, UNEVEN)  # time reversed: its backward is our forward
    found = metrics.path_energy(turned, "backward", schedule=fine, n=4000)
    assert_allclose(found / 4, conditional_kl(PROBLEM), rtol=0.03)
    assert (
        abs(conditional_kl(turned) / conditional_kl(PROBLEM) - 1) > 0.2
    )  # a swapped direction is seen


def test_flow_energy_in_closed_form():
    """E |(f - b)/2|^2 by finite differences of the marginal's mean and of its covariance's root map."""
    weights = np.array(UNEVEN.steps)
    inner = (weights[1:] + weights[:-1]) / 2
    inner[0] += weights[0] / 2
    inner[-1] += weights[-1] / 2
    assert_allclose(inner.sum(), UNEVEN.T)
    expected = 0.0
    for t, weight in zip(UNEVEN.times[1:-1], inner, strict=True):
        law, h = PROBLEM.marginal(t), 1e-5
        later, before = PROBLEM.marginal(t + h), PROBLEM.marginal(t - h)
        slope, rate = (later.mean - before.mean) / (2 * h), (later.cov - before.cov) / (2 * h)
        # v = slope + K (x - m) with K S + S K^T = dS/dt; v is a gradient, so K is symmetric.
        values, basis = np.linalg.eigh(law.cov)
        k = basis @ ((basis.T @ rate @ basis) / (values[:, None] + values)) @ basis.T
        expected += weight * ((slope**2).sum() + np.trace(k @ law.cov @ k.T))
    found = metrics.path_energy(PROBLEM, "flow", n=50_000)
    assert_allclose(found, expected, rtol=0.02)


def test_the_flow_of_a_symmetric_bridge_rests_in_the_middle():
    """Between equal ends forward and backward drift agree at T / 2; ends apart it moves at one speed."""
    halves, still = dsb.Schedule([0.3, 0.3]), dsb.Gaussian([0.0, 1.0], 0.7)
    same = GaussianBridge(still, still, halves)
    assert metrics.path_energy(same, "forward", schedule=halves) > 0.1
    assert metrics.path_energy(same, "flow", schedule=halves) < 1e-12
    moved = GaussianBridge(still, dsb.Gaussian([3.0, 1.0], 0.7), halves)
    assert_allclose(metrics.path_energy(moved, "flow"), 9 / halves.T, rtol=1e-5)


# ---- marginals over time ----


@pytest.mark.parametrize(("covariance", "floor"), [("diagonal", 2.0), ("full", 2 * 5 / 4)])
def test_the_floor_of_path_kl_of_marginals(covariance, floor):
    n = 1000
    told = {"n": n, "repeats": 20, "covariance": covariance}
    found = estimate(metrics.path_gaussian_kl, PROBLEM, PROBLEM, **told)
    assert_allclose(found.floor, floor / n, rtol=0.25)
    assert_allclose(found.value, floor / n, rtol=0.25)
    assert abs(found.excess) < 5 * np.hypot(found.error, found.floor_error)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_marginals_of_a_population_iterate(direction):
    """The mean over the grid of closed forms; paths turned around in time give another value."""
    process = PopulationDSB(SOURCE, PRIOR, UNEVEN, dsb.Brownian()).iterate(1).process(direction)
    pairs = [(process.marginal(t), PROBLEM.marginal(t)) for t in UNEVEN.times]
    expected = 0.0
    for p, q in pairs:
        v, s = np.diag(p.cov), np.diag(q.cov)
        expected += (v / s - 1 - np.log(v / s) + (p.mean - q.mean) ** 2 / s).sum() / 2
    expected /= 6
    assert_allclose(metrics.path_gaussian_kl(process, PROBLEM, n=200_000), expected, rtol=0.05)
    full = np.mean([exact.gaussian_kl(p, q) for p, q in pairs])
    found = metrics.path_gaussian_kl(process, PROBLEM, n=200_000, covariance="full")
    assert_allclose(found, full, rtol=0.05)
    paths = process.sample_paths(20_000)
    assert_allclose(metrics.path_gaussian_kl(paths, PROBLEM), expected, rtol=0.3)
    assert metrics.path_gaussian_kl(paths[:, ::-1], PROBLEM) > 5 * expected


def test_twice_the_noise_is_seen():
    """Marginals of a chain with noise 4 g in place of 2 g: the KL is far above its floor."""
    right, wrong = chain("forward"), chain("forward", noise=4.0)
    floor = metrics.path_gaussian_kl(right, right, n=5000)
    assert floor < 1e-3
    assert metrics.path_gaussian_kl(wrong, right, n=5000) > 50 * floor


# ---- coupling ----


def test_coupling_error():
    cross = PROBLEM.coupling().cross
    exactly = metrics.coupling_error(PROBLEM, PROBLEM, n=200_000)
    assert exactly < 0.02
    x0, xN = PROBLEM.coupling().sample(200_000, 3)
    assert metrics.coupling_error((x0, xN), PROBLEM) < 0.02
    assert_allclose(metrics.coupling_error((x0, 2 * xN), PROBLEM), 1.0, atol=0.03)
    # The pair the wrong way round: C^T in place of C.
    swapped = np.linalg.norm(cross.T - cross) / np.linalg.norm(cross)
    assert swapped > 0.05
    assert_allclose(metrics.coupling_error((xN, x0), PROBLEM), swapped, atol=0.02)
    assert_allclose(metrics.coupling_error((x0, xN[::-1]), PROBLEM), 1.0, atol=0.02)


@pytest.mark.parametrize("n", [2, 20])
def test_coupling_of_population_iterates(n):
    """Against the recursion: the coupling of plain DSB decays."""
    source, prior = dsb.Gaussian([0.0], 0.25), dsb.Gaussian([0.0], 4.0)
    schedule = dsb.Schedule.constant(20, 0.5 / 20)
    problem = GaussianBridge(source, prior, schedule)
    given = [(law.mean, law.cov) for law in (source, prior)]
    maps = oracles.population_dsb(*given, schedule.steps, ([0.0], 0.0), n)[-1]
    chain_n = PopulationDSB(source, prior, schedule, dsb.Brownian()).iterate(n)
    for direction in ("backward", "forward"):
        cov = float(maps[direction][2][0, 0])
        found = metrics.coupling_error(chain_n.process(direction), problem, n=200_000)
        assert_allclose(found, abs(cov / 0.6180340 - 1), atol=0.012)


# ---- mixtures ----


def test_cbw2_uvp_of_mixtures():
    problem = MixtureBridge.from_sphere(2, 1.0)
    fine = metrics.cbw2_uvp(problem, problem, n=100, m=1000)
    assert 0 < fine < 0.5
    # The floor falls as 1 / m.
    assert metrics.cbw2_uvp(problem, problem, n=100, m=100) > 5 * fine
    spread = np.trace(problem.marginal(problem.T).cov)

    def shifted(x, m, seed):
        return problem.sample_conditional(x, m, seed) + np.float32(0.5)

    # BW2 of a shift by s is |s|^2 / 2.
    found = metrics.cbw2_uvp(shifted, problem, n=100, m=1000)
    assert_allclose(found, 100 * (0.5**2 * 2 / 2) / (spread / 2), rtol=0.1)
    estimated = estimate(metrics.cbw2_uvp, shifted, problem, n=50, m=200, repeats=3)
    assert estimated.excess > 0.8 * found
    assert estimated.floor < 0.3 * found


def test_cbw2_uvp_of_gaussian_plans_in_closed_form():
    """Conditionals N(x, v I) against N(0, I): BW2 = |x|^2 / 2 + d (1 - sqrt(v))^2 / 2."""

    class Truth:
        dim, T = 3, 1.0

        def marginal(self, t):
            return dsb.Gaussian(np.zeros(3), 1.0)

        def conditional(self, x0):
            return np.zeros((len(x0), 3)), np.tile(np.eye(3), (len(x0), 1, 1))

    def plan(x0, m, seed):
        z = np.random.default_rng(seed).normal(size=(len(x0), m, 3))
        return x0[:, None] + 2.0 * z

    expected = 100 * (3 / 2 + 3 * (1 - 2) ** 2 / 2) / (3 / 2)
    found = metrics.cbw2_uvp(plan, Truth(), n=2000, m=500)
    assert_allclose(found, expected, rtol=0.05)


# ---- trained bridges ----


@pytest.fixture(scope="module")
def bridge():
    """Roughly trained: enough to be told from exact."""
    told = {"net": dsb.MLP(width=16, depth=2, embedding=8), "batch": 64, "refresh": 20}
    found = dsb.Bridge(SOURCE, PRIOR, schedule=UNEVEN, reference=dsb.Brownian(), **told)
    found.fit(2, 400, progress=False)
    return found


def test_metrics_of_a_trained_bridge(bridge):
    for direction in ("backward", "forward"):
        kl = metrics.path_gaussian_kl(bridge, PROBLEM, direction, n=5000)
        assert 4e-4 < kl < 0.2
        paths = bridge.paths(20_000, direction=direction, seed=1, final_noise=True)
        ordered = paths if direction == "forward" else paths[:, ::-1]
        same = metrics.path_gaussian_kl(ordered, PROBLEM, direction)
        assert_allclose(same, kl, rtol=0.5, atol=2e-3)
        assert metrics.path_gaussian_kl(ordered[:, ::-1], PROBLEM, direction) > 5 * kl
        pair = metrics.coupling_error((ordered[:, 0], ordered[:, -1]), PROBLEM)
        assert_allclose(metrics.coupling_error(bridge, PROBLEM, direction), pair, atol=0.05)
    assert metrics.path_kl(PROBLEM, bridge, "forward") > 0
    assert metrics.path_kl(bridge, bridge) == 0.0
    assert metrics.path_energy(bridge, "flow") > 0


def test_a_trained_bridge_is_near_what_perfect_nets_give(bridge):
    """Nearer than to the limit, from which two iterations are still far."""
    second = PopulationDSB(SOURCE, PRIOR, UNEVEN, dsb.Brownian()).iterate(2)
    for direction in ("backward", "forward"):
        perfect = second.process(direction)
        gap = metrics.path_kl(bridge, perfect, direction)
        assert 0 < gap < 0.07
        assert metrics.path_kl(bridge, PROBLEM, direction, start="exact") > 2 * gap
        energy = metrics.path_energy(bridge, direction)
        assert_allclose(energy, metrics.path_energy(perfect, direction), rtol=0.15)


@pytest.mark.parametrize("final_noise", [False, True])
def test_paths_of_a_bridge_by_hand(bridge, final_noise):
    from dsb._build import mixed

    x = SOURCE.sample(500, 9)
    told = {"direction": "forward", "final_noise": final_noise}
    by_hand = metrics.path_gaussian_kl(bridge.paths(x, seed=mixed(3, 0), **told), PROBLEM)
    assert metrics.path_gaussian_kl(bridge, PROBLEM, start=x, seed=3, **told) == by_hand
    back = bridge.paths(x, seed=mixed(3, 0), final_noise=final_noise)[:, ::-1]
    by_hand = metrics.path_gaussian_kl(back, PROBLEM)
    found = metrics.path_gaussian_kl(bridge, PROBLEM, start=x, seed=3, final_noise=final_noise)
    assert found == by_hand


def test_drift_of_a_bridge_by_hand(bridge):
    """path_kl as a loop over its own paths and Bridge.drift."""
    from dsb._build import mixed

    for direction in ("backward", "forward"):
        paths = bridge.paths(300, direction=direction, seed=mixed(4, 0), final_noise=True)
        if direction == "backward":
            paths = paths[:, ::-1]
        expected = 0.0
        for k, g in enumerate(UNEVEN.steps):
            at = k if direction == "forward" else k + 1
            t = UNEVEN.times[at]
            gap = bridge.drift(paths[:, at].copy(), t, direction) - PROBLEM.drift(
                paths[:, at], t, direction
            )
            expected += g * (gap**2).sum(axis=1).mean() / 4
        found = metrics.path_kl(bridge, PROBLEM, direction, n=300, seed=4)
        assert_allclose(found, expected, rtol=1e-6)


def test_conditional_samples_of_a_bridge(bridge):
    """The forward process from repeated starts, against the conditional of the Gaussian plan."""

    class Truth:
        dim, T = 2, PROBLEM.T
        marginal = PROBLEM.marginal

        def conditional(self, x0):
            joint = PROBLEM.coupling()
            gain = joint.cov[2:, :2] @ np.linalg.inv(joint.cov[:2, :2])
            mean = joint.mean[2:] + (x0 - joint.mean[:2]) @ gain.T
            return mean, np.tile(joint.cov[2:, 2:] - gain @ joint.cov[:2, 2:], (len(x0), 1, 1))

    with_noise = metrics.cbw2_uvp(bridge, Truth(), n=50, m=500)
    assert 0.05 < with_noise < 30
    assert metrics.cbw2_uvp(bridge, Truth(), n=50, m=500, final_noise=False) > with_noise


def test_the_noise_of_the_last_step_is_part_of_the_conditional():
    """An untrained bridge is the reference, X_N ~ N(x, 2 T I); without the last noise 2 (T - g)."""
    prior = dsb.Gaussian([0.0, 0.0], 0.5 + 2 * UNEVEN.T)
    untrained = dsb.Bridge(
        dsb.Gaussian([0.0, 0.0], 0.5),
        prior,
        schedule=UNEVEN,
        reference=dsb.Brownian(),
        net=dsb.MLP(width=8, depth=1, embedding=4),
    )

    class Truth:
        dim, T = 2, UNEVEN.T

        def marginal(self, t):
            return prior if t else dsb.Gaussian([0.0, 0.0], 0.5)

        def conditional(self, x0):
            return x0, np.tile(2 * self.T * np.eye(2), (len(x0), 1, 1))

    v, short = 2 * UNEVEN.T, 2 * (UNEVEN.T - UNEVEN.steps[-1])
    lost = 100 * (v**0.5 - short**0.5) ** 2 / (0.5 + v)
    told = {"n": 200, "m": 2000}
    assert metrics.cbw2_uvp(untrained, Truth(), **told) < 0.1 * lost
    found = metrics.cbw2_uvp(untrained, Truth(), **told, final_noise=False)
    assert_allclose(found, lost, rtol=0.1)


def test_estimates_of_processes(bridge):
    found = estimate(metrics.path_gaussian_kl, bridge, PROBLEM, n=2000, repeats=3)
    assert found == estimate(metrics.path_gaussian_kl, bridge, PROBLEM, n=2000, repeats=3)
    assert found.value > found.floor > 0
    assert_allclose(found.excess, found.value - found.floor, rtol=1e-12)
    assert estimate(metrics.path_kl, bridge, PROBLEM, n=500, repeats=3).floor == 0.0


def test_an_estimate_without_a_reference(bridge):
    """The velocity is an option, and there is nothing that could be a floor."""
    energy = estimate(metrics.path_energy, bridge, velocity="flow", n=500, repeats=3)
    assert_allclose(energy.value, metrics.path_energy(bridge, "flow"), rtol=0.2)
    assert energy.floor is energy.floor_error is energy.excess is None
    assert "nan" not in repr(energy)
    assert "floor" not in repr(energy)
    forward = estimate(metrics.path_energy, bridge, n=500, repeats=3)
    assert_allclose(forward.value, metrics.path_energy(bridge, "forward"), rtol=0.2)
    with pytest.raises(TypeError, match="y: expected none, as path_energy compares with nothing"):
        estimate(metrics.path_energy, bridge, "flow")


class Sampler:
    """Knows conditional samples, and nothing else."""

    def __init__(self, problem):
        self.sample_conditional = problem.sample_conditional


def test_an_estimate_of_conditional_samples():
    problem = MixtureBridge.from_sphere(2, 1.0)
    found = estimate(metrics.cbw2_uvp, Sampler(problem), problem, n=50, m=200, repeats=3)
    assert abs(found.excess) < 0.5 * found.floor

    class Unsampled:
        dim, T = problem.dim, problem.T
        marginal, conditional = problem.marginal, problem.conditional

    found = estimate(metrics.cbw2_uvp, Sampler(problem), Unsampled(), n=50, m=200, repeats=3)
    assert found.value > 0
    assert found.floor is None


def test_an_estimate_takes_as_many_samples_as_the_metric_does():
    problem = MixtureBridge.from_sphere(2, 1.0)
    asked = []

    def counted(x, m, seed):
        asked.append(len(x))
        return problem.sample_conditional(x, m, seed)

    found = estimate(metrics.cbw2_uvp, counted, problem, m=20, repeats=2)
    assert found.n == 1000
    assert sum(asked) == 2 * 1000
    assert estimate(metrics.path_kl, PROBLEM, PROBLEM, repeats=2).n == 2000
    assert estimate(metrics.path_energy, PROBLEM, repeats=2).n == 2000
    assert estimate(metrics.coupling_error, PROBLEM, PROBLEM, repeats=2).n == 10_000


# ---- bad input ----

ONE = GaussianBridge(dsb.Gaussian([0.0], 1.0), dsb.Gaussian([0.0], 1.0), UNEVEN)
CONTINUOUS = GaussianBridge(SOURCE, PRIOR, UNEVEN.T)
PATHS = PROBLEM.sample_paths(50)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda m, b: m.path_gaussian_kl(ONE, PROBLEM),
            ValueError,
            "process: expected dimension 2",
        ),
        (lambda m, b: m.path_gaussian_kl(PATHS[:, 1:], PROBLEM), ValueError, r"shape \(n, 6, 2\)"),
        (lambda m, b: m.path_gaussian_kl(PATHS[:1], PROBLEM), ValueError, "at least 2 paths"),
        (
            lambda m, b: m.path_gaussian_kl(PATHS * np.nan, PROBLEM),
            ValueError,
            "finite numbers, got nan",
        ),
        (
            lambda m, b: m.path_gaussian_kl(PATHS, SOURCE),
            TypeError,
            "problem: expected a dsb.Bridge or",
        ),
        (
            lambda m, b: m.path_gaussian_kl(PATHS[:2], PROBLEM, covariance="full"),
            ValueError,
            "least 3 paths",
        ),
        (
            lambda m, b: m.path_gaussian_kl(b, PROBLEM, n=1),
            ValueError,
            "n: expected at least 2 paths",
        ),
        (lambda m, b: m.path_gaussian_kl(b, PROBLEM, "up"), ValueError, "direction: expected"),
        (
            lambda m, b: m.path_gaussian_kl(b, PROBLEM, start="data"),
            ValueError,
            "start: expected one of",
        ),
        (
            lambda m, b: m.path_gaussian_kl(b, PROBLEM, start=np.ones((5, 3))),
            ValueError,
            "start: expected 2",
        ),
        (
            lambda m, b: m.path_gaussian_kl(b, PROBLEM, covariance="none"),
            ValueError,
            "covariance: expected",
        ),
        (
            lambda m, b: m.path_gaussian_kl(CONTINUOUS, CONTINUOUS),
            ValueError,
            "schedule: expected a dsb.Sch",
        ),
        (
            lambda m, b: m.path_gaussian_kl(b, CONTINUOUS, schedule=[1.0]),
            TypeError,
            "schedule: expected",
        ),
        (
            lambda m, b: m.path_kl(b, GaussianBridge(SOURCE, PRIOR, 1.0)),
            ValueError,
            "q: expected T = 0.5, that of the schedule, got 1",
        ),
        (lambda m, b: m.path_kl(b, SOURCE), TypeError, "q: expected a dsb.Bridge or a problem"),
        (
            lambda m, b: m.path_kl(b, b, start="exact"),
            ValueError,
            "start: expected 'own' or points",
        ),
        (lambda m, b: m.path_energy(b, "both"), ValueError, "velocity: expected one of"),
        (lambda m, b: m.path_energy(b, start="exact"), ValueError, "start: expected one of 'own'"),
        *(
            (call, ValueError, "start: expected to be left out where no bridge walks")
            for call in (
                lambda m, b: m.path_energy(PROBLEM, start=np.ones((5, 2))),
                lambda m, b: m.path_gaussian_kl(PROBLEM, PROBLEM, start=np.ones((5, 2))),
                lambda m, b: m.path_gaussian_kl(PATHS, PROBLEM, start=np.ones((5, 2))),
                lambda m, b: m.path_kl(b, PROBLEM, under=PROBLEM, start=np.ones((5, 2))),
                lambda m, b: m.path_kl(b, PROBLEM, under=PATHS, start=np.ones((5, 2))),
                lambda m, b: m.coupling_error(PROBLEM, PROBLEM, start=np.ones((5, 2))),
                lambda m, b: m.coupling_error((PATHS[:, 0],) * 2, PROBLEM, start=np.ones((5, 2))),
            )
        ),
        (
            lambda m, b: m.coupling_error((PATHS[:, 0],) * 2, PROBLEM, start="data"),
            ValueError,
            "start: expected one of",
        ),
        (
            lambda m, b: m.coupling_error((PATHS[:, 0], PATHS[:9, -1]), PROBLEM),
            ValueError,
            "x_N: expected 50",
        ),
        (
            lambda m, b: m.coupling_error(PATHS, PROBLEM),
            TypeError,
            "process: expected a dsb.Bridge",
        ),
        (
            lambda m, b: m.coupling_error((PATHS[:1, 0],) * 2, PROBLEM),
            ValueError,
            "at least 2 samples",
        ),
        (
            lambda m, b: m.cbw2_uvp(b, PROBLEM),
            TypeError,
            r"problem: expected one with conditional\(x0\)",
        ),
        (
            lambda m, b: m.estimate(m.path_gaussian_kl, PATHS, PROBLEM),
            TypeError,
            "x: expected something to",
        ),
        (
            lambda m, b: m.energy_distance(PROBLEM, PATHS[:, 0]),
            TypeError,
            r"marginal\(t\) is a law",
        ),
    ],
)
def test_bad_input(bridge, call, kind, message):
    with pytest.raises(kind, match=message):
        call(metrics, bridge)


def test_a_conditional_sampler_is_checked():
    problem = MixtureBridge.from_sphere(2, 1.0)
    for wrong in (lambda x, m, seed: x, lambda x, m, seed: np.full((len(x), m, 2), np.nan)):
        with pytest.raises(ValueError, match=r"process: expected f.* from the conditional sampler"):
            metrics.cbw2_uvp(wrong, problem, n=3, m=4)
    with pytest.raises(ValueError, match="m: expected a whole number of at least 2"):
        metrics.cbw2_uvp(problem, problem, m=1)
    with pytest.raises(TypeError, match=r"process: expected a dsb\.Bridge, an object"):
        metrics.cbw2_uvp(3, problem)


def test_conditional_metrics_compare_the_final_time():
    problem = MixtureBridge.from_sphere(2, 1.0)
    bridge = dsb.Bridge(
        dsb.Gaussian([0.0, 0.0], 0.25),
        dsb.Gaussian([0.0, 0.0], 1.0),
        schedule=dsb.Schedule.constant(4, 0.1),
        reference=dsb.Brownian(),
    )
    with pytest.raises(ValueError, match=r"process: expected T = 0.5"):
        metrics.cbw2_uvp(bridge, problem, n=10, m=10)
