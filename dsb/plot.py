"""Pictures of bridges, with Matplotlib (an extra: pip install 'schrodinger-bridge[plot]').

The functions return a Matplotlib Figure that is registered nowhere: save it with `figure.savefig(path)`;
a notebook shows it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._check import F32, F64, array, choice, integer

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        "dsb.plot needs Matplotlib: pip install 'schrodinger-bridge[plot]'", name="matplotlib"
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._convergence import Panel
    from .bridge import Bridge
    from .exact import GaussianIPF, PopulationDSB, Problem
    from .history import History

# Okabe and Ito's colours, told apart with any colour vision and in grey.
BACKWARD, FORWARD, LINES = "#D55E00", "#0072B2", "#7F7F7F"
_COLOURS = {"backward": BACKWARD, "forward": FORWARD}
_MARKERS = {"backward": "<", "forward": ">"}
MANY = 1024  # coordinates, from which on a covariance matrix takes too long


class _Figure(Figure):
    """A figure that a notebook shows without pyplot, and therefore once."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()


class Snapshot(NamedTuple):
    """Paths of both directions after some number of IPF iterations."""

    iteration: int
    times: F64  # t_0 .. t_N
    backward: F32  # [n, N + 1, d], from the prior to the source
    forward: F32  # [n, N + 1, d], from the source to the prior


class Projection(NamedTuple):
    """Linear map to one or two coordinates, and what to call them."""

    mean: F64
    basis: F64  # [d, 1 or 2]
    labels: tuple[str, ...]

    def __call__(self, points: Any) -> F64:
        projected: F64 = (np.asarray(points, dtype=np.float64) - self.mean) @ self.basis
        return projected


def snapshot(bridge: Bridge, n: int = 2000, seed: int = 0) -> Snapshot:
    """n paths of each direction, for `marginals`; take one in a callback of `fit` to compare iterations.

    Images become rows of numbers.
    """
    n = integer("n", n, 1)
    backward = bridge.paths(n, direction="backward", seed=seed).reshape(n, -1, bridge.dim)
    forward = bridge.paths(n, direction="forward", seed=seed).reshape(n, -1, bridge.dim)
    return Snapshot(bridge.iteration, bridge.schedule.times, backward, forward)


def marginals(
    bridge: Bridge | Snapshot | Sequence[Snapshot],
    *,
    columns: int = 6,
    view: str = "pca",
    ends: tuple[str, str] = ("source", "prior"),
) -> Figure:
    """Where the paths are at `columns` times: two rows for each snapshot, one for each direction.

    The backward row starts at the right, in the prior, and is to end in the source's distribution at
    t = 0; the forward row starts at the left and is to end in the prior. All panels have the same
    limits, which hold every point.

    Parameters
    ----------
    bridge : Bridge, Snapshot or sequence of Snapshot
        A bridge stands for its present snapshot.
    columns : int
        Times shown, from 2: evenly spread over the steps.
    view : {"pca", "first"}
        In more than two dimensions: the first two principal components of all paths, or the first two
        coordinates; the labels say which.
    ends : (str, str)
        What the pictures call t = 0 and t = T.

    Returns
    -------
    matplotlib.figure.Figure
    """
    shots = _snapshots(bridge)
    columns = integer("columns", columns, 2, 50)
    at = np.unique(np.linspace(0, len(shots[0].times) - 1, columns).round().astype(int))
    rows = [(shot, name) for shot in shots for name in ("backward", "forward")]
    project = projection(np.concatenate([_in_time(*row)[:, at].reshape(-1, row[0].forward.shape[2])
                                         for row in rows]), view)  # fmt: skip
    panels = [[project(_in_time(*row)[:, k]) for k in at] for row in rows]
    low, high = _limits(np.concatenate([p for line in panels for p in line]))
    height = 1.7 * float((high - low)[-1] / (high - low)[0])  # of a panel 1.7 inches wide
    size = 1.7 * len(at) + 0.9, (height + 0.08) * len(rows) + 0.6
    figure = _Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(at), sharex=True, sharey=True, squeeze=False)
    across = project.labels[1] if len(project.labels) > 1 else "density"
    for row, line, (shot, name) in zip(axes, panels, rows, strict=True):
        colour = BACKWARD if name == "backward" else FORWARD
        for ax, points in zip(row, line, strict=True):
            _cloud(ax, points, low, high, colour)
        arrow = "←" if name == "backward" else "→"
        row[0].set_ylabel(f"IPF {shot.iteration}\n{name} {arrow}\n" + across)
    for ax, k in zip(axes[0], at, strict=True):
        end = {0: f", {ends[0]}", len(shots[0].times) - 1: f", {ends[1]}"}.get(int(k), "")
        ax.set_title(f"t = {shots[0].times[k]:.3g}{end}", fontsize="medium")
    for ax in axes[-1]:
        ax.set_xlabel(project.labels[0])
    for ax in axes.flat:
        ax.label_outer()
    return figure


