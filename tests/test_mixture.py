"""Bridges with a mixture as potential, against quadrature, Monte Carlo and finite differences."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from dsb import Gaussian, Schedule
from dsb.exact import GaussianBridge, Mixture, MixtureBridge, Problem

LINE = Mixture([0.3, 0.7], [[-1.5], [1.0]], [0.05, 0.3])  # the potential on a line
SOURCE = Mixture([0.4, 0.6], [[-0.5], [0.4]], [0.2, 0.5])


def on_a_line(eps, source=SOURCE, schedule=None):
    return MixtureBridge(source, LINE.weights, LINE.means, LINE.covs, eps, schedule)


def spread(rng, K, d):
    roots = rng.normal(size=(K, d, d))
    return 0.2 * np.eye(d) + 0.2 * roots @ roots.transpose(0, 2, 1)


def potentials(d, seed=0):
    """The three ways of giving covariances."""
    rng = np.random.default_rng(seed)
    weights, means = rng.dirichlet(np.ones(4)), rng.normal(size=(4, d))
    return {
        "one": (weights, means, 0.3),
        "numbers": (weights, means, rng.uniform(0.1, 1, size=4)),
        "diagonal": (weights, means, rng.uniform(0.1, 1, size=(4, d))),
        "full": (weights, means, spread(rng, 4, d)),
    }


def normal(y, mean, var):
    return np.exp(-((y - mean) ** 2) / (2 * var)) / np.sqrt(2 * np.pi * var)


# ---- the law ----


@pytest.mark.parametrize("kind", ["one", "numbers", "diagonal", "full"])
def test_mixture(kind):
    weights, means, covs = potentials(3)[kind]
    law = Mixture(weights, means, covs)
    full = {"one": lambda: 0.3 * np.eye(3) * np.ones((4, 1, 1)),
            "numbers": lambda: covs[:, None, None] * np.eye(3),
            "diagonal": lambda: covs[:, None] * np.eye(3),
            "full": lambda: covs}[kind]()  # fmt: skip
    np.testing.assert_allclose(law.covs, full, atol=1e-14)
    x = np.random.default_rng(1).normal(size=(6, 3))
    parts = []
    for w, m, S in zip(weights, means, full, strict=True):
        square = np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(S), x - m)
        parts.append(w * np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * S)))
    np.testing.assert_allclose(law.log_density(x), np.log(sum(parts)), rtol=1e-12)
    np.testing.assert_allclose(law.responsibilities(x), (parts / sum(parts)).T, rtol=1e-10)
    h = 1e-5
    for i, e in enumerate(np.eye(3)):
        slope = (law.log_density(x + h * e) - law.log_density(x - h * e)) / (2 * h)
        np.testing.assert_allclose(law.score(x)[:, i], slope, rtol=1e-7, atol=1e-7)
    drawn = law.sample(300_000, seed=2)
    assert drawn.dtype == np.float32
    assert np.abs(drawn.mean(axis=0) - law.mean).max() < 0.01
    assert np.abs(np.cov(drawn.T) - law.cov).max() < 0.02
    np.testing.assert_array_equal(law.sample(10, seed=2), drawn[:10])
    wider = Mixture(weights, means, full + 0.5 * np.eye(3))
    np.testing.assert_allclose(law.convolved(0.5).log_density(x), wider.log_density(x), rtol=1e-12)
    copy = pickle.loads(pickle.dumps(law))
    np.testing.assert_allclose(copy.log_density(x), law.log_density(x), rtol=1e-13)


def test_components_without_weight():
    law = Mixture([1.0, 0.0], [[0.0], [9.0]], 1.0)
    alone = Mixture([1.0], [[0.0]], 1.0)
    x = np.array([[-1.0], [9.0]])
    np.testing.assert_allclose(law.log_density(x), alone.log_density(x))
    np.testing.assert_array_equal(law.responsibilities(x), [[1, 0], [1, 0]])
    assert law.sample(1000).max() < 6
    problem = MixtureBridge(SOURCE, law.weights, law.means, law.covs, 1.0)
    for direction in ("forward", "backward"):
        exact = MixtureBridge(SOURCE, [1.0], [[0.0]], 1.0, 1.0).drift(x, 0.2, direction)
        np.testing.assert_allclose(problem.drift(x, 0.2, direction), exact, atol=1e-12)


# ---- d = 1, by quadrature ----

Y = np.linspace(-25, 25, 50_001)
DY = Y[1] - Y[0]


def plan_row(x, eps):
    """pi(. | x) ~ N(.; x, eps) sum_k w_k N(.; mu_k, S_k) on the grid Y."""
    v = sum(
        w * normal(Y, m, s)
        for w, m, s in zip(LINE.weights, LINE.means[:, 0], LINE.covs[:, 0, 0], strict=True)
    )
    row = normal(Y, x, eps) * v
    return row / (row.sum() * DY)


@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
def test_plan_by_quadrature(eps):
    problem = on_a_line(eps)
    x = np.linspace(-2, 2, 7)
    mean, cov = problem.conditional(x[:, None])
    drawn = problem.sample_conditional(x[:, None], 100_000, seed=1)
    for i, at in enumerate(x):
        row = plan_row(at, eps)
        first = (row * Y).sum() * DY
        second = (row * (Y - first) ** 2).sum() * DY
        np.testing.assert_allclose((mean[i, 0], cov[i, 0, 0]), (first, second), rtol=1e-8)
        inside = np.cumsum(row) * DY
        empirical = np.searchsorted(np.sort(drawn[i, :, 0]), Y) / 100_000
        assert np.abs(inside - empirical).max() < 1.95 / np.sqrt(100_000)  # Kolmogorov, 1e-3


@pytest.mark.parametrize("u", [0.0, 0.4, 0.9])
def test_potential_by_quadrature(u):
    """phi_t is the potential smoothed by what noise is left."""
    problem, eps = on_a_line(1.0), 1.0
    v = np.exp(LINE.log_density(Y[:, None]))
    for x in (-1.0, 0.3, 2.0):
        smooth = np.log((v * normal(Y, x, eps * (1 - u))).sum() * DY)
        found = problem.log_potential(np.array([[x]]), u * problem.T)
        np.testing.assert_allclose(found, smooth, rtol=1e-9)


@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
def test_marginals_by_quadrature(eps):
    """Mean and variance of X_t from p_0 and the plan's rows; the tolerance is that of the averages."""
    problem = on_a_line(eps)
    starts = np.linspace(-4.5, 4.5, 1801)
    p0 = np.exp(SOURCE.log_density(starts[:, None]))
    p0 /= p0.sum()
    mean, cov = (part.ravel() for part in problem.conditional(starts[:, None]))
    m0, m1 = p0 @ starts, p0 @ mean
    v1, cross = p0 @ (cov + (mean - m1) ** 2), p0 @ ((starts - m0) * (mean - m1))
    coupling, error = problem.coupling(), problem.coupling().error
    assert 0 < error < 0.01
    np.testing.assert_allclose(coupling.mean, [m0, m1], atol=5 * error)
    np.testing.assert_allclose(coupling.cov[1, 1], v1, atol=8 * error)
    np.testing.assert_allclose(coupling.cross, [[cross]], atol=8 * error)
    for u in (0.0, 0.3, 1.0):
        law = problem.marginal(u * problem.T)
        var = (1 - u) ** 2 * SOURCE.cov[0, 0] + u**2 * v1 + u * (1 - u) * (2 * cross + eps)
        np.testing.assert_allclose(law.mean, (1 - u) * m0 + u * m1, atol=5 * error)
        np.testing.assert_allclose(law.cov, [[var]], atol=8 * error)
        drawn = law.sample(400_000, seed=3)
        assert abs(drawn.mean() - law.mean[0]) < 5 * np.sqrt(var / 400_000) + 5 * error
        assert abs(drawn.var() / var - 1) < 0.02


