"""dsb compare: equal terms for all methods, errors of the right process, budgets, and what it refuses."""

import json
import shlex

import numpy as np
import pytest

import dsb
from dsb import cli, comparison, metrics, reproduce
from dsb._evaluate import Evaluation, How
from dsb.comparison import _budget, _experiment, _methods, _problems
from dsb.exact import DiscreteBridge, GaussianBridge, MixtureBridge
from dsb.reproduce import _report, _setup

NET = dsb.MLP(width=16, depth=2, embedding=8)
SCHEDULE = dsb.Schedule([0.1, 0.2, 0.3, 0.4])
EXACT = GaussianBridge(dsb.Gaussian([0.0], 0.5), dsb.Gaussian([1.0], 2.0), SCHEDULE)
SMALL = {"batch": 64}
METHODS = {
    "plain": {**SMALL, "objective": "dsb"},
    "same": {**SMALL, "objective": "dsb"},
    "simple": {**SMALL, "objective": "simplified"},
}


def tiny(out, problem=EXACT, methods=METHODS, budget="80 steps", **told):
    """A comparison of a second."""
    given = {"net": NET, "ipf": 2, "seeds": 2, "out": out, "say": lambda line: None}
    return dsb.compare(problem, methods, budget, **(given | {"figure": False} | told))


