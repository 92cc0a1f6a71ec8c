"""The experiments of `dsb reproduce`: published figures, protocols, exact answers, directions of time."""

import numpy as np
import oracles
import pytest
from budgets import BUDGETS, write_cells

import dsb
from dsb import reproduce
from dsb.reproduce import _report, _setup


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """A folder of four days."""
    folder = tmp_path_factory.mktemp("cells")
    write_cells(folder)
    return folder


def test_published_figures():
    """As they stand in the publications."""
    told = {one.method: one.values for one in reproduce.experiment("gaussian").published}
    assert told["DSB"] == {"d = 5": 3.26, "d = 20": 13.0, "d = 50": 32.8}
    assert told["DSBM-IPF"] == {"d = 5": 1.23, "d = 20": 4.42, "d = 50": 8.75}
    told = {
        one.method: list(one.values.values()) for one in reproduce.experiment("table2").published
    }
    assert told == {
        "DSB": [0.190, 0.272, 0.411, 0.987],
        "DSBM-IPF": [0.140, 0.140, 0.315, 0.812],
        "DSBM-IMF": [0.144, 0.145, 0.338, 0.838],
        "OT-CFM": [0.111, 0.102, 0.253, 0.716],
    }
    mixtures = reproduce.experiment("mixtures").published
    told = {one.method: one.values for one in mixtures}
    assert [told["DSB"][f"d = {d}, eps = 1"] for d in (2, 16, 64, 128)] == [1.66, 5.98, 13.1, 28.9]
    assert [told["DSB"][f"d = {d}, eps = 0.1"] for d in (2, 16, 64, 128)] == [7.8, 15.3, 20.1, 29.4]
    assert [told["IMF"][f"d = {d}, eps = 1"] for d in (2, 16, 64)] == [0.20, 0.53, 2.20]
    assert told["LightSB"]["d = 64, eps = 0.1"] == 0.28
    assert all("other pairs" in one.head for one in mixtures)
    for name in reproduce.NAMES:  # and they meet the rows that they belong to
        made = reproduce.experiment(name)
        cases = {"data": "."} if name == "singlecell" else {}
        names = {made(**cases).case_name(case) for case in made(**cases).cases}
        for one in made.published:
            assert names & set(one.values)
            assert "arXiv" in one.source


def test_protocols():
    """What the publications fix, at the full budget; the rows differ in the rest alone."""
    for job in reproduce.experiment("gaussian")((50,)).jobs():
        told = job.settings
        assert told["problem"] == {"dim": 50, "shift": 0.1, "points": 10_000}
        assert told["schedule"] == {"shape": "constant", "N": 20, "T": 0.5}
        assert told["training"] == {"iterations": 20, "steps": 10_000}
        assert told["net"]["widths"] == [256, 256]
        assert told["bridge"]["batch"] == 128
    published = reproduce.experiment("gaussian")((5,), rows=["published"]).jobs()[0].settings
    assert published["bridge"]["learning_rate"] == 1e-4
    assert published["bridge"]["lr_schedule"] == "constant"
    for job in reproduce.experiment("table2")().jobs():
        assert job.settings["schedule"]["N"] == 20
        assert job.settings["evaluation"]["points"] == 10_000
    for job in reproduce.experiment("mixtures")((16,), (0.1,)).jobs():
        assert job.settings["schedule"]["T"] == 0.05
        assert job.settings["evaluation"]["given"] == job.settings["evaluation"]["each"] == 1000
    published = (
        reproduce.experiment("mixtures")((64,), (1.0,), rows=["published"]).jobs()[0].settings
    )
    graph = dsb.nn.Graph(_setup.net(published["net"]).build(64))
    assert 0.9e6 < 2 * graph.n_parameters < 1.1e6
    assert published["bridge"]["batch"] == 1000
    assert published["training"] == {"iterations": 10, "steps": 5000}
    assert published["schedule"]["N"] == 200


@pytest.mark.parametrize(("dim", "bias"), [(5, 0.135), (20, 0.54), (50, 1.35)])
def test_gaussian_population(dim, bias):
    """The bias of 20 iterations of 20 steps, per coordinate and averaged over time, x 1e3."""
    made = reproduce.experiment("gaussian")
    found = made.expected(made((dim,)).jobs()[0].settings)
    assert 1e3 * found["population"][0] == pytest.approx(bias, rel=0.02)
    assert 1e3 * found["floor"][0] == dim / 10