def backward_by_quadrature(eps, x, t):
    """(E[X_0 given X_t = x] - x) / t from p_0, phi_0 and the Gaussian kernel."""
    starts = np.linspace(-8, 8, 32_001)[:, None]
    phi = sum(
        w * normal(starts[:, 0], m, s + eps)
        for w, m, s in zip(LINE.weights, LINE.means[:, 0], LINE.covs[:, 0, 0], strict=True)
    )
    row = np.exp(SOURCE.log_density(starts)) / phi * normal(x, starts[:, 0], 2 * t)
    return ((row @ starts[:, 0]) / row.sum() - x) / t


@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("u", [0.05, 0.5, 1.0])
def test_backward_drift_by_quadrature(eps, u):
    problem = on_a_line(eps)
    t = u * problem.T
    x = np.linspace(-2.5, 2.5, 11)
    exact = np.array([backward_by_quadrature(eps, at, t) for at in x])
    found = problem.backward_drift(x[:, None], t, pairs=4000, seed=1)
    assert np.abs(found.value[:, 0] - exact).max() < 0.03 * np.abs(exact).max()
    assert (np.abs(found.value[:, 0] - exact) < 4.5 * found.error + 1e-5).all()
    rough = problem.backward_drift(x[:, None], t, pairs=250, seed=1)
    ratio = np.median(rough.error / found.error)
    assert 2 < ratio < 17  # with the root of the draws, or in proportion to them
    again = problem.drift(x[:, None], t, "backward")
    np.testing.assert_array_equal(again, problem.drift(x[:, None], t))
    velocity = problem.velocity(x[:, None], t)
    np.testing.assert_array_equal(velocity, (problem.drift(x[:, None], t, "forward") - again) / 2)


