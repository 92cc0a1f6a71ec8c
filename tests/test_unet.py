"""The U-Net: golden values of the released networks, parity with PyTorch, and bridges between images."""

import csv
import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
import oracles
import pytest
from conftest import assert_equal_bits, planes
from test_parity import NumpyLearner

import dsb
from dsb import _core
from dsb.nn import Graph

GOLDEN = Path(__file__).parent / "golden"
NETS = {
    "unet_mnist": dsb.UNet.mnist(),
    "unet_celeba32": dsb.UNet.celeba32(),
    "unet_small_attention_additive": dsb.UNet(
        32, (1, 2), 1, attention_resolutions=(8,), heads=2, scale_shift=False
    ),
}
LOW = [p for p in _core.precisions() if p != "float32"]


def close(got, expected, tolerance):
    """Greatest deviation relative to the greatest number; NaN fails."""
    error = np.abs(np.asarray(got, np.float64) - expected).max()
    assert error <= tolerance * np.abs(expected).max()


def close_each(got, expected, tolerance, floor=1e-7):
    """Norm of the difference relative to each array's norm, above a floor for gradients that are 0."""
    assert got.keys() == expected.keys()
    largest = max(np.linalg.norm(value) for value in expected.values())
    for name, value in expected.items():
        error = np.linalg.norm(got[name].astype(np.float64) - value)
        assert error <= tolerance * np.linalg.norm(value) + floor * largest, name


# ---- golden values ----


