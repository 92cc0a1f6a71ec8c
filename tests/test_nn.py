"""Ops, nets and plans against float64 NumPy, on every instruction set of the machine."""

import os
import subprocess
import sys

import numpy as np
import oracles
import pytest

from dsb import _core

ROWS = (1, 3, 7, 64, 65)
WIDTHS = (1, 2, 3, 15, 16, 17, 33, 130)
SEEDS = range(24)


def close(got, expected, tolerance=1e-5, floor=0.0):
    """Deviation relative to the greatest number of the array, above a floor; NaN fails."""
    assert got.shape == expected.shape
    error = np.abs(got.astype(np.float64) - expected).max(initial=0.0)
    assert error <= tolerance * max(np.abs(expected).max(initial=0.0), 1e-30) + floor


class Graph:
    """Appends ops, knowing each value's width and size and whether it depends on x."""

    def __init__(self, dim, *more):
        self.ops = [{"op": "input", "name": "x", "width": dim}, {"op": "input", "name": "t"}]
        self.ops += [{"op": "input", "name": name, "width": width} for name, width in more]
        self.net, self.from_x = oracles.Net64(self.ops), {"x": True}
        self.width, self.size = self.net.widths, self.net.sizes

    def put(self, kind, *inputs, **fields):
        name = f"{kind}{len(self.ops)}"
        self.ops.append({"op": kind, "name": name, "inputs": list(inputs), **fields})
        self.net.declare(self.ops[-1])
        self.from_x[name] = any(self.from_x.get(i, False) for i in inputs)
        return name


def single(kind, w, w2):
    """A small net around one op; what surrounds it makes every branch of its backward run."""
    g = Graph(w)
    if kind == "linear":
        g.put("linear", "x", width=w2)
    elif kind in ("leaky_relu", "silu"):  # behind a linear op that somebody else reads as well
        h = g.put("linear", "x", width=w2)
        g.put("add", h, g.put(kind, h))
    elif kind in ("fused leaky_relu", "fused silu"):
        g.put(kind.split()[1], g.put("linear", "x", width=w2))
    elif kind in ("leaky_relu of x", "silu of x"):
        g.put("linear", g.put(kind.split()[0], "x"), width=w2)
    elif kind == "add":
        h = g.put("linear", "x", width=w)
        g.put("add", g.put("add", h, "x"), h)
    elif kind == "add to itself":
        h = g.put("linear", "x", width=w2)
        g.put("add", h, h)
    elif kind == "concat":
        h = g.put("linear", "x", width=w2)
        g.put("leaky_relu", g.put("concat", h, g.put("linear", "x", width=16), "x", h), slope=0.3)
    elif kind == "embed":
        e = [g.put("embed", "t", width=w, style=style) for w in (4, 32, 34) for style in
             ("sin_cos", "cos_sin")]  # fmt: skip
        g.put("linear", g.put("concat", g.put("concat", *e[:4]), e[4], e[5], "x"), width=w2)
    return g.ops


def random_net(seed):
    """A random graph; dead branches, values read several times, chains and joins occur."""
    rng = np.random.default_rng(seed)
    g = Graph(int(rng.choice([1, 2, 5, 16, 33])))
    first = g.put("linear", "x", width=int(rng.choice([3, 16, 32])))
    pool = ["x", first, g.put("embed", "t", width=int(rng.choice([4, 16, 32])))]
    for _ in range(int(rng.integers(4, 16))):
        a, b = (pool[int(i)] for i in rng.integers(0, len(pool), 2))
        if rng.random() < 0.5:
            a = pool[-1]
        kind = rng.choice(["linear", "linear", "leaky_relu", "silu", "add", "concat"])
        if kind == "linear":
            pool.append(g.put("linear", a, width=int(rng.choice([1, 2, 7, 16, 17, 32, 48]))))
        elif kind == "add":
            if g.width[a] != g.width[b]:
                b = g.put("linear", b, width=g.width[a])
            pool.append(g.put("add", a, b))
        elif kind == "concat" and g.width[a] + g.width[b] < 200:
            pool.append(g.put("concat", a, b))
        elif kind != "concat":
            more = {"slope": float(rng.choice([0.01, 0.2, 1.0]))} if kind == "leaky_relu" else {}
            pool.append(g.put(kind, a, **more))
    tail = int(rng.integers(0, 4))
    last = pool[-1]
    if not g.from_x[last]:
        last = g.put("concat", last, first)
    if tail == 0:
        last = g.put("linear", last, width=g.width["x"])
    elif tail == 1:
        g.put("silu", g.put("linear", last, width=16))
    elif tail == 2:
        g.put("concat", g.put("linear", last, width=16), first)
    else:
        h = g.put("linear", last, width=g.width[first])
        g.put("add", h, g.put("leaky_relu", first))
    return g.ops


