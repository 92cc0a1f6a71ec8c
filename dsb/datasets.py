"""Toy data: points in the plane, as the literature on diffusion Schrödinger bridges has them, and images."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._check import F32, F64, choice, integer, nearest, path_of, shown
from .gaussian import USER_STREAM

U8 = NDArray[np.uint8]


class _Draw:
    """Random numbers of one set: every call is a new counter of Philox, the same on every machine."""

    def __init__(self, seed: int, number: int, n: int) -> None:
        # The number of the set stands above the low byte of the stream.
        self._seed, self._word, self._n, self._step = seed, USER_STREAM | number << 8, n, -1

    def uniform(self, columns: int) -> F64:
        self._step += 1
        draws = _core.uniforms(self._seed, self._word, self._step, 0, self._n, columns)
        return draws.astype(np.float64)

    def normal(self) -> F64:
        self._step += 1
        draws = _core.normals(self._seed, self._word, self._step, 0, self._n, 2)
        return draws.astype(np.float64)

    def shuffled(self, points: F64) -> F64:
        self._step += 1
        order = _core.permutation(self._seed, self._word, self._step, self._n)
        return np.asarray(points[order])


def _std7(points: F64) -> F64:
    """Minus the joint mean of both coordinates, over their joint standard deviation, times 7."""
    mean, std = float(points.mean()), float(points.std(ddof=1))
    return 7.0 * (points - mean) / std


def _polar(radius: float | F64, angle: F64) -> F64:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# ---- scikit-learn's shapes ----


def _s_curve(draw: _Draw) -> F64:
    t = 3.0 * np.pi * (draw.uniform(1)[:, 0] - 0.5)
    return np.stack([np.sin(t), np.sign(t) * (np.cos(t) - 1.0)], axis=1)


def _swiss_roll(draw: _Draw) -> F64:
    t = 1.5 * np.pi * (1.0 + 2.0 * draw.uniform(1)[:, 0])
    return _polar(t, t)


def _moons(draw: _Draw, n: int) -> F64:
    outer = _polar(1.0, np.linspace(0.0, np.pi, n // 2))
    inner = np.array([1.0, 0.5]) - _polar(1.0, np.linspace(0.0, np.pi, n - n // 2))
    return draw.shuffled(np.concatenate([outer, inner]))


def _circles(draw: _Draw, n: int) -> F64:
    outer = _polar(1.0, np.linspace(0.0, 2.0 * np.pi, n // 2, endpoint=False))
    inner = _polar(0.5, np.linspace(0.0, 2.0 * np.pi, n - n // 2, endpoint=False))
    return draw.shuffled(np.concatenate([outer, inner]))


# ---- the others ----


def _mixture(draw: _Draw, n: int) -> F64:
    centre = np.where(np.arange(n) < n // 2, -7.0, 7.0)
    return draw.shuffled(draw.normal() + np.stack([centre, np.zeros(n)], axis=1))


def _checkerboard(draw: _Draw) -> F64:
    u = draw.uniform(3)
    x = 4.0 * u[:, 0] - 2.0
    y = u[:, 1] - 2.0 * (u[:, 2] < 0.5) + np.floor(x) % 2.0
    return 7.5 * np.stack([x, y], axis=1)


def _pinwheel(draw: _Draw, n: int) -> F64:
    arm = np.arange(n) % 5
    radial, tangential = (draw.normal() * [0.3, 0.1] + [1.0, 0.0]).T
    angle = 2.0 * np.pi * arm / 5.0 + 0.25 * np.exp(radial)
    c, s = np.cos(angle), np.sin(angle)
    # The released code turns row vectors, so a positive angle is clockwise.
    turned = np.stack([radial * c + tangential * s, tangential * c - radial * s], axis=1)
    return draw.shuffled(7.5 * turned)


def _eight_gaussians(draw: _Draw, radius: float, std: float) -> F64:
    which = np.floor(8.0 * draw.uniform(1)[:, 0])
    return _polar(radius, which * np.pi / 4.0) + std * draw.normal()


_SETS: dict[str, Callable[[_Draw, int], F64]] = {
    "scurve": lambda draw, n: _std7(_s_curve(draw)),
    "swiss_roll": lambda draw, n: _std7(_swiss_roll(draw)),
    "moons": lambda draw, n: _std7(_moons(draw, n)),
    "circles": lambda draw, n: 10.0 * _circles(draw, n),
    "mixture": _mixture,
    "checkerboard": lambda draw, n: _checkerboard(draw),
    "pinwheel": _pinwheel,
    "8gaussians": lambda draw, n: 3.0 * _eight_gaussians(draw, 4.0, 0.5),
    "moons-table2": lambda draw, n: 2.0 * (_moons(draw, n) + 0.05 * draw.normal()) - 1.0,
    "scurve-table2": lambda draw, n: 1.5 * (_s_curve(draw) + 0.05 * draw.normal()),
    "8gaussians-table2": lambda draw, n: _eight_gaussians(draw, 5.0, 0.562),
    "moons-table2-pair": lambda draw, n: _std7(_moons(draw, n) + 0.1 * draw.normal()),
}
_ALIASES = {
    "s_curve": "scurve",
    "swiss": "swiss_roll",
    "moon": "moons",
    "circle": "circles",
    "checker": "checkerboard",
}
NAMES = tuple(_SETS)


def toy(name: str, n: int = 10_000, seed: int = 0) -> F32:
    r"""n points of a distribution in the plane.

    ===================  ==========================================================================
    name                 distribution
    ===================  ==========================================================================
    "scurve"             scikit-learn's S-curve, columns 0 and 2, no noise, standardised to 7
    "swiss_roll"         its Swiss roll, columns 0 and 2, no noise, standardised to 7
    "moons"              its two moons, no noise (evenly spaced points), standardised to 7
    "circles"            its two circles, factor .5, no noise (evenly spaced points), times 10
    "mixture"            half N((-7, 0), I), half N((7, 0), I)
    "checkerboard"       x uniform on [-2, 2], y = U - 2 B(1/2) + (floor(x) mod 2), times 7.5
    "pinwheel"           5 arms: radius N(1, .3^2), tangent N(0, .1^2), turned by
                         2 pi j / 5 + exp(radius) / 4, times 7.5
    "8gaussians"         8 centres on a circle of radius 4, std .5, times 3
    "moons-table2"       two moons with noise .05, times 2, minus 1
    "scurve-table2"      S-curve with noise .05, columns 0 and 2, times 1.5
    "8gaussians-table2"  8 centres on a circle of radius 5, std .562
    "moons-table2-pair"  two moons with noise .1, standardised to 7: the source of the pair of moons
                         and "8gaussians"
    ===================  ==========================================================================

    Standardised to 7: minus the mean of all numbers, both coordinates together, over their standard
    deviation, times 7. Aliases: s_curve, swiss, moon, circle, checker.

    Parameters
    ----------
    name : str
    n : int
        Number of points.
    seed : int
        Equal seeds, equal points; sets of different names are independent.

    Returns
    -------
    ndarray, shape (n, 2), float32
        Rows in random order. (In the released code the first half of a mixture lies left and the second
        right, so that its first rows do not represent it.)

    Raises
    ------
    ValueError
        The name is not known; the nearest one is named.

    Notes
    -----
    The first eight: section 5.1 of arXiv:2106.01357, as its released code draws them. Those with
    "table2": table 2 of Shi et al., Diffusion Schrödinger Bridge Matching, arXiv:2303.16852, where the
    other end of the first three is N(0, I).
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {shown(name)}")
    found = _ALIASES.get(name, name)
    if found not in _SETS:
        listed = ", ".join(map(repr, NAMES))
        hint = nearest(name, [*NAMES, *_ALIASES])
        raise ValueError(f"name: expected one of {listed}, got {shown(name)}{hint}")
    n, seed = integer("n", n, 1, 2**31 - 1), integer("seed", seed, 0)
    draw = _Draw(seed, NAMES.index(found) + 1, n)
    return np.ascontiguousarray(_SETS[found](draw, n), dtype=np.float32)


