"""What several tests share."""

import numpy as np
import pytest

import dsb


def small(source=None, prior="gaussian", **options):
    """A bridge that trains thousands of steps a second."""
    if source is None:
        source = dsb.datasets.toy("moons", 500, seed=1)
    told = {"net": dsb.MLP(width=16, depth=2, embedding=8), "batch": 64, "refresh": 7}
    told["schedule"] = dsb.Schedule([0.3, 0.7, 0.5, 1.5])
    return dsb.Bridge(source, prior, **(told | options))


@pytest.fixture(scope="session")
def trained():
    """One iteration of `small`. Not to be trained further."""
    bridge = small()
    bridge.fit(1, 60, progress=False)
    return bridge


def planes(bridge):
    """All of both nets, for comparison bit for bit."""
    names = ["theta", "m", "v"] + ["ema"] * bool(bridge.settings.ema)
    return {
        f"{direction} {name}": bridge._core.get_plane(direction, name)
        for direction in ("backward", "forward")
        for name in names
    }


def assert_equal_bits(a, b):
    for one, other in [(planes(a), planes(b)), (a.history.numpy(), b.history.numpy())]:
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name, strict=True)
    for direction in ("backward", "forward"):
        for one, other in zip(a.covariance(direction), b.covariance(direction), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(
            a.sample(70, direction=direction, seed=3), b.sample(70, direction=direction, seed=3)
        )
