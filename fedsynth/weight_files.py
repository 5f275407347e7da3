"""Weights of a network from a file that somebody else wrote: safetensors, which no code of the file can hide in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fedsynth.sealed_tensors import tensor_chunks

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


def digest_of_weights(path: Path) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of a safetensors file's tensors, one in memory at a time.

    Raises:
        ValueError: the file is damaged or cannot be read; names it.
    """
    digest = hashlib.sha256()
    try:
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                for chunk in tensor_chunks({name: file.get_tensor(name)}):
                    digest.update(chunk)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"'{path.name}' is damaged ({error})") from error
    return digest.hexdigest()


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors by name, without reading them.

    Raises:
        ValueError: the file is damaged or cannot be read; names it.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path.name}' is damaged ({error})") from error
