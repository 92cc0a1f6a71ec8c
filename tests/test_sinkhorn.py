"""Entropic transport between samples against POT, dense float64 arithmetic, and itself."""

import copy
import os
import signal
import sys
import threading
import time
import tracemalloc

import numpy as np
import oracles
import pytest

import dsb
from dsb import _core
from dsb.exact import DiscreteBridge, sinkhorn, sinkhorn_iterates

UNEVEN = dsb.Schedule([0.3, 0.2, 0.6, 0.4, 0.5])
OU = dsb.OU([0.5, -1.0], 3.0)


def ends(n=70, m=50, d=2, std=2.0, seed=0):
    rng = np.random.default_rng(seed)
    x = std * rng.normal(size=(n, d))
    y = std * rng.normal(size=(m, d)) * np.linspace(0.5, 1.5, d) + 1.0
    return x.astype(np.float32), y.astype(np.float32)


def weights(n, seed):
    w = np.random.default_rng(seed).uniform(size=n)
    w[:: n // 3] = 0.0
    return w / w.sum()


def costs(x, y, s2):
    return np.square(x[:, None].astype(np.float64) - y[None]).sum(-1) / (2.0 * s2)


def dense(plan):
    """The matrix, from the potentials in float64."""
    cost = costs(plan.x, plan.y, plan.variance)
    return plan.a[:, None] * plan.b * np.exp(plan.f[:, None] + plan.g - cost)


def solved(x, y, s2, a, b, steps=3000):
    """log P in float64 by POT."""
    import ot  # not by those who import this file on another instruction set

    reg = 2.0 * s2
    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))
    _, log = ot.bregman.sinkhorn_log(
        a, b, cost, reg, numItermax=steps, stopThr=1e-12, log=True, warn=False
    )
    return log["log_u"][:, None] + log["log_v"] - cost / reg


# ---- the iteration ----


@pytest.mark.parametrize("s2", [0.4, 2.0, 20.0])
def test_against_pot(s2):
    x, y = ends(90, 60, std=7.0)
    y[:, 1] *= 2.0 / 3.0
    plan = sinkhorn(x, y, s2 / 2, tolerance=1e-9, max_iterations=100_000)
    expected = solved(x, y, s2, plan.a, plan.b, 20_000 if s2 < 1 else 3000)
    found = plan.log_plan(np.arange(90))
    assert np.abs(np.exp(found) - np.exp(expected)).sum() <= 1e-5
    promise = 4.0 * np.spacing(np.float32(costs(x, y, s2).max())) + 1e-5
    assert np.abs(found - expected).max() <= promise
    np.testing.assert_allclose(dense(plan), np.exp(found), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 16, 17, 33, 70])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (70, 1), (70, 33), (64, 600)])
def test_shapes(d, n, m):
    x, y = ends(n, m, d)
    plan = sinkhorn(x, y, 2.0 * d, tolerance=1e-7)
    p = dense(plan)
    np.testing.assert_allclose(p.sum(1), plan.a, atol=3e-7)
    np.testing.assert_allclose(p.sum(0), plan.b, atol=3e-7)
    np.testing.assert_allclose(plan.row_masses(), p.sum(1), rtol=2e-6)
    np.testing.assert_allclose(plan.column_masses(), p.sum(0), rtol=2e-6)
    measured = np.abs(p.sum(1) - plan.a).sum() + np.abs(p.sum(0) - plan.b).sum()
    assert abs(measured - plan.error) < 1e-6


def test_error_is_that_of_the_plan():
    x, y = ends(std=4.0)
    plan = sinkhorn(x, y, 0.3, tolerance=0.05)
    p = dense(plan)
    measured = np.abs(p.sum(1) - plan.a).sum() + np.abs(p.sum(0) - plan.b).sum()
    assert 0.01 < plan.error < 0.05
    assert plan.error == pytest.approx(measured, abs=1e-6)
    assert plan.history[-1].error == plan.error
    assert [half.variance for half in plan.history] == sorted(
        (half.variance for half in plan.history), reverse=True
    )
    assert plan.history[-1].variance == plan.eps == 0.6
    assert all(np.diff([half.seconds for half in plan.history]) > 0)


def test_marginal_error_never_grows():
    x, y = ends(std=4.0)
    plan = sinkhorn(x, y, 0.3, tolerance=1e-4, epsilon_scaling=False)
    errors = np.array([half.error for half in plan.history])
    assert (np.diff(errors) <= 1e-6).all()
    assert plan.iterations == (len(errors) + 1) // 2