# ---- more dimensions ----


@pytest.mark.parametrize("kind", ["one", "numbers", "diagonal", "full"])
def test_plan_by_monte_carlo(kind):
    """Moments of pi(. | x): draws of N(x, eps I), weighted by the potential."""
    given, eps = potentials(2)[kind], 0.7
    problem = MixtureBridge(Gaussian([0.0, 0.0], 0.5), *given, eps)
    x = np.array([[0.5, -0.3], [-1.0, 0.2]])
    mean, cov = problem.conditional(x)
    drawn = problem.sample_conditional(x, 200_000, seed=0)
    rng, n = np.random.default_rng(0), 1_000_000
    for i in range(2):
        y = x[i] + np.sqrt(eps) * rng.normal(size=(n, 2))
        w = np.exp(Mixture(*given).log_density(y))
        w /= w.sum()
        first = w @ y
        second = (w[:, None] * (y - first)).T @ (y - first)
        np.testing.assert_allclose(mean[i], first, atol=6e-3)
        np.testing.assert_allclose(cov[i], second, atol=1e-2)
        assert np.abs(drawn[i].mean(axis=0) - mean[i]).max() < 6e-3
        assert np.abs(np.cov(drawn[i].T) - cov[i]).max() < 1e-2


@pytest.mark.parametrize("kind", ["one", "numbers", "diagonal", "full"])
@pytest.mark.parametrize("d", [1, 5])
def test_forward_drift_by_finite_differences(kind, d):
    """2 grad log phi_t, and phi solves d/dt phi + laplacian phi = 0."""
    problem = MixtureBridge(Gaussian(np.zeros(d), 1.0), *potentials(d)[kind], 2.0)
    x = np.random.default_rng(0).normal(size=(5, d))
    h = 1e-4
    for t in (0.0, 0.5, 1.0):
        found = problem.drift(x, t, "forward")
        for i, e in enumerate(np.eye(d)):
            rise = problem.log_potential(x + h * e, t) - problem.log_potential(x - h * e, t)
            np.testing.assert_allclose(found[:, i], 2 * rise / (2 * h), rtol=1e-5, atol=1e-5)
    t = 0.5
    phi = np.exp(problem.log_potential(x, t))
    later, sooner = (np.exp(problem.log_potential(x, t + s)) for s in (h, -h))
    bent = sum(
        np.exp(problem.log_potential(x + s * h * e, t)) - phi for e in np.eye(d) for s in (1, -1)
    )
    np.testing.assert_allclose(
        (later - sooner) / (2 * h), -bent / h**2, rtol=1e-3, atol=1e-5 * phi.max()
    )
    times = np.array([0.0, 0.1, 0.1, 0.7, 1.0])
    together = problem.drift(x, times, "forward")
    for i, at in enumerate(times):
        np.testing.assert_allclose(together[i], problem.drift(x[i : i + 1], at, "forward")[0])


