"""FedAvg (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord

from strategies.averaging.aggregation import weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update


class FedAvg(AveragingStrategy):
    """The mean of the silos' weights by their number of images, w ← Σ n_k w_k / Σ n_k.

    Flower's has the same numbers; here the sum is kept in float64, whole-number buffers stay whole, and one bad answer
    does not spoil the mean or the run.
    """

    how = "the silos trained one diffusion model together; only weights travelled"

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average in the order of silos."""
        return weighted_mean([update.record for update in updates], [update.num_examples for update in updates])
