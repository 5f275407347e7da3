"""FedAvgM: server momentum (Hsu et al. 2019, arXiv 1909.06335, Section 4.3)."""

from __future__ import annotations

from typing import Unpack

import torch

from fedsynth.errors import UserError
from strategies.averaging.base import AveragingOptions
from strategies.averaging.server_optimizer import ServerOptimizer
from strategies.checks import in_range


class FedAvgM(ServerOptimizer):
    """v ← βv + Δ, w ← w + ηv, with Δ the mean update of the silos.

    Flower's has the same formula (as a gradient, with the other sign); its default β = 0, η = 1 is FedAvg under
    another name, which is refused here.

    Args:
        server_learning_rate: η > 0.
        server_momentum: β, 0 <= β < 1.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range, or β = 0 with η = 1.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        **options: Unpack[AveragingOptions],
    ) -> None:
        super().__init__(**options)
        self.server_learning_rate = in_range("server-learning-rate", server_learning_rate, 0, low_open=True)
        self.server_momentum = in_range("server-momentum", server_momentum, 0, 1, high_open=True)
        if server_momentum == 0 and server_learning_rate == 1:
            raise UserError(
                "server-momentum = 0 with server-learning-rate = 1 is FedAvg: use strategy = 'fedavg', or change one"
            )

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηv."""
        momentum = self.moment("momentum", name, delta).mul_(self.server_momentum).add_(delta)
        return self.server_learning_rate * momentum
