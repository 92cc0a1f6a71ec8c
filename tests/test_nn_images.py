"""Ops of images, nets of them and their plans: what test_nn.py does for vectors."""

import numpy as np
import oracles
import pytest
from test_nn import Graph, check_bits, check_net, check_reference, close, inputs_for

from dsb import _core

# (channels, height, width, rows)
SHAPES = ((1, 1, 1, 3), (3, 5, 1, 2), (32, 4, 6, 5), (33, 3, 7, 1), (96, 2, 2, 2), (3, 33, 31, 1),
          (32, 14, 14, 2))  # fmt: skip
LOW = [p for p in _core.precisions() if p != "float32"]
TOLERANCE = {"bf16x3": 1e-4, "bf16": 3e-2}
SEEDS = range(16)


def start(c, h, w, *more):
    """A graph whose x is an image, and that image."""
    g = Graph(c * h * w, *more)
    return g, g.put("image", "x", size=[h, w])


def vector(g, width):
    """A vector of `width` numbers that depends on the time."""
    return g.put("linear", g.put("embed", "t", width=8), width=width)


def norm(g, h, *more, silu=False):
    """Groups of one channel, of some, or of all: not so few numbers that only rounding is left."""
    c, (height, width) = g.width[h], g.size[h]
    if c * height * width == 1:
        return g.put("silu", h)
    groups = {3: 3, 32: 8, 33: 11, 96: 32}.get(c, 1)
    if c // groups * height * width < 6:
        groups = 1
    return g.put("group_norm", h, *more, groups=groups, silu=silu)


def plain(kind, **fields):
    """A net around one op, which reads what another op reads as well."""

    def net(g, h):
        h = g.put("conv", h, width=g.width[h], kernel=1)
        y = g.put(kind, h, **fields)
        if (g.size[y], g.width[y]) == (g.size[h], g.width[h]):
            return g.put("add", h, y)
        return g.put("conv", y, width=2, kernel=1) if g.width[y] < 64 else y

    return net


def conv(width=None, **fields):
    def net(g, h):
        return plain("conv", width=width or g.width[h], **fields)(g, h)

    return net


def chained(g, h):
    """What a plan may run as one: norms before and sums after convolutions."""
    v = vector(g, 2 * g.width[h])
    first = h
    h = g.put("conv", norm(g, h, silu=True), width=g.width[h])
    h = g.put("conv", norm(g, h, v, silu=True), width=g.width[h])
    h = g.put("add", first, h)
    h = g.put("add", g.put("conv", norm(g, h), width=g.width[h]), vector(g, g.width[h]))
    skip = g.put("conv", h, width=16, kernel=1)
    return g.put("add", skip, g.put("conv", h, width=16))


def normed(silu, told):
    def net(g, h):
        h = g.put("conv", h, width=g.width[h], kernel=1)
        more = [vector(g, 2 * g.width[h])] if told else []
        return g.put("add", h, norm(g, h, *more, silu=silu))

    return net


def attended(heads):
    def net(g, h):
        c = 8 * heads if g.width[h] % heads else g.width[h]
        qkv = g.put("conv", h, width=3 * c, kernel=1, axes=3)
        y = g.put("attention", qkv, heads=heads)
        return g.put("concat", y, h)

    return net


def told(g, h):
    """A vector for every pixel; the same image twice."""
    h = g.put("conv", h, width=g.width[h])
    y = g.put("add", h, vector(g, g.width[h]))
    return g.put("add", g.put("add", y, y), h)


def joined(g, h):
    a, b = g.put("conv", h, width=17), g.put("conv", h, width=16)
    return g.put("silu", g.put("concat", a, h, b, a))


def through_vectors(g, h):
    size, c = g.size[h], g.width[h]
    flat = g.put("flatten", g.put("conv", h, width=c))
    if g.width[flat] <= 64:
        flat = g.put("linear", g.put("silu", flat), width=g.width[flat])
    return g.put("add", g.put("image", flat, size=list(size)), h)