class Golden:
    """Net, weights and inputs of tests/golden, by their recipe."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        rows, *shape = self.facts["shape"]
        self.graph = Graph(NETS[name].build(tuple(shape)))
        self.net = _core.Net(self.graph.ops)
        self.theta = self.graph.pack(
            {n: self.weight(n, shape) for n, shape in self.graph.parameters.items()}
        )
        k = np.arange(rows * self.net.dim)
        self.x = np.sin(0.37 * k).reshape(rows, -1).astype(np.float32)
        self.y = np.sin(0.53 * k + 1.0).reshape(rows, -1)
        self.t = np.array(self.facts["t"], np.float32)

    @staticmethod
    def weight(name, shape):
        n = int(np.prod(shape))
        s = np.sin(0.7 * np.arange(n) + sum(name.encode()) % 97)
        if len(shape) > 1:
            s /= np.sqrt(n / shape[0])
        else:
            s = 1.0 + 0.1 * s if name.endswith("weight") else 0.05 * s
        return s.reshape(shape)

    def losses(self, steps):
        """Of that many steps of Adam."""
        adam = oracles.Adam64(self.theta.astype(np.float64), rate=1e-4)
        for _ in range(steps):
            theta = adam.theta.astype(np.float32)
            out = self.net.forward(theta, self.x, self.t)
            yield ((out - self.y) ** 2).mean()
            dy = (2.0 * (out - self.y) / out.size).astype(np.float32)
            adam.step(self.net.gradient(theta, self.x, self.t, dy)[1].astype(np.float64))


@pytest.mark.parametrize("name", NETS)
def test_golden_output_and_gradients(name):
    golden = Golden(name)
    assert golden.net.n_parameters == golden.graph.n_parameters == golden.facts["parameters"]
    expected = np.load(GOLDEN / f"{name}_output.npy").reshape(golden.x.shape)
    out = golden.net.forward(golden.theta, golden.x, golden.t)
    close(out, expected, 1e-5)
    assert abs(((out - golden.y) ** 2).mean() / golden.facts["loss"] - 1.0) < 3e-6
    dy = (2.0 * (expected - golden.y) / expected.size).astype(np.float32)
    _, plane = golden.net.gradient(golden.theta, golden.x, golden.t, dy)
    with (GOLDEN / f"{name}.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    gradients = golden.graph.unpack(plane)
    assert gradients.keys() == rows.keys()
    largest = max(float(row["grad_norm"]) for row in rows.values())
    for name, row in rows.items():
        g, norm = gradients[name].astype(np.float64), float(row["grad_norm"])
        assert "x".join(map(str, g.shape)) == row["shape"]
        assert abs(np.linalg.norm(g) - norm) < 1e-4 * norm + 1e-7 * largest, name
        dot = g.ravel() @ np.sin(0.11 * np.arange(g.size))
        assert abs(dot - float(row["grad_dot_sin"])) < 1e-4 * norm + 1e-7 * largest, name


@pytest.mark.parametrize(("name", "steps", "tolerance"), [
    ("unet_small_attention_additive", 10, 5e-6),
    ("unet_mnist", 2, 1e-4),
])  # fmt: skip
def test_golden_losses(name, steps, tolerance):
    """With scale and shift these weights are too stressful for more than the first steps."""
    golden = Golden(name)
    losses = np.array(list(golden.losses(steps)))
    assert np.abs(losses / golden.facts["ten_losses"][:steps] - 1.0).max() < tolerance


def test_names_at_64_by_64():
    graph = Graph(dsb.UNet.celeba64().build((3, 64, 64)))
    with (GOLDEN / "unet_celeba64_names.csv").open() as file:
        wanted = {r["name"]: tuple(map(int, r["shape"].split("x"))) for r in csv.DictReader(file)}
    assert graph.parameters == wanted
    assert graph.n_parameters == _core.Net(graph.ops).n_parameters == 20_972_867
    assert Graph(dsb.UNet.celeba32().build((3, 32, 32))).n_parameters == pytest.approx(
        9.26e6, rel=1e-3
    )


# ---- parity with PyTorch ----

VARIANTS = {
    "attention at several sizes, additive time": (
        {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8, 16),
         "heads": 2, "scale_shift": False},
        (3, 16, 16),
    ),
    "scale and shift": ({"channels": 32, "multipliers": (1, 2, 2)}, (1, 12, 12)),
    "plain resampling": (
        {"channels": 32, "multipliers": (1, 1, 2), "blocks": 1, "resample": "plain", "heads": 8,
         "attention_resolutions": (4,)},
        (2, 8, 8),
    ),
    "labels and condition": (
        {"channels": 32, "multipliers": (1, 2), "blocks": 1, "cond_channels": 2, "classes": 5},
        (1, 8, 8),
    ),
    "96 channels, not square": (
        {"channels": 96, "multipliers": (1, 1, 2), "blocks": 1, "attention_resolutions": (6,),
         "dropout": 0.1},
        (3, 12, 20),
    ),
}  # fmt: skip


class Pair:
    """One net in the core and in PyTorch with the same mild weights, and inputs."""

    def __init__(self, options, shape, rows=3, seed=0):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        from torch_unet import TorchUNet

        self.torch.set_num_threads(1)
        self.graph = Graph(dsb.UNet(**options).build(shape))
        self.net = _core.Net(self.graph.ops)
        trained = Graph(dsb.UNet(**(options | {"dropout": 0.0})).build(shape))
        self.trained = _core.Net(trained.ops)  # the same parameters, and no masks
        self.model = TorchUNet(shape[0], shape[1], **options).double().eval()
        state = {name: tuple(p.shape) for name, p in self.model.state_dict().items()}
        assert state == self.graph.parameters
        rng = np.random.default_rng(seed)
        weights = {name: self.weight(rng, name, s) for name, s in self.graph.parameters.items()}
        self.theta = self.graph.pack(weights)
        self.model.load_state_dict({k: self.tensor(v) for k, v in weights.items()})
        self.shape, c = (rows, *shape), options.get("cond_channels", 0)
        self.x, self.y, self.dy = rng.normal(size=(3, *self.shape)).astype(np.float32)
        self.t = rng.uniform(0.0, 20.0, size=rows).astype(np.float32)
        self.more = {}
        if c:
            self.more["cond"] = rng.normal(size=(rows, c, *shape[1:])).astype(np.float32)
        if options.get("classes"):
            self.more["label"] = rng.integers(0, options["classes"], rows).astype(np.float32)

    @staticmethod
    def weight(rng, name, shape):
        """As PyTorch starts them, but nothing is zero."""
        if len(shape) == 1:
            return (name.endswith("weight") + 0.1 * rng.normal(size=shape)).astype(np.float32)
        bound = 1.0 / np.sqrt(np.prod(shape[1:]))
        return rng.uniform(-bound, bound, size=shape).astype(np.float32)

    def tensor(self, a):
        return self.torch.from_numpy(np.asarray(a, np.float64))

    def given(self):
        """Further inputs as the core takes them."""
        return {k: v.reshape(len(v), -1) if v.ndim > 1 else v for k, v in self.more.items()}

    def ours(self, precision="float32"):
        """Output, gradients by name, gradient to x."""
        x, dy = (a.reshape(len(a), -1) for a in (self.x, self.dy))
        told = {"precision": precision, **self.given()}
        y, plane = self.trained.gradient(self.theta, x, self.t, dy, **told)
        _, dx = self.net.vjp(self.theta, x, self.t, dy, **told)
        return (y.reshape(self.shape), self.graph.unpack(plane) | {"x": dx.reshape(self.shape)})

    def theirs(self, bf16=False):
        """The same in PyTorch: in float64, or by automatic mixing of bfloat16 into float32."""
        torch = self.torch
        model = self.model.float() if bf16 else self.model.double()
        kind = torch.float32 if bf16 else torch.float64
        x, t, dy = (self.tensor(a).to(kind) for a in (self.x, self.t, self.dy))
        more = {k: self.tensor(v).to(kind) for k, v in self.more.items()}
        model.zero_grad()
        x.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = model(x, t, **more)
        y.to(kind).backward(dy)
        found = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
        y = y.detach().double().numpy()
        return y, found | {"x": x.grad.double().numpy()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_outputs_and_gradients(variant):
    pair = Pair(*VARIANTS[variant])
    y, gradients = pair.ours()
    expected, theirs = pair.theirs()
    close(y, expected, 1e-5)
    close_each(gradients, theirs, 1e-4)
    x = pair.x.reshape(len(pair.x), -1)
    close(pair.net.forward(pair.theta, x, pair.t, **pair.given()).reshape(y.shape), expected, 1e-5)


@pytest.mark.parametrize("variant", list(VARIANTS)[:4])
def test_torch_ten_losses(variant):
    """Adam 1e-4 from the same weights."""
    pair = Pair(*VARIANTS[variant])
    torch, model = pair.torch, pair.model
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    inputs = [pair.tensor(a) for a in (pair.x, pair.t)]
    more = {k: pair.tensor(v) for k, v in pair.more.items()}
    theirs = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = ((model(*inputs, **more) - pair.tensor(pair.y)) ** 2).mean()
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    adam = oracles.Adam64(pair.theta.astype(np.float64), rate=1e-4)
    x, target = (a.reshape(len(a), -1) for a in (pair.x, pair.y))
    ours = []
    for _ in range(10):
        theta = adam.theta.astype(np.float32)
        out = pair.net.forward(theta, x, pair.t, **pair.given())
        ours.append(((out - target.astype(np.float64)) ** 2).mean())
        dy = (2.0 * (out - target) / out.size).astype(np.float32)
        adam.step(pair.net.gradient(theta, x, pair.t, dy, **pair.given())[1].astype(np.float64))
    assert ours[-1] < 0.999 * ours[0]
    assert np.abs(np.array(ours) / theirs - 1.0).max() < 1e-4


def distance(found, reference):
    """Of (output, gradients) from a reference: both norms relative to its own."""
    y, gradients = (np.linalg.norm(reference[0]), {k: v.ravel() for k, v in reference[1].items()})
    ours = np.concatenate([found[1][k].ravel() - v for k, v in gradients.items()])
    whole = np.concatenate(list(gradients.values()))
    return (
        float(np.linalg.norm(found[0] - reference[0]) / y),
        float(np.linalg.norm(ours) / np.linalg.norm(whole)),
    )


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("variant", [list(VARIANTS)[i] for i in (0, 1, 3)])
def test_low_precision(variant, precision):
    """bf16 is as near to float64 as PyTorch's, and three products are nearly float32."""
    pair = Pair(*VARIANTS[variant])
    exact = pair.theirs()
    found = distance(pair.ours(precision), exact)
    assert found[0] > 1e-7
    if precision == "bf16x3":
        assert max(found) < 5e-5
    else:
        theirs = distance(pair.theirs(bf16=True), exact)
        assert found[0] < 2.0 * theirs[0]
        assert found[1] < 2.0 * theirs[1]


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in _core.isas() if isa != _core.isa()])
def test_other_instruction_sets(isa):
    """A small net in every precision that each offers, against float64."""
    code = """
        import numpy as np, oracles, dsb
        from dsb import _core
        from dsb.nn import Graph

        graph = Graph(dsb.UNet(32, (1, 2), 1, attention_resolutions=(4,)).build((2, 4, 6)))
        rng = np.random.default_rng(0)
        weights = {n: (n.endswith("weight") + 0.1 * rng.normal(size=s)) if len(s) == 1
                   else rng.normal(size=s) / np.sqrt(np.prod(s[1:])) / 2
                   for n, s in graph.parameters.items()}
        theta, net = graph.pack(weights), oracles.Net64(graph.ops)
        x, dy = rng.normal(size=(2, 3, graph.dim)).astype(np.float32)
        t = np.array([0.5, 3.0, 7.0], np.float32)
        y64 = net.forward(theta, x, t)
        grad64, _ = net.backward(theta, dy)
        for precision in _core.precisions():
            y, grad = _core.Net(graph.ops).gradient(theta, x, t, dy, precision=precision)
            print(precision, np.linalg.norm(y - y64) / np.linalg.norm(y64),
                  np.linalg.norm(grad - grad64) / np.linalg.norm(grad64))
    """
    told = oracles.run_python(textwrap.dedent(code), isa)
    bound = {"float32": 5e-6, "bf16x3": 5e-5, "bf16": 3e-2}
    found = {line.split()[0]: [float(v) for v in line.split()[1:]] for line in told.splitlines()}
    assert "float32" in found
    for precision, errors in found.items():
        assert max(errors) < bound[precision], found
    if isa == "tiles-in-c":
        assert set(found) == set(bound)


