"""The picture of errors: what is in it stands where it was measured, or where the recursion has it."""

import io

import numpy as np
import pytest

import dsb
from dsb.history import History, half_bridge

pytest.importorskip("matplotlib")

from dsb import plot
from dsb._convergence import coupling_gap, marginal_kl

SOURCE, PRIOR = dsb.Gaussian([0.0], 0.25), dsb.Gaussian([0.0], 4.0)
STEPS = dsb.Schedule.constant(20, 0.025)
EXACT = dsb.exact.GaussianBridge(SOURCE, PRIOR, STEPS)
POPULATION = dsb.exact.PopulationDSB(SOURCE, PRIOR, STEPS)
IPF = dsb.exact.GaussianIPF(SOURCE, PRIOR, STEPS)


def history(*errors):
    """One with these errors, half-bridge by half-bridge."""
    log = np.ones(3, np.float32)
    return History([half_bridge(k, log, log, told) for k, told in enumerate(errors)])


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def drawn(figure, panel=0):
    """Lines with points, as {(colour, style, marker): rows (x, y)}."""
    return {
        (line.get_color(), line.get_linestyle(), line.get_marker()): line.get_xydata()
        for line in figure.axes[panel].lines
        if len(line.get_xdata()) > 0 and line.get_zorder() > 0
    }


def legend(figure):
    return {text.get_text() for text in figure.legends[0].get_texts()}


BACKWARD, FORWARD = (plot.BACKWARD, "-", "<"), (plot.FORWARD, "-", ">")


def test_measured_errors_stand_at_their_half_bridges():
    told = history({"e": 4.0}, {"e": 40.0}, {"e": 2.0}, {}, {"e": 1.0})
    figure = plot.convergence(told)
    assert png(figure).startswith(b"\x89PNG")
    lines = drawn(figure)
    assert lines.keys() == {BACKWARD, FORWARD}
    np.testing.assert_array_equal(lines[BACKWARD], [[1, 4], [3, 2], [5, 1]])
    np.testing.assert_array_equal(lines[FORWARD], [[2, 40]])
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "e"
    assert ax.get_xlabel() == "half-bridge (odd: backward, even: forward)"
    assert legend(figure) == {"backward", "forward"}
    low, high = ax.get_ylim()
    assert low < 1
    assert high > 40


def test_axes_are_linear_where_little_or_nothing_positive_is_spanned():
    """From 0 on for what is known to be an error."""
    for values in ([1.0, 2.0], [0.0, 2.0], [-1.0, 50.0]):
        for name in ("e", "kl"):
            figure = plot.convergence(history(*({name: abs(value)} for value in values)))
            linear = min(map(abs, values)) == 0 or max(values) < 5
            assert figure.axes[0].get_yscale() == ("linear" if linear else "log")
            low, high = figure.axes[0].get_ylim()
            assert low < min(map(abs, values)) or low == 0
            assert high >= max(values)
            assert (low == 0) == (linear and name == "kl")
        figure = plot.convergence(history(*({"e": value} for value in values)))
        assert figure.axes[0].get_yscale() == "linear"


def test_panels_and_labels():
    told = history(
        *({"kl": 1.0, "kl_floor": 0.1, "exact coupling": 2.0, "mine": 3.0, "sliced_w2": 4.0},) * 2
    )
    figure = plot.convergence(told)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "KL of the marginals, nats",
        "error of Cov$(X_0, X_N)$, relative",
        "mine",
        "sliced $W_2$, units of the data",
        "",
        "",
    ]
    assert [ax.get_title() for ax in figure.axes] == [
        *("kl", "exact coupling", "", "sliced_w2", "", "")
    ]
    assert legend(figure) == {"backward", "forward", "floor"}
    assert [ax.get_ylabel() for ax in plot.convergence(told, "mine").axes] == ["mine"]
    assert len(plot.convergence(told, "kl_floor").axes) == 1
    assert [ax.get_ylabel() for ax in plot.convergence(told, ["mine", "kl"]).axes] == [
        "mine",
        "KL of the marginals, nats",
    ]


