"""MultiKrum (Blanchard et al. 2017, arXiv 1703.02757, Section 4)."""

from __future__ import annotations

from typing import Unpack

import torch

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from strategies.averaging.base import AveragingOptions
from strategies.averaging.krum_family import KrumFamily
from strategies.averaging.krum_selection import krum_select
from strategies.checks import in_range


class MultiKrum(KrumFamily):
    """The plain mean of the m models with the best scores, see :class:`strategies.averaging.krum.Krum`.

    Flower's weights that mean by images, which lets a silo buy influence; its choice has the faults of its Krum.

    Args:
        num_malicious_nodes: f, hostile silos to survive; needs n >= 2f + 3 sound answers.
        num_nodes_to_select: m, 1 <= m <= n - f; 0: n - f.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: a value out of range.
    """

    how = "the silos trained one diffusion model together; each round averaged the models nearest to their neighbours"

    def __init__(
        self, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 0, **options: Unpack[AveragingOptions]
    ) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)
        self.num_nodes_to_select = int(in_range("num-nodes-to-select", num_nodes_to_select, 0))

    def check(self, config: RunConfig) -> None:
        """Also refuse to select more than the honest silos of a round.

        Raises:
            UserError: a value does not fit the silos of a round.
        """
        super().check(config)
        honest = self.num_participants(config.run.num_clients) - self.num_malicious_nodes
        if self.num_nodes_to_select > honest:
            raise UserError(
                f"num-nodes-to-select = {self.num_nodes_to_select}: must be <= {honest}, the silos of a round less"
                f" num-malicious-nodes = {self.num_malicious_nodes}"
            )

    def choose(self, distances: torch.Tensor) -> list[int]:
        """Return the positions of the m best.

        Raises:
            RunError: fewer than m + f sound answers.
        """
        honest = len(distances) - self.num_malicious_nodes
        count = self.num_nodes_to_select or honest
        if count > honest:
            raise RunError(
                f"{len(distances)} sound answers: MultiKrum needs {count + self.num_malicious_nodes} of them to select"
                f" {count} against {self.num_malicious_nodes} hostile ones; lower num-nodes-to-select"
            )
        return krum_select(distances, self.num_malicious_nodes, count)
