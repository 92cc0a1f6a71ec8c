"""What a bridge can be asked for: samples, paths, drifts and covariances."""

from __future__ import annotations

from numpy.typing import ArrayLike

from . import _covariance, _sampling
from ._check import F32, choice
from ._facts import Facts
from .history import DIRECTIONS, Direction
from .schedule import Schedule


class Answers(Facts):
    """Samples, paths, drifts and covariances of a `Bridge`."""

    def sample(
        self,
        n: int | None = None,
        *,
        x: ArrayLike | None = None,
        direction: Direction = "backward",
        seed: int | None = None,
        schedule: Schedule | None = None,
        final_noise: bool = False,
    ) -> F32:
        r"""End points of simulated paths: X_0 from X_N ~ prior, or X_N from X_0 ~ source.

        Parameters
        ----------
        n : int, optional
            Number of paths; their starts are drawn from the direction's end (rows of data in random
            order, each as often as the others).
        x : array_like, shape (n, d) or (n, c, h, w), optional
            Starts, in place of `n`.
        direction : {"backward", "forward"}
            From the prior to the source, or from the source to the prior. The forward process is the
            reference until its net has been trained.
        seed : int, optional
            Equal seeds, equal draws. Default: a new one for every call, counted from the making or
            loading of the bridge, so that a script gives the same draws again.
        schedule : Schedule, optional
            Other steps up to the same T; needs output "drift" and convention "grid". Their noise is the
            reference's: covariances that were estimated belong to the steps of training, and tend to
            2 g I as steps shrink.
        final_noise : bool
            Whether the last step, too, adds its noise. Training and the tables of population
            values keep it; pictures are better without.

        Returns
        -------
        ndarray, shape (n, d) or (n, c, h, w), float32
            On the scale that training uses: uint8 data come out as -1 .. 1.

        Raises
        ------
        RuntimeError
            The backward net has not been trained.
        TypeError, ValueError
            An argument is of the wrong type, shape or range.
        FloatingPointError
            The result holds NaN or infinity.
        MemoryError
            The result needs more memory than there is; the message says how many rows would fit.
        """
        how = _sampling.Request(direction, seed, schedule, final_noise)
        return _sampling.sample(self, n, x, how)

    def paths(
        self,
        start: int | ArrayLike,
        *,
        direction: Direction = "backward",
        seed: int | None = None,
        schedule: Schedule | None = None,
        final_noise: bool = False,
    ) -> F32:
        """Whole simulated paths, shape (n, N + 1, d): [:, 0] are the starts, [:, -1] what `sample` gives.

        Those of images are (n, N + 1, c, h, w). `start` is the number of paths or their starts, shape
        (n, d) or (n, c, h, w); the rest as in `sample`. The states of a backward path thus belong to the
        times T .. 0, those of a forward path to 0 .. T.
        """
        how = _sampling.Request(direction, seed, schedule, final_noise, paths=True)
        return _sampling.paths(self, start, how)

    def drift(self, x: ArrayLike, t: float | ArrayLike, direction: Direction = "backward") -> F32:
        r"""Drift of a direction's own process per unit of time: (B(x) - x) / g or (F(x) - x) / g.

        Parameters
        ----------
        x : array_like, shape (n, d) or (n, c, h, w)
        t : float or array_like, shape (n,)
            Times in [0, T], counted from the source in both directions. With output "drift" and
            convention "grid" any time will do, otherwise a time of the grid that the direction leaves.
        direction : {"backward", "forward"}

        Returns
        -------
        ndarray, of the shape of x, float32
            In units of data per unit of t. Half the difference, forward minus backward, is the velocity
            of the probability flow; half their sum tends to grad log p_t.
        """
        return _sampling.drift(self, x, t, direction)

    def covariance(self, direction: Direction = "backward") -> _covariance.Covariance:
        r"""Covariances Q_k of the noise with which a direction's steps simulate, and how they came about.

            backward  X_k     = B_{k+1}(X_{k+1}) + L_k Z,    L_k L_k^T = Q_k,
            forward   X_{k+1} = F_k(X_k)         + L_k Z,    with Q_k of its own.

        They are the reference's, 2 g_k I, unless the bridge was made with another `covariance`; these are
        estimated at the end of each half-bridge, for the direction that it trained. A net that has had no
        half-bridge, or whose weights were loaded, has the reference's.

        Parameters
        ----------
        direction : {"backward", "forward"}

        Returns
        -------
        Covariance
            values, float64, in the order of time, k = 0 .. N - 1, for both directions: q_k of shape (N,)
            where `kind` is "reference" or "scalar", Q_k = q_k I; diagonals of the shape of a point, (N, d)
            or (N, c, h, w); matrices (N, d, d) for "full". And raised, how many eigenvalues lay below
            .05 g_k and were raised to it.
        """
        return _covariance.of(self, choice("direction", direction, DIRECTIONS))
