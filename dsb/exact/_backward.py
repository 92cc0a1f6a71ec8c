r"""The backward drift of a bridge with a mixture potential, which has no closed form.

b_t(x) = (E[X_0 given X_t = x] - x) / t, where X_0 has the density f ~ p_0 N(.; x, 2 t I) / phi_0. Let p_0
be a Gaussian N(a, P) (a mixture of such is treated part by part), N_k = N(.; mu_k, S_k + eps I) and
phi_0 = sum_k w_k N_k. For every k, f is the Gaussian q_k ~ p_0 N(.; x, 2 t I) / N_k times the responsibility
r_k = w_k N_k / phi_0, which is at most 1. With H = P^{-1} - (S_k + eps I)^{-1}, J = (I + 2 t H)^{-1} and
l = grad log (p_0 / N_k) at x, q_k = N(x + 2 t J l, 2 t J), and by integration by parts under q_k

    b_t(x) = 2 J (l E r_k + E grad r_k) / E r_k,    grad r_k = r_k (grad log N_k - grad log phi_0).

or directly, with draws X of q_k, b_t(x) = 2 J l + E[r_k (X - E X)] / (t E r_k). Only these expectations are
estimated, from antithetic draws that are the same for all x. The first form is used along directions in which
responsibilities change little among the draws (it is exact where they do not, and at t = 0), the second along
those few in which they are steep, where grad r_k is rarely met. Of the K choices of k the one with the least
bound Z_k / w_k on f is taken, whose draws are the most effective; rows with too few of them are given more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from .._check import F64
from ._reference import IMPORTANCE
from .laws import Mixture, _fold

EFFECTIVE = 20.0  # draws that the weights must leave, or there is no estimate
ROUNDS, MORE = 3, 8  # how often, and how many times as many draws are tried
STEEP = 4.0  # change of log (r_k / r_j) in a standard deviation of the draws
SPREAD = 2.0  # how far out, in standard deviations, a draw is that was not met
TINY = 1e-300  # keeps a division by weights that have all vanished from being one by zero
BLOCK = 1 << 20  # numbers of a temporary array


class Estimated(NamedTuple):
    """An estimate and its standard error."""

    value: F64  # (n, d)
    error: F64  # (n,): root mean square over the coordinates


class Form(NamedTuple):
    """q_k for a part of p_0, in the axes of H."""

    axes: F64 | None  # (d, d), in columns; None: the coordinates'
    H: F64  # (d,), eigenvalues

    def to(self, x: F64) -> F64:
        return x if self.axes is None else x @ self.axes

    def back(self, y: F64) -> F64:
        return y if self.axes is None else y @ self.axes.T


def forms(source: Mixture, end: Mixture) -> list[list[Form]]:
    """H for every part of p_0 and every component of phi_0 (`end`)."""
    diagonal = source._basis is None and end._basis is None
    precisions = [
        1.0 / m._values if diagonal else m.spectral(1.0 / m._values) for m in (source, end)
    ]
    found = []
    for ours in precisions[0]:
        row = []
        for theirs in precisions[1]:
            if diagonal:
                row.append(Form(None, ours - theirs))
            else:
                values, vectors = np.linalg.eigh(ours - theirs)
                row.append(Form(vectors, values))
        found.append(row)
    return found


def estimate(
    source: Mixture, end: Mixture, table: list[list[Form]], x: F64, t: float, count: int, seed: int
) -> Estimated:
    """b_t at every row of x from `count` antithetic pairs.

    Raises
    ------
    ValueError
        The weights of the draws leave too few of them.
    """
    bounds = _log_masses(source, end, table, x, t)  # (n, parts, K)
    with np.errstate(divide="ignore"):
        total = np.logaddexp.reduce(bounds, axis=1) - np.log(end.weights)
    chosen = total.argmin(axis=1)
    value, error = np.empty_like(x), np.empty(len(x))
    left = np.arange(len(x))
    for _ in range(ROUNDS):
        z = _core.normals(seed, IMPORTANCE, 0, 0, count, x.shape[1]).astype(np.float64)
        z = np.concatenate([z, -z])
        effective = np.empty(len(left))
        many = max(1, BLOCK // (len(z) * x.shape[1]))
        for k in np.unique(chosen[left]):
            rows = np.flatnonzero(chosen[left] == k)
            for first in range(0, len(rows), many):
                here = rows[first : first + many]
                some = left[here]
                shares = _fold(bounds[some, :, k])[1]
                draws = Draws(source, end, table, int(k), x[some], t, z, shares)
                effective[here] = draws.effective()
                value[some], error[some] = draws.answer()
        left, least = left[effective < EFFECTIVE], effective.min()
        if not len(left):
            return Estimated(value, error)
        count *= MORE
    raise ValueError(
        f"pairs: expected more, got {count // MORE**ROUNDS}: of {len(z)} draws at one of the points, only "
        f"{least:.2g} have weight in the backward drift, and {EFFECTIVE:g} are needed"
    )


def _slope(source: Mixture, end: Mixture, j: int, k: int, x: F64) -> F64:
    """l = grad log (N(a_j, P_j) / N_k)."""
    return source.component_score(j, x) - end.component_score(k, x)


def _log_masses(source: Mixture, end: Mixture, table: list[list[Form]], x: F64, t: float) -> F64:
    """log of Z_jk = p_j int N(x_0; a_j, P_j) N(x_0; x, 2 t I) / N_k(x_0) dx_0, shape (n, parts, K)."""
    ours = source.log_terms(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = end.log_terms(x) - np.log(end.weights)
    result = np.empty((len(x), len(source), len(end)))
    for j, row in enumerate(table):
        for k, form in enumerate(row):
            J = 1.0 / (1.0 + 2.0 * t * form.H)
            slope = form.to(_slope(source, end, j, k, x))
            grown = t * np.einsum("ij,ij,j->i", slope, slope, J) + 0.5 * np.log(J).sum()
            result[:, j, k] = ours[:, j] - theirs[:, k] + grown
    return np.where(end.weights > 0, result, 0.0)


class Draws:
    """Draws by the form k for rows x: their weights and what is averaged.

    `shares` are those of the parts of p_0; `z` holds antithetic pairs, one half behind the other.
    """

    def __init__(
        self,
        source: Mixture,
        end: Mixture,
        table: list[list[Form]],
        k: int,
        x: F64,
        t: float,
        z: F64,
        shares: F64,
    ) -> None:
        n, d = x.shape
        self._weights: list[F64] = []  # (n, draws) of every part
        self._terms: list[F64] = []  # (n, draws, d) of every part
        self._unseen = np.zeros(n)
        others = [
            end.component_score(k, x) - end.component_score(int(i), x)
            for i in np.flatnonzero(end.weights)
        ]
        for j in range(len(source)):
            form = table[j][k]
            J = 1.0 / (1.0 + 2.0 * t * form.H)
            std = np.sqrt(2.0 * t * J)
            slope = form.to(_slope(source, end, j, k, x))
            flat = (x + form.back(2.0 * t * J * slope))[:, None] + form.back(z * std)
            flat = flat.reshape(-1, d)
            given = _fold(end.log_terms(flat))[1]
            rise = form.to(end.component_score(k, flat) - end.score_of(flat, given)).reshape(
                n, -1, d
            )
            weight = given[:, k].reshape(n, -1) * shares[:, j, None]
            term = (slope[:, None] + rise) * (2.0 * J)
            changes = np.stack([form.to(other) * std for other in others], axis=1)
            _, size, directions = np.linalg.svd(changes, full_matrices=False)
            out = np.sqrt(2.0 * J / t) if t > 0 else np.zeros(d)
            if (size > STEEP).any():
                steep = np.where((size > STEEP)[..., None], directions, 0.0)
                along = np.einsum("nqd,nmd->nqm", steep, z - std * rise)
                term += out * np.einsum("nqm,nqd->nmd", along, steep)
            reach = out * directions * np.minimum(size / STEEP, 1.0)[..., None] ** 2
            width = np.sqrt(np.square(reach).sum(axis=(1, 2)) / d)
            self._unseen += shares[:, j] * SPREAD * width
            self._weights.append(weight)
            self._terms.append(form.back(term))

    def effective(self) -> F64:
        """(sum w)^2 / sum w^2, shape (n,)."""
        squares = sum(np.square(w).sum(axis=1) for w in self._weights)
        return np.asarray(self._total() ** 2 / np.maximum(squares, TINY))

    def answer(self) -> tuple[F64, F64]:
        """b_t, the weighted mean, and its standard error, from pairs.

        Where responsibilities are steep, a draw that has not been met could have counted as much as one of
        those that were: the error allows for it.
        """
        total = np.maximum(self._total(), TINY)
        parts = list(zip(self._weights, self._terms, strict=True))
        value = np.asarray(sum(np.einsum("im,imd->id", w, v) for w, v in parts) / total[:, None])
        variance = np.square(self._unseen)
        for w, v in parts:
            rest = w[..., None] * (v - value[:, None])
            half = rest.shape[1] // 2
            pairs = rest[:, :half] + rest[:, half:]
            pairs -= pairs.mean(axis=1, keepdims=True)
            variance += np.square(pairs).sum(axis=(1, 2)) / value.shape[1]
        return value, np.sqrt(variance) / total

    def _total(self) -> F64:
        return np.asarray(sum(w.sum(axis=1) for w in self._weights))