@pytest.mark.parametrize("kind", ["numbers", "full"])
@pytest.mark.parametrize("parts", [1, 2])
def test_backward_drift_by_monte_carlo(kind, parts):
    """E[X_0 given X_t = x] from a million draws of p_0."""
    rng = np.random.default_rng(3)
    source = Mixture([1.0, 0.0][:parts] if parts == 1 else [0.3, 0.7], rng.normal(size=(parts, 2)),
                     spread(rng, parts, 2))  # fmt: skip
    problem = MixtureBridge(source, *potentials(2)[kind], 1.0)
    starts = source.sample(1_000_000, seed=5).astype(np.float64)
    log_phi = problem.log_potential(starts, 0.0)
    x, t = source.sample(4, seed=6).astype(np.float64), 0.3
    found = problem.backward_drift(x, t, pairs=2000)
    for i, at in enumerate(x):
        log_w = -np.square(starts - at).sum(axis=1) / (4 * t) - log_phi
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        mean = w @ starts
        error = np.sqrt(np.square(w) @ np.square(starts - mean)) / t
        assert (np.abs((mean - at) / t - found.value[i]) < 5 * error + 5 * found.error[i]).all()


@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_backward_drift_knows_its_error(eps):
    """Estimates by different draws differ as much as their errors say, in 16 dimensions."""
    problem = MixtureBridge.from_sphere(16, eps)
    t = problem.T / 2
    x = problem.marginal(t).sample(60, seed=2)
    values, errors = zip(
        *(problem.backward_drift(x, t, seed=seed) for seed in range(4)), strict=True
    )
    found = np.std(values, axis=0, ddof=1)
    ratio = np.sqrt(np.square(found).mean() / np.square(errors).mean())
    assert 0.5 < ratio < 1.5
    assert np.sqrt(np.square(errors).mean()) < 0.04 * np.sqrt(np.square(values).mean())
    with pytest.raises(ValueError, match=r"pairs: expected more, got 1: of 128 draws"):
        MixtureBridge.from_sphere(16, 0.1).backward_drift(x, 0.025, pairs=1)


def test_far_from_the_origin():
    """Offsets do not cost digits: the same mixture elsewhere."""
    weights, means, covs = potentials(3)["numbers"]
    x, shift = np.random.default_rng(0).normal(size=(5, 3)), 2.0**20
    near, far = Mixture(weights, means, covs), Mixture(weights, means + shift, covs)
    np.testing.assert_allclose(far.log_density(x + shift), near.log_density(x), atol=1e-8)
    np.testing.assert_allclose(far.score(x + shift), near.score(x), atol=1e-8)


def test_backward_drift_at_the_source():
    """At t = 0 it is 2 grad log (p_0 / phi_0), without any draw."""
    rng, h = np.random.default_rng(0), 1e-5
    source = Gaussian(rng.normal(size=3), spread(rng, 1, 3)[0])
    problem = MixtureBridge(source, *potentials(3)["full"], 0.8)
    x = rng.normal(size=(4, 3))
    density = Mixture([1.0], source.mean[None], source.cov[None])
    found = problem.backward_drift(x, 0.0)
    assert found.error.max() < 1e-12
    for i, e in enumerate(np.eye(3)):
        ahead, behind = (
            density.log_density(x + s * e) - problem.log_potential(x + s * e, 0.0) for s in (h, -h)
        )
        np.testing.assert_allclose(found.value[:, i], (ahead - behind) / h, atol=1e-6)


