"""Checks of arguments. Every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.uint8]

Shape = tuple[int, ...]

T = TypeVar("T", bound=str)

MAX_SEED = 2**63 - 1
MAX_ROWS = 2**31 - 1  # of a result
SHOWN = 80  # characters of a value that a message repeats
MOST_SINGLE = float(np.finfo(np.float32).max)
FINITE_SINGLE = "numbers within float32's range"
BLOCK = 1 << 20  # elements looked at together, so that a check never doubles the memory of the data


def shown(value: object) -> str:
    """The repr of what came, cut off where it is long."""
    try:
        text = repr(value)
    except Exception:  # an int of 5,000 digits, or somebody's own class
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 4] + " ..."


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
        f"{argument}: expected one of {listed}, got {shown(value)}{nearest(value[:SHOWN], known)}"
    )


def integer(argument: str, value: object, low: int, high: int = MAX_SEED) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected a whole number, got {shown(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument}: expected a whole number, got {shown(value)}") from None
    if not low <= number <= high:
        bound = f"of at least {low}" if number < low else f"of at most {high}"
        raise ValueError(f"{argument}: expected a whole number {bound}, got {shown(number)}")
    return number


def real(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """A finite number, > above or >= least, and < below or <= most."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {shown(value)}") from None
    except OverflowError:  # a whole number beyond float64's
        number = math.inf
    inside = (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    )
    if not inside:
        low, high = above if least is None else least, below if most is None else most
        if low is None or high is None:
            bound = "a finite number"
            if low is not None:
                bound += f" above {low:g}" if least is None else f" of at least {low:g}"
        else:
            left, right = "(["[above is None], ")]"[below is None]
            bound = f"a number in {left}{low:g}, {high:g}{right}"
        raise ValueError(f"{argument}: expected {bound}, got {shown(value)}")
    return number


def single(argument: str, number: float, *, below: float = math.inf) -> float:
    """`number`, which float32 can hold: neither rounded to 0 nor up to `below`."""
    least = float(np.finfo(np.float32).tiny)
    if 0 < abs(number) < least:
        raise ValueError(
            f"{argument}: expected at least {least:.2g}, the least that float32 holds, got {number!r}"
        )
    if abs(number) >= MOST_SINGLE or float(np.float32(number)) >= below:
        told = f"a number that float32 tells from {below:g}" if below < math.inf else FINITE_SINGLE
        raise ValueError(f"{argument}: expected {told}, got {number!r}")
    return number


