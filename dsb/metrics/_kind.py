"""What `estimate` has to know about a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])
Takes = Literal["samples", "law", "centres", "process", "alone"]


class Kind(NamedTuple):
    """How a metric is called and how its floor is taken off."""

    takes: Takes = "samples"
    # "samples": two arrays; "law": an array and what it should be drawn from; "centres": an array and what
    # is taken whole; "process": two things that the metric itself draws paths or conditional samples of,
    # with n= and seed=; "alone": one such thing
    root: Callable[[dict[str, Any]], bool] = lambda options: False
    # whether it is a distance, whose square grows by the floor's, or adds the floor as it is
    judges: Callable[[Any], bool] = lambda y: True
    # whether y itself can be judged, which gives the floor


def kind(
    takes: Takes, root: Any = False, judges: Callable[[Any], bool] = lambda y: True
) -> Callable[[Call], Call]:
    """Says so about a metric; `root` may depend on its options."""
    rule = root if callable(root) else lambda options: bool(root)

    def mark(metric: Call) -> Call:
        metric._dsb_kind = Kind(takes, rule, judges)  # type: ignore[attr-defined]
        return metric

    return mark


def kind_of(metric: Callable[..., Any]) -> Kind:
    """Of anything callable; what nothing is known of takes two samples."""
    found = getattr(metric, "_dsb_kind", None)
    return found if isinstance(found, Kind) else Kind()
