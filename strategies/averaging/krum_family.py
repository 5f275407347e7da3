"""What Krum, MultiKrum and Bulyan share: models are chosen by their distances from each other."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from strategies.averaging.aggregation import weighted_mean
from strategies.averaging.base import AveragingOptions, AveragingStrategy
from strategies.averaging.krum_selection import squared_distances
from strategies.averaging.updates import Update
from strategies.checks import in_range

logger = logging.getLogger("fedsynth")


class KrumFamily(AveragingStrategy):
    """Averages the chosen models, each counting the same.

    Args:
        num_malicious_nodes: f, hostile silos to survive.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range.
    """

    silos_per_malicious: ClassVar[int] = 2
    """Needed are this times f, and 3, silos."""

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Unpack[AveragingOptions]) -> None:
        super().__init__(**options)
        self.num_malicious_nodes = int(in_range("num-malicious-nodes", num_malicious_nodes, 0))

    @abstractmethod
    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the chosen models, from squared distances (n, n), float64."""

    def needed(self) -> int:
        """Sound answers a round needs."""
        return self.silos_per_malicious * self.num_malicious_nodes + 3

    def check(self, config: RunConfig) -> None:
        """Refuse what cannot work with the silos of a round.

        Raises:
            UserError: more hostile silos than the rule can tell from honest ones.
        """
        asked = self.num_participants(config.run.num_clients)
        if asked < self.needed():
            raise UserError(
                f"num-malicious-nodes = {self.num_malicious_nodes}: {self._rule()}, but {asked} silos are asked"
                f" a round; must be <= {max(0, (asked - 3) // self.silos_per_malicious)}, with 3 silos or more:"
                " see num-clients, fraction-train and min-train-nodes"
            )
        if self.num_malicious_nodes == 0:
            logger.warning("num-malicious-nodes = 0 promises nothing against hostile silos")

    def select(self, updates: list[Update]) -> list[Update]:
        """Keep the chosen ones.

        Raises:
            RunError: too few sound answers.
        """
        if len(updates) < self.needed():
            raise RunError(
                f"{len(updates)} sound answers: {self._rule()}; lower num-malicious-nodes, or ask more silos"
            )
        chosen = [updates[k] for k in sorted(self.choose(squared_distances([update.record for update in updates])))]
        logger.info("chosen: %s", ", ".join(update.name for update in chosen))
        return chosen

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average, in the order of silos."""
        return weighted_mean([update.record for update in updates], [1.0] * len(updates))

    def _rule(self) -> str:
        return f"{type(self).__name__} needs {self.silos_per_malicious}f + 3 = {self.needed()} of them"
