"""Where the samples that a metric compares come from, and how they are made comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._build import mixed
from .._check import F32, F64, MAX_ROWS, choice, flag, integer, points, shown
from ..gaussian import exact_floats
from ..history import DIRECTIONS, Direction

if TYPE_CHECKING:
    from ..bridge import Bridge

Points = NDArray[np.float32] | NDArray[np.float64]  # [n, d]
Source = Any  # array_like, or with sample(n, seed=), or a callable (n, seed)

DRAWS = 10_000  # from what can be drawn from, where nothing else is said


class Generated:
    """What a bridge generates, as something to draw from: `generated` makes it."""

    def __init__(self, bridge: Bridge, direction: Direction, final_noise: bool) -> None:
        self.bridge, self.direction, self.final_noise = bridge, direction, final_noise

    @property
    def dim(self) -> int:
        """d."""
        return self.bridge.dim

    def sample(self, n: int, seed: int = 0) -> F32:
        """End points of n paths, shape (n, d) or (n, c, h, w)."""
        told = {"direction": self.direction, "final_noise": self.final_noise}
        return self.bridge.sample(n, seed=seed, **told)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        noise = ", with the noise of the last step" if self.final_noise else ""
        return f"what the {self.direction} process of {self.bridge!r} generates{noise}"


def generated(
    bridge: Bridge, direction: Direction = "backward", final_noise: bool = False
) -> Generated:
    """What one direction of a bridge generates, to be given to a metric in place of samples.

    Parameters
    ----------
    bridge : Bridge
        Given to a metric by itself it stands for `generated(bridge)`.
    direction : {"backward", "forward"}
        X_0 from X_N ~ prior, or X_N from X_0 ~ source.
    final_noise : bool
        As in `Bridge.sample`: whether the last step, too, adds its noise.
    """
    if not hasattr(bridge, "paths"):
        raise TypeError(f"bridge: expected a dsb.Bridge, got {shown(bridge)}")
    return Generated(
        bridge, choice("direction", direction, DIRECTIONS), flag("final_noise", final_noise)
    )


def is_array(source: object) -> bool:
    """Whether `source` is samples rather than something to draw them from."""
    if any(hasattr(source, name) for name in ("__array__", "__dlpack__", "__array_interface__")):
        return True
    return isinstance(source, (Sequence, memoryview)) and not hasattr(source, "sample")


def is_law(source: object) -> bool:
    """Whether the mean and covariance of `source` are known."""
    return not is_array(source) and hasattr(source, "mean") and hasattr(source, "cov")


def samples(name: str, value: object, *, least: int = 1, dim: int | None = None) -> Points:
    """Samples as [n, d], finite; float64 stays float64, bytes are read on the scale -1 .. 1."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name}: expected samples [n, d], got {shown(value)}")
    found, _ = points(name, value, least=1)
    if len(found) < least:
        raise ValueError(f"{name}: expected at least {least} samples, got {len(found)}")
    if dim is not None and found.shape[1] != dim:
        raise ValueError(f"{name}: expected {dim} columns, got shape {found.shape}")
    return exact_floats(name, found, value)


def draw(
    name: str, source: Source, n: int, seed: int, *, least: int = 1, dim: int | None = None
) -> Points:
    """All of an array, or n draws of anything else."""
    if is_array(source):
        return samples(name, source, least=least, dim=dim)
    if n < least:
        raise ValueError(f"n: expected at least {least} samples of {name}, got {n}")
    if callable(getattr(source, "sample", None)):
        drawn = samples(name, source.sample(n, seed=seed), dim=dim)
    elif callable(source):
        drawn = samples(name, source(n, seed), dim=dim)
    else:
        raise TypeError(
            f"{name}: expected samples, a law or a dsb.Bridge, got {type(source).__name__}; "
            "its marginal(t) is a law"
        )
    if len(drawn) != n:
        raise ValueError(f"{name}: expected {n} samples when {n} are drawn, got {len(drawn)}")
    return drawn


def draw_both(
    x: Source, y: Source, n: object, seed: object, *, least: int = 1
) -> tuple[Points, Points]:
    """The two samples of a metric; those that are drawn are independent of each other."""
    many, seed = checked(n, seed)
    a = draw("x", x, many, mixed(seed, 0), least=least)
    return a, draw("y", y, many, mixed(seed, 1), least=least, dim=a.shape[1])


def checked(n: object, seed: object) -> tuple[int, int]:
    """A number of draws and a seed."""
    return integer("n", n, 1, MAX_ROWS), integer("seed", seed, 0)


class Comparable(NamedTuple):
    """Two samples around their common centre, in units of a power of two."""

    x: F32
    y: F32
    unit: float


def _over_rows(function: np.ufunc, values: Points) -> F64:
    """function.reduce over the rows, in float64, by lines of 32 of them: NumPy is slow at short ones."""
    whole, dtype = len(values) // 32 * 32, np.float64 if function is np.add else values.dtype
    found = [values[whole:]]
    if whole:
        lines = values[:whole].reshape(whole // 32, -1)
        found.append(function.reduce(lines, axis=0, dtype=dtype).reshape(32, -1))
    return np.asarray(function.reduce(np.concatenate(found), axis=0, dtype=dtype), np.float64)


def comparable(a: Points, b: Points) -> Comparable:
    """Float32 copies of which squares neither overflow nor lose the differences to a common offset.

    The centre is the mean of the two means, and the scale is a power of two, so that float32 samples lose
    nothing but what lies below 2^-24 of the spread.
    """
    low = np.minimum(*(_over_rows(np.minimum, values) for values in (a, b)))
    high = np.maximum(*(_over_rows(np.maximum, values) for values in (a, b)))
    means = [_over_rows(np.add, values) / len(values) for values in (a, b)]
    centre = np.clip((means[0] + means[1]) / 2.0, low, high)  # exact where all values are equal
    most = max(float((high - centre).max()), float((centre - low).max()))
    unit = 2.0 ** np.ceil(np.log2(most)) if most > 0 else 1.0

    def moved(values: Points) -> F32:
        out = np.empty(values.shape, np.float32)
        step = max(1, (1 << 16) // values.shape[1])
        for first in range(0, len(values), step):
            part = values[first : first + step] - centre
            part /= unit
            out[first : first + step] = part
        return out

    return Comparable(moved(a), moved(b), float(unit))


def moments(x: Points) -> tuple[F64, F64]:
    """Mean and covariance (divided by n - 1) in float64."""
    centre = x.mean(axis=0, dtype=np.float64)
    moved = x - centre
    return centre, moved.T @ moved / (len(x) - 1)