def inputs_for(ops, rows, seed=0, one_time=False):
    """Core net, reference net, and float32 theta, x, t, cotangent, and what else the net reads."""
    net, reference = _core.Net(ops), oracles.Net64(ops)
    rng = np.random.default_rng(1000 * rows + seed)
    theta = net.initial(seed + 5)
    x = rng.normal(size=(rows, net.dim)).astype(np.float32)
    t = rng.uniform(0.0, 20.0, size=rows).astype(np.float32)
    if one_time:
        t[:] = 7.25
    dy = rng.normal(size=(rows, reference.widths[reference.output])).astype(np.float32)
    more = {}
    if "cond" in reference.widths:
        more["cond"] = rng.normal(size=(rows, reference.widths["cond"])).astype(np.float32)
    for op in ops:
        if op["op"] == "lookup":
            more["label"] = rng.integers(0, op["classes"], rows).astype(np.float32)
        if op["op"] == "group_norm":  # neither 1 nor 0
            for p, middle in (("weight", 1.0), ("bias", 0.0)):
                values = reference.get(theta, f"{op['name']}.{p}")
                values[...] = middle + 0.3 * rng.normal(size=values.shape)
    return net, reference, theta, x, t, dy, more


def check_net(ops, rows, seed=0, chunks=(1, 7, 64)):
    """Forward, gradient and vjp of a net against the reference; bits of chunks and of plans."""
    net, reference, theta, x, t, dy, more = inputs_for(ops, rows, seed)
    expected = reference.forward(theta, x, t, **more)
    grad64, dx64 = reference.backward(theta, dy)
    y = net.forward(theta, x, t, **more)
    close(y, expected)
    assert np.array_equal(y, net.forward(theta, x, t, rows=rows, **more))
    one_time = np.full_like(t, t[0])
    close(net.forward(theta, x, one_time, **more), reference.forward(theta, x, one_time, **more))
    check_bits(net, theta, x, t, dy, rows, chunks, **more)
    # Sums over pixels may cancel: a normalisation lets no constant through.
    images = any(op["op"] == "image" for op in ops)
    floor = 5e-6 * np.abs(grad64).max() if images else 0.0
    for chunk in chunks:
        if chunk < rows or chunk == 64:
            grad = net.gradient(theta, x, t, dy, rows=chunk, **more)[1]
            for name in reference.places:
                close(reference.get(grad, name), reference.get(grad64, name), 2e-5, floor)
    close(net.vjp(theta, x, t, dy, **more)[1], dx64, 2e-5)


def check_bits(net, theta, x, t, dy, rows, chunks=(1, 7, 64), **more):
    """A row's bits depend neither on its neighbours nor on what shares memory."""
    y = net.forward(theta, x, t, **more)
    _, dx = net.vjp(theta, x, t, dy, **more)
    for chunk in chunks:
        if chunk < rows or chunk == 64:
            assert np.array_equal(net.forward(theta, x, t, rows=chunk, **more), y)
            got, grad = net.gradient(theta, x, t, dy, rows=chunk, **more)
            kept = net.gradient(theta, x, t, dy, rows=chunk, keep=True, **more)
            assert np.array_equal(got, kept[0])
            assert np.array_equal(got, y)
            assert np.array_equal(grad, kept[1])
            for keep in (False, True):
                got, again = net.vjp(theta, x, t, dy, rows=chunk, keep=keep, **more)
                assert np.array_equal(got, y)
                assert np.array_equal(again, dx)