# ---- bridges ----

IMAGES = dsb.datasets.images("shapes", 60, size=8, seed=1)
OTHERS = dsb.datasets.images("rings", 50, size=8, seed=2)
SMALL = dsb.UNet(32, (1, 2), 1, heads=2, dropout=0.2)


def small(prior="gaussian", **options):
    told = {"net": SMALL, "batch": 8, "microbatch": 2, "lanes": 4, "refresh": 3, "seed": 3}
    told["schedule"] = dsb.Schedule([0.02, 0.1, 0.05])
    return dsb.Bridge(IMAGES, prior, **(told | options))


def bits(bridge):
    return {
        **planes(bridge),
        "loss": bridge.history.loss,
        "samples": bridge.sample(5, seed=1),
        "forward": bridge.paths(3, direction="forward", seed=2),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name, strict=True)


@pytest.mark.parametrize("precision", _core.precisions())
def test_threads_and_interruptions_change_nothing(tmp_path, precision):
    threads, saved = dsb.get_num_threads(), []
    found = []

    def save(bridge, record):
        if record.step in (2, 5):
            saved.append(tmp_path / f"{record.direction}{record.step}")
            bridge.save(saved[-1])

    try:
        for n in (1, 2, 3):
            dsb.set_num_threads(n)
            bridge = small(precision=precision)
            told = {"callback": save, "log_every": 1} if n == 2 else {}
            bridge.fit(1, 5, progress=False, **told)
            found.append(bits(bridge))
    finally:
        dsb.set_num_threads(threads)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert len(saved) == 4
    for path in saved:
        again = dsb.load(path)
        assert again.settings.precision == precision
        begun = again.half_bridge + (again.step > 0)
        again.fit(0 if begun else 1, 5, progress=False)
        assert_same(bits(again), found[0])


