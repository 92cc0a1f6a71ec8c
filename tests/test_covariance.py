"""Learned covariances of steps: the estimate against exact answers, and what is done with it."""

import itertools
import json
import re
import signal
import struct
import warnings

import numpy as np
import oracles
import pytest
from conftest import assert_equal_bits, small

import dsb
from dsb import _core
from dsb.exact import GaussianBridge, PopulationDSB
from dsb.exact.population import COVARIANCES
from dsb.history import NOTHING

DIRECTIONS = ("backward", "forward")
G = np.array([0.05, 0.2, 0.1, 0.4])  # uneven: each step has maps and noise of its own
N = len(G)
PENDING = 3  # gradient steps of a half-bridge that only lacks its estimate
PATHS = 40_000


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = _core.get_num_threads()
    _core.set_num_threads(1)
    yield
    _core.set_num_threads(before)


# ---- a bridge whose nets are known affine maps ----


def spd(rng, d, scale):
    root = rng.normal(size=(d, d))
    return scale * (0.3 * np.eye(d) + 0.5 * root @ root.T / d)


def problem(d, seed=0, v=2.0):
    """Ends, a reference, x -> x + g (W x + b) for both directions, and covariances for all steps."""
    rng = np.random.default_rng(seed)
    given = {"mean": rng.normal(size=d), "precision": 1 / v}
    given["ends"] = [(rng.normal(size=d), spd(rng, d, 2.0)) for _ in range(2)]  # at N, at 0
    given["maps"] = {w: (rng.normal(size=(d, d)) * 0.5, rng.normal(size=d)) for w in DIRECTIONS}
    noise = np.array([3.0, 0.5, 1.5, 0.7]) * 2 * G  # far from 2 g, and from their own reversal
    given["Q"] = {
        "scalar": noise,
        "diagonal": noise[:, None] * rng.uniform(0.5, 1.5, size=(N, d)),
        "full": np.array([spd(rng, d, q) for q in noise]),
    }
    return given


def matrices(values, d):
    """Q_k as matrices."""
    if values.ndim == 3:
        return values
    return np.array([q * np.eye(d) if np.ndim(q) == 0 else np.diag(q) for q in values])


def linear(d):
    return [
        {"op": "input", "name": "x", "width": d},
        {"op": "linear", "name": "out", "inputs": ["x"], "width": d},
    ]


def gaussian_ends(ends):
    told = {}
    for name, (mean, cov) in zip(("prior", "source"), ends, strict=False):
        told[f"{name}_mean"] = mean.astype(np.float32)
        told[f"{name}_factor"] = np.linalg.cholesky(cov).astype(np.float32)
    return told | {"source": None}


def pending(given, kind, half_bridge, known=True, **changed):
    """A bridge that only lacks the estimate at the end of `half_bridge`."""
    d = len(given["mean"])
    net = _core.Net(linear(d))
    options = {
        "reference_mean": given["mean"].astype(np.float32),
        "reference_precision": given["precision"],
        "steps": G,
        "objective": "simplified",
        "covariance": kind,
        "covariance_paths": PATHS,
    }
    bridge = _core.Bridge(net, **gaussian_ends(given["ends"]) | options | changed)
    places = {p["name"]: p["offset"] for p in net.parameters}
    for direction, (W, b) in given["maps"].items():
        plane = np.zeros(net.plane, np.float32)
        plane[places["out.weight"] :][: d * d] = W.ravel()
        plane[places["out.bias"] :][:d] = b
        bridge.set_plane(direction, "theta", plane)
    at = {"half_bridge": half_bridge, "step": PENDING, "steps": PENDING}
    at |= {f"{what}_{d}": 1 for what in ("adam", "trained") for d in DIRECTIONS}
    bridge.set_position(at, np.zeros(PENDING, np.float32), np.zeros(PENDING, np.float32))
    if known:
        bridge.set_covariance(generator_of(half_bridge), given["Q"][kind], 0)
    return bridge


def generator_of(half_bridge):
    return DIRECTIONS[1 - half_bridge % 2]


def estimated(bridge):
    """The covariances that `pending` lacked, and how many eigenvalues were raised."""
    trained = DIRECTIONS[bridge.half_bridge % 2]
    assert bridge.get_covariance(trained)[0] is None
    assert bridge.run(1, 100.0) == 0
    assert bridge.steps == bridge.step == 0
    return bridge.get_covariance(trained)


def affine(given, direction, k):
    W, b = given["maps"][direction]
    return np.eye(len(b)) + G[k] * W, G[k] * b