# ---- the reference itself ----


def check_reference(net, theta, x, t, dy, seed, h):
    """The float64 gradients by a random tangent, of step h, and a random cotangent."""
    rng = np.random.default_rng(seed)
    theta, x = theta.astype(np.float64), x.astype(np.float64)
    d_theta, d_x = rng.normal(size=theta.shape), rng.normal(size=x.shape)
    up = (net.forward(theta + h * d_theta, x + h * d_x, t) * dy).sum()
    down = (net.forward(theta - h * d_theta, x - h * d_x, t) * dy).sum()
    net.forward(theta, x, t)
    grad, dx = net.backward(theta, dy)
    predicted = (grad * d_theta).sum() + (dx * d_x).sum()
    size = np.abs(grad * d_theta).sum() + np.abs(dx * d_x).sum()
    assert abs((up - down) / (2.0 * h) - predicted) < 1e-5 * size


@pytest.mark.parametrize("seed", SEEDS)
def test_reference_backward(seed):
    _, net, theta, x, t, dy, _ = inputs_for(random_net(seed), 5, seed)
    check_reference(net, theta, x, t, dy, seed, 1e-6)


# ---- ops ----

KINDS = (
    *("leaky_relu", "silu", "fused leaky_relu", "fused silu", "leaky_relu of x", "silu of x"),
    *("add", "add to itself", "concat", "embed"),
)


@pytest.mark.parametrize("n_out", WIDTHS)
@pytest.mark.parametrize("n_in", WIDTHS)
def test_linear(n_in, n_out):
    for rows in ROWS:
        check_net(single("linear", n_in, n_out), rows)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_op(kind, width):
    for rows in ROWS:
        check_net(single(kind, width, WIDTHS[(WIDTHS.index(width) + rows) % len(WIDTHS)]), rows)


@pytest.mark.parametrize("style", ["sin_cos", "cos_sin"])
def test_embedding_of_all_times(style):
    g = Graph(1)
    g.put("concat", g.put("embed", "t", width=32, style=style), "x")
    g.put("linear", g.ops[-1]["name"], width=33)
    net, reference = _core.Net(g.ops), oracles.Net64(g.ops)
    theta = np.zeros(net.plane, np.float32)
    reference.get(theta, g.ops[-1]["name"] + ".weight")[...] = np.eye(33)
    t = np.concatenate([np.linspace(0.0, 1000.0, 2001), [1e-7, 0.5, 1e4]]).astype(np.float32)
    x = np.zeros((len(t), 1), np.float32)
    y = net.forward(theta, x, t)
    error = np.abs(y - reference.forward(theta, x, t))
    assert np.all(error <= 2e-7 + 1.2e-7 * t[:, None])  # the rounding of t times a frequency


@pytest.mark.parametrize("kind", ["silu", "leaky_relu"])
def test_activation_of_extremes(kind):
    g = Graph(16)
    g.put("add", g.put(kind, "x"), g.put("linear", "x", width=16))
    net, reference = _core.Net(g.ops), oracles.Net64(g.ops)
    theta = np.zeros(net.plane, np.float32)
    x = np.array([0.0, -0.0, 1e-38, -1e-38, 1e-20, 20.0, -20.0, 87.0, -87.0, 88.8, -88.8, 200.0,
                  -200.0, 3e4, -3e4, 1e30], np.float32)[None]  # fmt: skip
    t, dy = np.zeros(1, np.float32), np.ones((1, 16), np.float32)
    y, dx = net.vjp(theta, x, t, dy)
    expected = reference.forward(theta, x, t)
    assert np.all(np.abs(y - expected) <= 1e-6 * np.abs(expected) + 1e-30)
    assert np.all(np.abs(dx - reference.backward(theta, dy)[1]) <= 2e-6)
    for bad in (np.nan, np.inf):
        for place in range(16):
            z = np.ones((3, 16), np.float32)
            z[1, place] = bad
            y = net.forward(theta, z, np.zeros(3, np.float32))
            assert not np.isfinite(y[1, place])
            assert np.isfinite(y[[0, 2]]).all()  # a row knows nothing of its neighbours


