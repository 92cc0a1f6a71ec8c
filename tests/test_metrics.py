"""Metrics between samples and laws, against float64 NumPy, closed forms, POT and SciPy."""

import textwrap
import time
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose

import dsb
from dsb import _core, metrics
from dsb.metrics import estimate, generated
from dsb.metrics._estimate import student
from dsb.metrics._samples import comparable

SHAPES = [(1, 1), (1, 40), (65, 16), (130, 70), (257, 300)]


def normal(n, d, seed=0, mean=0.0, std=1.0):
    return mean + std * np.random.default_rng(seed).normal(size=(n, d))


def distances(x, y):
    """float64 [n, m]."""
    gaps = x.astype(np.float64)[:, None] - y.astype(np.float64)[None]
    return np.sqrt((gaps**2).sum(axis=2))


def energy(x, y):
    return 2 * distances(x, y).mean() - distances(x, x).mean() - distances(y, y).mean()


def mmd_squared(x, y, h):
    xx, yy, xy = (
        np.exp(-(distances(*pair) ** 2) / (2 * h**2)) for pair in ((x, x), (y, y), (x, y))
    )
    return xx.mean() + yy.mean() - 2 * xy.mean()


def line(a, b, p=2):
    """W_p^p of two samples on a line, by their quantile functions on the common grid of 1/(n m)."""
    a, b = np.repeat(np.sort(a), len(b)), np.repeat(np.sort(b), len(a))
    return (np.abs(a - b) ** p).mean()


def directions(dim, projections=200, seed=0):
    """As dsb.metrics draws them."""
    normals = oracles.normals(seed, oracles.stream_word("user", 255), 0, 0, projections, dim)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def sliced(x, y, p=2, **options):
    return np.mean([line(x @ u, y @ u, p) for u in directions(x.shape[1], **options)]) ** (1 / p)


# ---- samples that are compared ----


@pytest.mark.parametrize(("n", "m"), [(1, 1), (31, 33), (100, 32), (1, 64)])
def test_samples_are_moved_to_their_common_mean(n, m):
    x, y = normal(n, 3, 1), normal(m, 3, 2) + 4.0
    x[0] = [50.0, 0.0, -7.0]  # an outlier moves the box around the samples, not their mean
    both = comparable(x, y)
    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2
    for moved, given in ((both.x, x), (both.y, y)):
        assert_allclose(moved * both.unit, given - centre, atol=2e-7 * both.unit)
    assert 0.5 < max(np.abs(both.x).max(), np.abs(both.y).max()) <= 1
    same = comparable(np.full((n, 3), 0.1), np.full((m, 3), 0.1))
    assert not same.x.any() and not same.y.any() and same.unit == 1


# ---- sums over pairs ----


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 17, 50])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_pair_sums(dim, n, m):
    x, y = (normal(k, dim, seed, seed).astype(np.float32) for seed, k in enumerate((n, m)))
    for other in (y, None):
        r = distances(x, x if other is None else other)
        assert_allclose(_core.pair_sum(x, other, False, 0.0), r.sum(), rtol=2e-7)
        expected = np.exp(-0.3 * r**2).sum() if dim < 17 else np.exp(-0.01 * r**2).sum()
        scale = 0.3 if dim < 17 else 0.01
        assert_allclose(_core.pair_sum(x, other, True, scale), expected, rtol=1e-6, atol=1e-8)


def test_pair_sums_of_one_point_with_itself():
    x = np.full((70, 3), 1.7, np.float32)
    assert _core.pair_sum(x, None, False, 0.0) == 0.0
    assert _core.pair_sum(x, x, False, 0.0) == 0.0
    assert _core.pair_sum(x, None, True, 2.0) == 4900.0


def test_far_and_near_distances():
    x = np.array([[0.0], [1e18], [-1e18]], np.float32)
    assert_allclose(_core.pair_sum(x, None, False, 0.0), 8e18, rtol=1e-6)
    x = np.array([[0.0], [1e-15]], np.float32)
    assert_allclose(_core.pair_sum(x, None, False, 0.0), 2e-15, rtol=1e-6)
    assert _core.pair_sum(np.array([[0.0], [3e18]], np.float32), None, True, 1.0) == 2.0


