"""The strategies with an optimiser on the server, see :mod:`fedsynth.averaging.server_steps`.

FedAvgM: Hsu et al. 2019, arXiv 1909.06335, Section 4.3. FedAdagrad, FedAdam and FedYogi: Reddi et al. 2021,
arXiv 2003.00295, Algorithm 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord

from fedsynth.averaging.server_steps import Moments, adagrad_step, adam_step, momentum_step, stepped, yogi_step
from fedsynth.config.methods import AdamSettings, AdaptiveSettings, MomentumSettings
from fedsynth.errors import RunError
from fedsynth.messages import transport
from strategies.averaging.aggregation import emptied, encoded
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update


class ServerOptimizer(AveragingStrategy):
    """Treats the silos' mean update Δ as a gradient: w ← w + step(Δ)."""

    how = "the silos trained one diffusion model together; the server stepped along their mean update"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._moments: Moments = {}

    @property
    def if_diverged(self) -> str:
        """Name the step, the first thing to lower."""
        return "Lower server-learning-rate or server-momentum."

    @abstractmethod
    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return what is added to the weights of one layer, and advance its moments.

        Args:
            name: of the layer.
            delta: Δ, float64.
        """

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Step from the weights that were sent out.

        Raises:
            RunError: no weights were sent out.
        """
        if self._arrays is None:
            raise RunError("aggregate_train before configure_train")
        models = [emptied(update.record) for update in updates]
        counts = [update.num_examples for update in updates]
        return encoded(stepped(transport.peek_tensors(self._arrays), models, counts, self.step))

    def state_dict(self) -> dict[str, Any]:
        """Add the moments."""
        return {**super().state_dict(), "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._moments = state["moments"]


class FedAvgM(ServerOptimizer):
    """v ← βv + Δ, w ← w + ηv, with Δ the mean update of the silos.

    Flower's has the same formula (as a gradient, with the other sign); its default β = 0, η = 1 is FedAvg under
    another name, which is refused here.
    """

    Settings = MomentumSettings
    settings: MomentumSettings

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηv."""
        return momentum_step(name, delta, self._moments, self.settings)


class AdaptiveOptimizer(ServerOptimizer):
    """Those that divide by the root of a second moment."""

    Settings = AdaptiveSettings
    settings: AdaptiveSettings

    @property
    def if_diverged(self) -> str:
        """Name the step, the first thing to lower."""
        return f"Lower eta ({self.settings.eta:g})."


class FedAdagrad(AdaptiveOptimizer):
    """v ← v + Δ², w ← w + ηΔ / (√v + τ), v_0 = τ².

    Without a first moment (β₁ = 0), as Flower's. Flower's starts v at 0, where the source asks for at least τ².
    """

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηΔ / (√v + τ)."""
        return adagrad_step(name, delta, self._moments, self.settings)


class FedAdam(AdaptiveOptimizer):
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², w ← w + ηm / (√v + τ), m_0 = 0, v_0 = τ².

    Without bias correction, as in the source. Flower's corrects the bias, starts v at 0 and answers in float64.
    """

    Settings = AdamSettings
    settings: AdamSettings

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηm / (√v + τ)."""
        return adam_step(name, delta, self._moments, self.settings)


class FedYogi(FedAdam):
    """FedAdam with v ← v - (1 - β₂)Δ² sign(v - Δ²), so that v falls no faster than it rises.

    Flower's starts v at 0.
    """

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηm / (√v + τ)."""
        return yogi_step(name, delta, self._moments, self.settings)