def image_ops():
    """A net of 1 x 2 x 3 images with every kind of op that training treats in its own way."""
    g = Graph()
    x, t = g.input("x", 6), g.input("t")
    h = g.conv(g.image(x, (2, 3)), 16)
    told = g.linear(g.embed(t, 8), 32)
    skip, h = h, g.group_norm(h, told, groups=4, silu=True)
    h = g.add(skip, g.conv(g.dropout(h, 0.3, name="drop"), 16))
    a = g.attention(g.conv(h, 48, kernel=1, axes=3), heads=2)
    h = g.concat(h, g.conv(g.dropout(a, 0.1, name="drop_too"), 16, kernel=1))
    g.flatten(g.conv(h, 1))
    return g.check(6).ops


class DroppingLearner(NumpyLearner):
    """With the masks of each step."""

    half_bridge = 0

    def step(self, batch, number, total):
        forward, seed, rows = self.net.forward, 2**40 + 7, len(batch.x)
        masks = {
            name: oracles.dropout_mask(seed, i, rate, rows, 6, 16, self.half_bridge, number)
            .reshape(rows, 2, 3, 16)
            .transpose(0, 3, 1, 2)
            for i, (name, rate) in enumerate([("drop", 0.3), ("drop_too", 0.1)])
        }
        self.net.forward = lambda *given: forward(*given, masks=masks)
        try:
            return super().step(batch, number, total)
        finally:
            self.net.forward = forward


