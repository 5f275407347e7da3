"""Weights of a network from a file that somebody else wrote: safetensors, which no code of the file can hide in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

MAX_TENSORS = 10_000
_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        ValueError: the file is damaged or cannot be read, or a tensor is not of finite floating-point numbers; names
            the file.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise ValueError(f"{len(names)} tensors")
            weights = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"'{path.name}' is damaged ({error})") from error
    for name, tensor in weights.items():
        if tensor.dtype not in _KINDS or not tensor.isfinite().all():
            raise ValueError(f"'{name}' in '{path.name}' is not of finite floating-point numbers")
    return weights