KINDS = {
    "conv": conv(),
    "conv of 1 x 1": conv(kernel=1, width=48),
    "conv to few": conv(width=1),
    "conv of stride 2": conv(stride=2, width=32),
    "conv of 1 x 1, stride 2": conv(kernel=1, stride=2),
    "conv of the doubled": conv(up=True, width=20),
    "norm": normed(False, False),
    "norm and silu": normed(True, False),
    "norm, scaled and shifted": normed(True, True),
    "norm, scaled": normed(False, True),
    "attention": attended(1),
    "attention of 4 heads": attended(4),
    "silu": plain("silu"),
    "leaky_relu": plain("leaky_relu", slope=0.2),
    "upsample": plain("upsample"),
    "pool": plain("pool"),
    "dropout": plain("dropout", rate=0.3),
    "add": told,
    "concat": joined,
    "image of a vector": through_vectors,
    "a chain": chained,
}


def net_of(kind, c, h, w):
    if kind == "pool":
        h, w = h + h % 2, w + w % 2
    g, x = start(c, h, w)
    g.put("flatten", KINDS[kind](g, x))
    return g.ops


def without_dropout(ops):
    """Outside of training: its gradient is of another function."""
    return [op | {"rate": 0.0} if op["op"] == "dropout" else op for op in ops]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_op(kind, shape):
    *image, rows = shape
    check_net(without_dropout(net_of(kind, *image)), rows, chunks=(1, 2, 64))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("shape", SHAPES[1:6], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "conv" in kind or "chain" in kind])
def test_op_in_low_precision(kind, shape, precision):
    """Near float32's; the same bits in chunks and where memory is shared."""
    *image, rows = shape
    check_low(net_of(kind, *image), rows, precision)


def check_low(ops, rows, precision, seed=0, tolerance=1.0):
    net, reference, theta, x, t, dy, more = inputs_for(ops, rows, seed)
    tolerance *= TOLERANCE[precision]
    near(net.forward(theta, x, t, precision=precision, **more),
         reference.forward(theta, x, t, **more), tolerance)  # fmt: skip
    grad64, dx64 = reference.backward(theta, dy)
    near(net.gradient(theta, x, t, dy, precision=precision, **more)[1], grad64, 2 * tolerance)
    near(net.vjp(theta, x, t, dy, precision=precision, **more)[1], dx64, 2 * tolerance)
    check_bits(net, theta, x, t, dy, rows, (1, 2, 64), precision=precision, **more)


def near(got, expected, tolerance):
    """Norm of the difference over the norm; NaN fails."""
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


# ---- conditions ----


def test_condition_and_label():
    for rows in (1, 5):
        g, x = start(2, 4, 6, ("cond", 72), ("label", 1))
        h = g.put("concat", x, g.put("image", "cond", size=[4, 6]))
        h = g.put("add", g.put("conv", h, width=32), g.put("lookup", "label", classes=7, width=32))
        e = g.put("lookup", "label", classes=7, width=16)  # another table
        h = g.put("add", h, g.put("linear", g.put("silu", e), width=32))
        g.put("flatten", g.put("conv", h, width=2))
        check_net(g.ops, rows, chunks=(1, 2, 64))


@pytest.mark.parametrize("label", [-1.0, 7.0, 0.5, np.nan])
def test_labels_that_are_none(label):
    g, x = start(1, 2, 2, ("label", 1))
    g.put("flatten", g.put("add", g.put("conv", x, width=8),
                           g.put("lookup", "label", classes=7, width=8)))  # fmt: skip
    net, _, theta, x, t, _, more = inputs_for(g.ops, 3)
    more["label"][1] = label
    with pytest.raises(ValueError, match="label"):
        net.forward(theta, x, t, **more)


# ---- dropout ----


def dropped(rate=0.25, c=32):
    """x behind a convolution that is the identity, so that the mask can be read off."""
    g, x = start(c, 6, 7)
    y = g.put("dropout", g.put("conv", x, width=c, kernel=1), rate=rate)
    g.put("flatten", g.put("conv", y, width=c, kernel=1))
    net = _core.Net(g.ops)
    theta = np.zeros(net.plane, np.float32)
    reference = oracles.Net64(g.ops)
    for op in g.ops:
        if op["op"] == "conv":
            reference.get(theta, op["name"] + ".weight")[...] = np.eye(c)[:, None, None]
    return net, theta, [op["name"] for op in g.ops if op["op"] == "conv"], reference


