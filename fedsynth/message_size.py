"""How many samples travel in one noise query, and how weights are cut into messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

from fedsynth.config import RunConfig
from fedsynth.config.methods import AdamSettings, AdaptiveSettings, AveragingSettings, MomentumSettings
from fedsynth.config.training import LORA
from fedsynth.config.types import STREAMED
from fedsynth.errors import UserError
from fedsynth.units import human_bytes

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


LARGEST_WHOLE = 2 * 10**9
"""Bytes of weights that still travel as one message, where they cannot travel in shards: it is in memory several times
at both ends."""


def shards_of(
    shapes: Mapping[str, tuple[int, ...]], max_message_mb: float, wire_dtype: str = "float32"
) -> list[tuple[str, ...]]:
    """Cut the layers of a model, in their order, into shards of ``max_message_mb`` at most.

    Args:
        shapes: of the layers.
        max_message_mb: in 10^6 bytes; a larger layer is a shard by itself.
        wire_dtype: how they travel.

    Returns:
        The names of each shard's layers.
    """
    shards: list[list[str]] = []
    left = 0.0
    for name, shape in shapes.items():
        size = prod(shape) * _BYTES[wire_dtype]
        if not shards or size > left:
            shards.append([])
            left = max_message_mb * 1e6
        shards[-1].append(name)
        left -= size
    return [tuple(names) for names in shards]


def weights_bytes(config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of a model's numbers on the wire."""
    return sum(map(prod, shapes.values())) * _BYTES[config.exchange.wire_dtype]


def streamed_shards(config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Return the shards in which a run's weights travel; none where they travel as one message.

    They travel in shards where they are more than ``max-message-mb`` and the server combines whole weights layer by
    layer: not where it sees sums only, where silos aggregate, and not adapters, whose factors belong together.

    Args:
        config: the run's.
        shapes: of the layers that it averages.
    """
    by_layer = config.run.strategy in STREAMED and config.model.train != LORA
    if not by_layer or config.cooperation.secure_aggregation or config.replicated:
        return []
    most = config.exchange.max_message_mb
    shards = shards_of(shapes, most, config.exchange.wire_dtype)
    return shards if weights_bytes(config, shapes) > most * 1e6 else []


def refuse_too_large(config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that would have to travel as one message and are too large for that.

    Raises:
        UserError: says how large they are, and what sends them in shards.
    """
    if (size := weights_bytes(config, shapes)) > LARGEST_WHOLE:
        raise UserError(
            f"weights of {human_bytes(size)} as one message: must be {human_bytes(LARGEST_WHOLE)} at most. They travel"
            f" in shards with strategy = {', '.join(STREAMED)} without secure-aggregation, aggregators = 'silos' and"
            " adapters; choose one of these, or a smaller network"
        )


@dataclass(frozen=True)
class StreamNeeds:
    """What a round whose weights travel in shards takes besides the network that a silo trains, in bytes.

    Attributes:
        server_memory: at the server: a shard of every silo, as it is fetched, and what is made of them; what the
            strategy carries from round to round.
        server_disk: in the run folder: the answers, weights before and after, checkpoints, the final model.
        silo_disk: in a silo's state folder.
    """

    server_memory: int
    server_disk: int
    silo_disk: int

    @classmethod
    def of(cls, config: RunConfig, shapes: Mapping[str, tuple[int, ...]], silos: int) -> Self:
        """Return what a run needs.

        Args:
            config: the run's.
            shapes: of the layers that it averages.
            silos: that take part in a round.
        """
        settings, wire = config.settings, weights_bytes(config, shapes)
        single = 4 * sum(map(prod, shapes.values()))
        shards = streamed_shards(config, shapes)
        shard = max(sum(prod(shapes[name]) for name in names) for names in shards) * _BYTES[config.exchange.wire_dtype]
        moments = 2 if isinstance(settings, AdamSettings) else isinstance(settings, AdaptiveSettings | MomentumSettings)
        averaged = isinstance(settings, AveragingSettings) and settings.sample_from == "ema"
        carried = 2 * moments * single + averaged * single
        return cls(
            # Twice the silos' shards: as they come, and as they are read.
            server_memory=(2 * silos + 2) * shard + carried,
            # Checkpoints: the last, the one before, and the next while it is written.
            server_disk=silos * wire + 3 * single + 3 * (single + carried),
            silo_disk=wire,
        )
