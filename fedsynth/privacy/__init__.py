"""What may be learnt of a silo's images, bounded: private training and its costs, and sums that hide their terms."""

from fedsynth.privacy.accounting import Geometric, Mechanism, epsilon, noise_multiplier_for

__all__ = ["Geometric", "Mechanism", "epsilon", "noise_multiplier_for"]
