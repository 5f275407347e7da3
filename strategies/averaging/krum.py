"""The Krum family: models are chosen by their distances from each other, see :mod:`fedsynth.averaging.krum`."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from flwr.app import ArrayRecord

from fedsynth.averaging import Layers, mean_around_median
from fedsynth.averaging.krum import (
    BULYAN_PER_MALICIOUS,
    KRUM_PER_MALICIOUS,
    bulyan_select,
    krum_select,
    squared_distances_by_parts,
)
from fedsynth.config import RunConfig
from fedsynth.config.methods import KrumSettings, MultiKrumSettings
from fedsynth.errors import RunError, UserError
from fedsynth.messages import transport
from strategies.averaging.aggregation import combined, weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update

logger = logging.getLogger("fedsynth")


class KrumFamily(AveragingStrategy):
    """Averages the chosen models, each counting the same."""

    Settings = KrumSettings
    settings: KrumSettings
    silos_per_malicious: ClassVar[int] = KRUM_PER_MALICIOUS
    """Needed are this times f, and 3, silos."""

    @abstractmethod
    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the chosen models, from squared distances (n, n), float64."""

    def models_needed(self) -> int:
        """Usable answers that a round needs."""
        return self.silos_per_malicious * self.settings.num_malicious_nodes + 3

    def check(self, config: RunConfig) -> None:
        """Refuse what cannot work with the silos of a round.

        Raises:
            UserError: more hostile silos than the rule can tell from honest ones.
        """
        asked = self.num_participants(config.run.num_clients)
        malicious = self.settings.num_malicious_nodes
        if asked < self.models_needed():
            raise UserError(
                f"num-malicious-nodes = {malicious}: {self._rule()}, but {asked} silos are asked"
                f" per round; must be <= {max(0, (asked - 3) // self.silos_per_malicious)}, with 3 silos or more:"
                " see num-clients, fraction-train and min-train-nodes"
            )
        if malicious == 0:
            logger.warning("num-malicious-nodes = 0 promises nothing against hostile silos")

    def select(self, updates: list[Update]) -> list[Update]:
        """Keep the chosen ones.

        Raises:
            RunError: too few usable answers.
        """
        return self.select_streamed(updates, ([transport.peek_tensors(one.record) for one in updates] for _ in "1"))

    def select_streamed(self, updates: list[Update], parts: Iterable[Sequence[Layers]]) -> list[Update]:
        """As :meth:`select`; distances add up over the shards.

        Raises:
            RunError: as :meth:`select`.
        """
        if len(updates) < self.models_needed():
            raise RunError(
                f"{len(updates)} usable answers: {self._rule()}; lower num-malicious-nodes, or ask more silos; the log"
                " says why others were left out"
            )
        chosen = [updates[k] for k in sorted(self.choose(squared_distances_by_parts(parts, len(updates))))]
        logger.info("chosen: %s", ", ".join(update.name for update in chosen))
        return chosen

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average, in the order of silos."""
        return weighted_mean([update.record for update in updates], [1.0] * len(updates))

    def _rule(self) -> str:
        return f"{type(self).__name__} needs {self.silos_per_malicious}f + 3 = {self.models_needed()} of them"


class Krum(KrumFamily):
    """The one model with the smallest sum of squared distances to its n - f - 2 nearest others; n >= 2f + 3.

    Flower's differs: its distances cancel in float32, so that with small updates the choice is arbitrary; it finds a
    model's own zero distance by rank, which fails with equal answers; and it does not ask for n >= 2f + 3.
    """

    how = "the silos trained one diffusion model together; each round took over the model nearest to its neighbours"

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the position of the best."""
        return krum_select(distances, self.settings.num_malicious_nodes, 1)


class MultiKrum(KrumFamily):
    """The plain mean of the m models with the best scores, see :class:`Krum`.

    m is n - f if ``num-nodes-to-select`` is 0. Flower's weights that mean by images, which lets a silo buy influence;
    its choice has the faults of its Krum.
    """

    how = "the silos trained one diffusion model together; each round averaged the models nearest to their neighbours"

    Settings = MultiKrumSettings
    settings: MultiKrumSettings

    def check(self, config: RunConfig) -> None:
        """Also refuse to select more than the honest silos of a round.

        Raises:
            UserError: a value does not fit the silos of a round.
        """
        super().check(config)
        malicious = self.settings.num_malicious_nodes
        selected = self.settings.num_nodes_to_select
        honest = self.num_participants(config.run.num_clients) - malicious
        if selected > honest:
            raise UserError(
                f"num-nodes-to-select = {selected}: must be <= {honest}, the silos of a round less"
                f" num-malicious-nodes = {malicious}"
            )

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the m best.

        Raises:
            RunError: fewer than m + f usable answers.
        """
        malicious = self.settings.num_malicious_nodes
        honest = len(distances) - malicious
        count = self.settings.num_nodes_to_select or honest
        if count > honest:
            raise RunError(
                f"{len(distances)} usable answers: MultiKrum needs {count + malicious} of them to select"
                f" {count} against {malicious} hostile ones; lower num-nodes-to-select; the log says why others were"
                " left out"
            )
        return krum_select(distances, malicious, count)


class Bulyan(KrumFamily):
    """Krum chooses θ = n - 2f models one by one; every weight is the mean of the θ - 2f values nearest their median.

    Needs n >= 4f + 3. Flower's differs: it takes the θ best by one ranking, where the paper removes each winner and
    ranks the rest anew, and its distances have the faults of its Krum.
    """

    how = "the silos trained one diffusion model together; outlying models and values were left out"
    silos_per_malicious: ClassVar[int] = BULYAN_PER_MALICIOUS

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the θ chosen."""
        return bulyan_select(distances, self.settings.num_malicious_nodes)

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average around the median."""
        count = len(updates) - 2 * self.settings.num_malicious_nodes
        return combined([update.record for update in updates], lambda models: mean_around_median(models, count))
