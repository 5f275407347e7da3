"""What a silo signs in a round of cooperative inference: its noise predictions, and what it was asked."""

from __future__ import annotations

import torch

from fedsynth.replicas.content_ids import content_id

EPSILON, COUNTS, ASKED = "epsilon", "counts", "asked"
"""Names of the arrays of an update."""


def signed_prediction(
    epsilon: torch.Tensor, counts: torch.Tensor, samples: torch.Tensor, labels: torch.Tensor, timestep: int
) -> dict[str, torch.Tensor]:
    """Return the arrays whose content id is in a silo's statement.

    Args:
        epsilon: its noise predictions, float32 (n, C, H, W).
        counts: its images by class as it tells them, int64 (Y,).
        samples: what it was asked about, float32 (n, C, H, W).
        labels: their classes, int64 (n,).
        timestep: of all of them.
    """
    asked = content_id({"samples": samples, "labels": labels, "timestep": torch.tensor(timestep)})
    return {EPSILON: epsilon, COUNTS: counts, ASKED: torch.tensor(list(bytes.fromhex(asked)), dtype=torch.uint8)}
