"""What `evaluate` of Bridge.fit measures at the end of every half-bridge.

Every seed here is fixed, and draws are the caller's own: measuring leaves training as it is, to the bit.
A comparison of methods over several seeds measures each of these with draws of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._check import points, shown
from .history import DIRECTIONS, FLOOR, Direction

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import ArrayLike

    from .bridge import Bridge
    from .exact import GaussianIPF, PopulationDSB, Problem
    from .gaussian import Gaussian

    Held: TypeAlias = ArrayLike | Gaussian
    Answer: TypeAlias = Problem | GaussianIPF | PopulationDSB
    One: TypeAlias = (
        Callable[[Bridge], float | Mapping[str, float]] | Answer | Held | tuple[Held, Held]
    )
    Evaluate: TypeAlias = One | Mapping[str, One]

# Errors by name; the name "" stands for that of the measure itself.
Measure = Callable[[Direction], dict[str, float]]

PATHS = 10_000  # simulated to be compared with an exact process, where memory allows
PATH_NUMBERS = 1 << 26  # in such paths at most: 256 MB
LEAST_PATHS = 1000
DRIFTS = 2000  # exact paths along which drifts are compared
LEAST_ROWS = 4  # of which two halves can be compared
SEEDS = 71, 72, 73  # of draws of the bridge, and of exact ones
FLOOR_SEEDS = range(81, 89)  # of exact samples: one pair of many points far apart is seldom typical
LONGEST = 80  # characters of a name that is given; a name in the history may join two


class How(NamedTuple):
    """Of what the caller of `fit` does not choose."""

    shift: int = 0  # added to every seed
    final_noise: bool = False  # of points whose sliced W_2 is measured


class Evaluation:
    """What was given as `evaluate`, checked against the bridge."""

    def __init__(self, bridge: Bridge, given: object, how: How | None = None) -> None:
        how = How() if how is None else how
        self._measures: list[tuple[str, Measure]] = []
        if not isinstance(given, Mapping):
            self._measures.append(("", _measure(bridge, "evaluate", given, how)))
            return
        if not given:
            raise ValueError(
                "evaluate: expected a dict with something to measure, got an empty one"
            )
        for name, one in given.items():
            argument = f"evaluate[{name!r}]"
            self._measures.append((name_of(name), _measure(bridge, argument, one, how)))

    def __call__(self, direction: Direction) -> dict[str, float]:
        """Errors, by name, of the direction that was just trained."""
        errors = {}
        for prefix, measure in self._measures:
            for name, value in measure(direction).items():
                errors[f"{prefix} {name}".strip()] = value
        return errors


def name_of(given: object) -> str:
    """The name of an error: it stands in progress lines, tables and checkpoints."""
    if not is_name(given):
        raise ValueError(
            "evaluate: expected names of errors to be printable strings of 1 to "
            f"{LONGEST} characters, got {shown(given)}"
        )
    return str(given)


def is_name(given: object, most: int = LONGEST) -> bool:
    fits = isinstance(given, str) and 0 < len(given) <= most and given.isprintable()
    return fits and given == str(given).strip()


def is_recorded_name(given: object) -> bool:
    """Whether a history may hold an error of this name."""
    return is_name(given, 2 * LONGEST + 1)


def warn_of_nan(errors: Mapping[str, float], iteration: int, direction: Direction) -> None:
    """Says which errors are no numbers; they stand in the history as they are."""
    bad = [f"{name} is {value}" for name, value in errors.items() if not math.isfinite(value)]
    if bad:
        warnings.warn(
            f"evaluate: after the {direction} half-bridge of iteration {iteration}, {', '.join(bad)}",
            stacklevel=6,
        )


def _measure(bridge: Bridge, argument: str, given: object, how: How) -> Measure:
    """One measure of the bridge from what was given."""
    exact = _against_exact(bridge, argument, given, how)
    if exact is not None:
        return exact
    if callable(given) and not isinstance(given, type) and not _is_law(given):
        _check_takes_bridge(argument, given)
        return _Own(bridge, argument, given)
    if given is None or isinstance(given, (str, type, Mapping)) or hasattr(given, "fit"):
        raise TypeError(
            f"{argument}: expected a function of the bridge, a problem of dsb.exact, held-out samples "
            f"[n, d], or a dict of such, got {shown(given)}"
        )
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(
                f"{argument}: expected samples of the source, or a pair (source, prior), "
                f"got a tuple of {len(given)}"
            )
        source, prior = (
            _end(bridge, f"{argument}[{i}]", samples, how) for i, samples in enumerate(given)
        )
        return lambda direction: _generated(bridge, direction, (prior, source), how)
    end = _end(bridge, argument, given, how)
    return lambda direction: _generated(bridge, direction, (None, end), how)


# ---- functions of the user ----


def _check_takes_bridge(argument: str, function: Callable[..., object]) -> None:
    """TypeError, before anything is trained, where a call with the bridge alone would fail."""
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is not written in Python nothing may be known
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"{argument}: expected a function that can be called with the bridge alone, got one with the "
            f"parameters {signature} ({error})"
        ) from None


class _Own:
    """A function of the bridge that gives a number, or numbers by name."""

    def __init__(self, bridge: Bridge, argument: str, function: Callable[[Bridge], object]) -> None:
        self._bridge, self._argument, self._function = bridge, argument, function
        name = getattr(function, "__name__", "")
        self._name = "" if argument != "evaluate" else name if name.isidentifier() else "error"

    def __call__(self, direction: Direction) -> dict[str, float]:
        found = self._function(self._bridge)
        if not isinstance(found, Mapping):
            return {self._name: self._number(found)}
        return {name_of(name): self._number(value) for name, value in found.items()}

    def _number(self, value: object) -> float:
        try:
            if isinstance(value, (bool, np.bool_, str, bytes)):
                raise TypeError
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TypeError(
                f"{self._argument}: expected its result to be a number, or a dict of numbers by name, "
                f"got {shown(value)}"
            ) from None


# ---- held-out samples ----


class _End(NamedTuple):
    """Two exact samples of one size at an end, and how far such are apart."""

    samples: tuple[NDArray[Any], NDArray[Any]]
    floor: float


def _end(bridge: Bridge, argument: str, given: object, how: How) -> _End:
    """From held-out rows, in two halves, or from a law."""
    from .metrics import sliced_wasserstein

    if _is_law(given):
        law: Any = given
        if law.dim != bridge.dim:
            raise ValueError(f"{argument}: expected dimension {bridge.dim}, got {law.dim}")
        return _end_of_law(bridge, law, how)
    found, _ = points(argument, given, least=LEAST_ROWS, shape=bridge.shape)
    half = len(found) // 2
    order = np.random.default_rng(SEEDS[0] + how.shift).permutation(len(found))
    halves = found[order[:half]], found[order[half : 2 * half]]
    return _End(halves, sliced_wasserstein(*halves))


def _is_law(given: object) -> bool:
    return hasattr(given, "sample") and hasattr(given, "dim") and not hasattr(given, "__array__")


def _end_of_law(bridge: Bridge, law: Any, how: How) -> _End:
    from .metrics import sliced_wasserstein

    many = _paths_that_fit(bridge, 1)

    def draw(seed: int) -> NDArray[Any]:
        found: NDArray[Any] = law.sample(many, seed=seed + how.shift)
        return found

    pairs = zip(FLOOR_SEEDS[::2], FLOOR_SEEDS[1::2], strict=True)
    apart = [sliced_wasserstein(draw(one), draw(other)) for one, other in pairs]
    return _End((draw(SEEDS[1]), draw(SEEDS[2])), _rms(apart))


def _generated(
    bridge: Bridge, direction: Direction, ends: tuple[_End | None, _End | None], how: How
) -> dict[str, float]:
    """Sliced W_2 at the end that the direction generates; `ends` are (prior, source)."""
    from .metrics import sliced_wasserstein

    end = ends[direction == "backward"]
    if end is None:
        return {}
    value = math.nan
    try:
        apart = []
        for seed, exact in zip(SEEDS[1:], end.samples, strict=True):
            found = bridge.sample(
                len(exact),
                direction=direction,
                seed=seed + how.shift,
                final_noise=how.final_noise,
            )
            apart.append(sliced_wasserstein(_rows(found), exact))
        value = _rms(apart)
    except FloatingPointError:  # a net that puts out NaN or infinity
        pass
    return {"sliced_w2": value, "sliced_w2" + FLOOR: end.floor}


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values) / len(values))


def _rows(found: NDArray[Any]) -> NDArray[Any]:
    return found.reshape(len(found), -1)


def _paths_that_fit(bridge: Bridge, states: int) -> int:
    return max(LEAST_PATHS, min(PATHS, PATH_NUMBERS // (bridge.dim * states)))


# ---- exact problems ----


def _against_exact(bridge: Bridge, argument: str, given: Any, how: How) -> Measure | None:
    """None where `given` is no problem, and no sequence of iterates either."""
    from .exact import GaussianIPF, PopulationDSB, Problem
    from .gaussian import Gaussian

    if isinstance(given, GaussianIPF):
        _check_problem(bridge, argument, given.limit())
        return _AgainstGaussian(bridge, given.process, how)
    if isinstance(given, PopulationDSB):
        _check_problem(bridge, argument, given.iterate(1).process("forward"))
        return _AgainstGaussian(
            bridge, lambda n, direction: given.iterate(n).process(direction), how
        )
    if not isinstance(given, Problem):
        return None
    _check_problem(bridge, argument, given)
    if all(isinstance(given.marginal(t), Gaussian) for t in (0.0, given.T)):
        return _AgainstGaussian(bridge, lambda n, direction: given, how)
    return _AgainstProcess(bridge, given, how)


def _check_problem(bridge: Bridge, argument: str, problem: Problem) -> None:
    """ValueError where the bridge cannot come to the problem's process."""
    wanted = f"{argument}: expected a problem with the bridge's"
    if problem.dim != bridge.dim:
        raise ValueError(f"{wanted} dimension {bridge.dim}, got {problem.dim}")
    T = bridge.schedule.T
    if not math.isclose(problem.T, T, rel_tol=1e-6):
        raise ValueError(f"{wanted} T = {T:g}, got {problem.T:g}")
    one, other = bridge.reference, problem.reference
    same = type(one) is type(other) and (
        math.isclose(one.precision, other.precision, rel_tol=1e-6)
        and np.allclose(one.centre(bridge.dim), other.centre(bridge.dim), rtol=1e-6)
    )
    if not same:
        raise ValueError(f"{wanted} reference {one}, got {other}")
    try:  # a discretised process and a chain are defined for their own steps only
        problem.sample_paths(1, schedule=bridge.schedule)
    except ValueError as error:
        raise ValueError(
            f"{wanted} schedule {bridge.schedule}, got {problem.schedule}: {error}"
        ) from error


