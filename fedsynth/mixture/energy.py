"""Energy of a noise prediction."""

from __future__ import annotations

import torch


def energy(eps: torch.Tensor) -> torch.Tensor:
    """Energy of every silo for every sample, f = ½‖ε‖² (Hahn & Lee, NeurIPS 2025, Definition 3.1).

    Args:
        eps: noise predictions (K, N, C, H, W), or (N, C, H, W) of one silo.

    Returns:
        Energies (K, N), or (N,), at least float32, non-negative.
    """
    dtype = torch.promote_types(eps.dtype, torch.float32)
    norm: torch.Tensor = torch.linalg.vector_norm(eps.flatten(-3), dim=-1, dtype=dtype)
    return 0.5 * norm.square()