SAME = """
import numpy as np
from dsb import _core
rng = np.random.default_rng(0)
x, y = (rng.normal(size=(n, {dim})).astype(np.float32) for n in (1000, 1511))
u = rng.normal(size=(19, {dim})).astype(np.float32)
for threads in {threads}:
    _core.set_num_threads(threads)
    found = [_core.pair_sum(x, z, g, .1) for z in (y, None) for g in (False, True)]
    found += [*_core.sliced(x, y, u, 2)[[0, 7, 8, 18]], *_core.sliced(y, x, u, 1)[[0, 18]]]
    print(*(value.hex() for value in map(float, found)))
"""


def test_every_instruction_set_and_number_of_threads():
    for dim in (2, 33):
        found = []
        for isa in _core.isas():
            told = oracles.run_python(SAME.format(dim=dim, threads="(1, 2, 3)"), isa=isa)
            lines = [text.split() for text in told.splitlines()]
            assert len(lines) == 3
            assert lines[0] == lines[1] == lines[2], isa
            found.append([float.fromhex(word) for word in lines[0]])
        for other in found[1:]:
            assert_allclose(other, found[0], rtol=3e-6)


def test_ctrl_c_stops_a_sum():
    begun = time.monotonic()
    code = """
        import numpy as np, os, signal, threading
        from dsb import _core
        x = np.zeros((2_000_000, 8), np.float32)
        threading.Timer(.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            _core.pair_sum(x, None, True, 1.)
        except KeyboardInterrupt:
            print("stopped")
    """
    assert oracles.run_python(textwrap.dedent(code)) == "stopped\n"
    assert time.monotonic() - begun < 20


# ---- sorting and lines ----


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 9), (31, 31), (33, 32), (1000, 1000), (999, 700), (70_000, 70_001)]
)
def test_lines(n, m, p):
    rng = np.random.default_rng(n)
    x = (rng.normal(size=(n, 1)) * 10.0 ** rng.integers(-3, 3, (n, 1))).astype(np.float32)
    y = rng.choice([-1.5, -0.0, 0.0, 2.0], (m, 1)).astype(np.float32)
    found = _core.sliced(x, y, np.array([[1.0], [-1.0]], np.float32), p)
    if n > 2000:  # too long for the grid: by the quantiles that differ
        edges = np.union1d(np.arange(1, n + 1) / n, np.arange(1, m + 1) / m)
        at = edges - np.diff(edges, prepend=0) / 2
        a, b = np.sort(x[:, 0]), np.sort(y[:, 0])
        gap = np.abs(a[(at * n).astype(int)] - b[(at * m).astype(int)].astype(np.float64))
        expected = (np.diff(edges, prepend=0) * gap**p).sum()
    else:
        expected = line(x[:, 0].astype(np.float64), y[:, 0].astype(np.float64), p)
    assert_allclose(found, expected, rtol=1e-6)


# ---- distances ----


@pytest.mark.parametrize("dim", [1, 2, 17, 50])
def test_sliced_against_its_definition(dim):
    x, y = normal(300, dim, 1), normal(210, dim, 2, mean=0.2, std=1.5)
    for p in (1, 2):
        assert_allclose(metrics.sliced_wasserstein(x, y, p=p), sliced(x, y, p), rtol=1e-5)
    told = {"projections": 33, "seed": 5}
    assert_allclose(metrics.sliced_wasserstein(x, y, **told), sliced(x, y, **told), rtol=1e-5)


def test_sliced_against_pot():
    ot = pytest.importorskip("ot")
    x, y = normal(400, 3, 1), normal(500, 3, 2, mean=0.3)
    units = directions(3, 64).T
    expected = ot.sliced_wasserstein_distance(x, y, projections=units)
    assert_allclose(metrics.sliced_wasserstein(x, y, 64), expected, rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 17, 50])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_energy_and_mmd_against_their_definitions(dim, offset):
    """A common offset far beyond float32's digits changes nothing."""
    x, y = normal(300, dim, 1, mean=offset), normal(170, dim, 2, mean=offset + 0.5)
    x[3:9] = x[2]  # duplicates
    assert_allclose(metrics.energy_distance(x, y), energy(x, y), rtol=2e-5)
    h = 0.7 * dim**0.5
    assert_allclose(metrics.mmd(x, y, bandwidth=h, root=False), mmd_squared(x, y, h), rtol=2e-5)
    assert_allclose(metrics.sliced_wasserstein(x, y), sliced(x - offset, y - offset), rtol=1e-5)


