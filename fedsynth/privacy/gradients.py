"""Gradients of single records, clipped and summed: what DP-SGD adds its noise to.

By function transforms (``torch.func``: vmap of grad), not by hooks on layers: those of Opacus 1.6 are wrong without a
word for convolutions behind diffusers' attention, whose inputs are channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

MEMORY_BYTES = 2**30
"""Room for the gradients and activations of the records that are worked on at a time."""

MOST_NORM = 2**20
"""Norm of a record's gradient in whole numbers, at most: finer steps than that would gain nothing."""

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
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for gradients in _gradients_by_chunk(network, loss, records, memory_bytes):
        squares = [value.flatten(1).double().square().sum(1) for value in gradients.values()]
        factors = _clipping_factors(torch.stack(squares).sum(0).sqrt(), clip).float()
        for name, value in gradients.items():
            total[name] += torch.tensordot(factors, torch.nan_to_num(value, 0.0, 0.0, 0.0), dims=1)
    return total


def clipped_whole_sum(
    network: nn.Module,
    loss: RecordLoss,
    records: tuple[torch.Tensor, ...],
    clip: float,
    norm: int,
    memory_bytes: int = MEMORY_BYTES,
) -> torch.Tensor:
    """Return the sum of :func:`clipped_gradient_sum` in whole numbers: whole vectors of norm ``norm`` at most.

    A gradient clipped to C is multiplied by :func:`whole_scale`, and rounded to the nearest whole numbers: that moves
    it by half of √(number of weights) at most, for which the scale leaves room. Whether the vector is longer all the
    same is asked in whole numbers, and then it counts as 0. So one record more or less changes the sum by a vector of
    norm ``norm`` at most, as far as the others' gradients stay what they were: floating-point arithmetic may compute
    the last digits of one otherwise in another company.

    Args:
        network, loss, records, clip, memory_bytes: as for :func:`clipped_gradient_sum`.
        norm: Δ, above half of √(number of weights), at most :data:`MOST_NORM`.

    Returns:
        Whole numbers, int64 (number of weights,), the parameters one after the other.

    Raises:
        ValueError: Δ out of its range.
    """
    count = sum(value.numel() for value in network.parameters())
    scale = whole_scale(clip, norm, count)
    total = torch.zeros(count, dtype=torch.float64)
    for gradients in _gradients_by_chunk(network, loss, records, memory_bytes // 3):
        rows = torch.cat([value.flatten(1).double() for value in gradients.values()], dim=1)
        rows = torch.nan_to_num(rows, 0.0, 0.0, 0.0) if (bad := ~rows.isfinite().all(1)).any() else rows
        factors = scale * _clipping_factors(_dots(rows).sqrt(), clip).masked_fill(bad, 0.0)
        rows.mul_(factors[:, None]).round_()
        # Whole numbers, their squares and sums are exact in double precision below 2⁵³, and never fall below it again.
        rows[_dots(rows) > norm**2] = 0.0
        total += rows.sum(0).cpu()
    return total.long()


def _dots(rows: torch.Tensor) -> torch.Tensor:
    """Return the square of every row's norm, without a copy of the rows."""
    return (rows[:, None] @ rows[:, :, None]).flatten()


def whole_scale(clip: float, norm: int, count: int) -> float:
    """Return how many whole numbers a gradient of 1 becomes in :func:`clipped_whole_sum`.

    Raises:
        ValueError: Δ out of its range.
    """
    room = norm - math.sqrt(count) / 2
    if not 0 < room <= MOST_NORM - math.sqrt(count) / 2:
        raise ValueError(f"norm {norm}: must be above {math.sqrt(count) / 2:.0f} and at most {MOST_NORM}")
    return room / clip


def _clipping_factors(norms: torch.Tensor, clip: float) -> torch.Tensor:
    """Return min(1, C / ‖g‖) for norms (n,), 0 for those that are not finite."""
    # A small gradient stays as it is. 0 · inf would be NaN, so one that is not finite is replaced as well.
    return torch.where(norms.isfinite(), (clip / norms).clamp(max=1.0), 0.0)


def _gradients_by_chunk(
    network: nn.Module, loss: RecordLoss, records: tuple[torch.Tensor, ...], memory_bytes: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the gradients of some records at a time, by name of the parameter, each (n, ...)."""
    if not len(records[0]):
        return
    parameters = {name: value.detach() for name, value in network.named_parameters()}

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
        yield gradients


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
