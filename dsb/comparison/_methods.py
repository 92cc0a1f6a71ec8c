"""Which settings of `Bridge` are compared, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .._check import Shape, nearest, shown
from .._evaluate import is_name
from ..bridge import Bridge

# What all methods share: it belongs to the problem, the comparison or the seed.
SHARED = ("source", "prior", "schedule", "reference", "net", "seed")
LEARNED = object()  # a covariance that fits the problem's points
MOST_FULL = 64  # coordinates, up to which that is a matrix


class Method(NamedTuple):
    """One line of a comparison."""

    options: dict[str, Any]  # keyword arguments of `Bridge`
    half_bridges: int | None = None  # where not those of all iterations: who gets the whole budget

    def of(self, shape: Shape) -> dict[str, Any]:
        """The options for points of this shape."""
        full = "full" if len(shape) == 1 and shape[0] <= MOST_FULL else "diagonal"
        return {name: full if v is LEARNED else v for name, v in self.options.items()}


def _with_covariance(name: str, **options: Any) -> dict[str, Method]:
    """A method whose steps have the noise of the reference, and the same with a learned one."""
    learned = {**options, "covariance": LEARNED}
    return {name: Method(options), f"{name}+covariance": Method(learned)}


BRIDGES: dict[str, Method] = {
    **_with_covariance("bridge-ipf", objective="bridge", first_coupling="reference"),
    **_with_covariance("bridge-imf", objective="bridge", first_coupling="independent"),
}
TARGETS: dict[str, Method] = {
    "dsb": Method({"objective": "dsb"}),
    **_with_covariance("simplified", objective="simplified"),
    **BRIDGES,
    # A score-based model: the reference run backward, once.
    "first-iteration": Method({"objective": "dsb"}, half_bridges=1),
}


def _constant(rate: float) -> Method:
    return Method({"learning_rate": rate, "lr_schedule": "constant"})


# One option at a time against the default, a rate of 3e-3 that falls to 0.
TRAINING: dict[str, Method] = {
    "default": Method({}),
    "constant-1e-4": _constant(1e-4),
    "constant-1e-3": _constant(1e-3),
    "constant-3e-3": _constant(3e-3),
    "cosine-1e-3": Method({"learning_rate": 1e-3, "lr_schedule": "cosine"}),
    "simulated-start": Method({"closed_form": False}),
    "antithetic": Method({"antithetic": True}),
    "reuse-4": Method({"reuse": 4}),
    "reuse-16": Method({"reuse": 16}),
    "ema-0.99": Method({"ema": 0.99}),
    "ema-0.999": Method({"ema": 0.999}),
    "batch-128": Method({"batch": 128}),
    "output-step": Method({"output": "step"}),
    "output-mean": Method({"output": "mean"}),
}
# On its own: its convention allows symmetric schedules only, which not every problem has.
OFFICIAL = {"official": Method({"convention": "official"})}
GROUPS: dict[str, dict[str, Method]] = {
    "targets": TARGETS,
    "bridge": BRIDGES,
    "training": TRAINING,
}
METHODS: dict[str, Method] = {**TARGETS, **TRAINING, **OFFICIAL}


def methods_of(given: Any) -> dict[str, Method]:
    """From a name, names of methods and of groups of them, or options of `Bridge` by name."""
    if isinstance(given, str):
        given = (given,)
    if isinstance(given, Mapping):
        found = {_name(name): Method(_options(name, told)) for name, told in given.items()}
    elif isinstance(given, Iterable):
        found = {}
        for name in given:
            found |= _named(name)
    else:
        raise TypeError(
            "methods: expected names, or a dict of keyword arguments of Bridge by name, "
            f"got {shown(given)}"
        )
    if not found:
        raise ValueError("methods: expected at least one, got none")
    return found


def _named(name: object) -> dict[str, Method]:
    known = {**{one: {one: method} for one, method in METHODS.items()}, **GROUPS}
    if isinstance(name, str) and name in known:
        return known[name]
    listed = ", ".join(map(repr, METHODS))
    groups = ", ".join(map(repr, GROUPS))
    if not isinstance(name, str):
        raise TypeError(f"methods: expected names, got {shown(name)} among them")
    raise ValueError(
        f"methods: expected one of {listed}, or all of {groups}, got {shown(name)}"
        f"{nearest(name, known)}"
    )


def _name(given: object) -> str:
    if not is_name(given) or "|" in str(given):
        raise ValueError(
            "methods: expected names to be printable strings of 1 to 80 characters without '|', "
            f"got {shown(given)}"
        )
    return str(given)


def _options(name: str, told: object) -> dict[str, Any]:
    """Keyword arguments of `Bridge` that a method may choose; JSON can hold them."""
    if not isinstance(told, Mapping):
        raise TypeError(
            f"methods[{name!r}]: expected a dict of keyword arguments of Bridge, got {shown(told)}"
        )
    allowed = [one for one in inspect.signature(Bridge).parameters if one not in SHARED]
    for option, value in told.items():
        if option in SHARED:
            raise ValueError(
                f"methods[{name!r}]: {option!r} is the same for all methods of a comparison; they "
                "differ in the other arguments of Bridge"
            )
        if option not in allowed:
            hint = nearest(str(option), allowed)
            raise ValueError(
                f"methods[{name!r}]: {shown(option)} is no argument of Bridge{hint}"
                + ("" if hint else f"; it has {', '.join(allowed)}")
            )
        parts = value if isinstance(value, (tuple, list)) else [value]
        if not all(part is None or isinstance(part, (bool, int, float, str)) for part in parts):
            raise TypeError(
                f"methods[{name!r}]: expected {option} to be a number or a name, got {shown(value)}"
            )
    return dict(told)
