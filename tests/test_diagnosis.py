"""What `evaluate` of fit measures, where it is recorded, and what it leaves as it was."""

import functools
import json
import operator
import struct
import warnings

import numpy as np
import pytest
from conftest import assert_equal_bits, planes, small

import dsb
from dsb import _evaluate, _progress

STEPS = 20


def marked(bridge):
    """Errors that tell when they were measured."""
    return {"half-bridge": bridge.half_bridge, "step": bridge.step}


def without_errors(history):
    return {name: v for name, v in history.numpy().items() if not name.startswith("errors.")}


# ---- where errors are recorded ----


def test_errors_are_those_of_the_half_bridge_that_ended():
    bridge, records = small(), []
    history = bridge.fit(
        2, STEPS, evaluate=marked, callback=lambda b, r: records.append(r), log_every=7,
        progress=False,
    )  # fmt: skip
    assert [part.errors for part in history] == [
        {"half-bridge": float(n), "step": 0.0} for n in (1, 2, 3, 4)
    ]
    assert [part.direction for part in history] == ["backward", "forward"] * 2
    for record in records:
        n = 2 * record.iteration - (record.direction == "backward")
        assert record.errors == ({"half-bridge": n, "step": 0.0} if record.finished else {})
    assert list(history.errors) == ["half-bridge", "step"]
    np.testing.assert_array_equal(history.errors["half-bridge"], [1.0, 2, 3, 4], strict=True)
    told = history.numpy()
    assert {len(v) for v in told.values()} == {4 * STEPS}
    at = np.flatnonzero(~np.isnan(told["errors.half-bridge"]))
    np.testing.assert_array_equal(at, STEPS * np.arange(1, 5) - 1)
    np.testing.assert_array_equal(told["errors.half-bridge"][at], [1, 2, 3, 4])
    assert history[1:].errors["half-bridge"].tolist() == [2, 3, 4]
    table = repr(history).splitlines()
    assert table[0].split()[-2:] == ["half-bridge", "step"]
    assert [line.split()[-2:] for line in table[1:]] == [[str(n), "0"] for n in (1, 2, 3, 4)]


def test_errors_of_some_half_bridges_only():
    bridge = small()
    bridge.fit(1, STEPS, progress=False)
    bridge.fit(1, STEPS, evaluate={"n": lambda b: b.half_bridge}, progress=False)
    history = bridge.history
    assert [part.errors for part in history] == [{}, {}, {"n": 3.0}, {"n": 4.0}]
    np.testing.assert_array_equal(history.errors["n"], [np.nan, np.nan, 3, 4])
    assert [line.split()[-1] for line in repr(history).splitlines()[1:]] == ["-", "-", "3", "4"]


def test_names():
    def named(bridge):
        return np.float32(0.5)

    given = {"a": named, "b": marked, "c": lambda b: {"x": 1.0}}
    history = small().fit(1, STEPS, evaluate=given, progress=False)
    assert list(history[0].errors) == ["a", "b half-bridge", "b step", "c x"]
    assert list(small().fit(1, STEPS, evaluate=named, progress=False)[0].errors) == ["named"]
    history = small().fit(1, STEPS, evaluate=lambda b: 1, progress=False)
    assert history[1].errors == {"error": 1.0}


# ---- what it leaves as it was ----


