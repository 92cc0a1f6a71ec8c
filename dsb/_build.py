"""What goes into the making of a bridge: defaults, checks across arguments, and how it is shown."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from . import _core
from ._check import MAX_SEED, Shape, choice, shown
from ._ends import End, by
from ._settings import PRECISIONS, Settings
from ._turns import FORKED, Forked
from .history import DIRECTIONS
from .mlp import MLP, OfficialMLP
from .nn import Graph, Op, Specification
from .reference import OU, Brownian
from .schedule import Schedule
from .unet import UNet

if TYPE_CHECKING:
    from .bridge import Bridge

# Measured on the Swiss roll: sliced W2 over the spread is the same from 1 to 7, half as much again at
# .1 of that or ten times, and several times as much a factor of ten further out.
LEAST_STD, MOST_STD = 0.2, 30.0

Net = Specification | UNet | Graph | list[Op]

_warned: set[tuple[str, str]] = set()


def check_device(device: object) -> None:
    if isinstance(device, str) and (device == "cuda" or device.startswith("cuda:")):
        raise _core.DeviceError(f"device: this build of dsb has no CUDA backend, got {device!r}")
    choice("device", device, ("auto", "cpu"))


def schedule_for(source: End, prior: End, reference: object) -> Schedule:
    """20 equal steps; T a tenth of the ends' variance along their main axes.

    IPF closes the gap between the ends along an axis of variance s by a factor of about
    (s / (s + 2 T))^2 an iteration: what varies most is the slowest, and decides. Two digits of T, so
    that the rounding of sums, which differs from machine to machine, does not reach the steps.
    """
    var = (source.main_variance() + prior.main_variance()) / 2
    if not var > 0:
        raise ValueError(
            "schedule: source and prior have no spread to choose steps by; give schedule="
        )
    T = 0.1 * var
    if isinstance(reference, OU):
        T = min(T, 2 * reference.var)  # the process has forgotten its start by then
    return Schedule.constant(20, float(f"{T:.1e}") / 20)


def warn_of_scale(end: End) -> None:
    """Adam's steps have a size, and so have the weights that nets begin with."""
    std = end.moments()[1] ** 0.5
    if not LEAST_STD <= std <= MOST_STD:
        warnings.warn(
            f"{end.name}: its standard deviation is {std:.3g}; nets learn best between {LEAST_STD:g} "
            f"and {MOST_STD:g}, so consider scaling both ends (and T by the square)",
            stacklevel=3,
        )


def warn_of_axes(end: End) -> None:
    """Where channels seem to stand last."""
    if end.image is not None and end.image[2] <= 4 < end.image[0]:
        warnings.warn(
            f"{end.name}: images are taken as [n, c, h, w], so these have {end.image[0]} channels; where "
            "channels come last, give x.transpose(0, 3, 1, 2)",
            stacklevel=3,
        )


def check_process(schedule: object, reference: object, settings: Settings) -> None:
    if not isinstance(schedule, Schedule):
        hint = "; write dsb.Schedule(steps)" if not isinstance(schedule, str) else ""
        raise TypeError(f"schedule: expected a dsb.Schedule, got {type(schedule).__name__}{hint}")
    if not isinstance(reference, (OU, Brownian)):
        raise TypeError(
            f"reference: expected dsb.OU(mean, var) or dsb.Brownian(), got {type(reference).__name__}"
        )
    if settings.convention == "official" and not schedule.symmetric:
        raise ValueError(
            "schedule: convention='official' takes the steps in the same order in both directions, "
            f"which is right for symmetric ones only, got {schedule!r}"
        )
    longest = float(schedule.steps.max())
    if longest * reference.precision >= 2:
        raise ValueError(
            f"schedule: expected steps below 2 v = {2 / reference.precision:g}, beyond which the "
            f"reference {reference!r} diverges, got a step of {longest:g}"
        )


def check_pairs(source: End, prior: End) -> None:
    """ValueError where rows of the ends cannot belong together one by one."""
    for end in (source, prior):
        if end.shape is None:
            raise ValueError(
                f"first_coupling: 'pairs' needs rows of data at both ends, the {end.name} is a Gaussian"
            )
    rows = [end.shape[0] for end in (source, prior) if end.shape is not None]
    if rows[0] != rows[1]:
        raise ValueError(
            "first_coupling: 'pairs' needs as many rows of the source as of the prior, row i of one with "
            f"row i of the other, got {rows[0]:,} and {rows[1]:,}"
        )