def posed(problem=EXACT, **process):
    told = {"schedule": None, "reference": None} | process
    (found,) = _problems.problems_of(problem, **told)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(report, folder, lines printed)."""
    folder, lines = tmp_path_factory.mktemp("compare"), []
    return tiny(folder, say=lines.append, figure=True), folder, lines


def seeds(report, row, part="values"):
    (entry,) = [one for one in report["results"] if one["row"] == row]
    return [one[part] for one in entry["seeds"]]


def test_report(made):
    """Settings, seeds, errors, seconds, evaluations; table, figure and JSON."""
    report, folder, lines = made
    paths = {path.suffix: path for path in folder.iterdir()}
    assert sorted(paths) == [".json", ".md", ".png"]
    assert paths[".json"].stem == "GaussianBridge-plain-same-simple-80steps-ipf2"
    assert json.loads(paths[".json"].read_text()) == report == reproduce.load(paths[".json"])
    assert report["complete"]
    assert report["notes"] == []
    assert [entry["row"] for entry in report["results"]] == list(METHODS)
    for entry in report["results"]:
        told = entry["settings"]
        assert told["bridge"] == METHODS[entry["row"]]
        assert told["schedule"]["steps"] == SCHEDULE.steps.tolist()
        assert told["reference"] == "Brownian()"
        assert told["net"] == repr(NET)
        assert told["problem"]["source"] == {"mean": [0.0], "cov": 0.5}
        assert told["training"] == {
            "budget": "80 steps",
            "iterations": 2,
            "half_bridges": 4,
            "steps": 20,
            "gradient_steps": 80,
        }
        for one in entry["seeds"]:
            values = one["values"]
            for name in ("kl", "coupling"):
                both = values[f"{name}_backward"], values[f"{name}_forward"]
                assert values[name] == pytest.approx(np.mean(both))
            # One evaluation a row in training, and one (simplified) or two a simulated pair, of three
            # half-bridges, as the first one needs none.
            pairs = 64 * 60 * (1 if entry["row"] == "simple" else 2)
            assert values["evaluations"] == 64 * 80 + pairs
            assert len(one["curve"][""]) == 2
            assert one["curve"][""][-1] == pytest.approx(1e3 * values["kl"])
            assert set(one["seconds"]) == {"training", "evaluation"}
    text = paths[".md"].read_text()
    head = [cell.strip() for cell in text[text.index("| problem") :].split("\n")[0].split("|")]
    assert head[1:-1] == [
        *("problem", "method", "KL x 1e3", "KL backward", "KL floor"),
        *("Cov off by %", "Cov off by backward", "Cov off by floor"),
        *("training, s", "net evaluations x 1e6", "seeds"),
    ]
    cost = next(i for i, line in enumerate(lines) if "What it will cost" in line)
    assert "of memory" in lines[cost]
    assert cost < next(i for i, line in enumerate(lines) if line.startswith("[1/"))


def test_equal_terms(made):
    """The seed decides all draws: methods of equal settings give equal figures, and so does a second run."""
    report, folder, _ = made
    for part in ("values", "curve"):
        assert seeds(report, "plain", part) == seeds(report, "same", part)
        assert seeds(report, "plain", part) != seeds(report, "simple", part)
        first, second = seeds(report, "plain", part)
        assert first != second
    again = tiny(folder, methods={"simple": METHODS["simple"]}, seeds=1)
    assert seeds(again, "simple")[0] == seeds(report, "simple")[0]


def by_hand(seed, **options):
    """A bridge of EXACT as a seed of a comparison makes it."""
    return dsb.Bridge(
        EXACT.source,
        EXACT.prior,
        schedule=SCHEDULE,
        reference=EXACT.reference,
        net=NET,
        seed=_setup.seeds(seed)["bridge"],
        **options,
    )


def test_errors_are_of_the_direction(made):
    """As `fit(evaluate=)` of the same bridge measures them, and the two differ plainly."""
    history = by_hand(0, **METHODS["simple"]).fit(2, 20, evaluate=EXACT, progress=False)
    values = seeds(made[0], "simple")[0]
    for part, direction in zip(history[-2:], ("backward", "forward"), strict=True):
        assert part.direction == direction
        for name in ("kl", "coupling"):
            assert values[f"{name}_{direction}"] == part.errors[name]
    assert values["kl_forward"] != pytest.approx(values["kl_backward"], rel=0.1)
    means = [np.mean([p.errors["kl"] for p in history[i : i + 2]]) for i in (0, 2)]
    assert seeds(made[0], "simple", "curve")[0][""] == pytest.approx(1e3 * np.array(means))


def test_every_seed_is_measured_by_its_own_draws(made, monkeypatch):
    """And the floor is that of as many paths."""
    many, inner = [], metrics.path_gaussian_kl

    def counted(paths, *rest, **told):
        many.append(len(paths))
        return inner(paths, *rest, **told)

    monkeypatch.setattr(metrics, "path_gaussian_kl", counted)
    bridge = by_hand(1, **METHODS["simple"])
    bridge.fit(2, 20, progress=False)
    values = seeds(made[0], "simple")[1]
    for shift, same in ((_setup.shift(1), True), (0, False)):
        found = Evaluation(bridge, EXACT, How(shift))("forward")
        assert (found["kl"] == values["kl_forward"]) == same
    assert set(many) == {1 / values["kl_floor"]}  # d / n


def test_training_is_timed_without_evaluation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_setup.time, "perf_counter", lambda: clock[0])

    def after(bridge, record):
        clock[0] += 10.0

    def last(bridge):
        clock[0] += 5.0
        return {"half_bridges": bridge.half_bridge}

    for half_bridges in (1, 2, 3):
        told = {"training": {"half_bridges": half_bridges, "iterations": 2, "steps": 2}}
        values, seconds = _setup.measured(by_hand(0), told, after, last)
        assert values == {"half_bridges": half_bridges}
        assert seconds == {"training": 0.0, "evaluation": 10.0 * half_bridges + 5.0}


def test_errors_of_samples(tmp_path, monkeypatch):
    """Sliced W2 at the end that a direction generates, to rows that were not trained on; floors of samples
    as large as those that are judged."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 2)), rng.normal(3.0, 0.5, size=(600, 2))
    sizes, inner = [], metrics.sliced_wasserstein

    def counted(a, b, *rest, **told):
        sizes.append((len(a), len(b), float(np.mean(b))))
        return inner(a, b, *rest, **told)

    monkeypatch.setattr(metrics, "sliced_wasserstein", counted)
    report = tiny(tmp_path, (x, y), {"plain": SMALL}, "2000 steps", schedule=SCHEDULE, seeds=1)
    (values,) = seeds(report, "plain")
    assert {size[:2] for size in sizes} == {(100, 100), (150, 150)}  # quarters of the rows
    # Backward: 100 against 100 held-out rows of the source, about 0; forward: the prior, about 3.
    for n, n_too, mean in sizes:
        assert n == n_too
        assert abs(mean - (0.0 if n == 100 else 3.0)) < 0.3
    floors = values["sliced_w2_floor"]
    assert 0.0 < floors < 0.5
    # By hand, of the process with the noise of every step.
    task = posed((x, y), schedule=SCHEDULE).task(0)
    bridge = dsb.Bridge(*task.ends, schedule=SCHEDULE, reference=dsb.Brownian(), net=NET,
                        seed=_setup.seeds(0)["bridge"], **SMALL)  # fmt: skip
    bridge.fit(2, 500, progress=False)
    for direction, held in zip(("backward", "forward"), task.evaluate, strict=True):
        points = bridge.sample(4000, direction=direction, seed=1, final_noise=True)
        assert inner(points, held) == pytest.approx(values[f"sliced_w2_{direction}"], abs=0.12)
        other = task.evaluate[direction == "backward"]
        assert inner(points, other) > 2 * inner(points, held)


