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


class Walk:
    """In place of a trained bridge: the steps of a Gaussian one, with noise of `noise` times the
    variance, against time, or to ends that are dealt out anew."""

    def __init__(self, exact, noise=1.0, against=False, dealt=False):
        self.exact, self.noise, self.against, self.dealt = exact, noise, against, dealt

    def paths(self, start, direction, seed, final_noise=False):
        assert final_noise
        rng, N = np.random.default_rng(seed), self.exact.schedule.N
        states = [start.astype(np.float64)]
        for k in range(N) if direction == "forward" else reversed(range(N)):
            A, c, Q = self.exact.step(k, direction)
            z = rng.standard_normal(start.shape) @ np.linalg.cholesky(self.noise * Q).T
            states.append(states[-1] @ A.T + c + z)
        if self.dealt:
            states[-1] = rng.permutation(states[-1])
        paths = np.stack(states, axis=1).astype(np.float32)
        return paths[:, ::-1] if self.against else paths


def test_gaussian_values():
    """Of processes that are known: the bridge itself is at the floor in every column."""
    from dsb.exact import GaussianBridge
    from dsb.reproduce.gaussian import Drawn, _moments

    budget = {"problem": {"points": 4000}, "evaluation": {"paths": 4000}}
    made = reproduce.experiment("gaussian")
    job = made((5,), rows=["improved"], budget=budget).jobs()[0]
    drawn, floor = Drawn(job.settings, 0), made.expected(job.settings)["floor"][0]
    names = ("kl", "kl_backward", "kl_forward", "kl_training", "kl_redrawn")
    exact = drawn.values(Walk(drawn.exact))
    sample = drawn.values(
        Walk(GaussianBridge(*(_moments(one) for one in drawn.points.values()), drawn.schedule))
    )
    for found in (exact, sample):
        assert all(0.4 * floor < found[name] < 2.4 * floor for name in names)
        assert found["coupling"] < 0.03
    for wrong in ({"noise": 2.0}, {"against": True}):
        found = drawn.values(Walk(drawn.exact, **wrong))
        assert all(found[name] > 20 * floor for name in (*names, "excess")), wrong
    dealt = drawn.values(Walk(drawn.exact, dealt=True))
    assert dealt["coupling"] == pytest.approx(1.0, abs=0.03)
    for found in (exact, sample, dealt):  # what has no part of the bridge that is judged
        assert found["kl"] == pytest.approx((found["kl_backward"] + found["kl_forward"]) / 2)
        assert found["excess"] == pytest.approx(found["kl"] - found["exact"])
        for name in ("exact", "perfect", "perfect_redrawn"):
            assert 0.6 * floor < found[name] == exact[name] < 2.6 * floor
    assert exact["exact"] < exact["perfect"] < exact["perfect_redrawn"]


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


class Cells:
    """In place of a trained bridge of cells: paths of the entropic one, spread by noise, or against time."""

    def __init__(self, drawn, noise=0.0, against=False):
        self.exact = dsb.exact.DiscreteBridge(drawn.first, drawn.last, drawn.schedule)
        self.noise, self.against = noise, against

    def paths(self, start, direction, seed):
        paths = self.exact.sample_paths(len(start), seed=seed)
        z = np.random.default_rng(seed).standard_normal(paths.shape)
        paths = (paths + self.noise * z).astype(np.float32)
        return paths[:, ::-1] if (direction == "backward") != self.against else paths


def test_cell_values(cells):
    """Of processes that are known: where the held-out cells are of the bridge itself, that is at the floor
    in every column."""
    pytest.importorskip("ot")
    from dsb.reproduce import singlecell

    budget = BUDGETS["singlecell"] | {"evaluation": {"most": 150, "projections": 100}}
    made = reproduce.experiment("singlecell")(cells, [(3, 4, 7)], dim=2, budget=budget)
    drawn = singlecell.Drawn(made.jobs()[0].settings, 0)
    law = Cells(drawn).exact.marginal(float(drawn.schedule.times[5]))
    drawn.test, drawn.other = (law.sample(len(drawn.test), seed) for seed in (1001, 1002))
    exact = drawn.values(Cells(drawn))
    for key in ("w1", "w2", "sliced"):
        for name in ("", "_forward", "_backward", "_discrete"):
            assert 0.5 < exact[key + name] / exact[f"{key}_floor"] < 1.3, key + name
        for name in ("first", "last"):  # the outer days are elsewhere
            assert exact[f"{key}_{name}"] > 1.1 * exact[f"{key}_floor"]
    assert exact["w1_floor"] == dsb.metrics.wasserstein(drawn.other, drawn.test, p=1)
    assert exact["w2_first"] == dsb.metrics.wasserstein(drawn.starts["forward"], drawn.test)
    assert exact["w2_last"] == dsb.metrics.wasserstein(drawn.starts["backward"], drawn.test)
    for wrong in ({"noise": 1.0}, {"against": True}):
        found = drawn.values(Cells(drawn, **wrong))
        for key in ("w1", "w2", "sliced"):
            for name in ("", "_forward", "_backward"):
                assert found[key + name] > 1.5 * exact[key + name], (wrong, key + name)
            for name in ("_floor", "_discrete", "_first", "_last"):
                assert found[key + name] == exact[key + name]


