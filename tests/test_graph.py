"""The builder of nets: what it makes, what it refuses, and that the core agrees."""

import numpy as np
import pytest

import dsb
from dsb import _core
from dsb.nn import Graph


def small_net(d=2):
    g = Graph()
    x, t = g.input("x", d), g.input("t")
    h = g.concat(x, g.embed(t, 8, style="cos_sin"))
    h = g.leaky_relu(g.linear(h, 20), slope=0.1)
    h = g.add(h, g.linear(g.silu(g.linear(h, 20, name="inner")), 20, zero=True))
    g.linear(h, d, name="out")
    return g.check(d)


GRAPHS = {
    "small": small_net,
    "default": lambda: Graph(dsb.MLP().build(3)),
    "residual": lambda: Graph(dsb.MLP(24, depth=4, residual=True).build(3)),
    "leaky": lambda: Graph(dsb.MLP(widths=[5, 17], activation="leaky_relu", slope=0.2).build(1)),
    "official": lambda: Graph(dsb.MLP.official().build(2)),
    "official in ten": lambda: Graph(dsb.MLP.official().build(10)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_core_agrees(name):
    g = GRAPHS[name]()
    net = _core.Net(g.ops)
    assert (net.dim, net.n_parameters, net.plane) == (g.dim, g.n_parameters, g.plane)
    ours = [(p.name, p.stored, span.start) for p, span in g.spans()]
    assert ours == [(p["name"], tuple(p["shape"]), p["offset"]) for p in net.parameters]
    theta = net.initial(0)
    zero = {op["name"] for op in g.ops if op.get("zero")}
    norms = {f"{op['name']}.bias" for op in g.ops if op["op"] == "group_norm"}
    for p, span in g.spans():
        assert (theta[span] == 0).all() == (p.name in norms or p.name.rsplit(".", 1)[0] in zero)


def test_json_and_copies():
    g = small_net()
    again = Graph.from_json(g.to_json())
    assert again == g
    assert again.ops == g.ops == Graph(g.ops).ops
    g.ops[2]["inputs"][0] = "changed"  # of a copy
    assert again == g
    assert Graph() != g


def test_a_net_of_the_user_s_trains():
    x = dsb.datasets.toy("moons", 100)
    bridge = dsb.Bridge(x, net=small_net(), batch=32)
    before = bridge.state_dict("backward")
    bridge.fit(1, 20, progress=False)
    after = bridge.state_dict("backward")
    assert before.keys() == after.keys() == small_net().parameters.keys()
    assert all((before[name] != after[name]).any() for name in before)
    same = dsb.Bridge(x, net=small_net().ops, batch=32)
    assert same.net == bridge.net


def test_the_released_network():
    ops = dsb.MLP.official().build(2)
    shapes = Graph(ops).parameters
    assert sum(np.prod(shape) for shape in shapes.values()) == 26_498
    assert shapes["net.layers.0.weight"] == (128, 64)
    assert shapes["t_encoder.layers.1.bias"] == (32,)
    assert shapes["x_encoder.layers.0.weight"] == (16, 2)
    (joined,) = (op for op in ops if op["op"] == "concat")
    assert joined["inputs"] == ["x_encoder.layers.1", "t_encoder.layers.1"]
    # None after the encoders, none at the end.
    activated = {op["inputs"][0] for op in ops if op["op"] == "leaky_relu"}
    assert activated == {"x_encoder.layers.0", "t_encoder.layers.0", "net.layers.0", "net.layers.1"}


def base():
    g = Graph()
    return g, g.input("x", 2), g.input("t")


def op(**fields):
    return lambda: Graph(
        [{"op": "input", "name": "x", "width": 2}, {"op": "input", "name": "t"}, fields]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (op(op="liner", name="a", inputs=["x"], width=3), "op: .*'liner'; did you mean 'linear'"),
        (
            op(op="linear", name="a", inputs=["x"], widht=3),
            "unknown field 'widht'; did you mean 'width'",
        ),
        (op(op="linear", name="a", inputs=["y"], width=3), "'y' names no earlier value"),
        (
            op(op="linear", name="a", inputs=["x", "x"], width=3),
            r"expected 1 inputs, got \['x', 'x'\]",
        ),
        (op(op="linear", name="a", inputs=["t"], width=3), "time is read through embed only"),
        (op(op="linear", name="a", inputs=["x"], width=0), "width: .*at least 1, got 0"),
        (op(op="linear", name="a", inputs=["x"], width=10**9), "width: .*at most 65536"),
        (op(op="linear", name="x", inputs=["x"], width=3), "the name is taken"),
        (op(op="linear", name="a b", inputs=["x"], width=3), "expected a name of letters"),
        (op(op="linear", name="a" * 88, inputs=["x"], width=3), "at most 87"),
        (op(op="embed", name="a", inputs=["x"], width=8), "embed reads t only"),
        (op(op="embed", name="a", inputs=["t"], width=7), "even width, got 7"),
        (op(op="embed", name="a", inputs=["t"], width=2), "width: .*at least 4"),
        (op(op="embed", name="a", inputs=["t"], width=8, style="sincos"), "did you mean 'sin_cos'"),
        (op(op="leaky_relu", name="a", inputs=["x"], slope=0), "slope: .*above 0"),
        (op(op="leaky_relu", name="a", inputs=["x"], slope=1.5), "slope of at most 1"),
        (op(op="concat", name="a", inputs=["x"]), "expected 2 to 4 inputs"),
        (op(op="input", name="z"), "name of an input: .*'z'"),
        (lambda: base()[0].check(), "an op that makes the output at the end"),
        (lambda: Graph([{"op": "input", "name": "t", "width": 2}]), "expected width 1"),
        (lambda: Graph.from_json('{"op": "input"}'), "JSON list"),
        (lambda: small_net().check(3), "width 3, as the data, got 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refusals_of_methods():
    g, x, _ = base()
    other, y, _ = base()
    h = other.linear(y, 5)
    with pytest.raises(ValueError, match="expected values of this graph"):
        g.silu(h)
    with pytest.raises(ValueError, match="expected equal widths, got 2 and 5"):
        g.add(x, g.linear(x, 5))
    with pytest.raises(ValueError, match="output as wide as x, 2, got 5"):
        g.check()
    with pytest.raises(TypeError, match="ops that are dicts"):
        Graph([3])
    assert len(g.ops) == 3  # what was refused left nothing behind
