"""Which modes of a mixture samples have found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._check import F64, real
from ..exact.laws import probabilities
from ._kind import kind
from ._samples import DRAWS, Points, Source, checked, draw, samples


class ModeCoverage(NamedTuple):
    """What `mode_coverage` finds."""

    hit: float  # fraction of the modes that were found
    total_variation: float  # between found and true weights
    beyond: float  # fraction of the points that lie beyond the radius of every mode
    weights: F64  # found ones: the fraction of the points that each centre is the nearest of


@kind("centres", judges=lambda y: callable(getattr(y, "sample", None)))
def mode_coverage(
    x: Source,
    centres: Any,
    radius: float | None = None,
    *,
    weights: Any = None,
    least: float = 0.1,
    n: int = DRAWS,
    seed: int = 0,
) -> ModeCoverage:
    r"""How the modes of a mixture are covered by samples.

    Every point belongs to the centre that is nearest to it.

    Parameters
    ----------
    x : array_like, shape (n, d), or anything to draw samples from
        As in `wasserstein`.
    centres : array_like, shape (K, d), or a mixture with `means`, `weights` and `covs`
    radius : float, optional
        How far from its centre a mode reaches, in units of the data. Default, for a mixture only: the
        largest deviation of a component in any direction times (sqrt(d) + 3).
    weights : array_like, shape (K,), optional
        True weights. Default: those of the mixture, or equal ones.
    least : float
        A mode is found where its points within the radius are at least this part of what its weight
        promises, and at least one.
    n, seed : int
        Number of samples and seed for what is drawn from; arrays are taken whole.

    Returns
    -------
    ModeCoverage
        hit, the fraction of the modes that were found; total_variation, half the sum of
        |found - true weight|; beyond, the fraction of points farther than the radius from every centre;
        weights, the found ones. `estimate` is told of which of the first three by field="hit" and so on.
    """
    many, seed = checked(n, seed)
    share = real("least", least, least=0, most=1)
    places, radius, expected = _modes(centres, radius, weights)
    found = draw("x", x, many, seed, dim=places.shape[1])
    nearest, distance = _nearest(found, places)
    within = distance <= radius
    counts = np.bincount(nearest, minlength=len(places))
    near = np.bincount(nearest[within], minlength=len(places))
    wanted = expected > 0
    hit = near >= np.maximum(share * expected * len(found), 1.0)
    own = counts / len(found)
    return ModeCoverage(
        float(hit[wanted].mean()),
        float(np.abs(own - expected).sum() / 2.0),
        float(np.mean(~within)),
        own,
    )


def _modes(centres: Any, radius: object, weights: Any) -> tuple[F64, float, F64]:
    """Centres, radius and weights, checked."""
    if hasattr(centres, "means") and hasattr(centres, "covs"):
        places = samples("centres", np.asarray(centres.means, np.float64)).astype(np.float64)
        weights = centres.weights if weights is None else weights
        if radius is None:
            widest = max(float(np.linalg.eigvalsh(cov)[-1]) for cov in np.asarray(centres.covs))
            radius = widest**0.5 * (places.shape[1] ** 0.5 + 3.0)
    else:
        places = samples("centres", centres).astype(np.float64)
        if radius is None:
            raise ValueError(
                "radius: expected a number, since centres alone do not say how far they reach"
            )
    expected = np.full(len(places), 1.0 / len(places))
    if weights is not None:
        given = probabilities("weights", weights)
        if given.shape != expected.shape:
            raise ValueError(
                f"weights: expected shape {expected.shape}, one for each centre, got {given.shape}"
            )
        expected = given
    return places, real("radius", radius, above=0), expected


def _nearest(x: Points, places: F64) -> tuple[Any, F64]:
    """Number and distance of the nearest centre of every row."""
    nearest, distance = np.empty(len(x), np.int64), np.empty(len(x))
    step = max(1, (1 << 20) // places.size)
    for first in range(0, len(x), step):
        gaps = x[first : first + step, None].astype(np.float64) - places
        squares = np.einsum("nkd,nkd->nk", gaps, gaps)
        nearest[first : first + step] = squares.argmin(axis=1)
        distance[first : first + step] = np.sqrt(squares.min(axis=1))
    return nearest, distance
