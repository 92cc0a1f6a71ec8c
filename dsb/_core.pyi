"""The C core. Strict: it takes exactly the dtypes, ranks and shapes named here and says what it wanted."""

from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

DeviceError: type[Exception]

Direction = Literal["backward", "forward"]
Plane = Literal["theta", "m", "v", "ema"]
Precision = Literal["float32", "bf16x3", "bf16"]

def isa() -> str: ...
def isas() -> list[str]: ...
def precisions() -> list[str]: ...  # that the instruction set in use computes itself; float32 first
def compiler() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int, /) -> None: ...
def memory_available() -> int: ...
def normals(seed: int, stream: int, step: int, sample: int, rows: int, dim: int, /) -> F32: ...
def uniforms(seed: int, stream: int, step: int, sample: int, rows: int, dim: int, /) -> F32: ...
def permutation(seed: int, stream: int, step: int, n: int, /) -> I64: ...
def pair_sum(x: F32, y: F32 | None, gaussian: bool, scale: float, /) -> float: ...  # y None: of x
def sliced(x: F32, y: F32, directions: F32, p: int, /) -> F64: ...  # W_p^p along each direction
def live_blocks() -> int: ...
def fail_allocation(n: int, /) -> None: ...

# Entropic transport between samples: the plan is a_i b_j exp(f_i + g_j - |x_i - y_j|^2 / (2 variance)).
def sinkhorn(
    x: F32,
    y: F32,
    a: F64,
    b: F64,
    f: F64,
    g: F64,
    variance: float,
    /,
    *,
    first: Literal["source", "target"] = "target",  # the end that the first half step fits
    tolerance: float = 0.0,  # 0: all half steps are done
    most: int = 1000,
    keep: bool = False,
) -> tuple[F64, F64, F64, F64, F64, Literal["source", "target"], F64]: ...

"""f, g, errors and seconds before each half step and at last, the masses at the end not fitted, its name,
and with `keep` the potential that each half step found, [most, max(n, m)], rows for fewer points padded"""

# Of the law of j at z, exp(psi_j - |z - y_j|^2 / (2 variance)): (log normaliser, mean of values); draws.
def conditional_mean(
    z: F32, y: F32, psi: F64, variance: float, values: F32, /
) -> tuple[F64, F64]: ...
def conditional_pick(z: F32, y: F32, psi: F64, variance: float, uniform: F64, /) -> I64: ...

class Parameter(TypedDict):
    name: str
    shape: tuple[int, ...]
    offset: int  # in the plane, in floats

class Net:
    """A net built from a list of ops, each a dict; the last op makes the output.

    {"op": "input", "name": "x", "width": 2}, {"op": "input", "name": "t"},
    {"op": "embed", "name": "e", "inputs": ["t"], "width": 16, "style": "sin_cos" | "cos_sin"},
    {"op": "linear", "name": "x_encoder.layers.0", "inputs": ["x"], "width": 16, "zero": False},
    {"op": "leaky_relu", "name": "h", "inputs": [...], "slope": 0.01},
    {"op": "silu" | "add" | "concat", "name": "h", "inputs": [...]}
    {"op": "lookup", "name": "h", "inputs": ["label"], "classes": 10, "width": 16}

    Images: dsb.nn.Graph says what each makes.
    {"op": "image", "name": "h", "inputs": ["x"], "size": [28, 28]},
    {"op": "flatten" | "upsample" | "pool", "name": "h", "inputs": [...]},
    {"op": "conv", "name": "h", "inputs": [...], "width": 64, "kernel": 3, "stride": 1, "up": False,
     "zero": False, "axes": 4},
    {"op": "group_norm", "name": "h", "inputs": [...], "groups": 32, "silu": False},
    {"op": "attention", "name": "h", "inputs": [...], "heads": 4},
    {"op": "dropout", "name": "h", "inputs": [...], "rate": 0.1}
    """

    def __new__(cls, ops: list[dict[str, Any]], /) -> Net: ...
    @property
    def dim(self) -> int: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def plane(self) -> int: ...  # floats in a plane: the parameters and the gaps between them
    @property
    def parameters(self) -> list[Parameter]: ...
    def initial(self, seed: int, draw: int = 0, /) -> F32: ...
    # cond [n, width] and label [n], whole numbers, where the net reads them.
    def forward(
        self,
        theta: F32,
        x: F32,
        t: F32,
        /,
        *,
        rows: int = 64,
        cond: F32 | None = None,
        label: F32 | None = None,
        precision: Precision = "float32",
    ) -> F32: ...
    def gradient(
        self,
        theta: F32,
        x: F32,
        t: F32,
        dy: F32,
        /,
        *,
        rows: int = 64,
        keep: bool = False,
        cond: F32 | None = None,
        label: F32 | None = None,
        precision: Precision = "float32",
        seed: int = 0,  # of the masks of dropout
    ) -> tuple[F32, F32]: ...  # (y, gradient plane of sum(y * dy))
    def vjp(
        self,
        theta: F32,
        x: F32,
        t: F32,
        dy: F32,
        /,
        *,
        rows: int = 64,
        keep: bool = False,
        cond: F32 | None = None,
        label: F32 | None = None,
        precision: Precision = "float32",
    ) -> tuple[F32, F32]: ...  # (y, gradient of sum(y * dy) to x)
    def plan(
        self,
        mode: Literal["infer", "train", "vjp"],
        rows: int,
        keep: bool = False,
        precision: Precision = "float32",
        /,
    ) -> dict[str, Any]: ...  # {"bytes": int, "buffers": [(name, offset, bytes, first, last), ...]}

