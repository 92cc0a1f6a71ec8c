"""Equal bits whatever the threads, the interruptions and the company; no leak, no loss on failure."""

import gc
import itertools
import os
import signal
import threading

import numpy as np
import oracles
import pytest

from dsb import _core

OPS = oracles.mlp(2, 16, embed=8)
STEPS = 23  # of a half-bridge: windows of 7, 7, 7 and 2
DATA = np.random.default_rng(1).normal(size=(90, 2)).astype(np.float32)
OTHER = np.random.default_rng(2).normal(size=(50, 2)).astype(np.float32) + 2.0
DIRECTIONS = ("backward", "forward")
PLANES = ("theta", "m", "v", "ema")


def make(**changed):
    """A small bridge between two data sets."""
    given = {
        "source": DATA,
        "prior": OTHER,
        "reference_mean": np.zeros(2, np.float32),
        "reference_precision": 0.5,
        "steps": np.array([0.1, 0.3, 0.2]),
        "batch": 48,
        "microbatch": 6,
        "lanes": 4,
        "refresh": 7,
        "learning_rate": 3e-3,
        "cosine": True,
        "clip": 1.0,
        "ema": 0.9,
        "seed": 12,
    } | changed
    return _core.Bridge(_core.Net(OPS), **given)


def advance(bridge, half_bridges=1, steps=STEPS, piece=10**6):
    """Finishes so many half-bridges, a half-done one first, in pieces."""
    for _ in range(half_bridges):
        if bridge.steps == 0:
            bridge.begin(steps)
        while bridge.steps:
            bridge.run(piece, 100.0)


def state(bridge):
    """Everything that training leaves behind, as bytes."""
    planes = [bridge.get_plane(d, p).tobytes() for d in DIRECTIONS for p in PLANES]
    loss, norm = bridge.log()
    assert np.isfinite(loss).all()
    assert np.isfinite(norm).all()
    told = [bridge.get_covariance(d) for d in DIRECTIONS]
    noise = [(None if q is None else q.tobytes(), raised) for q, raised in told]
    return [*planes, loss.tobytes(), norm.tobytes(), sorted(bridge.get_position().items()), noise]


def draws(bridge):
    """Samples, paths and drifts of both directions, as bytes."""
    found = []
    for d in DIRECTIONS:
        found.append(bridge.sample(d, 5, n=333).tobytes())
        found.append(bridge.sample(d, 6, x=DATA, paths=True, final_noise=True).tobytes())
        found.append(bridge.drift(d, DATA, np.linspace(0, 0.6, 90, dtype=np.float32)).tobytes())
    return found


def moved(bridge, **changed):
    """A new bridge that goes on where this one stands."""
    other = make(**changed)
    for d, p in itertools.product(DIRECTIONS, PLANES):
        other.set_plane(d, p, bridge.get_plane(d, p))
    for d in DIRECTIONS:
        other.set_covariance(d, *bridge.get_covariance(d))
    loss, norm = bridge.log()  # of the half-bridge that is over, where none has begun
    step = bridge.step
    other.set_position(bridge.get_position(), loss[:step], norm[:step])
    return other


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = _core.get_num_threads()
    yield
    _core.fail_allocation(0)
    _core.set_num_threads(before)


# ---- threads, runs, pieces ----