def test_weights():
    x, y = ends()
    a, b = weights(len(x), 1), weights(len(y), 2)
    plan = sinkhorn(x, y, 1.0, a=a, b=b, tolerance=1e-8)
    expected = np.zeros((len(x), len(y)))
    some, others = a > 0, b > 0
    expected[np.ix_(some, others)] = np.exp(solved(x[some], y[others], 2.0, a[some], b[others]))
    found = np.exp(plan.log_plan(np.arange(len(x))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)
    assert (found[~some] == 0).all() and np.isfinite(plan.f).all() and np.isfinite(plan.g).all()
    # A point without weight has the potential that it would have in the limit of little weight.
    kernel = np.exp(plan.g - costs(x, y, 2.0)) @ b
    np.testing.assert_allclose(plan.f, -np.log(kernel), atol=1e-5)


def test_tiny_weights_keep_their_ratio():
    x, y = ends(20, 30)
    b = np.full(30, 1e-30)
    b[3] = 1.0
    plan = sinkhorn(x, y, 1.0, b=b / b.sum(), tolerance=1e-7)
    shares = plan.column_masses() / plan.b
    np.testing.assert_allclose(shares, 1.0, atol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_what_is_left_out_is_negligible(d):
    """Points many deviations apart, where groups of columns are skipped; in dimension 7 none is."""
    x, y = ends(900, 1100, d, std=20.0)
    few, more = (np.concatenate([p, np.zeros((len(p), 7 - d), np.float32)], 1) for p in (x, y))
    a, b, f, g = np.full(900, 1 / 900), np.full(1100, 1 / 1100), np.zeros(900), np.zeros(1100)
    for s2 in (500.0, 50.0, 5.0, 1.0):
        found = _core.sinkhorn(x, y, a, b, f, g, s2, most=30)
        whole = _core.sinkhorn(few, more, a, b, f, g, s2, most=30)
        for one, other in zip(found[:3], whole[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=2e-5)
        f, g = found[0] * 10, found[1] * 10
        f, g = (f, g) if s2 > 5.0 else (f / 2, g / 2)


def test_duplicates():
    x, y = ends(40, 30)
    once = sinkhorn(x, y, 1.0, tolerance=1e-8)
    twice = sinkhorn(np.repeat(x, 2, 0), y, 1.0, tolerance=1e-8)
    np.testing.assert_allclose(twice.f[::2], twice.f[1::2], rtol=0, atol=0)
    folded = dense(twice).reshape(40, 2, 30).sum(1)
    np.testing.assert_allclose(folded, dense(once), rtol=1e-5)


def test_a_common_shift_changes_nothing():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(50, 2))
    near = sinkhorn(x, y, 0.2, tolerance=1e-7)
    far = sinkhorn(x + 1e5, y + 1e5, 0.2, tolerance=1e-7)
    np.testing.assert_allclose(
        far.log_plan(np.arange(60)), near.log_plan(np.arange(60)), atol=2e-5, rtol=0
    )


def test_far_apart_from_a_cold_start():
    """The first sums underflow, every one of them: shifts are mended."""
    x, y = ends(100, 100, std=1.0)
    y = y + 100.0
    plan = sinkhorn(x, y, 1.0, tolerance=1e-6, epsilon_scaling=False)
    near = sinkhorn(x, y - 100.0, 1.0, tolerance=1e-6)
    np.testing.assert_allclose(dense(plan), dense(near), rtol=5e-3)  # 1e-3 / 1 of x is lost at 100


def test_ou_is_brownian_between_transformed_points():
    x, y = ends()
    plan = sinkhorn(x, y, UNEVEN, OU, tolerance=1e-7)
    factor, variance = 1.0, 0.0
    for g in UNEVEN.steps:
        factor, variance = factor * (1 - g / 3.0), (1 - g / 3.0) ** 2 * variance + 2 * g
    moved = factor * x + (1 - factor) * np.array([0.5, -1.0])
    assert plan.variance == pytest.approx(variance, rel=1e-12)
    same = sinkhorn(moved, y, variance / 2, tolerance=1e-7)
    np.testing.assert_allclose(
        plan.log_plan(np.arange(70)), same.log_plan(np.arange(70)), atol=1e-4
    )
    np.testing.assert_allclose(plan.barycentric(), same.barycentric(), atol=1e-5)
    back = dense(same).T @ x * 50
    np.testing.assert_allclose(plan.barycentric("backward"), back, atol=1e-5)
    np.testing.assert_allclose(plan.entropic_map(x.astype(float)), plan.barycentric(), atol=1e-5)
    assert plan.cost() == pytest.approx(same.cost(), rel=1e-5)


def test_warm_start_saves_the_work():
    x, y = ends(std=4.0)
    cold = sinkhorn(x, y, 0.3, tolerance=1e-5)
    again = sinkhorn(x, y, 0.3, tolerance=1e-5, warm_start=cold)
    assert cold.iterations > 30 and again.iterations <= 2
    shifted = sinkhorn(x, y, 0.3, tolerance=1e-5, warm_start=(cold.f + 7e4, cold.g - 7e4))
    assert shifted.iterations <= 2
    closer = sinkhorn(x, y, 0.29, tolerance=1e-4, warm_start=cold)
    assert closer.iterations < sinkhorn(x, y, 0.29, tolerance=1e-4).iterations / 2


def test_not_converged():
    x, y = ends(std=4.0)
    with pytest.raises(RuntimeError, match=r"after 5 iterations.*tolerance=1e-06.*max_iterations"):
        sinkhorn(x, y, 0.3, tolerance=1e-6, max_iterations=5)
    plan = sinkhorn(x, y, 0.3, tolerance=1e-6, max_iterations=5, unconverged="return")
    assert not plan.converged and plan.error > 1e-6 and "not converged" in repr(plan)
    measured = np.abs(dense(plan).sum(1) - plan.a).sum() + np.abs(dense(plan).sum(0) - plan.b).sum()
    assert plan.error == pytest.approx(measured, rel=1e-3)


def test_bytes_are_read_as_a_bridge_reads_them():
    raw = np.random.default_rng(0).integers(0, 256, (30, 1, 2, 2), dtype=np.uint8)
    scaled = (raw * np.float32(2 / 255) - 1).astype(np.float32)
    plan, same = sinkhorn(raw, raw[:20], 0.5), sinkhorn(scaled, scaled[:20], 0.5)
    np.testing.assert_array_equal(plan.f, same.f)


def test_iterates_are_exact_ipf():
    x, y = ends(60, 40, std=3.0)
    for reference, told in [(dsb.Brownian(), (np.zeros(2), 0.0)), (OU, (OU.mean, 1 / 3.0))]:
        expected = oracles.exact_ipf(
            x.astype(np.float64), y.astype(np.float64), UNEVEN.steps, told, 6
        )
        plans = sinkhorn_iterates(x, y, UNEVEN, reference, 12)
        for k, rows in enumerate(expected):
            odd, even = plans[2 * k], plans[2 * k + 1]
            np.testing.assert_allclose(odd.row_masses(), rows, rtol=1e-5)
            np.testing.assert_allclose(odd.column_masses(), odd.b, rtol=1e-5)
            np.testing.assert_allclose(even.row_masses(), even.a, rtol=1e-5)
            assert odd.error == pytest.approx(np.abs(rows - odd.a).sum(), rel=1e-3, abs=1e-6)
    i, _ = plans[0].pairs(200_000, seed=1)
    share = np.bincount(i, minlength=60) / 200_000
    assert np.abs(share - plans[0].row_masses()).sum() < 0.03
    assert np.abs(plans[0].row_masses() - plans[0].a).sum() > 0.1


def test_iterates_are_single_half_steps(monkeypatch):
    x, y = ends(60, 40, std=3.0)
    a, b = weights(60, 1), weights(40, 2)
    module = sys.modules["dsb.exact.sinkhorn"]  # the name is the function's, too
    monkeypatch.setattr(module, "CHUNK", 3)  # half steps of one call of the core
    plans = sinkhorn_iterates(x, y, 0.4, n=8, a=a, b=b)
    of = plans[0]._samples
    f, g = np.zeros(60), np.zeros(40)
    for k, plan in enumerate(plans):
        first = "source" if k % 2 else "target"
        f, g, errors, *_ = _core.sinkhorn(of.x, of.y, of.a, of.b, f, g, 0.8, first=first, most=1)
        np.testing.assert_array_equal(plan.f, f)
        np.testing.assert_array_equal(plan.g, g)
        assert plan.error == errors[-1]


def test_iterates_share_their_history():
    x, y = ends(3, 2)
    plans = sinkhorn_iterates(x, y, 1.0, n=2000)
    for k in (0, 7, 1999):
        assert len(plans[k].history) == k + 1 and plans[k].iterations == k // 2 + 1
        assert plans[k].history[-1].error == plans[k].error
        assert plans[k].history == plans[-1].history[: k + 1]
    tracemalloc.start()
    try:
        sinkhorn_iterates(x, y, 1.0, n=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6  # a copy of what came before for each plan would take 4e6 more


# ---- what is read off ----


def test_maps_and_costs_against_the_matrix():
    x, y = ends(70, 1100)
    plan = sinkhorn(x, y, 0.5, b=weights(1100, 4), tolerance=1e-7)
    p = dense(plan)
    np.testing.assert_allclose(plan.barycentric(), p @ y / p.sum(1)[:, None], atol=2e-6)
    back = p.T @ x / np.where(plan.b > 0, p.sum(0), 1)[:, None]
    found = plan.barycentric("backward")
    np.testing.assert_allclose(found[plan.b > 0], back[plan.b > 0], atol=2e-6)
    assert plan.cost() == pytest.approx(float((p * costs(x, y, 1.0)).sum()), rel=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.nansum(p * np.log(p / (plan.a[:, None] * plan.b)))
    assert plan.objective() == pytest.approx(plan.cost() + plan.eps * kl, rel=1e-5)
    z = np.random.default_rng(5).normal(size=(9, 2)) * 3
    w = plan.b * np.exp(plan.g - costs(z, y, plan.eps))
    np.testing.assert_allclose(plan.entropic_map(z), w @ y / w.sum(1)[:, None], atol=5e-6)
    z[:] = 1e4  # beyond float32: the nearest points
    w = plan.g - costs(z, y, plan.eps)
    w = plan.b * np.exp(w - w.max(1)[:, None])
    np.testing.assert_allclose(plan.entropic_map(z), w @ y / w.sum(1)[:, None], atol=1e-2)


@pytest.mark.parametrize("m", [30, 1300])
def test_pairs_have_the_frequencies_of_the_plan(m):
    from scipy.stats import chi2

    x, y = ends(12, m, std=1.0)
    n = 150_000
    plan = sinkhorn(x, y, 1.0, a=weights(12, 6), b=weights(m, 7), tolerance=1e-6)
    i, j = plan.pairs(n, seed=3)
    counts = np.bincount(i * m + j, minlength=12 * m).reshape(12, m)
    expected = n * dense(plan)
    assert (counts[expected == 0] == 0).all()
    bins = expected > 5
    statistic = ((counts - expected)[bins] ** 2 / expected[bins]).sum()
    assert bins.sum() > 100
    assert statistic < chi2.ppf(1 - 1e-6, bins.sum())
    again = plan.pairs(n, seed=3)
    assert (again[0] == i).all() and (again[1] == j).all()
    assert (plan.pairs(n, seed=4)[1] != j).any()


def test_pick_is_the_inverse_of_the_cumulative_sum():
    x, y = ends(80, 1300)
    psi = np.random.default_rng(0).normal(size=1300)
    psi[::7] = -np.inf
    u = np.random.default_rng(1).uniform(size=80)
    u[:3] = 1e-300, 1.0, 0.5
    for s2 in (1.0, 1e-9):  # the second in float64
        picked = _core.conditional_pick(x, y, psi, s2, u)
        e = psi - costs(x, y, s2)
        p = np.exp(e - e.max(1)[:, None])
        below = np.cumsum(p, 1) / p.sum(1)[:, None]
        assert (p[np.arange(80), picked] > 0).all()
        assert (below[np.arange(80), picked] >= u - 1e-5).all()
        assert (np.where(picked > 0, below[np.arange(80), picked - 1], 0) <= u + 1e-5).all()


# ---- the bridge ----


def test_drift_is_the_gradient_of_the_potential():
    x, y = ends(40, 30)
    bridge = DiscreteBridge(x, y, 1.0, a=weights(40, 1), b=weights(30, 2), tolerance=1e-6)
    plan, z = bridge.plan, np.random.default_rng(0).normal(size=(20, 2))

    def log_h(z, points, potential, weight, variance):
        return np.log(np.exp(potential - costs(z, points, variance)) @ weight)

    for t in (0.1, 0.5, 0.93):
        for direction, arguments in (
            ("forward", (y, plan.g, plan.b, 2 * (1 - t))),
            ("backward", (x, plan.f, plan.a, 2 * t)),
        ):
            found = bridge.drift(z, t, direction)
            for k in range(2):
                step = np.zeros(2)
                step[k] = 1e-5
                slope = (log_h(z + step, *arguments) - log_h(z - step, *arguments)) / 2e-5
                np.testing.assert_allclose(found[:, k], 2 * slope, rtol=1e-3, atol=2e-4)
    times = np.linspace(0.1, 0.9, 20)
    each = [bridge.drift(z[[k]], times[k], "forward")[0] for k in range(20)]
    np.testing.assert_allclose(bridge.drift(z, times, "forward"), each, rtol=1e-6)
    flow = (bridge.drift(z, 0.5, "forward") - bridge.drift(z, 0.5, "backward")) / 2
    np.testing.assert_allclose(bridge.velocity(z, 0.5), flow)


@pytest.mark.parametrize("reference", [dsb.Brownian(), OU])
def test_middle_states_by_simulation(reference):
    """Steps by the plug-in drift reach the marginals and the coupling that the plan gives."""
    x, y = ends(25, 20, std=1.0)
    schedule = UNEVEN if reference is OU else dsb.Schedule.constant(100, 0.02)
    bridge = DiscreteBridge(x, y, schedule, reference, tolerance=1e-6)
    n, rng, steps = 40_000, np.random.default_rng(0), schedule.steps
    start = x[rng.integers(len(x), size=n)].astype(np.float64)
    now, paths = start, [start]
    for k, t in enumerate(schedule.times[:-1]):
        mean = now + steps[k] * bridge.drift(now, t, "forward")
        # The noise of a step that is pinned at every end, and the spread of the ends
        spread = 2 * steps[k]
        if reference is OU:
            spread = _step_covariance(bridge, now, k)
        else:
            spread = np.broadcast_to(spread * np.eye(2), (n, 2, 2))
        root = np.linalg.cholesky(spread + 1e-12 * np.eye(2))
        now = mean + np.einsum("nij,nj->ni", root, rng.normal(size=(n, 2)))
        paths.append(now)
    for k in (1, len(steps) // 2, len(steps) - 1):
        law = bridge.marginal(schedule.times[k])
        bias = 0.0 if reference is OU else 0.03
        np.testing.assert_allclose(paths[k].mean(0), law.mean, atol=0.03 + bias)
        np.testing.assert_allclose(np.cov(paths[k].T), law.cov, atol=0.05 + bias)
        drawn = law.sample(100_000, seed=2)
        np.testing.assert_allclose(drawn.mean(0), law.mean, atol=0.03)
        np.testing.assert_allclose(np.cov(drawn.T), law.cov, atol=0.04)
        exact = bridge.sample_paths(50_000, seed=5)[:, k]
        np.testing.assert_allclose(np.cov(exact.T), law.cov, atol=0.05)


def _step_covariance(bridge, x, k):
    """Cov(X_{k+1} | X_k = x) of the discretised bridge: pinned noise, and the spread of the ends."""
    process, plan = bridge._process, bridge.plan
    times = process.times_of(None)
    pinned = process.pinned(times[k], times[k + 1], process.T)
    factor, variance = process.transition(times[k], process.T)
    moved = factor * x + (1 - factor) * process.mean
    w = plan.b * np.exp(plan.g - costs(moved, plan.y, variance))
    w /= w.sum(1)[:, None]
    mean = w @ plan.y
    second = np.einsum("nj,ja,jb->nab", w, plan.y.astype(float), plan.y.astype(float))
    spread = second - np.einsum("na,nb->nab", mean, mean)
    return pinned.r * np.eye(2) + pinned.q**2 * spread


def test_ou_steps_agree_in_both_directions():
    """E[X_k . E[X_{k+1} | X_k]] = E[E[X_k | X_{k+1}] . X_{k+1}], under the bridge's own paths."""
    x, y = ends(25, 20, std=1.0)
    bridge = DiscreteBridge(x, y, UNEVEN, OU, tolerance=1e-6)
    paths = bridge.sample_paths(200_000, seed=1).astype(np.float64)
    times, steps = UNEVEN.times, UNEVEN.steps
    for k in range(1, 4):
        now, later = paths[:, k], paths[:, k + 1]
        ahead = now + steps[k] * bridge.drift(now, times[k], "forward")
        behind = later + steps[k] * bridge.drift(later, times[k + 1], "backward")
        truth = now.T @ later / len(now)
        np.testing.assert_allclose(now.T @ ahead / len(now), truth, atol=0.02)
        np.testing.assert_allclose(behind.T @ later / len(now), truth, atol=0.02)


def test_moments_of_the_coupling():
    x, y = ends(40, 30)
    bridge = DiscreteBridge(x, y, UNEVEN, tolerance=1e-6)
    coupling, p = bridge.coupling(), dense(bridge.plan)
    cross = x.T.astype(float) @ p @ y - np.outer(x.mean(0), y.mean(0))
    np.testing.assert_allclose(coupling.cross, cross, atol=1e-4)
    np.testing.assert_allclose(coupling.cov[:2, 2:], cross, atol=1e-4)
    np.testing.assert_allclose(coupling.cov[:2, :2], np.cov(x.T, bias=True), atol=1e-4)
    np.testing.assert_allclose(coupling.mean, [*x.mean(0), *y.mean(0)], atol=1e-5)
    a, b = coupling.sample(300_000, seed=1)
    np.testing.assert_allclose((a - a.mean(0)).T @ (b - b.mean(0)) / len(a), cross, atol=0.06)
    assert {tuple(row) for row in a[:100]} <= {tuple(row) for row in x}
    for t, end in ((0.0, x), (2.0, y)):
        np.testing.assert_allclose(bridge.marginal(t).cov, np.cov(end.T, bias=True), atol=1e-4)
    made = DiscreteBridge.of(sinkhorn_iterates(x, y, UNEVEN, n=1)[0])
    assert np.abs(made.coupling().mean[:2] - x.mean(0)).max() > 0.05
    assert bridge.dim == 2 and bridge.T == 2.0 and bridge.schedule == UNEVEN


def test_gaussian_samples_approach_the_gaussian_bridge():
    law = [dsb.Gaussian([0.0, 0.5], 1.0), dsb.Gaussian([1.0, 0.0], 2.0)]
    exact = dsb.exact.GaussianBridge(*law, 1.0)
    bridge = DiscreteBridge(law[0].sample(4000, seed=1), law[1].sample(4000, seed=2), 1.0)
    np.testing.assert_allclose(bridge.coupling().cov, exact.coupling().cov, atol=0.15)
    for t in (0.3, 0.6):
        z = exact.marginal(t).sample(100, seed=3)
        for direction in ("forward", "backward"):
            truth = exact.drift(z, t, direction)
            gap = bridge.drift(z, t, direction) - truth
            assert np.mean(gap**2) < 0.06 * np.mean(truth**2)


# ---- threads, instruction sets, memory, signals ----


@pytest.mark.parametrize("d", [2, 8])
def test_threads_change_no_bit(d):
    x, y = ends(500, 700, d)
    found = []
    before = _core.get_num_threads()
    try:
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            plan = sinkhorn(x, y, 0.4)
            z = x.astype(np.float64)
            found.append([plan.f, plan.g, plan.error, plan.entropic_map(z), *plan.pairs(5000, 1)])
    finally:
        _core.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two, strict=True)


ON_ISA = """
import numpy as np
import test_sinkhorn as t
for d in (1, 2, 3, 7, 33):
    x, y = t.ends(70, 555, d, std=4.0)
    psi = np.random.default_rng(0).normal(size=555)
    psi[::5] = -np.inf
    psi[1::5] -= 50.0
    values = np.random.default_rng(1).normal(size=(555, 6)).astype(np.float32)
    for s2 in (.5 * d, 20.0 * d, 1e-4, 1e-9):
        log_sum, mean = t._core.conditional_mean(x, y, psi, s2, values)
        e = psi - t.costs(x, y, s2)
        top = e.max(1)[:, None]
        p = np.exp(e - top)
        assert (abs(log_sum - top[:, 0] - np.log(p.sum(1))) <= (5e-3 if s2 < .1 else 1e-5)).all()
        expected = p @ values / p.sum(1)[:, None]
        np.testing.assert_allclose(mean, expected, atol=5e-3 if s2 < .1 else 1e-5)
    plan = t.sinkhorn(x, y, 1.0 * d, tolerance=1e-6)
    np.testing.assert_allclose(t.dense(plan).sum(1), plan.a, atol=1e-6)
    np.testing.assert_allclose(t.dense(plan).sum(0), plan.b, atol=1e-6)
t.test_pick_is_the_inverse_of_the_cumulative_sum()
t.test_far_apart_from_a_cold_start()
print("fine")
"""


@pytest.mark.parametrize("isa", _core.isas())
def test_on_every_instruction_set(isa):
    """Kernels against the same formulas in float64."""
    assert oracles.run_python(ON_ISA, isa=isa).strip() == "fine"


def test_memory_is_linear():
    code = """
import resource, numpy as np
from dsb import _core
x = np.random.default_rng(0).normal(size=(20000, 2)).astype(np.float32)
a, f = np.full(20000, 5e-5), np.zeros(20000)
_core.sinkhorn(x[:100], x[:100], a[:100], a[:100], f[:100], f[:100], 1.0, most=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_core.sinkhorn(x, x, a, a, f, f, 10.0, most=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(oracles.run_python(code)) < 5000  # KiB; the matrix would have 1.6 GB


def test_failing_allocations_leave_nothing_behind():
    x, y = ends(40, 30)
    a, b = np.full(40, 1 / 40), np.full(30, 1 / 30)
    f, g, u = np.zeros(40), np.zeros(30), np.full(40, 0.5)
    calls = [
        lambda: _core.sinkhorn(x, y, a, b, f, g, 1.0, most=3),
        lambda: _core.conditional_mean(x, y, g, 1.0, y),
        lambda: _core.conditional_pick(x, y, g, 1.0, u),
    ]
    for call in calls:
        call()
        live, n = _core.live_blocks(), 0
        while True:
            n += 1
            _core.fail_allocation(n)
            try:
                call()
            except MemoryError:
                assert _core.live_blocks() == live
                continue
            finally:
                _core.fail_allocation(0)
            break
        assert n > 4 and _core.live_blocks() == live


def test_interrupt():
    x, y = ends(20_000, 20_000)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        sinkhorn(x, y, 0.005, tolerance=1e-9, epsilon_scaling=False)
    assert time.perf_counter() - start < 3.0
    timer.join()


# ---- bad input ----

X, Y = ends(10, 8)
NAN = X.copy()
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("error", "words", "arguments", "options"),
    [
        (ValueError, r"x: .*nan in row 3, column 1", (NAN, Y, 1.0), {}),
        (ValueError, r"y: expected 2 columns", (X, Y[:, :1], 1.0), {}),
        (TypeError, r"x: expected numbers", (X.astype(int), Y, 1.0), {}),
        (ValueError, r"x: expected shape \[n, d\]", (X[:, 0], Y, 1.0), {}),
        (ValueError, r"y: expected at least one row", (X, Y[:0], 1.0), {}),
        (ValueError, r"schedule: .* above 0, got -1", (X, Y, -1.0), {}),
        (ValueError, r"schedule: .*got 0", (X, Y, 0), {}),
        (ValueError, r"schedule: .*float32's range, got 1.7e\+308", (X, Y, 1.7e308), {}),
        (TypeError, r"schedule: expected a dsb.Schedule", (X, Y, 1.0, OU), {}),
        (TypeError, r"reference: expected dsb.OU or", (X, Y, 1.0, "OU"), {}),
        (ValueError, r"reference: expected a mean", (X, Y, UNEVEN, dsb.OU([1.0] * 3, 1)), {}),
        (ValueError, r"T: expected at least [\d.e-]+ for points .* got 1e-06", (X, Y, 1e-6), {}),
        (ValueError, r"a: expected 10 weights", (X, Y, 1.0), {"a": np.ones(3) / 3}),
        (ValueError, r"b: expected numbers of at least 0", (X, Y, 1.0), {"b": [1.5, -0.5]}),
        (ValueError, r"a: .*sum 1, got the sum 10", (X, Y, 1.0), {"a": np.ones(10)}),
        (ValueError, r"a: expected finite", (X, Y, 1.0), {"a": [np.nan] * 10}),
        (ValueError, r"tolerance: .*got 0", (X, Y, 1.0), {"tolerance": 0}),
        (ValueError, r"max_iterations: .*at least 1", (X, Y, 1.0), {"max_iterations": 0}),
        (ValueError, r"epsilon_scaling: .*got 1.5", (X, Y, 1.0), {"epsilon_scaling": 1.5}),
        (
            ValueError,
            r"epsilon_scaling: .*, 0.99\], got 0.999",
            (X, Y, 0.01),
            {"epsilon_scaling": 0.999},
        ),
        (ValueError, r"epsilon_scaling: .*got 1e-320", (X, Y, 0.01), {"epsilon_scaling": 1e-320}),
        (TypeError, r"warm_start: expected a Plan", (X, Y, 1.0), {"warm_start": 3}),
        (ValueError, r"f of shape \(10,\)", (X, Y, 1.0), {"warm_start": (np.zeros(8),) * 2}),
        (
            ValueError,
            r"g with NaN",
            (X, Y, 1.0),
            {"warm_start": (np.zeros(10), np.full(8, np.nan))},
        ),
        (
            ValueError,
            r"differ by less than",
            (X, Y, 1.0),
            {"warm_start": (np.linspace(0, 1e6, 10), np.zeros(8))},
        ),
        (
            ValueError,
            r"whose sum is at most 32,768 in size, got 1e\+300",
            (X, Y, 1.0),
            {"warm_start": (np.full(10, 1e300), np.zeros(8))},
        ),
        (
            ValueError,
            r"differ by less than 32,768, got inf",
            (X, Y, 1.0),
            {"warm_start": (np.zeros(10), np.array([1.7e308, -1.7e308] * 4))},
        ),
        (
            ValueError,
            r"sum is at most 32,768 in size, got inf",
            (X, Y, 1.0),
            {"warm_start": (np.full(10, 1.7e308), np.full(8, 1.7e308))},
        ),
        (
            TypeError,
            r"warm_start: expected f of numbers, got .* dtype complex128",
            (X, Y, 1.0),
            {"warm_start": (np.full(10, 1j), np.zeros(8))},
        ),
        (
            TypeError,
            r"warm_start: expected g of numbers, got .* dtype <U1",
            (X, Y, 1.0),
            {"warm_start": (np.zeros(10), ["a"] * 8)},
        ),
        (
            ValueError,
            r"unconverged: .*'retrun'.*did you mean",
            (X, Y, 1.0),
            {"unconverged": "retrun"},
        ),
    ],
)
def test_bad_input(error, words, arguments, options):
    with pytest.raises(error, match=words):
        sinkhorn(*arguments, **options)


def test_smallest_time_is_usable():
    x, y = ends(10, 8, std=7.0)
    with pytest.raises(ValueError, match="T: expected at least") as caught:
        sinkhorn(x, y, 1e-9)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    plan = sinkhorn(x, y, 1.01 * least, tolerance=1e-3, max_iterations=1_000_000)
    assert plan.converged
    with pytest.raises(ValueError, match=r"schedule: expected a reference that reaches"):
        sinkhorn(x, y, dsb.Schedule([1e-9]), OU)


def test_bad_questions():
    bridge = DiscreteBridge(X, Y, UNEVEN, OU)
    plan = bridge.plan
    for call, words in [
        (lambda: plan.pairs(0), "n: expected"),
        (lambda: plan.barycentric("up"), "direction: expected one of"),
        (lambda: plan.entropic_map(np.zeros((3, 3))), r"z: expected shape \(n, 2\)"),
        (lambda: plan.entropic_map(NAN), "z: expected finite"),
        (lambda: plan.log_plan([10]), "i: expected numbers from 0 to 9, got 10"),
        (lambda: plan.log_plan([1, 2], [3]), "j: expected 2 columns"),
        (lambda: bridge.drift(X, 0.4, "forward"), "nearest is"),
        (lambda: bridge.drift(X, 2.0, "forward"), "where it ends"),
        (lambda: bridge.drift(X, 0.0, "backward"), "where it ends"),
        (lambda: bridge.marginal(3.0), "t: expected a time"),
        (lambda: bridge.sample_paths(3, dsb.Schedule([1.0])), "schedule: expected"),
        (lambda: DiscreteBridge(X, Y, 1.0).drift(X, 1.0, "forward"), "where it ends"),
        (lambda: DiscreteBridge(X, Y, 1.0).sample_paths(3), "schedule: expected a dsb.Schedule"),
        (lambda: sinkhorn_iterates(X, Y, 1.0, n=0), "n: expected"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    for call, words in [
        (lambda: plan.log_plan([0.5]), "i: expected whole numbers"),
        (lambda: DiscreteBridge.of(bridge), "plan: expected a Plan"),
    ]:
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(ValueError, match="read-only"):
        plan.f[0] = 1.0


@pytest.mark.parametrize("reference", [dsb.Brownian(), OU])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_points_beyond_single_precision(reference, direction):
    """They are refused; the farthest that are within it have an answer."""
    bridge = DiscreteBridge(X, Y, UNEVEN, reference)
    far = np.zeros((5, 2))
    far[3, 1] = -1e39
    words = r"expected numbers within float32's range, got -1e\+39 in row 3, column 1"
    with pytest.raises(ValueError, match="z: " + words):
        bridge.plan.entropic_map(far, direction)
    with pytest.raises(ValueError, match="x: " + words):
        bridge.drift(far, 0.5, direction)
    with pytest.raises(ValueError, match="x: " + words):
        bridge.drift(far, [0.5, 1.1, 0.5, 1.1, 0.5], direction)
    far[3, 1] = 1e38
    assert np.isfinite(bridge.plan.entropic_map(far, direction)).all()
    assert np.isfinite(bridge.drift(far, 0.5, direction)).all()


def test_copies_are_the_thing_itself():
    bridge = DiscreteBridge(X, Y, UNEVEN)
    for made in (bridge, bridge.plan):
        assert copy.copy(made) is made and copy.deepcopy([made])[0] is made
    law = copy.deepcopy(bridge.marginal(0.5))
    np.testing.assert_array_equal(law.sample(5), bridge.marginal(0.5).sample(5))


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "x: expected", {0: X.astype(np.float64)}),
        (ValueError, "y: expected", {1: Y[:, :1].copy()}),
        (ValueError, "a: expected", {2: np.ones(3)}),
        (ValueError, "weights must not be negative", {2: np.full(10, -1.0)}),
        (ValueError, "weights must have", {2: np.zeros(10)}),
        (ValueError, "potentials must lie", {4: np.full(10, 1e6)}),
        (ValueError, "potentials must lie", {5: np.full(8, np.nan)}),
        (ValueError, "positive variance", {6: 0.0}),
        (ValueError, "positive variance", {6: np.inf}),
    ],
)
def test_the_core_is_strict(error, words, change):
    given = [X, Y, np.full(10, 0.1), np.full(8, 0.125), np.zeros(10), np.zeros(8), 1.0]
    for k, value in change.items():
        given[k] = value
    with pytest.raises(error, match=words):
        _core.sinkhorn(*given)