def order(direction):
    """Steps in the order in which a direction takes them."""
    return range(N) if direction == "forward" else range(N - 1, -1, -1)


def chain(given, direction, Q, reference=False):
    """(k, A, c, mean, cov of the state before) of each step, and at last the joint law of both ends."""
    d = len(given["mean"])
    mean, cov = given["ends"][direction == "forward"]
    steps, first, across = [], cov, cov.copy()  # across: Cov(state, start)
    start = mean
    for k in order(direction):
        A, c = affine(given, direction, k)
        if reference:
            a = 1 - G[k] * given["precision"]
            A, c = a * np.eye(d), (1 - a) * given["mean"]
        steps.append((k, A, c, mean, cov))
        mean, cov, across = A @ mean + c, A @ cov @ A.T + Q[k], A @ across
    joint = np.block([[first, across.T], [across, cov]])
    return steps, np.concatenate([start, mean]), joint


def exact_on_trajectories(given, half_bridge, Q, reference=False):
    """E[res res^T], res = Y_j - R(Y_{j+1})."""
    generator, trained = generator_of(half_bridge), DIRECTIONS[half_bridge % 2]
    found = np.empty_like(Q)
    for k, A, c, mean, cov in chain(given, generator, Q, reference)[0]:
        R, r = affine(given, trained, k)
        B = np.hstack([np.eye(len(mean)) - R @ A, -R])  # of Y_j - mean and the noise
        law = np.block([[cov, np.zeros_like(cov)], [np.zeros_like(cov), Q[k]]])
        bias = mean - R @ (A @ mean + c) - r
        found[k] = B @ law @ B.T + np.outer(bias, bias)
    return found


def exact_between_ends(given, half_bridge, law):
    """Var I + E[(m - R)(m - R)^T] with the formulas of the pinned reference; `law`: of start and end."""
    d, m, trained = len(given["mean"]), given["mean"], DIRECTIONS[half_bridge % 2]
    a = 1 - G * given["precision"]
    A = np.concatenate([[1.0], np.cumprod(a)])
    V = np.zeros(N + 1)
    for k in range(N):
        V[k + 1] = a[k] ** 2 * V[k] + 2 * G[k]
    b = A[-1] / A
    W = V[-1] - b**2 * V
    mean, joint = law
    found = np.empty((N, d, d))
    for k in range(N):
        R, r = affine(given, trained, k)
        at = k + 1 if trained == "backward" else k
        of_0, of_N = W[at] * A[at] / V[-1], b[at] * V[at] / V[-1]
        of_m = (W[at] / V[-1]) * (1 - A[at]) - of_N * (1 - b[at])
        spread = V[at] * W[at] / V[-1]
        if trained == "backward":  # start: X_0
            of_start, of_end, gain = of_0, of_N, V[k] * a[k] / V[k + 1]
            of_target, constant = A[k] - gain * A[k + 1], (1 - A[k]) - gain * (1 - A[k + 1])
            var, slope = 2 * G[k] * V[k] / V[k + 1], gain
        else:  # start: X_N
            of_start, of_end, after = of_N, of_0, b[k + 1]
            K = 2 * G[k] * after / (2 * G[k] * after**2 + W[k + 1])
            slope, of_target = a[k] * (1 - K * after), K
            constant = (1 - K * after) * (1 - a[k]) - K * (1 - after)
            var = 2 * G[k] * W[k + 1] / (2 * G[k] * after**2 + W[k + 1])
        D = slope * np.eye(d) - R  # of the state in m - R
        B = np.hstack([of_start * D + of_target * np.eye(d), of_end * D])
        bias = B @ mean + of_m * D @ m + constant * m - r
        found[k] = var * np.eye(d) + B @ joint @ B.T + spread * D @ D.T + np.outer(bias, bias)
    return found


def reduced(exact, kind):
    """A full covariance as the kind has it."""
    if kind == "full":
        return exact
    diagonal = np.diagonal(exact, axis1=1, axis2=2)
    return diagonal if kind == "diagonal" else diagonal.mean(axis=1)


def assert_close(found, exact, kind, most=0.04):
    """Within a share of the largest variance of each step."""
    wanted = reduced(exact, kind)
    assert found.shape == wanted.shape
    for k in range(len(exact)):
        assert np.abs(found[k] - wanted[k]).max() < most * np.diag(exact[k]).max(), (
            k,
            found,
            wanted,
        )


