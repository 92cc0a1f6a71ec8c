"""Random numbers: published answers, distributions, and the same bits everywhere."""

import hashlib

import numpy as np
import oracles
import pytest

from dsb import _core

KNOWN = [  # counter, key, result: the authors' known answers
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_oracle_gives_the_known_answers(counter, key, result):
    assert tuple(int(w) for w in oracles.philox(key, *counter)) == result


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN[:1])
def test_core_gives_the_known_answer(counter, key, result):
    drawn = _core.uniforms(0, *counter[:3], 1, 4)[0]
    assert drawn.tolist() == [((w >> 9) * 2 + 1) / 2**24 for w in result]


def test_core_takes_every_word_of_counter_and_key():
    seed = KNOWN[2][1][0] | KNOWN[2][1][1] << 32
    c = KNOWN[2][0]
    drawn = _core.uniforms(seed, *c[:3], 3, 27)
    expected = oracles.uniforms(seed, *c[:3], 3, 27)
    assert np.array_equal(drawn, expected.astype(np.float32))
    # The last word counts groups of four columns; sample counts rows.
    assert np.array_equal(drawn[1:, 4:8], oracles.uniforms(seed, *c[:2], c[2] + 1, 2, 8)[:, 4:])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 15, 16, 17, 64, 257, 300])
def test_normals_against_float64(dim):
    z = _core.normals(2**63 + 11, 0x305, 7, 1000, 700, dim)
    expected = oracles.normals(2**63 + 11, 0x305, 7, 1000, 700, dim)
    # A few units in the last place: of the radius (below 5.8) near the zeros of sine and cosine.
    assert np.all(np.abs(z - expected) <= 4 * 2.0**-24 * np.maximum(1.0, np.abs(expected)))


def test_normals_are_normal():
    z = _core.normals(5, 9, 0, 0, 250_000, 4).astype(np.float64)
    n = z.size
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        assert abs((z**power).mean() - moment) < 5 * np.sqrt(variance / n), power
    products = z.T @ z / len(z) - np.eye(4)
    assert np.abs(products).max() < 5 * np.sqrt(2.0 / len(z))
    assert 4.5 < np.abs(z).max() <= 5.78  # the uniform has 23 bits
    special = pytest.importorskip("scipy.special")
    u = np.sort(special.ndtr(z.ravel()))
    assert np.abs(u - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)  # Kolmogorov, 1 in 1000


def test_numbers_do_not_depend_on_chunks():
    whole = _core.normals(3, 0x104, 2, 100, 200, 37)
    for first, rows in [(0, 1), (1, 7), (64, 64), (63, 65), (199, 1)]:
        part = _core.normals(3, 0x104, 2, 100 + first, rows, 37)
        assert np.array_equal(part, whole[first : first + rows])
    for dim in (1, 4, 5, 16, 36):
        assert np.array_equal(_core.normals(3, 0x104, 2, 100, 200, dim), whole[:, :dim])


def test_streams_steps_samples_and_seeds_differ():
    at = [(0, 1, 0, 0), (1, 1, 0, 0), (2**32, 1, 0, 0), (0, 2, 0, 0), (0, 0x101, 0, 0)]
    at += [(0, 1, 1, 0), (0, 1, 0, 1000)]
    for draw in (_core.normals, _core.uniforms):
        drawn = np.array([draw(*a, 500, 8).ravel() for a in at], np.float64)
        correlation = np.corrcoef(drawn) - np.eye(len(at))
        assert np.abs(correlation).max() < 5 / np.sqrt(drawn.shape[1])


def test_same_bits_on_every_instruction_set():
    code = """
import hashlib, numpy as np
from dsb import _core
h = hashlib.sha256()
for dim in (1, 2, 3, 4, 5, 8, 16, 33, 300):
    h.update(_core.normals(77, 4, 1, 9, 201, dim).tobytes())
    h.update(_core.uniforms(77, 4, 1, 9, 201, dim).tobytes())
h.update(_core.permutation(77, 5, 0, 1000).tobytes())
print(_core.isa(), h.hexdigest())
"""
    isas = _core.isas()
    found = [oracles.run_python(code, isa).split() for isa in isas]
    assert [f[0] for f in found] == isas
    assert len({f[1] for f in found}) == 1
    assert len(found[0][1]) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("n", [*range(1, 34), 63, 64, 65, 100, 127, 129, 1000, 1024, 4097])
def test_permutation(n):
    order = _core.permutation(41, 0x205, 3, n)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))
    if n <= 129:
        assert order.tolist() == oracles.permutation(41, 0x205, 3, n)


def test_permutations_differ():
    orders = [_core.permutation(*a, 1000) for a in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]]
    assert all((a != b).sum() > 900 for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13])
def test_permutation_is_uniform(n):
    """Each place takes each value, and each pair of places each order, equally often."""
    draws = 4000
    orders = np.array([_core.permutation(seed, 5, 0, n) for seed in range(draws)])
    counts = (orders[:, :, None] == np.arange(n)).sum(axis=0)
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum()
    freedom = (n - 1) ** 2
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom) + 8
    i, j = np.triu_indices(n, 1)
    ascending = (orders[:, i] < orders[:, j]).mean(axis=0)
    assert np.abs(ascending - 0.5).max() < 4.5 * 0.5 / np.sqrt(draws)
