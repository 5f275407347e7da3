"""The strategies with an optimiser on the server.

FedAvgM: Hsu et al. 2019, arXiv 1909.06335, Section 4.3. FedAdagrad, FedAdam and FedYogi: Reddi et al. 2021,
arXiv 2003.00295, Algorithm 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord

from fedsynth.config.methods import AdamSettings, AdaptiveSettings, MomentumSettings
from fedsynth.errors import RunError
from fedsynth.messages import transport
from strategies.averaging.aggregation import pop_layer, weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update

Moments = dict[str, dict[str, torch.Tensor]]
"""Moment -> layer -> values, float64."""


class ServerOptimizer(AveragingStrategy):
    """Treats Δ = Σ n_k (w_k - w) / Σ n_k as a gradient: w ← w + step(Δ).

    Differences are taken before they are averaged, and all is computed in float64, because Δ is small against w.
    Whole-number buffers are averaged.
    """

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

    def moment(self, which: str, name: str, delta: torch.Tensor, start: float = 0.0) -> torch.Tensor:
        """Return a moment of a layer, to be changed in place; filled with ``start`` at first."""
        layers = self._moments.setdefault(which, {})
        if name not in layers:
            layers[name] = torch.full_like(delta, start)
        return layers[name]

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Step from the weights that were sent out.

        Raises:
            RunError: no weights were sent out.
        """
        if self._arrays is None:
            raise RunError("aggregate_train before configure_train")
        records = [update.record for update in updates]
        counts = [update.num_examples for update in updates]
        shares = [count / sum(counts) for count in counts]
        current = {name: transport.peek(array) for name, array in self._arrays.items()}
        moved: dict[str, Array] = {}
        for name, layer in current.items():
            if layer.is_floating_point():
                start = layer.double()
                delta = torch.zeros_like(start)
                for answer, share in zip(pop_layer(records, name), shares, strict=True):
                    # Not add_(…, alpha=share): whether that rounds the product depends on the CPU.
                    delta.add_(answer.double().sub_(start).mul_(share))
                moved[name] = transport.encode((start + self.step(name, delta)).to(layer.dtype))
        rest = weighted_mean(records, counts)
        return ArrayRecord({name: moved[name] if name in moved else rest[name] for name in current})

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
        momentum = self.moment("momentum", name, delta).mul_(self.settings.server_momentum).add_(delta)
        return self.settings.server_learning_rate * momentum


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
        second = self.moment("second", name, delta, self.settings.tau**2).add_(delta.square())
        return self.settings.eta * delta / (second.sqrt() + self.settings.tau)


class FedAdam(AdaptiveOptimizer):
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², w ← w + ηm / (√v + τ), m_0 = 0, v_0 = τ².

    Without bias correction, as in the source. Flower's corrects the bias, starts v at 0 and answers in float64.
    """

    Settings = AdamSettings
    settings: AdamSettings

    def step(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """Return ηm / (√v + τ)."""
        beta = self.settings.beta_1
        first = self.moment("first", name, delta).mul_(beta).add_((1 - beta) * delta)
        second = self.moment("second", name, delta, self.settings.tau**2)
        self.advance_second(second, delta.square())
        return self.settings.eta * first / (second.sqrt() + self.settings.tau)

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.mul_(self.settings.beta_2).add_((1 - self.settings.beta_2) * square)


class FedYogi(FedAdam):
    """FedAdam with v ← v - (1 - β₂)Δ² sign(v - Δ²), so that v falls no faster than it rises.

    Flower's starts v at 0.
    """

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.sub_((1 - self.settings.beta_2) * square * torch.sign(second - square))