@pytest.mark.parametrize("microbatch", [3, 4])
def test_ten_steps_of_both_half_bridges(microbatch):
    """Images and dropout in the training loop, retold in NumPy; see test_parity."""
    ops = image_ops()
    net, steps = _core.Net(ops), np.array([0.05, 0.2, 0.1])
    rng = np.random.default_rng(0)
    source, prior = (rng.normal(size=(n, 6)).astype(np.float32) for n in (13, 7))
    setting = {
        "steps": steps, "source": source, "prior": prior, "batch": 8, "refresh": 4,
        "reference_mean": np.full(6, 0.2, np.float32), "reference_precision": 0.5,
        "seed": 2**40 + 7,
    }  # fmt: skip
    bridge = _core.Bridge(net, **setting, microbatch=microbatch, lanes=2, learning_rate=1e-3,
                          clip=0.5, ema=0.9)  # fmt: skip
    oracle = oracles.Training(**setting)
    learners = [
        DroppingLearner(ops, net.initial(oracle.seed, i), 1e-3, clip=0.5, decay=0.9, cosine=False)
        for i in (0, 1)
    ]
    for half_bridge in range(2):
        learner, other = learners[half_bridge], learners[1 - half_bridge]
        learner.half_bridge = half_bridge
        bridge.begin(10)
        bridge.run(10, 100.0)
        serve = other.serve if half_bridge else None
        batches = oracle.batches(half_bridge, 10, serve)
        loss, norm = np.array([learner.step(b, i, 10) for i, b in enumerate(batches)]).T
        got_loss, got_norm = bridge.log()
        assert np.abs(got_loss / loss - 1.0).max() < 2e-5
        assert np.abs(got_norm / norm - 1.0).max() < 1e-4
        plane = learner.planes()["ema"]
        close(bridge.get_plane(("backward", "forward")[half_bridge], "ema"), plane, 1e-4)


def test_between_two_sets_of_images(tmp_path):
    bridge = small(OTHERS)
    assert bridge.reference == dsb.Brownian()
    bridge.fit(1, 3, progress=False)
    assert bridge.shape == (1, 8, 8)
    assert bridge.dim == 64
    assert bridge.source.shape == IMAGES.shape
    assert np.shares_memory(bridge.source, IMAGES)
    assert bridge.source.dtype == np.uint8
    assert bridge.sample(4).shape == (4, 1, 8, 8)
    assert bridge.sample(x=OTHERS[:3]).shape == (3, 1, 8, 8)
    paths = bridge.paths(IMAGES[:2], direction="forward")
    assert paths.shape == (2, 4, 1, 8, 8)
    np.testing.assert_allclose(paths[:, 0], IMAGES[:2] * (2 / 255) - 1, atol=1e-6)
    assert bridge.drift(IMAGES[:2], 0.1).shape == (2, 1, 8, 8)
    bridge.save(tmp_path / "with")
    bridge.save(tmp_path / "without", data=False)
    other = dsb.load(tmp_path / "with")
    assert repr(other) == repr(bridge)
    assert "Bridge between images of 1 x 8 x 8" in repr(bridge)
    assert "UNet(channels=32, multipliers=(1, 2), blocks=1, heads=2, dropout=0.2)" in repr(bridge)
    assert_equal_bits(other, bridge)
    without = dsb.load(tmp_path / "without")
    assert without.source is None
    assert without.sample(x=OTHERS[:3], seed=1).shape == (3, 1, 8, 8)
    without = dsb.load(tmp_path / "without", source=IMAGES, prior=OTHERS)
    assert without.prior.shape == OTHERS.shape
    with pytest.raises(ValueError, match=r"source: expected images \[n, 1, 8, 8\]"):
        dsb.load(tmp_path / "without", source=IMAGES.reshape(60, -1), prior=OTHERS)
    assert dsb.metrics.sliced_wasserstein(IMAGES, bridge.sample(20, seed=0)) > 0