def test_halves_of_the_rows():
    """Rows are trained on or held out, never both; pairs stay pairs."""
    x = np.arange(40.0).reshape(20, 2)
    task = posed((x, x + 100.0), schedule=SCHEDULE).task(0)
    for i, end in enumerate((x, x + 100.0)):
        both = np.concatenate((task.ends[i], task.evaluate[i]))
        assert len(task.ends[i]) == 10
        np.testing.assert_array_equal(np.sort(both, axis=0), end)
    np.testing.assert_array_equal(task.ends[0] + 100.0, task.ends[1])
    images = np.arange(16 * 12, dtype=np.uint8).reshape(16, 3, 2, 2)
    found = posed((images, "gaussian"), schedule=SCHEDULE, reference=dsb.Brownian())
    assert found.shape == (3, 2, 2)
    assert found.task(0).ends[0].shape == (8, 3, 2, 2)
    assert found.task(0).ends[0].dtype == np.uint8


def test_first_iteration(tmp_path):
    """One half-bridge has the whole budget, and the backward process alone is measured."""
    report = tiny(tmp_path, methods="first-iteration", seeds=1)
    (entry,) = report["results"]
    assert entry["settings"]["training"]["steps"] == 80
    assert entry["settings"]["training"]["gradient_steps"] == 80
    (one,) = entry["seeds"]
    assert one["values"]["evaluations"] == 80 * 512
    assert set(one["values"]) == {
        *("kl_backward", "kl_floor", "coupling_backward", "coupling_floor", "evaluations"),
    }
    assert len(one["curve"]["backward"]) == 1
    history = by_hand(0).fit(1, 80, evaluate=EXACT, progress=False)
    assert one["values"]["kl_backward"] == history[0].errors["kl"]


@pytest.mark.parametrize("problem", comparison.PROBLEMS)
def test_named_problems(problem):
    """Ends, process and answers fit together, and are others for another seed."""
    found = posed(problem)
    assert found.name == problem
    first, second = (found.task(seed) for seed in (0, 1))
    bridge = dsb.Bridge(*first.ends, schedule=found.schedule, reference=found.reference, net=NET)
    assert bridge.shape == found.shape
    Evaluation(
        bridge, first.evaluate, How(final_noise=True)
    )  # refuses another dimension or process
    json.dumps(found.settings)
    assert found.error in _experiment.ERRORS
    if problem != "gaussian-unequal":  # whose points are new in every step
        ends = zip(first.ends, second.ends, strict=True)
        assert any(isinstance(a, np.ndarray) and not np.array_equal(a, b) for a, b in ends)


def test_a_method_that_diverges_is_a_result(tmp_path):
    """It stands in the report, and the other methods go on."""
    report = tiny(tmp_path, methods={"wild": {"learning_rate": 1e5}, "tame": {}})
    wild, tame = (entry["seeds"][0] for entry in report["results"])
    assert "NaN, infinity or overflow" in wild["failed"]
    assert tame["values"]["kl"] > 0


