"""Checks of arguments. Every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.uint8]

T = TypeVar("T", bound=str)

MAX_SEED = 2**63 - 1
BLOCK = 1 << 20  # elements looked at together, so that a check never doubles the memory of the data


def nearest(name: str, options: Iterable[str]) -> str:
    """The words "; did you mean 'x'?", or nothing where no option is close."""
    import difflib

    found = difflib.get_close_matches(name.lower(), list(options), 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def choice(argument: str, value: object, options: Iterable[T]) -> T:
    """`value`, which is one of `options`."""
    known = list(options)
    for option in known:
        if isinstance(value, str) and value == option:
            return option
    listed = ", ".join(repr(option) for option in known)
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected one of {listed}, got {type(value).__name__}")
    raise ValueError(
        f"{argument}: expected one of {listed}, got {value!r:.80}{nearest(value, known)}"
    )


def integer(argument: str, value: object, low: int, high: int = MAX_SEED) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected a whole number, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument}: expected a whole number, got {value!r}") from None
    if not low <= number <= high:
        bound = f"of at least {low}" if number < low else f"of at most {high}"
        raise ValueError(f"{argument}: expected a whole number {bound}, got {number}")
    return number


def real(
    argument: str, value: object, *, above: float = -math.inf, below: float = math.inf
) -> float:
    """A finite number in the open interval (above, below)."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {value!r}") from None
    if not (math.isfinite(number) and above < number < below):
        if above == -math.inf:
            bound = "a finite number"
        elif below == math.inf:
            bound = f"a finite number above {above:g}"
        else:
            bound = f"a number between {above:g} and {below:g}"
        raise ValueError(f"{argument}: expected {bound}, got {number!r}")
    return number


def flag(argument: str, value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{argument}: expected True or False, got {value!r}")


def array(argument: str, value: object) -> NDArray[Any]:
    """What NumPy can view of `value`, with no copy where that is possible."""
    try:
        if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            found: NDArray[Any] = np.from_dlpack(value)
        else:
            found = np.asarray(value)
    except Exception as error:  # each library refuses in its own way
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"{argument}: expected an array that NumPy can view, got {kind}: {error}"
        ) from error
    return found


def vector(argument: str, value: object) -> F64:
    """A float64 copy of rank 1 (a number gives one entry), finite."""
    found = array(argument, value)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{argument}: expected numbers, got {described(found, value)}")
    if found.ndim > 1 or found.size == 0:
        raise ValueError(f"{argument}: expected a number or a vector, got shape {found.shape}")
    found = np.array(found, dtype=np.float64, ndmin=1)
    if not np.isfinite(found).all():
        raise ValueError(
            f"{argument}: expected finite numbers, got {found[~np.isfinite(found)][0]}"
        )
    return found


def described(found: NDArray[Any], value: object) -> str:
    if found.dtype == object and found.ndim == 0:
        return type(value).__name__
    return f"an array of dtype {found.dtype} and shape {found.shape}"


def rows(argument: str, value: object, *, least: int = 2, dim: int | None = None) -> Rows:
    """`value` as [n, d], C order, uint8 or finite float32; no copy where it is that already."""
    found = array(argument, value)
    if found.dtype.kind != "f" and found.dtype != np.uint8:
        advice = "; convert it with .astype(np.float32)" if found.dtype.kind in "iu" else ""
        raise TypeError(
            f"{argument}: expected numbers of dtype float32, float64, float16 or uint8, "
            f"got {described(found, value)}{advice}"
        )
    if found.ndim != 2:
        advice = ""
        if found.ndim == 1:
            advice = "; write x[:, None] for n points on a line, x[None, :] for a single point"
        elif found.ndim > 2:
            advice = "; write x.reshape(len(x), -1) to make each item a row"
        raise ValueError(
            f"{argument}: expected shape [n, d], a point in each row, got {found.shape}{advice}"
        )
    if found.shape[0] < least:
        wanted = f"at least {least} rows" if least > 1 else "at least one row"
        raise ValueError(f"{argument}: expected {wanted}, got shape {found.shape}")
    if found.shape[1] < 1:
        raise ValueError(f"{argument}: expected at least one column, got shape {found.shape}")
    if dim is not None and found.shape[1] != dim:
        raise ValueError(f"{argument}: expected {dim} columns, got shape {found.shape}")
    if found.dtype == np.uint8:
        return np.ascontiguousarray(found, dtype=np.uint8)
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(found, dtype=np.float32)
    _refuse_nonfinite(argument, single, found)
    return single


def blocks(data: NDArray[Any]) -> Iterable[tuple[int, NDArray[Any]]]:
    """The rows of `data` in pieces, each with the number of its first row."""
    many = max(1, BLOCK // data.shape[1])
    for first in range(0, len(data), many):
        yield first, data[first : first + many]


def _refuse_nonfinite(argument: str, single: F32, given: NDArray[Any]) -> None:
    for first, block in blocks(single):
        finite = np.isfinite(block)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            bad = given[first + row, column]
            what = "finite numbers" if not np.isfinite(bad) else "numbers within float32's range"
            raise ValueError(
                f"{argument}: expected {what}, got {bad} in row {first + row}, column {column}"
            )
