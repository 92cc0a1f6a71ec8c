"""What `estimate` has to know about a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])


class Kind(NamedTuple):
    """How a metric is called and how its floor is taken off."""

    takes: Literal["samples", "law", "process"] = "samples"
    # "samples": two arrays; "law": an array and what it should be drawn from; "process": things that the
    # metric itself draws paths or conditional samples of, with n= and seed=
    root: Callable[[dict[str, Any]], bool] = lambda options: False
    # whether it is a distance, whose square grows by the floor's, or adds the floor as it is


def kind(takes: Literal["samples", "law", "process"], root: Any = False) -> Callable[[Call], Call]:
    """Says so about a metric; `root` may depend on its options."""
    rule = root if callable(root) else lambda options: bool(root)

    def mark(metric: Call) -> Call:
        metric._dsb_kind = Kind(takes, rule)  # type: ignore[attr-defined]
        return metric

    return mark


def kind_of(metric: Callable[..., Any]) -> Kind:
    """Of anything callable; what nothing is known of takes two samples."""
    found = getattr(metric, "_dsb_kind", None)
    return found if isinstance(found, Kind) else Kind()
