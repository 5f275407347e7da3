"""Optimisers on the server, which treat the silos' mean update Δ = Σ n_k (w_k - w) / Σ n_k as a gradient.

Momentum: Hsu et al. 2019, arXiv 1909.06335, Section 4.3. Adagrad, Adam and Yogi: Reddi et al. 2021, arXiv 2003.00295,
Algorithm 2. All is computed in float64, one elementary operation at a time: the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedsynth.averaging.layers import Layers, weighted_mean
from fedsynth.config.methods import AdamSettings, AdaptiveSettings, MomentumSettings

Moments = dict[str, dict[str, torch.Tensor]]
"""Moment -> layer -> values, float64; what a step carries from round to round, and changes in place."""

Step = Callable[[str, torch.Tensor], torch.Tensor]
"""From a layer's name and its Δ, float64, to what is added to its weights."""


def stepped(base: Layers, models: Sequence[Layers], images: Sequence[int], step: Step) -> Layers:
    """Return w + step(Δ), in the dtypes of the base; whole-number buffers are averaged.

    Differences are taken before they are averaged, and all is computed in float64, because Δ is small against w.

    Args:
        base: w, which the models started from; not written to.
        models: w_k, K >= 1, emptied on return.
        images: n_k >= 1.
        step: called once a layer, in the order of the base.
    """
    shares = [count / sum(images) for count in images]
    moved: Layers = {}
    for name, layer in base.items():
        if layer.is_floating_point():
            start = layer.double()
            delta = torch.zeros_like(start)
            for model, share in zip(models, shares, strict=True):
                # Not add_(…, alpha=share): whether that rounds the product depends on the CPU.
                delta.add_(model.pop(name).double().sub_(start).mul_(share))
            moved[name] = (start + step(name, delta)).to(layer.dtype)
    rest = weighted_mean(models, images)
    return {name: moved[name] if name in moved else rest[name] for name in base}


def momentum_step(name: str, delta: torch.Tensor, moments: Moments, settings: MomentumSettings) -> torch.Tensor:
    """v ← βv + Δ; return ηv."""
    momentum = _moment(moments, "momentum", name, delta).mul_(settings.server_momentum).add_(delta)
    return settings.server_learning_rate * momentum


def adagrad_step(name: str, delta: torch.Tensor, moments: Moments, settings: AdaptiveSettings) -> torch.Tensor:
    """v ← v + Δ², v_0 = τ²; return ηΔ / (√v + τ)."""
    second = _moment(moments, "second", name, delta, settings.tau**2).add_(delta.square())
    return settings.eta * delta / (second.sqrt() + settings.tau)


def adam_step(name: str, delta: torch.Tensor, moments: Moments, settings: AdamSettings) -> torch.Tensor:
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², m_0 = 0, v_0 = τ²; return ηm / (√v + τ)."""
    second, square = _moment(moments, "second", name, delta, settings.tau**2), delta.square()
    second.mul_(settings.beta_2).add_((1 - settings.beta_2) * square)
    return _along_first(name, delta, second, moments, settings)


def yogi_step(name: str, delta: torch.Tensor, moments: Moments, settings: AdamSettings) -> torch.Tensor:
    """As :func:`adam_step` with v ← v - (1 - β₂)Δ² sign(v - Δ²)."""
    second, square = _moment(moments, "second", name, delta, settings.tau**2), delta.square()
    second.sub_((1 - settings.beta_2) * square * torch.sign(second - square))
    return _along_first(name, delta, second, moments, settings)


def _along_first(
    name: str, delta: torch.Tensor, second: torch.Tensor, moments: Moments, settings: AdamSettings
) -> torch.Tensor:
    first = _moment(moments, "first", name, delta).mul_(settings.beta_1).add_((1 - settings.beta_1) * delta)
    return settings.eta * first / (second.sqrt() + settings.tau)


def _moment(moments: Moments, which: str, name: str, delta: torch.Tensor, start: float = 0.0) -> torch.Tensor:
    """Return a moment of a layer, to be changed in place; filled with ``start`` at first."""
    layers = moments.setdefault(which, {})
    if name not in layers:
        layers[name] = torch.full_like(delta, start)
    return layers[name]
