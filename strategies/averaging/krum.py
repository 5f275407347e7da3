"""Krum (Blanchard et al. 2017, arXiv 1703.02757, Section 3)."""

from __future__ import annotations

import torch

from strategies.averaging.krum_family import KrumFamily
from strategies.averaging.krum_selection import krum_select


class Krum(KrumFamily):
    """The one model with the smallest sum of squared distances to its n - f - 2 nearest others; n >= 2f + 3.

    Flower's differs: its distances cancel in float32, so that with small updates the choice is arbitrary; it finds a
    model's own zero distance by rank, which fails with equal answers; and it does not ask for n >= 2f + 3.
    """

    how = "the silos trained one diffusion model together; each round took over the model nearest to its neighbours"

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the position of the best."""
        return krum_select(distances, self.num_malicious_nodes, 1)
