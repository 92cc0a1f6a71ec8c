"""How far two sets of samples are apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._check import F32, F64, Rows, integer, rows
from .gaussian import scaling

_STREAM = 9 | 255 << 8  # csrc/base/philox.h, DSB_STREAM_USER, apart from the data sets


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, projections: int = 200, seed: int = 0) -> float:
    r"""Sliced 2-Wasserstein distance, sqrt(E_u W_2^2(u . x, u . y)), u uniform on the unit sphere.

    On a line W_2^2 = int_0^1 (Qx(s) - Qy(s))^2 ds with the quantile functions Q of the samples, which is
    computed exactly, for samples of unequal sizes too; the mean over u is over random directions.

    Parameters
    ----------
    x, y : array_like, shapes (n, d) and (m, d), or (n, c, h, w) and (m, c, h, w)
        Bytes are read on the scale -1 .. 1, as `Bridge` reads them.
    projections : int
        Number of directions.
    seed : int
        Of the directions: equal seeds make values comparable.

    Returns
    -------
    float
        In units of the data. Two samples of one distribution do not give 0 but a floor of order
        n^(-1/2); look at it beside the value.

    Raises
    ------
    TypeError, ValueError
        As for the data of a `Bridge`.
    """
    a = _floats(rows("x", x, least=1))
    b = _floats(rows("y", y, least=1, dim=a.shape[1]))
    count = integer("projections", projections, 1, 2**24)
    directions = _core.normals(integer("seed", seed, 0), _STREAM, 0, 0, count, a.shape[1])
    units = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float64)
    return float(np.sqrt(np.mean([_line(a @ u, b @ u) for u in units])))


def _floats(found: Rows) -> F32:
    scale, shift = scaling(found.dtype)
    return found.astype(np.float32, copy=False) * np.float32(scale) + np.float32(shift)


def _line(a: F64, b: F64) -> float:
    """Squared W_2 of two samples on a line."""
    a, b = np.sort(a), np.sort(b)
    if len(a) == len(b):
        return float(np.mean((a - b) ** 2))
    # Both quantile functions are constant between neighbouring multiples of 1/n and 1/m.
    n, m = len(a), len(b)
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # times 1 / (n m): exact
    lengths = np.diff(edges, prepend=0) / (n * m)
    middle = edges - 1
    return float(np.sum(lengths * (a[middle // m] - b[middle // n]) ** 2))