def test_images_of_every_kind():
    """Floats, and views whose channels come last, are the same images."""
    last = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    scaled = (IMAGES * np.float32(2 / 255) - 1).astype(np.float32)
    bridges = []
    for x in (last.transpose(0, 3, 1, 2), scaled, scaled.astype(np.float64)):
        bridge = dsb.Bridge(x, net=SMALL, batch=8)
        assert bridge.source.shape == IMAGES.shape
        bridges.append(bridge)
    np.testing.assert_array_equal(bridges[0].source, IMAGES)
    np.testing.assert_array_equal(bridges[1].source, bridges[2].source)
    assert np.shares_memory(bridges[1].source, scaled)
    law = dsb.Gaussian.of(IMAGES)
    np.testing.assert_allclose(law.mean, scaled.reshape(60, -1).mean(axis=0), atol=1e-6)
    assert bridges[0].prior == law
    from_gaussian = dsb.Bridge(law, IMAGES, net=SMALL, batch=8)
    assert from_gaussian.shape == (1, 8, 8)
    assert from_gaussian.sample(2, direction="forward").shape == (2, 1, 8, 8)
    with pytest.warns(UserWarning, match="source: images are taken as .* 8 channels"):
        dsb.Bridge(last, net=dsb.MLP(8), batch=8)


def test_defaults_for_images():
    bridge = dsb.Bridge(IMAGES)
    s = bridge.settings
    told = (s.batch, s.learning_rate, s.lr_schedule, s.clip, s.ema, s.precision, s.output)
    assert told == (128, 1e-4, "constant", 1.0, 0.999, "float32", "drift")
    assert bridge.net == Graph(dsb.UNet().build((1, 8, 8)))
    assert dsb.info()["precisions"] == _core.precisions()
    assert "float32" in repr(bridge)
    mlp = dsb.Bridge(IMAGES, net=dsb.MLP(16)).settings
    assert (mlp.batch, mlp.learning_rate, mlp.lr_schedule) == (512, 3e-3, "cosine")
    assert (mlp.clip, mlp.ema) == (0.0, 0.0)
    none = dsb.Bridge(IMAGES, net=SMALL, clip=0, ema=0).settings
    assert (none.clip, none.ema) == (0.0, 0.0)


BAD = {
    "no channels": (IMAGES[:, 0], {}, r"source: .*\(60, 8, 8\); write x\[:, None\] for grey"),
    "one image": (IMAGES[:1], {}, "source: expected at least 2 rows"),
    "no pixels": (IMAGES[:, :, :0], {}, "source: expected images of at least one pixel"),
    "rows": (IMAGES.reshape(60, -1), {"net": SMALL}, "net: a UNet needs images.*rows of 64"),
    "another size": (IMAGES, {"prior": OTHERS[:, :, :4]}, r"prior: expected images \[n, 1, 8, 8\]"),
    "rows at one end": (IMAGES, {"prior": OTHERS.reshape(50, -1)}, "prior: expected images"),
    "images at one end": (IMAGES.reshape(60, -1), {"prior": OTHERS}, r"prior: expected rows \[n, 64"),
    "a Gaussian too short": (IMAGES, {"prior": dsb.Gaussian([0.0, 0], 1)}, "prior: .*64, got 2"),
    "halvings": (
        IMAGES[:, :, :6],
        {"net": dsb.UNet(multipliers=(1, 2, 2))},
        r"net: 3 multipliers halve images 2 times, which 6 x 8 .*8 x 8 would do, or 2 multipliers",
    ),
    "condition": (IMAGES, {"net": dsb.UNet(cond_channels=1)}, "net: it reads 'cond'"),
    "label": (IMAGES, {"net": dsb.UNet(classes=3)}, "net: it reads 'label'"),
    "attention": (
        IMAGES,
        {"net": dsb.UNet(attention_resolutions=(5,))},
        "attention_resolutions: the levels of 8 x 8 images have heights 8, 4, got 5",
    ),
    "precision": (IMAGES, {"precision": "bf61"}, "precision: .*did you mean 'bf16'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bridges_that_are_refused(case):
    x, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        dsb.Bridge(x, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dsb.UNet(48), "channels: expected a multiple of 32.* such as 32 or 64, got 48"),
        (lambda: dsb.UNet(32, heads=3, multipliers=(1,)), "heads: 32 channels cannot be split"),
        (lambda: dsb.UNet(attention_resolutions="16,8"), "attention_resolutions: .*'168'"),
        (lambda: dsb.UNet(multipliers=()), "multipliers: expected 1 to 12 levels, got 0"),
        (lambda: dsb.UNet(resample="avg"), "resample: expected one of 'conv', 'plain'"),
        (lambda: dsb.UNet(dropout=1.0), r"dropout: expected a number in \[0, 1\)"),
        (lambda: dsb.UNet(dropout=1 - 1e-12), "dropout: expected a number that float32 tells"),
        (lambda: dsb.UNet(blocks=0), "blocks: .*at least 1"),
        (lambda: dsb.UNet(classes=0), "classes: .*at least 1"),
        (
            lambda: dsb.UNet().build((9, 1024, 1024)),
            "images of up to 4194304 numbers, got 9 x 1024",
        ),
    ],
)
def test_nets_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_levels():
    wanted = {28: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 8: (1, 2),
              7: (1,), 30: (1, 2)}  # fmt: skip
    for side, multipliers in wanted.items():
        assert dsb.UNet().levels((side, side)) == multipliers
    assert dsb.UNet().levels((32, 12)) == (1, 2)
    assert dsb.UNet.mnist() == dsb.UNet(multipliers=[1, 2, 2], attention_resolutions="168")
    assert Graph(dsb.UNet.mnist().build((1, 28, 28))) == Graph(dsb.UNet().build((1, 28, 28)))
    assert repr(dsb.UNet(32)) == "UNet(channels=32)"


