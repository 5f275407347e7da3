"""What a run cost: rounds, bytes, seconds, optimiser steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from strategies.conversation.census import Census
from strategies.conversation.exchange import Traffic
from strategies.run.rounds import Round

logger = logging.getLogger("fedsynth")

_MOST = 1e18
"""Far more bytes and seconds than any run has."""


@dataclass
class Costs:
    """What a run cost.

    Attributes:
        rounds: rounds of the strategy, without census and local training.
        bytes_down: server to silos, as serialised.
        bytes_up: silos to server.
        client_seconds: time the silos worked, including the training of their own models, now or in an earlier run.
        wall_seconds: from start to the finished images.
        server_steps: optimiser steps on the server.
    """

    rounds: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0
    wall_seconds: float = 0.0
    server_steps: int = 0

    @classmethod
    def restored(cls, known: Mapping[str, Any]) -> Costs:
        """Return the costs that a checkpoint holds.

        Earlier versions added up whatever silos said: a number that is none, or absurd, counts from 0 again, and a
        warning says so.
        """
        costs = cls(**known)
        for name, value in asdict(costs).items():
            if not 0 <= value <= _MOST:
                logger.warning("%s = %g in the checkpoint is no cost: counted from 0", name.replace("_", "-"), value)
                setattr(costs, name, type(value)())
        return costs

    def add(self, done: Round) -> None:
        """Count one round."""
        self.rounds += 1
        self.server_steps += int(cast(int, done.metrics.get("server-steps", 0)))
        self.client_seconds += float(cast(float, done.metrics.get("client-seconds", 0.0)))

    def close(self, traffic: Traffic, census: Census, wall_seconds: float) -> None:
        """Add what is known at the end."""
        self.bytes_down, self.bytes_up, self.wall_seconds = traffic.down, traffic.up, wall_seconds
        self.client_seconds += sum(member.train_seconds for member in census)

    def row(self) -> dict[str, float]:
        """Return the numbers by kebab-case name."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}