def test_gaussian_measure():
    """The true bridge's paths measure the floor; those of the sample's exact bridge and of perfect nets
    add what the sample and the bias are worth; a reversed path or doubled noise is far off."""
    from dsb.exact import GaussianBridge
    from dsb.reproduce.gaussian import Drawn, _moments, _population

    made = reproduce.experiment("gaussian")
    drawn = Drawn(made((20,)).jobs()[0].settings, 0)
    fitted = [_moments(points) for points in drawn.points.values()]
    perfect = _population(*fitted, drawn.schedule, drawn.settings)
    for direction in ("backward", "forward"):

        def walked(bridge, noise=1.0, direction=direction):
            steps = [bridge.step(k, direction) for k in range(20)]
            return 1e3 * drawn.walked([(s.A, s.c, noise * s.Q) for s in steps], direction)

        true = walked(drawn.exact)
        assert 1.6 < true < 2.4
        assert walked(drawn.exact, noise=2.0) > 20 * true
        sample = walked(GaussianBridge(*fitted, drawn.schedule))
        assert 2.4 < sample < 3.4  # 2.8 on average over training samples
        nets = 1e3 * drawn.walked(perfect.process(direction).maps, direction)
        assert 2.8 < nets < 4.0  # 3.3 on average
        assert nets > sample + 0.2
    paths = drawn.exact.sample_paths(10_000, seed=1)
    assert 1e3 * drawn.error(paths) < 2.4
    assert 1e3 * drawn.error(paths[:, ::-1]) > 50


class Clock:
    """In place of a trained bridge: the states of its paths are the times at which they are."""

    def __init__(self, times):
        self.times = times

    def paths(self, start, direction, seed, final_noise=False):
        times = self.times if direction == "forward" else self.times[::-1]
        return np.broadcast_to(times[None, :, None], (len(start), len(times), start.shape[1]))


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_time_runs_from_the_source(direction, cells):
    """Paths of both directions are judged at the times at which they are."""
    from dsb.reproduce import gaussian, singlecell

    made = reproduce.experiment("gaussian")
    drawn = gaussian.Drawn(made((2,), budget=BUDGETS["gaussian"]).jobs()[0].settings, 0)
    found = drawn.paths(Clock(drawn.schedule.times), direction)
    np.testing.assert_array_equal(found[0, :, 0], drawn.schedule.times)
    means = {"backward": 0.1, "forward": -0.1}
    assert abs(drawn.starts[direction].mean() - means[direction]) < 0.08
    for days, step in (((3, 4, 7), 5), ((2, 3, 4), 10)):
        made = reproduce.experiment("singlecell")(cells, [days], budget=BUDGETS["singlecell"])
        drawn = singlecell.Drawn(made.jobs()[0].settings, 0)
        middle = drawn.middle(Clock(drawn.schedule.times), direction)
        np.testing.assert_array_equal(middle, drawn.schedule.times[step])
        own = drawn.first if direction == "forward" else drawn.last
        assert {tuple(row) for row in drawn.starts[direction]} <= {tuple(row) for row in own}


def test_days_have_their_place():
    from dsb.reproduce.singlecell import step_of

    assert step_of((2, 3, 4), 20) == 10
    assert step_of((3, 4, 7), 20) == 5
    assert step_of((2, 4, 7), 20) == 8
    with pytest.raises(ValueError, match="expected the middle one on the grid of 20 equal steps"):
        step_of((0, 1, 3), 20)


def small_set(name, iterations=1, **problem):
    """What is drawn for a set of table 2 with few points."""
    from dsb.reproduce import table2

    made = reproduce.experiment("table2")([name])
    budget = {"training": {"iterations": iterations}, "evaluation": {"points": 400}}
    settings = _setup.changed(
        made.jobs()[0].settings, budget | {"problem": {"points": 400} | problem}
    )
    return table2.Drawn(settings, 0)


def test_ends_of_sets():
    """Starts and test points are of the right ends, and fresh."""
    drawn = small_set("moons")
    assert drawn.direction == "backward"
    assert np.abs(drawn.starts.std(axis=0) - 1).max() < 0.15
    assert (
        dsb.metrics.sliced_wasserstein(drawn.test, dsb.datasets.toy("moons-table2", 400, 9)) < 0.2
    )
    pair = small_set("moons-8gaussians")
    assert pair.direction == "forward"
    moons = dsb.datasets.toy("moons-table2-pair", 400, 9)
    assert dsb.metrics.sliced_wasserstein(pair.starts, moons) < 2
    assert dsb.metrics.sliced_wasserstein(pair.test, dsb.datasets.toy("8gaussians", 400, 9)) < 3
    assert dsb.metrics.sliced_wasserstein(pair.starts, pair.test) > 3
    for one in (drawn, pair):
        for x, y in ((one.first, one.starts), (one.test, one.fresh), (one.last, one.test)):
            assert not {tuple(row) for row in x} & {tuple(row) for row in y}


