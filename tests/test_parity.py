"""The core's nets and its training loop against NumPy and PyTorch with the same weights and batches.

The batches are drawn again from the counters (see `oracles.Training`), so that ten steps of both
half-bridges check labels, weights, targets, noise, order of reading, clip, Adam and average at once.
"""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import oracles
import pytest

from dsb import _core

GOLDEN = Path(__file__).parent / "golden"
STEPS = 10
NETS = {
    "official": oracles.official_mlp(2),
    "residual": oracles.mlp(2, 24, depth=3, residual=True),
}


def close(got, expected, tolerance):
    """Greatest deviation relative to the greatest number; NaN fails."""
    error = np.abs(np.asarray(got, np.float64) - expected).max()
    assert error <= tolerance * np.abs(expected).max()


def close_on_average(got, expected, tolerance):
    """The same of the root mean squares: Adam blows up the rounding of a few tiny gradients."""
    error = np.sqrt(((np.asarray(got, np.float64) - expected) ** 2).mean())
    assert error <= tolerance * np.sqrt((np.asarray(expected) ** 2).mean())


# ---- golden values of the released network ----


def golden():
    """Net, weights and inputs of tests/golden, by its recipe."""
    net = _core.Net(oracles.official_mlp(2))
    theta = np.zeros(net.plane)
    for p in net.parameters:
        n = int(np.prod(p["shape"]))
        s = np.sin(0.7 * np.arange(n) + sum(p["name"].encode()) % 97)
        s = s / np.sqrt(n / p["shape"][0]) if len(p["shape"]) > 1 else 0.05 * s
        theta[p["offset"] : p["offset"] + n] = s
    facts = json.loads((GOLDEN / "mlp.json").read_text())
    x = np.sin(0.37 * np.arange(10)).reshape(5, 2).astype(np.float32)
    y = np.sin(0.53 * np.arange(10) + 1.0).reshape(5, 2)
    return net, theta, x, y, np.array(facts["t"], np.float32), facts


