"""The two ends of a bridge as the core takes them: rows of numbers, or a Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._check import F64, Rows, Shape, first_nonfinite, nearest, points, shown
from .gaussian import Gaussian, main_variance, moments, scaling


class End:
    """One end: data, a Gaussian, or data that a checkpoint does not hold."""

    def __init__(
        self,
        name: str,  # "source" or "prior", for messages and keywords
        *,
        data: Rows | None = None,  # [n, d]
        image: Shape | None = None,  # (c, h, w), where rows are images
        gaussian: Gaussian | None = None,
        shape: tuple[int, int] | None = None,
        dtype: str = "float32",
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.image = image
        self.gaussian = gaussian
        self.dtype = str(data.dtype) if data is not None else dtype
        self.shape: tuple[int, int] | None = (
            (data.shape[0], data.shape[1]) if data is not None else shape
        )
        self._fingerprint = fingerprint
        self._moments: tuple[F64, float] | None = None

    @classmethod
    def of(cls, name: str, value: object, like: End | None = None) -> End:
        """An end from what the user gave: a Gaussian, or anything that NumPy can view.

        Its points are as those of `like`, the other end.
        """
        end = cls._of(name, value, None if like is None or like.gaussian else like.point)
        if like is not None and end.dim != like.dim:
            raise ValueError(f"{name}: expected dimension {like.dim}, got {end.dim} in {end!r}")
        return end

    @classmethod
    def _of(cls, name: str, value: object, point: Shape | None) -> End:
        if isinstance(value, Gaussian):
            return cls(name, gaussian=value)
        if isinstance(value, str):
            hint = nearest(value[:80], ["gaussian"]) if name == "prior" else ""
            known = "'gaussian', a Gaussian" if name == "prior" else "a Gaussian"
            raise ValueError(
                f"{name}: expected {known} or an array [n, d], got {shown(value)}{hint}"
            )
        data, shape = points(name, value, shape=point)
        return cls(name, data=data, image=shape if len(shape) == 3 else None)

    @property
    def dim(self) -> int:
        if self.gaussian is not None:
            return self.gaussian.dim
        assert self.shape is not None
        return self.shape[1]

    @property
    def point(self) -> Shape:
        """Shape of one point: (d,), or (c, h, w) of an image."""
        return self.image or (self.dim,)

    @property
    def given(self) -> Rows | Gaussian | None:
        """What the user gave, images as images; None where it is not here."""
        if self.data is None or self.image is None:
            return self.gaussian if self.data is None else self.data
        return self.data.reshape(len(self.data), *self.image)

    @property
    def scaling(self) -> tuple[float, float]:
        """(scale, shift) with which rows are read."""
        return scaling(self.dtype)

    @property
    def missing(self) -> bool:
        """Whether rows are known of, but not here."""
        return self.data is None and self.gaussian is None

    def moments(self) -> tuple[F64, float]:
        """Mean, and variance averaged over the coordinates."""
        if self.gaussian is not None:
            return self.gaussian.mean, self.gaussian.var
        assert self.data is not None
        if self._moments is None:
            self._moments = moments(self.data, *self.scaling)
        return self._moments

    def main_variance(self) -> float:
        """tr S^2 / tr S of the covariance S: the variance itself where all directions are alike."""
        if self.gaussian is not None:
            cov = self.gaussian.cov
            return float(np.square(cov).sum() / np.trace(cov))
        assert self.data is not None
        return main_variance(self.data, self.scaling[0])

    def refuse_missing(self) -> None:
        """ValueError where the rows are not here, on behalf of fit."""
        if self.missing:
            assert self.shape is not None
            raise ValueError(
                f"{self.name}: fitting needs its {self.shape[0]:,} rows, which the checkpoint was saved "
                f"without; load it with dsb.load(path, {self.name}=...)"
            )

    def fingerprint(self) -> str | None:
        """SHA-256 of dtype, shape and bytes of the rows when first asked for; None for a Gaussian."""
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def unchanged(self) -> str | None:
        """`fingerprint`, after a look at the rows themselves: they belong to the user."""
        if self.data is None:
            return self._fingerprint
        now = self._hash()
        if self._fingerprint is not None and self._fingerprint != now:
            raise ValueError(
                f"{self.name}: its rows were changed in place since the bridge was first fitted, saved "
                "or loaded; restore them, or make a bridge of a copy"
            )
        self._fingerprint = now
        return now

    def _hash(self) -> str | None:
        if self.data is None:
            return None
        import hashlib

        if self.data.dtype != np.uint8 and (row := first_nonfinite(self.data)) is not None:
            raise ValueError(
                f"{self.name}: its rows were changed in place since the bridge was made: "
                f"row {row} holds NaN or infinity"
            )
        digest = hashlib.sha256(f"{self.data.dtype} {self.data.shape} ".encode())
        digest.update(self.data.data)
        return digest.hexdigest()

    def keywords(self) -> dict[str, Any]:
        """Arguments of `_core.Bridge`."""
        told: dict[str, Any] = {self.name: self.data}
        if self.data is not None:
            told[f"{self.name}_scale"], told[f"{self.name}_shift"] = self.scaling
        else:
            # A bridge without its data samples from the other end; this one is never read.
            g = self.gaussian if self.gaussian is not None else Gaussian(np.zeros(self.dim), 1.0)
            told[f"{self.name}_mean"] = g.mean.astype(np.float32)
            if g.isotropic:
                told[f"{self.name}_deviation"] = np.sqrt(g.var)
            else:
                told[f"{self.name}_factor"] = g.factor
        return told

    def __repr__(self) -> str:
        if self.gaussian is not None:
            return repr(self.gaussian)
        assert self.shape is not None
        what = "samples" if self.image is None else f"images of {by(self.image)}"
        told = f"{self.shape[0]:,} {what} ({self.dtype})"
        return f"{told}, not here" if self.missing else told


def by(shape: Shape) -> str:
    """A shape in words: 3 x 32 x 32."""
    return " x ".join(map(str, shape))
