"""Randomness as an argument: every generator is derived from the run's seed and what it is for."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(run_seed: int, purpose: str, *parts: int | str) -> int:
    """Map (run seed, purpose, client, round, ...) to an independent 63-bit seed.

    Hashing instead of adding keeps streams apart: client 1 of round 2 never meets client 2 of round 1.
    """
    text = "/".join([str(run_seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(run_seed: int, purpose: str, *parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`.

    Always on the CPU, so that a run on a GPU draws the same noise as one without.
    """
    return torch.Generator().manual_seed(derive_seed(run_seed, purpose, *parts))