def test_problems_of_the_table():
    """The numbers that the names stand for."""
    unequal = posed("gaussian-unequal")
    source, prior = unequal.task(0).ends
    assert (source.var, prior.var, unequal.schedule.N) == (0.25, 4.0, 20)
    assert pytest.approx(0.5) == unequal.schedule.T
    assert unequal.task(0).evaluate.coupling().cross[0, 0] == pytest.approx(0.6180340)
    fifty = posed("gaussian-50")
    assert [end.shape for end in fifty.task(0).ends] == [(10_000, 50)] * 2
    assert pytest.approx(5.0) == posed("swissroll-5").schedule.T
    assert posed("mixture-16").shape == (16,)


def test_mixture(tmp_path, monkeypatch):
    """Forward errors of a mixture, and samples of both directions."""
    monkeypatch.setattr(_problems, "GIVEN", 5)
    monkeypatch.setattr(_problems, "EACH", 40)
    monkeypatch.setattr(_problems, "POINTS", 2000)
    exact = MixtureBridge.from_sphere(2, 1.0, schedule=dsb.Schedule.constant(4, 0.125))
    methods = ("dsb", "first-iteration")
    report = tiny(tmp_path, exact, methods, "40 steps", seeds=1)
    (values,), (first,) = (seeds(report, row) for row in methods)
    assert {"path_kl", "cbw2", "cbw2_floor", "sliced_w2", "sliced_w2_backward"} <= set(values)
    assert not {"path_kl_backward", "path_kl_forward"} & set(values)
    assert values["cbw2_floor"] < values["cbw2"]
    assert set(first) == {"sliced_w2_backward", "sliced_w2_floor", "evaluations"}
    assert report["axis"] == {"MixtureBridge": "path KL"}


def test_problems_of_other_measures(tmp_path):
    """Each has its own table, of the columns that it fills, and its own axis."""
    problems = ("gaussian-unequal", "swissroll-5")
    report = tiny(tmp_path, problems, {"plain": SMALL}, seeds=1, ipf=1, figure=True)
    text = next(tmp_path.glob("*.md")).read_text()
    heads = [line for line in text.splitlines() if line.startswith("| problem")]
    assert len(heads) == 2
    assert ["KL x 1e3" in line for line in heads] == [True, False]
    assert ["sliced W2" in line for line in heads] == [False, True]
    assert report["axis"] == {"gaussian-unequal": "KL x 1e3", "swissroll-5": "sliced W2"}
    assert report["levels"]["gaussian-unequal"] == ["kl_floor", "kl_sample"]
    assert report["levels"]["swissroll-5"] == ["sliced_w2_floor"]
    panel = _report_levels(report, "swissroll-5")
    (floor,) = [one["sliced_w2_floor"] for one in [report["results"][1]["seeds"][0]["values"]]]
    assert panel == {"sliced W2 floor": floor}


def _report_levels(report, case):
    entries = [entry for entry in report["results"] if entry["case"] == case]
    return _report._levels(report, entries)


# ---- methods ----


def test_methods_are_settings_of_bridge():
    """Every named method makes a bridge, with just the options that it names."""
    x = np.random.default_rng(0).normal(size=(50, 2))
    plain = dsb.Bridge(x, schedule=SCHEDULE, net=NET).settings._asdict()
    for name, method in comparison.METHODS.items():
        options = method.of((2,))
        schedule = dsb.Schedule.constant(4, 0.1)
        found = dsb.Bridge(x, schedule=schedule, net=NET, **options).settings._asdict()
        changed = {key for key, value in found.items() if value != plain[key]}
        for option, value in options.items():
            assert found[option] == value, name
        if name != "official":
            assert changed - {"lanes"} <= set(options), name  # which follow from the batch
    # What the tables say.
    assert comparison.METHODS["bridge-imf"].of((2,)) == {
        "objective": "bridge",
        "first_coupling": "independent",
    }
    assert comparison.METHODS["constant-1e-4"].of((2,)) == {
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
    }
    for shape, kind in (
        ((2,), "full"),
        ((64,), "full"),
        ((65,), "diagonal"),
        ((1, 4, 4), "diagonal"),
    ):
        options = comparison.METHODS["simplified+covariance"].of(shape)
        assert options == {"objective": "simplified", "covariance": kind}


