"""The two ends of a bridge as the core takes them: rows of numbers, or a Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._check import F64, Rows, first_nonfinite, nearest, rows, shown
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
            hint = nearest(value[:80], ["gaussian"]) if name == "prior" else ""
            known = "'gaussian', a Gaussian" if name == "prior" else "a Gaussian"
            raise ValueError(
                f"{name}: expected {known} or an array [n, d], got {shown(value)}{hint}"
            )
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
        told = f"{self.shape[0]:,} samples ({self.dtype})"
        return f"{told}, not here" if self.missing else told
