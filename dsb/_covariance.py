"""Covariances of the noise of steps: which there may be, and what is said about them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ._check import F64, Shape, choice
from .history import Direction

if TYPE_CHECKING:
    from ._answers import Answers
    from ._settings import Settings

Kind = Literal["reference", "scalar", "diagonal", "full"]
COVARIANCES: tuple[Kind, ...] = ("reference", "scalar", "diagonal", "full")
MAX_FULL = 512  # dimension of full matrices, at most
LEAST_PATHS = 16
MAX_PATHS = 1 << 24


class Covariance(NamedTuple):
    """Covariances of a direction's steps, in the order of time."""

    values: F64  # q_k of q_k I, shape (N,); diagonals, (N, d) or (N, c, h, w); matrices, (N, d, d)
    raised: int  # eigenvalues, of all steps together, that lay below .05 g_k and were raised to it
    kind: Kind  # "reference" where nothing was estimated


def least_paths(kind: str, dim: int) -> int:
    """Paths that an estimate needs."""
    return max(256, 4 * dim) if kind == "full" else LEAST_PATHS


def check(settings: Settings, point: Shape) -> None:
    """ValueError where points of shape (d,) or (c, h, w) cannot have such covariances."""
    kind, paths, dim = settings.covariance, settings.covariance_paths, int(np.prod(point))
    if kind == "full" and len(point) == 3:
        raise ValueError(
            f"covariance: 'full' would be {dim} x {dim} numbers a step for images; use 'diagonal'"
        )
    if kind == "full" and dim > MAX_FULL:
        raise ValueError(
            f"covariance: 'full' is for at most {MAX_FULL} dimensions, got {dim}; use 'diagonal'"
        )
    if kind != "reference" and paths < least_paths(kind, dim):
        why = (
            " for 'full': with 4 d paths the eigenvalues of a sample covariance still lie between 1/4 "
            "and 9/4 of the true ones"
            if kind == "full"
            else ""
        )
        raise ValueError(
            f"covariance_paths: expected at least {least_paths(kind, dim)}{why}, got {paths}"
        )


def warn_of_objective(settings: Settings) -> None:
    """Equation 12 has another limit than the conditional mean, whose covariance residuals estimate."""
    if settings.objective == "dsb" and settings.covariance != "reference":
        warnings.warn(
            f"covariance: {settings.covariance!r} is exact with a net that tends to the conditional mean; "
            "the limit of objective 'dsb', equation 12, is another, and both together can be further off "
            "than the reference's covariance; use objective='simplified' or 'bridge'",
            stacklevel=3,
        )


def warn_of_raised(bridge: Answers, direction: Direction) -> None:
    """After a half-bridge."""
    values, raised, kind = of(bridge, direction)
    if raised:
        many = values.shape[0] * values.shape[1] if kind == "full" else values.size
        warnings.warn(
            f"covariance: {raised} of {many} eigenvalues of the {direction} steps lay below .05 g and were "
            "raised to it: the data lie (nearly) on a surface, or covariance_paths are few",
            stacklevel=6,
        )


def of(bridge: Answers, direction: Direction) -> Covariance:
    """`Bridge.covariance`."""
    with bridge._in_line(), bridge._turn:
        values, raised = bridge._core.get_covariance(direction)
    if values is None:
        return Covariance(2.0 * bridge.schedule.steps, 0, "reference")
    kind = choice("covariance", bridge._settings.covariance, COVARIANCES)
    if kind == "diagonal":
        values = values.reshape(-1, *bridge.shape)
    return Covariance(values, raised, kind)
