"""Gradients of single records, clipped and summed: what DP-SGD adds its noise to.

By function transforms (``torch.func``: vmap of grad), not by hooks on layers: those of Opacus 1.6 are wrong without a
word for convolutions behind diffusers' attention, whose inputs are channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

MEMORY_BYTES = 2**30
"""Room for the gradients and activations of the records that are worked on at a time."""

Forward = Callable[..., Any]
"""Calls the network with given weights."""
RecordLoss = Callable[..., torch.Tensor]
"""(forward, inputs of one record...) -> its loss, a scalar; inputs as of :func:`clipped_gradient_sum` without n."""


def clipped_gradient_sum(
    network: nn.Module,
    loss: RecordLoss,
    records: tuple[torch.Tensor, ...],
    clip: float,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, torch.Tensor]:
    """Return Σ_i g_i · min(1, C / ‖g_i‖), g_i the gradient of the loss of record i (Abadi et al. 2016, Alg. 1).

    One record more or less changes the sum by a vector of norm C at most. A record whose gradient is not finite counts
    as 0.

    Args:
        network: its parameters are differentiated; no layer may mix records, such as batch normalisation.
        loss: of one record; several draws of noise levels and noise for one record are averaged in here, before its
            gradient is clipped ("noise multiplicity", Dockhorn et al. 2023, arXiv 2210.09929).
        records: what the loss takes, each (n, ...); n may be 0.
        clip: C > 0, on the norm over all parameters together.
        memory_bytes: room for a chunk of records; a chunk has one at least.

    Returns:
        The sum by name of the parameter, of the parameters' shapes.
    """
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    if not len(records[0]):
        return total

    def loss_of(weights: dict[str, torch.Tensor], *record: torch.Tensor) -> torch.Tensor:
        def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
            return functional_call(network, weights, args, kwargs)

        return loss(forward, *record)

    gradients_of = vmap(grad(loss_of), in_dims=(None, *[0] * len(records)), randomness="error")
    size = max(1, memory_bytes // bytes_per_record(network, loss, tuple(part[0] for part in records)))
    for chunk in zip(*(part.split(size) for part in records), strict=True):
        # The other kinds of attention have no rule for vmap, and would do one record after the other.
        with sdpa_kernel(SDPBackend.MATH):
            gradients = gradients_of(parameters, *chunk)
        squares = [value.flatten(1).double().square().sum(1) for value in gradients.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        # A small gradient stays as it is. 0 · inf would be NaN, so one that is not finite is replaced as well.
        factors = torch.where(norms.isfinite(), (clip / norms).clamp(max=1.0), 0.0).float()
        for name, value in gradients.items():
            total[name] += torch.tensordot(factors, torch.nan_to_num(value, 0.0, 0.0, 0.0), dims=1)
    return total


def bytes_per_record(network: nn.Module, loss: RecordLoss, record: tuple[torch.Tensor, ...]) -> int:
    """Return how many bytes one record takes: what backward needs of its forward, and two copies of its gradient."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss(network, *record)
    return kept + 2 * sum(value.nbytes for value in network.parameters())


def gaussian_noise(
    parameters: dict[str, torch.Tensor], std: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return independent Gaussian noise in the shapes of ``parameters``, drawn on the CPU."""
    return {
        name: std * torch.randn(value.shape, generator=generator).to(value.device) for name, value in parameters.items()
    }