def test_dropout():
    """Right mean, a mask of its own for every row and seed, the same one forward and backward."""
    net, theta, (first, _), reference = dropped()
    rows, rate = 30, 0.25
    x = np.ones((rows, net.dim), np.float32)
    t, dy = np.zeros(rows, np.float32), np.zeros((rows, net.dim), np.float32)
    y, _ = net.gradient(theta, x, t, dy, seed=3)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / y.size)
    for one, bound in ((0, 0.5), (1, 0.1)):  # neither rows nor pixels nor channels are alike
        assert np.abs(kept.mean(axis=one) - (1 - rate)).max() < bound
    assert np.unique(kept, axis=0).shape[0] == rows
    np.testing.assert_array_equal(net.gradient(theta, x, t, dy, seed=3)[0], y)
    assert (net.gradient(theta, x, t, dy, seed=4)[0] != y).mean() > 0.2
    for chunk in (1, 7):
        np.testing.assert_array_equal(net.gradient(theta, x, t, dy, seed=3, rows=chunk)[0], y)
    # d/db of the first convolution is the sum of mask / (1 - rate) where dy is 1.
    dy[:] = 1.0
    got, grad = net.gradient(theta, x, t, dy, seed=3)
    np.testing.assert_array_equal(got, y)
    expected = y.astype(np.float64).reshape(rows, -1, 42).sum((0, 2))
    np.testing.assert_allclose(reference.get(grad, first + ".bias"), expected, rtol=1e-5)
    # Outside of training it is not there.
    np.testing.assert_allclose(net.forward(theta, x, t), 1.0, rtol=1e-6)
    np.testing.assert_allclose(net.vjp(theta, x, t, dy)[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 2**40 + 1])
def test_gradient_with_dropout(seed):
    """Two dropouts, against the reference with masks by the formula."""
    g, x = start(32, 6, 7)
    h = g.put("conv", norm(g, x, silu=True), width=32)
    first = g.put("dropout", g.put("silu", h), rate=0.25)
    second = g.put("dropout", g.put("conv", first, width=17), rate=0.4)
    g.put("flatten", g.put("add", h, g.put("conv", second, width=32)))
    net, reference, theta, x, t, dy, _ = inputs_for(g.ops, 4)
    masks = {
        name: oracles.dropout_mask(seed, number, rate, 4, 42, c)
        .reshape(4, 6, 7, c)
        .transpose(0, 3, 1, 2)
        for number, (name, rate, c) in enumerate([(first, 0.25, 32), (second, 0.4, 17)])
    }
    expected = reference.forward(theta, x, t, masks=masks)
    grad64, _ = reference.backward(theta, dy)
    for rows in (1, 3, 64):
        y, grad = net.gradient(theta, x, t, dy, seed=seed, rows=rows)
        close(y, expected)
        for name in reference.places:
            close(reference.get(grad, name), reference.get(grad64, name), 2e-5)
        kept = net.gradient(theta, x, t, dy, seed=seed, rows=rows, keep=True)
        np.testing.assert_array_equal(y, kept[0])
        np.testing.assert_array_equal(grad, kept[1])


# ---- nets and plans ----


def random_net(seed):
    """A random graph of images; dead branches, values read several times, chains and joins occur."""
    rng = np.random.default_rng(seed)
    h, w = (int(n) for n in rng.choice([1, 2, 4, 6, 7, 8], 2))
    g, x = start(int(rng.choice([1, 3, 16, 32])), h, w)
    pool = [x, g.put("conv", x, width=int(rng.choice([3, 32])))]
    for _ in range(int(rng.integers(5, 16))):
        a, b = (pool[int(i)] for i in rng.integers(0, len(pool), 2))
        if rng.random() < 0.6:
            a = pool[-1]
        pool.append(random_op(g, rng, a, b, str(rng.choice(list(RANDOM)))))
    last = pool[-1]
    if rng.random() < 0.5:
        last = g.put("conv", last, width=int(rng.choice([1, 3, 32])))
    g.put("flatten", last)
    return g.ops


RANDOM = ("conv", "conv", "conv", "halve", "double", "norm", "norm", "told norm", "silu", "add",
          "told", "concat", "attention", "plain", "flat")  # fmt: skip