class Bridge:
    """Nets of both directions, their optimisers, the cache and the loop. One lock per object.

    Ends: data `source`/`prior` as [n, d] float32 or uint8 with value * scale + shift, or a Gaussian
    given by `*_mean` [d] float32 and `*_factor` (lower triangular [d, d] float32), or without a
    factor by `*_deviation`, its standard deviation in every coordinate.
    """

    def __new__(
        cls,
        net: Net,
        *,
        source: NDArray[Any] | None,
        source_scale: float = 1.0,
        source_shift: float = 0.0,
        source_mean: F32 | None = None,
        source_factor: F32 | None = None,
        source_deviation: float = 1.0,
        prior: NDArray[Any] | None = None,
        prior_scale: float = 1.0,
        prior_shift: float = 0.0,
        prior_mean: F32 | None = None,
        prior_factor: F32 | None = None,
        prior_deviation: float = 1.0,
        reference_mean: F32,
        reference_precision: float,  # 1 / v; 0: Brownian
        steps: F64,  # g_0 .. g_{N-1}
        convention: Literal["grid", "official"] = "grid",
        output: Literal["mean", "step", "drift"] = "drift",
        objective: Literal["dsb", "simplified", "bridge"] = "dsb",
        first_coupling: Literal["reference", "independent", "pairs"] = "reference",
        covariance: Literal["reference", "scalar", "diagonal", "full"] = "reference",
        covariance_paths: int = 4096,
        closed_form: bool = True,
        antithetic: bool = False,
        batch: int = 512,
        microbatch: int = 0,  # 0: the default of DESIGN 3.1
        lanes: int = 0,
        refresh: int = 100,
        reuse: int = 1,
        cache_bytes: int = 0,  # 0: no bound
        learning_rate: float = 1e-3,
        cosine: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        clip: float = 0.0,  # 0: none
        ema: float = 0.0,  # 0: none
        precision: Precision = "float32",
        seed: int = 0,
    ) -> Bridge: ...
    @property
    def microbatch(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def refresh(self) -> int: ...  # as bounded by cache_bytes
    @property
    def half_bridge(self) -> int: ...  # number of finished ones; even: next is backward
    @property
    def step(self) -> int: ...  # done in the current half-bridge
    @property
    def steps(self) -> int: ...  # of the current half-bridge, 0: not begun
    @property
    def simulation_evaluations(self) -> int: ...  # rows that a net simulated or estimated with
    @property
    def training_evaluations(self) -> int: ...  # rows of gradient steps
    def memory(
        self,
    ) -> dict[str, int]: ...
    """Bytes: planes, gradients, activations, weights, cache, ends, covariances, total."""
    def begin(self, steps: int, /) -> None: ...  # starts the next half-bridge; an error inside one
    def run(self, steps: int, seconds: float = 0.1, /) -> int: ...
    """At most `steps` more gradient steps of the current half-bridge, returning at the first step
    boundary after `seconds`; how many were done. Where all are done and covariances are estimated, the
    next call does that (0 steps), which ends the half-bridge. Raises KeyboardInterrupt at a step boundary,
    FloatingPointError (nothing updated; step, direction, op and tensor named)."""
    def log(self, first: int = 0, /) -> tuple[F32, F32]: ...
    """Loss and gradient norm of each step from `first` on, in the current or last half-bridge."""
    def trained(self, direction: Direction, /) -> bool: ...
    def sample(
        self,
        direction: Direction,
        seed: int,
        /,
        *,
        n: int = 0,
        x: F32 | None = None,  # [n, d], else drawn from the direction's start
        steps: F64 | None = None,  # another schedule; needs output "drift"
        final_noise: bool = False,
        paths: bool = False,  # True: [n, N + 1, d], state 0 .. N in time order of the direction
    ) -> F32: ...
    def get_covariance(self, direction: Direction, /) -> tuple[F64 | None, int]: ...
    """Covariances in order of time, [n], [n, d] or [n, d, d], None: the reference's; and how many
    eigenvalues were raised."""
    def set_covariance(self, direction: Direction, values: F64 | None, raised: int, /) -> None: ...
    """FloatingPointError where one is not positive definite."""
    def drift(self, direction: Direction, x: F32, t: F32, /) -> F32: ...
    """Drift per unit of time of the direction's own process; t [n] in [0, T]."""
    def get_plane(self, direction: Direction, which: Plane, /) -> F32: ...
    def set_plane(self, direction: Direction, which: Plane, plane: F32, /) -> None: ...
    def get_position(self) -> dict[str, int]: ...
    """half_bridge, step, steps, adam_backward, adam_forward, trained_backward, trained_forward"""
    def set_position(self, position: dict[str, int], loss: F32, norm: F32, /) -> None: ...