class _AgainstGaussian:
    """KL of the marginals and error of the coupling, from paths of the direction."""

    def __init__(
        self, bridge: Bridge, exact: Callable[[int, Direction], Problem], how: How
    ) -> None:
        self._bridge, self._exact, self._how = bridge, exact, how
        self._many = _paths_that_fit(bridge, bridge.schedule.N + 1)

    def __call__(self, direction: Direction) -> dict[str, float]:
        bridge, many = self._bridge, self._many
        problem = self._exact((bridge.half_bridge + 1) // 2, direction)
        floor = gaussian_floor(problem, many)
        starts = problem.marginal(problem.T if direction == "backward" else 0.0)
        noise, draw = (seed + self._how.shift for seed in (SEEDS[0], SEEDS[2]))
        x = starts.sample(many, seed=draw).reshape(-1, *bridge.shape)
        try:
            paths = bridge.paths(x, direction=direction, seed=noise, final_noise=True)
        except FloatingPointError:
            return dict.fromkeys(("kl", "coupling"), math.nan) | floor
        paths = paths.reshape(*paths.shape[:2], -1)
        in_time = paths[:, ::-1] if direction == "backward" else paths
        return self._errors(in_time, problem) | floor

    def _errors(self, paths: NDArray[Any], problem: Problem) -> dict[str, float]:
        """Of paths in the order of t_0 .. t_N."""
        from .metrics import coupling_error, path_gaussian_kl

        found = {"kl": path_gaussian_kl(paths, problem, schedule=self._bridge.schedule)}
        if problem.coupling().cross.any():  # of ends that are independent no share is off
            found["coupling"] = coupling_error((paths[:, 0], paths[:, -1]), problem)
        return found


def gaussian_floor(problem: Problem, n: int) -> dict[str, float]:
    """What n exact paths measure: the mean of "kl" up to O(1 / n^2), the root mean square of "coupling".

    A coordinate's mean and variance each contribute 1 / (2 n); an entry of a sample covariance of Gaussians
    has the variance (S_ii S'_jj + C_ij^2) / (n - 1).
    """
    joint = problem.coupling()
    d, square = problem.dim, float(np.square(joint.cross).sum())
    spread = float(np.trace(joint.cov[:d, :d]) * np.trace(joint.cov[d:, d:])) + square
    floor = {"kl" + FLOOR: d / n}
    if square > 0.0:
        floor["coupling" + FLOOR] = math.sqrt(spread / (n - 1) / square)
    return floor


class _AgainstProcess:
    """KL between path measures, where the exact drift is known, and sliced W_2 at the end."""

    def __init__(self, bridge: Bridge, problem: Problem, how: How) -> None:
        from .exact import MixtureBridge

        self._bridge, self._problem, self._how = bridge, _Remembered(problem), how
        source, prior = (_end_of_law(bridge, problem.marginal(t), how) for t in (0.0, problem.T))
        self._ends = prior, source
        seed = SEEDS[1] + how.shift
        self._paths = problem.sample_paths(DRIFTS, schedule=bridge.schedule, seed=seed)
        # The backward drift of a mixture problem is an estimate, too rough for some of the paths.
        mixture = isinstance(problem, MixtureBridge)
        self._known: tuple[Direction, ...] = ("forward",) if mixture else DIRECTIONS

    def __call__(self, direction: Direction) -> dict[str, float]:
        from .metrics import path_kl

        errors: dict[str, float] = {}
        if direction in self._known:
            try:
                errors["path_kl"] = path_kl(
                    self._bridge, self._problem, direction, under=self._paths
                )
            except FloatingPointError:
                errors["path_kl"] = math.nan
        return errors | _generated(self._bridge, direction, self._ends, self._how)


class _Remembered:
    """A problem that is asked for drifts along the same paths again and again."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._drifts: dict[tuple[float, Direction], NDArray[np.float64]] = {}

    def drift(self, x: NDArray[Any], t: float, direction: Direction) -> NDArray[np.float64]:
        """Of the states at t, which are always the same."""
        if (t, direction) not in self._drifts:
            self._drifts[t, direction] = self._problem.drift(x, t, direction)
        return self._drifts[t, direction]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)
