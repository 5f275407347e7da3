"""FedAvg (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fedsynth.adapter_shapes import A
from fedsynth.averaging import Layers
from fedsynth.averaging.adapters import stacked_sum, truncated_mean
from fedsynth.config.training import LORA
from strategies.averaging.aggregation import Shapes, combined, weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update

logger = logging.getLogger("fedsynth")


class FedAvg(AveragingStrategy):
    """The mean of the silos' weights by their number of images, w ← Σ n_k w_k / Σ n_k.

    Flower's has the same numbers; here the sum is kept in float64, whole-number buffers stay whole, and one bad answer
    does not spoil the mean or the run.

    Of adapters, whose factors have no such mean, it averages the products: as near as their rank allows, or exactly;
    see :mod:`fedsynth.averaging.adapters`.
    """

    how = "the silos trained one diffusion model together; only weights travelled"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._energy: float | None = None

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average in the order of silos."""
        records, counts = [update.record for update in updates], [update.num_examples for update in updates]
        if not self._averages_products:
            return weighted_mean(records, counts)
        if self.settings.lora_aggregation == "stack":
            return combined([ArrayRecord(dict(self.sent)), *records], lambda all: stacked_sum(all[0], all[1:], counts))
        return combined(records, lambda models: self._truncated_mean(models, counts))

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Note what share of the mean of adapters their rank could hold."""
        if self._energy is not None:
            metrics["adapter-energy"] = self._energy
            message = "round %d: adapters of rank lora-rank hold %.4f of the energy of their mean"
            logger.info(message, server_round, self._energy)
        return arrays

    def expected_shapes(self, silo: int) -> Shapes:
        """Return the layers that a silo's answer must hold: stacked adapters come back with the rank of one silo's."""
        shapes = super().expected_shapes(silo)
        if not (self._averages_products and self.settings.lora_aggregation == "stack"):
            return shapes
        rank = self._config.model.lora_rank
        return {name: (_with_rank(name, shape, rank), kind) for name, (shape, kind) in shapes.items()}

    def _truncated_mean(self, models: Sequence[Layers], counts: Sequence[int]) -> Layers:
        mean, self._energy = truncated_mean(models, counts)
        return mean

    @property
    def _averages_products(self) -> bool:
        return self._config.model.train == LORA and self.settings.lora_aggregation != "freeze-a"


def _with_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (rank, *shape[1:]) if name.endswith(A) else (shape[0], rank, *shape[2:])