VARIANTS = {
    "closed form": {},
    "simulated, antithetic": {"closed_form": False, "antithetic": True, "reuse": 2},
    "official": {"convention": "official", "steps": np.array([0.1, 0.3, 0.1]), "output": "step"},
    "one lane": {"lanes": 1, "microbatch": 48, "objective": "simplified"},
    "full covariances": {"objective": "simplified", "covariance": "full", "covariance_paths": 300},
    "diagonals between ends": {
        "objective": "bridge",
        "covariance": "diagonal",
        "covariance_paths": 130,
        "antithetic": True,
    },
    "ragged": {"batch": 41, "microbatch": 7, "lanes": 2},
    "bridge": {"objective": "bridge", "closed_form": False, "antithetic": True, "reuse": 2},
    "bridge, independent": {"objective": "bridge", "first_coupling": "independent"},
    "bridge, pairs": {"objective": "bridge", "first_coupling": "pairs", "prior": DATA[::-1] + 2.0},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_threads(variant):
    found = []
    for threads in (1, 2, 3, 1):
        _core.set_num_threads(threads)
        bridge = make(**VARIANTS[variant])
        advance(bridge, 3)
        found.append((state(bridge), draws(bridge) if variant != "official" else None))
    assert found[0] == found[1] == found[2] == found[3]
    bridge = make(**VARIANTS[variant] | {"seed": 13})
    advance(bridge, 3)
    assert state(bridge)[0] != found[0][0][0]


def test_threads_with_the_default_lanes_for_hundreds_of_steps():
    found = []
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        bridge = make(batch=512, microbatch=0, lanes=0, refresh=60)
        assert (bridge.microbatch, bridge.lanes) == (64, 8)
        advance(bridge, 2, steps=200)
        found.append((state(bridge), draws(bridge)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("piece", [1, 3, 7, 22])
def test_run_in_pieces(variant, piece):
    whole, parts = make(**VARIANTS[variant]), make(**VARIANTS[variant])
    advance(whole, 3)
    advance(parts, 3, piece=piece)
    assert state(whole) == state(parts)


def test_time_limit_and_what_run_returns():
    whole, parts = make(), make()
    advance(whole)
    parts.begin(STEPS)
    assert parts.run(0) == 0
    assert parts.run(10**6, 0.0) == 1  # at least one step, then the time is up
    done = 1
    while parts.steps:
        assert parts.step == done
        done += parts.run(4, 100.0)
    assert done == STEPS
    assert parts.half_bridge == 1
    assert state(whole) == state(parts)


def test_threads_may_change_on_the_way():
    whole, parts = make(), make()
    advance(whole, 2)
    numbers = itertools.cycle([1, 3, 2, 5])
    for _ in range(2):
        parts.begin(STEPS)
        while parts.steps:
            _core.set_num_threads(next(numbers))
            parts.run(3, 100.0)
    assert state(whole) == state(parts)


def test_sampling_between_steps_changes_nothing():
    whole, parts = make(), make()
    advance(whole, 4)
    for _ in range(4):
        parts.begin(STEPS)
        while parts.steps:
            parts.run(4, 100.0)
            draws(parts) if parts.trained("backward") else None
    assert state(whole) == state(parts)
    assert draws(whole) == draws(parts)


def test_samples_do_not_depend_on_their_number():
    bridge = make()
    advance(bridge, 2)
    for d in DIRECTIONS:
        many = bridge.sample(d, 3, n=1000, paths=True)
        for n in (1, 63, 64, 65, 130):
            assert np.array_equal(bridge.sample(d, 3, n=n, paths=True), many[:n])
            assert np.array_equal(bridge.sample(d, 3, n=n), many[:n, -1])
        assert not np.array_equal(bridge.sample(d, 4, n=10), many[:10, -1])
        noisy = bridge.sample(d, 3, n=10, paths=True, final_noise=True)
        assert np.array_equal(noisy[:, :-1], many[:10, :-1])
        assert (noisy[:, -1] != many[:10, -1]).all()


# ---- resuming ----

CUTS = [(0, 0), (0, 1), (0, 3), (0, 7), (0, 14), (0, 21), (0, STEPS - 1)]
CUTS += [(1, 0), (1, 5), (1, 7), (1, STEPS - 1), (2, 0), (2, 10), (3, 8)]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_resume_in_a_new_bridge(variant, begun):
    """Cut before begin, within and between windows, at the last step, between half-bridges."""
    whole = make(**VARIANTS[variant])
    advance(whole, 4)
    for half_bridges, step in CUTS:
        first = make(**VARIANTS[variant])
        advance(first, half_bridges)
        if begun or step:
            first.begin(STEPS)
        if step:
            first.run(step, 100.0)
        assert (first.half_bridge, first.step) == (half_bridges, step)
        second = moved(first, **VARIANTS[variant])
        assert second.get_position() == first.get_position()
        if begun or step:
            assert state(second) == state(first)
        advance(second, 4 - half_bridges)
        assert state(second) == state(whole), (half_bridges, step)


def test_resume_into_a_used_bridge():
    """What it did before, its filled cache too, must leave no trace."""
    whole, used = make(), make()
    advance(whole, 2)
    first = make()
    advance(first)
    first.begin(STEPS)
    first.run(10, 100.0)
    advance(used)
    used.begin(STEPS)
    used.set_plane("backward", "ema", np.full(_core.Net(OPS).plane, 0.01, np.float32))
    used.run(10, 100.0)  # in the same window as the other one
    for d, p in itertools.product(DIRECTIONS, PLANES):
        used.set_plane(d, p, first.get_plane(d, p))
    used.set_position(first.get_position(), *first.log())
    advance(used)
    assert state(used) == state(whole)


@pytest.mark.parametrize("refresh", [7, 20_000])
def test_interrupted_by_a_signal(refresh):
    """Ctrl-C between steps and within a simulation: go on, and nothing is lost or done twice."""
    short = {"batch": 4, "microbatch": 4, "lanes": 1} if refresh > 100 else {}
    whole, cut = make(refresh=refresh, **short), make(refresh=refresh, **short)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interruptions = 0
    try:
        while interruptions < 3:
            cut.begin(20_000)
            while cut.steps:
                signal.setitimer(signal.ITIMER_REAL, 0.01 * (1 + interruptions))
                try:
                    cut.run(10**6, 100.0)
                except KeyboardInterrupt:
                    interruptions += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    advance(whole, cut.half_bridge, steps=20_000)
    assert state(whole) == state(cut)


# ---- Python threads and processes ----


def in_threads(*functions):
    """Runs the functions at the same time; re-raises what they raise."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


def test_one_bridge_in_several_python_threads():
    whole, shared = make(), make()
    advance(whole)
    advance(whole, steps=1000)
    advance(shared)
    expected = draws(shared)
    shared.begin(1000)
    seen = []
    start = threading.Barrier(4)

    def train():
        start.wait()
        while shared.steps:
            try:
                shared.run(1, 100.0)
            except RuntimeError:  # another thread has done the last step
                assert shared.steps == 0

    def look():
        start.wait()
        while True:
            loss, norm = shared.log()
            assert len(loss) == len(norm)
            seen.append(shared.sample("backward", 5, n=333).tobytes())
            shared.get_plane("forward", "theta")
            if shared.get_position()["steps"] == 0:
                break

    in_threads(train, train, look, look)
    assert set(seen) == {expected[0]}
    assert state(whole) == state(shared)


def test_bridges_in_several_python_threads():
    alone = [make(seed=s) for s in range(4)]
    together = [make(seed=s) for s in range(4)]
    for bridge in alone:
        advance(bridge, 2)
    in_threads(*[lambda b=b: advance(b, 2, piece=2) for b in together])
    assert [state(b) for b in alone] == [state(b) for b in together]
    assert len({state(b)[0] for b in alone}) == 4


FORKED = r"""
import os, sys, hashlib
sys.path.insert(0, HERE)
import test_determinism as t
from dsb import _core

def digest(bridge):
    return hashlib.sha256(repr(t.state(bridge)).encode()).hexdigest()

_core.set_num_threads(3)
bridge = t.make()
t.advance(bridge)       # the pool has its threads
bridge.begin(t.STEPS)
bridge.run(5, 100.0)
pid = os.fork()
t.advance(bridge)       # in parent and child
t.advance(bridge)
os.write(1, digest(bridge).encode() + b"\n")  # whole lines: both write here
if pid == 0:
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0
"""


def test_child_of_a_fork_trains():
    code = FORKED.replace("HERE", repr(os.path.dirname(os.path.abspath(__file__))))
    parent, child = oracles.run_python(code).split()
    assert parent == child


def test_exit_while_training():
    """The interpreter ends although another thread is inside run(), and says nothing about it."""
    code = (
        FORKED.split("_core.set_num_threads")[0]
        + """
import threading, time
bridge = t.make(refresh=1000)
bridge.begin(10**6)
threading.Thread(target=lambda: bridge.run(10**6, 1e6), daemon=True).start()
time.sleep(0.3)
assert bridge.get_plane  # the lock is held; the object is alive
print("bye")
"""
    )
    code = code.replace("HERE", repr(os.path.dirname(os.path.abspath(__file__))))
    assert oracles.run_python(code, timeout=30).strip() == "bye"


# ---- leaks and failures ----


def resident():
    """Bytes of memory in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def churn(times):
    """Nets and bridges made, used a little and dropped, good ones and refused ones."""
    x, t = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    for i in range(times):
        net = _core.Net(OPS)
        with pytest.raises(ValueError):
            _core.Net([*OPS, {"op": "nonsense", "name": "n", "inputs": ["out"]}])
        small = make(batch=4, microbatch=0, lanes=0, refresh=1)
        with pytest.raises(ValueError):
            make(batch=4, microbatch=0, lanes=0, refresh=1, objective="nonsense")
        if i % 10 == 0:
            net.gradient(net.initial(0), x, t, x)
            small.begin(2)
            small.run(1, 1.0)
            small.sample("forward", 0, n=3, steps=np.array([0.1, 0.5]))


@pytest.mark.slow
def test_no_leak():
    churn(500)
    gc.collect()
    blocks, before = _core.live_blocks(), resident()
    churn(10_000)
    gc.collect()
    assert _core.live_blocks() == blocks
    assert resident() - before < 16 * 2**20


def fails_at_every_allocation(action, least):
    """`action` with its N-th allocation failing, N = 1, 2, ... until it gets through; its result."""
    gc.collect()
    for n in itertools.count(1):
        blocks = _core.live_blocks()
        _core.fail_allocation(n)
        try:
            result = action()
            break
        except MemoryError as error:
            assert "memory" in str(error)
        finally:
            _core.fail_allocation(0)
        gc.collect()
        assert _core.live_blocks() == blocks, f"allocation {n} of {action}"
    assert n > least, "the planned failures were not met"
    return result


def test_failing_allocations_of_a_net():
    net = fails_at_every_allocation(lambda: _core.Net(OPS), 3)
    theta, t = net.initial(0), np.linspace(0, 1000, 90, dtype=np.float32)
    for action in (
        lambda: (net.forward(theta, DATA, t),),
        lambda: net.gradient(theta, DATA, t, DATA),
        lambda: net.vjp(theta, DATA, t, DATA),
    ):
        expected = action()
        got = fails_at_every_allocation(action, 5)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert fails_at_every_allocation(lambda: net.plan("train", 64), 5) == net.plan("train", 64)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_failing_allocations_of_a_bridge(variant):
    """Each call fails at each of its allocations, then succeeds; the end is that of no failure."""
    gc.collect()
    before = _core.live_blocks()
    fail_everywhere(VARIANTS[variant])
    gc.collect()
    assert _core.live_blocks() == before


def fail_everywhere(changed):
    """The life of a bridge, each of its allocations failing once."""
    gaussian = {
        "prior": None,
        "prior_mean": np.ones(2, np.float32),
        "prior_factor": np.eye(2, dtype=np.float32),
    }
    changed = changed if "prior" in changed else changed | gaussian
    _core.set_num_threads(1)
    whole = make(**changed)
    advance(whole, 3)
    bridge = fails_at_every_allocation(lambda: make(**changed), 20)
    met = 0
    for half_bridge in range(3):
        _core.set_num_threads(1 + half_bridge)  # more threads: more workers are made on the way
        fails_at_every_allocation(lambda: bridge.begin(STEPS), 0)
        while bridge.steps:
            for n in itertools.count(1):
                _core.fail_allocation(n)
                at = bridge.step
                try:
                    bridge.run(1, 100.0)
                    break
                except MemoryError:
                    assert bridge.step == at
                    met += 1
                finally:
                    _core.fail_allocation(0)
    assert met > 10
    assert state(bridge) == state(whole)
    _core.set_num_threads(5)  # workers once more, now by sample()

    def sample():
        return bridge.sample("backward", 1, n=100)

    expected = whole.sample("backward", 1, n=100)
    for n in range(1, 12):
        _core.fail_allocation(n)
        try:
            assert np.array_equal(sample(), expected)
        except MemoryError:
            pass
        finally:
            _core.fail_allocation(0)
    assert np.array_equal(fails_at_every_allocation(sample, 0), expected)
    if changed.get("output") != "step":
        grid = np.array([0.2, 0.2, 0.2])
        expected = whole.sample("forward", 1, n=100, steps=grid)
        got = fails_at_every_allocation(lambda: bridge.sample("forward", 1, n=100, steps=grid), 1)
        assert np.array_equal(got, expected)
    fails_at_every_allocation(
        lambda: bridge.set_position(
            whole.get_position() | {"steps": 9, "step": 0}, *(np.zeros(0, np.float32),) * 2
        ),
        0,
    )
    assert bridge.steps == 9