def test_groups_of_methods():
    assert set(_methods.methods_of("bridge")) < set(comparison.GROUPS["targets"])
    found = _methods.methods_of(("dsb", "targets"))
    assert list(found) == list(comparison.GROUPS["targets"])
    assert sum(method.half_bridges is not None for method in found.values()) == 1
    assert "official" in comparison.METHODS  # but in no group, as it refuses some schedules
    assert not any("official" in group for group in comparison.GROUPS.values())
    assert len(_methods.methods_of("training")) == len(comparison.GROUPS["training"]) > 10


# ---- budgets ----


@pytest.mark.parametrize(
    ("text", "seconds", "steps"),
    [
        ("90 s", 90.0, None),
        ("1.5min", 90.0, None),
        (" 2 H ", 7200.0, None),
        ("40000 steps", None, 40000),
        ("4e4 steps", None, 40000),
        ("1 step", None, 1),
    ],
)
def test_budget_is_read(text, seconds, steps):
    found = _budget.Budget.of(text)
    assert (found.seconds, found.gradient_steps) == (seconds, steps)


def test_steps_of_a_time(monkeypatch):
    """A clock that is known: the first half-bridges are cheaper, and each has a part without steps."""
    clock, calls, jitter = [0.0], [0], 0.0
    each = [(0.01, 1e-3), (0.02, 2e-3), (0.03, 4e-3), (0.03, 8e-3)]  # later ones like the last two

    class Trained:
        def __init__(self):
            self.half_bridge = 0

    def train(bridge, half_bridges, steps, after, progress):
        for _ in range(half_bridges):
            i = bridge.half_bridge
            fixed, step = each[i if i < 2 else 2 + i % 2]
            calls[0] += 1
            noise = jitter * (calls[0] * 0.618 % 1.0)
            clock[0] += fixed * (1.0 + noise) + step * steps
            bridge.half_bridge += 1
            after(bridge, None)

    monkeypatch.setattr(_budget._setup, "train", train)
    monkeypatch.setattr(_budget.time, "perf_counter", lambda: clock[0])
    timing = _budget.timed(Trained, 10, 0.5)
    assert timing.fixed == pytest.approx((0.01, 0.02, 0.03))
    assert timing.step == pytest.approx((1e-3, 2e-3, 6e-3))
    took = 0.03 + 8 * 0.03 + 1000 * (3e-3 + 8 * 6e-3)
    assert timing.seconds(10, 1000) == pytest.approx(took)
    assert timing.steps(10, took + 1e-6) == 1000
    assert timing.steps(1, 0.01 + 1e-3 * 77.5) == 77
    single = _budget.timed(Trained, 1, 0.5)
    assert (single.fixed, single.step) == (pytest.approx((0.01,)), pytest.approx((1e-3,)))
    # Estimates of covariances that take long, and not always as long.
    each, jitter = [(0.3, 1e-3)] * 4, 0.2
    assert _budget.timed(Trained, 10, 0.02).step == pytest.approx((1e-3,) * 3, rel=0.5)
    budget = _budget.Budget.of("1 s")
    assert budget.missed(1.11)
    assert budget.missed(0.89)
    assert not budget.missed(1.09)
    assert not _budget.Budget.of("5 steps").missed(3.0)