def test_precision_that_the_machine_has_not(monkeypatch, tmp_path):
    monkeypatch.setattr(_core, "precisions", lambda: ["float32"])
    monkeypatch.setattr(dsb._build, "_warned", set())
    with pytest.warns(UserWarning, match="precision: .*'bf16'; computing in float32") as caught:
        bridge = small(precision="bf16")
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(precision="bf16")  # once
    assert "float32 in place of bf16" in repr(bridge)
    assert bridge.settings.precision == "bf16"
    bridge.fit(1, 2, progress=False)
    bridge.save(tmp_path / "a")
    monkeypatch.undo()
    if "bf16" in LOW:
        with pytest.warns(
            UserWarning, match="made with .*precision float32; with .*precision bf16"
        ):
            again = dsb.load(tmp_path / "a")
        assert "bf16" in repr(again)
        assert "in place" not in repr(again)
    assert dsb.load(tmp_path / "a").settings == bridge.settings


def test_large_images_go_by_pairs():
    x = np.zeros((4, 1, 128, 128), np.float32)
    x[1:] = np.linspace(-1, 1, 128)
    net = dsb.UNet(32, (1, 1), blocks=1)
    assert dsb.Bridge(x, net=net, batch=4, antithetic=True).microbatch == 2


# ---- weights ----


def test_weights_move(tmp_path):
    bridge, other = small(), small(seed=9)
    bridge.fit(1, 2, progress=False)
    weights = bridge.state_dict("backward")
    assert {name: w.shape for name, w in weights.items()} == bridge.net.parameters
    assert weights["input_blocks.0.0.weight"].shape == (32, 1, 3, 3)
    assert weights["middle_block.1.qkv.weight"].shape == (192, 64, 1)
    assert other.load_state_dict("backward", weights) == ([], [])
    for name, w in other.state_dict("backward").items():
        np.testing.assert_array_equal(w, weights[name], strict=True)
    bridge.save_state_dict("backward", tmp_path / "ema", ema=True)
    third = small(seed=10)
    third.load_state_dict("backward", tmp_path / "ema")
    np.testing.assert_array_equal(third.sample(3, seed=0), bridge.sample(3, seed=0))
    double = {name: w.astype(np.float64) for name, w in weights.items()}
    half = {name: w.astype(np.float16) for name, w in weights.items()}
    for given in (double, half):
        third.load_state_dict("backward", given)
        for name, w in third.state_dict("backward").items():
            np.testing.assert_array_equal(w, given[name].astype(np.float32), strict=True)