def flag(argument: str, value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{argument}: expected True or False, got {shown(value)}")


def path_of(value: object) -> str:
    """A path as text, from what was given as `path`."""
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if isinstance(path, str):
            return path
    raise TypeError(f"path: expected a str or an os.PathLike of one, got {shown(value)}")


def afford(what: str, rows: int, row_bytes: int) -> None:
    """MemoryError where `rows` rows of a result are more than there is memory for."""
    from . import _core

    left = _core.memory_available()
    if rows * row_bytes > left:
        raise MemoryError(
            f"{what}: {rows:,} rows take {rows * row_bytes / 2**30:.4g} GiB, of which "
            f"{left / 2**30:.4g} are available; {left // row_bytes:,} rows would fit"
        )


def array(argument: str, value: object) -> NDArray[Any]:
    """What NumPy can view of `value`, with no copy where that is possible."""
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(value, masked.MaskedArray) and masked.is_masked(value):
        raise ValueError(
            f"{argument}: expected an array without masked entries, got "
            f"{int(np.sum(masked.getmaskarray(value)))} of them; fill or drop them"
        )
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
    if np.abs(found).max() > MOST_SINGLE:
        raise ValueError(f"{argument}: expected {FINITE_SINGLE}, got {np.abs(found).max():g}")
    return found


def described(found: NDArray[Any], value: object) -> str:
    if found.dtype == object and found.ndim == 0:
        return type(value).__name__
    return f"an array of dtype {found.dtype} and shape {found.shape}"


def rows(argument: str, value: object, *, least: int = 2, dim: int | None = None) -> Rows:
    """`value` as [n, d], C order, uint8 or finite float32; no copy where it is that already.

    Images [n, c, h, w] become rows.
    """
    found, shape = points(argument, value, least=least)
    if dim is not None and found.shape[1] != dim:
        raise ValueError(f"{argument}: expected {dim} columns, got shape {(len(found), *shape)}")
    return found


def points(
    argument: str, value: object, *, least: int = 2, shape: Shape | None = None
) -> tuple[Rows, Shape]:
    """The same, and the shape of one point, (d,) or for images (c, h, w): `shape`, where that is given."""
    found = array(argument, value)
    if found.dtype.kind != "f" and found.dtype != np.uint8:
        advice = "; convert it with .astype(np.float32)" if found.dtype.kind in "iu" else ""
        raise TypeError(
            f"{argument}: expected numbers of dtype float32, float64, float16 or uint8, "
            f"got {described(found, value)}{advice}"
        )
    _check_axes(argument, found.shape, shape)
    if found.shape[0] < least:
        wanted = f"at least {least} rows" if least > 1 else "at least one row"
        raise ValueError(f"{argument}: expected {wanted}, got shape {found.shape}")
    own = found.shape[1:]
    if 0 in own:
        what = "at least one column" if len(own) == 1 else "images of at least one pixel"
        raise ValueError(f"{argument}: expected {what}, got shape {found.shape}")
    if shape is not None and own != shape:
        raise ValueError(f"{argument}: expected {shape[0]} columns, got shape {found.shape}")
    if found.dtype == np.uint8:
        return np.ascontiguousarray(found, dtype=np.uint8).reshape(len(found), -1), own
    with np.errstate(over="ignore"):
        converted = np.require(found, np.float32, ["C", "A"]).reshape(len(found), -1)
    _refuse_nonfinite(argument, converted, found)
    return converted, own


def _check_axes(argument: str, own: Shape, wanted: Shape | None) -> None:
    n = len(own)
    if wanted is not None and len(wanted) == 3:
        if own[1:] != wanted:
            listed = ", ".join(map(str, wanted))
            raise ValueError(f"{argument}: expected images [n, {listed}], got shape {own}")
        return
    if n == 2 or (n == 4 and wanted is None):
        return
    if n == 4 and wanted is not None:
        raise ValueError(f"{argument}: expected rows [n, {wanted[0]}], got images of shape {own}")
    advice = ""
    if n == 1:
        advice = "; write x[:, None] for n points on a line, x[None, :] for a single point"
    elif n == 3:
        advice = (
            "; write x[:, None] for grey images, which have one channel, or x.reshape(len(x), -1) to "
            "make each item a row"
        )
    elif n > 4:
        advice = "; write x.reshape(len(x), -1) to make each item a row"
    raise ValueError(
        f"{argument}: expected shape [n, d], a point in each row, or [n, c, h, w], images, "
        f"got {own}{advice}"
    )


def blocks(data: NDArray[Any]) -> Iterable[tuple[int, NDArray[Any]]]:
    """The rows of `data` in pieces, each with the number of its first row."""
    many = max(1, BLOCK // data.shape[1])
    for first in range(0, len(data), many):
        yield first, data[first : first + many]


def first_nonfinite(data: NDArray[Any]) -> int | None:
    """Number of the first row with NaN or infinity; None where there is none."""
    for first, block in blocks(data.reshape(len(data), -1)):
        finite = np.isfinite(block)
        if not finite.all():
            return first + int(np.argwhere(~finite)[0, 0])
    return None


def _refuse_nonfinite(argument: str, converted: F32, given: NDArray[Any]) -> None:
    for first, block in blocks(converted):
        finite = np.isfinite(block)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            bad = given[first + row].reshape(-1)[column]
            what = "finite numbers" if not np.isfinite(bad) else FINITE_SINGLE
            raise ValueError(
                f"{argument}: expected {what}, got {bad} in row {first + row}, column {column}"
            )
