"""Samples that move together: one class, one noise level, one sampler's state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fedsynth.diffusion import forget_used_outputs, restore_sampler, sampler_state
from fedsynth.mixture import PathPosterior, compose, energy, responsibilities, temper
from fedsynth.mixture.moves import COHORT_NUMBERS
from fedsynth.mixture.picard import ancestral_std, guesses
from fedsynth.seeding import make_generator


class Cohort:
    """Samples of one class, which are at the same noise level.

    A class waits as a whole when nobody who holds it answers, and its samples catch up later: that is why each cohort
    has its own ``level``. The noise that a move adds depends on that level and on the cohort, not on the round.

    Args:
        number: index among the cohorts, which seeds its noise.
        rows: indices of its samples in the set, int64 (n,).
        label: their class.
        scheduler: moves them; its timesteps are set and it serves no other cohort.
        log_prior: log prior weights of the silos (K, n).
        follows_path: whether weights follow the samples' paths (:class:`fedsynth.mixture.PathPosterior`).
        temperature: of the posterior, see :func:`fedsynth.mixture.temper`.

    Attributes:
        level: moves made so far.
    """

    def __init__(
        self,
        number: int,
        rows: torch.Tensor,
        label: int,
        scheduler: Any,
        log_prior: torch.Tensor,
        follows_path: bool,
        temperature: float = 1.0,
    ) -> None:
        self.number = number
        self.rows = rows
        self.label = label
        self.scheduler = scheduler
        self.log_prior = log_prior
        self.temperature = temperature
        self.posterior = PathPosterior(log_prior) if follows_path else None
        self.level = 0
        self._timesteps: list[int] = scheduler.timesteps.tolist()
        self._ahead: torch.Tensor | None = None

    @property
    def num_levels(self) -> int:
        """Moves from pure noise to images."""
        return len(self._timesteps)

    @property
    def finished(self) -> bool:
        """Whether its samples are images."""
        return self.level == self.num_levels

    @property
    def timestep(self) -> int:
        """Timestep of its samples."""
        return self._timesteps[self.level]

    @property
    def alpha_bar(self) -> float:
        """ᾱ at that timestep."""
        return float(self.scheduler.alphas_cumprod[self.timestep])

    @property
    def noise_std(self) -> float:
        """Std of the noise in an ancestral move from the level before to this one, which is not the first."""
        before = self.scheduler.alphas_cumprod[self._timesteps[self.level - 1]]
        return ancestral_std(float(before), self.alpha_bar)

    def levels_ahead(self, most: int) -> list[int]:
        """Timesteps of its next ``most`` levels, or of as many as are left."""
        return self._timesteps[self.level : self.level + most]

    def guesses(self, samples: torch.Tensor, most: int) -> list[torch.Tensor]:
        """Return its samples (n, C, H, W), and guesses of them at the levels that follow: :meth:`levels_ahead`."""
        ahead = [] if self._ahead is None else list(self._ahead)
        return guesses(samples, ahead, len(self.levels_ahead(most)))

    def settle(self, state: dict[str, Any], ahead: list[torch.Tensor]) -> None:
        """Go back to ``state``, a :meth:`state_dict` after an earlier move, and keep the guesses ``ahead`` of it."""
        if state["level"] != self.level:
            self.load_state_dict(state)
        self._ahead = torch.stack(ahead) if ahead else None

    def weigh(self, epsilon: torch.Tensor, answered: torch.Tensor, energy_scale: float | None) -> torch.Tensor:
        """Weights (K, n) of those that answered; zero for the others.

        Args:
            epsilon: answers (K, n, C, H, W); what silos did not answer does not count, whatever stands there.
            answered: bool (K,), at least one that the prior does not exclude.
            energy_scale: λ of energy weights; None: the prior, or the posterior.
        """
        logits = self.log_prior
        if self.posterior is not None:
            logits = temper(self.posterior.logits, self.log_prior, self.temperature)
        present = logits.masked_fill(~answered[:, None], -torch.inf)
        if energy_scale is not None:
            return responsibilities(present, energy(epsilon), energy_scale)
        return torch.softmax(present, dim=0)

    def move(
        self,
        samples: torch.Tensor,
        epsilon: torch.Tensor,
        answered: torch.Tensor,
        weights: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """Make one move of its samples (n, C, H, W) on the composed answers, and account for it in the posterior."""
        t = self.timestep
        generator = make_generator(seed, "cooperative-noise", self.level, self.number)
        composed = compose(epsilon, weights)
        moved: torch.Tensor = self.scheduler.step(composed, t, samples, generator=generator).prev_sample
        forget_used_outputs(self.scheduler)
        if self.posterior is not None:
            known = answered[:, None].expand(-1, len(self.rows))
            self.posterior.update(samples, moved, epsilon, self.scheduler, t, known)
        self.level += 1
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Return level, state of the sampler, guesses of a window if there are any, and logits of a posterior."""
        state = {"level": self.level, "sampler": sampler_state(self.scheduler)}
        if self._ahead is not None:
            state["ahead"] = self._ahead
        if self.posterior is not None:
            state["logits"] = self.posterior.logits
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh cohort."""
        self.level = state["level"]
        self._ahead = state.get("ahead")
        restore_sampler(self.scheduler, state["sampler"])
        if self.posterior is not None:
            self.posterior.logits = state["logits"]


def finished_rows(cohorts: Iterable[Cohort], count: int) -> torch.Tensor:
    """Return which of ``count`` samples are images, bool (N,)."""
    finished = torch.zeros(count, dtype=torch.bool)
    for cohort in cohorts:
        finished[cohort.rows] = cohort.finished
    return finished


def make_cohorts(
    labels: torch.Tensor,
    shape: tuple[int, ...],
    new_scheduler: Callable[[], Any],
    log_prior: torch.Tensor,
    follows_path: bool,
    temperature: float = 1.0,
) -> list[Cohort]:
    """Cut the set into cohorts, in the order of the classes: one class and the same holders each, and of bounded size.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
        new_scheduler: makes a scheduler for a cohort.
        log_prior: (K, N).
        follows_path, temperature: see :class:`Cohort`.
    """
    most = max(1, COHORT_NUMBERS // max(1, torch.Size(shape).numel()))
    cohorts: list[Cohort] = []
    for label in torch.unique(labels).tolist():
        by_holders: dict[tuple[bool, ...], list[int]] = {}
        for row in torch.nonzero(labels == label).squeeze(1).tolist():
            excluded = tuple(torch.isneginf(log_prior[:, row]).tolist())
            by_holders.setdefault(excluded, []).append(row)
        for group in by_holders.values():
            for rows in torch.tensor(group).split(most):
                prior = log_prior[:, rows]
                cohort = Cohort(len(cohorts), rows, label, new_scheduler(), prior, follows_path, temperature)
                cohorts.append(cohort)
    return cohorts