def curious(bridge):
    """Uses all that a function of the user may use."""
    bridge.drift(np.zeros((3, 2), np.float32), 0.1)
    return float(bridge.sample(50, seed=1).mean() + bridge.paths(5).std())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_training_is_the_same_to_the_bit(ema):
    held = dsb.datasets.toy("moons", 100, seed=5)
    whole, measured = small(ema=ema), small(ema=ema)
    whole.fit(2, STEPS, progress=False)
    measured.fit(2, STEPS, evaluate={"own": curious, "held": held}, progress=False)
    assert all(part.errors for part in measured.history)
    for name, plane in planes(whole).items():
        np.testing.assert_array_equal(plane, planes(measured)[name], strict=True)
    ours, theirs = without_errors(whole.history), without_errors(measured.history)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("stop", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_leaves_a_usable_bridge(stop, tmp_path):
    def fails(bridge):
        if bridge.half_bridge == 2:
            raise stop
        return 1.0

    bridge, whole, called = small(), small(), []
    with pytest.raises(type(stop)):
        bridge.fit(3, STEPS, evaluate=fails, callback=lambda b, r: called.append(r), progress=False)
    assert (bridge.half_bridge, bridge.step, len(called)) == (2, 0, 1)
    assert [part.errors for part in bridge.history] == [{"fails": 1.0}, {}]
    bridge.save(tmp_path / "a")
    bridge.fit(1, STEPS, evaluate=marked, progress=False)
    assert [len(part.errors) for part in bridge.history] == [1, 0, 2, 2]
    whole.fit(2, STEPS, progress=False)
    for name, plane in planes(whole).items():
        np.testing.assert_array_equal(plane, planes(bridge)[name], strict=True)
    again = dsb.load(tmp_path / "a")
    assert [part.errors for part in again.history] == [{"fails": 1.0}, {}]


def test_fitting_in_an_evaluation_is_refused():
    def fits(bridge):
        bridge.fit(1, STEPS)

    with pytest.raises(RuntimeError, match="being fitted already"):
        small().fit(1, STEPS, evaluate=fits, progress=False)


# ---- checkpoints ----


def test_errors_survive_a_checkpoint_at_any_step(tmp_path):
    """Also NaN, infinity, half-bridges without errors, and one under way."""
    values = iter([0.25, np.nan, np.inf, 4.0])

    def odd(bridge):
        return {} if bridge.half_bridge == 2 else {"e": next(values), "f_floor": 0.125}

    saved = []

    def save(bridge, record):
        saved.append(tmp_path / f"{len(saved)}")
        bridge.save(saved[-1])

    whole = small()
    with pytest.warns(UserWarning, match="e is "):
        whole.fit(2, STEPS, evaluate=odd, callback=save, log_every=9, progress=False)
    finished = [part.errors for part in whole.history]
    assert [list(e) for e in finished] == [["e", "f_floor"], [], ["e", "f_floor"], ["e", "f_floor"]]
    for i, path in enumerate(saved):
        bridge = dsb.load(path)
        np.testing.assert_equal(
            [part.errors for part in bridge.history][: bridge.half_bridge],
            finished[: bridge.half_bridge],
        )
        assert bridge.half_bridge == (i + 1) // 3
        assert all(part.errors == {} for part in bridge.history[bridge.half_bridge :])
        bridge.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert_equal_bits(dsb.load(saved[-1]), whole)


def metadata(path, change):
    """Rewrites a checkpoint with other metadata, as a liar would: with a seal that fits."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    told = json.loads(header["__metadata__"]["dsb"])
    change(told)
    told.pop(dsb.checkpoint.SEAL)
    told[dsb.checkpoint.SEAL] = dsb.checkpoint._seal(told)
    header["__metadata__"]["dsb"] = json.dumps(told)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([["a"]], "errors are not lists"),
        ([["a"], ["a", "a"]], "errors are not lists"),
        ([["a"], [1]], "errors are not lists"),
        ([["a"], [["b"]]], "errors are not lists"),
        ([["a"], "b"], "errors are not lists"),
        ([["a"], ["\x1b[2J"]], "errors are not lists"),
        ([["a"], ["b" * 1000]], "errors are not lists"),
        ([["a"], ["b", "c"]], r"history.errors.*shape \(2,\)"),
        ([["a"], []], r"history.errors.*shape \(2,\)"),
        ({}, "lacks 'errors'"),
    ],
)
def test_checkpoints_that_lie(tmp_path, errors, message):
    bridge = small()
    bridge.fit(1, STEPS, evaluate={"a": lambda b: 1.0}, progress=False)
    path = tmp_path / "lie"
    bridge.save(path)
    dsb.load(path)
    metadata(path, lambda told: told.update(errors=errors))
    with pytest.raises(ValueError, match=message):
        dsb.load(path)


def test_checkpoints_without_errors_are_as_before(tmp_path):
    """The field is there only where something was measured, so that older files load."""
    bridge = small()
    bridge.fit(1, STEPS, progress=False)
    bridge.save(tmp_path / "a")
    assert b'"errors"' not in (tmp_path / "a").read_bytes()
    assert b"history.errors" not in (tmp_path / "a").read_bytes()
    assert [part.errors for part in dsb.load(tmp_path / "a").history] == [{}, {}]


# ---- what is shown ----


def test_progress_line(capfd):
    given = {"W2": lambda b: 0.1434 * b.half_bridge, "W2_floor": lambda b: 0.05}
    small().fit(1, STEPS, evaluate=given, progress=True)
    shown = capfd.readouterr().err
    for part in ("IPF 1/1 backward, evaluating", "; backward: W2 .143", "; forward: W2 .287"):
        assert part in shown, part
    assert "floor" not in shown
    last = shown.rstrip().rpartition("\r")[2]
    assert "forward: W2 .287" in last  # stays when the bar is closed
    small().fit(1, STEPS, evaluate=given)  # no terminal
    small().fit(1, STEPS, evaluate=given, progress=False)
    assert capfd.readouterr() == ("", "")


def test_brief_numbers():
    told = {0.1434: ".143", 12.3456: "12.3", -0.5: "-0.5", 1e-9: "1e-09", 0.0: "0"}
    assert {value: _progress.brief(value) for value in told} == told


def test_nan_is_recorded_and_warned_of():
    given = {"a": lambda b: np.nan, "b": lambda b: 1.0, "c": lambda b: -np.inf}
    with pytest.warns(UserWarning, match="half-bridge of iteration 1, a is nan, c is -inf") as seen:
        history = small().fit(1, STEPS, evaluate=given, progress=False)
    assert len(seen) == 2
    assert "backward" in str(seen[0].message)
    assert "forward" in str(seen[1].message)
    assert seen[0].filename == __file__
    assert np.isnan(history[0].errors["a"])
    assert history[0].errors["c"] == -np.inf
    bridge = small()
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        bridge.fit(1, STEPS, evaluate=given, progress=False)
    assert np.isnan(bridge.history[0].errors["a"])


# ---- held-out samples ----


def test_held_out_samples_measure_the_end_that_is_generated():
    source, prior = dsb.Gaussian([0.0, 0.0], 1.0), dsb.Gaussian([9.0, 0.0], 0.25)
    bridge = small(source, prior, reference=dsb.Brownian(), schedule=dsb.Schedule.constant(5, 0.2))
    held = source.sample(601, seed=5)
    history = bridge.fit(1, 1500, evaluate={"one": held, "two": (held, prior)}, progress=False)
    backward, forward = (part.errors for part in history)
    assert list(forward) == ["two sliced_w2", "two sliced_w2_floor"]
    assert backward["one sliced_w2"] == backward["two sliced_w2"]
    # The ends are 9 apart, so that the wrong one would be seen.
    for errors in (backward, forward):
        assert errors["two sliced_w2"] < 4
    # The floor is of halves, 300 rows each; that of the prior of 10,000 draws.
    assert 0.03 < backward["one sliced_w2_floor"] < 0.2
    assert 0.002 < forward["two sliced_w2_floor"] < 0.02
    again = dsb.metrics.sliced_wasserstein(bridge.sample(300, seed=1), held)
    assert backward["one sliced_w2"] == pytest.approx(again, rel=0.3)


def test_exact_samples_are_at_the_floor():
    """A process that is exact at its end measures what two samples of it do."""
    law = dsb.Gaussian([1.0, -2.0], 3.0)
    steps = dsb.Schedule.constant(20, 0.01)
    bridge = small(law, law, reference=dsb.OU(law.mean, 3.0), schedule=steps)
    measure = _evaluate.Evaluation(bridge, (law, law.sample(4001, seed=3)))
    errors = measure("forward")  # by the reference, as nothing was trained
    assert 0.3 < errors["sliced_w2"] / errors["sliced_w2_floor"] < 2.5
    louder = _evaluate.Evaluation(bridge, (law, dsb.Gaussian(law.mean, 6.0)))("forward")
    assert louder["sliced_w2"] > 10 * louder["sliced_w2_floor"]


def test_held_out_images():
    x = dsb.datasets.images("shapes", 40, size=8)
    bridge = small(
        x[:20], schedule=dsb.Schedule.constant(3, 0.01), net=dsb.UNet(32, (1,), blocks=1)
    )
    history = bridge.fit(1, 2, evaluate=x[20:], progress=False)
    assert history[0].errors["sliced_w2"] > 0
    assert history[1].errors == {}
    with pytest.raises(ValueError, match="evaluate: expected images"):
        bridge.fit(1, 2, evaluate=dsb.datasets.images("shapes", 40, size=9))


# ---- bad input ----


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "evaluate: expected numbers of dtype"),
        ("w2", TypeError, "evaluate: expected a function .* got 'w2'"),
        ({}, ValueError, "evaluate: expected a dict with something"),
        ({1: marked}, ValueError, "evaluate: expected names .* got 1"),
        ({" ": marked}, ValueError, "evaluate: expected names"),
        ({"a\n": marked}, ValueError, "evaluate: expected names"),
        ({"a": None}, TypeError, r"evaluate\['a'\]: expected a function .* got None"),
        ({"a": {"b": marked}}, TypeError, r"evaluate\['a'\]: expected a function"),
        (np.zeros((9, 3)), ValueError, "evaluate: expected 2 columns"),
        (np.zeros((3, 2)), ValueError, "evaluate: expected at least 4 rows"),
        (np.full((9, 2), np.nan), ValueError, "evaluate: expected finite numbers, got nan in row 0"),
        ((np.ones((9, 2)), np.full((9, 2), np.inf)), ValueError, r"evaluate\[1\]: expected finite"),
        ((np.zeros((9, 2)),) * 3, ValueError, "evaluate: expected .*pair.*tuple of 3"),
        ((np.zeros((9, 2)), dsb.Gaussian([0.0] * 3, 1.0)), ValueError, r"\[1\]: expected dimension 2"),
        (dsb.Bridge, TypeError, "evaluate: expected a function"),
        (lambda: 1.0, TypeError, r"evaluate: .* with the bridge alone, .* parameters \(\) \(too many"),
        ({"a": lambda b, r: 1.0}, TypeError, r"evaluate\['a'\]: .* parameters \(b, r\) .* 'r'"),
        (lambda *, b: 1.0, TypeError, "evaluate: expected a function that can be called"),
    ],
)  # fmt: skip
def test_what_evaluate_may_not_be(given, error, message):
    bridge = small()
    with pytest.raises(error, match=message):
        bridge.fit(1, STEPS, evaluate=given, progress=False)
    assert bridge.step == bridge.half_bridge == 0


@pytest.mark.parametrize(
    "given",
    [
        lambda b, scale=2.0: scale,
        lambda *given: 2.0,
        functools.partial(lambda scale, b: scale, 2.0),
        operator.attrgetter("dim"),  # of which no parameters are known
    ],
)
def test_functions_that_can_be_called_with_a_bridge(given):
    history = small().fit(1, STEPS, evaluate={"e": given}, progress=False)
    np.testing.assert_array_equal(history.errors["e"], [2.0, 2.0])


@pytest.mark.parametrize("result", [None, "1", True, [1.0, 2.0], 1j, {"a": None}, {"": 1.0}])
def test_what_a_function_may_not_give(result):
    bridge = small()
    with pytest.raises((TypeError, ValueError), match="evaluate: expected"):
        bridge.fit(1, STEPS, evaluate=lambda b: result, progress=False)
    assert (bridge.half_bridge, bridge.step) == (1, 0)


def test_a_bridge_is_no_answer(trained):
    with pytest.raises(TypeError, match="evaluate: expected a function"):
        small().fit(1, STEPS, evaluate=trained)


# ---- exact problems ----

ENDS = dsb.Gaussian([-1.0, 0.5], [[0.5, 0.1], [0.1, 0.3]]), dsb.Gaussian([2.0, 0.0], [2.0, 1.0])
STEPPED = dsb.Schedule([0.1, 0.2, 0.3, 0.2, 0.1])
REFERENCES = {"Brownian": dsb.Brownian(), "OU": dsb.OU([0.3, -0.3], 2.0)}


def between(reference, **options):
    return small(*ENDS, reference=reference, schedule=STEPPED, batch=256, **options)


def by_hand(bridge, problem, direction):
    """The two errors, from the definition."""
    starts = problem.marginal(0.9 if direction == "backward" else 0.0).sample(10_000, seed=73)
    paths = bridge.paths(starts, direction=direction, seed=71, final_noise=True).astype(np.float64)
    if direction == "backward":
        paths = paths[:, ::-1]
    kl = []
    for k, t in enumerate(STEPPED.times):
        law = problem.marginal(t)
        for i in range(2):
            m, v, w = paths[:, k, i].mean(), paths[:, k, i].var(), law.cov[i, i]
            kl.append((v / w - 1 - np.log(v / w) + (m - law.mean[i]) ** 2 / w) / 2)
    first, last = paths[:, 0] - paths[:, 0].mean(axis=0), paths[:, -1] - paths[:, -1].mean(axis=0)
    cross, right = first.T @ last / len(paths), problem.coupling().cross
    coupling = np.sqrt(((cross - right) ** 2).sum() / (right**2).sum())
    return {"kl": np.sum(kl) / len(STEPPED.times), "coupling": coupling}


@pytest.mark.parametrize("reference", REFERENCES)
def test_gaussian_problems(reference):
    """Errors are those of the direction that was trained, at its own times."""
    reference = REFERENCES[reference]
    exact = dsb.exact.GaussianBridge(*ENDS, STEPPED, reference)
    bridge, expected = between(reference), []
    bridge.fit(
        2, 1500, evaluate=exact, progress=False,
        callback=lambda b, r: r.finished and expected.append(by_hand(b, exact, r.direction)),
    )  # fmt: skip
    for part, other in zip(bridge.history, expected, strict=True):
        for name in ("kl", "coupling"):
            assert part.errors[name] == pytest.approx(other[name], rel=1e-3)
        assert 0 < part.errors["kl_floor"] < 1e-3
        assert 0 < part.errors["coupling_floor"] < 0.05
    last = bridge.history[-2:]
    for part, opposite in zip(last, ("forward", "backward"), strict=True):
        assert part.errors["kl"] < 0.15
        assert part.errors["coupling"] < 0.5
        # Of the other direction's paths, taken for this one's, it would have been far more.
        turned = by_hand(Turned(bridge), exact, part.direction)
        assert turned["kl"] > 5 * part.errors["kl"], opposite


class Turned:
    """A bridge whose directions are swapped."""

    def __init__(self, bridge):
        self.bridge = bridge

    def paths(self, starts, direction, **options):
        other = {"backward": "forward", "forward": "backward"}[direction]
        return self.bridge.paths(starts, direction=other, **options)


def test_floors_are_what_exact_paths_measure():
    """On average over 40 samples."""
    exact = dsb.exact.GaussianBridge(*ENDS, STEPPED)
    bridge = between(dsb.Brownian())
    measure = _evaluate._AgainstGaussian(bridge, lambda n, direction: exact, _evaluate.How())
    found = [measure._errors(exact.sample_paths(500, seed=seed), exact) for seed in range(40)]
    floor = _evaluate.gaussian_floor(exact, 500)
    assert np.mean([e["kl"] for e in found]) == pytest.approx(floor["kl_floor"], rel=0.25)
    rms = np.sqrt(np.mean([e["coupling"] ** 2 for e in found]))
    assert rms == pytest.approx(floor["coupling_floor"], rel=0.25)


def test_independent_ends_have_no_error_of_the_coupling():
    """A step of v leads to N(m, 2 v I) from anywhere: Cov(X_0, X_N) is 0."""
    one, reference = dsb.Gaussian([0.0], 1.0), dsb.OU([0.0], 0.5)
    forgetful = dsb.Schedule([0.5, 0.5])
    exact = dsb.exact.GaussianBridge(one, one, forgetful, reference)
    net = dsb.MLP(width=16, depth=1)
    bridge = dsb.Bridge(one, one, reference=reference, schedule=forgetful, net=net, batch=16)
    history = bridge.fit(1, 4, evaluate=exact, progress=False)
    assert set(history.errors) == {"kl", "kl_floor"}


@pytest.mark.parametrize(("dim", "square"), [(1, 3.6180340), (2, 6.2360680)])
def test_the_floor_of_the_coupling_by_hand(dim, square):
    """Between equal normals with 2 T = 1, C = (5^(1/2) - 1) / 2 I: (d^2 + d C^2) / (d C^2) / (n - 1)."""
    one = dsb.Gaussian(np.zeros(dim), 1.0)
    floor = _evaluate.gaussian_floor(dsb.exact.GaussianBridge(one, one, 0.5), 1001)
    assert floor["coupling_floor"] == pytest.approx((square / 1000) ** 0.5, rel=1e-6)
    assert floor["kl_floor"] == pytest.approx(dim / 1001)


def test_an_exact_process_is_at_the_floor():
    """The reference between its own ends is a bridge that needs no training; twice its noise is seen."""
    reference, source = dsb.Brownian(), dsb.Gaussian([0.0, 1.0], 0.5)
    steps = dsb.Schedule.constant(5, 0.1)
    prior = dsb.Gaussian([0.0, 1.0], 0.5 + 2 * steps.T)
    exact = dsb.exact.GaussianBridge(source, prior, steps, reference)
    bridge = small(source, prior, schedule=steps, reference=reference)
    errors = _evaluate.Evaluation(bridge, exact)("forward")
    assert errors["kl"] < 5 * errors["kl_floor"] < 0.01
    assert errors["coupling"] < 5 * errors["coupling_floor"] < 0.2
    louder = dsb.Gaussian([0.0, 1.0], 0.5 + 4 * steps.T)
    errors = _evaluate.Evaluation(bridge, dsb.exact.GaussianBridge(source, louder, steps))(
        "forward"
    )
    assert errors["kl"] > 20 * errors["kl_floor"]


@pytest.mark.parametrize("objective", ["dsb", "simplified"])
def test_perfect_nets(objective):
    """Against the population's own iterate what is left is training's error, from the first on."""
    exact = dsb.exact.GaussianBridge(*ENDS, STEPPED)
    perfect = dsb.exact.PopulationDSB(*ENDS, STEPPED, objective=objective)
    ipf = dsb.exact.GaussianIPF(*ENDS, STEPPED)
    bridge = between(dsb.Brownian(), objective=objective)
    given = {"exact": exact, "nets": perfect, "ipf": ipf}
    history = bridge.fit(2, 1500, evaluate=given, progress=False)
    first = history[0].errors
    assert first["nets kl"] < 0.2 * first["exact kl"]
    assert (history.errors["nets kl"] < 0.005).all()
    assert (history.errors["nets coupling"] < 0.2).all()
    assert first["ipf coupling"] != first["nets coupling"]


def test_problems_that_are_not_the_bridges(trained):
    given = [
        (dsb.exact.GaussianBridge(dsb.Gaussian(0.0, [1.0]), dsb.Gaussian(0.0, [1.0]), 0.9),
         "dimension 2, got 1"),
        (dsb.exact.GaussianBridge(*ENDS, 0.8), "T = 0.9, got 0.8"),
        (dsb.exact.GaussianBridge(*ENDS, STEPPED, dsb.OU(0.0, 2.0)), "reference Brownian"),
        (dsb.exact.PopulationDSB(*ENDS, STEPPED, dsb.OU(0.0, 2.0)), "reference Brownian"),
        (dsb.exact.GaussianIPF(*ENDS, 0.8), "T = 0.9, got 0.8"),
        (dsb.exact.PopulationDSB(*ENDS, dsb.Schedule.constant(9, 0.1)), "schedule"),
    ]  # fmt: skip
    bridge = between(dsb.Brownian())
    for problem, message in given:
        for one, argument in ((problem, "evaluate"), ({"a": problem}, r"evaluate\['a'\]")):
            wanted = f"{argument}: expected a problem with the bridge's {message}"
            with pytest.raises(ValueError, match=wanted):
                bridge.fit(1, STEPS, evaluate=one)
    towards = between(dsb.OU(0.0, 2.0))
    with pytest.raises(ValueError, match=r"reference OU\(mean=0, var=2\), got OU\(mean=0, var=3\)"):
        towards.fit(1, evaluate=dsb.exact.GaussianBridge(*ENDS, STEPPED, dsb.OU(0.0, 3.0)))
    with pytest.raises(ValueError, match="schedule"):
        towards.fit(1, evaluate=dsb.exact.GaussianBridge(
            *ENDS, dsb.Schedule.constant(9, 0.1), dsb.OU(0.0, 2.0)))  # fmt: skip
    assert bridge.step == bridge.half_bridge == 0


# ---- other problems ----

SPHERE = dsb.exact.MixtureBridge.from_sphere(2, 4.0, schedule=dsb.Schedule.constant(5, 0.4))


def on_sphere(**options):
    x, y = SPHERE.coupling().sample(2000, seed=9)
    told = {"schedule": SPHERE.schedule, "reference": dsb.Brownian(), "batch": 256}
    return small(x, y, **(told | options))


def test_mixture_problems():
    """The drift's KL falls in training; before, it is that of the reference, whose drift is 0."""
    bridge = on_sphere()
    measure = _evaluate.Evaluation(bridge, SPHERE)
    before = measure("forward")
    paths = SPHERE.sample_paths(20_000, seed=1)
    energy = [
        g * (SPHERE.drift(paths[:, k], SPHERE.schedule.times[k], "forward") ** 2).sum(axis=1).mean()
        for k, g in enumerate(SPHERE.schedule.steps)
    ]
    assert before["path_kl"] == pytest.approx(np.sum(energy) / 4, rel=0.05)
    history = bridge.fit(2, 1500, evaluate=SPHERE, progress=False)
    keys = ["sliced_w2", "sliced_w2_floor"]
    assert [list(part.errors) for part in history] == [keys, ["path_kl", *keys]] * 2
    assert history[3].errors["path_kl"] < 0.1 * before["path_kl"]
    for part in history:
        assert part.errors["sliced_w2_floor"] < 0.4
        assert part.errors["sliced_w2"] < 1
    # Ends that are told apart: 5 and .5 across.
    assert history[1].errors["sliced_w2_floor"] > 3 * history[0].errors["sliced_w2_floor"]
    assert measure("forward") == history[3].errors  # what is remembered is what was computed


def test_nets_that_put_out_nan_are_recorded(monkeypatch):
    def diverged(*args, **options):
        raise FloatingPointError("sample: NaN or infinity in row 3 of the result")

    for bridge, given, names in [
        (between(dsb.Brownian()), dsb.exact.GaussianBridge(*ENDS, STEPPED), {"kl", "coupling"}),
        (on_sphere(), SPHERE, {"path_kl", "sliced_w2"}),
    ]:
        for name in ("sample", "paths", "drift"):
            monkeypatch.setattr(bridge, name, diverged)
        with pytest.warns(UserWarning, match="is nan"):
            history = bridge.fit(1, 3, evaluate=given, progress=False)
        errors = {name: e for name, e in history[1].errors.items() if not name.endswith("_floor")}
        assert errors.keys() == names
        assert np.isnan(list(errors.values())).all()