def test_several_runs_have_a_mean_and_a_band():
    runs = [history({"e": 1.0}, {"e": 2.0}, {"e": 3.0}), history({"e": 3.0}, {"e": 2.0})]
    figure = plot.convergence(runs)
    np.testing.assert_array_equal(drawn(figure)[BACKWARD], [[1, 2], [3, 3]])
    bands = figure.axes[0].collections
    assert len(bands) == 2
    corners = bands[0].get_paths()[0].vertices
    assert [corners[:, 1].min(), corners[:, 1].max()] == [1, 3]
    assert not plot.convergence(runs[0]).axes[0].collections


def test_a_bridge_stands_for_its_history():
    bridge = dsb.Bridge(SOURCE, PRIOR, schedule=STEPS, net=dsb.MLP(width=16, depth=2, embedding=8))
    bridge.fit(1, 5, evaluate={"e": lambda b: 1.0 + b.half_bridge}, progress=False)
    for given in (bridge, [bridge, bridge.history]):
        np.testing.assert_array_equal(drawn(plot.convergence(given))[FORWARD], [[2, 3]])


# ---- perfect nets ----


def test_couplings_of_the_recursion():
    """Cov(X_0, X_N) of the population drifts: .601, .576, .549, .508 against .618034."""
    told = history(*({"coupling": 0.3 / (1 + k), "kl": 0.01} for k in range(40)))
    figure = plot.convergence(told, population=POPULATION, ipf=IPF)
    for panel, error in enumerate((coupling_gap, marginal_kl)):
        lines = drawn(figure, panel)
        for first, (colour, way) in enumerate(
            [(plot.BACKWARD, "backward"), (plot.FORWARD, "forward")]
        ):
            at = np.arange(1 + first, 41, 2)
            perfect = [error(POPULATION.iterate(n).process(way), EXACT) for n in range(1, 21)]
            ideal = [error(IPF.process(n, way), EXACT) for n in range(1, 21)]
            np.testing.assert_array_equal(lines[colour, "--", "None"], np.stack([at, perfect], 1))
            np.testing.assert_array_equal(lines[colour, ":", "None"], np.stack([at, ideal], 1))
    cov = [
        0.6180340 * (1 - e) for e in drawn(figure)[plot.BACKWARD, "--", "None"][[2, 4, 7, 19], 1]
    ]
    np.testing.assert_allclose(cov, [0.601, 0.576, 0.549, 0.508], atol=1e-3)
    assert legend(figure) == {"backward", "forward", "population DSB", "exact IPF"}
    assert figure.axes[0].get_ylim()[0] > 1e-4  # exact IPF falls to 0 and does not squeeze the rest
    given = plot.convergence(told, problem=EXACT, population=POPULATION)
    np.testing.assert_array_equal(
        drawn(given)[plot.FORWARD, "--", "None"], drawn(figure)[plot.FORWARD, "--", "None"]
    )


def test_errors_by_hand():
    """Of two chains whose moments are known."""
    one = dsb.exact.GaussianBridge(SOURCE, dsb.Gaussian([1.0], 4.0), dsb.Schedule([0.5]))
    exact = dsb.exact.GaussianBridge(SOURCE, dsb.Gaussian([0.0], 2.0), dsb.Schedule([0.5]))
    c = [(np.sqrt(4 * 0.25 * v + 1) - 1) / 2 for v in (4.0, 2.0)]
    assert coupling_gap(one, exact) == pytest.approx(c[0] / c[1] - 1)
    # 0 at the source; (4 / 2 - 1 - log(4 / 2) + 1 / 2) / 2 at the prior.
    assert marginal_kl(one, exact) == pytest.approx((1.5 - np.log(2)) / 4)


def test_no_curves_for_other_errors():
    figure = plot.convergence(history({"mine": 1.0}, {"mine": 2.0}), population=POPULATION)
    assert drawn(figure).keys() == {BACKWARD, FORWARD}


def test_curves_from_numbers():
    told = history({"e": 1.0, "f": 1.0}, {"e": 2.0, "f": 1.0})
    figure = plot.convergence(
        told, "e", population=[1.0, 2.0, 3.0], ipf=np.array([4.0, np.nan][:1])
    )
    lines = drawn(figure)
    np.testing.assert_array_equal(lines[plot.BACKWARD, "--", "None"], [[1, 1], [3, 3]])
    np.testing.assert_array_equal(lines[plot.FORWARD, "--", "None"], [[2, 2]])
    np.testing.assert_array_equal(lines[plot.BACKWARD, ":", "None"], [[1, 4]])


