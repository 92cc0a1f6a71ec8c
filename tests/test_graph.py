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


def image_net():
    g = Graph()
    x, t, label = g.input("x", 2 * 24), g.input("t"), g.input("label")
    h = g.conv(g.image(x, (4, 6)), 32)
    told = g.linear(g.embed(t, 8), 64)
    h = g.group_norm(h, told, groups=8, silu=True)
    h = g.add(h, g.lookup(label, 5, 32))
    a = g.attention(g.conv(h, 96, kernel=1, axes=3), heads=4)
    low = g.upsample(g.dropout(g.pool(h), 0.2))
    half = g.conv(g.conv(a, 16, stride=2), 16, up=True)
    h = g.leaky_relu(g.silu(g.concat(h, a, low, half)))
    g.flatten(g.conv(h, 2, zero=True))
    return g.check(48)


GRAPHS = {
    "small": small_net,
    "images": image_net,
    "U-Net": lambda: Graph(dsb.UNet(32, dropout=0.1).build((3, 12, 8))),
    "U-Net, conditional": lambda: Graph(
        dsb.UNet(32, (1, 2), 1, (8,), 2, False, 0.0, "plain", 1, 4).build((1, 8, 8))
    ),
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


@pytest.mark.parametrize("make", [small_net, image_net])
def test_json_and_copies(make):
    g = make()
    again = Graph.from_json(g.to_json())
    assert again == g
    assert again.ops == g.ops == Graph(g.ops).ops
    next(op for op in g.ops if "inputs" in op)["inputs"][0] = "changed"  # of a copy
    for op in g.ops:
        op.get("size", []).append(7)
    assert again == g
    assert Graph() != g


def test_planes_in_pytorch_s_shapes():
    g = image_net()
    shapes = g.parameters
    assert shapes["conv_0.weight"] == (32, 2, 3, 3)
    assert shapes["conv_1.weight"] == (96, 32, 1)
    assert shapes["lookup_0.weight"] == (5, 32)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    plane = g.pack(values)
    assert np.count_nonzero(plane) == g.n_parameters
    for name, value in g.unpack(plane).items():
        np.testing.assert_array_equal(value, values[name], strict=True)
        assert value.flags.c_contiguous
        assert not np.shares_memory(value, plane)
    places = {p.name: span for p, span in g.spans()}
    stored = plane[places["conv_0.weight"]].reshape(32, 3, 3, 2)
    np.testing.assert_array_equal(stored, values["conv_0.weight"].transpose(0, 2, 3, 1))
    zero = {"conv_0.bias": np.zeros(32, np.float32)}
    changed = g.unpack(g.pack(zero, plane))
    assert [name for name in values if (changed[name] != values[name]).any()] == ["conv_0.bias"]


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


def on_image(method, *arguments, size=(4, 6), channels=32, **options):
    """A method of a graph on an image."""

    def make():
        g = Graph()
        h = g.image(g.input("x", channels * size[0] * size[1]), size)
        getattr(g, method)(h, *arguments, **options)

    return make


def both(method, first, second):
    """A method on two values: images, or vectors, of these widths and sizes."""

    def make():
        g = Graph()
        x = g.input("x", 24)
        values = []
        for width, size in (first, second):
            h = x if size is None else g.image(g.linear(x, 24), size)
            values.append(g.linear(h, width) if size is None else g.conv(h, width))
        getattr(g, method)(*values)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (on_image("linear", 3), "expected a vector, got the image 'image_0' of 32 channels, 4 x 6"),
        (on_image("image", (2, 2)), "expected a vector, got the image"),
        (on_image("conv", 3, kernel=5), "kernel: expected 1 or 3, got 5"),
        (on_image("conv", 3, stride=3), "stride: expected 1 or 2, got 3"),
        (on_image("conv", 3, axes=3), "axes: expected 4 where the kernel is 3 wide"),
        (on_image("conv", 3, stride=2, up=True), "stride 1 where up=True"),
        (on_image("conv", 0), "width: .*at least 1"),
        (on_image("group_norm", groups=5), "32 channels cannot be split into 5 equal groups"),
        (on_image("attention"), "expected 3 c channels.* got 32"),
        (on_image("attention", heads=3, channels=12), "4 channels cannot be split into 3 equal heads"),
        (on_image("pool", size=(3, 4)), "even height and width, got .* 3 x 4"),
        (on_image("dropout", 1.0), r"rate: expected a number in \[0, 1\)"),
        (on_image("upsample", size=(4000, 1), channels=1), "sizes up to 4096, got 8000 x 2"),
        (both("add", (3, (4, 6)), (3, (6, 4))), "expected equal sizes, got .*4 x 6 and .*6 x 4"),
        (both("add", (3, None), (3, (6, 4))), "the image first, got the vector .* and the image"),
        (both("concat", (3, (4, 6)), (3, None)), "images of one size, got .*4 x 6 and the vector"),
        (both("group_norm", (32, (4, 6)), (32, None)), "a vector of width 64, scale and then shift"),
        (op(op="flatten", name="a", inputs=["x"]), "expected an image, got the vector 'x' of width 2"),
        (op(op="conv", name="a", inputs=["x"], width=3), "expected an image, .*op 'image' makes one"),
        (op(op="image", name="a", inputs=["x"], size=[3, 3]), "a multiple of 3 x 3 = 9 numbers, got 2"),
        (op(op="image", name="a", inputs=["x"], size=[0, 3]), "size: .*at least 1"),
        (op(op="dropout", name="a", inputs=["x"], rate=0.1), "expected an image"),
        (op(op="lookup", name="a", inputs=["x"], classes=3, width=2), "lookup reads label only"),
        (
            lambda: Graph([{"op": "input", "name": "x", "width": 4},
                           {"op": "image", "name": "a", "inputs": ["x"], "size": [2, 2]}]).check(),
            "expected a vector at the end, got the image 'a' of 1 channels, 2 x 2: flatten it",
        ),
    ],
)  # fmt: skip
def test_refusals_of_images(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_size_that_is_no_pair():
    for size in (3, [2], [2.0, 1]):
        with pytest.raises(TypeError, match="size: expected"):
            op(op="image", name="a", inputs=["x"], size=size)()


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
