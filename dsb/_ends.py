"""The two ends of a bridge as the core takes them: rows of numbers, or a Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._check import F64, Rows, nearest, rows
from .gaussian import Gaussian, main_variance, moments, scaling


class End:
    """One end: data, a Gaussian, or data that a checkpoint does not hold."""

    def __init__(
        self,
        name: str,  # "source" or "prior", for messages and keywords
        *,
        data: Rows | None = None,
        gaussian: Gaussian | None = None,
        shape: tuple[int, int] | None = None,
        dtype: str = "float32",
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.gaussian = gaussian
        self.dtype = str(data.dtype) if data is not None else dtype
        self.shape: tuple[int, int] | None = (
            (data.shape[0], data.shape[1]) if data is not None else shape
        )
        self._fingerprint = fingerprint
        self._moments: tuple[F64, float] | None = None

    @classmethod
    def of(cls, name: str, value: object, dim: int | None = None) -> End:
        """An end from what the user gave: a Gaussian, or anything that NumPy can view."""
        if isinstance(value, Gaussian):
            if dim is not None and value.dim != dim:
                raise ValueError(f"{name}: expected dimension {dim}, got {value.dim} in {value!r}")
            return cls(name, gaussian=value)
        if isinstance(value, str):
            hint = nearest(value, ["gaussian"]) if name == "prior" else ""
            known = "'gaussian', a Gaussian" if name == "prior" else "a Gaussian"
            raise ValueError(f"{name}: expected {known} or an array [n, d], got {value!r}{hint}")
        return cls(name, data=rows(name, value, dim=dim))

    @property
    def dim(self) -> int:
        if self.gaussian is not None:
            return self.gaussian.dim
        assert self.shape is not None
        return self.shape[1]

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

    def fingerprint(self) -> str | None:
        """SHA-256 of dtype, shape and bytes of the rows; None for a Gaussian."""
        if self._fingerprint is None and self.data is not None:
            import hashlib

            digest = hashlib.sha256(f"{self.data.dtype} {self.data.shape} ".encode())
            digest.update(self.data.data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def keywords(self) -> dict[str, Any]:
        """Arguments of `_core.Bridge`."""
        told: dict[str, Any] = {self.name: self.data}
        if self.data is not None:
            told[f"{self.name}_scale"], told[f"{self.name}_shift"] = self.scaling
        else:
            # A bridge without its data samples from the other end; this one is never read.
            g = self.gaussian if self.gaussian is not None else Gaussian(np.zeros(self.dim), 1.0)
            told[f"{self.name}_mean"] = g.mean.astype(np.float32)
            told[f"{self.name}_factor"] = g.factor
        return told

    def __repr__(self) -> str:
        if self.gaussian is not None:
            return repr(self.gaussian)
        assert self.shape is not None
        told = f"{self.shape[0]:,} samples ({self.dtype})"
        return f"{told}, not here" if self.missing else told