@pytest.mark.parametrize("d", [1, 4])
def test_one_component_is_a_gaussian_bridge(d):
    rng = np.random.default_rng(d)
    source = Gaussian(rng.normal(size=d), spread(rng, 1, d)[0])
    mu, S = rng.normal(size=(1, d)), spread(rng, 1, d)
    problem = MixtureBridge(source, [1.0], mu, S, 0.9)
    gain = S[0] @ np.linalg.inv(S[0] + 0.9 * np.eye(d))
    end = mu[0] + gain @ (source.mean - mu[0]), gain @ source.cov @ gain.T + 0.9 * gain
    exact = GaussianBridge(source, Gaussian(*end), 0.45)
    np.testing.assert_allclose(exact.coupling().cross, source.cov @ gain.T, atol=1e-12)
    x = rng.normal(size=(6, d))
    for t in (0.0, 0.1, 0.3, 0.45):
        for direction in ("forward", "backward"):
            np.testing.assert_allclose(
                problem.drift(x, t, direction), exact.drift(x, t, direction), atol=1e-9
            )
        law, error = problem.marginal(t), problem.coupling().error
        np.testing.assert_allclose(law.mean, exact.marginal(t).mean, atol=6 * error)
        np.testing.assert_allclose(law.cov, exact.marginal(t).cov, atol=12 * error)
    mean, cov = problem.conditional(x)
    np.testing.assert_allclose(mean, mu + (x - mu) @ gain.T, atol=1e-12)
    np.testing.assert_allclose(cov, np.tile(0.9 * gain, (6, 1, 1)), atol=1e-12)


def test_drift_leads_to_the_marginals():
    """Euler steps of the forward drift from the source, of the backward one from the end."""
    problem = MixtureBridge.from_sphere(2, 1.0, radius=1.5, var=0.2)
    n, some, steps, T = 20_000, 1500, 60, problem.T
    rng = np.random.default_rng(0)
    x = problem.marginal(0.0).sample(n, seed=1).astype(np.float64)
    y = problem.marginal(T).sample(some, seed=1).astype(np.float64)
    g = T / steps
    for k in range(steps // 2):
        noise = np.sqrt(2 * g) * rng.normal(size=(2, n, 2))
        x += g * problem.drift(x, k * g, "forward") + noise[0]
        y += g * problem.drift(y, T - k * g, "backward") + noise[1][:some]
    middle = problem.marginal(T / 2)
    for found, m in ((x, n), (y, some)):
        assert np.abs(found.mean(axis=0) - middle.mean).max() < 4 / np.sqrt(m)
        assert np.abs(np.cov(found.T) - middle.cov).max() < 6 / np.sqrt(m)


def test_paths():
    schedule = Schedule([0.1, 0.25, 0.15])
    problem = MixtureBridge(Gaussian([0.0, 1.0], 0.4), *potentials(2)["full"], 1.0, schedule)
    assert isinstance(problem, Problem) and problem.T == 0.5 and problem.schedule == schedule
    n = 200_000
    paths = problem.sample_paths(n, seed=4)
    assert paths.shape == (n, 4, 2) and paths.dtype == np.float32
    for k, t in enumerate(schedule.times):
        law = problem.marginal(t)
        assert np.abs(paths[:, k].mean(axis=0) - law.mean).max() < 0.015
        assert np.abs(np.cov(paths[:, k].T) - law.cov).max() < 0.02
    both = np.cov(paths[:, 0].T, paths[:, -1].T)
    assert np.abs(both - problem.coupling().cov).max() < 0.02
    # Squared increments of fine steps add up to the noise of the reference, 2 T a coordinate.
    fine = problem.sample_paths(200, Schedule.constant(1000, 5e-4), seed=4).astype(np.float64)
    variation = np.square(np.diff(fine, axis=1)).sum(axis=1).mean()
    assert abs(variation - 2 * problem.T) < 0.02
    np.testing.assert_array_equal(problem.sample_paths(50, seed=4), paths[:50])
    copy = pickle.loads(pickle.dumps(problem))
    np.testing.assert_array_equal(copy.sample_paths(50, seed=4), paths[:50])
    finer = problem.sample_paths(5, Schedule.constant(8, 1 / 16), seed=4)
    np.testing.assert_array_equal(finer[:, [0, -1]], paths[:5, [0, -1]])


@pytest.mark.parametrize("d", [2, 16, 64, 128])
@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
def test_the_family_on_a_sphere(d, eps):
    problem = MixtureBridge.from_sphere(d, eps)
    np.testing.assert_allclose(np.linalg.norm(problem.potential.means, axis=1), 5.0, rtol=1e-6)
    again = MixtureBridge.from_sphere(d, eps).potential.means
    np.testing.assert_array_equal(problem.potential.means, again)
    assert np.abs(again - MixtureBridge.from_sphere(d, eps, seed=1).potential.means).max() > 0.1
    x0, xN = problem.coupling().sample(500, seed=1)
    mean, cov = problem.conditional(x0)
    # Pulled back through the plan's own covariance, what is left of X_N has unit variance.
    left = np.linalg.solve(np.linalg.cholesky(cov), (xN - mean)[..., None])
    assert abs(np.mean(left**2) - 1) < 8 / np.sqrt(500 * d)
    assert problem.coupling().cov.shape == (2 * d, 2 * d)
    assert np.isfinite(problem.drift(x0.astype(np.float64), problem.T, "forward")).all()


def test_any_law_can_be_the_source():
    class Ring:
        def sample(self, n, seed=0):
            angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=n)
            return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    problem = MixtureBridge(Ring(), *potentials(2)["one"], 1.0)
    coupling = problem.coupling()
    assert np.abs(coupling.cov[:2, :2] - np.eye(2) / 2).max() < 0.01
    x0, xN = coupling.sample(100_000, seed=2)
    assert np.abs(np.cov(x0.T, xN.T) - coupling.cov).max() < 0.02
    assert np.isfinite(problem.drift(x0[:5], 0.2, "forward")).all()
    with pytest.raises(ValueError, match=r"direction: .* the density of the source, .* got Ring"):
        problem.drift(x0[:5], 0.2)
    # The end of one problem as the source of the next: their draws must not be the same numbers.
    onward = MixtureBridge(problem.marginal(0.5), *potentials(2)["one"], 1.0)
    x0, xN = onward.coupling().sample(100_000, seed=2)
    assert np.abs(np.cov(x0.T, xN.T) - onward.coupling().cov).max() < 0.02


