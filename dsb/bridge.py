"""The bridge: two ends, two nets, and the loop that trains them in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NoReturn

from numpy.typing import ArrayLike

from . import _build, _core, _covariance, _turns, _weights
from ._answers import Answers
from ._check import F32, choice, flag
from ._ends import End
from ._fit import Fit
from ._settings import CONVENTIONS, Settings
from .gaussian import Gaussian
from .history import DIRECTIONS, Direction, HalfBridge, History, Record, half_bridge
from .nn import Graph
from .reference import OU, Brownian
from .schedule import Schedule

if TYPE_CHECKING:
    from ._evaluate import Evaluate


class Bridge(Answers):
    r"""Schrödinger bridge between two distributions, by alternating half-bridges (IPF).

    Among all processes that start in the source distribution and end in the prior, the one closest, in
    Kullback-Leibler divergence, to a reference process with noise sqrt(2) dB. Its time discretisation is

        backward  X_k     = B_{k+1}(X_{k+1}) + sqrt(2 g_k) Z,      X_N ~ prior,
        forward   X_{k+1} = F_k(X_k)         + sqrt(2 g_k) Z,      X_0 ~ source,

    with nets for B and F; the noise may have a learned covariance in place of 2 g_k I. One iteration trains
    B on paths of F, then F on paths of B (equations 12 and 13); the first F is the reference.

    Parameters
    ----------
    source : array_like, shape (n, d) or (n, c, h, w), or Gaussian
        Samples, a point in each row, or images of c channels: anything NumPy can view. float32 in C order
        is not copied, so leave it as it is while the bridge lives; other floats are converted; uint8 stays
        uint8 and is read on the scale -1 .. 1. Where d is spoken of below, images have d = c h w.
    prior : "gaussian", array_like like source, or Gaussian
        The other end. "gaussian": `Gaussian.of(source)`.
    schedule : Schedule, optional
        Default: 20 equal steps with T a tenth of the variance along the main axes of the ends,
        tr S^2 / tr S of their covariances, averaged. Along these the reference adds a fifth of the
        variance, so that IPF comes close to its limit in about five iterations while most of a point's
        position survives; a smaller T keeps more of it and takes more iterations. With an `OU`
        reference T is at most 2 v. Convention "official": 20 steps of .01.
    reference : OU or Brownian, optional
        Default: `OU` to the prior's mean and variance (averaged over coordinates) where the prior is
        Gaussian, `Brownian` where it is a data set.
    net : MLP, UNet, nn.Graph or list of ops, optional
        Architecture of both nets. Default: `MLP()`; convention "official": `MLP.official()`; for images
        `UNet()`.
    convention : {"grid", "official"}
        "grid": the state at t_i is told 1000 t_i / T in training and in sampling, nets and Adam's state
        are kept from one half-bridge to the next. "official": the released code as it is: raw times that
        differ by a step between training and sampling, fresh nets and Adam in every half-bridge.
    objective : {"dsb", "simplified", "bridge"}
        What B_{k+1}(X_{k+1}) is regressed on, F likewise. "dsb": X_{k+1} + F_k(X_k) - F_k(X_{k+1}), equations
        12 and 13. "simplified": X_k, half the evaluations, another limit. "bridge": E[X_k | X_0, X_{k+1}]
        of the reference, and E[X_{k+1} | X_k, X_N] for F, at a state drawn from the reference pinned at the
        two ends of a simulated path (bridge matching, arXiv:2303.16852, arXiv:2304.00917): a simulated path
        gives its ends only, so that half-bridges do not carry on what the last one lost of the reference.
        Needs convention "grid".
    first_coupling : {"reference", "independent", "pairs"}, optional
        Where objective "bridge" has its ends from before there are nets. "reference": X_0 and where the
        reference takes it; half-bridges are then those of IPF. "independent": X_0 and X_N drawn apart from
        each other, iterative Markovian fitting (IMF). "pairs": row i of the source with row i of the prior,
        for the first half-bridge of both directions: after `fit(ipf=1)` the bridge matches the given
        coupling, and further iterations are IMF from there. Default: "reference".
    covariance : {"reference", "scalar", "diagonal", "full"}
        Of the noise of steps: 2 g_k I, or what is estimated at the end of each half-bridge for the net R that
        it trained: q_k I, a diagonal, or a matrix (up to 512 dimensions). From fresh paths of the direction H
        that it learnt from, Y_{j+1} = H_j(Y_j) + nz, whose noise has a known covariance Q^H_j,

            Q_j = E[res res^T] + D (Q^H_j - E[nz nz^T]) D^T,   res = Y_j - R(Y_{j+1}),

        D = E[res nz^T] E[nz nz^T]^{-1}: the covariance of Y_j given Y_{j+1}, as IPF on the grid asks for,
        with nz as a control variate. With objective "bridge", over states pinned between the ends of such
        paths, m the target of the regression, Q_k = Var[X_k | X_0, X_{k+1}] I + E[(m - R)(m - R)^T].
        Eigenvalues are at least .05 g_k. See `covariance()`.
    covariance_paths : int
        Fresh paths for each estimate, at least 16; for "full" at least 256 and 4 d.
    output : {"drift", "step", "mean"}, optional
        What the net puts out: (B(x) - x) / g_k with loss weight proportional to g_k; B(x) - x; B(x).
        Default: "drift"; convention "official": "step", the released drift matching.
    closed_form : bool, optional
        Whether the first half-bridge draws pairs of the reference directly, with the conditional mean
        as target, in place of simulating paths. Default: True; convention "official": False.
    antithetic : bool
        Simulate with noise Z and -Z, both in the same minibatch.
    batch : int, optional
        Pairs in a gradient step. Default: 512; nets with convolutions: 128.
    refresh : int
        Gradient steps between two simulations of the other direction; bounded by `cache_bytes`.
    reuse : int
        How often a simulated pair is read.
    microbatch, lanes : int, optional
        Rows that one worker takes at a time, and partial sums of the gradient (a power of two). They
        decide the order of summation, hence the last bits. Default: fixed by net and batch.
    cache_bytes : int, optional
        Bound of the memory for simulated pairs.
    learning_rate : float, optional
        Adam's. Default: 3e-3; convention "official", and nets with convolutions: 1e-4.
    lr_schedule : {"cosine", "constant"}, optional
        "cosine" falls to 0 within each half-bridge. Default: "cosine"; convention "official", and nets
        with convolutions: "constant".
    clip : float, optional
        Bound of the gradient's norm, 0 for none. Default: none; nets with convolutions: 1.
    ema : float, optional
        Rate mu of the moving average shadow = mu shadow + (1 - mu) theta, which then simulates and
        samples in place of the trained weights, 0 for none. With convention "grid" it begins anew with
        every half-bridge: sum_i mu^(s-i) theta_i over its steps i = 1 .. s, divided by the sum of the
        factors. Default: none; nets with convolutions: .999.
        Those four are what arXiv:2106.01357 published for images.
    betas, eps : (float, float), float
        Adam's.
    precision : {"auto", "float32", "bf16x3", "bf16"}
        Of the products in convolutions; sums, weights, statistics, loss and optimiser are float32. "bf16"
        rounds what is multiplied to bfloat16 (8 bits), and keeps the images inside the net so; "bf16x3"
        takes three such products in place of one (16 bits).
        What the instruction set in use (`dsb.info()`) is not fast at is computed in float32. "auto":
        float32.
    device : {"auto", "cpu"}
        Where to compute.
    seed : int
        All randomness of training is a function of it: equal seeds, equal bits (same build, instruction
        set, microbatch and lanes), for any number of threads.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, shape or range; the message names it.
    MemoryError
        The plan needs more memory than there is; the message says what would fit.
    DeviceError
        The device is not there.

    Warns
    -----
    UserWarning
        Ends of an odd scale, a precision that is not there, objective "dsb" with learned covariances.

    Notes
    -----
    Algorithm 1 of De Bortoli, Thornton, Heng and Doucet, arXiv:2106.01357. One bridge may be used from
    several threads; only one at a time may `fit`.

    Examples
    --------
    >>> x = dsb.datasets.toy("swiss_roll", 10_000, seed=0)
    >>> bridge = dsb.Bridge(x, schedule=dsb.Schedule.constant(20, 0.25))
    >>> history = bridge.fit(ipf=5)
    >>> y = bridge.sample(1000)
    """

    def __init__(
        self,
        source: ArrayLike | Gaussian,
        prior: ArrayLike | Gaussian | Literal["gaussian"] = "gaussian",
        *,
        schedule: Schedule | None = None,
        reference: OU | Brownian | None = None,
        net: _build.Net | None = None,
        convention: Literal["grid", "official"] = "grid",
        objective: Literal["dsb", "simplified", "bridge"] = "dsb",
        first_coupling: Literal["reference", "independent", "pairs"] | None = None,
        covariance: Literal["reference", "scalar", "diagonal", "full"] = "reference",
        covariance_paths: int = 4096,
        output: Literal["drift", "step", "mean"] | None = None,
        closed_form: bool | None = None,
        antithetic: bool = False,
        batch: int | None = None,
        refresh: int = 100,
        reuse: int = 1,
        microbatch: int | None = None,
        lanes: int | None = None,
        cache_bytes: int | None = None,
        learning_rate: float | None = None,
        lr_schedule: Literal["cosine", "constant"] | None = None,
        clip: float | None = None,
        ema: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        precision: Literal["auto", "float32", "bf16x3", "bf16"] = "auto",
        device: Literal["auto", "cpu"] = "auto",
        seed: int = 0,
    ) -> None:
        official = choice("convention", convention, CONVENTIONS) == "official"
        _build.check_device(device)
        start = End.of("source", source)
        if isinstance(prior, str) and prior == "gaussian":
            mean, var = start.moments()
            if not var > 0:
                raise ValueError(f"source: expected rows that differ, got {start!r}, all equal")
            end = End("prior", gaussian=Gaussian(mean, var))
        else:
            end = End.of("prior", prior, start)
        graph, label = _build.net_of(net, start.image or end.point, official)
        settings = Settings.of(
            convolves=graph.convolves,
            convention=convention,
            objective=objective,
            first_coupling=first_coupling,
            covariance=covariance,
            covariance_paths=covariance_paths,
            output=output,
            closed_form=closed_form,
            antithetic=antithetic,
            batch=batch,
            refresh=refresh,
            reuse=reuse,
            microbatch=microbatch,
            lanes=lanes,
            cache_bytes=cache_bytes,
            learning_rate=learning_rate,
            lr_schedule=lr_schedule,
            clip=clip,
            ema=ema,
            betas=betas,
            eps=eps,
            precision=precision,
            seed=seed,
        )
        if reference is None:
            prior_law = end.gaussian
            reference = Brownian() if prior_law is None else OU(prior_law.mean, prior_law.var)
        if schedule is None:
            schedule = (
                Schedule.constant(20, 0.01)
                if official
                else _build.schedule_for(start, end, reference)
            )
        self._start(start, end, schedule, reference, graph, label, settings)
        for side in (start, end):
            _build.warn_of_scale(side)
            _build.warn_of_axes(side)
        _build.warn_of_precision(settings.precision)
        _covariance.warn_of_objective(settings)

    def _start(
        self,
        source: End,
        prior: End,
        schedule: Schedule,
        reference: OU | Brownian,
        graph: Graph,
        label: str,
        settings: Settings,
    ) -> None:
        _build.check_process(schedule, reference, settings)
        _covariance.check(settings, source.image or prior.image or (source.dim,))
        if settings.first_coupling == "pairs":
            _build.check_pairs(source, prior)
        self._core = _core.Bridge(
            _core.Net(graph.ops),
            **source.keywords(),
            **prior.keywords(),
            reference_mean=reference.centre(source.dim),
            reference_precision=reference.precision,
            steps=schedule.steps,
            **settings.keywords(),
            precision=_build.precision_in_use(settings.precision),
        )
        self._ends = (source, prior)
        self._schedule, self._reference, self._settings = schedule, reference, settings
        self._graph, self._label = graph, label
        self._finished = []
        self._draws = 0
        _turns.enrol(self)

    @property
    def history(self) -> History:
        """Loss and gradient norm of every step since the bridge was made."""
        with self._in_line(), self._turn:
            return History(self._parts())

    # ---- training ----

    def fit(
        self,
        ipf: int = 1,
        steps: int | None = None,
        *,
        callback: Callable[[Bridge, Record], object] | None = None,
        log_every: int = 100,
        progress: bool | None = None,
        evaluate: Evaluate | None = None,
    ) -> History:
        r"""`ipf` more iterations of iterative proportional fitting (algorithm 1 of arXiv:2106.01357).

        Each is a backward half-bridge, argmin_B E |B_{k+1}(X_{k+1}) - (X_{k+1} + F_k(X_k) - F_k(X_{k+1}))|^2
        over paths of F (the target of the other objectives: see `Bridge`), then a forward one likewise, of
        `steps` gradient steps each. An iteration that was begun (by an earlier call that was stopped, or
        before `save`) is finished first and not counted; a half-bridge that was begun keeps its number of
        steps.

        The loss has a positive floor, the variance of the target, so that its level says little. It jumps
        after the first half-bridge, whose closed-form target has less noise than simulated ones.

        Parameters
        ----------
        ipf : int
            Iterations; 0 only finishes what was begun.
        steps : int, optional
            Gradient steps of every half-bridge that this call begins. Default: as many as the last
            half-bridge that was begun has (also before `save`), 5,000 for the first.
        callback : callable, optional
            Called as callback(bridge, record) every `log_every` steps and at the end of each half-bridge.
            It may save and sample; an exception from it ends the call between two steps.
        log_every : int
            Steps between two records.
        progress : bool, optional
            Whether to show a progress bar. Default: in a terminal and in a notebook.
        evaluate : callable, problem of `dsb.exact`, array_like, pair of array_like, or dict, optional
            How far the direction just trained is from where it should be, measured at the end of every
            half-bridge: see Notes. The errors go into the history (`HalfBridge.errors`,
            `History.errors`), checkpoints, the record of a callback and the progress bar. Training is the
            same with and without, to the bit.

        Returns
        -------
        History
            Of all steps since the bridge was made, earlier calls included.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C, at a step boundary or in an estimate of covariances, which then begins anew: the bridge
            can be used, saved and fitted further.
        FloatingPointError
            NaN or infinity; names step, direction, op and tensor. The nets stand as before that step:
            save, and go on with a smaller learning_rate or a clip given to `dsb.load`.
        RuntimeError
            The bridge is being fitted already, in another thread or in a callback.
        ValueError
            An argument is out of its range, the data hold NaN, or the bridge came from a checkpoint
            without them; `evaluate` is of another dimension, T, reference or schedule than the bridge.

        Warns
        -----
        UserWarning
            An error that was measured is NaN or infinity; it is recorded as it is. Eigenvalues of learned
            covariances were raised to .05 g_k.

        Notes
        -----
        What `evaluate` may be, and which errors it records:

        a problem with Gaussian marginals, such as `dsb.exact.GaussianBridge`; `PopulationDSB`, `GaussianIPF`
            "kl": sum over coordinates of KL(N(m, v) of the paths' state || the exact one), averaged over
            the times of the schedule, and "coupling": |C - C*|_F / |C*|_F for C = Cov(X_0, X_N); from
            10,000 paths (fewer in high dimension) with final noise, from exact draws of the problem's end.
            Of the last two each iterate is the answer to its own half-bridge: `PopulationDSB` tells what
            training alone has lost.
        another problem, such as `dsb.exact.MixtureBridge`
            "path_kl": sum_k g_k E|b - b*|^2 / 4 for the drifts b along 2,000 exact paths (of a mixture
            forward only), and "sliced_w2" of generated points to exact ones at the end.
        held-out samples of the source, shape (n, d) or (n, c, h, w), or a pair (source, prior)
            "sliced_w2" of n / 2 generated points to each half of them, at the end that the direction
            generates. In a pair a `Gaussian` may stand for samples.
        a function of the bridge
            Its result, a number, under its own name; or a dict of numbers by name. After a backward
            half-bridge `bridge.half_bridge` is odd. Give its draws a seed: `bridge.sample(n, seed=0)`.
        a dict of names and any of these
            A number under its name, several under "name kl" and so on.

        Where two exact samples can be had, the distance between them as large as the sample that was
        measured is recorded too, as "kl_floor" and so on: an error at its floor is not seen to differ from 0.
        An exception from a function of yours ends the call; the half-bridge is finished, without errors.

        Examples
        --------
        >>> exact = dsb.exact.GaussianBridge(source, prior, bridge.schedule, bridge.reference)
        >>> history = bridge.fit(ipf=5, evaluate={"exact": exact, "test": held_out})
        >>> history.errors["exact kl"]
        """
        run = Fit(self, ipf, steps, callback, log_every, progress, evaluate)
        try:
            _turns.begin(self, run)
            run()
        finally:
            _turns.end(self, run)
        return self.history

    def _collect(self) -> None:
        """Takes over the log of a half-bridge that has ended."""
        if self._core.half_bridge > len(self._finished):
            self._finished.append(half_bridge(len(self._finished), *self._core.log()))

    def _parts(self) -> list[HalfBridge]:
        self._collect()
        if self._core.steps == 0:
            return list(self._finished)
        return [*self._finished, half_bridge(len(self._finished), *self._core.log())]

    # ---- weights ----

    def state_dict(self, direction: Direction, ema: bool = False) -> dict[str, F32]:
        """Weights of one net by name, copied; with ema=True their moving average.

        A bridge made with `ema` simulates and samples with the average: that is what to hand on.
        Names and shapes are PyTorch's, and for `MLP.official()` and `UNet` those of the released code, so
        that ``model.load_state_dict({k: torch.from_numpy(v) for k, v in ...})`` works there.
        """
        return _weights.get(self, choice("direction", direction, DIRECTIONS), flag("ema", ema))

    def load_state_dict(
        self,
        direction: Direction,
        weights: Mapping[str, ArrayLike] | str | os.PathLike[str],
        strict: bool = True,
    ) -> _weights.Loaded:
        """Sets the weights of one net, and their moving average, and forgets Adam's moments.

        The net then counts as trained.

        Parameters
        ----------
        direction : {"backward", "forward"}
        weights : mapping of str to array_like, or path-like
            Arrays or tensors of float16, float32 or float64 by the names of `state_dict`, or a safetensors
            file of such, as `save_state_dict` writes it.
        strict : bool
            Whether names and shapes must be exactly the net's. With False what fits is loaded and the rest
            of the net stays as it is.

        Returns
        -------
        Loaded
            (missing, unexpected): names of the net that were not loaded, and names in `weights` that were
            not used. One whose shape does not fit is in both.

        Raises
        ------
        ValueError
            Names are missing or unexpected, shapes do not fit, or numbers are not finite; nothing is changed.
        OSError
            The file cannot be read.
        RuntimeError
            A half-bridge is under way: its pairs come from the old weights.
        """
        which = choice("direction", direction, DIRECTIONS)
        return _weights.load(self, which, weights, flag("strict", strict))

    def save_state_dict(
        self, direction: Direction, path: str | os.PathLike[str], ema: bool = False
    ) -> None:
        """Writes `state_dict` as a safetensors file, replacing one that is there only when it is whole."""
        which = choice("direction", direction, DIRECTIONS)
        _weights.save(self, path, which, flag("ema", ema))

    def save(self, path: str | os.PathLike[str], data: bool | Literal["auto"] = "auto") -> None:
        """Writes a checkpoint from which `dsb.load` goes on bit for bit.

        The file (safetensors) holds both nets, Adam's state, averages, history, position and every
        setting. It is written beside `path`, synced and renamed: whatever happens, `path` is either the
        old file or the new one. May be called from a callback of `fit`, or from another thread.

        Parameters
        ----------
        path : path-like
        data : bool or "auto"
            Whether to store the samples of source and prior too. "auto": where they take up to 64 MiB
            together. Their SHA-256 is stored in any case, and checked by `dsb.load`.

        Raises
        ------
        OSError
            The file cannot be written: FileNotFoundError, PermissionError, no space left and so on, or
            `path` is there and no regular file.
        ValueError
            The rows of an end were changed in place since the first fit or save, or hold NaN.
        FloatingPointError
            A net, an average or a moment of Adam's holds NaN or infinity.
        """
        from . import checkpoint

        checkpoint.save(self, path, data)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Bridge cannot be pickled or copied: use save() and dsb.load()")

    def __repr__(self) -> str:
        return _build.describe(self)
