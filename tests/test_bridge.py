"""What training learns, against the population recursion of DSB, exact IPF, and itself."""

import numpy as np
import oracles
import pytest

from dsb import _core

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
DIRECTIONS = ("backward", "forward")
SYMMETRIC = {  # N(-.1, 1) at the data, N(.1, 1) at the prior, Brownian, T = 1/2
    "source": ([-0.1], [[1.0]]),
    "prior": ([0.1], [[1.0]]),
    "g": [1 / 40] * 20,
    "reference": ([0.0], 0.0),
}
ASYMMETRIC = {  # Ornstein-Uhlenbeck towards N(.3, 2), uneven steps
    "source": ([-0.5], [[0.5]]),
    "prior": ([0.3], [[2.0]]),
    "g": [0.02, 0.05, 0.1, 0.2, 0.13],
    "reference": ([0.3], 0.5),
}
PUBLISHED = {  # mean, variance, covariance of start and end; forward ones only where printed
    ("symmetric", "dsb"): {
        1: [(0.0, 0.769114, 0.5)],
        2: [(-0.056691, 0.978270, 0.600566)],
        3: [(-0.078513, 1.007514, 0.613968)],
        5: [(-0.089239, 1.011786, 0.615978)],
        8: [(-0.090742, 1.011854, 0.616092)],
    },
    ("asymmetric", "dsb"): {
        1: [(-0.264771, 0.735496, 0.736426), (-0.061828, 1.500995, 0.504201)],
        2: [(-0.376494, 0.650925, 0.675801), (0.016970, 1.547194, 0.520261)],
        5: [(-0.418287, 0.630220, 0.674784), (0.058796, 1.576956, 0.534240)],
    },
    ("asymmetric", "simplified"): {
        1: [(-0.290568, 0.680624, 0.678523), (0.091215, 1.498859, 0.498457)],
        2: [(-0.430567, 0.649487, 0.665115), (0.228896, 1.532998, 0.512031)],
        5: [(-0.497080, 0.637305, 0.673108), (0.296916, 1.564427, 0.528090)],
    },
}
PROBLEMS = {"symmetric": SYMMETRIC, "asymmetric": ASYMMETRIC}
# The error left is that of the paths over which a net averages, in the main 2 / (1 - ema) steps of
# `batch` pairs, N pairs a path; the average needs 6 / (1 - ema) steps to forget where it began.
NET = oracles.mlp(1, 16)
TRAINING = {"learning_rate": 3e-3, "ema": 0.999}
BATCH = {"symmetric": 2048, "asymmetric": 1024}
STEPS = {"symmetric": 6000, "asymmetric": 9000}


def gaussian_bridge(problem, net, **changed):
    """A core bridge between Gaussians: data are drawn fresh."""
    given = {}
    for end in ("source", "prior"):
        mean, cov = (np.array(part) for part in problem[end])
        given[end] = None
        given[f"{end}_mean"] = mean.astype(np.float32)
        given[f"{end}_factor"] = np.linalg.cholesky(cov).astype(np.float32)
    given["reference_mean"] = np.array(problem["reference"][0], np.float32)
    given["reference_precision"] = problem["reference"][1]
    given["steps"] = np.array(problem["g"])
    return _core.Bridge(_core.Net(net), **given | {"cosine": True} | changed)


def iterate(bridge, steps):
    """One iteration: a backward and a forward half-bridge."""
    for _ in range(2):
        bridge.begin(steps)
        while bridge.steps:
            bridge.run(steps, 1.0)


def moments(bridge, direction, n=1_000_000):
    """Mean and covariance at the end, Cov(start, end), of simulated paths with final noise."""
    paths = bridge.sample(direction, 7, n=n, final_noise=True, paths=True)
    start, end = (paths[:, i].astype(np.float64) for i in (0, -1))
    centred = end - end.mean(axis=0)
    cross = (start - start.mean(axis=0)).T @ centred / n
    return end.mean(axis=0), centred.T @ centred / n, cross


@pytest.mark.parametrize(("problem", "objective"), list(PUBLISHED))
def test_recursion_gives_the_published_numbers(problem, objective):
    found = oracles.population_dsb(**PROBLEMS[problem], iterations=8, objective=objective)
    for n, rows in PUBLISHED[problem, objective].items():
        for direction, row in zip(DIRECTIONS, rows, strict=False):
            got = np.ravel([np.ravel(part) for part in found[n - 1][direction]])
            assert np.abs(got - row).max() < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("problem", "objective"), list(PUBLISHED))
def test_population(problem, objective, seed):
    """Mean, variance and coupling of both directions after 1, 2 and 5 iterations, d = 1."""
    expected = oracles.population_dsb(**PROBLEMS[problem], iterations=5, objective=objective)
    bridge = gaussian_bridge(PROBLEMS[problem], NET, objective=objective, seed=seed,
                             batch=BATCH[problem], **TRAINING)  # fmt: skip
    for n in range(1, 6):
        iterate(bridge, STEPS[problem])
        if n in (1, 2, 5):
            for direction in DIRECTIONS:
                got = np.ravel([np.ravel(part) for part in moments(bridge, direction)])
                exact = np.ravel([np.ravel(part) for part in expected[n - 1][direction]])
                error = np.abs(got - exact).max()
                assert error < (0.01 if n == 5 else 0.02), (n, direction, got, exact)


