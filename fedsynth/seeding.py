"""Randomness as an argument: every generator is derived from the run's seed and what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_GLOBAL_GENERATOR = Lock()


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


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Seed what layers draw their initial weights from, torch's global generator, and give its state back afterwards.

    Threads wait for each other here.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
