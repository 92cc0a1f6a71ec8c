"""Checkpoints: bitwise resumption from anywhere, files that survive faults, files that lie."""

import errno
import json
import os
import re
import resource
import signal
import stat
import struct
import subprocess
import threading
import warnings

import numpy as np
import pytest
from conftest import assert_equal_bits, planes, small

import dsb
from dsb import _core, _files, checkpoint
from dsb.history import NOTHING

STEPS = 20


def resumed(bridge, iterations, steps=STEPS):
    """Goes on to `iterations` in all."""
    begun = (bridge.half_bridge + (bridge.step > 0) + 1) // 2
    bridge.fit(iterations - begun, steps, progress=False)
    return bridge


# ---- resumption ----

VARIANTS = {
    "grid": {},
    "everything": {
        "ema": 0.9,
        "clip": 0.5,
        "antithetic": True,
        "reuse": 2,
        "cache_bytes": 20_000,
        "objective": "simplified",
        "closed_form": False,
        "output": "step",
        "lr_schedule": "constant",
        "lanes": 2,
        "microbatch": 16,
        "betas": (0.8, 0.99),
        "eps": 1e-6,
        "seed": 11,
    },
    "official": {
        "convention": "official",
        "net": dsb.MLP.official(),
        "schedule": dsb.Schedule.linear(5, 0.1, 0.5),
    },
    "data to data": {"prior": dsb.datasets.toy("circles", 333), "output": "mean"},
    "covariances": {
        "objective": "bridge",
        "covariance": "full",
        "covariance_paths": 256,
        "ema": 0.9,
    },
    "from a Gaussian": {"source": dsb.Gaussian([0, 1.0], [[2, 0.5], [0.5, 1]])},
    "bytes": {
        "source": (dsb.datasets.toy("moons", 400) * 8 + 128).clip(0, 255).astype(np.uint8),
        "prior": dsb.Gaussian(0.0, [0.5, 2]),
        "reference": dsb.OU(0.1, 3),
    },
    "pairs": {
        "prior": dsb.datasets.toy("circles", 500),
        "objective": "bridge",
        "first_coupling": "pairs",
        "ema": 0.9,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumption_is_bitwise_at_every_kind_of_boundary(tmp_path, variant):
    """Fresh; in a window of the cache, at its edge, at the end of each half-bridge and iteration."""
    saved = []

    def save(bridge, record):
        if record.step in (1, 7, 10, 14, STEPS):  # refresh is 7
            saved.append(tmp_path / f"{len(saved)}.safetensors")
            bridge.save(saved[-1])

    whole = small(**VARIANTS[variant])
    whole.save(tmp_path / "fresh.safetensors")
    start = planes(whole)
    whole.fit(2, STEPS, callback=save, log_every=1, progress=False)
    assert len(saved) == 20
    assert any((start[name] != plane).any() for name, plane in planes(whole).items())
    for path in [tmp_path / "fresh.safetensors", *saved]:
        assert_equal_bits(resumed(dsb.load(path), 2), whole)


def test_a_state_that_differs_is_seen(tmp_path):
    """What the test above would say if a checkpoint forgot something."""
    bridge = small()
    bridge.fit(1, STEPS, progress=False)
    bridge.save(tmp_path / "a")
    whole = resumed(bridge, 2)
    for forgotten in ("m", "v"):
        other = dsb.load(tmp_path / "a")
        other._core.set_plane("backward", forgotten, np.zeros(other.net.plane, np.float32))
        with pytest.raises(AssertionError):
            assert_equal_bits(resumed(other, 2), whole)
    other = dsb.load(tmp_path / "a")
    position = other._core.get_position() | {"adam_forward": 0}
    other._core.set_position(position, NOTHING, NOTHING)
    with pytest.raises(AssertionError):
        assert_equal_bits(resumed(other, 2), whole)


def test_twice_saved_is_the_same_file(tmp_path, trained):
    trained.save(tmp_path / "a")
    dsb.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_a_bridge_is_comes_back(tmp_path):
    options = VARIANTS["everything"] | {"reference": dsb.OU([1, 2.0], 5)}
    bridge = small(**options)
    bridge.save(tmp_path / "a")
    other = dsb.load(tmp_path / "a")
    assert other.settings == bridge.settings
    assert other.schedule == bridge.schedule
    assert other.reference == bridge.reference
    assert other.prior == bridge.prior
    assert other.net == bridge.net
    assert repr(other) == repr(bridge)
    np.testing.assert_array_equal(other.source, bridge.source, strict=True)


def test_saving_from_another_thread(tmp_path):
    """Each file is a state between two steps, and waiting for it does not take the whole fit."""
    bridge, steps = small(), 4000
    worker = threading.Thread(target=bridge.fit, args=(1, steps), kwargs={"progress": False})
    worker.start()
    try:
        while bridge.step == 0:
            pass
        for i in range(3):
            bridge.save(tmp_path / str(i))
            bridge.sample(10)
        assert worker.is_alive()  # or it proves nothing
    finally:
        worker.join()
    for i in range(3):
        assert_equal_bits(resumed(dsb.load(tmp_path / str(i)), 1, steps), bridge)


# ---- data ----


def test_data_that_the_file_does_not_hold(tmp_path):
    x = dsb.datasets.toy("moons", 300)
    bridge = small(x)
    bridge.fit(1, STEPS, progress=False)
    bridge.save(tmp_path / "with")
    bridge.save(tmp_path / "without", data=False)
    assert (tmp_path / "with").stat().st_size - (tmp_path / "without").stat().st_size > x.nbytes

    other = dsb.load(tmp_path / "without")
    np.testing.assert_array_equal(other.sample(9, seed=1), bridge.sample(9, seed=1))
    assert other.source is None
    assert "300 samples (float32), not here" in repr(other)
    with pytest.raises(
        ValueError, match=r"source: fitting needs .*load it with dsb.load\(path, sou"
    ):
        other.fit()
    with pytest.raises(ValueError, match=r"n: starts cannot be drawn.*source"):
        other.sample(9, direction="forward")
    other.sample(x=x[:9], direction="forward")
    other.save(tmp_path / "again")  # it still knows which data they were

    for given in (x, x.astype(np.float64), [list(row) for row in x.tolist()]):
        assert_equal_bits(
            resumed(dsb.load(tmp_path / "again", source=given), 2), resumed(bridge, 2)
        )
    x2 = x.copy()
    x2[17, 1] += 1e-3
    for wrong in (x2, x[:-1], x.T[:2].T[::-1]):
        with pytest.raises(ValueError, match="source: expected the 300 x 2 rows that"):
            dsb.load(tmp_path / "without", source=wrong)
    with pytest.raises(ValueError, match="source: expected the 300 x 2 rows that"):
        dsb.load(tmp_path / "with", source=x2)
    with pytest.raises(ValueError, match=r"prior: .*Gaussian"):
        dsb.load(tmp_path / "with", prior=x)


def test_auto_keeps_small_data_only(tmp_path, monkeypatch):
    bridge = small()
    monkeypatch.setattr(checkpoint, "AUTO_DATA", bridge.source.nbytes - 1)
    bridge.save(tmp_path / "a")
    assert dsb.load(tmp_path / "a").source is None
    bridge.save(tmp_path / "b", data=True)
    assert dsb.load(tmp_path / "b").source is not None
    with pytest.raises(ValueError, match="data: expected True, False or 'auto', got 'no'"):
        bridge.save(tmp_path / "c", data="no")


@pytest.mark.parametrize("what", ["isa", "compiler"])
def test_another_build_is_mentioned_once(tmp_path, trained, monkeypatch, what):
    trained.save(tmp_path / "a")
    here = re.escape(getattr(_core, what)())
    monkeypatch.setattr(_core, what, lambda: "another")
    with pytest.warns(UserWarning, match=f"made with .*{here}.*; with .*another.* not bit for bit"):
        dsb.load(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dsb.load(tmp_path / "a")


# ---- writing under faults ----


@pytest.fixture
def kept(tmp_path, trained):
    """A checkpoint that has to survive, and a check that it did, with nothing beside it."""
    path = tmp_path / "kept.safetensors"
    trained.save(path)
    content = path.read_bytes()
    yield path
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_the_old_file_survives(kept, trained, monkeypatch, call, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        trained.save(kept)
    monkeypatch.undo()


def test_the_old_file_survives_a_full_disk(kept, trained):
    """A real failing write: the process may write files of 4 KiB only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            trained.save(kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(kept)


def test_paths_that_cannot_be_written(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="absent/a") as caught:
        trained.save(tmp_path / "absent" / "a")
    assert caught.value.filename == str(tmp_path / "absent" / "a")
    with pytest.raises(IsADirectoryError):
        trained.save(tmp_path)
    with pytest.raises(NotADirectoryError):
        (tmp_path / "file").touch()
        trained.save(tmp_path / "file" / "a")
    for path in (None, 3, b"bytes", True):
        for call in (trained.save, dsb.load):
            with pytest.raises(TypeError, match=r"path: expected a str or an os\.PathLike"):
                call(path)
    assert os.listdir(tmp_path) == ["file"]


def test_only_regular_files_are_replaced(tmp_path, trained):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="regular file"):
            trained.save(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
def test_long_names(tmp_path, trained, name):
    trained.save(tmp_path / name)
    trained.save(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    dsb.load(tmp_path / name)


def test_parts_of_dead_processes_are_removed(tmp_path, trained):
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    start = _files.part_start("a")
    stale = [f"{start}{int(ended.stdout)}-0123.part", f"{start}{os.getpid()}-0123.part"]
    living = [f"{start}{os.getppid()}-0123.part", f"{start}x.part", ".a.part"]
    living += [f"{_files.part_start('b')}{int(ended.stdout)}-0123.part"]
    for name in stale + living:
        (tmp_path / name).touch()
    trained.save(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == sorted(["a", *living])


def test_a_killed_save_leaves_what_the_next_removes(tmp_path, trained):
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        trained.save(tmp_path / "a")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    trained.save(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_rows_that_changed_in_place(tmp_path):
    path, x = tmp_path / "a", dsb.datasets.toy("moons", 300)
    bridge = small(x)
    bridge.fit(1, STEPS, progress=False)
    bridge.save(path)
    content, row = path.read_bytes(), x[7].copy()
    for value in (9.0, np.nan):
        x[7] = value
        with pytest.raises(ValueError, match="source: its rows were changed in place since"):
            bridge.save(path)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["a"]
    x[7] = row
    bridge.save(path)
    assert path.read_bytes() == content
    # From the first fit on, too; and before it what cannot be read at all.
    bridge = small(x)
    bridge.fit(1, STEPS, progress=False)
    x[7] = 9
    with pytest.raises(ValueError, match="source: its rows were changed in place since"):
        bridge.save(path)
    bridge = small(x)
    x[7] = np.inf
    for call in (lambda: bridge.save(path), lambda: bridge.fit(1, STEPS, progress=False)):
        with pytest.raises(ValueError, match=r"source: .*row 7 holds NaN or infinity"):
            call()
    assert path.read_bytes() == content


@pytest.mark.parametrize("plane", ["theta", "m", "v", "ema"])
def test_planes_that_are_not_finite(tmp_path, plane):
    bridge = small(ema=0.5)
    bridge.fit(1, STEPS, progress=False)
    bridge.save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    values = bridge._core.get_plane("forward", plane)
    values[3] = np.inf
    bridge._core.set_plane("forward", plane, values)
    with pytest.raises(FloatingPointError, match=f"forward.{plane}: holds NaN or infinity"):
        bridge.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


def test_a_way_on_after_a_divergence(tmp_path):
    bridge = small(learning_rate=1e6, lr_schedule="constant")
    with pytest.raises(FloatingPointError):
        bridge.fit(1, 100, progress=False)
    bridge = small(learning_rate=0.01)
    bridge.fit(1, STEPS, progress=False)
    bridge.save(tmp_path / "a")
    same = dsb.load(tmp_path / "a")
    assert same.settings == bridge.settings
    eased = dsb.load(tmp_path / "a", learning_rate=1e-4, clip=1.0)
    told = eased.settings
    assert (told.learning_rate, told.clip) == (1e-4, 1.0)
    assert told._replace(learning_rate=0.01, clip=0.0) == bridge.settings
    for one in (same, eased):
        one.fit(1, progress=False)
    assert (same.state_dict("forward")["layers.0.bias"]
            != eased.state_dict("forward")["layers.0.bias"]).any()  # fmt: skip
    for options, message in [({"learning_rate": 0}, "^learning_rate: "), ({"clip": -1}, "^clip: ")]:
        with pytest.raises(ValueError, match=message):
            dsb.load(tmp_path / "a", **options)


def test_links_and_permissions_stay(tmp_path, trained):
    trained.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to("a")
    trained.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---- reading what is no checkpoint, or lies ----


def parts(path):
    """(header, bytes) of a safetensors file, the checkpoint's own JSON taken apart."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["dsb"] = json.loads(header["__metadata__"]["dsb"])
    return header, bytearray(raw[8 + length :])


def written(path, header, body, text=None):
    """What a liar writes who knows how the metadata are sealed."""
    header = json.loads(json.dumps(header))
    told = header["__metadata__"]["dsb"]
    told.pop("metadata_sha256")
    told["metadata_sha256"] = checkpoint._seal(told)
    header["__metadata__"]["dsb"] = json.dumps(told) if text is None else text
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)
    return path


@pytest.fixture
def sound(tmp_path, trained):
    path = tmp_path / "lie.safetensors"
    trained.save(path)
    return path


@pytest.fixture
def nothing_built(monkeypatch):
    """Fails where a file is believed before it is checked."""

    def built(*args, **kwargs):
        raise AssertionError("the core was asked to build what a file claims")

    monkeypatch.setattr(_core, "Net", built)
    monkeypatch.setattr(_core, "Bridge", built)


def test_bits_flipped_in_the_metadata(sound, nothing_built):
    raw = sound.read_bytes()
    for field in (b"learning_rate", b"net_label", b"half_bridge", b"rows", b"var"):
        at = raw.index(field) + len(field) + 4
        while not chr(raw[at]).isalnum():
            at += 1
        damaged = bytearray(raw)
        damaged[at] ^= 1
        sound.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"lie.safetensors: .*damaged"):
            dsb.load(sound)


def test_stored_rows_that_are_wrong(sound, monkeypatch, nothing_built):
    header, body = parts(sound)
    first = header["source.data"]["data_offsets"][0]
    body[first : first + 4] = np.float32(np.nan).tobytes()
    monkeypatch.setattr(checkpoint, "_digest", lambda tensor: "same")
    told = header["__metadata__"]["dsb"]
    told["sha256"] = dict.fromkeys(told["sha256"], "same")
    with pytest.raises(ValueError, match=r"lie.safetensors: its source data are wrong: .*nan"):
        dsb.load(written(sound, header, body))


def test_the_unchanged_file_loads(sound):
    header, body = parts(sound)
    dsb.load(written(sound, header, body))


@pytest.mark.parametrize("keep", [0, 3, 8, 9, 100, 0.1, 0.5, 0.9, -1])
def test_truncated(sound, keep, nothing_built):
    raw = sound.read_bytes()
    sound.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    with pytest.raises(ValueError, match=r"lie.safetensors: (truncated|not a safetensors file)"):
        dsb.load(sound)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"hello, world\n",
        bytes(1000),
        b"\xff" * 1000,
        struct.pack("<Q", 2**63) + b"{" + bytes(100),
        struct.pack("<Q", 90_000_000) + b"{" + bytes(100),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 9) + b"{" * 9,
    ],
)
def test_foreign(sound, raw, nothing_built):
    sound.write_bytes(raw)
    with pytest.raises(ValueError, match=r"lie.safetensors: "):
        dsb.load(sound)