def trajectories(paths: ArrayLike, *, times: ArrayLike | None = None, view: str = "pca") -> Figure:
    """Paths as lines, with a ring at each start and a dot at each end.

    Parameters
    ----------
    paths : array_like, shape (n, N + 1, d)
        As `Bridge.paths` gives them, in the order of their direction; some fifty are readable. Those of
        images are taken as points in R^(c h w).
    times : array_like, shape (N + 1,), optional
        For d = 1, where the horizontal axis is the time; default: number of the step.
    view : {"pca", "first"}
        As in `marginals`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    lines = array("paths", paths)
    if lines.ndim == 5:
        lines = lines.reshape(*lines.shape[:2], -1)  # images
    if lines.ndim != 3 or 0 in lines.shape or lines.dtype.kind != "f":
        raise ValueError(
            f"paths: expected floats of shape (n, N + 1, d), got {lines.dtype} of shape {lines.shape}"
        )
    project = projection(lines.reshape(-1, lines.shape[2]), view)
    flat = project(lines)
    figure = _Figure(figsize=(6.4, 6.0), layout="constrained")
    ax = figure.subplots()
    if flat.shape[2] == 1:
        across = np.arange(flat.shape[1]) if times is None else array("times", times)
        if across.shape != (flat.shape[1],):
            raise ValueError(f"times: expected shape ({flat.shape[1]},), got {across.shape}")
        flat = np.stack([np.broadcast_to(across, flat.shape[:2]), flat[:, :, 0]], axis=2)
        ax.set_xlabel("step" if times is None else "t")
        ax.margins(0.05)
    else:
        low, high = _limits(flat.reshape(-1, 2))
        figure.set_figheight(6.4 * float((high - low)[1] / (high - low)[0]))
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=project.labels[0])
        ax.set_aspect("equal")
    ax.set_ylabel(project.labels[-1])
    for line in flat:
        ax.plot(line[:, 0], line[:, 1], color=LINES, linewidth=0.7, alpha=0.6)
    rings, dots = {"mfc": "none", "mec": FORWARD, "mew": 1.3}, {"color": BACKWARD}
    for at, label, look in ((0, "start", rings), (-1, "end", dots)):
        ax.plot(flat[:, at, 0], flat[:, at, 1], "o", ms=5, label=label, zorder=3, **look)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def images(x: ArrayLike, *, columns: int = 10) -> Figure:
    """Images side by side, or paths of images with a line for each.

    Parameters
    ----------
    x : array_like, shape (n, c, h, w) or (n, N + 1, c, h, w)
        Bytes, or floats on the scale -1 .. 1 (cut off beyond); c is 1, grey, or 3, red, green and blue.
    columns : int
        Images in a line; of a path as many states, evenly spread from its start to its end.

    Returns
    -------
    matplotlib.figure.Figure
    """
    found = array("x", x)
    columns = integer("columns", columns, 1, 200)
    if found.ndim not in (4, 5) or 0 in found.shape or found.shape[-3] not in (1, 3):
        raise ValueError(
            "x: expected shape (n, c, h, w) or (n, N + 1, c, h, w) with c = 1 or 3, "
            f"got shape {found.shape}"
        )
    if found.dtype.kind != "f" and found.dtype != np.uint8:
        raise TypeError(f"x: expected floats or bytes (uint8), got {found.dtype}")
    if found.ndim == 5:
        at = np.unique(np.linspace(0, found.shape[1] - 1, columns).round().astype(int))
        found, columns = found[:, at].reshape(-1, *found.shape[2:]), len(at)
    columns = min(columns, len(found))
    scaled = found / 255.0 if found.dtype == np.uint8 else np.clip((found + 1.0) / 2.0, 0.0, 1.0)
    c, h, w = found.shape[1:]
    lines = -(-len(found) // columns)
    sheet = np.ones((lines * columns, c, h + 1, w + 1))
    sheet[: len(found), :, :h, :w] = scaled
    sheet = sheet.reshape(lines, columns, c, h + 1, w + 1).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(lines * (h + 1), columns * (w + 1), c)[:-1, :-1]
    inches = min(1.0, 10 / columns)  # of an image
    figure = _Figure(figsize=(inches * columns, inches * lines * h / w))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.imshow(sheet if c == 3 else sheet[:, :, 0], cmap="gray", vmin=0.0, vmax=1.0)
    ax.set_axis_off()
    return figure


def convergence(
    history: History | Bridge | Sequence[History | Bridge],
    name: str | Sequence[str] | None = None,
    *,
    problem: Problem | None = None,
    ipf: GaussianIPF | ArrayLike | None = None,
    population: PopulationDSB | ArrayLike | None = None,
    floor: float | tuple[float, float] | None = None,
) -> Figure:
    """Errors after every half-bridge, beside those of perfect nets and what sampling alone would show.

    One panel for each error that `evaluate` of `Bridge.fit` recorded; the directions are told apart by
    colour and marker. The vertical axis is logarithmic where errors span more than a factor of five.

    Parameters
    ----------
    history : History, Bridge, or sequence of such
        Several are runs of one experiment, say with other seeds: their mean is drawn, and a band from the
        least to the greatest.
    name : str or sequence of str, optional
        Of one error, or of several. Default: all, without the floors.
    problem : Problem, optional
        What `ipf` and `population` are compared with. Default: their own limit, the exact bridge.
    ipf : GaussianIPF or array_like, optional
        Exact iterative proportional fitting, dotted: `dsb.exact.GaussianIPF`, for errors called "kl" and
        "coupling" (also "exact kl" and so on), or the error `name` of each half-bridge, from the first:
        backward ones are the first, third and so on.
    population : PopulationDSB or array_like, optional
        Perfect nets with infinite data at this number of steps, dashed; the same with
        `dsb.exact.PopulationDSB`.
    floor : float or (float, float), optional
        Level or band that exact samples would reach. Default: what was recorded as "name_floor".

    Returns
    -------
    matplotlib.figure.Figure
    """
    from ._convergence import panels

    shown = panels(_histories(history), name, problem, ipf, population, floor)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = _Figure(figsize=(0.6 + 4.0 * columns, 3.4 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    known: dict[str, Any] = {}
    for ax, panel in zip(axes, shown, strict=False):
        _errors(ax, panel)
        known |= {str(line.get_label()): line for line in ax.get_legend_handles_labels()[0]}
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    figure.legend(
        known.values(),
        known.keys(),
        loc="outside upper center",
        ncols=3 if columns == 1 else 5,
        frameon=False,
    )
    return figure


def projection(points: ArrayLike, view: str = "pca") -> Projection:
    """The coordinates that the pictures show of points, shape (n, d): all of them where d is 1 or 2."""
    found = np.asarray(points, dtype=np.float64)
    d = found.shape[1]
    choice("view", view, ("pca", "first"))
    if d <= 2 or view == "first":
        shown = min(d, 2)
        names = ("x",) if d == 1 else ("$x_1$", "$x_2$")
        labels = tuple(f"{name} of {d}" if d > 2 else name for name in names)
        return Projection(np.zeros(d), np.eye(d)[:, :shown], labels)
    mean = found.mean(axis=0)
    if d > MANY:  # the same axes from products of some of the points
        some = found[:: -(-len(found) // MANY)] - mean
        values, vectors = np.linalg.eigh(some @ some.T)
        vectors = some.T @ vectors[:, -2:]
        vectors /= np.linalg.norm(vectors, axis=0) + 1e-300
    else:
        values, vectors = np.linalg.eigh(np.cov(found, rowvar=False))
    share = 100 * values[::-1] / values.sum()
    basis = vectors[:, ::-1][:, :2]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), [0, 1]])  # else free to flip
    return Projection(mean, basis, tuple(f"PC {i + 1} ({share[i]:.0f} %)" for i in range(2)))


def _snapshots(given: Bridge | Snapshot | Sequence[Snapshot]) -> list[Snapshot]:
    from .bridge import Bridge

    if isinstance(given, Bridge):
        return [snapshot(given)]
    shots = [given] if isinstance(given, Snapshot) else list(given)
    if not shots or not all(isinstance(shot, Snapshot) for shot in shots):
        raise TypeError(f"bridge: expected a Bridge or snapshots of one, got {given!r:.80}")
    return shots


def _histories(given: object) -> list[History]:
    from .bridge import Bridge
    from .history import History

    one = isinstance(given, (History, Bridge))
    listed: list[Any] = [given] if one or not isinstance(given, Sequence) else list(given)
    if not listed or not all(isinstance(part, (History, Bridge)) for part in listed):
        raise TypeError(f"history: expected a History, a Bridge, or several, got {given!r:.80}")
    return [part.history if isinstance(part, Bridge) else part for part in listed]


def _errors(ax: Axes, panel: Panel) -> None:
    """One error: measured, of perfect nets, floor."""
    for curve in panel.measured:
        colour = _COLOURS[curve.direction]
        ax.plot(curve.at, curve.value, _MARKERS[curve.direction] + "-", color=colour, ms=5,
                label=curve.direction)  # fmt: skip
        if panel.runs > 1:
            ax.fill_between(curve.at, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    theory = (("population DSB", "--", panel.population), ("exact IPF", ":", panel.ipf))
    for label, style, curves in theory:
        for curve in curves:
            ax.plot(curve.at, curve.value, style, color=_COLOURS[curve.direction], lw=1.2)
        if curves:  # in the legend once, for both directions
            ax.plot([], [], style, color=LINES, lw=1.2, label=label)
    for direction, (low, high) in panel.floors.items():
        same = len(set(panel.floors.values())) == 1
        look: dict[str, Any] = {"color": LINES if same else _COLOURS[direction], "zorder": 0}
        if high > low:
            ax.axhspan(low, high, alpha=0.3, linewidth=0, label="floor", **look)
        else:
            ax.axhline(low, lw=3, alpha=0.3, label="floor", **look)
    _error_axis(ax, panel)
    ax.set(xlabel="half-bridge (odd: backward, even: forward)", ylabel=panel.label or panel.name)
    if panel.label:
        ax.set_title(panel.name, fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _error_axis(ax: Axes, panel: Panel) -> None:
    """Logarithmic where a factor of five is spanned; then perfect nets may run out of the picture."""
    levels = [curve.value for curve in panel.measured] + [
        np.array(b) for b in panel.floors.values()
    ]
    drawn = np.concatenate(levels)
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size or drawn.min() <= 0 or drawn.max() < 5 * drawn.min():
        if panel.label:  # an error, of which 0 is the least
            ax.set_ylim(bottom=0.0)
        return
    ax.set_yscale("log")
    perfect = np.concatenate([c.value for c in panel.ipf + panel.population] or [drawn])
    perfect = perfect[np.isfinite(perfect) & (perfect > drawn.min() / 10)]
    least = min(drawn.min(), perfect.min(initial=np.inf))
    most = max(drawn.max(), perfect.max(initial=0.0))
    ax.set_ylim(least / 1.5, most * 1.5)


def _in_time(shot: Snapshot, name: str) -> F32:
    """Paths in the order of t_0 .. t_N."""
    return shot.backward[:, ::-1] if name == "backward" else shot.forward


def _limits(points: F64) -> tuple[F64, F64]:
    """Corners of the rectangle, or interval, that holds all points and a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    widest = max(float((high - low).max()), 1e-12)
    half = np.maximum((high - low) / 2, 0.3 * widest) + 0.03 * widest
    return (low + high) / 2 - half, (low + high) / 2 + half


def _cloud(ax: Axes, points: F64, low: F64, high: F64, colour: str) -> None:
    if points.shape[1] == 1:
        ax.hist(points[:, 0], bins=50, range=(low[0], high[0]), density=True, color=colour)
        ax.set_xlim(low[0], high[0])
        return
    alpha = float(np.clip(600 / len(points), 0.1, 0.8))
    ax.scatter(
        points[:, 0], points[:, 1], s=3, color=colour, alpha=alpha, linewidths=0, rasterized=True
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.set_aspect("equal")
