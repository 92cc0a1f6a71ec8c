"""Steps: constructors, the released code's half-and-mirror, refusals."""

import pickle

import numpy as np
import pytest

from dsb import Schedule


def test_presets_of_the_literature():
    mnist = Schedule.linear(30, 1e-5, 0.1)
    for schedule, total in [
        (Schedule.constant(20, 0.01), 0.2),
        (mnist, 1.50015),
        (Schedule.linear(50, 1e-5, 0.1), 2.50025),
        (Schedule.geometric(50, 1e-5, 0.1), 0.6274),
    ]:
        np.testing.assert_allclose(schedule.T, total, atol=1e-4)
    half = np.linspace(1e-5, 0.1, 15)
    np.testing.assert_array_equal(mnist.steps, np.concatenate([half, half[::-1]]))


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, [4]), (2, [1, 1]), (3, [1, 4, 1]), (4, [1, 4, 4, 1]), (5, [1, 2, 4, 2, 1])],
)
def test_symmetric_geometric(n, expected):
    schedule = Schedule.geometric(n, 1.0, 4.0)
    np.testing.assert_allclose(schedule.steps, expected, rtol=1e-14)
    assert schedule.symmetric


def test_one_way():
    np.testing.assert_allclose(Schedule.linear(3, 1, 2, symmetric=False).steps, [1, 1.5, 2])
    np.testing.assert_allclose(Schedule.geometric(3, 1, 4, symmetric=False).steps, [1, 2, 4])
    assert not Schedule.linear(3, 1, 2, symmetric=False).symmetric


def test_properties():
    schedule = Schedule([0.5, 1, 0.25])
    assert (schedule.N, len(schedule), schedule.T) == (3, 3, 1.75)
    np.testing.assert_array_equal(schedule.times, [0, 0.5, 1.5, 1.75])
    assert schedule.steps.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        schedule.steps[0] = 1
    with pytest.raises(AttributeError, match="immutable"):
        schedule.steps = [1.0]


def test_equality_copies_and_pickles():
    steps = np.array([1.0, 2.0])
    schedule = Schedule(steps)
    steps[0] = 5  # a copy was taken
    assert schedule == Schedule([1, 2]) != Schedule([1, 2.5])
    assert schedule != "a schedule"
    assert hash(schedule) == hash(Schedule([1, 2]))
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert Schedule(np.float32([1, 2])) == schedule


def test_repr_gives_the_schedule_back_where_it_is_short():
    for schedule in (Schedule.constant(20, 0.25), Schedule([0.02, 0.05, 0.1])):
        assert eval(repr(schedule)) == schedule
    assert "N=30" in repr(Schedule.linear(30, 1e-5, 0.1))
    assert "symmetric" in repr(Schedule.linear(30, 1e-5, 0.1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule([]), ValueError, r"steps: .* N from 1 .*\(0,\)"),
        (lambda: Schedule([[1.0]]), ValueError, r"steps: .*\(1, 1\)"),
        (lambda: Schedule(1.0), ValueError, r"steps: .*got \(\)"),
        (lambda: Schedule([1, 0.0]), ValueError, "steps: .*positive.* got 0.0 at index 1"),
        (lambda: Schedule([1, -2.0]), ValueError, "steps: .*positive.* got -2.0"),
        (lambda: Schedule([np.nan]), ValueError, "steps: .*got nan"),
        (lambda: Schedule([np.inf]), ValueError, "steps: .*got inf"),
        (lambda: Schedule("abc"), TypeError, "steps: expected numbers"),
        (lambda: Schedule([1j]), TypeError, "steps: expected numbers"),
        (lambda: Schedule.constant(0, 1), ValueError, "N: .*at least 1, got 0"),
        (lambda: Schedule.constant(2.5, 1), TypeError, "N: .*whole number, got 2.5"),
        (lambda: Schedule.constant(True, 1), TypeError, "N: .*whole number, got True"),
        (lambda: Schedule.constant(10**9, 1), ValueError, "N: .*at most 100000"),
        (lambda: Schedule.constant(3, 0), ValueError, "g: .*above 0, got 0"),
        (lambda: Schedule.constant(3, "1"), TypeError, "g: expected a number, got '1'"),
        (lambda: Schedule.linear(3, -1, 1), ValueError, "lo: .*above 0, got -1"),
        (lambda: Schedule.geometric(3, 1, np.nan), ValueError, "hi: .*got nan"),
        (lambda: Schedule.linear(3, 1, 2, symmetric=1), TypeError, "symmetric: .*True or False"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
