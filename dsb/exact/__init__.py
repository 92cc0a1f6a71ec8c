"""Bridges whose answer is known.

Every problem answers the same questions: `marginal(t)`, `drift(x, t, direction)`, `velocity(x, t)`,
`coupling()` and `sample_paths(n, schedule, seed)`, so that a trained `Bridge` and an exact answer go into
the same metric and the same plot.
"""

from __future__ import annotations

from ._linear import GaussianCoupling, Step, gaussian_kl
from ._problem import Coupling, Law, Problem
from .chain import LinearChain
from .discrete import DiscreteBridge
from .gaussian import GaussianBridge
from .ipf import GaussianIPF
from .laws import Mixture
from .mixture import MixtureBridge
from .plan import Half, Plan
from .population import Iterate, PopulationDSB
from .sinkhorn import sinkhorn, sinkhorn_iterates

__all__ = [
    "Coupling",
    "DiscreteBridge",
    "GaussianBridge",
    "GaussianCoupling",
    "GaussianIPF",
    "Half",
    "Iterate",
    "Law",
    "LinearChain",
    "Mixture",
    "MixtureBridge",
    "Plan",
    "PopulationDSB",
    "Problem",
    "Step",
    "gaussian_kl",
    "sinkhorn",
    "sinkhorn_iterates",
]
