"""Differential privacy: what mechanisms cost together, and training that is one of them."""

from fedsynth.privacy.accounting import Geometric, Mechanism, epsilon, noise_multiplier_for

__all__ = ["Geometric", "Mechanism", "epsilon", "noise_multiplier_for"]