@pytest.mark.parametrize("name", ["moons", "moons-8gaussians"])
def test_exact_ipf_of_sets(name):
    """The judged end of the half-bridge that is judged, not of its neighbour, which fits that end."""
    drawn = small_set(name)
    schedule, _ = drawn.process
    x, y = (drawn.first, drawn.last) if name == "moons" else (drawn.last, drawn.first)
    weights = np.full(len(x), 1 / len(x))
    if name == "moons":
        (weights,) = oracles.exact_ipf(x, y, schedule.steps, (np.zeros(2), 0.0), 1)
    else:  # the pair's second half-bridge fits the moons and leaves the eight Gaussians
        cost = ((drawn.first[:, None].astype(float) - drawn.last) ** 2).sum(axis=2)
        k = np.exp(-cost / (4 * schedule.T))
        plan = k / k.sum(axis=0) / len(k)
        weights = (plan / plan.sum(axis=1, keepdims=True)).sum(axis=0) / len(k)
    assert np.abs(weights * len(x) - 1).max() > 0.1
    drawn.test = np.zeros((100_000, 2))  # for the number of draws
    found = drawn.ipf().astype(np.float64)
    exact = x.astype(np.float64)
    for power in (1, 2):
        mean = weights @ exact**power
        error = np.sqrt((weights @ (exact**power - mean) ** 2) / 100_000)
        assert (np.abs((found**power).mean(axis=0) - mean) < 5 * error).all()


@pytest.mark.parametrize("name", ["moons", "moons-8gaussians"])
def test_exact_drift_of_sets(name):
    """Its Euler steps end in the judged end, close to what fresh points are apart."""
    drawn = small_set(name)
    floor, start = drawn.sliced(drawn.fresh), drawn.sliced(drawn.starts)
    assert drawn.sliced(drawn.euler()) < 0.25 * start + floor


def test_known_of_mixtures():
    """Sinkhorn and many Euler steps come close to the floor; half the noise, or a potential of
    another end, do not."""
    from dsb.reproduce import mixtures

    made = reproduce.experiment("mixtures")([2], [1.0], rows=["improved"])
    budget = {
        "problem": {"sinkhorn": 2000},
        "schedule": {"N": 100},
        "evaluation": {"given": 50, "each": 500},
    }
    settings = _setup.changed(made.jobs()[0].settings, budget)
    drawn = mixtures.Drawn(settings, 0)
    floor, known = drawn.conditional(drawn.pair), drawn.known()
    assert floor < 1.0
    assert known["drift"] < floor + 0.5
    assert known["sinkhorn"] < floor + 1.0
    coarse = mixtures.Drawn(_setup.changed(settings, {"schedule": {"N": 5}}), 0)
    assert coarse.conditional(coarse.euler, 50) > known["drift"] + 0.5
    x, y = drawn.pair.coupling().sample(2000, 5)
    plan = dsb.exact.sinkhorn(x, y, drawn.schedule)
    assert drawn.conditional(drawn.of_plan(y, plan.g), 50) < floor + 1.0
    assert drawn.conditional(drawn.of_plan(y, 0 * plan.g), 50) > floor + 3.0
    drawn.settings["problem"]["eps"] = 2.0
    assert drawn.conditional(drawn.of_plan(y, plan.g), 50) > floor + 2.0


def test_figure_compares_like_with_like():
    """Published figures are lines of a picture only where its axis is what was published."""
    for name in reproduce.NAMES:
        made = reproduce.experiment(name)
        entries = [
            {"case": next(iter(one.values)), "seeds": [], "expected": {}} for one in made.published
        ]
        report = {
            "columns": [column._asdict() for column in made.columns],
            "levels": list(made.levels),
            "published": [one._asdict() for one in made.published],
            "published in figure": made.comparable,
        }
        drawn = _report._levels(report, entries[:1]) if entries else {}
        assert set(drawn) == ({"DSB", "DSBM-IPF"} if name == "gaussian" else set())
        keys = {column.key for column in made.columns}
        assert set(made.levels) <= keys
