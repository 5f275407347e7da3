"""FedProx (Li et al. 2020, arXiv 1812.06127, Eq. 2)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Unpack

from flwr.app import ArrayRecord

from fedsynth.messages import TrainRequest
from strategies.averaging.base import AveragingOptions
from strategies.averaging.fedavg import FedAvg
from strategies.checks import in_range

logger = logging.getLogger("fedsynth")


class FedProx(FedAvg):
    """FedAvg whose silos minimise their loss + μ/2 ‖w - w_t‖², with w_t the weights they received.

    Flower's sends μ likewise, but the client code its documentation proposes adds unsquared norms of layers; the
    paper's term is squared.

    Args:
        proximal_mu: μ >= 0; our choice of default, the source tunes it from {0.001, 0.01, 0.1, 1}.
        options: see :class:`AveragingStrategy`.

    Raises:
        UserError: μ is negative.
    """

    how = "the silos trained one diffusion model together, held near the common weights; only weights travelled"

    def __init__(self, *, proximal_mu: float = 0.01, **options: Unpack[AveragingOptions]) -> None:
        super().__init__(**options)
        self.proximal_mu = in_range("proximal-mu", proximal_mu, 0)
        if proximal_mu == 0:
            logger.warning("proximal-mu = 0 makes fedprox the same as fedavg")

    def train_request(self, server_round: int, arrays: ArrayRecord, silo: int) -> TrainRequest:
        """Add μ."""
        return replace(super().train_request(server_round, arrays, silo), proximal_mu=self.proximal_mu)
