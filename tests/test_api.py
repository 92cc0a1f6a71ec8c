"""The Python surface: what it refuses and how, what fit means, and faults from outside."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import assert_equal_bits, planes, small

import dsb
from dsb import _core

X = dsb.datasets.toy("moons", 50)


def with_bad(value, row=13, column=1):
    x = X.copy()
    x[row, column] = value
    return x


class OnlyDLPack:
    """An array of some other library."""

    def __init__(self, x):
        self._x = x

    def __dlpack__(self, **kwargs):
        return self._x.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


# ---- bad input: what is made (argument, error, message that names it, what was wanted, what came) ----

BAD_BRIDGES = {
    "one axis": (
        (X[:, 0],),
        {},
        ValueError,
        r"source: expected shape \[n, d\].*\(50,\).*x\[:, None\]",
    ),
    "images without channels": (
        (X.reshape(25, 2, 2),),
        {},
        ValueError,
        r"source: .*\(25, 2, 2\).*x\[:, None\] for grey.*reshape\(len",
    ),
    "five axes": ((X.reshape(5, 5, 2, 2, 1),), {}, ValueError, r"source: .*reshape\(len"),
    "a number": ((3.0,), {}, ValueError, r"source: .*got \(\)"),
    "nothing": ((None,), {}, TypeError, "source: expected numbers.*NoneType"),
    "text": (("moons",), {}, ValueError, "source: expected a Gaussian or an array.*'moons'"),
    "ragged rows": (([[1.0, 2], [3]],), {}, TypeError, "source: expected an array"),
    "objects": ((X.astype(object),), {}, TypeError, "source: .*dtype object"),
    "whole numbers": ((X.astype(int),), {}, TypeError, r"source: .*int64.*astype\(np.float32\)"),
    "truths": ((X > 0,), {}, TypeError, "source: .*bool"),
    "complex": ((X + 1j,), {}, TypeError, "source: .*complex"),
    "no rows": ((X[:0],), {}, ValueError, r"source: expected at least 2 rows.*\(0, 2\)"),
    "one row": ((X[:1],), {}, ValueError, r"source: expected at least 2 rows.*\(1, 2\)"),
    "no columns": ((X[:, :0],), {}, ValueError, r"source: expected at least one column.*\(50, 0\)"),
    "NaN": (
        (with_bad(np.nan),),
        {},
        ValueError,
        "source: expected finite.* nan in row 13, column 1",
    ),
    "infinity": ((X, with_bad(-np.inf)), {}, ValueError, "prior: expected finite.*-inf in row 13"),
    "too large": (
        (X.astype(float) * np.where(np.arange(50) == 7, 1e300, 1)[:, None],),
        {},
        ValueError,
        "source: expected numbers within float32's range, got .*e\\+300 in row 7",
    ),
    "equal rows": (
        (np.ones((5, 2), np.float32),),
        {},
        ValueError,
        "source: expected rows that differ",
    ),
    "dimensions": (
        (X, X[:, :1]),
        {},
        ValueError,
        r"prior: expected 2 columns, got shape \(50, 1\)",
    ),
    "Gaussian's dimension": ((X, dsb.Gaussian([0.0] * 3, 1)), {}, ValueError, "prior: .*2, got 3"),
    "prior's name": ((X, "gausian"), {}, ValueError, "prior: .*'gausian'; did you mean 'gaussian'"),
    "schedule": (
        (X,),
        {"schedule": [0.1, 0.2]},
        TypeError,
        r"schedule: .*list; write dsb.Schedule\(",
    ),
    "reference": ((X,), {"reference": "ou"}, TypeError, r"reference: .*dsb.OU\(mean, var\).*str"),
    "reference's mean": (
        (X,),
        {"reference": dsb.OU([1, 2, 3], 1)},
        ValueError,
        "reference: .*2 .*got 3",
    ),
    "steps of a short reference": (
        (X,),
        {"reference": dsb.OU(0, 0.1), "schedule": dsb.Schedule.constant(3, 0.5)},
        ValueError,
        "schedule: expected steps below 2 v = 0.2.*got a step of 0.5",
    ),
    "net": ((X,), {"net": "mlp"}, TypeError, "net: expected dsb.MLP.*'mlp'"),
    "net's class": ((X,), {"net": dsb.MLP}, TypeError, r"net: .*write dsb.MLP\(\)"),
    "net's width": ((X,), {"net": dsb.MLP().build(3)}, ValueError, "net: .*width 2.*got 3"),
    "convention": (
        (X,),
        {"convention": "gird"},
        ValueError,
        "convention: .*'gird'; did you mean 'grid'",
    ),
    "nothing for a name": ((X,), {"objective": None}, TypeError, "objective: expected one of"),
    "nothing for a number": ((X,), {"refresh": None}, TypeError, "refresh: .*got None"),
    "objective": (
        (X,),
        {"objective": "sdsb"},
        ValueError,
        "objective: .*'sdsb'; did you mean 'dsb'",
    ),
    "output": ((X,), {"output": 1}, TypeError, "output: expected one of 'mean', .*got int"),
    "official steps": (
        (X,),
        {"convention": "official", "schedule": dsb.Schedule([1, 2])},
        ValueError,
        r"schedule: .*symmetric.*Schedule\(\[1, 2\]\)",
    ),
    "closed form": (
        (X,),
        {"closed_form": "no"},
        TypeError,
        "closed_form: expected True or False, got 'no'",
    ),
    "batch": ((X,), {"batch": 0}, ValueError, "batch: .*at least 1, got 0"),
    "batch's type": ((X,), {"batch": 64.0}, TypeError, "batch: .*whole number, got 64.0"),
    "odd batch in pairs": ((X,), {"antithetic": True, "batch": 63}, ValueError, "antithetic.*63"),
    "lanes": ((X,), {"lanes": 3}, ValueError, "lanes .*power of two.*got 3"),
    "microbatch": ((X,), {"microbatch": -2}, ValueError, "microbatch: .*at least 1, got -2"),
    "reuse": ((X,), {"reuse": 256}, ValueError, "reuse: .*at most 255"),
    "cache": ((X,), {"cache_bytes": 10}, ValueError, "cache_bytes.*too small"),
    "learning rate": (
        (X,),
        {"learning_rate": 0},
        ValueError,
        r"learning_rate: .*in \(0, 1e\+06\], got 0",
    ),
    "learning rate's type": (
        (X,),
        {"learning_rate": "x"},
        TypeError,
        "learning_rate: .*number, got 'x'",
    ),
    "rate schedule": ((X,), {"lr_schedule": "cos"}, ValueError, "lr_schedule: .*'cosine'.*'cos'"),
    "clip": ((X,), {"clip": -1}, ValueError, "clip: .*above 0, got -1"),
    "ema": ((X,), {"ema": 1.0}, ValueError, r"ema: expected a number in \[0, 1\), got 1.0"),
    "betas": ((X,), {"betas": 0.9}, TypeError, "betas: expected a pair.*0.9"),
    "a beta": ((X,), {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]: .*got 1.0"),
    "eps": ((X,), {"eps": 0}, ValueError, "eps: .*above 0"),
    "negative average": ((X,), {"ema": -0.1}, ValueError, r"ema: .*\[0, 1\), got -0.1"),
    "average below float32": ((X,), {"ema": 1e-60}, ValueError, "ema: .*float32.*got 1e-60"),
    "average that rounds to 1": (
        (X,),
        {"ema": 0.9999999999},
        ValueError,
        "ema: .*float32.*got 0.9999999999",
    ),
    "beta that rounds to 1": (
        (X,),
        {"betas": (0.99999999, 0.999)},
        ValueError,
        r"betas\[0\]: .*float32.*got 0.99999999",
    ),
    "eps below float32": ((X,), {"eps": 1e-50}, ValueError, "eps: .*float32.*got 1e-50"),
    "clip beyond float32": ((X,), {"clip": 1e39}, ValueError, "clip: .*float32.*got 1e\\+39"),
    "large learning rate": ((X,), {"learning_rate": 2e6}, ValueError, r"learning_rate: .*2000000"),
    "a whole number beyond all": ((X,), {"clip": 10**400}, ValueError, "clip: .*finite"),
    "long value": ((X,), {"batch": "x" * 10**6}, TypeError, r"batch: .*xxx \.\.\.$"),
    "long number": ((X,), {"batch": 10**5000}, ValueError, "batch: .*at most .*type int"),
    "masked": (
        (np.ma.masked_array(X, X > 10),),
        {},
        ValueError,
        r"source: .*without masked entries, got \d+",
    ),
    "device": ((X,), {"device": "gpu"}, ValueError, "device: .*'gpu'"),
    "absent device": ((X,), {"device": "cuda"}, dsb.DeviceError, "device: .*no CUDA.*'cuda'"),
    "seed": ((X,), {"seed": -1}, ValueError, "seed: .*at least 0, got -1"),
    "memory": (
        (np.tile(X, (1, 50)),),
        {"refresh": 4000, "batch": 2**20},
        MemoryError,
        r"(MiB|GiB).*needed.*refresh=\d+ would fit",
    ),
    "memory of one row's windows": (
        (np.tile(X, (1, 500)),),
        {"refresh": 2**24, "batch": 1},
        MemoryError,
        r"needed.*; refresh=\d{3,} would fit",
    ),
    "memory of one step": (
        (np.tile(X, (1, 500)),),
        {"refresh": 1, "batch": 2**24},
        MemoryError,
        r"needed.*; batch=\d{3,}.* would fit",
    ),
}


@pytest.mark.parametrize("case", BAD_BRIDGES)
def test_bridges_that_are_refused(case):
    arguments, options, error, message = BAD_BRIDGES[case]
    with pytest.raises(error, match=message):
        dsb.Bridge(*arguments, **options)


BAD_CALLS = {
    "neither n nor x": (lambda b: b.sample(), ValueError, "n: expected either n or x, got neither"),
    "both": (lambda b: b.sample(3, x=X), ValueError, "got both"),
    "no samples": (lambda b: b.sample(0), ValueError, "n: .*at least 1, got 0"),
    "samples by halves": (lambda b: b.sample(2.5), TypeError, "n: .*whole number, got 2.5"),
    "direction": (
        lambda b: b.sample(3, direction="back"),
        ValueError,
        "direction: .*'backward'.*'back'",
    ),
    "seed": (lambda b: b.sample(3, seed=-3), ValueError, "seed: .*got -3"),
    "starts as n": (lambda b: b.sample(X), TypeError, r"n: .*ndarray; write sample\(x="),
    "True paths": (lambda b: b.paths(True), TypeError, "start: expected a whole number, got True"),
    "no paths": (lambda b: b.paths(0), ValueError, "start: .*at least 1, got 0"),
    "paths' columns": (lambda b: b.paths(X[:, :1]), ValueError, "start: expected 2 columns"),
    "points": (lambda b: b.sample(x=X[:, :1]), ValueError, r"x: expected 2 columns.*\(50, 1\)"),
    "NaN": (lambda b: b.sample(x=with_bad(np.nan)), ValueError, "x: .*nan in row 13"),
    "no points": (lambda b: b.paths(X[:0]), ValueError, "start: expected at least one row"),
    "a flag": (
        lambda b: b.sample(3, final_noise=1),
        TypeError,
        "final_noise: expected True or False",
    ),
    "schedule": (
        lambda b: b.sample(3, schedule=[1.0]),
        TypeError,
        "schedule: expected a dsb.Schedule",
    ),
    "another T": (
        lambda b: b.sample(3, schedule=dsb.Schedule.constant(3, 0.5)),
        ValueError,
        "schedule: expected the T of training, 3, got 1.5",
    ),
    "time": (lambda b: b.drift(X, 3.1), ValueError, r"t: expected times in \[0, 3\], got 3.1"),
    "times": (lambda b: b.drift(X, [1.0, 2]), ValueError, r"t: .*shape \(50,\).*\(2,\)"),
    "time's type": (lambda b: b.drift(X, "now"), TypeError, "t: expected numbers"),
    "average": (lambda b: b.state_dict("backward", ema=True), ValueError, "ema: "),
    "iterations": (lambda b: b.fit(-1), ValueError, "ipf: .*at least 0, got -1"),
    "steps": (lambda b: b.fit(1, 0), ValueError, "steps: .*at least 1, got 0"),
    "steps without end": (lambda b: b.fit(1, 10**8), ValueError, "steps: .*at most"),
    "log_every": (lambda b: b.fit(1, log_every=0), ValueError, "log_every: .*at least 1"),
    "progress": (lambda b: b.fit(1, progress="no"), TypeError, "progress: .*True or False.*'no'"),
    "callback": (lambda b: b.fit(1, callback="print"), TypeError, "callback: .*'print'"),
    "weights": (
        lambda b: b.load_state_dict("backward", {}),
        ValueError,
        "weights: .*layers.0.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_calls_that_are_refused(trained, case):
    call, error, message = BAD_CALLS[case]
    before = planes(trained)
    with pytest.raises(error, match=message):
        call(trained)
    for name, plane in planes(trained).items():
        np.testing.assert_array_equal(plane, before[name])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dsb.Gaussian([0.0, np.nan], 1), ValueError, "mean: .*got nan"),
        (lambda: dsb.Gaussian([[0.0]], 1), ValueError, r"mean: .*\(1, 1\)"),
        (lambda: dsb.Gaussian("a", 1), TypeError, "mean: expected numbers"),
        (
            lambda: dsb.Gaussian([0.0, 0], 0),
            ValueError,
            "cov: expected positive variances, got 0.0",
        ),
        (lambda: dsb.Gaussian([0.0, 0], [1, -1]), ValueError, "cov: .*positive.*-1.0"),
        (
            lambda: dsb.Gaussian([0.0, 0], [1, 1, 1]),
            ValueError,
            r"cov: .*\(2,\) or \(2, 2\).*\(3,\)",
        ),
        (lambda: dsb.Gaussian([0.0, 0], np.eye(3)), ValueError, r"cov: .*\(3, 3\)"),
        (
            lambda: dsb.Gaussian([0.0, 0], [[1, 2], [2, 1]]),
            ValueError,
            "cov: .*definite.*eigenvalue -1",
        ),
        (lambda: dsb.Gaussian([0.0, 0], [[1, 0.5], [0, 1]]), ValueError, "cov: .*symmetric.*0.5"),
        (lambda: dsb.Gaussian(0, [1, np.inf]), ValueError, "cov: .*got inf"),
        (lambda: dsb.Gaussian.of(np.ones((3, 1))), ValueError, "data: expected rows that differ"),
        (lambda: dsb.Gaussian(0, 1).sample(0), ValueError, "n: .*at least 1"),
        (lambda: dsb.Gaussian(0, 1).sample(2**31), ValueError, "n: .*at most 2147483647"),
        (lambda: dsb.Gaussian([0] * 900, 1).sample(2**31 - 1), MemoryError, "n: .* would fit"),
        (lambda: dsb.Gaussian([1e39, 0], 1), ValueError, "mean: .*float32.*1e\\+39"),
        (lambda: dsb.Gaussian([0.0, 0], 1e-80), ValueError, "cov: .*float32.*1e-80"),
        (lambda: dsb.Schedule([1.0, 1e-31]), ValueError, r"steps: .*\[1e-30, 1e\+30\], got 1e-31"),
        (lambda: dsb.Schedule.constant(3, 1e31), ValueError, r"steps: .*1e\+31"),
        (lambda: dsb.OU(0, 0), ValueError, "var: .*above 0, got 0"),
        (lambda: dsb.OU(0, np.inf), ValueError, "var: .*got inf"),
        (lambda: dsb.OU([np.nan], 1), ValueError, "mean: .*got nan"),
        (lambda: dsb.MLP(width=0), ValueError, "width: .*at least 1"),
        (lambda: dsb.MLP(width=2.0), TypeError, "width: .*whole number"),
        (lambda: dsb.MLP(depth=0), ValueError, "depth: .*at least 1"),
        (lambda: dsb.MLP(embedding=7), ValueError, "embedding: expected an even number, got 7"),
        (lambda: dsb.MLP(activation="selu"), ValueError, "activation: .*did you mean 'silu'"),
        (lambda: dsb.MLP(slope=2), ValueError, "slope: "),
        (lambda: dsb.MLP(widths=[]), ValueError, "widths: .*got 0"),
        (lambda: dsb.MLP(8, widths=[8]), ValueError, "widths: .*both"),
        (lambda: dsb.MLP(widths=[8, 9], residual=True), ValueError, r"widths: .*equal.*\[8, 9\]"),
        (lambda: pickle.dumps(small()), TypeError, r"save\(\) and dsb.load\(\)"),
        (lambda: dsb.set_num_threads(0), ValueError, "threads: .*at least 1, got 0"),
        (lambda: dsb.set_num_threads(300), ValueError, "threads: .*at most 256, got 300"),
        (lambda: dsb.set_num_threads(True), TypeError, "threads: .*True"),
        (lambda: dsb.set_num_threads("2"), TypeError, "threads: .*'2'"),
        (lambda: dsb.nonsense, AttributeError, "nonsense"),
    ],
)
def test_objects_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- good input ----


def unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)[1:]
    copy = raw.view(x.dtype).reshape(x.shape)
    copy[...] = x
    assert not copy.flags.aligned
    return copy


def test_arrays_of_every_kind_are_taken(trained):
    x = np.asfortranarray(X)
    for given in (
        x,
        X.astype(np.float64),
        X[::-1][::-1],
        X.tolist(),
        OnlyDLPack(X),
        X.astype(">f4"),
        unaligned(X),
        np.ma.masked_array(X),
    ):
        bridge = small(given)
        np.testing.assert_array_equal(bridge.source, X)
        assert bridge.source.dtype == np.float32
    frozen = X.copy()
    frozen.flags.writeable = False
    assert np.shares_memory(small(X).source, X)  # no needless copy
    assert np.shares_memory(small(frozen).source, frozen)
    np.testing.assert_array_equal(small(X.astype(np.float16)).source, X.astype(np.float16))


def test_bytes_are_read_from_minus_one_to_one():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 5), dtype=np.uint8)
    scaled = (image * np.float32(2 / 255) - 1).astype(np.float32)
    a, b = (small(x, dsb.Gaussian(np.zeros(5), 0.3), reference=dsb.OU(0, 0.3),
                  schedule=dsb.Schedule.constant(4, 0.05)) for x in (image, scaled))  # fmt: skip
    assert a.source.dtype == np.uint8
    np.testing.assert_allclose(dsb.Gaussian.of(image).mean, scaled.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(dsb.Gaussian.of(image).var, scaled.var(axis=0).mean(), rtol=1e-5)
    for bridge in (a, b):
        bridge.fit(1, 30, progress=False)
    np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=1e-4)
    np.testing.assert_allclose(
        a.sample(x=image[:9], direction="forward", seed=0),
        b.sample(x=scaled[:9], direction="forward", seed=0),
        atol=1e-4,
    )


def test_defaults():
    x = dsb.datasets.toy("swiss_roll", 5000)
    grid, official = dsb.Bridge(x), dsb.Bridge(x, convention="official")
    assert grid.schedule.N == 20
    np.testing.assert_allclose(grid.schedule.T, 0.1 * x.var(axis=0).mean(), rtol=0.05)
    assert grid.reference == dsb.OU(grid.prior.mean, grid.prior.var)
    assert grid.prior == dsb.Gaussian.of(x)
    told = (grid.settings.output, grid.settings.learning_rate, grid.settings.lr_schedule)
    assert told == ("drift", 3e-3, "cosine")
    assert grid.settings.closed_form
    told = (
        official.settings.output,
        official.settings.learning_rate,
        official.settings.lr_schedule,
    )
    assert told == ("step", 1e-4, "constant")
    assert not official.settings.closed_form
    assert official.net.n_parameters == 26_498
    assert official.schedule == dsb.Schedule.constant(20, 0.01)
    assert dsb.Bridge(x, x + 1).reference == dsb.Brownian()
    # What varies most decides T; in the mean over coordinates it would be 20 times less.
    stretched = x[:, :1] * np.eye(1, 40, dtype=np.float32) + 0.01 * np.random.default_rng(0).normal(
        size=(5000, 40)
    )
    T = dsb.Bridge(stretched, stretched + 1).schedule.T
    np.testing.assert_allclose(T, 0.1 * x[:, 0].var(), rtol=0.1)
    narrow = dsb.Bridge(x, dsb.Gaussian([0.0, 0], 0.5))
    np.testing.assert_allclose(narrow.schedule.T, 2 * 0.5)


def test_scales_that_nets_find_hard_are_mentioned():
    for factor in (1000, 0.001):
        with pytest.warns(
            UserWarning, match="source: its standard deviation is .*consider scaling"
        ):
            dsb.Bridge(X * np.float32(factor), dsb.Gaussian([0.0, 0], 1))
    with pytest.warns(UserWarning) as caught:
        dsb.Bridge(X * np.float32(1000))
    assert {warning.filename for warning in caught} == {__file__}


def test_no_warning_comes_before_a_refusal(trained):
    ones = np.ones((5, 2), np.float32)
    weights = trained.state_dict("backward")
    weights["layers.0.bias"] = np.full(16, 1e300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"schedule: .*no spread"):
            dsb.Bridge(ones, ones)
        with pytest.raises(ValueError, match="steps below"):
            small(X * np.float32(1000), schedule=dsb.Schedule.constant(3, 1e20))
        with pytest.raises(ValueError, match=r"weights\['layers.0.bias'\]: .*infinity"):
            small().load_state_dict("backward", weights)


def test_gaussians():
    cov = np.array([[2.0, 0.6], [0.6, 1]])
    for given, full in [(3.0, 3 * np.eye(2)), ([1, 4], np.diag([1, 4])), (cov, cov)]:
        g = dsb.Gaussian([1, -1], given)
        np.testing.assert_array_equal(g.cov, full)
        np.testing.assert_allclose(g.factor @ g.factor.T, full, atol=1e-6)
        assert g.factor.dtype == np.float32
        assert (np.triu(g.factor, 1) == 0).all()
        np.testing.assert_allclose(g.var, np.trace(full) / 2)
        z = g.sample(200_000, seed=1)
        np.testing.assert_allclose(z.mean(axis=0), g.mean, atol=0.02)
        np.testing.assert_allclose(np.cov(z.T), full, atol=0.03)
        np.testing.assert_array_equal(z[:5], g.sample(5, seed=1))
    assert dsb.Gaussian(0.5, [1, 1]) == dsb.Gaussian([0.5, 0.5], 1)
    assert dsb.Gaussian(0, cov) != dsb.Gaussian(0, 2 * cov)
    assert repr(dsb.Gaussian([0, 0], 4)) == "Gaussian(mean=[0, 0], cov=4 I)"


def test_mlp_widths():
    assert [dsb.MLP().hidden(d)[0] for d in (1, 2, 32, 33, 50, 128, 784)] == [128] * 3 + [
        256,
        256,
        512,
        512,
    ]
    assert dsb.MLP(depth=2).hidden(2) == (128, 128)
    assert dsb.MLP(widths=[10, 20]).hidden(2) == (10, 20)
    assert repr(dsb.MLP(64, residual=True)) == "MLP(width=64, residual=True)"
    assert dsb.MLP(64) == dsb.MLP(64) != dsb.MLP(65)
    assert repr(dsb.MLP.official()) == "MLP.official()"
    names = list(dsb.nn.Graph(dsb.MLP(residual=True).build(2)).parameters)
    assert names[2:6] == [
        "layers.1.0.weight",
        "layers.1.0.bias",
        "layers.1.1.weight",
        "layers.1.1.bias",
    ]


def test_reprs(trained):
    shown = repr(trained)
    parts = ["2 dimensions", "500 samples", "OU(", "T = 3", "MLP(width=16, depth=2, embedding=8)"]
    parts += [
        "482 parameters",
        "microbatch 32",
        "2 lanes",
        "seed 0",
        _core.isa(),
        "1 IPF iteration",
    ]
    for part in parts:
        assert part in shown, part
    assert "1 IPF iterations" not in shown
    assert "0 IPF iterations" in repr(small())
    assert max(map(len, shown.splitlines())) < 110
    assert "forward" in repr(trained.history)
    assert _core.isa() in repr(dsb.info())
    assert dsb.info()["threads"] == dsb.get_num_threads()
    assert "layers.0" in repr(trained.net)
    assert repr(dsb.Brownian()) == "Brownian()"
    assert repr(dsb.OU([0, 1], 2)) == "OU(mean=[0, 1], var=2)"


# ---- what fit means ----


def test_fit_does_that_many_more():
    bridge = small()
    records = []
    bridge.fit(2, 30, callback=lambda b, r: records.append(r), log_every=20, progress=False)
    told = [(r.iteration, r.direction, r.step, r.steps, r.finished) for r in records]
    one = [("backward", 20, 30, False), ("backward", 30, 30, True)]
    one += [("forward", 20, 30, False), ("forward", 30, 30, True)]
    assert told == [(i, *rest) for i in (1, 2) for rest in one]
    history = bridge.history
    assert records[1].loss == pytest.approx(history[0].loss[20:].mean())
    assert records[1].grad_norm == pytest.approx(history[0].grad_norm[20:].mean())
    assert (bridge.iteration, bridge.half_bridge, bridge.step) == (2, 4, 0)
    again = bridge.fit(1, 10, progress=False)
    assert [len(part.loss) for part in again] == [30] * 4 + [10] * 2
    assert bridge.iteration == 3
    bridge.fit(0, progress=False)
    assert bridge.iteration == 3


def test_steps_go_on_as_they_were(tmp_path):
    class StopError(Exception):
        pass

    def stop(bridge, record):
        raise StopError

    bridge = small()
    with pytest.raises(StopError):
        bridge.fit(callback=stop, progress=False)
    assert bridge._core.steps == 5000
    bridge = small()
    with pytest.raises(StopError):
        bridge.fit(1, 30, callback=stop, log_every=10, progress=False)
    bridge.save(tmp_path / "begun")
    for begun in (bridge, dsb.load(tmp_path / "begun")):
        begun.fit(0, progress=False)
        assert [len(part.loss) for part in begun.history] == [30, 30]
        begun.fit(1, 20, progress=False)
        begun.save(tmp_path / "done")
        for done in (begun, dsb.load(tmp_path / "done")):
            done.fit(progress=False)
            assert [len(part.loss) for part in done.history] == [30] * 2 + [20] * 4


@pytest.mark.parametrize("stop", [("backward", 10), ("backward", 30), ("forward", 10)])
def test_a_begun_iteration_is_finished_first_and_not_counted(stop):
    class StopError(Exception):
        pass

    def callback(bridge, record):
        if (record.direction, record.step) == stop and record.iteration == 1:
            raise StopError

    bridge, whole = small(), small()
    with pytest.raises(StopError):
        bridge.fit(5, 30, callback=callback, log_every=10, progress=False)
    assert bridge.iteration == 0
    bridge.fit(1, 30, progress=False)
    assert bridge.iteration == 2
    whole.fit(2, 30, progress=False)
    assert_equal_bits(bridge, whole)


def test_history(trained):
    history = trained.history
    assert len(history) == 2
    assert [part.direction for part in history] == ["backward", "forward"]
    told = history.numpy()
    assert {name: len(v) for name, v in told.items()} == dict.fromkeys(told, 120)
    assert told["iteration"].dtype == told["step"].dtype == np.int64
    assert (told["direction"][:60] == "backward").all()
    np.testing.assert_array_equal(told["step"], np.tile(np.arange(60), 2))
    assert len(history[1:]) == 1
    assert history[1:].direction[0] == "forward"
    assert len(repr(history).splitlines()) == 3
    empty = small().history
    assert {name: (len(v), v.dtype) for name, v in empty.numpy().items()} == {
        name: (0, v.dtype) for name, v in told.items()
    }
    assert "no steps" in repr(empty)


def test_progress_bar(capfd):
    small().fit(1, 20, progress=True)
    shown = capfd.readouterr().err
    for part in ("IPF 1/1 backward", "IPF 1/1 forward", "40/40", "loss ", "step/s"):
        assert part in shown, part
    small().fit(1, 20)  # no terminal
    small().fit(1, 20, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_callback_may_save_and_sample_but_not_fit(tmp_path):
    def callback(bridge, record):
        assert bridge.sample(3).shape == (3, 2)
        bridge.save(tmp_path / "a")
        with pytest.raises(RuntimeError, match="being fitted already"):
            bridge.fit()

    bridge, whole = small(), small()
    bridge.fit(1, 30, callback=callback, log_every=11, progress=False)
    whole.fit(1, 30, progress=False)
    assert_equal_bits(bridge, whole)


def test_an_interrupt_on_the_way_into_fit_locks_nothing():
    bridge, entered = small(), False

    class InterruptError(Exception):
        pass

    def fit(at):
        """An interrupt at line number `at` of those that run before the first step."""
        line = 0

        def trace(frame, event, argument):
            nonlocal line, entered
            if frame.f_code.co_qualname == "Fit.__call__":
                entered = True
            if frame.f_code is not dsb.Bridge.fit.__code__ or entered:
                return None
            if event == "line":
                line += 1
                if line == at:
                    raise InterruptError
            return trace

        sys.settrace(trace)
        try:
            bridge.fit(1, 1, progress=False)
        finally:
            sys.settrace(None)

    for at in range(1, 100):
        try:
            fit(at)
        except InterruptError:
            continue
        break
    assert entered
    assert at > 3
    assert bridge.iteration == 1


# ---- what it answers ----


def test_samples_and_seeds(trained):
    a, b = trained.sample(20, seed=5), trained.sample(20, seed=5)
    np.testing.assert_array_equal(a, b)
    assert a.shape == (20, 2)
    assert a.dtype == np.float32
    assert (trained.sample(20, seed=6) != a).all()
    np.testing.assert_array_equal(trained.sample(70, seed=5)[:20], a)
    one, two = small(), small()
    for bridge in (one, two):
        bridge.load_state_dict("backward", trained.state_dict("backward"))
    first, second = one.sample(9), one.sample(9)
    assert (first != second).any()
    np.testing.assert_array_equal(first, two.sample(9))  # counted from the making of the bridge
    np.testing.assert_array_equal(second, two.sample(9))


def test_paths(trained):
    for direction in ("backward", "forward"):
        paths = trained.paths(9, direction=direction, seed=2)
        assert paths.shape == (9, 5, 2)
        np.testing.assert_array_equal(paths[:, -1], trained.sample(9, direction=direction, seed=2))
        again = trained.paths(paths[:, 0], direction=direction, seed=2)
        np.testing.assert_array_equal(again, paths)
    assert np.isin(trained.paths(9, direction="forward")[:, 0], trained.source).all()
    noisy = trained.paths(4000, seed=2, final_noise=True)
    calm = trained.paths(4000, seed=2)
    np.testing.assert_array_equal(noisy[:, :-1], calm[:, :-1])
    assert (noisy - calm)[:, -1].var() == pytest.approx(2 * 0.3, rel=0.05)
    other = dsb.Schedule.constant(12, 0.25)
    assert trained.paths(3, schedule=other).shape == (3, 13, 2)


def test_drift(trained):
    g = trained.schedule.steps
    paths = trained.paths(5, seed=0, direction="backward")  # its last step has no noise
    b = trained.drift(paths[:, -2], trained.schedule.times[1])
    np.testing.assert_allclose(paths[:, -2] + g[0] * b, paths[:, -1], rtol=1e-4, atol=1e-4)
    paths = trained.paths(5, seed=0, direction="forward")
    f = trained.drift(paths[:, -2], np.full(5, trained.schedule.times[-2]), "forward")
    np.testing.assert_allclose(paths[:, -2] + g[-1] * f, paths[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_answers_are_finite(direction):
    bridge = small()
    weights = bridge.state_dict(direction)
    bridge.load_state_dict(direction, {k: np.full_like(w, 3e38) for k, w in weights.items()})
    for call in (
        lambda: bridge.sample(3, direction=direction),
        lambda: bridge.paths(3, direction=direction),
        lambda: bridge.drift(X[:3], 0.3, direction),
    ):
        with pytest.raises(FloatingPointError, match=f"NaN or infinity in row 0 .*{direction} net"):
            call()


def test_memory_of_answers_is_foreseen(trained, monkeypatch):
    with pytest.raises(MemoryError, match=r"sample: 2,147,483,647 rows .* rows would fit"):
        monkeypatch.setattr(_core, "memory_available", lambda: 2**33)
        trained.sample(2**31 - 1)
    monkeypatch.setattr(_core, "memory_available", lambda: 1000)
    with pytest.raises(MemoryError, match=r"paths: .* 25 rows would fit"):
        trained.paths(26)
    with pytest.raises(MemoryError, match=r"sample: .* 125 rows would fit"):
        trained.sample(x=np.zeros((126, 2), np.float32))
    with pytest.raises(MemoryError, match=r"drift: .* 125 rows would fit"):
        trained.drift(np.zeros((126, 2), np.float32), 0.3)
    assert len(trained.sample(125)) == 125
    assert len(trained.paths(25)) == 25


def test_drift_in_chunks(trained):
    """The same bits as row by row, and Ctrl-C comes through."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(10_000, 2)).astype(np.float32), rng.uniform(0, 3, 10_000)
    whole = trained.drift(x, t)
    at = [0, 4095, 4096, 8191, 8192, 9999]
    np.testing.assert_array_equal(whole[at], trained.drift(x[at], t[at]))
    x = np.zeros((30_000_000, 2), np.float32)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        trained.drift(x, 0.3)
    assert time.perf_counter() - start < 1.5