def test_foreign_safetensors(sound, nothing_built):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, sound)
    with pytest.raises(ValueError, match="not a checkpoint of dsb"):
        dsb.load(sound)


def test_newer(sound, nothing_built):
    header, body = parts(sound)
    header["__metadata__"]["dsb"] |= {"format": checkpoint.FORMAT + 1, "version": "9.1"}
    with pytest.raises(ValueError, match=r"written by a newer dsb \(9.1, format 4\)"):
        dsb.load(written(sound, header, body))


def test_words_that_would_move_the_cursor(sound):
    header, body = parts(sound)
    header["__metadata__"]["dsb"]["net_label"] = "\x1b[2Jnothing to see"
    assert "\x1b" not in repr(dsb.load(written(sound, header, body)))


NO_METADATA = ["", "{", "[]", "null", "[" * 100_000, '{"format": 1' + "0" * 5000 + "}"]
NO_METADATA += [f'{{"format": {value}}}' for value in ("NaN", "1", '"1"', "-1", "true")]


@pytest.mark.parametrize("text", NO_METADATA)
def test_metadata_that_is_none(sound, text, nothing_built):
    header, body = parts(sound)
    with pytest.raises(ValueError, match=r"lie.safetensors: "):
        dsb.load(written(sound, header, body, text))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        dsb.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        dsb.load(tmp_path)