def drawing(rows):
    """A source in two dimensions that gives what `rows` makes of the number that is asked for."""
    source = SimpleNamespace(sample=lambda n, seed=0: rows(n), dim=2)
    return MixtureBridge(source, *potentials(2)["one"], 1.0, Schedule([0.5]))


def spoilt(value, row, dtype=np.float32):
    def rows(n):
        found = np.zeros((n, 2), dtype)
        found[row, 1] = value
        return found

    return rows


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (lambda n: np.zeros((20, 2)), ValueError, r"\({n}, 2\) from sample\({n}\), got \(20, 2\)"),
        (lambda n: np.zeros((n + 1, 2)), ValueError, r"\({n}, 2\) from sample"),
        (lambda n: np.zeros((n, 3)), ValueError, r"\({n}, 2\) from sample\({n}\), got \({n}, 3\)"),
        (lambda n: np.zeros(n), ValueError, r"\({n}, 2\) from sample"),
        (lambda n: np.zeros((n, 2), int), TypeError, "samples of floats, got .* int64"),
        (spoilt(np.nan, 7), ValueError, "expected finite numbers, got nan in row 7, column 1"),
        (spoilt(-np.inf, 9), ValueError, "expected finite numbers, got -inf in row 9, column 1"),
    ],
)
def test_sources_that_do_not_draw_what_is_asked(rows, error, words):
    problem = drawing(rows)
    calls = [
        (100, lambda: problem.sample_paths(100)),
        (100, lambda: problem.coupling().sample(100)),
        (100, lambda: problem.marginal(0.2).sample(100)),
        (65536, lambda: problem.coupling().mean),
        (65536, lambda: problem.marginal(0.2).cov),
    ]
    for n, call in calls:
        with pytest.raises(error, match="source: .*" + words.replace("{n}", str(n))):
            call()


def test_rows_of_a_source_are_counted_from_the_first():
    """Ends are drawn in blocks; a message counts rows over all of them."""
    problem = drawing(spoilt(1e39, 600_000, np.float64))
    words = r"source: expected numbers within float32's range, got 1e\+39 in row 600000, column 1"
    with pytest.raises(ValueError, match=words):
        problem.coupling().sample(600_001)


