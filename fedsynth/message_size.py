"""How many samples travel in one noise query."""

from __future__ import annotations

_BYTES = {"float32": 4, "float16": 2}

NETWORK_BATCH = 256
"""Samples that networks work on at a time (:func:`fedsynth.diffusion.noise_predictor`): messages are cut between two
batches, since a network's last bits depend on what else is in its batch."""


def rows_in(max_message_mb: float, numbers: int, wire_dtype: str) -> int:
    """Return how many samples fit in a message, at least 1.

    Args:
        max_message_mb: largest array data of a request or an answer, in 10^6 bytes. Flower itself sets no limit, and
            arrays travel in pieces (:mod:`fedsynth.messages.packing`). The limit is for the silo, which holds samples,
            answer and their serialised forms at once, and for what is lost with a message.
        numbers: C·H·W of a sample.
        wire_dtype: how they travel.
    """
    # A label and a timestep of 8 bytes travel with every sample.
    size = numbers * _BYTES[wire_dtype] + 16
    return max(1, int(max_message_mb * 1e6 / size))
