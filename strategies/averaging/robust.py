"""FedMedian and FedTrimmedAvg: coordinate-wise median and trimmed mean (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord

from fedsynth.averaging import median, trimmed_mean
from fedsynth.averaging.rules import cut_of
from fedsynth.config.methods import TrimmedSettings, ValuewiseSettings
from strategies.averaging.aggregation import combined
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update


class FedMedian(AveragingStrategy):
    """Every weight is the median of the silos' values, whatever their number of images (Definition 1).

    Survives hostile silos as long as they are fewer than half. Even counts average the middle pair. Flower's has the
    same numbers, but turns whole-number buffers into fractions, becomes NaN with one NaN answer, and sorts.
    """

    how = "the silos trained one diffusion model together; every weight is the median of theirs"

    Settings = ValuewiseSettings
    settings: ValuewiseSettings

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Take the median of every coordinate."""
        return combined([update.record for update in updates], median)


class FedTrimmedAvg(AveragingStrategy):
    """Every weight is the mean of the silos' values without the ⌊βn⌋ smallest and the ⌊βn⌋ largest (Definition 2).

    Survives ⌊βn⌋ hostile silos. Flower's has the same numbers up to float32 summation; its answer checks are not ours.
    """

    how = "the silos trained one diffusion model together; the most extreme values of every weight were left out"

    Settings = TrimmedSettings
    settings: TrimmedSettings

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Take the trimmed mean of every coordinate."""
        cut = cut_of(self.settings.beta, len(updates))
        return combined([update.record for update in updates], lambda models: trimmed_mean(models, cut))
