"""A secure sum of noise predictions: a question at one timestep, and the silos' weighted mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsynth.messages import MaskedRequest
from fedsynth.privacy.sums.fixed_point import to_float
from fedsynth.privacy.sums.noise import noise_step, weights_of_samples
from strategies.conversation.secure_sum import SecureSum


@dataclass(frozen=True)
class NoiseQuestion:
    """What silos are asked together.

    Attributes:
        samples: x_t, float32 (n, C, H, W).
        labels: their classes, int64 (n,).
        timestep: of all samples.
        part: which of the messages about this timestep.
        weights: of every silo of the census in every class of ``labels``, sorted, (K, G).
        server_round: for the silos' logs.
        timeout: seconds to wait for answers; None: ``reply-timeout``.
    """

    samples: torch.Tensor
    labels: torch.Tensor
    timestep: int
    part: int
    weights: torch.Tensor
    server_round: int
    timeout: float | None


def compose_sum(
    sums: SecureSum, question: NoiseQuestion, num_train_timesteps: int, wire_dtype: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the silos' weighted mean prediction.

    Args:
        sums: of the run.
        question: what is asked.
        num_train_timesteps: T of the run.
        wire_dtype: precision of samples on the wire.

    Returns:
        Σ w_i ε_i / Σ w_i over those who survived, float32 (n, C, H, W); their weights, zero for the others (K, G);
        and the seconds that silos worked.

    Raises:
        RunError: as :meth:`SecureSum.sum`.
    """
    seen = question.samples.to(getattr(torch, wire_dtype)).float()
    summed = sums.sum(
        f"timestep {question.timestep}",
        noise_step(question.timestep, question.part, num_train_timesteps),
        question.weights,
        lambda common: MaskedRequest(
            samples=seen,
            labels=question.labels,
            timestep=question.timestep,
            part=question.part,
            server_round=question.server_round,
            wire_dtype=wire_dtype,
            **common,
        ),
        question.timeout,
    )
    total = torch.from_numpy(to_float(summed.numbers)).reshape(seen.shape)
    left = summed.weights
    of_samples = weights_of_samples(left.sum(0).tolist(), question.labels)
    return (total / of_samples[:, None, None, None]).float(), left / left.sum(0), summed.seconds