# ---- the estimate ----


@pytest.mark.parametrize("half_bridge", [1, 2, 3])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("d", [1, 3])
def test_known_chain(d, kind, half_bridge):
    """E[res res^T] of the direction trained, in order of time."""
    given = problem(d, half_bridge)
    found, raised = estimated(pending(given, kind, half_bridge))
    exact = exact_on_trajectories(given, half_bridge, matrices(given["Q"][kind], d))
    assert raised == 0
    assert_close(found, exact, kind)
    # What other orders of steps, or the other direction, would have given lies outside.
    for wrong in (exact[::-1], matrices(given["Q"][kind], d), 2 * G[:, None, None] * np.eye(d)):
        with pytest.raises(AssertionError):
            assert_close(found, wrong, kind)


@pytest.mark.parametrize("objective", ["simplified", "bridge"])
@pytest.mark.parametrize("closed_form", [False, True])
def test_first_half_bridge_is_estimated_on_the_reference(objective, closed_form):
    """Also where a forward net is there: in closed form it had no part in the half-bridge."""
    given = problem(3)
    bridge = pending(given, "full", 0, objective=objective, closed_form=closed_form)
    Q = 2 * G[:, None, None] * np.eye(3) if closed_form else given["Q"]["full"]
    if objective == "bridge":
        exact = exact_between_ends(given, 0, chain(given, "forward", Q, closed_form)[1:])
    else:
        exact = exact_on_trajectories(given, 0, Q, closed_form)
    assert_close(estimated(bridge)[0], exact, "full")


@pytest.mark.parametrize("half_bridge", [1, 2])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_known_chain_between_its_ends(kind, half_bridge):
    given = problem(3, half_bridge)
    found, raised = estimated(pending(given, kind, half_bridge, objective="bridge"))
    law = chain(given, generator_of(half_bridge), matrices(given["Q"][kind], 3))[1:]
    exact = exact_between_ends(given, half_bridge, law)
    assert raised == 0
    assert_close(found, exact, kind)
    with pytest.raises(AssertionError):
        assert_close(found, exact[::-1], kind)