# ---- bad input ----

GIVEN = ([0.5, 0.5], [[0.0], [1.0]], 0.1)
X = np.zeros((2, 1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Mixture([0.5, 0.6], *GIVEN[1:]), ValueError, "weights: .* sum 1, got the sum 1.1"),
        (
            lambda: Mixture([1.5, -0.5], *GIVEN[1:]),
            ValueError,
            "weights: .* at least 0, got -0.5 at index 1",
        ),
        (lambda: Mixture([np.nan, 1], *GIVEN[1:]), ValueError, "weights: expected finite numbers"),
        (lambda: Mixture([[1.0]], [[0.0]], 1), ValueError, r"weights: expected shape \(K,\)"),
        (lambda: Mixture("ab", [[0.0]], 1), TypeError, "weights: expected numbers"),
        (
            lambda: Mixture(GIVEN[0], [[0.0]], 1),
            ValueError,
            r"means: expected shape \(2, d\), .* got \(1, 1\)",
        ),
        (lambda: Mixture(*GIVEN[:2], [1, 1, 1]), ValueError, "covs: expected a number or shape"),
        (lambda: Mixture(*GIVEN[:2], 0), ValueError, "covs: expected positive variances, got 0"),
        (
            lambda: Mixture([1], [[0, 0]], [[[1, 2], [0, 1]]]),
            ValueError,
            "covs: expected symmetric matrices, .* up to 2 at index 0",
        ),
        (
            lambda: Mixture([1], [[0, 0]], [[[1, 2], [2, 1]]]),
            ValueError,
            "covs: expected positive definite .* eigenvalue -1 at index 0",
        ),
        (lambda: LINE.log_density(np.zeros((2, 2))), ValueError, r"x: expected shape \(n, 1\)"),
        (lambda: LINE.sample(0), ValueError, "n: expected a whole number of at least 1"),
        (lambda: setattr(LINE, "dim", 3), AttributeError, "immutable"),
        (lambda: MixtureBridge(X, *GIVEN, 1.0), TypeError, "source: expected a law with a method"),
        (
            lambda: MixtureBridge(Gaussian([0, 0], 1), *GIVEN, 1.0),
            ValueError,
            "means: expected 2 columns, .* got 1",
        ),
        (lambda: MixtureBridge(SOURCE, *GIVEN, 0.0), ValueError, "eps: expected a finite number"),
        (lambda: MixtureBridge(SOURCE, *GIVEN, 1.7e308), ValueError, r"eps: .* got 1.7e\+308"),
        (
            lambda: MixtureBridge(SOURCE, *GIVEN, 1.0, Schedule([1.0])),
            ValueError,
            "schedule: expected one with T = eps / 2 = 0.5, got T = 1",
        ),
        (lambda: MixtureBridge(SOURCE, *GIVEN, 1.0, [1.0]), TypeError, "schedule: expected a dsb"),
        (lambda: on_a_line(1.0).drift(X, 0.6), ValueError, r"t: expected a time in \[0, 0.5\]"),
        (lambda: on_a_line(1.0).drift(X, 0.1, "up"), ValueError, "direction: expected one of"),
        (lambda: on_a_line(1.0).conditional(X[0]), ValueError, r"x0: expected shape \(n, 1\)"),
        (lambda: on_a_line(1.0).conditional(X + np.inf), ValueError, "x0: expected finite"),
        (lambda: on_a_line(1.0).sample_conditional(X, 0), ValueError, "n: expected a whole"),
        (lambda: on_a_line(1.0).sample_paths(3), ValueError, "schedule: .* got None"),
        (lambda: on_a_line(1.0).backward_drift(X, 0.1, pairs=0), ValueError, "expected a whole"),
        (lambda: MixtureBridge.from_sphere(0, 1.0), ValueError, "dim: expected a whole number"),
        (
            lambda: MixtureBridge.from_sphere(2, 1.0, var=-1),
            ValueError,
            "var: expected a finite number above 0",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
