"""Terms of a sum of noise predictions: server and silos derive them from the same question, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import torch

from fedsynth.privacy.sums.keys import PublicKeys
from fedsynth.privacy.sums.terms import Terms

MOST_PARTS = 10_000
"""Messages into which the question of one noise level may be cut."""


def noise_terms(
    *,
    run: str,
    attempt: str,
    samples: torch.Tensor,
    labels: torch.Tensor,
    timestep: int,
    part: int,
    num_train_timesteps: int,
    keys: dict[str, PublicKeys],
    weights: torch.Tensor,
) -> Terms:
    """Return the terms of a question for noise predictions, at one timestep.

    Steps rise where timesteps fall, and with the parts of one timestep: a silo answers each once in a run.

    Args:
        run, attempt: see :class:`Terms`.
        samples: x_t as silos see them, float32 (n, C, H, W).
        labels: their classes, int64 (n,).
        timestep: 0 to ``num_train_timesteps`` - 1.
        part: 0 to :data:`MOST_PARTS` - 1, which of the messages about this timestep.
        num_train_timesteps: T of the run.
        keys: of the participants, by name.
        weights: of every participant, sorted by name, in every class asked about, sorted: float32 (K, G).

    Raises:
        SumError: there are no such terms.
    """
    names = tuple(sorted(keys))
    classes = torch.unique(labels)
    asked = sha256(f"{timestep} {part} {tuple(samples.shape)} {classes.tolist()} ".encode())
    asked.update(samples.detach().cpu().contiguous().float().numpy().tobytes())
    asked.update(labels.cpu().contiguous().numpy().tobytes())
    return Terms(
        run=run,
        step=(num_train_timesteps - 1 - timestep) * MOST_PARTS + part,
        attempt=attempt,
        content=asked.hexdigest(),
        size=samples.numel(),
        participants=names,
        fingerprints=tuple(keys[name].fingerprint for name in names),
        weights=tuple(tuple(row) for row in weights.double().tolist()),
    )


def weights_of_samples(row: Sequence[float], labels: torch.Tensor) -> torch.Tensor:
    """Return a silo's weight for every sample, float64 (n,), from its weights in the classes asked about, sorted."""
    _, groups = torch.unique(labels, return_inverse=True)
    return torch.tensor(row, dtype=torch.float64)[groups]
