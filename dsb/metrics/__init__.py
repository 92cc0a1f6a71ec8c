"""How far two distributions, or two processes, are apart.

Distances between samples: `wasserstein`, `sliced_wasserstein`, `energy_distance`, `mmd`. By means and
covariances: `gaussian_kl_per_coordinate`, `gaussian_kl_full`, `bw2_uvp`, `cbw2_uvp`. Of whole processes:
`path_gaussian_kl`, `path_kl`, `path_energy`, `coupling_error`. Of mixtures: `mode_coverage`. `estimate`
repeats any of them with fresh samples and adds an error bar and the floor that finite samples leave:

    d.estimate(d.wasserstein, bridge, dsb.Gaussian(0, 1), n=2000)

Samples are arrays [n, d] (or images), or what they can be drawn from: a `Bridge`, which stands for its
backward samples without the noise of the last step (`generated(bridge, direction, final_noise)` says
otherwise), a `Gaussian` or another law, or a callable (n, seed).
"""

from __future__ import annotations

from ._estimate import Estimate, estimate
from ._samples import generated
from .conditional import cbw2_uvp
from .distances import energy_distance, mmd, sliced_wasserstein, wasserstein
from .gaussian import bw2_uvp, gaussian_kl_full, gaussian_kl_per_coordinate
from .modes import ModeCoverage, mode_coverage
from .paths import coupling_error, path_energy, path_gaussian_kl, path_kl

__all__ = [
    "Estimate",
    "ModeCoverage",
    "bw2_uvp",
    "cbw2_uvp",
    "coupling_error",
    "energy_distance",
    "estimate",
    "gaussian_kl_full",
    "gaussian_kl_per_coordinate",
    "generated",
    "mmd",
    "mode_coverage",
    "path_energy",
    "path_gaussian_kl",
    "path_kl",
    "sliced_wasserstein",
    "wasserstein",
]