# ---- floors ----


def floors(figure):
    ax = figure.axes[0]
    return [
        line.get_ydata()[0] for line in ax.lines if line.get_zorder() == 0 and len(line.get_ydata())
    ]


def test_floors():
    told = history({"e": 1.0, "e_floor": 0.25}, {"e": 2.0, "e_floor": 0.5})
    figure = plot.convergence(told)
    assert floors(figure) == [0.25, 0.5]
    assert figure.axes[0].get_ylim()[0] < 0.25
    assert set(floors(plot.convergence(told, floor=0.125))) == {0.125}
    figure = plot.convergence(told, floor=(0.1, 0.2))
    assert floors(figure) == []
    box = figure.axes[0].patches[0].get_extents()
    low, high = figure.axes[0].transData.inverted().transform(box.get_points())[:, 1]
    assert (low, high) == pytest.approx((0.1, 0.2))
    runs = [told, history({"e": 1.0, "e_floor": 0.3}, {"e": 2.0, "e_floor": 0.5})]
    figure = plot.convergence(runs)
    assert floors(figure) == [0.5]
    assert len(figure.axes[0].patches) == 1
    assert legend(figure) == {"backward", "forward", "floor"}


# ---- bad input ----


def test_refusals():
    told = history({"kl": 1.0, "e": 1.0}, {"kl": 2.0, "e": 1.0})
    for wrong in (3, [], [told, 3], "history", np.zeros(3)):
        with pytest.raises(TypeError, match="history: expected a History, a Bridge, or several"):
            plot.convergence(wrong)
    for given in (history(), history({}, {})):
        with pytest.raises(ValueError, match="history: expected one with errors"):
            plot.convergence(given)
    with pytest.raises(
        ValueError, match="name: expected one of the errors recorded, 'kl', 'e', got"
    ):
        plot.convergence(told, "k")
    with pytest.raises(
        ValueError, match=r"name: expected .*, 'kl', 'e', or several of them, got \[\]"
    ):
        plot.convergence(told, [])
    for wrong in (["kl", "k"], 3, [3]):
        with pytest.raises(ValueError, match="name: expected one of the errors recorded"):
            plot.convergence(told, wrong)
    for argument in ("ipf", "population", "floor"):
        with pytest.raises(ValueError, match=f"{argument}: numbers are those of one error, and 2"):
            plot.convergence(told, **{argument: 0.5})
    for argument in ("ipf", "population"):
        with pytest.raises((TypeError, ValueError), match=f"{argument}: expected"):
            plot.convergence(told, "kl", **{argument: "a"})
        with pytest.raises(TypeError, match=f"{argument}: expected dsb.exact"):
            wrong = {"ipf": POPULATION, "population": IPF}[argument]
            plot.convergence(told, "kl", **{argument: wrong})
    for floor in ((2.0, 1.0), (1.0,), "low", -1.0, np.nan):
        with pytest.raises((TypeError, ValueError), match="floor: expected"):
            plot.convergence(told, "kl", floor=floor)
    with pytest.raises(TypeError, match="problem: expected"):
        plot.convergence(told, "kl", problem=3, ipf=IPF)
    other = dsb.exact.GaussianBridge(
        dsb.Gaussian([0.0] * 2, 1.0), dsb.Gaussian([0.0] * 2, 1.0), STEPS
    )
    with pytest.raises(ValueError, match="problem: expected dimension 1, got 2"):
        plot.convergence(told, "kl", problem=other, ipf=IPF)


@pytest.mark.parametrize("names", [["kl"], ["kl", "coupling"], ["kl", "coupling", "sliced_w2"]])
def test_nothing_is_cut_off(names):
    """With every entry that a legend can have, and every kind of label."""
    errors = dict.fromkeys(names, 0.1) | {f"{name}_floor": 0.01 for name in names}
    figure = plot.convergence(history(errors, errors, errors), ipf=IPF, population=POPULATION)
    png(figure)
    assert len(legend(figure)) == 5
    box, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= wide
    assert box.y1 <= high
