"""Where a process computes."""

from __future__ import annotations

import torch

from fedsynth.errors import UserError


def pick_device(wanted: str) -> torch.device:
    """Turn ``device`` of the config into a device; ``auto`` takes CUDA where this process sees it.

    Raises:
        UserError: CUDA asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': this process sees no CUDA device; use device = 'cpu', or give it a GPU share")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