def test_v_and_u_statistics():
    x, y = normal(40, 2, 1), normal(30, 2, 2)
    off = [distances(p, p)[~np.eye(len(p), dtype=bool)] for p in (x, y)]
    expected = 2 * distances(x, y).mean() - off[0].mean() - off[1].mean()
    assert_allclose(metrics.energy_distance(x, y, statistic="u"), expected, atol=1e-6)
    value = metrics.energy_distance(x, y, root=True)
    assert_allclose(value**2, metrics.energy_distance(x, y), rtol=1e-9)
    kernels = [np.exp(-(r**2) / 2).mean() for r in (*off, distances(x, y))]
    found = metrics.mmd(x, y, bandwidth=1.0, statistic="u", root=False)
    assert_allclose(found, kernels[0] + kernels[1] - 2 * kernels[2], atol=1e-6)
    # Unbiased: many pairs of samples of one law average to zero, V-statistics do not.
    pairs = [(normal(10, 2, 2 * i), normal(10, 2, 2 * i + 1)) for i in range(400)]
    for function, told in ((metrics.energy_distance, {}), (metrics.mmd, {"bandwidth": 1.0})):
        values = np.array([function(*p, statistic="u", root=False, **told) for p in pairs])
        assert abs(values.mean()) < 4 * values.std() / 20
        biased = np.array([function(*p, root=False, **told) for p in pairs])
        assert biased.mean() > 20 * values.std() / 20


def test_the_bandwidth_is_the_median_distance():
    x, y = normal(200, 2, 1), normal(100, 2, 2)
    every = np.concatenate([x, y])
    h = np.median(distances(every, every)[np.triu_indices(300, 1)])
    assert_allclose(metrics.mmd(x, y), metrics.mmd(x, y, bandwidth=h), rtol=1e-4)
    many = np.tile(x, (20, 1))
    assert_allclose(metrics.mmd(many, y), metrics.mmd(many, y, seed=1), rtol=0.1)
    assert metrics.mmd(many, y) != metrics.mmd(many, y, seed=1)
    with pytest.raises(ValueError, match="bandwidth: the median distance"):
        metrics.mmd(np.ones((5, 2)), np.ones((6, 2)))


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein(p):
    pytest.importorskip("ot")
    optimise = pytest.importorskip("scipy.optimize")
    x, y = normal(60, 3, 1, mean=1e5), normal(60, 3, 2, mean=1e5 + 0.5)
    cost = distances(x, y) ** p
    expected = cost[optimise.linear_sum_assignment(cost)].mean() ** (1 / p)
    assert_allclose(metrics.wasserstein(x, y, p), expected, rtol=1e-5)
    a, b = normal(50, 1, 1), normal(35, 1, 2)
    assert_allclose(metrics.wasserstein(a, b, p), line(a[:, 0], b[:, 0], p) ** (1 / p), rtol=1e-5)


def test_the_solver_s_warning_is_an_error():
    pytest.importorskip("ot")
    with pytest.raises(RuntimeError, match="max_iterations was 3"):
        metrics.wasserstein(normal(50, 2, 1), normal(50, 2, 2), max_iterations=3)


DISTANCES = [
    metrics.wasserstein,
    metrics.sliced_wasserstein,
    metrics.energy_distance,
    lambda x, y: metrics.mmd(x, y, bandwidth=1.0),
]


@pytest.mark.parametrize("metric", DISTANCES)
def test_properties_of_a_distance(metric):
    if metric is metrics.wasserstein:
        pytest.importorskip("ot")
    x, y = normal(80, 3, 1), normal(60, 3, 2, mean=0.4, std=1.3)
    assert metric(x, x) < 1e-6
    assert metric(x, x[::-1]) < 1e-3  # the root of rounding
    value = metric(x, y)
    assert value > 0.05
    assert_allclose(metric(y, x), value, rtol=1e-5)
    assert_allclose(metric(x + 11.0, y + 11.0), value, rtol=1e-4)
    turn = np.linalg.qr(normal(3, 3, 7))[0]
    # Random directions turn with the samples only on average.
    loose = 0.15 if metric is metrics.sliced_wasserstein else 1e-4
    assert_allclose(metric(x @ turn, y @ turn), value, rtol=loose)
    assert_allclose(metric(np.tile(x, (2, 1)), y), value, rtol=1e-4)  # it sees the laws only


