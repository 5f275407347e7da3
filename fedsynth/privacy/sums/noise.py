"""Sums of noise predictions: which step of a run a question is, and a silo's weight for every sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MOST_PARTS = 10_000
"""Messages into which the question of one noise level may be cut."""


def noise_step(timestep: int, part: int, num_train_timesteps: int) -> int:
    """Return the step of a question; steps rise where timesteps fall, and with the parts of one timestep.

    So a silo answers each of them once in a run.

    Args:
        timestep: 0 to ``num_train_timesteps`` - 1.
        part: 0 to :data:`MOST_PARTS` - 1, which of the messages about this timestep.
        num_train_timesteps: T of the run.
    """
    return (num_train_timesteps - 1 - timestep) * MOST_PARTS + part


def weights_of_samples(row: Sequence[float], labels: torch.Tensor) -> torch.Tensor:
    """Return a silo's weight for every sample, float64 (n,), from its weights in the classes asked about, sorted."""
    _, groups = torch.unique(labels, return_inverse=True)
    return torch.tensor(row, dtype=torch.float64)[groups]
