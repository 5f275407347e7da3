"""FedAdagrad (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2)."""

from __future__ import annotations

from typing import Unpack

import torch

from strategies.averaging.base import AveragingOptions
from strategies.averaging.server_optimizer import ServerOptimizer
from strategies.checks import in_range


class FedAdagrad(ServerOptimizer):
    """v ← v + Δ², w ← w + ηΔ / (√v + τ), v_0 = τ².

    Without a first moment (β₁ = 0), as Flower's. Flower's starts v at 0, where the source asks for at least τ².

    Args:
        eta: η > 0. Our choice of default: the first rounds move about as far as FedAvg when |Δ| is about τ.
        tau: τ > 0.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, *, eta: float = 1e-2, tau: float = 1e-3, **options: Unpack[AveragingOptions]) -> None:
        super().__init__(**options)
        self.eta = in_range("eta", eta, 0, low_open=True)
        self.tau = in_range("tau", tau, 0, low_open=True)

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηΔ / (√v + τ)."""
        second = self.moment("second", name, delta, self.tau**2).add_(delta.square())
        return self.eta * delta / (second.sqrt() + self.tau)