def test_days_have_their_place():
    from dsb.reproduce.singlecell import step_of

    assert step_of((2, 3, 4), 20) == 10
    assert step_of((3, 4, 7), 20) == 5
    assert step_of((2, 4, 7), 20) == 8
    with pytest.raises(ValueError, match="expected the middle one on the grid of 20 equal steps"):
        step_of((0, 1, 3), 20)


def small_set(name, iterations=1, row="released", **problem):
    """What is drawn for a set of table 2 with few points."""
    from dsb.reproduce import table2

    made = reproduce.experiment("table2")([name], rows=[row])
    budget = {"training": {"iterations": iterations}, "evaluation": {"points": 400}}
    settings = _setup.changed(
        made.jobs()[0].settings, budget | {"problem": {"points": 400} | problem}
    )
    return table2.Drawn(settings, 0)


class Fresh:
    """In place of a trained bridge of a set: other points of the judged end, spread by noise, or of the
    end that it should leave."""

    def __init__(self, drawn, noise=0.0, against=False):
        self.drawn, self.noise, self.against = drawn, noise, against

    def sample(self, x, direction, seed):
        rng = np.random.default_rng(seed)
        far = (direction == "forward") != self.against
        points = self.drawn._draw(int(far), "metric", len(x))
        return (points + self.noise * rng.standard_normal(points.shape)).astype(np.float32)


@pytest.mark.parametrize("name", ["moons", "moons-8gaussians"])
def test_values_of_sets(name):
    """Of processes whose end is known: fresh points of the set are at the floor in every column."""
    pytest.importorskip("ot")
    drawn = small_set(name)
    exact, spread = drawn.values(Fresh(drawn)), drawn.test.std()
    for key in ("", "sliced_"):
        floor = exact[f"{key}floor"]
        assert exact[key.strip("_") or "w2"] == pytest.approx(floor, rel=0.3)
        assert 0 < floor < 0.5 * spread
    assert exact["floor"] == dsb.metrics.wasserstein(drawn.fresh, drawn.test)
    assert exact["sliced_floor"] == drawn.sliced(drawn.fresh)
    for wrong in ({"noise": 0.5 * spread}, {"against": True}):
        found = drawn.values(Fresh(drawn, **wrong))
        assert found["w2"] > 1.3 * found["floor"], wrong
        assert found["sliced"] > 1.3 * found["sliced_floor"], wrong
        assert found["excess"] == pytest.approx((found["w2"] ** 2 - found["floor"] ** 2) ** 0.5)
        assert all(found[name] == exact[name] for name in ("floor", "sliced_floor"))


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


@pytest.mark.parametrize("row", ["released", "improved"])
@pytest.mark.parametrize("name", ["moons", "moons-8gaussians"])
def test_exact_drift_of_sets(name, row):
    """Its Euler steps pass through the marginals of the bridge between the points."""
    drawn = small_set(name, row=row)
    schedule, reference = drawn.process
    bridge = dsb.exact.DiscreteBridge(drawn.first, drawn.last, schedule, reference)
    forward = drawn.direction == "forward"
    for done in (5, 10, 15):
        t = float(schedule.times[done if forward else schedule.N - done])
        one, other = (bridge.marginal(t).sample(400, seed=seed) for seed in (1, 2))
        floor = dsb.metrics.sliced_wasserstein(one, other)
        start = dsb.metrics.sliced_wasserstein(one, drawn.starts)
        found = dsb.metrics.sliced_wasserstein(one, drawn.euler(most=done))
        assert found < 1.2 * floor, done
        assert done < 10 or found < 0.6 * start, done
    floor, start = drawn.sliced(drawn.fresh), drawn.sliced(drawn.starts)
    assert drawn.sliced(drawn.euler()) < 0.12 * start + floor


@pytest.mark.parametrize("name", ["moons", "moons-8gaussians"])
def test_step_of_sets(name):
    """A single step: the drift of the judged direction at the start, and noise of variance 2 g."""
    drawn = small_set(name)
    schedule, reference = drawn.process
    bridge = dsb.exact.DiscreteBridge(drawn.first, drawn.last, schedule, reference)
    forward = drawn.direction == "forward"
    g, t = (schedule.steps[0], 0.0) if forward else (schedule.steps[-1], schedule.T)
    x = drawn.starts.astype(np.float64)
    z = (drawn.euler(most=1) - x - g * bridge.drift(x, t, drawn.direction)) / np.sqrt(2 * g)
    assert abs(z.mean()) < 5 / z.size**0.5
    assert (z**2).mean() == pytest.approx(1.0, abs=5 * (2 / z.size) ** 0.5)


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


