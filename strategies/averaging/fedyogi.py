"""FedYogi (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2)."""

from __future__ import annotations

import torch

from strategies.averaging.fedadam import FedAdam


class FedYogi(FedAdam):
    """FedAdam with v ← v - (1 - β₂)Δ² sign(v - Δ²), so that v falls no faster than it rises.

    Flower's starts v at 0.
    """

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.sub_((1 - self.beta_2) * square * torch.sign(second - square))