def test_budget_in_seconds(tmp_path, monkeypatch):
    """About what was asked for; said where it was not; results that are gone on with keep their steps."""
    methods = {"plain": {"batch": 256}}
    report = tiny(tmp_path, methods=methods, budget="1 s", seeds=1)
    ((seconds,), (entry,)) = seeds(report, "plain", "seconds"), report["results"]
    assert 1 / 4 < seconds["training"] < 4  # other programs may take the machine meanwhile
    steps = entry["settings"]["training"]["steps"]
    assert steps > 20
    late = [{**entry, "seeds": [{**entry["seeds"][0], "seconds": {"training": 1.2}}]}]
    budget = _budget.Budget.of("1 s")
    chosen = _experiment.Comparison([posed()], _methods.methods_of(methods), budget, 2)
    (note,) = chosen.notes(late)
    assert note == "plain on GaussianBridge: training took 1.2 s where 1 s were asked for."
    late[0]["seeds"][0]["seconds"]["training"] = 1.05
    assert chosen.notes(late) == []

    kept = _budget.Timing((0.0,) * 3, (1.0,) * 3)
    monkeypatch.setattr(_experiment, "timed", lambda *rest: kept)  # a machine that is slow now
    again = tiny(tmp_path, methods=methods, budget="1 s", seeds=2, resume=True)
    assert [one["seed"] for one in again["results"][0]["seeds"]] == [0, 1]
    assert again["results"][0]["settings"]["training"]["steps"] == steps
    assert seeds(again, "plain")[0] == seeds(report, "plain")[0]


def test_stopped_and_resumed(made, tmp_path, monkeypatch):
    """Ctrl-C keeps the finished seeds, and all is as if never stopped."""
    run, calls = _experiment.Comparison.run, []

    def stopping(self, settings, seed):
        calls.append((settings["method"], seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, settings, seed)

    monkeypatch.setattr(_experiment.Comparison, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path)
    with pytest.raises(FileExistsError, match="--resume keeps its seeds"):
        tiny(tmp_path)
    report = tiny(tmp_path, resume=True)
    assert report["complete"]
    assert calls == [(m, s) for s in (0, 1) for m in METHODS][:3] + calls[2:3] + calls[4:]
    assert len(calls) == 7
    for row in METHODS:
        assert seeds(report, row) == seeds(made[0], row)
    with pytest.raises(ValueError, match="its settings are not those asked for"):
        tiny(tmp_path, net=dsb.MLP(width=8), resume=True)


def test_quick(tmp_path):
    report = dsb.compare("gaussian-unequal", {"plain": SMALL}, net=NET, quick=True, out=tmp_path,
                         figure=False, say=lambda line: None)  # fmt: skip
    (entry,) = report["results"]
    assert entry["settings"]["training"]["gradient_steps"] == 2000
    assert entry["settings"]["training"]["half_bridges"] == 4
    assert len(entry["seeds"]) == 1
    assert report["notes"] == ["Quick run: too short to judge the methods by."]
    assert "**Quick run: too short" in next(tmp_path.glob("*.md")).read_text()


# ---- what is refused ----

PAIR = (np.ones((20, 2)) * np.arange(20.0)[:, None], "gaussian")


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({"problem": "moon"}, ValueError, "problem: expected one of 'gaussian-5'.*mean 'moons'"),
        ({"problem": ["moons", "x"]}, ValueError, "problem: expected one of"),
        ({"problem": 3}, TypeError, "problem: expected a name, names, a GaussianBridge"),
        ({"problem": (PAIR[0],)}, TypeError, "or a pair"),
        ({"problem": (PAIR[0], None)}, ValueError, "samples of both ends, .* got no prior"),
        ({"problem": (None, PAIR[0])}, ValueError, "samples of both ends, .* got no source"),
        ({"problem": (PAIR[0][:7], "gaussian")}, ValueError, "at least 8 rows of source"),
        ({"problem": (PAIR[0], PAIR[0][:, :1])}, ValueError, "prior: expected 2 columns"),
        ({"problem": "moons", "schedule": SCHEDULE}, ValueError, "schedule: a named problem has"),
        (
            {"reference": dsb.Brownian()},
            ValueError,
            "reference: a problem of dsb.exact has its own",
        ),
        ({"methods": "dbs"}, ValueError, "methods: expected one of 'dsb'.*did you mean 'dsb'"),
        ({"methods": ["dsb", 3]}, TypeError, "methods: expected names, got 3 among them"),
        ({"methods": 3}, TypeError, "methods: expected names, or a dict"),
        ({"methods": []}, ValueError, "methods: expected at least one"),
        ({"methods": {"a|b": {}}}, ValueError, "methods: expected names to be printable"),
        ({"methods": {"a": 3}}, TypeError, r"methods\['a'\]: expected a dict of keyword"),
        (
            {"methods": {"a": {"learning_rat": 1}}},
            ValueError,
            r"methods\['a'\]: 'learning_rat' is no argument of Bridge; did you mean 'learning_rate'",
        ),
        ({"methods": {"a": {"zzz": 1}}}, ValueError, "'zzz' is no argument .*; it has convention"),
        ({"methods": {"a": {"seed": 1}}}, ValueError, "'seed' is the same for all methods"),
        ({"methods": {"a": {"net": NET}}}, ValueError, "'net' is the same for all methods"),
        ({"methods": {"a": {"batch": NET}}}, TypeError, "expected batch to be a number or a name"),
        (
            {"methods": {"a": {"batch": 0}}},
            ValueError,
            "method 'a' on GaussianBridge: batch: expected a whole number of at least 1, got 0",
        ),
        ({"budget": 60}, TypeError, "budget: expected a time or a number of steps, .* got 60"),
        ({"budget": "soon"}, ValueError, "budget: expected a time or a number of steps"),
        ({"budget": "60"}, ValueError, "budget: expected a time"),
        ({"budget": "0 s"}, ValueError, "budget: expected a time"),
        ({"budget": "1.5 steps"}, ValueError, "budget: expected a time"),
        ({"budget": "5 minuts"}, ValueError, "did you mean 'minutes'"),
        ({"budget": "1e999 s"}, ValueError, "budget: expected a time"),
        (
            {"budget": "3 steps"},
            ValueError,
            "budget: 3 steps does not suffice for a step in each of the 4 half-bridges of 'plain' on "
            r"GaussianBridge; that takes 4 steps, or fewer iterations \(ipf\)",
        ),
        ({"budget": "1e-6 s"}, ValueError, r"does not suffice .* that takes [0-9.e-]+ s, or fewer"),
        ({"budget": "1e10 steps"}, ValueError, "expected at most 10,000,000"),
        ({"ipf": 0}, ValueError, "ipf: expected"),
        ({"seeds": 0}, ValueError, "seeds: expected"),
        ({"threads": 0}, ValueError, "threads: expected"),
    ],
)
def test_refused(told, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        tiny(tmp_path, **told)
    assert list(tmp_path.iterdir()) == []


def test_refuses_problems_without_both_ends(tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 1))
    exact = DiscreteBridge(points, points + 1.0, SCHEDULE, dsb.Brownian())
    with pytest.raises(TypeError, match="got a DiscreteBridge"):
        tiny(tmp_path, exact)