def test_before_training():
    bridge = small()
    with pytest.raises(RuntimeError, match="backward net has not been trained"):
        bridge.sample(3)
    x = bridge.source[:5]
    reference = bridge.drift(x, 0.0, "forward")
    np.testing.assert_allclose(
        reference, (bridge.reference.mean - x) / bridge.reference.var, rtol=1e-4, atol=1e-6
    )
    assert bridge.sample(3, direction="forward").shape == (3, 2)


def test_weights_move(trained):
    weights = trained.state_dict("backward")
    assert {name: w.shape for name, w in weights.items()} == trained.net.parameters
    other = small(seed=5)
    other.load_state_dict("backward", {name: w.astype(float) for name, w in weights.items()})
    np.testing.assert_array_equal(other.sample(30, seed=0), trained.sample(30, seed=0))
    other.fit(1, 5, progress=False)  # and on from there
    weights["layers.0.bias"][0] = np.nan  # a copy
    assert np.isfinite(trained.state_dict("backward")["layers.0.bias"]).all()
    with pytest.raises(ValueError, match=r"weights\['layers.0.bias'\]: .*NaN"):
        other.load_state_dict("backward", weights)
    weights["layers.0.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"layers.0.bias.*\(16,\).*\(3,\)"):
        other.load_state_dict("backward", weights)


def test_weights_wait_for_the_end_of_a_half_bridge(trained):
    def callback(bridge, record):
        if not record.finished:
            with pytest.raises(RuntimeError, match="half-bridge is under way"):
                bridge.load_state_dict("forward", trained.state_dict("forward"))

    small().fit(1, 4, callback=callback, log_every=2, progress=False)


def test_average():
    bridge = small(ema=0.5)
    bridge.fit(1, 30, progress=False)
    theta, ema = bridge.state_dict("forward"), bridge.state_dict("forward", ema=True)
    assert any((theta[name] != ema[name]).any() for name in theta)
    other = small(ema=0.5)
    other.load_state_dict("forward", ema)
    x = X[:20]
    np.testing.assert_array_equal(
        other.sample(x=x, direction="forward", seed=1),
        bridge.sample(x=x, direction="forward", seed=1),
    )


# ---- faults from outside ----


def test_nan_in_training_is_stopped_and_named():
    bridge = small(learning_rate=1e6, lr_schedule="constant")
    with pytest.raises(FloatingPointError, match=r"step \d+ of the backward half-bridge .*'"):
        bridge.fit(1, 100, progress=False)
    assert all(np.isfinite(plane).all() for plane in planes(bridge).values())
    assert 1 <= bridge.step < 100
    assert len(bridge.history.loss) == bridge.step


def test_ctrl_c_stops_between_two_steps():
    bridge, whole, steps = small(), small(), 4000

    def interrupt(bridge, record):
        if record.step == 100 and record.direction == "forward":
            # From outside and a little later: in the middle of the core's work.
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        bridge.fit(9, steps, callback=interrupt, progress=False)
    assert bridge.half_bridge == 1
    assert 100 <= bridge.step < steps
    assert bridge.sample(5).shape == (5, 2)
    bridge.fit(0, progress=False)
    whole.fit(1, steps, progress=False)
    assert_equal_bits(bridge, whole)


def test_ctrl_c_during_sampling(trained):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        while time.perf_counter() - start < 20:
            trained.sample(1_000_000)
    assert time.perf_counter() - start < 10
    trained.sample(5)


@pytest.mark.parametrize("work", ["fit", "sample"])
def test_a_signal_handler_is_told_what_it_may_not_do(work):
    """Not to wait for what it has itself interrupted."""
    bridge, said = small(), []
    bridge.fit(1, 5, progress=False)

    def handler(number, frame):
        try:
            bridge.save("/dev/null/absent")
        except RuntimeError as error:
            said.append(str(error))
        except OSError:  # it came between two chunks of work and was let in
            timer()

    def timer():
        threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGUSR1)).start()

    old = signal.signal(signal.SIGUSR1, handler)
    timer()
    try:
        while not said:
            bridge.fit(1, 2000, progress=False) if work == "fit" else bridge.sample(100_000)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert "signal handler" in said[0]