# ---- nets and plans ----


@pytest.mark.parametrize("seed", SEEDS)
def test_random_net(seed):
    for rows in (1, 7, 65):
        check_net(random_net(seed), rows, seed)


@pytest.mark.parametrize("residual", [False, True])
def test_wide_and_deep_net(residual):
    check_net(oracles.mlp(200, 256, depth=5, residual=residual), 65)


@pytest.mark.parametrize("seed", SEEDS)
def test_plan(seed):
    """Buffers that live at the same time share no byte; reuse never takes more."""
    net = _core.Net(random_net(seed))
    for mode in ("infer", "train", "vjp"):
        for rows in (1, 7, 64):
            plan = net.plan(mode, rows)
            buffers = plan["buffers"]
            assert buffers
            for i, (name, offset, size, first, last) in enumerate(buffers):
                assert offset % 64 == 0
                assert size > 0
                assert offset + size <= plan["bytes"]
                assert first <= last
                for other, at, length, begin, end in buffers[:i]:
                    apart = last < begin or end < first
                    assert apart or offset + size <= at or at + length <= offset, (name, other)
            assert plan["bytes"] <= net.plan(mode, rows, True)["bytes"]


def test_plan_reuses_memory():
    net = _core.Net(oracles.mlp(2, 64, depth=8))
    assert net.plan("infer", 64)["bytes"] < 0.4 * net.plan("infer", 64, True)["bytes"]
    assert net.plan("train", 64)["bytes"] < 0.8 * net.plan("train", 64, True)["bytes"]


@pytest.mark.parametrize("ops", ["linear of t", "silu of x", "linear of t behind silu"])
def test_nets_that_cannot_learn_are_refused(ops):
    """Outputs that know nothing of x, or of any parameter: no gradient would flow."""
    g = Graph(2)
    g.put("linear", "x", width=2)
    if ops == "silu of x":
        g.put("silu", "x")
    else:
        g.put("linear", g.put("embed", "t", width=16), width=2)
    if ops == "linear of t behind silu":
        g.put("silu", g.ops[-1]["name"])
    with pytest.raises(ValueError, match="must depend on x and on parameters"):
        _core.Net(g.ops)


def test_no_rows():
    net, _, theta, x, t, dy, _ = inputs_for(oracles.mlp(3, 16), 4)
    assert net.forward(theta, x[:0], t[:0]).shape == (0, 3)
    y, grad = net.gradient(theta, x[:0], t[:0], dy[:0])
    assert y.shape == (0, 3)
    assert not grad.any()
    assert net.vjp(theta, x[:0], t[:0], dy[:0])[1].shape == (0, 3)


def test_initial_weights():
    ops = oracles.mlp(3, 40, depth=3)
    net = _core.Net(ops)
    for seed, draw in [(0, 0), (2**63 + 3, 0), (5, 77)]:
        expected = oracles.initial_weights(oracles.Net64(ops), seed, draw)
        assert np.abs(net.initial(seed, draw) - expected).max() < 1e-7
    ops[-1]["zero"] = True
    net, reference = _core.Net(ops), oracles.Net64(ops)
    assert not reference.get(net.initial(1), "out.weight").any()
    assert reference.get(net.initial(1), "l1.weight").all()


@pytest.mark.slow
@pytest.mark.parametrize("isa", _core.isas())
def test_every_instruction_set(isa):
    """All of the above, and the golden values, on each instruction set."""
    if isa == _core.isa():
        pytest.skip("this process runs on it")
    if os.environ.get("DSB_ISA"):
        pytest.skip("one instruction set was asked for")
    here = os.path.dirname(__file__)
    env = os.environ | {"DSB_ISA": isa}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    names = ("test_nn.py", "test_nn_images.py", "test_parity.py")
    files = [os.path.join(here, name) for name in names]
    done = subprocess.run(
        [*command, *files, "-k", "not every_instruction_set and not Torch and not torch"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