def random_op(g, rng, a, b, kind):
    (h, w), c = g.size[a], g.width[a]
    width = int(rng.choice([1, 3, 32, 33]))
    if kind == "halve" and max(h, w) > 1:
        return g.put("conv", a, width=width, stride=2)
    if kind == "double" and max(h, w) <= 8:
        return g.put("conv", a, width=width, up=True)
    if kind == "norm":
        return norm(g, a, silu=bool(rng.random() < 0.6))
    if kind == "told norm":
        return norm(g, a, vector(g, 2 * c), silu=bool(rng.random() < 0.6))
    if kind == "silu":
        return g.put("silu", a)
    if kind == "told":
        return g.put("add", a, vector(g, c))
    if kind == "concat" and g.size[a] == g.size[b] and c + g.width[b] < 200:
        return g.put("concat", a, b)
    if kind == "add":
        if g.size[a] != g.size[b]:
            b = a
        return g.put("add", b if g.width[b] == c else g.put("conv", b, width=c, kernel=1), a)
    if kind == "attention":
        heads = int(rng.choice([1, 2]))
        y = g.put("attention", g.put("conv", a, width=3 * 8 * heads, kernel=1), heads=heads)
        return g.put("add", a, g.put("conv", y, width=c, kernel=1, axes=3))
    if kind == "plain":
        if h % 2 == w % 2 == 0:
            return g.put("pool", a)
        return g.put("upsample", a) if max(h, w) <= 8 else a
    if kind == "flat":
        return g.put("image", g.put("flatten", a), size=[h, w])
    return g.put("conv", a, width=width, kernel=int(rng.choice([1, 3])))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_net(seed):
    rows = 1 + seed % 5
    check_net(random_net(seed), rows, seed, chunks=(1, 2, 64))
    for precision in LOW:
        net, _, theta, x, t, dy, _ = inputs_for(random_net(seed), rows, seed)
        check_bits(net, theta, x, t, dy, rows, (1, 2, 64), precision=precision)


def with_dropout(ops):
    """The ops with dropout in place of each SiLU of an image."""
    image, result = {}, []
    for op in ops:
        vector_made = op["op"] in ("input", "embed", "linear", "flatten", "lookup")
        image[op["name"]] = op["op"] == "image" or (not vector_made and image[op["inputs"][0]])
        if op["op"] == "silu" and image[op["name"]]:
            op = {"op": "dropout", "name": op["name"], "inputs": op["inputs"], "rate": 0.3}
        result.append(op)
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_do_not_hang_on_the_plan(seed):
    ops, rows = with_dropout(random_net(seed)), 1 + seed % 5
    net, _, theta, x, t, dy, _ = inputs_for(random_net(seed), rows, seed)
    net = _core.Net(ops)
    for precision in ("float32", *LOW):
        for chunk in (2, 64):
            told = {"rows": chunk, "precision": precision, "seed": 3}
            y, grad = net.gradient(theta, x, t, dy, **told)
            kept = net.gradient(theta, x, t, dy, keep=True, **told)
            np.testing.assert_array_equal(y, kept[0])
            np.testing.assert_array_equal(grad, kept[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_reference_backward(seed):
    _, net, theta, x, t, dy, _ = inputs_for(random_net(seed), 3, seed)
    check_reference(net, theta, x, t, dy, seed, 1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_plan(seed):
    """Buffers that live at the same time share no byte; reuse never takes more."""
    net = _core.Net(random_net(seed))
    for mode in ("infer", "train", "vjp"):
        for precision in _core.precisions():
            plan = net.plan(mode, 3, False, precision)
            buffers = plan["buffers"]
            assert buffers
            for i, (name, offset, size, first, last) in enumerate(buffers):
                assert offset % 64 == 0
                assert 0 < size <= plan["bytes"] - offset
                for other, at, length, begin, end in buffers[:i]:
                    apart = last < begin or end < first
                    assert apart or offset + size <= at or at + length <= offset, (name, other)
            assert plan["bytes"] <= net.plan(mode, 3, True, precision)["bytes"]


def test_initial_weights():
    g, x = start(3, 4, 4, ("label", 1))
    h = g.put("conv", norm(g, g.put("conv", x, width=33)), width=16, kernel=1, axes=3)
    h = g.put("add", h, g.put("lookup", "label", classes=5, width=16))
    g.put("flatten", g.put("conv", h, width=3, zero=True))
    net, reference = _core.Net(g.ops), oracles.Net64(g.ops)
    expected = oracles.initial_weights(reference, 7, 2)
    last = g.ops[-2]["name"]
    for end in ("weight", "bias"):
        reference.get(expected, f"{last}.{end}")[...] = 0.0
    assert np.abs(net.initial(7, 2) - expected).max() < 2e-6