def test_known_values():
    pytest.importorskip("ot")
    x = normal(90, 4, 1)
    shift = np.array([3.0, 0.0, -4.0, 0.0])
    for p in (1, 2):
        assert_allclose(metrics.wasserstein(x, x + shift, p), 5.0, rtol=1e-5)
    assert_allclose(metrics.wasserstein(2 * x, 2 * (x + shift)), 10.0, rtol=1e-5)
    # E (u . s)^2 = |s|^2 / d
    found = metrics.sliced_wasserstein(x, x + shift, 20_000)
    assert_allclose(found, 5.0 / 4**0.5, rtol=0.02)
    one, other = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    assert_allclose(metrics.wasserstein(one, other), 5.0, rtol=1e-6)
    assert_allclose(metrics.energy_distance(one, other), 10.0, rtol=1e-6)
    expected = (2 - 2 * np.exp(-0.5)) ** 0.5
    assert_allclose(metrics.mmd(one, other, bandwidth=5.0), expected, rtol=1e-6)
    # Two Gaussians on a line
    a, b = dsb.Gaussian([0.0], 1.0), dsb.Gaussian([2.0], 4.0)
    assert_allclose(metrics.sliced_wasserstein(a, b, n=200_000), 5**0.5, rtol=0.01)


def test_bytes_and_images():
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    floats = (images / 127.5 - 1.0).astype(np.float32)
    assert metrics.sliced_wasserstein(images, floats) < 1e-6
    assert metrics.energy_distance(images.reshape(20, 16), floats) < 1e-6


# ---- means and covariances ----


def test_gaussian_kl_against_closed_forms():
    law = dsb.Gaussian([1.0, -1.0], [[2.0, 0.9], [0.9, 1.0]])
    x = normal(500, 2, 3)
    m, s = x.mean(axis=0), np.cov(x.T)
    v, diagonal = np.diag(s), np.diag(law.cov)
    terms = np.log(diagonal / v) + v / diagonal - 1 + (m - law.mean) ** 2 / diagonal
    assert_allclose(metrics.gaussian_kl_per_coordinate(x, law), terms.sum() / 2, rtol=1e-12)
    inverse = np.linalg.inv(law.cov)
    full = np.trace(inverse @ s) - 2 - np.log(np.linalg.det(inverse @ s))
    full += (m - law.mean) @ inverse @ (m - law.mean)
    assert_allclose(metrics.gaussian_kl_full(x, law), full / 2, rtol=1e-12)
    # A factor of two in the variance: (2 - 1 - log 2) / 2 for each coordinate.
    twice = dsb.Gaussian(np.zeros(3), 2.0)
    found = metrics.gaussian_kl_per_coordinate(twice, dsb.Gaussian(np.zeros(3), 1.0), n=100_000)
    assert_allclose(found, 1.5 * (1 - np.log(2)), rtol=0.02)


@pytest.mark.parametrize("dim", [5, 50])
def test_floors_of_gaussian_kl(dim):
    """d / n per coordinate, d (d + 3) / (4 n) in full."""
    law, n = dsb.Gaussian(np.linspace(-1, 1, dim), np.linspace(0.5, 2, dim)), 4000
    diagonal = estimate(metrics.gaussian_kl_per_coordinate, law, law, n=n, repeats=20)
    assert_allclose(diagonal.floor, dim / n, rtol=5 / (20 * dim) ** 0.5)
    assert_allclose(diagonal.value, dim / n, rtol=5 / (20 * dim) ** 0.5)
    full = estimate(metrics.gaussian_kl_full, law, law, n=n, repeats=20)
    assert_allclose(full.floor, dim * (dim + 3) / (4 * n), rtol=5 / (20 * dim) ** 0.5 + dim / n)