def test_threads():
    bridge, failures = small(), []
    fitting = threading.Event()

    def fit():
        bridge.fit(1, 4000, callback=lambda b, r: fitting.set(), log_every=50, progress=False)

    def use():
        try:
            fitting.wait(20)
            for i in range(20):
                assert np.isfinite(bridge.sample(30, seed=i)).all()
                assert len(bridge.history) >= 1
                repr(bridge)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=fit)] + [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert fitting.wait(20)
    with pytest.raises(RuntimeError, match="being fitted already: one fit at a time"):
        bridge.fit()
    for thread in threads[1:]:
        thread.join(30)
        assert not thread.is_alive()
    threads[0].join()
    whole = small()
    whole.fit(1, 4000, progress=False)
    assert failures == []
    assert_equal_bits(bridge, whole)


def test_fork_after_use(trained):
    """A child has none of the parent's worker threads; it must not wait for them."""
    expected = trained.sample(500, seed=0)

    def use():
        assert np.array_equal(trained.sample(500, seed=0), expected)
        small().fit(1, 20, progress=False)

    in_a_child(use)


def test_fork_while_another_thread_uses_the_bridge(trained, tmp_path):
    used, idle, waiting = small(), small(), small()
    inside, paused, leave = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with used._in_line(), used._turn:
            inside.set()
            leave.wait(60)

    def pause(bridge, record):
        paused.set()
        leave.wait(60)

    threads = [
        threading.Thread(target=hold),
        threading.Thread(
            target=waiting.fit, args=(1, 9), kwargs={"callback": pause, "log_every": 3}
        ),
    ]
    for thread in threads:
        thread.start()
    assert inside.wait(60)
    assert paused.wait(60)

    def use():
        for call in (
            lambda: used.sample(3, direction="forward"),
            lambda: used.fit(1, 5, progress=False),
            lambda: used.drift(X, 0.3, "forward"),
            lambda: used.save(tmp_path / "a"),
            lambda: used.history,
            used.memory,
        ):
            with pytest.raises(RuntimeError, match=r"in use by another thread.*forked"):
                call()
        assert "forked" in repr(used)
        idle.fit(1, 5, progress=False)
        waiting.fit(0, progress=False)  # between two steps at the fork, and nobody else's here
        assert waiting.iteration == 1

    try:
        in_a_child(use)
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    used.fit(1, 5, progress=False)
    assert waiting.iteration == 1


def in_a_child(function):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_exit_of_the_interpreter_during_fit():
    done = run("""
        import threading, time
        import dsb
        bridge = dsb.Bridge(dsb.datasets.toy("moons", 100), net=dsb.MLP(16))
        threading.Thread(target=bridge.fit, args=(1000,), daemon=True).start()
        while bridge.step < 50:
            time.sleep(0.01)
        print("leaving")
    """)
    assert (done.stdout, done.returncode) == ("leaving\n", 0), done


def test_import_is_light():
    done = run("""
        import sys
        import numpy
        before = set(sys.modules)
        import dsb
        print(*{name.split(".")[0] for name in set(sys.modules) - before})
        dsb.Bridge, dsb.Gaussian, dsb.info()
        dsb.datasets.toy, dsb.nn.Graph, dsb.load, dsb.metrics
    """)
    assert done.returncode == 0, done.stderr
    heavy = {
        "tqdm",
        "safetensors",
        "matplotlib",
        "dataclasses",
        "json",
        "hashlib",
        "scipy",
        "sklearn",
    }
    assert not heavy & set(done.stdout.split())


def test_instruction_sets():
    for isa in _core.isas():
        done = run("import dsb; print(dsb.info()['instruction set'])", DSB_ISA=isa)
        assert done.stdout.strip() == isa, done
    done = run("import dsb", DSB_ISA="vax")
    assert "DSB_ISA" in done.stderr
    assert "vax" in done.stderr
    assert "did you mean" not in done.stderr
    if "x86-64-v2" in _core.isas():
        done = run("import dsb", DSB_ISA="x86_64_v2")
        assert "did you mean 'x86-64-v2'" in done.stderr
    assert "ValueError" in done.stderr


@pytest.mark.parametrize("stopped", [False, True])
def test_a_fitted_bridge_goes_with_its_last_user(stopped):
    """And what a callback held goes with the fit: nothing waits for the collector of cycles."""

    class Held:
        pass

    held, bridge = Held(), small()

    def callback(given, record, held=held):
        if stopped:
            raise KeyError

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(KeyError) if stopped else nullcontext():
            bridge.fit(1, 5, progress=False, callback=callback)
        alive = weakref.ref(held), weakref.ref(bridge)
        del held, callback
        assert alive[0]() is None
        del bridge
        assert alive[1]() is None
    finally:
        gc.enable()