def test_golden_output_and_gradients():
    net, theta, x, y, t, facts = golden()
    assert net.n_parameters == facts["parameters"] == 26498
    expected = np.load(GOLDEN / "mlp_output.npy")
    out = net.forward(theta.astype(np.float32), x, t)
    close(out, expected, 1e-5)
    assert abs(((out - y) ** 2).mean() / facts["loss"] - 1.0) < 2e-6
    dy = (2.0 * (expected - y) / 10).astype(np.float32)
    _, grad = net.gradient(theta.astype(np.float32), x, t, dy)
    with (GOLDEN / "mlp.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {p["name"] for p in net.parameters} == set(rows)
    largest = max(float(row["grad_norm"]) for row in rows.values())
    for p in net.parameters:
        n, row = int(np.prod(p["shape"])), rows[p["name"]]
        assert "x".join(str(s) for s in p["shape"]) == row["shape"]
        g = grad[p["offset"] : p["offset"] + n].astype(np.float64)
        norm = float(row["grad_norm"])
        assert abs(np.linalg.norm(g) - norm) < 1e-4 * norm + 1e-7 * largest
        dot = g @ np.sin(0.11 * np.arange(n))
        assert abs(dot - float(row["grad_dot_sin"])) < 3e-4 * norm + 1e-7 * largest


def test_golden_ten_losses():
    net, theta, x, y, t, facts = golden()
    adam = oracles.Adam64(theta, rate=1e-4)
    losses = []
    for _ in range(STEPS):
        out = net.forward(adam.theta.astype(np.float32), x, t)
        losses.append(((out - y) ** 2).mean())
        dy = (2.0 * (out - y) / 10).astype(np.float32)
        adam.step(net.gradient(adam.theta.astype(np.float32), x, t, dy)[1].astype(np.float64))
    assert np.abs(np.array(losses) / facts["ten_losses"] - 1.0).max() < 5e-6


# ---- ten steps of both half-bridges ----

DATA = np.random.default_rng(8).normal(size=(13, 2)).astype(np.float32) * [1.0, 0.5]
OTHER = np.random.default_rng(9).normal(size=(7, 2)).astype(np.float32) + 1.0
FACTOR = np.array([[0.8, 0.0], [0.3, 0.6]], np.float32)
UNEVEN = np.array([0.05, 0.2, 0.1])
EVEN = np.array([0.1, 0.25, 0.1])
TRAINING = {"rate": 3e-3, "clip": 0.0, "decay": 0.0, "cosine": False}

CASES = {
    "closed form": ("residual", {}, {}),
    "official net": ("official", {}, {"rate": 1e-3}),
    "everything on": (
        "residual",
        {"reuse": 3, "antithetic": True, "seed": 2**40 + 5},
        {"clip": 0.3, "decay": 0.9, "cosine": True},
    ),
    "simulated": ("residual", {"closed_form": False}, {"decay": 0.5}),
    "simplified": ("residual", {"objective": "simplified", "seed": 3}, {"cosine": True}),
    "simplified, simulated, step": (
        "residual",
        {"objective": "simplified", "closed_form": False, "output": "step", "antithetic": True},
        {"clip": 0.1},
    ),
    "mean": ("residual", {"output": "mean", "reuse": 2}, {"decay": 0.9}),
    "Gaussian ends": (
        "residual",
        {"source": (np.array([0.5, -0.5], np.float32), FACTOR), "prior": "gaussian"},
        {"clip": 1.0},
    ),
    "official convention": (
        "residual",
        {"convention": "official", "output": "step", "steps": EVEN, "closed_form": False},
        {"decay": 0.9, "rate": 1e-3},
    ),
    "bridge": ("residual", {"objective": "bridge"}, {"decay": 0.9}),
    "bridge, simulated": (
        "residual",
        {"objective": "bridge", "closed_form": False, "antithetic": True, "reuse": 2},
        {},
    ),
    "bridge, Brownian, step": (
        "residual",
        {"objective": "bridge", "reference_precision": 0.0, "output": "step", "batch": 160},
        {"rate": 1e-3},
    ),
    "bridge from independent ends": (
        "residual",
        {"objective": "bridge", "first_coupling": "independent", "seed": 11},
        {},
    ),
    "bridge from independent Gaussians": (
        "residual",
        {
            "objective": "bridge",
            "first_coupling": "independent",
            "source": (np.array([0.5, -0.5], np.float32), FACTOR),
            "prior": "gaussian",
            "antithetic": True,
        },
        {},
    ),
    "bridge between rows": (
        "residual",
        {
            "objective": "bridge",
            "first_coupling": "pairs",
            "prior": (DATA[::-1] + 1.0).astype(np.float32),
            "reuse": 2,
        },
        {},
    ),
    "bridge of one step": (
        "residual",
        {"objective": "bridge", "steps": np.array([0.3]), "seed": 1},
        {"rate": 1e-3},
    ),
    "one step": ("residual", {"steps": np.array([0.3])}, {"decay": 0.9}),
    "Brownian": ("residual", {"reference_precision": 0.0, "refresh": 100}, {}),
    "more than a chunk of paths": ("residual", {"batch": 160, "antithetic": True}, {"decay": 0.9}),
    "bytes, odd microbatches": (
        "residual",
        {
            "source": np.random.default_rng(7).integers(0, 256, size=(11, 2), dtype=np.uint8),
            "source_scale": 1 / 64,
            "source_shift": -2.0,
            "microbatch": 3,
            "lanes": 2,
        },
        {},
    ),
}
CORE_ONLY = ("source_scale", "source_shift", "microbatch", "lanes")


class NumpyLearner:
    """One direction's net under `oracles.Adam64`."""

    def __init__(self, ops, theta, rate, clip, decay, cosine, fresh=True):
        self.net, self.cosine = oracles.Net64(ops), cosine
        self.adam = oracles.Adam64(
            theta.astype(np.float64), rate, clip=clip, decay=decay, fresh=fresh
        )

    def step(self, batch, number, total):
        if number == 0:
            self.adam.begin()
        out = self.net.forward(self.adam.theta, batch.x, batch.t)
        error, w = out - batch.target, batch.weight[:, None]
        grad, _ = self.net.backward(self.adam.theta, 2.0 * w * error / error.size)
        factor = 0.5 * (1.0 + np.cos(np.pi * number / total)) if self.cosine else 1.0
        return (w * error**2).mean(), self.adam.step(grad, factor)

    def serve(self, x, label):
        """What the other half-bridge simulates with: the average where there is one."""
        plane = self.adam.ema if self.adam.decay else self.adam.theta
        return self.net.forward(plane, x, np.full(len(x), label))

    def planes(self):
        return {"theta": self.adam.theta, "m": self.adam.m, "v": self.adam.v, "ema": self.adam.ema}


class TorchLearner:
    """The same with PyTorch's own layers, Adam and clip_grad_norm_, in float64."""

    def __init__(self, ops, theta, rate, clip, decay, cosine, fresh=True):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        self.torch.set_num_threads(1)
        self.net, self.clip, self.decay = oracles.Net64(ops), clip, decay
        self.model = torch_model(ops).double()
        self.load(self.model, theta)
        self.average = torch_model(ops).double()
        self.load(self.average, theta)
        self.share = 1.0
        self.optimiser = self.torch.optim.Adam(self.model.parameters(), lr=rate)
        self.cosine, self.rate, self.fresh = cosine, rate, fresh

    def load(self, model, theta):
        for name, p in model.named_parameters():
            value = self.net.get(theta, model.core_name(name)).astype(np.float64)
            p.data = self.torch.from_numpy(value.copy())

    def step(self, batch, number, total):
        torch = self.torch
        if self.cosine:
            factor = 0.5 * (1.0 + np.cos(np.pi * number / total))
            self.optimiser.param_groups[0]["lr"] = self.rate * factor
        x, target, t, w = (torch.from_numpy(np.ascontiguousarray(a, np.float64)) for a in
                           (batch.x, batch.target, batch.t, batch.weight))  # fmt: skip
        loss = (w[:, None] * (self.model(x, t) - target) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        bound = self.clip if self.clip > 0.0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound)
        self.optimiser.step()
        if self.fresh and number == 0:
            self.share = 0.0  # what the sums below add up to, so far
            for a in self.average.parameters():
                a.data = torch.zeros_like(a.data)
        old, self.share = self.share, self.decay * self.share + 1.0 - self.decay
        for a, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
            a.data = (self.decay * old * a.data + (1.0 - self.decay) * p.data) / self.share
        return loss.item(), norm.item()

    def serve(self, x, label):
        model = self.average if self.decay else self.model
        with self.torch.no_grad():
            t = self.torch.full((len(x),), label, dtype=self.torch.float64)
            return model(self.torch.from_numpy(x), t).numpy()

    def planes(self):
        found = {}
        for which in ("theta", "m", "v", "ema"):
            model = self.average if which == "ema" else self.model
            plane = np.zeros(self.net.plane)
            for name, p in model.named_parameters():
                state = self.optimiser.state[p] if which in "mv" else {}
                value = {"m": state.get("exp_avg"), "v": state.get("exp_avg_sq")}.get(which, p)
                self.net.get(plane, model.core_name(name))[...] = value.detach().numpy()
            found[which] = plane
        return found


def torch_model(ops):
    """nn.Module of one of NETS, written as a user of PyTorch would."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    nn = torch.nn
    wide = {op["name"]: op.get("width") for op in ops}
    dim = wide["x"]

    def embed(t, width):
        frequency = torch.exp(-np.log(1e4) * torch.arange(width // 2) / (width // 2 - 1)).to(t)
        angle = t[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    class Official(nn.Module):
        def __init__(self):
            super().__init__()

            def layers(*widths):
                return nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

            self.x_encoder, self.t_encoder = layers(dim, 16, 32), layers(16, 16, 32)
            self.net = layers(64, 128, 128, dim)

        def core_name(self, name):
            encoder, rest = name.split(".", 1)
            return f"{encoder}.layers.{rest}"

        def forward(self, x, t):
            def run(layers, h):
                for layer in layers[:-1]:
                    h = nn.functional.leaky_relu(layer(h), 0.01)
                return layers[-1](h)

            h = torch.cat([run(self.x_encoder, x), run(self.t_encoder, embed(t, 16))], dim=1)
            return run(self.net, h)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            width = wide["l0"]
            self.l0, self.out = nn.Linear(dim + 16, width), nn.Linear(width, dim)
            self.l1, self.m1 = nn.Linear(width, width), nn.Linear(width, width)
            self.l2, self.m2 = nn.Linear(width, width), nn.Linear(width, width)

        def core_name(self, name):
            return name

        def forward(self, x, t):
            act = nn.functional.silu
            h = act(self.l0(torch.cat([x, embed(t, 16)], dim=1)))
            h = h + self.m1(act(self.l1(h)))
            h = h + self.m2(act(self.l2(h)))
            return self.out(h)

    return Official() if "h" in wide else Residual()


@pytest.mark.parametrize("name", list(NETS))
def test_torch_net(name):
    """Outputs, gradients and vjp of one net in PyTorch and in the core."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ops = NETS[name]
    net, shape = _core.Net(ops), oracles.Net64(ops)
    rng = np.random.default_rng(4)
    theta = net.initial(6)
    x, dy = (rng.normal(size=(37, 2)).astype(np.float32) for _ in range(2))
    t = rng.uniform(0, 1000, size=37).astype(np.float32)
    model = torch_model(ops).double()
    for key, p in model.named_parameters():
        value = shape.get(theta, model.core_name(key)).astype(np.float64)
        p.data = torch.from_numpy(value.copy())
    inputs = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    out = model(inputs, torch.from_numpy(t.astype(np.float64)))
    (out * torch.from_numpy(dy.astype(np.float64))).sum().backward()
    close(net.forward(theta, x, t), out.detach().numpy(), 2e-5)
    grad = net.gradient(theta, x, t, dy)[1]
    for key, p in model.named_parameters():
        close(shape.get(grad, model.core_name(key)), p.grad.numpy(), 5e-5)
    close(net.vjp(theta, x, t, dy)[1], inputs.grad.numpy(), 5e-5)


@pytest.mark.parametrize("learner", [NumpyLearner, TorchLearner])
@pytest.mark.parametrize("case", list(CASES))
def test_ten_steps(case, learner):
    """Ten steps of three half-bridges: losses, gradient norms and all planes."""
    name, changed, training = CASES[case]
    training = TRAINING | training
    ops, net = NETS[name], _core.Net(NETS[name])
    setting = {
        "steps": UNEVEN,
        "source": DATA.astype(np.float32),
        "prior": OTHER.astype(np.float32),
        "reference_mean": np.array([0.2, -0.1], np.float32),
        "reference_precision": 0.5,
        "refresh": 4,
        "batch": 8,
    } | changed
    training["fresh"] = setting.get("convention") != "official"
    if isinstance(setting["prior"], str):
        setting["prior"] = (np.array([0.1, 0.3], np.float32), 1.2 * FACTOR)
    given = dict(setting)
    for end in ("source", "prior"):
        if isinstance(given[end], tuple):
            given[f"{end}_mean"], given[f"{end}_factor"] = given[end]
            given[end] = None
    bridge = _core.Bridge(
        net,
        **given,
        learning_rate=training["rate"],
        clip=training["clip"],
        ema=training["decay"],
        cosine=training["cosine"],
    )
    rows = setting["source"]
    if "source_scale" in setting:
        setting["source"] = rows * setting["source_scale"] + setting["source_shift"]
    oracle = oracles.Training(**{k: v for k, v in setting.items() if k not in CORE_ONLY})
    seed = oracle.seed
    learners = {}
    for number, direction in enumerate(("backward", "forward")):
        theta = oracles.initial_weights(oracles.Net64(ops), seed, number)
        assert np.abs(bridge.get_plane(direction, "theta") - theta).max() < 1e-7
        assert np.array_equal(bridge.get_plane(direction, "theta"), net.initial(seed, number))
        learners[direction] = learner(ops, net.initial(seed, number), **training)
    for half_bridge in range(3):
        direction, other = ("backward", "forward")[:: 1 if half_bridge % 2 == 0 else -1]
        if oracle.convention == "official" and half_bridge >= 2:  # a fresh net and optimiser
            learners[direction] = learner(ops, net.initial(seed, half_bridge), **training)
        serve = None if half_bridge == 0 else learners[other].serve
        bridge.begin(STEPS)
        while bridge.steps:
            bridge.run(3, 1.0)
        batches = oracle.batches(half_bridge, STEPS, serve)
        done = [learners[direction].step(b, i, STEPS) for i, b in enumerate(batches)]
        loss, norm = np.array(done).T
        got_loss, got_norm = bridge.log()
        assert len(got_loss) == len(loss) == STEPS
        assert np.abs(got_loss / loss - 1.0).max() < 1e-5, half_bridge
        assert np.abs(got_norm / norm - 1.0).max() < 5e-5, half_bridge
        for which, plane in learners[direction].planes().items():
            if which != "ema" or training["decay"]:
                close(bridge.get_plane(direction, which), plane, 2e-4)
                close_on_average(bridge.get_plane(direction, which), plane, 5e-5)


# ---- samples ----


@pytest.mark.parametrize("output", ["mean", "step", "drift"])
def test_paths(output):
    """Both directions, trained and not, retold step by step with the same noise."""
    ops, mean = NETS["residual"], np.array([0.2, -0.1], np.float32)
    net, reference = _core.Net(ops), oracles.Net64(ops)
    oracle = oracles.Training(UNEVEN, DATA, (mean, FACTOR), mean, 0.5, output=output)
    bridge = _core.Bridge(
        net,
        source=DATA.astype(np.float32),
        prior_mean=mean,
        prior_factor=FACTOR,
        reference_mean=mean,
        reference_precision=0.5,
        steps=UNEVEN,
        output=output,
        batch=64,
        ema=0.99,
    )
    seed, n = 2**33 + 1, 300
    word = oracles.stream_word
    oracle.seed = seed

    def retold(direction, x, grid, weights):
        times = np.concatenate([[0.0], np.cumsum(grid)])
        steps = list(range(len(grid)))
        backward = direction == "backward"
        states = [x]
        for j, k in enumerate(steps[::-1] if backward else steps):
            told = np.full(n, 1000.0 * times[k + 1 if backward else k] / times[-1])
            o = x + 0.0 if weights is None else reference.forward(weights, x, told)
            mean_of = {"mean": o, "step": x + o, "drift": x + grid[k] * o}[output]
            if weights is None:
                mean_of = oracle.reference(x, grid[k])
            z = oracles.normals(seed, word("sample", int(not backward)), j, 0, n, 2)
            x = mean_of + np.sqrt(2.0 * grid[k]) * z
            states.append(x)
        return np.stack(states, axis=1)

    def check(direction, start, weights, grid=UNEVEN, **more):
        got = bridge.sample(direction, seed, final_noise=True, paths=True, **more)
        expected = retold(direction, start, grid, weights)
        assert got.shape == expected.shape
        close(got, expected, 1e-5)
        assert np.array_equal(bridge.sample(direction, seed, final_noise=True, **more), got[:, -1])

    orders = [oracles.permutation(seed, word("start", 1), e, len(DATA)) for e in range(n // 13 + 1)]
    data = np.array([DATA[orders[i // 13][i % 13]] for i in range(n)])
    z = oracles.normals(seed, word("start", 2), 0, 0, n, 2)
    prior = z @ FACTOR.T.astype(np.float64) + mean
    check("forward", data, None, n=n)
    for direction in ("backward", "forward"):
        bridge.begin(50)
        bridge.run(50, 100.0)
        assert bridge.trained(direction)
    ema = {d: bridge.get_plane(d, "ema") for d in ("backward", "forward")}
    theta = {d: bridge.get_plane(d, "theta") for d in ema}
    assert all(np.abs(ema[d] - theta[d]).max() > 1e-3 for d in ema)
    check("forward", data, ema["forward"], n=n)
    check("backward", prior, ema["backward"], n=n)
    given = np.random.default_rng(3).normal(size=(n, 2)).astype(np.float32)
    check("backward", given, ema["backward"], x=given)
    if output == "drift":
        grid = np.array([0.1, 0.05, 0.05, 0.15])
        check("backward", prior, ema["backward"], grid, n=n, steps=grid)
        check("forward", data, ema["forward"], grid, n=n, steps=grid)


@pytest.mark.parametrize("output", ["mean", "step", "drift"])
def test_drift(output):
    """Drift per unit of time at the states of the grid, and between them where nets allow it."""
    ops, mean = NETS["residual"], np.array([0.2, -0.1], np.float32)
    net, reference = _core.Net(ops), oracles.Net64(ops)
    rows = DATA.astype(np.float32)
    bridge = _core.Bridge(net, source=rows, prior=rows, reference_mean=mean,
                          reference_precision=0.5, steps=UNEVEN, output=output, batch=64)  # fmt: skip
    times = np.concatenate([[0.0], np.cumsum(UNEVEN)])
    x = np.random.default_rng(5).normal(size=(130, 2)).astype(np.float32)
    close(bridge.drift("forward", x, np.full(130, 0.05, np.float32)), 0.5 * (mean - x), 1e-6)
    for _ in range(2):
        bridge.begin(30)
        bridge.run(30, 100.0)
    for direction, states in (("backward", (1, 2, 3)), ("forward", (0, 1, 2))):
        theta = bridge.get_plane(direction, "theta")
        for i in states:
            t = np.full(130, times[i])
            o = reference.forward(theta, x, 1000.0 * t / times[-1])
            g = UNEVEN[i - 1 if direction == "backward" else i]
            expected = {"mean": (o - x) / g, "step": o / g, "drift": o}[output]
            close(bridge.drift(direction, x, t.astype(np.float32)), expected, 2e-5)
        if output == "drift":
            t = np.linspace(0.0, times[-1], 130)
            expected = reference.forward(theta, x, 1000.0 * t / times[-1])
            close(bridge.drift(direction, x, t.astype(np.float32)), expected, 1e-4)
        else:
            with pytest.raises(ValueError, match="no state"):
                bridge.drift(direction, x, np.full(130, 0.1, np.float32))