def random_problem(seed):
    """Full covariances in d = 3 at both ends, uneven steps, Ornstein-Uhlenbeck reference."""
    rng = np.random.default_rng(seed)

    def end():
        root = rng.normal(size=(3, 3))
        return rng.normal(size=3), 0.3 * np.eye(3) + 0.4 * root @ root.T

    return {"source": end(), "prior": end(), "g": [0.05, 0.1, 0.2, 0.2, 0.1, 0.15],
            "reference": (np.array([0.1, -0.2, 0.3]), 0.3)}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", ["dsb", "simplified"])
def test_full_covariance(objective, seed):
    """Within 5 % of the Frobenius norm, after each of three iterations, d = 3."""
    problem = random_problem(4 + seed)
    expected = oracles.population_dsb(**problem, iterations=3, objective=objective)
    bridge = gaussian_bridge(problem, oracles.mlp(3, 48), objective=objective, batch=1024,
                             learning_rate=3e-3, seed=seed)  # fmt: skip
    for exact in expected:
        iterate(bridge, 2500)
        for direction in DIRECTIONS:
            got = moments(bridge, direction, 200_000)
            for a, b in zip(got, exact[direction], strict=True):
                scale = np.linalg.norm(exact[direction][1]) ** (0.5 if a.ndim == 1 else 1.0)
                assert np.linalg.norm(a - b) < 0.05 * scale


@pytest.mark.parametrize("objective", ["dsb", "simplified"])
@pytest.mark.parametrize("output", ["mean", "step", "drift"])
def test_first_half_bridge_simulated_or_in_closed_form(objective, output):
    """Both have the same limit, the recursion's, whatever the net puts out."""
    problem = ASYMMETRIC | {"g": [0.1] * 5}
    exact = oracles.population_dsb(**problem, iterations=1, objective=objective)[0]["backward"]
    exact = np.ravel([np.ravel(part) for part in exact])
    for closed_form in (False, True):
        bridge = gaussian_bridge(problem, oracles.mlp(1, 16), objective=objective, output=output,
                                 closed_form=closed_form, batch=1024, learning_rate=3e-3,
                                 antithetic=output == "step")  # fmt: skip
        bridge.begin(2500)
        while bridge.steps:
            bridge.run(2500, 1.0)
        got = np.ravel([np.ravel(part) for part in moments(bridge, "backward", 300_000)])
        assert np.abs(got - exact).max() < 0.035, (closed_form, got, exact)


def test_closed_form_has_less_variance():
    """The Rao-Blackwell target is the same regression with a smaller residual."""
    losses = {}
    for closed_form in (False, True):
        bridge = gaussian_bridge(SYMMETRIC, oracles.mlp(1, 16), closed_form=closed_form,
                                 learning_rate=3e-3)  # fmt: skip
        bridge.begin(1500)
        while bridge.steps:
            bridge.run(1500, 1.0)
        losses[closed_form] = bridge.log()[0][-500:].mean()
    assert losses[True] < 0.3 * losses[False]


@pytest.mark.parametrize("seed", SEEDS)
def test_swiss_roll(seed):
    """Sliced W2 to fresh data stays near that of exact IPF at the same iteration, and falls."""
    data, fresh = oracles.swiss_roll(10_000, seed), oracles.swiss_roll(20_000, 100 + seed)
    mean = data.mean(axis=0)
    variance = float(((data - mean) ** 2).mean())
    steps, reference = [0.25] * 20, (mean, 1.0 / variance)
    rng = np.random.default_rng(seed)
    few = oracles.swiss_roll(4000, 200 + seed)  # as many points as a quick Sinkhorn takes
    ends = mean + np.sqrt(variance) * rng.normal(size=few.shape)
    weights = oracles.exact_ipf(few, ends, steps, reference, 5)
    bridge = _core.Bridge(
        _core.Net(oracles.mlp(2, 64, depth=3, embed=32)),
        source=data.astype(np.float32),
        prior_mean=mean.astype(np.float32),
        prior_factor=(np.sqrt(variance) * np.eye(2)).astype(np.float32),
        reference_mean=mean.astype(np.float32),
        reference_precision=1.0 / variance,
        steps=np.array(steps),
        learning_rate=3e-3,
        cosine=True,
        seed=seed,
    )
    ours = {}
    for n in range(1, 6):
        iterate(bridge, 3000)
        if n in (1, 3, 5):
            ours[n] = oracles.sliced_w2(bridge.sample("backward", 11, n=len(fresh)), fresh)
            p = weights[n - 1] / weights[n - 1].sum()
            chosen = [few[rng.choice(len(few), len(fresh), p=p)] for _ in range(3)]
            exact = np.mean([oracles.sliced_w2(c, fresh) for c in chosen])
            print(f"seed {seed}, n = {n}: sliced W2 {ours[n]:.3f}, exact IPF {exact:.3f}")
            assert ours[n] < exact + 0.12
    assert ours[5] < 0.7 * ours[1]