def test_bw2_uvp():
    linalg = pytest.importorskip("scipy.linalg")
    p = dsb.Gaussian([0.5, -1.0], [[2.0, 0.9], [0.9, 1.0]])
    q = dsb.Gaussian([0.0, 1.0], [[0.5, -0.2], [-0.2, 3.0]])
    root = linalg.sqrtm(q.cov)
    cross = linalg.sqrtm(root @ p.cov @ root)
    bw2 = (((p.mean - q.mean) ** 2).sum() + np.trace(p.cov + q.cov - 2 * cross)) / 2
    exact = 100 * bw2 / (3.5 / 2)
    assert_allclose(metrics.bw2_uvp(p, q), exact, rtol=1e-9)
    assert_allclose(metrics.bw2_uvp(p.sample(200_000, 1), q.sample(200_000, 2)), exact, rtol=0.02)
    assert_allclose(metrics.bw2_uvp(p.sample(200_000, 1), q), exact, rtol=0.02)
    assert metrics.bw2_uvp(p, p) < 1e-9
    constant = dsb.Gaussian(q.mean, 1e-12)
    assert_allclose(metrics.bw2_uvp(constant, q), 100.0, rtol=1e-4)


# ---- modes ----


def test_mode_coverage():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    at = np.repeat([0, 1, 2, 3], [50, 30, 19, 1])
    x = centres[at] + 0.01
    x[0] = [5.0, 4.0]  # nearest to the first, near to none
    found = metrics.mode_coverage(x, centres, 1.0)
    assert_allclose(found.weights, [0.5, 0.3, 0.19, 0.01])
    assert found.hit == 0.75  # one point in a hundred is no mode of weight 1/4
    assert_allclose(found.total_variation, (0.25 + 0.05 + 0.06 + 0.24) / 2)
    assert_allclose(found.beyond, 0.01)
    weights = [0.5, 0.3, 0.19, 0.01]
    assert metrics.mode_coverage(x, centres, 1.0, weights=weights).hit == 1.0
    assert metrics.mode_coverage(x, centres, 1.0, least=0.0).hit == 1.0
    assert metrics.mode_coverage(x[:50], centres, 1.0, least=0.0).hit == 0.25


def test_mode_coverage_of_a_mixture():
    weights = [0.2, 0.3, 0.5]
    law = dsb.exact.Mixture(weights, [[-5.0, 0, 0], [5.0, 0, 0], [0, 7.0, 0]], [0.05, 0.1, 0.2])
    found = metrics.mode_coverage(law, law, n=20_000)
    assert found.hit == 1.0
    assert found.total_variation < 0.02
    assert found.beyond < 0.01
    assert_allclose(found.weights, weights, atol=0.02)


def test_estimates_of_mode_coverage():
    law = dsb.exact.Mixture([0.25, 0.75], [[-5.0, 0.0], [5.0, 0.0]], 0.1)
    other = dsb.exact.Mixture([0.5, 0.5], law.means, 0.1)
    told = {"n": 2000, "repeats": 4}
    weights = estimate(metrics.mode_coverage, other, law, field="total_variation", **told)
    assert_allclose(weights.value, 0.25, atol=0.03)
    assert weights.floor < 0.02
    assert_allclose(weights.excess, weights.value - weights.floor)
    assert estimate(metrics.mode_coverage, other, law, field="hit", **told)[:2] == (1.0, 0.0)
    # Centres are no samples: taken whole, and without a floor.
    told |= {"radius": 2.0, "weights": law.weights, "field": "total_variation"}
    bare = estimate(metrics.mode_coverage, other, law.means, **told)
    assert (bare.value, bare.floor) == (weights.value, None)
    assert estimate(metrics.mode_coverage, other.sample(100), law.means, **told).n == 50


# ---- what samples may be ----


def test_samplers():
    law = dsb.Gaussian([0.0, 0.0], 1.0)
    y = normal(300, 2, 1)

    class Own:
        def sample(self, n, seed=0):
            return law.sample(n, seed)

    values = [
        metrics.energy_distance(given, y, n=500, seed=3)
        for given in (law, Own(), lambda n, seed: law.sample(n, seed))
    ]
    assert values[0] == values[1] == values[2]
    assert metrics.energy_distance(law, y, n=500, seed=4) != values[0]
    # Both sides are drawn independently of each other.
    assert metrics.energy_distance(law, law, n=500) > 1e-4


def test_bridges(trained):
    x = trained.source
    backward = metrics.sliced_wasserstein(trained, x, n=400, seed=1)
    same = trained.sample(400, seed=_seed_of("x", 1))
    assert_allclose(backward, metrics.sliced_wasserstein(same, x, seed=1), rtol=1e-12)
    noise = generated(trained, final_noise=True).sample(2000, 1) - trained.sample(2000, seed=1)
    assert_allclose(noise.var(), 2 * 0.3, rtol=0.1)  # of the last step, 2 g
    forward = generated(trained, "forward")
    assert "forward" in repr(forward)
    assert forward.dim == 2
    found = metrics.sliced_wasserstein(forward, trained.prior, n=400, seed=1)
    assert found != backward
    for options in ({"direction": "up"}, {"final_noise": 2}):
        with pytest.raises((ValueError, TypeError), match=r"direction|final_noise"):
            generated(trained, **options)
    with pytest.raises(TypeError, match=r"bridge: expected a dsb\.Bridge"):
        generated(x)