def setting(name, value):
    return lambda told: told["settings"].update({name: value})


def position(**values):
    return lambda told: told["position"].update(values)


def op(number, **values):
    return lambda told: told["net"][number].update(values)


def chained(told):
    """A list of ops that makes 10^6 x 10^6 numbers of a few hundred bytes."""
    told["net"][2]["width"] = 65536
    for op in told["net"]:
        if op["op"] == "linear":
            op["width"] = 65536


CLAIMS = {
    "width of 10^9": (op(5, width=10**9), "width"),
    "width of 10^300": (op(5, width=10**300), "width"),
    "width of 65536": (chained, "width|shape"),
    "width that does not fit the tensors": (op(4, width=17), "shape"),
    "width that is a number with a point": (op(4, width=16.5), "width"),
    "an op that is none": (op(4, op="exec"), "'exec'"),
    "an op that is a list": (op(4, op=["linear"]), "op"),
    "a field too much": (op(4, code="x"), "code"),
    "an input that is not there": (op(4, inputs=["nothing"]), "nothing"),
    "inputs that are numbers": (op(4, inputs=[3]), "input"),
    "a name that is long": (op(4, name="a" * 100_000), "name"),
    "ops without end": (lambda told: told["net"].extend([told["net"][3]] * 5000), "taken"),
    "ops that are none": (lambda told: told.update(net=[1, 2]), "net"),
    "no ops": (lambda told: told.update(net=[]), "net"),
    "no net": (lambda told: told.pop("net"), "net"),
    "batch of 10^12": (setting("batch", 10**12), "batch"),
    "batch of -1": (setting("batch", -1), "batch"),
    "batch that is text": (setting("batch", "512"), "batch"),
    "learning rate 0": (setting("learning_rate", 0), "learning_rate"),
    "an objective that is none": (setting("objective", "x"), "objective"),
    "a first coupling that is none": (setting("first_coupling", "x"), "first_coupling"),
    "a first coupling of no ends": (setting("first_coupling", "pairs"), "first_coupling"),
    "a setting too many": (setting("x", 1), "x"),
    "a setting too few": (lambda told: told["settings"].pop("seed"), "seed"),
    "settings that are none": (lambda told: told.update(settings=[]), "settings"),
    "an average that is not there": (setting("ema", 0.5), "ema"),
    "steps of 10^15": (position(steps=10**15, step=0), "step"),
    "more steps than there are": (position(steps=5, step=9), "step"),
    "a step before the first": (position(step=-1), "position"),
    "a step that is none": (position(step=0.5), "position"),
    "half-bridges of 10^12": (position(half_bridge=10**12), "history"),
    "a half-bridge too many": (position(half_bridge=3), "history"),
    "trained twice": (position(trained_backward=2), "trained"),
    "format 0": (lambda told: told.update(format=0), "metadata"),
    "no reference": (lambda told: told.update(reference={}), "reference"),
    "another reference": (lambda told: told["reference"].update(kind="VP"), "'VP'"),
    "a rate of 10^7": (setting("learning_rate", 1e7), "learning_rate"),
    "no position": (lambda told: told.pop("position"), "position"),
    "history of 10^15": (lambda told: told.update(history=[10**15, 0]), "history.loss"),
    "history of another length": (lambda told: told.update(history=[60, 59]), "history.loss"),
    "history that is none": (lambda told: told.update(history=["a", "b"]), "history"),
    "10^12 rows": (lambda told: told["ends"][0].update(rows=10**12), "source.data"),
    "rows of another width": (lambda told: told["ends"][0].update(columns=3), "source"),
    "rows of another dtype": (lambda told: told["ends"][0].update(dtype="uint8"), "source"),
    "rows of another scale": (lambda told: told["ends"][0].update(scale=2.0), "scale"),
    "rows with another digest": (lambda told: told["ends"][0].update(sha256="0" * 64), "damaged"),
    "one end": (lambda told: told["ends"].pop(), "ends"),
    "ends that are none": (lambda told: told.update(ends=[1, 2]), "source"),
    "no digests": (lambda told: told.update(sha256={}), "damaged"),
    "points of another shape": (lambda told: told.update(shape=[1, 3, 1]), "shape"),
    "points of half a number": (lambda told: told.update(shape=[4, 0.5, 1]), "shape"),
    "points of two axes": (lambda told: told.update(shape=[1, 2]), "shape"),
    "points of no shape": (lambda told: told.update(shape="2"), "shape"),
    "a precision that is none": (setting("precision", "fp8"), "precision"),
    "a precision that is a number": (setting("precision", 16), "precision"),
    "a net with a condition": (
        lambda told: told["net"].insert(0, {"op": "input", "name": "cond", "width": 2}),
        "cond",
    ),
    "an image of 10^6 x 10^6": (
        lambda told: told["net"].insert(
            2, {"op": "image", "name": "i", "inputs": ["x"], "size": [10**6, 10**6]}
        ),
        "size",
    ),
    "a size that is none": (
        lambda told: told["net"].insert(
            2, {"op": "image", "name": "i", "inputs": ["x"], "size": [1, None]}
        ),
        "size",
    ),
    "a loss weight that is none": (lambda told: told.update(loss_weight="t"), "loss weight"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_metadata_that_lies(sound, claim, nothing_built):
    change, message = CLAIMS[claim]
    header, body = parts(sound)
    change(header["__metadata__"]["dsb"])
    with pytest.raises(ValueError, match=f"lie.safetensors: .*({message})"):
        dsb.load(written(sound, header, body))


def test_claims_that_the_core_refuses(sound):
    """A negative variance of the reference, steps that are none: said with the file's name."""
    header, body = parts(sound)
    header["__metadata__"]["dsb"]["reference"]["var"] = -1.0
    with pytest.raises(ValueError, match=r"lie.safetensors: .*var: "):
        dsb.load(written(sound, header, body))


TENSORS = {
    "another shape": (
        lambda h: h["backward.m"].update(shape=[1, *h["backward.m"]["shape"]]),
        "shape",
    ),
    "another dtype": (lambda h: h["backward.m"].update(dtype="I32"), "shape"),
    "a dtype of other size": (
        lambda h: h["backward.m"].update(dtype="F64"),
        "truncated or damaged",
    ),
    "a size that overflows": (lambda h: h["backward.m"].update(shape=[2**62, 8]), "damaged"),
    "offsets beyond the end": (
        lambda h: h["backward.m"].update(data_offsets=[0, 2**60], shape=[2**58]),
        "damaged",
    ),
    "offsets that overlap": (
        lambda h: h["backward.m"].update(data_offsets=h["backward.theta"]["data_offsets"]),
        "damaged",
    ),
    "another name": (
        lambda h: h.update({"backward.x": h.pop("backward.m")}),
        "backward.m' is missing",
    ),
}


@pytest.mark.parametrize("lie", TENSORS)
def test_headers_that_lie(sound, lie, nothing_built):
    change, message = TENSORS[lie]
    header, body = parts(sound)
    change(header)
    with pytest.raises(ValueError, match=f"lie.safetensors: .*{message}"):
        dsb.load(written(sound, header, body))


def test_flipped_bits(sound, nothing_built):
    header, body = parts(sound)
    for name, told in header.items():
        if name == "__metadata__":
            continue
        damaged = bytearray(body)
        damaged[told["data_offsets"][0]] ^= 1
        with pytest.raises(ValueError, match=f"lie.safetensors: .*{name}.*damaged"):
            dsb.load(written(sound, header, damaged))


@pytest.mark.parametrize(
    ("name", "value"), [("v", np.nan), ("m", np.inf), ("v", -1.0), ("theta", np.nan)]
)
def test_states_that_no_training_reaches(sound, name, value, monkeypatch, nothing_built):
    header, body = parts(sound)
    first = header[f"forward.{name}"]["data_offsets"][0]
    body[first : first + 4] = np.float32(value).tobytes()
    monkeypatch.setattr(checkpoint, "_digest", lambda tensor: "same")
    told = header["__metadata__"]["dsb"]
    told["sha256"] = dict.fromkeys(told["sha256"], "same")
    with pytest.raises(ValueError, match=f"lie.safetensors: .*forward.{name}.* no training"):
        dsb.load(written(sound, header, body))
