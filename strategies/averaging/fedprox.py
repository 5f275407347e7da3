"""FedProx (Li et al. 2020, arXiv 1812.06127, Eq. 2)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord

from fedsynth.config.methods import FedProxSettings
from fedsynth.messages import TrainRequest
from strategies.averaging.fedavg import FedAvg

logger = logging.getLogger("fedsynth")


class FedProx(FedAvg):
    """FedAvg whose silos minimise their loss + μ/2 ‖w - w_t‖², with w_t the weights they received.

    Flower's sends μ likewise, but the client code its documentation proposes adds unsquared norms of layers; the
    paper's term is squared.
    """

    how = "the silos trained one diffusion model together, held near the common weights; only weights travelled"

    Settings = FedProxSettings
    settings: FedProxSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.settings.proximal_mu == 0:
            logger.warning("proximal-mu = 0 makes fedprox the same as fedavg")

    def train_request(self, server_round: int, arrays: ArrayRecord, silo: int) -> TrainRequest:
        """Add μ."""
        return replace(super().train_request(server_round, arrays, silo), proximal_mu=self.settings.proximal_mu)