def test_weights_move_to_and_from_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch_unet import TorchUNet

    torch.manual_seed(0)
    model = TorchUNet(1, 8, 32, (1, 2), 1, heads=2, dropout=0.2).eval()
    bridge = small(output="mean")
    bridge.load_state_dict("backward", model.state_dict())
    bridge.load_state_dict("forward", {k: v.bfloat16() for k, v in model.state_dict().items()})
    for name, w in bridge.state_dict("forward").items():
        np.testing.assert_array_equal(w, model.state_dict()[name].bfloat16().float().numpy())
    bridge.load_state_dict("forward", dict(model.named_parameters()))
    x = (IMAGES[:5] * np.float32(2 / 255) - 1).astype(np.float32)
    g, times = bridge.schedule.steps, bridge.schedule.times
    drift = bridge.drift(x, times[1])
    tau = torch.full((5,), float(np.float32(1000 * times[1] / times[-1])))
    with torch.no_grad():
        expected = (model(torch.from_numpy(x), tau).numpy() - x) / g[0]
    close(drift, expected, 1e-4)
    back = {k: torch.from_numpy(v) for k, v in bridge.state_dict("forward").items()}
    model.load_state_dict(back)
    bridge.save_state_dict("forward", tmp_path / "a")
    from safetensors.torch import load_file

    for name, tensor in load_file(tmp_path / "a").items():
        assert torch.equal(tensor, back[name])


def test_weights_that_do_not_fit(tmp_path):
    bridge = small()
    bridge.fit(1, 2, progress=False)
    before = planes(bridge)
    good = bridge.state_dict("forward")
    short = {k: v for k, v in good.items() if not k.startswith("out.")}
    odd = short | {"module.a": good["out.2.bias"], "time_embed.0.bias": np.zeros(5, np.float32)}
    (tmp_path / "text").write_text("weights")
    bridge.save(tmp_path / "whole")
    for weights, message in [
        (short, r"missing: out.0.weight, out.0.bias, out.2.weight and 1 more$"),
        (odd, r"missing: .*; unexpected: module.a; of another shape: time_embed.0.bias .*\(5,\)"),
        (good | {"out.2.bias": np.full(1, np.nan)}, r"weights\['out.2.bias'\]: .*NaN"),
        (tmp_path / "text", "not a safetensors file"),
        (tmp_path / "whole", r"whole bridge; read it with dsb.load"),
    ]:
        with pytest.raises(ValueError, match=message):
            bridge.load_state_dict("forward", weights)
    with pytest.raises(TypeError, match=r"weights\['out.2.bias'\]: expected float16"):
        bridge.load_state_dict("forward", good | {"out.2.bias": np.ones(1, int)})
    with pytest.raises(TypeError, match="weights: expected a dict of arrays or the path"):
        bridge.load_state_dict("forward", 3)
    with pytest.raises(FileNotFoundError):
        bridge.load_state_dict("forward", tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        bridge.save_state_dict("forward", tmp_path)
    assert_same(planes(bridge), before)
    zero = {k: np.zeros_like(v) for k, v in odd.items()}
    left = bridge.load_state_dict("forward", zero, strict=False)
    assert set(left.missing) == {k for k in good if k.startswith("out.")} | {"time_embed.0.bias"}
    assert left.unexpected == ["module.a", "time_embed.0.bias"]
    for name, w in bridge.state_dict("forward").items():
        np.testing.assert_array_equal(w, good[name] if name in left.missing else zero[name])


def test_files_without_precision_still_load():
    """Written before there were images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = dsb.load(GOLDEN / "format1.safetensors")
    assert bridge.settings.precision == "float32"
    assert bridge.shape == (2,)
    assert bridge.iteration == 1
    np.testing.assert_allclose(bridge.sample(5, seed=2), FORMAT_1, rtol=1e-4)
    bridge.fit(1, 3, progress=False)


FORMAT_1 = np.array([[7.2863674, 3.53773], [1.2344033, -4.23975], [-7.4441204, -0.21222349],
                     [-4.7601643, 9.211151], [-8.336629, -0.08986928]])  # fmt: skip


def test_the_example():
    """What README.md says about images runs."""
    pytest.importorskip("matplotlib")
    readme = Path(__file__).parent.parent / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not here")
    text = readme.read_text()
    code = text.split("## Images", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    code = code.replace("ipf=2, steps=400", "ipf=1, steps=2").replace("5000", "50")
    assert "steps=2)" in code
    oracles.run_python(code)
