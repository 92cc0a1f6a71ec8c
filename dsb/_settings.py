"""Everything about the training of a bridge that is a number or a name."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from . import _core
from ._check import MAX_SEED, choice, flag, integer, real, shown, single
from ._covariance import COVARIANCES, LEAST_PATHS, MAX_PATHS

CONVENTIONS = ("grid", "official")
OBJECTIVES = ("dsb", "simplified", "bridge")
COUPLINGS = ("reference", "independent", "pairs")
OUTPUTS = ("mean", "step", "drift")
RATES = ("constant", "cosine")
PRECISIONS: tuple[_core.Precision, ...] = ("float32", "bf16x3", "bf16")
MAX_BATCH = 1 << 24
MAX_REFRESH = 1 << 24
MAX_REUSE = 255
MAX_MICROBATCH = 1 << 16
MAX_RATE = 1e6


class Settings(NamedTuple):
    """Resolved: no default is left open. 0 means "none" or "the core's default", as the core has it."""

    convention: str
    objective: str
    output: str
    closed_form: bool
    antithetic: bool
    batch: int
    microbatch: int
    lanes: int
    refresh: int
    reuse: int
    cache_bytes: int
    learning_rate: float
    lr_schedule: str
    clip: float
    ema: float
    beta1: float
    beta2: float
    epsilon: float
    seed: int
    precision: str = PRECISIONS[0]  # asked for; files of format 1 do not say
    first_coupling: str = COUPLINGS[0]  # files of formats 1 and 2 know no other,
    covariance: str = COVARIANCES[0]  # nor another covariance
    covariance_paths: int = 4096

    @classmethod
    def of(cls, *, betas: Any, eps: Any, convolves: bool, **given: Any) -> Settings:
        """From the arguments of `Bridge`, where None asks for the default of the convention and the net."""
        grid = choice("convention", given["convention"], CONVENTIONS) == "grid"
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas: expected a pair of numbers, got {shown(betas)}") from None
        defaults: dict[str, Any] = {
            "output": "drift" if grid else "step",
            "closed_form": grid,
            "first_coupling": COUPLINGS[0],
            "microbatch": 0,
            "lanes": 0,
            "cache_bytes": 0,
            "batch": 128 if convolves else 512,
            "learning_rate": 3e-3 if grid and not convolves else 1e-4,
            "lr_schedule": "cosine" if grid and not convolves else "constant",
            "clip": 1.0 if convolves else 0.0,
            "ema": 0.999 if convolves else 0.0,
        }
        for name in ("microbatch", "lanes", "cache_bytes"):
            if given[name] is not None:
                integer(name, given[name], 1)
        if given["clip"] is not None and real("clip", given["clip"]) != 0:
            clip_of(given["clip"])
        given["precision"] = precision_of(given["precision"])
        chosen: dict[str, Any] = {k: defaults.get(k) if v is None else v for k, v in given.items()}
        return cls(**chosen, beta1=beta1, beta2=beta2, epsilon=eps)._checked()

    def _checked(self) -> Settings:
        choice("convention", self.convention, CONVENTIONS)
        choice("objective", self.objective, OBJECTIVES)
        choice("first_coupling", self.first_coupling, COUPLINGS)
        choice("covariance", self.covariance, COVARIANCES)
        if self.objective == "bridge" and self.convention == "official":
            raise ValueError(
                "objective: 'bridge' needs convention='grid'; the released code has no such target"
            )
        if self.objective != "bridge" and self.first_coupling != COUPLINGS[0]:
            raise ValueError(
                f"first_coupling: {self.first_coupling!r} needs objective='bridge', "
                f"got objective {self.objective!r}"
            )
        choice("output", self.output, OUTPUTS)
        choice("lr_schedule", self.lr_schedule, RATES)
        choice("precision", self.precision, PRECISIONS)
        checked: dict[str, Any] = {
            "closed_form": flag("closed_form", self.closed_form),
            "antithetic": flag("antithetic", self.antithetic),
            "batch": integer("batch", self.batch, 1, MAX_BATCH),
            "microbatch": integer("microbatch", self.microbatch, 0, MAX_MICROBATCH),
            "lanes": integer("lanes", self.lanes, 0, MAX_BATCH),
            "refresh": integer("refresh", self.refresh, 1, MAX_REFRESH),
            "reuse": integer("reuse", self.reuse, 1, MAX_REUSE),
            "cache_bytes": integer("cache_bytes", self.cache_bytes, 0),
            "learning_rate": rate_of(self.learning_rate),
            "clip": real("clip", self.clip, least=0),
            "ema": real("ema", self.ema, least=0, below=1),
            "beta1": real("betas[0]", self.beta1, least=0, below=1),
            "beta2": real("betas[1]", self.beta2, least=0, below=1),
            "epsilon": real("eps", self.epsilon, above=0),
            "covariance_paths": integer(
                "covariance_paths", self.covariance_paths, LEAST_PATHS, MAX_PATHS
            ),
            "seed": integer("seed", self.seed, 0, MAX_SEED),
        }
        single("clip", checked["clip"])
        single("eps", checked["epsilon"])
        for field, argument in (("ema", "ema"), ("beta1", "betas[0]"), ("beta2", "betas[1]")):
            single(argument, checked[field], below=1)
        return self._replace(**checked)

    def eased(self, learning_rate: float | None, clip: float | None) -> Settings:
        """With another rate or bound of the gradient, where they are given."""
        told: dict[str, Any] = {}
        if learning_rate is not None:
            told["learning_rate"] = rate_of(learning_rate)
        if clip is not None:
            told["clip"] = clip_of(clip)
        return self._replace(**told)._checked()

    def keywords(self) -> dict[str, Any]:
        """Arguments of `_core.Bridge`, less the precision, which is the machine's to choose."""
        told = self._asdict()
        del told["precision"]
        told["cosine"] = told.pop("lr_schedule") == "cosine"
        return told

    @classmethod
    def restored(cls, told: dict[str, Any]) -> Settings:
        """From a checkpoint; ValueError where a field is missing, unknown or out of its range."""
        names = set(cls._fields)
        if not isinstance(told, dict) or not names - set(cls._field_defaults) <= set(told) <= names:
            odd = sorted(set(told) ^ names) if isinstance(told, dict) else told
            raise ValueError(f"settings: missing or unknown {odd!r}"[:300])
        try:
            return cls(**told)._checked()
        except TypeError as error:
            raise ValueError(str(error)) from None

    @property
    def loss_weight(self) -> Literal["g", "one"]:
        """Weight of a pair in the loss: proportional to its step for output "drift"."""
        return "g" if self.output == "drift" else "one"


def precision_of(value: object) -> str:
    """A precision; "auto" is float32, what every CPU computes."""
    found = choice("precision", value, ("auto", *PRECISIONS))
    return PRECISIONS[0] if found == "auto" else found


def rate_of(value: object) -> float:
    """A learning rate."""
    return single("learning_rate", real("learning_rate", value, above=0, most=MAX_RATE))


def clip_of(value: object) -> float:
    """A bound of the gradient, which is there."""
    return single("clip", real("clip", value, above=0))
