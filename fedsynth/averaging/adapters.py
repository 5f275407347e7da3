"""How the low-rank adapters of several silos become one: their mean is Σ_k p_k B_k A_k, and mean(B) mean(A) is not.

All is computed in float64. What :func:`truncate` returns depends on the machine in its last bits, since the singular
value decomposition does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fedsynth.adapter_shapes import A, B, most_rank
from fedsynth.averaging.layers import Layers
from fedsynth.threads import one_thread

_NOTHING = 1e-12
"""Singular values below this share of the largest are what rounding leaves."""


class Adapter(NamedTuple):
    """The factors of a product B A.

    Attributes:
        b: (out, r).
        a: (r, in).
    """

    b: torch.Tensor
    a: torch.Tensor


def stack(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return [w_1 B_1 … w_K B_K] and [A_1; …; A_K], whose product is Σ w_k B_k A_k exactly (Wang et al. 2024, FLoRA,
    arXiv 2409.05976, Eq. 4), float64.

    Args:
        adapters: K >= 1; ranks may differ.
        weights: K.
    """
    scaled = [adapter.b.double() * weight for adapter, weight in zip(adapters, weights, strict=True)]
    return Adapter(torch.cat(scaled, 1), torch.cat([adapter.a.double() for adapter in adapters]))


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, float, float]:
    """Return the product of rank r that is nearest to B A in the Frobenius norm (Eckart & Young 1936).

    B' = U √S and A' = √S Vᵀ of its singular value decomposition, for which B A (out, in) is never built: with B = Q R
    and Aᵀ = P T it is that of the small R Tᵀ. A direction without a singular value has B' = 0 and an A' of length 1, so
    that the product is what it was and training can take the direction up; rows beyond the rank of any product are 0.

    Args:
        adapter: of any rank, float64.
        rank: r >= 1.

    Returns:
        B' (out, r) and A' (r, in); the energy kept, ‖B' A'‖²; and all of it, ‖B A‖².
    """
    q, r = torch.linalg.qr(adapter.b)
    p, t = torch.linalg.qr(adapter.a.T)
    left, values, right = torch.linalg.svd(r @ t.T, full_matrices=False)
    kept = min(rank, len(values))
    lives = values[:kept] > _NOTHING * values[0]
    roots = values[:kept].sqrt()
    b = q @ left[:, :kept] * torch.where(lives, roots, 0)
    a = torch.where(lives, roots, 1)[:, None] * (right[:kept] @ p.T)
    missing = rank - kept
    b, a = torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))
    squares = values.square()
    return Adapter(b, a), float(squares[:kept].sum()), float(squares.sum())


@one_thread()
def truncated_mean(models: Sequence[Layers], weights: Sequence[float]) -> tuple[Layers, float]:
    """Combine the adapters of K models with equal names and shapes: of every layer the product of the silos' rank that
    is nearest to Σ p_k B_k A_k.

    Args:
        models: factors by name, K >= 1; emptied on return.
        weights: as many positive numbers; they need not sum to 1.

    Returns:
        The factors, float32; and the share of the energy Σ ‖Σ p_k B_k A_k‖² over all layers that they have.
    """
    shares = [weight / sum(weights) for weight in weights]
    combined: Layers = {}
    kept = whole = 0.0
    for name in _layers_of(models[0]):
        shapes = models[0][name + A].shape, models[0][name + B].shape
        adapter, part, energy = truncate(stack([_pop(model, name) for model in models], shares), shapes[0][0])
        _put(combined, name, adapter, *shapes)
        kept, whole = kept + part, whole + energy
    return combined, kept / whole if whole else 1.0


@one_thread()
def stacked_sum(current: Layers, models: Sequence[Layers], weights: Sequence[float]) -> Layers:
    """Add the mean of K silos' adapters to those that they began from: B A + Σ p_k B_k A_k, exactly.

    Ranks add up. Beyond the rank that a layer's weights can have, the factors are written anew with that rank, which
    changes their product by rounding alone.

    Args:
        current: factors by name, of any rank, those that the silos had merged into their weights; emptied on return.
        models: the silos' factors; emptied on return.
        weights: K positive numbers; they need not sum to 1.

    Returns:
        The factors, float32.
    """
    shares = [weight / sum(weights) for weight in weights]
    combined: Layers = {}
    for name in _layers_of(current):
        shapes = current[name + A].shape, current[name + B].shape
        before = _pop(current, name)
        parts, factors = [_pop(model, name) for model in models], [*shares]
        if before.b.any():
            parts, factors = [before, *parts], [1.0, *factors]
        adapter = stack(parts, factors)
        if len(adapter.a) > (most := most_rank((shapes[1][0], *shapes[0][1:]))):
            adapter, _, _ = truncate(adapter, most)
        _put(combined, name, adapter, *shapes)
    return combined


def _layers_of(model: Layers) -> list[str]:
    return [name.removesuffix(A) for name in model if name.endswith(A)]


def _pop(model: Layers, name: str) -> Adapter:
    """Remove the factors of a layer, as matrices."""
    return Adapter(model.pop(name + B).flatten(1), model.pop(name + A).flatten(1))


def _put(model: Layers, name: str, adapter: Adapter, shape_a: torch.Size, shape_b: torch.Size) -> None:
    rank = len(adapter.a)
    model[name + A] = adapter.a.float().reshape(rank, *shape_a[1:])
    model[name + B] = adapter.b.float().reshape(shape_b[0], rank, *shape_b[2:])