def _seed_of(name, seed):
    from dsb._build import mixed

    return mixed(seed, {"x": 0, "y": 1}[name])


# ---- estimate ----


def test_estimate_of_fresh_samples():
    x, y = dsb.Gaussian([0.3], 1.0), dsb.Gaussian([0.0], 1.0)
    found = estimate(metrics.sliced_wasserstein, x, y, n=2000, repeats=8, seed=1)
    assert found == estimate(metrics.sliced_wasserstein, x, y, n=2000, repeats=8, seed=1)
    assert_allclose(found.high - found.value, student(7) * found.error, rtol=1e-12)
    assert 0.01 < found.floor < 0.08
    assert_allclose(found.excess, (found.value**2 - found.floor**2) ** 0.5, rtol=1e-12)
    assert (found.n, found.repeats) == (2000, 8)
    assert float(found) == found.value
    assert "floor" in repr(found)
    assert "8 x 2,000" in repr(found)
    linear = estimate(metrics.energy_distance, x, y, n=500, repeats=3)
    assert_allclose(linear.excess, linear.value - linear.floor, rtol=1e-12)
    rooted = estimate(metrics.energy_distance, x, y, n=500, repeats=3, root=True)
    assert_allclose(rooted.excess, (rooted.value**2 - rooted.floor**2) ** 0.5, rtol=1e-12)
    # Of equal laws nothing is left in excess.
    for metric in (metrics.energy_distance, metrics.gaussian_kl_per_coordinate):
        same = estimate(metric, y, y, n=500, repeats=10)
        assert abs(same.excess) < 4 * np.hypot(same.error, same.floor_error)


def test_the_interval_holds_what_it_promises():
    """W_2 of N(.3, 1) and N(0, 1) is .3, and a little more of finite samples."""
    x, y = dsb.Gaussian([0.3], 1.0), dsb.Gaussian([0.0], 1.0)
    told = {"n": 2000, "repeats": 8, "projections": 2}
    found = [estimate(metrics.sliced_wasserstein, x, y, seed=seed, **told) for seed in range(80)]
    assert 0.88 < np.mean([one.low < 0.302 < one.high for one in found]) < 1.0
    assert_allclose(np.mean([one.value for one in found]), 0.302, atol=0.005)


def test_estimate_of_arrays():
    """Every repeat takes rows of its own while there are enough; never more than half of an array."""
    seen = []

    def metric(a, b):
        seen.append((a[:, 0].tolist(), b[:, 0].tolist()))
        return float(len(a))

    x, y = np.arange(100.0)[:, None], 1000 + np.arange(200.0)[:, None]
    found = estimate(metric, x, y, n=20, repeats=5)
    assert found.n == 20
    pairs, floors = seen[::2], seen[1::2]
    assert len({v for a, _ in pairs for v in a}) == 100  # 5 times 20 different rows of x
    assert len({v for c, b in floors for v in (*c, *b)}) == 200
    assert all(p[1] == f[1] for p, f in zip(pairs, floors, strict=True))
    seen.clear()
    assert estimate(metric, x, y, n=10_000, repeats=3).n == 50
    assert all(len(set(a)) == 50 and max(a) < 100 for a, _ in seen[::2])
    assert all(not set(a) & set(b) for a, b in seen[1::2])
    assert seen[0][0] != seen[2][0]


@pytest.mark.parametrize("rows", [400, 4000])
def test_the_error_of_an_estimate_is_the_spread_of_estimates(rows):
    """Over fresh arrays, with repeats that overlap (400 rows) and that do not."""

    def metric(a, b):
        return float(a.mean() - b.mean())

    found = [
        estimate(metric, normal(rows, 1, 2 * i), normal(2 * rows, 1, 2 * i + 1), n=200, repeats=5)
        for i in range(150)
    ]
    spread = np.std([one.value for one in found])
    told = np.mean([one.error**2 for one in found]) ** 0.5
    # Twice as many rows of y: its part of the variance is half of what the formula takes it for.
    assert 0.8 * spread < told < 1.5 * spread


