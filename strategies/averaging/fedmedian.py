"""FedMedian: the coordinate-wise median (Yin et al. 2018, arXiv 1803.01498, Definition 1)."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord

from strategies.averaging.base import AveragingStrategy
from strategies.averaging.coordinatewise import median
from strategies.averaging.updates import Update


class FedMedian(AveragingStrategy):
    """Every weight is the median of the silos' values, whatever their number of images.

    Survives hostile silos as long as they are fewer than half. Even counts average the middle pair. Flower's has the
    same numbers, but turns whole-number buffers into fractions, becomes NaN with one NaN answer, and sorts.
    """

    how = "the silos trained one diffusion model together; every weight is the median of theirs"

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Take the median of every coordinate."""
        return median([update.record for update in updates])
