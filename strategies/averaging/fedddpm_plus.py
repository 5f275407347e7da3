"""FedDDPM+ (Peng et al. 2025, arXiv 2503.06426)."""

from __future__ import annotations

import logging
from typing import Any, Unpack

from flwr.app import ArrayRecord, MetricRecord

from strategies.averaging.base import AveragingOptions
from strategies.averaging.fedddpm import FedDDPM
from strategies.checks import in_range

logger = logging.getLogger("fedsynth")


class FedDDPMPlus(FedDDPM):
    """FedDDPM that corrects only when learning is slow.

    Our choice of what is slow, as the paper's could not be found: over ``slow_window`` rounds the silos' mean loss fell
    by less than the share ``slow_tolerance``.

    Args:
        aux_samples: images in the auxiliary set.
        server_steps: optimiser steps of a correction.
        correction_learning_rate: Adam's in a correction.
        slow_window: rounds over which progress is judged.
        slow_tolerance: relative drop of the loss below which it is slow, 0 <= tolerance < 1.
        correct_once: one correction a run, otherwise whenever learning is slow.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        *,
        aux_samples: int = 1000,
        server_steps: int = 50,
        correction_learning_rate: float = 1e-4,
        slow_window: int = 5,
        slow_tolerance: float = 0.01,
        correct_once: bool = True,
        **options: Unpack[AveragingOptions],
    ) -> None:
        super().__init__(
            aux_samples=aux_samples,
            server_steps=server_steps,
            correction_learning_rate=correction_learning_rate,
            **options,
        )
        self.slow_window = int(in_range("slow-window", slow_window, 1))
        self.slow_tolerance = in_range("slow-tolerance", slow_tolerance, 0, 1, high_open=True)
        self.correct_once = correct_once
        self._corrected: list[int] = []

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Correct the average if learning is slow."""
        done = self.correct_once and bool(self._corrected)
        if done or not learning_is_slow([loss for _, loss in self._losses], self.slow_window, self.slow_tolerance):
            metrics["server-steps"] = 0
            return arrays
        logger.info("round %d: learning is slow", server_round)
        self._corrected.append(server_round)
        return super().refine(server_round, arrays, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Add the rounds that were corrected."""
        return {**super().state_dict(), "corrected": list(self._corrected)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._corrected = list(state["corrected"])


def learning_is_slow(losses: list[float], window: int, tolerance: float) -> bool:
    """Whether the loss fell by less than the share ``tolerance`` over the last ``window`` rounds; no with fewer."""
    if len(losses) <= window:
        return False
    before, now = losses[-1 - window], losses[-1]
    return before - now < tolerance * before