def net_of(net: Net | None, point: Shape, official: bool) -> tuple[Graph, str]:
    """The graph of what was given, or of the default, for points of shape (d,) or (c, h, w); its name."""
    if net is None:
        net = UNet() if len(point) == 3 else MLP.official() if official else MLP()
    dim = math.prod(point)
    if isinstance(net, Graph):
        graph = Graph(net.ops)
    elif isinstance(net, list):
        graph = Graph(net)
    elif isinstance(net, UNet):
        if len(point) != 3:
            raise ValueError(
                f"net: a UNet needs images, arrays of shape [n, c, h, w], got rows of {dim} numbers"
            )
        graph = Graph(net.build((point[0], point[1], point[2])))
    elif isinstance(net, Specification) and not isinstance(net, type):
        graph = Graph(net.build(dim))
    else:
        hint = "; write dsb.MLP()" if isinstance(net, type) else ""
        raise TypeError(
            f"net: expected dsb.MLP(...), dsb.UNet(...), a dsb.nn.Graph or a list of ops, "
            f"got {shown(net)}{hint}"
        )
    check_graph(graph, dim)
    named = isinstance(net, (MLP, OfficialMLP, UNet))
    return graph, repr(net) if named else f"{len(graph.ops)} ops"


def check_graph(graph: Graph, dim: int) -> None:
    """ValueError where a bridge in R^dim cannot use it."""
    graph.check(dim)
    for name in ("cond", "label"):
        if graph.reads(name):
            raise ValueError(f"net: it reads {name!r}, which a bridge does not give it")


def precision_in_use(asked: str) -> _core.Precision:
    """float32 where the instruction set in use does not multiply in the precision asked for."""
    return choice("precision", asked if asked in _core.precisions() else "float32", PRECISIONS)


def warn_of_precision(asked: str) -> None:
    """Once, where another precision is used."""
    used = precision_in_use(asked)
    if used != asked and (asked, _core.isa()) not in _warned:
        _warned.add((asked, _core.isa()))
        warnings.warn(
            f"precision: the instruction set in use, {_core.isa()}, has no fast products of bfloat16 for "
            f"{asked!r}; computing in {used} instead, which is as exact at least",
            stacklevel=3,
        )


def mixed(seed: int, draw: int) -> int:
    """A seed for draw number `draw`: the splitmix64 finaliser, 63 bits of it."""
    z = (seed + (draw + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z ^ z >> 31) & MAX_SEED


def describe(bridge: Bridge) -> str:
    """The repr of a bridge."""
    schedule = bridge._schedule
    core, s = bridge._core, bridge._settings
    head = f"Bridge in {bridge.dim} dimension{'s' * (bridge.dim > 1)}"
    if len(bridge.shape) == 3:
        head = f"Bridge between images of {by(bridge.shape)}"
    if isinstance(core, Forked):
        return f"{head}: {FORKED}"
    n, half = bridge._graph.n_parameters, core.half_bridge
    done = f"{half // 2} IPF iteration{'s' * (half // 2 != 1)}"
    if core.steps:
        done += f", {DIRECTIONS[half % 2]} half-bridge at step {core.step:,} of {core.steps:,}"
    elif half % 2:
        done += " and the backward half of the next"
    rate = f"lr {s.learning_rate:g} {s.lr_schedule}"
    extras = "".join(
        f", {name} {getattr(s, name):g}" for name in ("clip", "ema") if getattr(s, name)
    )
    coupling = f", first coupling {s.first_coupling}" if s.objective == "bridge" else ""
    noise = "" if s.covariance == "reference" else f", covariance {s.covariance}"
    used = precision_in_use(s.precision)
    precision = used if used == s.precision else f"{used} in place of {s.precision}"
    lines = {
        "source": f"{bridge._ends[0]!r}",
        "prior": f"{bridge._ends[1]!r}",
        "schedule": f"{schedule!r}, T = {schedule.T:.6g}",
        "reference": repr(bridge._reference),
        "net": f"{bridge._label}, {n:,} parameters in each direction",
        "method": f"convention {s.convention}, objective {s.objective}, output {s.output}{coupling}{noise}",
        "training": f"batch {s.batch}, {rate}{extras}",
        "work": f"microbatch {core.microbatch}, {core.lanes} lanes, seed {s.seed}, "
        f"cpu {_core.isa()}, {precision}",
        "done": done,
    }
    told = [f"  {name:<10} {text}" for name, text in lines.items()]
    return "\n".join([head, *told])
