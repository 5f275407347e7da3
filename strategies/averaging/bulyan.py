"""Bulyan (El Mhamdi et al. 2018, arXiv 1802.07927, Section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from flwr.app import ArrayRecord

from strategies.averaging.coordinatewise import mean_around_median
from strategies.averaging.krum_family import KrumFamily
from strategies.averaging.krum_selection import bulyan_select
from strategies.averaging.updates import Update


class Bulyan(KrumFamily):
    """Krum chooses θ = n - 2f models one by one; every weight is the mean of the θ - 2f values nearest their median.

    Needs n >= 4f + 3. Flower's differs: it takes the θ best by one ranking, where the paper removes each winner and
    ranks the rest anew, and its distances have the faults of its Krum.
    """

    how = "the silos trained one diffusion model together; outlying models and values were left out"
    silos_per_malicious: ClassVar[int] = 4

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the θ chosen."""
        return bulyan_select(distances, self.num_malicious_nodes)

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average around the median."""
        return mean_around_median([update.record for update in updates], len(updates) - 2 * self.num_malicious_nodes)
