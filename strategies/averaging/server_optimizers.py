"""The strategies with an optimiser on the server.

FedAvgM: Hsu et al. 2019, arXiv 1909.06335, Section 4.3. FedAdagrad, FedAdam and FedYogi: Reddi et al. 2021,
arXiv 2003.00295, Algorithm 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from flwr.app import Array, ArrayRecord

from fedsynth.errors import RunError, UserError
from fedsynth.messages import wire
from strategies.averaging.aggregation import pop_layer, weighted_mean
from strategies.averaging.base import AveragingOptions, AveragingStrategy
from strategies.averaging.updates import Update
from strategies.checks import in_range

Moments = dict[str, dict[str, torch.Tensor]]
"""Moment -> layer -> values, float64."""


class ServerOptimizer(AveragingStrategy):
    """Treats Δ = Σ n_k (w_k - w) / Σ n_k as a gradient: w ← w + step(Δ).

    Differences are taken before they are averaged, and all is computed in float64, because Δ is small against w.
    Whole-number buffers are averaged.
    """

    how = "the silos trained one diffusion model together; the server stepped along their mean update"

    def __init__(self, **options: Unpack[AveragingOptions]) -> None:
        super().__init__(**options)
        self._moments: Moments = {}

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
        current = {name: wire.peek(array) for name, array in self._arrays.items()}
        moved = {
            name: self._move(name, layer, pop_layer(records, name), shares)
            for name, layer in current.items()
            if layer.is_floating_point()
        }
        rest = weighted_mean(records, counts)
        return ArrayRecord({name: moved[name] if name in moved else rest[name] for name in current})

    def state_dict(self) -> dict[str, Any]:
        """Add the moments."""
        return {**super().state_dict(), "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._moments = state["moments"]

    def _move(self, name: str, layer: torch.Tensor, answers: Sequence[torch.Tensor], shares: Sequence[float]) -> Array:
        start = layer.double()
        delta = torch.zeros_like(start)
        for answer, share in zip(answers, shares, strict=True):
            # Not add_(…, alpha=share): whether that rounds the product depends on the CPU.
            delta.add_(answer.double().sub_(start).mul_(share))
        return wire.encode((start + self.step(name, delta)).to(layer.dtype))


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
        first = self.moment("first", name, delta).mul_(self.beta_1).add_((1 - self.beta_1) * delta)
        second = self.moment("second", name, delta, self.tau**2)
        self.advance_second(second, delta.square())
        return self.eta * first / (second.sqrt() + self.tau)

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.mul_(self.beta_2).add_((1 - self.beta_2) * square)


class FedYogi(FedAdam):
    """FedAdam with v ← v - (1 - β₂)Δ² sign(v - Δ²), so that v falls no faster than it rises.

    Flower's starts v at 0.
    """

    def advance_second(self, second: torch.Tensor, square: torch.Tensor) -> None:
        """Advance v in place by Δ²."""
        second.sub_((1 - self.beta_2) * square * torch.sign(second - square))