@pytest.mark.parametrize("coupling", ["independent", "pairs"])
def test_ends_that_are_drawn(coupling):
    """The pairs of the estimate are those that the half-bridge had."""
    given = problem(2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2)).astype(np.float32)
    y = (2 * x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    rows = {"objective": "bridge", "first_coupling": coupling, "source": x, "prior": y}
    joint = np.cov(np.hstack([x, y]).T)
    if coupling == "independent":
        joint[:2, 2:] = joint[2:, :2] = 0.0
    law = np.concatenate([x.mean(axis=0), y.mean(axis=0)]), joint
    swapped = np.roll(law[0], 2), np.roll(joint, (2, 2), (0, 1))
    for half_bridge in range(2 if coupling == "pairs" else 1):
        bridge = pending({**given, "ends": []}, "full", half_bridge, known=False, **rows)
        exact = exact_between_ends(given, half_bridge, swapped if half_bridge else law)
        assert_close(estimated(bridge)[0], exact, "full")


@pytest.mark.parametrize("d", [1, 3])
def test_perfect_net_has_the_posterior_covariance(d):
    """One step, E[X_0 | X_1] as the net: what the population recursion says, dsb.exact."""
    given = problem(d, v=np.inf)
    (prior_mean, prior_cov), (mean, cov) = given["ends"]
    ends = dsb.Gaussian(mean, cov), dsb.Gaussian(prior_mean, prior_cov)
    step = np.array([0.4])
    exact = PopulationDSB(*ends, dsb.Schedule(step), objective="simplified",
                          covariance=COVARIANCES[-1]).iterate(1)  # fmt: skip
    A, c, Q = exact.process("backward").step(0)
    given["maps"] = dict.fromkeys(DIRECTIONS, ((A - np.eye(d)) / step, c / step))
    bridge = pending(given, "full", 0, known=False, steps=step)
    assert_close(estimated(bridge)[0], Q[None], "full", 0.02)


def test_control_variate():
    """The mean is that of res res^T; the spread is a small part of its."""
    given = problem(2, v=np.inf)
    given["Q"]["scalar"] = 2 * G
    seeds, paths = range(40), 256
    exact = reduced(exact_on_trajectories(given, 1, matrices(2 * G, 2)), "scalar")
    ours, plain = [], []
    for seed in seeds:
        bridge = pending(given, "scalar", 1, seed=seed, covariance_paths=paths)
        ours.append(estimated(bridge)[0])
        walked = bridge.sample("backward", seed, n=paths, paths=True, final_noise=True)
        each = np.empty(N)
        for j, k in enumerate(order("backward")):
            R, r = affine(given, "forward", k)
            each[k] = ((walked[:, j] - walked[:, j + 1] @ R.T - r) ** 2).mean()
        plain.append(each)
    ours, plain = np.array(ours), np.array(plain)
    for found in (ours, plain):
        error = found.std(axis=0) / len(found) ** 0.5
        assert (np.abs(found.mean(axis=0) - exact) < 5 * error).all()
    # In the smallest step, where the residual is nearly the noise; nowhere is it a loss.
    assert ours[:, 0].std() < 0.5 * plain[:, 0].std()
    assert (ours.std(axis=0) < 1.1 * plain.std(axis=0)).all()


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_control_variate_that_knows_nothing(kind):
    """A step much larger than the data's spread: the residual tells nothing of the noise, nor may Q."""
    given = problem(2, v=np.inf)
    deviation, step, paths = 0.2, np.array([0.4]), 1024
    given["ends"][1] = np.zeros(2), deviation**2 * np.eye(2)
    given["maps"] = dict.fromkeys(DIRECTIONS, (-np.eye(2) / step, np.zeros(2)))  # R = 0, its mean
    found = []
    for seed in range(20):
        options = {"known": False, "steps": step, "seed": seed, "covariance_paths": paths}
        found.append(matrices(estimated(pending(given, kind, 0, **options))[0], 2)[0])
    spread = (
        deviation**2 * (2 / paths) ** 0.5
    )  # of the mean of squares; of the noise it is 20 times that
    assert np.abs(np.array(found) - deviation**2 * np.eye(2)).max() < 6 * spread


def test_eigenvalues_that_are_raised():
    """Nearly deterministic steps: the bound .05 g, counted; the other directions stay."""
    given = problem(3, v=np.inf)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    thin = turn @ np.diag([1e-6, 1.0, 1e-6]) @ turn.T
    given["ends"][1] = np.zeros(3), thin
    step = np.array([0.5])
    given["maps"] = dict.fromkeys(DIRECTIONS, (-np.eye(3) / step, np.zeros(3)))  # R = 0, its mean
    bound = 0.05 * step[0]
    for kind, wanted, many in [
        ("full", turn @ np.diag([bound, 1.0, bound]) @ turn.T, 2),
        ("diagonal", np.diag(thin), 0),
        ("scalar", np.trace(thin) / 3, 0),
    ]:
        found, raised = estimated(pending(given, kind, 0, known=False, steps=step))
        assert raised == many
        np.testing.assert_allclose(found[0], wanted, atol=0.03)
    values = np.linalg.eigvalsh(estimated(pending(given, "full", 0, known=False, steps=step))[0][0])
    np.testing.assert_allclose(values[:2], bound, rtol=1e-9)
    given["ends"][1] = np.zeros(3), 1e-6 * np.eye(3)
    for kind, many in [("full", 3), ("diagonal", 3), ("scalar", 1)]:
        found, raised = estimated(pending(given, kind, 0, known=False, steps=step))
        assert raised == many
        np.testing.assert_allclose(matrices(found, 3)[0], bound * np.eye(3), rtol=1e-9, atol=1e-9)


def test_evaluations_are_counted():
    given = problem(2)
    for half_bridge, changed, nets in [
        (2, {}, 2),
        (0, {}, 1),  # the reference is no net
        (0, {"closed_form": False}, 2),
        (1, {"objective": "bridge"}, 2),
        (0, {"objective": "bridge", "first_coupling": "independent"}, 1),
    ]:
        bridge = pending(given, "scalar", half_bridge, covariance_paths=500, **changed)
        estimated(bridge)
        assert bridge.simulation_evaluations == nets * 500 * N


# ---- simulation ----


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_paths_have_these_covariances(direction, kind):
    """Of the steps as they are in time, in both directions; not on another schedule."""
    given = problem(3)
    bridge = pending(given, kind, 2, known=False)
    assert bridge.get_covariance(direction) == (None, 0)
    bridge.set_covariance(direction, given["Q"][kind], 7)
    values, raised = bridge.get_covariance(direction)
    assert raised == 7
    np.testing.assert_array_equal(values, given["Q"][kind])
    for steps, Q in [
        (None, matrices(given["Q"][kind], 3)),
        (G[::-1].copy(), 2 * G[::-1, None, None] * np.eye(3)),
    ]:
        walked = bridge.sample(direction, 1, n=100_000, paths=True, final_noise=True, steps=steps)
        walked = walked.astype(np.float64)
        ends = bridge.sample(direction, 1, n=100_000, final_noise=True, steps=steps)
        assert np.array_equal(ends, walked[:, -1].astype(np.float32))
        W, b = given["maps"][direction]
        for j, k in enumerate(order(direction)):
            g = (G if steps is None else steps)[k]
            noise = walked[:, j + 1] - walked[:, j] - g * (walked[:, j] @ W.T + b)
            assert np.abs(np.cov(noise.T) - Q[k]).max() < 0.03 * np.diag(Q[k]).max()
    noisy = bridge.sample(direction, 1, n=10, paths=True, final_noise=True)
    still = bridge.sample(direction, 1, n=10, paths=True)
    np.testing.assert_array_equal(still[:, :-1], noisy[:, :-1])
    assert (still[:, -1] != noisy[:, -1]).all()


@pytest.mark.parametrize("objective", ["simplified", "dsb"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_training_simulates_with_them(objective, antithetic):
    """Maps that leave x as it is, a net that says so: X' - X is the noise, and the loss the mean of its
    square, of antithetic partners too."""
    given = problem(2)
    given["maps"] = dict.fromkeys(DIRECTIONS, (np.zeros((2, 2)), np.zeros(2)))
    bridge = pending(given, "full", 2, known=False, objective=objective, output="step",
                     antithetic=antithetic, batch=1 << 15)  # fmt: skip
    estimated(bridge)
    Q = given["Q"]["full"]
    bridge.set_covariance("backward", Q, 0)
    bridge.begin(1)
    bridge.run(1, 100.0)
    noise = np.trace(Q, axis1=1, axis2=2).mean() / 2
    assert abs(bridge.log()[0][0] - noise) < 0.03 * noise


# ---- training ----


@pytest.mark.parametrize("objective", ["simplified", "bridge"])
@pytest.mark.parametrize("kind", ["scalar", "full"])
def test_unequal_ends(objective, kind):
    """Where DSB is off by a fifth after five iterations, variances and couplings are right: N(0, 1/4) to
    N(0, 4), T = 1/2, N = 20."""
    ends = dsb.Gaussian([0.0], 0.25), dsb.Gaussian([0.0], 4.0)
    schedule = dsb.Schedule.constant(20, 0.025)
    bridge = dsb.Bridge(*ends, schedule=schedule, reference=dsb.Brownian(), objective=objective,
                        covariance=kind, net=oracles.mlp(1, 16))  # fmt: skip
    bridge.fit(5, 1500, progress=False)
    coupling = GaussianBridge(*ends, schedule).coupling().cross[0, 0]
    assert abs(coupling - 0.618034) < 1e-5
    for direction, exact in (("backward", 0.25), ("forward", 4.0)):
        paths = bridge.paths(200_000, direction=direction, seed=3, final_noise=True)
        start, end = paths[:, 0, 0].astype(float), paths[:, -1, 0].astype(float)
        assert abs(end.var() / exact - 1) < 0.06, (direction, end.var())
        assert abs(np.cov(start, end)[0, 1] / coupling - 1) < 0.06, (direction, np.cov(start, end))


def test_without_them_unequal_ends_are_off():
    """What the test above would say of (12): its population value after five iterations."""
    ends = dsb.Gaussian([0.0], 0.25), dsb.Gaussian([0.0], 4.0)
    exact = PopulationDSB(*ends, dsb.Schedule.constant(20, 0.025)).iterate(5)
    assert exact.process("backward").end.cov[0, 0] > 1.1 * 0.25
    assert exact.process("forward").coupling().cross[0, 0] < 0.92 * 0.618034


# ---- threads, interruptions, files ----


def test_threads():
    for kind, objective in itertools.product(["diagonal", "full"], ["simplified", "bridge"]):
        found = []
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            bridge = pending(problem(70), kind, 1, objective=objective, covariance_paths=1001)
            found.append(estimated(bridge)[0].tobytes())
        assert found[0] == found[1] == found[2]


def test_interrupted():
    """Ctrl-C in an estimate: all steps are done, the old covariance serves, and nothing is lost."""
    given = problem(3)
    many = {"covariance_paths": 10 * PATHS}  # work for longer than the core goes without looking
    expected = estimated(pending(given, "full", 2, **many))
    cut = pending(given, "full", 2, **many)
    cut.set_covariance("backward", given["Q"]["full"], 0)  # of the half-bridge before
    before = cut.sample("backward", 5, n=10)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    met = 0
    try:
        for times in itertools.count(1):
            signal.setitimer(signal.ITIMER_REAL, 0.02 * times**2)
            try:
                cut.run(1, 100.0)
                break
            except KeyboardInterrupt:
                if cut.half_bridge == 3:  # in the last moment
                    break
                met += 1
                assert (cut.half_bridge, cut.step, cut.steps) == (2, PENDING, PENDING)
                assert np.array_equal(cut.sample("backward", 5, n=10), before)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert met >= 1
    assert cut.half_bridge == 3
    np.testing.assert_array_equal(cut.get_covariance("backward")[0], expected[0])
    assert not np.array_equal(cut.sample("backward", 5, n=10), before)


OPTIONS = {"objective": "simplified", "covariance": "full", "covariance_paths": 300}


def fitted(iterations=1, **changed):
    bridge = small(**OPTIONS | changed)
    bridge.fit(iterations, 20, progress=False)
    return bridge


def cut_short(path, begun=1):
    """A bridge that lacks the estimate of half-bridge `begun`, as Ctrl-C would leave it; saved too."""
    bridge = small(**OPTIONS)
    records = []

    def stop(bridge, record):
        records.append(record)
        if bridge.half_bridge == begun and record.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bridge.fit(2, 20, callback=stop, log_every=10, progress=False)
    while bridge._core.step < 20:
        bridge._core.run(20, 100.0)
    bridge.save(path)
    return bridge


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_resumed_before_an_estimate(tmp_path, begun):
    whole = fitted(2)
    bridge = cut_short(tmp_path / "a", begun)
    for resumed in (bridge, dsb.load(tmp_path / "a")):
        assert (resumed.half_bridge, resumed.step) == (begun, 20)
        assert len(resumed.history) == begun + 1
        assert len(resumed.history[-1].loss) == 20
        with pytest.raises(RuntimeError, match="under way"):
            resumed.load_state_dict("backward", resumed.state_dict("backward"))
        records = []
        resumed.fit(
            1 - begun // 2,
            callback=lambda bridge, record, told=records: told.append(record),
            log_every=15,
            progress=False,
        )
        assert_equal_bits(resumed, whole)
        first = records[0]  # the end that had not been told
        assert (first.direction, first.step, first.finished) == (DIRECTIONS[begun % 2], 20, True)
        assert first.loss == np.float32(whole.history[begun].loss[15:]).mean()
        assert [r.finished for r in records[1:]] == [False, True] * (3 - begun)


def test_checkpoint_round_trip(tmp_path):
    for kind in ("scalar", "diagonal", "full"):
        bridge = fitted(covariance=kind)
        bridge.save(tmp_path / "a")
        again = dsb.load(tmp_path / "a")
        assert again.settings == bridge.settings
        assert f"covariance {kind}" in repr(again)
        for direction in DIRECTIONS:
            ours, theirs = bridge.covariance(direction), again.covariance(direction)
            assert (ours.kind, ours.raised) == (theirs.kind, theirs.raised) == (kind, ours.raised)
            np.testing.assert_array_equal(ours.values, theirs.values)
        for each in (bridge, again):
            each.fit(1, 20, progress=False)
        assert_equal_bits(bridge, again)
        bridge.save(tmp_path / "b")
        again.save(tmp_path / "c")
        assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("covariance") / "sound"
    fitted().save(path)
    return path


def rewritten(path, values=None, **metadata):
    """The file with another covariance of the backward net, or with metadata that were changed."""
    from dsb import checkpoint

    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    told = json.loads(header["__metadata__"]["dsb"])
    if values is not None:
        first, last = header["backward.covariance"]["data_offsets"]
        body[first:last] = values.tobytes()
        told["sha256"]["backward.covariance"] = checkpoint._digest(values)
    for name, value in metadata.items():
        told[name] = value
    told.pop("metadata_sha256")
    told["metadata_sha256"] = checkpoint._seal(told)
    header["__metadata__"]["dsb"] = json.dumps(told)
    head = json.dumps(header).encode()
    other = path.with_name("lie")
    other.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return other


def test_files_that_lie(sound):
    bridge = dsb.load(sound)
    values = bridge.covariance("backward").values
    assert dsb.load(rewritten(sound, values)).covariance("backward").raised == 0
    lopsided, endless, negative = values.copy(), values.copy(), values.copy()
    lopsided[1, 0, 1] += 1e-3
    endless[2, 0, 0] = np.inf
    negative[3] -= 10 * np.eye(2)
    for wrong, message in [
        (lopsided, "backward.covariance.* not symmetric"),
        (endless, "backward.covariance.* NaN or infinity"),
        (negative, "covariance of step 3 is not finite and positive definite"),
    ]:
        with pytest.raises(ValueError, match=f"lie: .*{message}"):
            dsb.load(rewritten(sound, wrong))
    for raised in ({}, {"backward": -1, "forward": 0}, {"backward": 0.5, "forward": 0}, 3):
        with pytest.raises(ValueError, match=r"lie: .*(no place|raised)"):
            dsb.load(rewritten(sound, raised=raised))
    settings = bridge.settings._asdict()
    for kind, message in [("reference", "no place"), ("scalar", "shape"), ("half", "covariance")]:
        with pytest.raises(ValueError, match=f"lie: .*{message}"):
            dsb.load(rewritten(sound, settings=settings | {"covariance": kind}))
    with pytest.raises(ValueError, match=r"lie: .*covariance_paths"):
        dsb.load(rewritten(sound, settings=settings | {"covariance_paths": 100}))
    # A half-bridge with all its steps is over where nothing is estimated.
    plain = small()
    plain.fit(1, 20, progress=False)
    plain.save(sound.with_name("plain"))
    position = {**plain._core.get_position(), "half_bridge": 1, "step": 20, "steps": 20}
    with pytest.raises(ValueError, match=r"lie: .*no position"):
        dsb.load(rewritten(sound.with_name("plain"), position=position))


def test_official_convention(tmp_path):
    """Fresh nets in every half-bridge; until the next estimate a direction keeps its covariance."""
    told = {"convention": "official", "net": dsb.MLP.official(), "covariance": "diagonal"}
    bridge = fitted(**told | {"schedule": dsb.Schedule.linear(5, 0.1, 0.5)})
    before = bridge.covariance("backward").values
    bridge.save(tmp_path / "a")

    def stop(bridge, record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bridge.fit(1, 20, callback=stop, log_every=1, progress=False)
    np.testing.assert_array_equal(bridge.covariance("backward").values, before)
    bridge.fit(0, progress=False)
    assert (bridge.covariance("backward").values != before).all()
    whole = dsb.load(tmp_path / "a")
    whole.fit(1, 20, progress=False)
    assert_equal_bits(bridge, whole)


# ---- what a user meets ----


def test_covariance_of_a_bridge():
    bridge = small(**OPTIONS)
    for direction in DIRECTIONS:
        values, raised, kind = bridge.covariance(direction)
        np.testing.assert_array_equal(values, 2 * bridge.schedule.steps)
        assert (raised, kind) == (0, "reference")
    bridge.fit(1, 20, progress=False)
    for direction in DIRECTIONS:
        values, raised, kind = bridge.covariance(direction)
        assert (values.shape, values.dtype, kind) == ((4, 2, 2), np.float64, "full")
    # Weights from outside have had no estimate.
    before = bridge.sample(5, seed=1)
    bridge.load_state_dict("backward", bridge.state_dict("backward"))
    assert bridge.covariance("backward").kind == "reference"
    assert bridge.covariance("forward").kind == "full"
    assert not np.array_equal(bridge.sample(5, seed=1), before)
    with pytest.raises(ValueError, match="direction"):
        bridge.covariance("up")
    images = dsb.datasets.images("shapes", 40, size=8)
    net = dsb.UNet(32, (1,), blocks=1)
    bridge = dsb.Bridge(images, dsb.datasets.images("discs", 40, size=8), net=net, batch=8,
                        objective="bridge", covariance="diagonal", covariance_paths=16)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge.fit(1, 1, progress=False)
    assert bridge.covariance().values.shape == (20, 1, 8, 8)


def test_raised_eigenvalues_are_told():
    """Data on a line, in steps that reach it: E[X_0 | X_1] is certain across the line."""
    x = np.linspace(-1, 1, 200)[:, None] * [1.0, 1.0]
    bridge = small(x.astype(np.float32), schedule=dsb.Schedule.constant(2, 1.0), output="mean",
                   reference=dsb.OU(0, 1), prior=dsb.Gaussian([0, 0], 1), batch=256, **OPTIONS)  # fmt: skip
    with pytest.warns(UserWarning, match=r"[1-4] of 4 eigenvalues of the backward steps") as met:
        bridge.fit(1, 800, progress=False)
    assert len([w for w in met if "backward" in str(w.message)]) == 1
    assert met[0].filename == __file__
    assert 1 <= bridge.covariance("backward").raised <= 4


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="covariance: expected one of 'reference', 'scalar'"):
        small(covariance="all")
    with pytest.raises(ValueError, match="covariance_paths: expected at least 256 for 'full'"):
        small(**OPTIONS | {"covariance_paths": 255})
    with pytest.raises(ValueError, match="covariance_paths"):
        small(covariance="scalar", covariance_paths=15)
    wide = np.random.default_rng(0).normal(size=(20, 513)).astype(np.float32)
    with pytest.raises(ValueError, match="at most 512 dimensions, got 513; use 'diagonal'"):
        dsb.Bridge(wide, covariance="full", objective="simplified")
    with pytest.raises(ValueError, match=re.escape("at least 2048 for 'full'")):
        dsb.Bridge(wide[:, :512], covariance="full", covariance_paths=2047)
    with pytest.raises(ValueError, match="for images; use 'diagonal'"):
        dsb.Bridge(dsb.datasets.images("shapes", 40, size=8), net=dsb.UNet(32, (1,), blocks=1),
                   covariance="full")  # fmt: skip
    with pytest.warns(UserWarning, match=r"equation 12.*objective='simplified' or 'bridge'"):
        small(covariance="scalar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(**OPTIONS)
        small(**OPTIONS | {"objective": "bridge"})


def test_what_the_core_refuses():
    given = problem(2)
    bridge = pending(given, "full", 2)
    for values, error in [
        (np.zeros((N, 2, 2)), FloatingPointError),
        (np.full((N, 2, 2), np.nan), FloatingPointError),
        (np.full((N, 2, 2), np.inf), FloatingPointError),
        (np.zeros((N, 2)), ValueError),
        (np.zeros((N, 3, 3)), ValueError),
        (np.zeros((N, 2, 2), np.float32), TypeError),
    ]:
        before = bridge.get_covariance("forward")[0]
        with pytest.raises(error):
            bridge.set_covariance("forward", values, 0)
        np.testing.assert_array_equal(bridge.get_covariance("forward")[0], before)
    bridge.set_covariance("forward", None, 0)
    assert bridge.get_covariance("forward")[0] is None
    plain = pending(given, "scalar", 2)
    for wrong in (0.0, np.nan, np.inf):
        with pytest.raises(FloatingPointError, match="step 2 is not finite"):
            plain.set_covariance("forward", np.array([1.0, 1.0, wrong, 1.0]), 0)
    at = plain.get_position()
    plain = _core.Bridge(_core.Net(linear(2)), **gaussian_ends(given["ends"]), steps=G,
                         reference_mean=np.zeros(2, np.float32), reference_precision=0.0)  # fmt: skip
    with pytest.raises(ValueError, match="reference's"):
        plain.set_covariance("forward", given["Q"]["scalar"], 0)
    with pytest.raises(ValueError, match="3 of 3 is no position"):
        plain.set_position(at, *(np.zeros(3, np.float32),) * 2)
    plain.set_position(at | {"step": 0, "steps": 0}, NOTHING, NOTHING)


def test_memory_is_foreseen():
    few = small(**OPTIONS).memory()
    assert few["covariances"] > 0
    assert small().memory()["covariances"] == 0
    assert few["total"] - few["covariances"] == small(objective="simplified").memory()["total"]
    x = np.random.default_rng(0).normal(size=(20, 512)).astype(np.float32)
    with pytest.raises(MemoryError, match=r"covariances [0-9]+.*covariance='diagonal'"):
        dsb.Bridge(x, schedule=dsb.Schedule.constant(50_000, 1e-4), objective="simplified",
                   covariance="full", net=dsb.MLP(width=16, depth=2), batch=2)  # fmt: skip


def test_diverged():
    """NaN in an estimate: said, and nothing is written."""
    given = problem(2)
    given["maps"]["forward"] = (np.full((2, 2), 3e38), np.zeros(2))
    bridge = pending(given, "full", 2)
    with pytest.raises(FloatingPointError, match=r"covariance of step .* the backward half-bridge"):
        estimated(bridge)
    assert (bridge.half_bridge, bridge.step, bridge.steps) == (2, PENDING, PENDING)
    assert bridge.get_covariance("backward")[0] is None