# ---- images ----

# Distance from the edge, positive inside, of a figure of radius 1 at points (x, y).
_FIGURES: dict[str, Callable[[F64, F64], F64]] = {
    "discs": lambda x, y: 1.0 - np.hypot(x, y),
    "rings": lambda x, y: 0.25 - np.abs(np.hypot(x, y) - 0.75),
    "squares": lambda x, y: 0.8 - np.maximum(np.abs(x), np.abs(y)),
    "crosses": lambda x, y: np.maximum(
        np.minimum(1.0 - np.abs(x), 0.3 - np.abs(y)), np.minimum(1.0 - np.abs(y), 0.3 - np.abs(x))
    ),
}


def images(name: str = "shapes", n: int = 5000, size: int = 16, seed: int = 0) -> U8:
    r"""n grey images of one white figure each, at a random place and of a random radius.

    Parameters
    ----------
    name : {"shapes", "discs", "rings", "squares", "crosses"}
        "shapes": one of the others at random. They are drawn without edges of the pixels' staircase.
    n : int
        Number of images.
    size : int
        Height and width, from 4; radii are uniform on [.2, .35] of it.
    seed : int
        Equal seeds, equal images; those of different names are independent.

    Returns
    -------
    ndarray, shape (n, 1, size, size), uint8
    """
    which = choice("name", name, ("shapes", *_FIGURES))
    n, seed = integer("n", n, 1, 2**31 - 1), integer("seed", seed, 0)
    size = integer("size", size, 4, 256)
    figures = list(_FIGURES.values())
    number = len(NAMES) + 1 + ["shapes", *_FIGURES].index(which)
    u = _Draw(seed, number, n).uniform(4)
    radius = size * (0.2 + 0.15 * u[:, 0])
    low = radius + 0.5
    centre = low + u[:, 1:3].T * (size - 2.0 * low)
    kind = (u[:, 3] * len(figures)).astype(int)
    at = np.arange(size) + 0.5
    found = np.empty((n, 1, size, size), np.uint8)
    for i in range(n):
        x, y = (at[None, :] - centre[0, i]) / radius[i], (at[:, None] - centre[1, i]) / radius[i]
        inside = (figures[kind[i]] if which == "shapes" else _FIGURES[which])(x, y)
        found[i, 0] = np.rint(255.0 * np.clip(inside * radius[i] + 0.5, 0.0, 1.0))
    return found


def idx_images(path: str | os.PathLike[str]) -> U8:
    """Images of a file in the format of MNIST (idx3-ubyte, also .gz), shape (n, 1, h, w), uint8."""
    import gzip

    path = path_of(path)
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    head = np.frombuffer(content[:16].ljust(16, b"\0"), ">u4").astype(int)
    if head[0] != 0x803 or len(content) != 16 + head[1] * head[2] * head[3]:
        raise ValueError(f"{path}: not a whole file of images in the format of MNIST (idx3-ubyte)")
    return np.frombuffer(content, np.uint8, offset=16).reshape(head[1], 1, head[2], head[3])