class Pair:
    """In place of a trained bridge of mixtures: the pair itself, with a forward drift that is off by a
    constant, noise on its ends, or against time. Its backward drift is wrong, and so are its ends with
    noise in the last step."""

    def __init__(self, pair, off=0.0, noise=0.0, against=False):
        self.pair, self.off, self.noise, self.against = pair, off, noise, against
        self.dim, self.schedule, self.T = pair.dim, pair.schedule, pair.T
        self.sample_paths = pair.sample_paths

    def drift(self, x, t, direction):
        sign = -1.0 if self.against else 1.0
        off = self.off if direction == "forward" else 7.0
        return sign * self.pair.drift(x, t, direction) + off

    def sample_conditional(self, x0, m, seed):
        z = np.random.default_rng(seed).standard_normal((len(x0), m, self.dim))
        ends = np.repeat(x0[:, None], m, axis=1)
        if not self.against:
            ends = self.pair.sample_conditional(x0, m, seed)
        return ends + np.float32(self.noise) * z

    def sample(self, x, direction, seed, final_noise):
        ends = self.sample_conditional(x, 1, seed)[:, 0] if direction == "forward" else x
        return (ends + 5.0 * final_noise).astype(np.float32)


def small_mixture(N=10, **evaluation):
    """What is drawn for a pair in the plane with few points."""
    from dsb.reproduce import mixtures

    made = reproduce.experiment("mixtures")([2], [1.0], rows=["improved"])
    told = {"given": 50, "each": 500, "points": 4000, "paths": 200} | evaluation
    budget = {
        "problem": {"points": 500, "sinkhorn": 500},
        "schedule": {"N": N},
        "evaluation": told,
    }
    return mixtures.Drawn(_setup.changed(made.jobs()[0].settings, budget), 0)


@pytest.mark.parametrize("final_noise", [False, True])
def test_mixture_values(final_noise):
    """Of processes that are known: the pair itself is at the floor in every column."""
    drawn = small_mixture(final_noise=final_noise)
    exact = drawn.values(Pair(drawn.pair))
    assert 0.05 < exact["floor"] == exact["cbw2"] < 0.3
    assert exact["kl"] == 0.0
    assert exact["bw2_floor"] < 0.4
    assert (exact["bw2"] > 100) if final_noise else (exact["bw2"] < 0.4)
    for wrong in ({"noise": 1.5, "off": 2.0}, {"against": True}):
        found = drawn.values(Pair(drawn.pair, **wrong))
        assert found["cbw2"] > 4 * exact["floor"], wrong
        assert found["bw2"] > 4 * exact["bw2_floor"], wrong
        assert found["kl"] > 0.5, wrong
        assert all(found[name] == exact[name] for name in ("floor", "bw2_floor"))


@pytest.mark.parametrize("final_noise", [False, True])
def test_noise_of_the_last_step(final_noise, monkeypatch):
    """Of mixtures the settings decide on it, for conditional laws and for ends alike."""
    drawn, told = small_mixture(final_noise=final_noise, paths=2, given=2), []
    sample = dsb.Bridge.sample

    def recorded(self, *arguments, **options):
        told.append(options["final_noise"])
        return sample(self, *arguments, **options)

    monkeypatch.setattr(dsb.Bridge, "sample", recorded)
    drawn.values(drawn.bridge())
    assert len(told) >= 2
    assert set(told) == {final_noise}


@pytest.mark.parametrize("final_noise", [False, True])
def test_step_of_mixtures(final_noise):
    """A single step: the true forward drift at the start, and noise of variance 2 g where there is any."""
    drawn = small_mixture(N=1, final_noise=final_noise)
    x0 = drawn.pair.source.sample(20, 1)
    g = drawn.schedule.T
    mean = x0 + g * drawn.pair.drift(x0, 0.0, "forward")
    z = (drawn.euler(x0, 500, 1) - mean[:, None]) / np.sqrt(2 * g)
    assert abs(z.mean()) < 5 / z.size**0.5
    assert (z**2).mean() == pytest.approx(float(final_noise), abs=5 * (2 / z.size) ** 0.5)


@pytest.mark.parametrize("off", [0.0, 1.0, 3.0])
def test_path_kl_of_mixtures(off):
    """Forward drifts that differ by a constant c are T |c|^2 / 4 apart; of the others nothing is asked."""
    drawn = small_mixture()
    found = drawn.path_kl(Pair(drawn.pair, off=off))
    assert found == pytest.approx(drawn.schedule.T * 2 * off**2 / 4, rel=1e-5)


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
