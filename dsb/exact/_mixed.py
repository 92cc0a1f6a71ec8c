"""Mixtures of pinned references: what a half-bridge of bridge targets learns from."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..gaussian import Gaussian
from ..history import Direction
from ._linear import GaussianCoupling, Step, triangle
from ._reference import Pinned, ReferenceProcess
from .gaussian import End, averaged


class PinnedStep(NamedTuple):
    """What a direction's step k is drawn from."""

    state: Pinned  # the state that it leaves, given both ends
    step: Pinned  # the state that it enters, given the one that it leaves and the end to which it runs


def pinned_steps(process: ReferenceProcess, direction: Direction) -> list[PinnedStep]:
    """Of every step of a direction, in order of time."""
    times = process.times_of(None)
    found = []
    for early, late in pairwise(times):
        if direction == "forward":
            left, step = early, process.pinned(early, late, process.T)
        else:
            left, step = late, process.pinned(0.0, early, late)
        found.append(PinnedStep(process.pinned(0.0, left, process.T), step))
    return found


def mixed_step(ends: GaussianCoupling, pinned: PinnedStep, direction: Direction) -> Step:
    r"""A step's law under the reference pinned at both ends, averaged over the ends.

    With (X_0, X_N) = m + F z and the state p X_0 + q X_N + c + sqrt(r) w, both the state and the end to
    which the step runs are linear in the normals (z, w). One triangle of the two gives the end given the
    state, and the pinned step does the rest: nothing is divided by r, which is 0 at the ends.

    Parameters
    ----------
    ends : GaussianCoupling
        The law of (X_0, X_N); the state's covariance must not be singular.
    pinned : PinnedStep
    direction : {"backward", "forward"}
    """
    d, (p, q, r, c) = ends.dim, pinned.state
    first, second = np.split(ends._factor, 2)
    start, prior = np.split(ends.mean, 2)
    end, of_end = (prior, second) if direction == "forward" else (start, first)
    here = p * start + q * prior + c
    noise = np.concatenate([np.sqrt(r) * np.eye(d), np.zeros((d, d))])
    joint = triangle(np.concatenate([p * first + q * second, of_end]), noise)
    G = np.asarray(np.linalg.solve(joint[:d, :d].T, joint[d:, :d].T).T)
    return averaged(pinned.step, direction, here, end, End(G, joint[d:, d:]))


def independent(source: Gaussian, prior: Gaussian) -> GaussianCoupling:
    """Ends that know nothing of each other."""
    one, other = np.linalg.cholesky(source.cov), np.linalg.cholesky(prior.cov)
    zero = np.zeros_like(one)
    mean = np.concatenate([source.mean, prior.mean])
    return GaussianCoupling(mean, np.block([[one, zero], [zero, other]]))