# ---- the command line ----


def test_command(tmp_path, capsys):
    words = ["compare", "gaussian-unequal", "--methods", "dsb", "first-iteration", "--ipf", "1"]
    words += ["--budget", "8 steps", "--seeds", "1", "--out", str(tmp_path), "--threads", "1"]
    words += ["--no-figure"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "1 thread:" in out
    assert "In all about" in out
    (path,) = tmp_path.glob("*.json")
    report = reproduce.load(path)
    assert [entry["row"] for entry in report["results"]] == ["dsb", "first-iteration"]
    assert [one["settings"]["training"]["steps"] for one in report["results"]] == [4, 8]
    assert report["runs"][0]["command"] == shlex.join(["dsb", *words])
    assert cli.main(words) == 1
    assert "holds results already" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--seeds", "2"]) == 0
    assert cli.main(["compare", "moon"]) == 1
    assert "did you mean 'moons'" in capsys.readouterr().err


def test_command_names_what_there_is():
    """Its help lists every problem, method and group."""
    for action in cli.parser()._actions:
        if action.choices and "compare" in action.choices:
            told = " ".join(action.choices["compare"].format_help().replace("-\n", "-").split())
    for name in comparison.PROBLEMS:
        assert name in told.replace("- ", "-")
    for name in [*comparison.GROUPS, *comparison.GROUPS["targets"]]:
        assert name.removesuffix("+covariance") in told.replace("- ", "-")
