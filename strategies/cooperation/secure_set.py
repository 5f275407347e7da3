"""The synthetic set of cooperative inference where the server sees sums only: all samples move together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from fedsynth.config.types import LEAST_SILOS
from fedsynth.errors import UserError
from fedsynth.message_size import rows_in
from fedsynth.mixture import effective_experts
from fedsynth.privacy.sums.terms import LARGEST_SHARE
from strategies.conversation.census import Census
from strategies.conversation.secure_sum import SecureSum
from strategies.cooperation.cohort import Cohort, finished_rows
from strategies.cooperation.noise_sum import NoiseQuestion, compose_sum


class SecureSet:
    """Samples on their way from noise to images, all at one noise level.

    Classes that few silos hold are not asked about: their sum would show an answer, and silos refuse it.

    Args:
        labels: class of every sample (N,).
        census: the silos.
        cohorts: the samples by class; their priors give the constant weights.
        least_holders: silos that must hold a class, :data:`~fedsynth.config.types.LEAST_SILOS` at least.

    Attributes:
        few: class indices that are not asked about.
        members: names of the silos that take part, without those that have dropped out.

    Raises:
        UserError: no class is held by enough silos.
    """

    def __init__(
        self, labels: torch.Tensor, census: Census, cohorts: Sequence[Cohort], least_holders: int = LEAST_SILOS
    ) -> None:
        self.labels, self.census = labels, census
        weights = {cohort.label: cohort.log_prior[:, 0].exp() for cohort in cohorts}
        self.few = sorted(label for label, row in weights.items() if int((row > 0).sum()) < least_holders)
        self.cohorts = [cohort for cohort in cohorts if cohort.label not in self.few]
        if not self.cohorts:
            raise UserError(
                f"secure-aggregation = true: no class is held by {least_holders} silos that take part, and among fewer"
                " an answer is not hidden; use strategy = 'pooled', where the server sees every silo's images"
            )
        self._weights = weights
        held = torch.stack([weights[cohort.label] for cohort in self.cohorts]).sum(0)
        self.members = tuple(member.name for member, weight in zip(census, held.tolist(), strict=True) if weight > 0)
        self._rows = torch.cat([cohort.rows for cohort in self.cohorts]).sort().values

    @property
    def finished_rows(self) -> torch.Tensor:
        """Which samples are images, bool (N,)."""
        return finished_rows(self.cohorts, len(self.labels))

    @property
    def levels_left(self) -> int:
        """Moves that are still needed."""
        return self.cohorts[0].num_levels - self.cohorts[0].level

    @property
    def timestep(self) -> int:
        """Where the samples are; 0 when they are images."""
        return 0 if self.cohorts[0].finished else self.cohorts[0].timestep

    def move(
        self,
        sums: SecureSum,
        samples: torch.Tensor,
        server_round: int,
        timeout: float | None,
        seed: int,
        num_train_timesteps: int,
        wire_dtype: str,
        max_message_mb: float,
    ) -> tuple[torch.Tensor, float, float]:
        """Move the samples (N, C, H, W) by one level on the sums of the silos' predictions.

        Returns:
            The set (N, C, H, W), the mean of the effective experts, and the seconds that silos worked.

        Raises:
            RunError: there is no sum.
        """
        timestep = self.timestep
        composed, experts, seconds = torch.zeros_like(samples), [], 0.0
        most = rows_in(max_message_mb, prod(samples.shape[1:]), wire_dtype)
        for part, rows in enumerate(self._rows.split(most)):
            labels = self.labels[rows]
            weights = torch.stack([self._weights[label] for label in labels.unique().tolist()], dim=1)
            question = NoiseQuestion(samples[rows], labels, timestep, part, weights, server_round, timeout)
            composed[rows], left, worked = compose_sum(sums, question, num_train_timesteps, wire_dtype)
            self.members = sums.members
            experts.append(effective_experts(left))
            seconds += worked
        moved = samples.clone()
        one = torch.ones(1, dtype=torch.bool)
        for cohort in self.cohorts:
            rows = cohort.rows
            moved[rows] = cohort.move(samples[rows], composed[rows][None], one, torch.ones(1, len(rows)), seed)
        return moved, float(torch.cat(experts).mean()), seconds

    def state_dict(self) -> dict[str, Any]:
        """Return where every cohort stands."""
        return {"cohorts": [cohort.state_dict() for cohort in self.cohorts], "members": list(self.members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh set."""
        self.members = tuple(state["members"])
        for cohort, known in zip(self.cohorts, state["cohorts"], strict=True):
            cohort.load_state_dict(known)


def bounded_share(max_silo_weight: float) -> float:
    """Return the largest weight of a silo where answers are summed in secret."""
    return min(max_silo_weight, LARGEST_SHARE)