def test_student():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 5, 9, 20, 21, 30, 100, 10_000):
        assert_allclose(student(freedom), stats.t.ppf(0.975, freedom), rtol=2e-4)


# ---- bad input ----

X = normal(20, 2)
LAW = dsb.Gaussian([0.0, 0.0], 1.0)
NAN = np.where(np.arange(40).reshape(20, 2) == 5, np.nan, X)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda m: m.energy_distance(NAN, X),
            ValueError,
            "x: expected finite numbers, got nan in row 2",
        ),
        (lambda m: m.mmd(X, NAN), ValueError, "y: expected finite numbers, got nan"),
        (lambda m: m.wasserstein(X, NAN), ValueError, "y: expected finite"),
        (lambda m: m.sliced_wasserstein(X, X[:, :1]), ValueError, "y: expected 2 columns"),
        (
            lambda m: m.energy_distance(X, dsb.Gaussian([0.0], 1)),
            ValueError,
            "y: expected 2 columns",
        ),
        (lambda m: m.energy_distance(X[:, 0], X), ValueError, "x: expected shape"),
        (lambda m: m.energy_distance(X.astype(int), X), TypeError, "x: expected numbers of dtype"),
        (lambda m: m.energy_distance("x", X), TypeError, "x: expected samples"),
        (lambda m: m.energy_distance(None, X), TypeError, "x: expected samples"),
        (lambda m: m.energy_distance(X[:0], X), ValueError, "x: expected at least one row"),
        (
            lambda m: m.energy_distance(X[:1], X, statistic="u"),
            ValueError,
            "at least 2 samples, got 1",
        ),
        (
            lambda m: m.energy_distance(X, X, statistic="w"),
            ValueError,
            "statistic: expected one of",
        ),
        (
            lambda m: m.energy_distance(X, X, statistic="u", root=True),
            ValueError,
            "root: expected False",
        ),
        (lambda m: m.mmd(X, X, statistic="u"), ValueError, "root: expected False"),
        (lambda m: m.mmd(X, X, "laplace"), ValueError, "kernel: expected"),
        (
            lambda m: m.mmd(X, X, bandwidth=0),
            ValueError,
            "bandwidth: expected a finite number above 0",
        ),
        (lambda m: m.mmd(X, X, bandwidth=1e-9), ValueError, "bandwidth: expected at least"),
        (lambda m: m.wasserstein(X, X, 3), ValueError, "p: expected a whole number of at most 2"),
        (lambda m: m.sliced_wasserstein(X, X, 0), ValueError, "projections: expected"),
        (lambda m: m.sliced_wasserstein(X, X, p=0), ValueError, "p: expected"),
        (lambda m: m.energy_distance(LAW, X, n=0), ValueError, "n: expected"),
        (lambda m: m.energy_distance(LAW, X, seed=-1), ValueError, "seed: expected"),
        (
            lambda m: m.energy_distance(lambda n, seed: X, X),
            ValueError,
            "x: expected 10000 samples",
        ),
        (
            lambda m: m.gaussian_kl_full(X[:2], LAW),
            ValueError,
            "x: expected at least 3 samples, got 2",
        ),
        (lambda m: m.gaussian_kl_full(X[:, [0, 0]], LAW), ValueError, "span all 2 dimensions"),
        (lambda m: m.gaussian_kl_per_coordinate(X[:1], LAW), ValueError, "at least 2 samples"),
        (
            lambda m: m.gaussian_kl_per_coordinate(X * [1, 0], LAW),
            ValueError,
            "column 1 is constant",
        ),
        (lambda m: m.gaussian_kl_per_coordinate(X, X), TypeError, "law: expected a law"),
        (
            lambda m: m.gaussian_kl_per_coordinate(X[:, :1], LAW),
            ValueError,
            "x: expected 2 columns",
        ),
        (lambda m: m.bw2_uvp(X[:1], LAW), ValueError, "at least 2 samples"),
        (lambda m: m.bw2_uvp(X, np.ones((5, 2))), ValueError, "y: expected samples that differ"),
        (
            lambda m: m.bw2_uvp(dsb.Gaussian([0.0], 1), LAW),
            ValueError,
            "x: expected dimension 2, got 1",
        ),
        (lambda m: m.mode_coverage(X, X[:3]), ValueError, "radius: expected a number"),
        (lambda m: m.mode_coverage(X, X[:3], -1), ValueError, "radius: expected"),
        (
            lambda m: m.mode_coverage(X, X[:3], 1, weights=[1, 1, 1]),
            ValueError,
            "sum 1, got the sum 3",
        ),
        (
            lambda m: m.mode_coverage(X, X[:3], 1, weights=[1]),
            ValueError,
            r"weights: expected shape \(3,\)",
        ),
        (lambda m: m.estimate(m.energy_distance, X, X, repeats=1), ValueError, "repeats: expected"),
        (lambda m: m.estimate("energy", X, X), TypeError, "metric: expected a function"),
        (
            lambda m: m.estimate(lambda a, b: "far", X, X),
            TypeError,
            "metric: expected one that returns",
        ),
        (
            lambda m: m.estimate(m.mode_coverage, X, X[:3], radius=1),
            TypeError,
            "returns a number, got .*; say which with field=, one of hit, total_variation, beyond",
        ),
        (
            lambda m: m.estimate(m.mode_coverage, X, X[:3], radius=1, field="hits"),
            ValueError,
            "field: expected one of what the metric returns, hit, .*, got 'hits'",
        ),
        (lambda m: m.estimate(m.energy_distance, X), TypeError, "y: expected samples"),
        (
            lambda m: m.estimate(m.gaussian_kl_full, X[:4], LAW),
            ValueError,
            "at least 20 samples, got 4",
        ),
    ],
)
def test_bad_input(call, kind, message):
    if "wasserstein" in message:
        pytest.importorskip("ot")
    with pytest.raises(kind, match=message):
        call(metrics)


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['ot'] = sys.modules['ot.lp'] = None\n"
        "import numpy as np, dsb\n"
        "try:\n    dsb.metrics.wasserstein(np.zeros((3, 2)), np.ones((3, 2)))\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert "pip install 'schrodinger-bridge[metrics]'" in oracles.run_python(code)


