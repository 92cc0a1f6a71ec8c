"""Toy data against scikit-learn's generators and against their definitions; the sliced distance."""

import numpy as np
import pytest

import dsb
from dsb.metrics import sliced_wasserstein

N = 20_000


def in_order(points):
    return points[np.lexsort(points.T)]


def test_names_and_aliases():
    assert len(dsb.datasets.NAMES) == 12
    for name in dsb.datasets.NAMES:
        x = dsb.datasets.toy(name, 101, seed=3)
        assert x.shape == (101, 2)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert np.isfinite(x).all()
        assert dsb.datasets.toy(name, 1).shape == (1, 2)
    for alias, name in [("swiss", "swiss_roll"), ("moon", "moons"), ("checker", "checkerboard")]:
        np.testing.assert_array_equal(dsb.datasets.toy(alias, 9), dsb.datasets.toy(name, 9))


def test_seeds():
    a, b = (dsb.datasets.toy("pinwheel", 50, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(a, dsb.datasets.toy("pinwheel", 50, seed=0))
    assert not np.isin(a, b).any()
    # The noise of one set must not be that of another: pairs of sets would be correlated.
    x = dsb.datasets.toy("8gaussians", 4000) - np.round(dsb.datasets.toy("8gaussians", 4000))
    y = dsb.datasets.toy("8gaussians-table2", 4000)
    y = y - np.round(y)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize("n", [1000, 1001])
@pytest.mark.parametrize("name", ["moons", "circles"])
def test_same_points_as_scikit_learn(name, n):
    sklearn = pytest.importorskip("sklearn.datasets")
    if name == "moons":
        points, _ = sklearn.make_moons(n, noise=0.0)
        expected = 7 * (points - points.mean()) / points.std(ddof=1)
    else:
        expected = 10 * sklearn.make_circles(n, noise=0.0, factor=0.5)[0]
    found = dsb.datasets.toy(name, n)
    np.testing.assert_allclose(in_order(found.round(3)), in_order(expected.round(3)), atol=2e-3)
    # In random order: the first half is no half of the picture.
    assert sliced_wasserstein(found[: n // 2], found[n // 2 :]) < 2


@pytest.mark.parametrize(
    ("name", "noise", "scale"),
    [
        ("scurve", 0.0, None),
        ("swiss_roll", 0.0, None),
        ("scurve-table2", 0.05, lambda x: 1.5 * x),
        ("moons-table2", 0.05, lambda x: 2 * x - 1),
        ("moons-table2-pair", 0.1, None),
    ],
)
def test_same_distribution_as_scikit_learn(name, noise, scale):
    sklearn = pytest.importorskip("sklearn.datasets")
    maker = {"sc": "make_s_curve", "sw": "make_swiss_roll", "mo": "make_moons"}[name[:2]]
    scale = scale or (lambda x: 7 * (x - x.mean()) / x.std(ddof=1))
    samples = []
    for seed in (1, 2):
        points, _ = getattr(sklearn, maker)(N, noise=noise, random_state=seed)
        samples.append(scale(points[:, [0, -1]]))
    floor = sliced_wasserstein(*samples)
    assert sliced_wasserstein(dsb.datasets.toy(name, N, seed=5), samples[0]) < 2 * floor + 0.01
    # A rotation of 5 degrees would be seen.
    c, s = np.cos(np.pi / 36), np.sin(np.pi / 36)
    turned = dsb.datasets.toy(name, N) @ np.array([[c, s], [-s, c]])
    assert sliced_wasserstein(turned, samples[0]) > 2 * floor + 0.01


def definitions(rng):
    """The other sets, written from their definitions."""
    x1 = rng.random(N) * 4 - 2
    x2 = rng.random(N) - rng.integers(0, 2, N) * 2 + np.floor(x1) % 2
    f = rng.standard_normal((N, 2)) * [0.3, 0.1] + [1, 0]
    angle = 2 * np.pi * rng.integers(0, 5, N) / 5 + 0.25 * np.exp(f[:, 0])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.stack([c, -s, s, c]).T.reshape(-1, 2, 2)
    which = rng.integers(0, 8, N) * np.pi / 4
    ring = np.stack([np.cos(which), np.sin(which)], axis=1)
    sides = np.where(np.arange(N) % 2, 7.0, -7.0)
    return {
        "checkerboard": 7.5 * np.stack([x1, x2], axis=1),
        "pinwheel": 7.5 * np.einsum("ti,tij->tj", f, turn),
        "8gaussians": 3 * (4 * ring + 0.5 * rng.standard_normal((N, 2))),
        "8gaussians-table2": 5 * ring + 0.562 * rng.standard_normal((N, 2)),
        "mixture": rng.standard_normal((N, 2)) + np.stack([sides, 0 * sides], axis=1),
    }


def test_released_code_s_own_sets():
    one, two = definitions(np.random.default_rng(0)), definitions(np.random.default_rng(1))
    for name, points in one.items():
        floor = sliced_wasserstein(points, two[name])
        bound = 3 * floor  # the numbers of points in a mode are random too
        found = dsb.datasets.toy(name, N, seed=2)
        assert sliced_wasserstein(found, points) < bound, name
        assert sliced_wasserstein(1.15 * found, points) > bound, name
        if name == "pinwheel":
            assert sliced_wasserstein(found * [1, -1], points) > bound
    mixture = dsb.datasets.toy("mixture", 1000)
    assert (mixture[:, 0] < 0).sum() == 500
    assert 30 < (mixture[:100, 0] < 0).sum() < 70  # rows in random order


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("swis_roll",), ValueError, "name: .*'swis_roll'; did you mean 'swiss_roll'"),
        (("Moons",), ValueError, "did you mean 'moons'"),
        ((7,), TypeError, "name: expected a string, got 7"),
        (("moons", 0), ValueError, "n: .*at least 1, got 0"),
        (("moons", 10.0), TypeError, "n: .*whole number"),
        (("moons", 10, -1), ValueError, "seed: .*at least 0"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        dsb.datasets.toy(*arguments)


def test_sliced_wasserstein_on_a_line():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 1)), rng.normal(1, 2, size=(170, 1))
    # W_2 between samples of unequal sizes: repeat each up to a common size.
    common = np.sort(np.repeat(a[:, 0], 170)) - np.sort(np.repeat(b[:, 0], 300))
    exact = np.sqrt(np.mean(common**2))
    assert sliced_wasserstein(a, b, projections=3) == pytest.approx(exact, rel=1e-5)
    assert sliced_wasserstein(b, a, projections=3) == pytest.approx(exact, rel=1e-5)
    w1 = scipy.wasserstein_distance(a[:, 0], b[:, 0])
    assert w1 < exact < 3 * w1
    assert sliced_wasserstein(a, a) == 0


def test_sliced_wasserstein_of_shifted_points():
    x = np.random.default_rng(0).normal(size=(500, 3))
    shift = np.array([3.0, 0, 4.0])
    expected = 5 / np.sqrt(3)  # E (u . shift)^2 = |shift|^2 / d
    assert sliced_wasserstein(x, x + shift, 2000) == pytest.approx(expected, rel=0.05)
    with pytest.raises(ValueError, match="y: expected 3 columns"):
        sliced_wasserstein(x, x[:, :2])


# ---- images ----


def test_images():
    names = ("shapes", "discs", "rings", "squares", "crosses")
    found = {name: dsb.datasets.images(name, 300, size=12, seed=1) for name in names}
    for name, x in found.items():
        assert x.shape == (300, 1, 12, 12)
        assert x.dtype == np.uint8
        assert x.max(axis=(1, 2, 3)).min() > 200, name  # a figure in each
        edge = np.concatenate([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]])
        assert edge.mean() < 2  # and all of it
        assert len(np.unique(x, axis=0)) == 300
    discs = found["discs"][:, 0] / 255.0
    radius = np.sqrt(discs.sum((1, 2)) / np.pi)
    assert (radius > 0.19 * 12).all()
    assert (radius < 0.36 * 12).all()
    np.testing.assert_array_equal(dsb.datasets.images("discs", 9, 12, 1), found["discs"][:9])
    assert (dsb.datasets.images("discs", 9, 12, 2) != found["discs"][:9]).any()
    kinds = [np.isin(found["shapes"][:, 0].sum((1, 2)), found[k][:, 0].sum((1, 2))) for k in names]
    assert kinds[0].all()
    with pytest.raises(ValueError, match=r"name: .*'ring'; did you mean 'rings'"):
        dsb.datasets.images("ring")
    with pytest.raises(ValueError, match=r"size: .*at least 4"):
        dsb.datasets.images("rings", size=3)


def test_images_of_files(tmp_path):
    import gzip

    x = np.random.default_rng(0).integers(0, 256, (7, 1, 4, 5), dtype=np.uint8)
    head = np.array([0x803, 7, 4, 5], ">u4").tobytes()
    (tmp_path / "a").write_bytes(head + x.tobytes())
    (tmp_path / "b.gz").write_bytes(gzip.compress(head + x.tobytes()))
    for name in ("a", "b.gz"):
        np.testing.assert_array_equal(dsb.datasets.idx_images(tmp_path / name), x, strict=True)
    for wrong in (b"", b"abc", head, head + x.tobytes()[:-1], b"\0" + head + x.tobytes()):
        (tmp_path / "c").write_bytes(wrong)
        with pytest.raises(ValueError, match="c: not a whole file of images"):
            dsb.datasets.idx_images(tmp_path / "c")


def test_sliced_distance_of_images():
    x = dsb.datasets.images("discs", 200, 8, seed=1)
    scaled = (x * np.float32(2 / 255) - 1).astype(np.float32)
    assert sliced_wasserstein(x, scaled) < 1e-5
    near = sliced_wasserstein(x, dsb.datasets.images("discs", 150, 8, seed=2))
    assert near < 0.5 * sliced_wasserstein(x, -scaled)
