"""``dp-sum``: one private model of all silos; noise is on the sum of their gradients alone.

A round is one step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133) on all silos' images together. The server sends the
weights, every silo answers with its images' clipped gradients and its share of the noise under masks
(:mod:`fedsynth.privacy.sums`), and the server steps with the sum. As the noise of one model is shared by all, each silo
adds a fraction of what it would add for a model of its own (distributed differential privacy: Kairouz, Liu, Steinke
2021, arXiv 2102.06387).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.config import RunConfig
from fedsynth.config.methods import DPSumSettings
from fedsynth.diffusion import TrainingState
from fedsynth.errors import RunError
from fedsynth.messages import GradientRequest, transport
from fedsynth.privacy.dp_training import mechanism_of, summed_training_step
from fedsynth.privacy.summed_noise import SummedNoise, fitting_norm, honest_silos
from fedsynth.privacy.sums import from_ring
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question
from strategies.conversation.exchange import Exchange
from strategies.conversation.secure_sum import Common, SecureSum, refuse_keyless
from strategies.global_model import draw_from_model, new_training

logger = logging.getLogger("fedsynth")

SUMS_ONLY = (
    "the server could read sums of the silos' gradients with noise in them and no single silo's; a silo that answers"
    " falsely can spoil the model unnoticed"
)
"""What the reader of the dataset is told."""


class DPSum(SynthesisStrategy):
    """Secure sums of clipped gradients, a step of the optimiser at the server, round after round.

    ``dp-steps`` are the rounds. Optimiser, learning rate and weight average are those of the recipe, at the server. A
    silo that drops out of a round has left the run: the difference of two sums, with and without it, is its answer.
    """

    how = "the silos trained one diffusion model together, by secure sums of their gradients with noise in them"
    Settings = DPSumSettings
    settings: DPSumSettings
    num_rounds = 1

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # By it silos know what they have answered in this run; random, but nothing computed depends on it.
        self._run_token = uuid4().hex
        self._members: tuple[str, ...] = ()
        self._training: TrainingState | None = None

    def check(self, config: RunConfig) -> None:
        """Refuse so many colluders that nobody is left to hide behind; there are as many rounds as private steps."""
        honest_silos(config.run.num_clients, self.settings.dp_colluders)
        self.num_rounds = config.privacy.dp_steps

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return the initial weights.

        Raises:
            RunError: a silo has no keys for secure sums.
            UserError: a network too large for the whole numbers that are summed.
        """
        refuse_keyless(task.census)
        self._members = tuple(sorted(member.name for member in task.census))
        self._training = new_training(task, "summed-training", task.config.privacy.dp_steps)
        self.num_rounds = task.config.privacy.dp_steps
        norm = self._norm(task)
        sigma = mechanism_of(task.config).noise_multiplier
        noise = SummedNoise(sigma, len(self._members), self.settings.dp_colluders, norm)
        logger.info(
            "each of %d silos adds noise of %.3g clips; of the shares of %d silos together it is %.4g",
            noise.silos,
            noise.share / norm,
            noise.honest,
            noise.noise_multiplier,
        )
        return transport.encode_tensors(self._training.unet.state_dict())

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Have the silos' gradients summed in secret, and make a step with the sum.

        Raises:
            RunError: there is no sum, or the model is no model any more.
        """
        task, training = self._task, self._training
        assert task is not None  # run_round comes after begin
        assert training is not None
        config, norm = task.config, self._norm(task)
        sent = transport.encode_tensors(training.unet.state_dict(), config.exchange.wire_dtype)

        def build(common: Common) -> GradientRequest:
            return GradientRequest(**common, arrays=sent, spec=task.spec, server_round=server_round, norm=norm)

        start = time.monotonic()
        sums = SecureSum(exchange, task.census, self._run_token, self._members)
        equal = torch.full((len(task.census), 1), 1 / len(task.census))
        summed = sums.sum(f"round {server_round}", server_round, equal, build, timeout=self.timeout)
        self.note_duration(time.monotonic() - start)
        self._members = sums.members
        told = sum(member.num_examples for member in task.census if member.name in summed.survivors)
        denominator = config.privacy.dp_sampling_rate * max(1, told)
        total = torch.from_numpy(from_ring(summed.numbers))
        summed_training_step(training, total, config.privacy.dp_clip, norm, denominator)
        if not all(bool(weights.isfinite().all()) for weights in training.unet.parameters()):
            raise RunError(f"round {server_round}: the model is no model any more; lower learning-rate")
        metrics = MetricRecord({"silos": len(summed.survivors), "client-seconds": summed.seconds})
        return transport.encode_tensors(training.unet.state_dict()), metrics

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the average of the weights over steps, as the recipe says."""
        assert self._training is not None
        outcome = draw_from_model(task, self._training.averaged_unet().state_dict())
        outcome.notes = (SUMS_ONLY,)
        return outcome

    def questions(self, server_round: int, arrays: ArrayRecord) -> Sequence[Question[Any]]:
        """Refuse to be driven by hand: a sum takes several messages to and fro."""
        raise RunError("dp-sum asks in run_round alone: a secure sum takes several messages to and fro")

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, Any]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse, as :meth:`questions`."""
        raise RunError("dp-sum sums in run_round alone: a secure sum takes several messages to and fro")

    def state_dict(self) -> dict[str, Any]:
        """Return the training, who takes part, and by which name silos know the run."""
        assert self._training is not None
        return {
            "training": self._training.state_dict(),
            "members": list(self._members),
            "run-token": self._run_token,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; after :meth:`begin`."""
        assert self._training is not None
        self._training.load_state_dict(state["training"])
        self._members, self._run_token = tuple(state["members"]), state["run-token"]

    def _norm(self, task: Task) -> int:
        """Return Δ: as fine as sums over those who are left allow."""
        assert self._training is not None
        told = sum(member.num_examples for member in task.census if member.name in self._members)
        weights = sum(value.numel() for value in self._training.unet.parameters())
        sigma = mechanism_of(task.config).noise_multiplier
        return fitting_norm(sigma, len(self._members), self.settings.dp_colluders, told, weights)
