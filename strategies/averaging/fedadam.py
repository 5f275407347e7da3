"""FedAdam (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2)."""

from __future__ import annotations

from typing import Unpack

import torch

from strategies.averaging.base import AveragingOptions
from strategies.averaging.server_optimizer import ServerOptimizer
from strategies.checks import in_range


class FedAdam(ServerOptimizer):
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², w ← w + ηm / (√v + τ), m_0 = 0, v_0 = τ².

    Without bias correction, as in the source. Flower's corrects the bias, starts v at 0 and answers in float64.

    Args:
        eta: η > 0. Default of FedYogi in the source, ten times below Flower's, which overshoots on small updates.
        tau: τ > 0.
        beta_1: β₁, 0 <= β₁ < 1.
        beta_2: β₂, 0 <= β₂ < 1.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        *,
        eta: float = 1e-2,
        tau: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        **options: Unpack[AveragingOptions],
    ) -> None:
        super().__init__(**options)
        self.eta = in_range("eta", eta, 0, low_open=True)
        self.tau = in_range("tau", tau, 0, low_open=True)
        self.beta_1 = in_range("beta-1", beta_1, 0, 1, high_open=True)
        self.beta_2 = in_range("beta-2", beta_2, 0, 1, high_open=True)

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηm / (√v + τ)."""
        first = self.moment("first", name, delta).mul_(self.beta_1).add_(delta, alpha=1 - self.beta_1)
        second = self.moment("second", name, delta, self.tau**2)
        self.advance_second(second, delta.square())
        return self.eta * first / (second.sqrt() + self.tau)

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.mul_(self.beta_2).add_(square, alpha=1 - self.beta_2)