def test_failed_allocations_leave_nothing_behind():
    x, u = np.zeros((50, 2), np.float32), np.ones((4, 2), np.float32)
    before = _core.live_blocks()
    for call in (lambda: _core.pair_sum(x, x, False, 0.0), lambda: _core.sliced(x, x, u, 2)):
        for n in (1, 2):
            _core.fail_allocation(n)
            with pytest.raises(MemoryError):
                call()
        _core.fail_allocation(0)
        call()
    assert _core.live_blocks() == before


def test_the_core_is_strict():
    x = np.zeros((5, 2), np.float32)
    for call, kind in [
        (lambda: _core.pair_sum(x.astype(np.float64), None, False, 0.0), TypeError),
        (lambda: _core.pair_sum(x, x[:, :1].copy(), False, 0.0), ValueError),
        (lambda: _core.pair_sum(x[:0], None, False, 0.0), ValueError),
        (lambda: _core.sliced(x, x, x, 3), ValueError),
    ]:
        with pytest.raises(kind):
            call()


@pytest.mark.parametrize(
    ("mean", "cov", "what"),
    [
        ([0, 0], [[1, 3], [3, 1]], "positive definite"),
        ([0, 0], [[1, 0.9], [0, 1]], "symmetric"),
        ([0, 0], [[1, np.nan], [np.nan, 1]], "finite"),
        ([0, np.inf], [[1, 0], [0, 1]], "finite"),
        ([0, 0], [[1, 0], [0, 0]], "positive definite"),
    ],
)
@pytest.mark.parametrize("metric", ["gaussian_kl_per_coordinate", "gaussian_kl_full", "bw2_uvp"])
def test_laws_that_are_none_are_refused(metric, mean, cov, what):
    law = SimpleNamespace(mean=np.array(mean, float), cov=np.array(cov, float), dim=2)
    x = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError, match=what):
        getattr(metrics, metric)(x, law)


def test_bandwidths_that_float32_does_not_resolve_are_refused():
    x = np.random.default_rng(0).normal(size=(50, 2))
    for bandwidth in (1e-7, 1e6, 1e300):
        with pytest.raises(ValueError, match="bandwidth: expected at"):
            metrics.mmd(x, x[::-1] + 1.0, bandwidth=bandwidth)
