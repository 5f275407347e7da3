"""Mathematics of a mixture of diffusion models: pure functions on tensors, no network, no file, no clock.

Notation: ``K`` silos, ``N`` samples of shape ``(C, H, W)``, ``eps`` (K, N, C, H, W) their noise predictions.
"""

from fedsynth.mixture.compose import compose, row_slices
from fedsynth.mixture.energy import energy
from fedsynth.mixture.prior import PRIORS, log_prior
from fedsynth.mixture.ula import ULAScheduler
from fedsynth.mixture.weights import PathPosterior, effective_experts, responsibilities, temper

__all__ = [
    "PRIORS",
    "PathPosterior",
    "ULAScheduler",
    "compose",
    "effective_experts",
    "energy",
    "log_prior",
    "responsibilities",
    "row_slices",
    "temper",
]
