"""The synthetic set of cooperative inference between two rounds: what to ask, what came back, where samples go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod
from typing import Any, Literal

import torch

from fedsynth.message_size import rows_in
from fedsynth.messages import EpsilonRequest
from fedsynth.mixture import effective_experts
from fedsynth.mixture.picard import converged, picard_step
from fedsynth.mixture.screening import bound_weights
from strategies.conversation.census import Census
from strategies.cooperation.cohort import Cohort, finished_rows
from strategies.cooperation.message_cutting import Level, cut
from strategies.cooperation.screener import EqualGroups, Screener

logger = logging.getLogger("fedsynth")


LARGEST_NOISE = 1e6
"""Size of a number in an answer that decides where samples go; noise is about 1, and a few more moves would overflow.
About guesses of later levels, which may have overflowed, an honest network answers anything."""

Wait = Literal["no answer", "left out by screening", "no model fit to answer", "too few holders"]
"""Why a class waits: its holders do not answer, screening leaves all answers out, or calibration all holders; or where
answers are summed in secret, it has fewer holders than hide one."""


class CooperativeSet:
    """Samples on their way from noise to images, with room for one round of answers.

    With a window of W = ``parallel_levels`` > 1 every silo is asked about W states of every sample: the current one,
    and guesses of those that follow. State j of sample n has the index j·N + n. In copies of the set, a window costs

    * W - 1 for the guesses, which are part of every checkpoint,
    * W while the questions are built,
    * W per silo for the answers, instead of one.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
        census: the silos.
        cohorts: the samples by class.
        log_prior: log prior weights (K, N); a silo is asked about a sample where its own is finite.
        screener: judges answers; None: whatever is finite counts.
        parallel_levels: noise levels that a round asks about, at least 1.

    Attributes:
        evaluations: states that silos are asked about in this round, per sample.
        levels_done: levels that samples moved in the last round, per sample.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        shape: tuple[int, ...],
        census: Census,
        cohorts: list[Cohort],
        log_prior: torch.Tensor,
        screener: Screener | None = None,
        parallel_levels: int = 1,
    ) -> None:
        self._screener = screener
        self.labels = labels
        self.census = census
        self.cohorts = cohorts
        self._samples = torch.empty(0)
        # One room for all rounds. Untouched pages cost no memory: rows that nobody is asked about stay virtual.
        self._window = min(parallel_levels, max((cohort.num_levels for cohort in cohorts), default=1))
        self._epsilon = torch.zeros((len(census), self._window * len(labels), *shape))
        self._answered = torch.zeros(self._epsilon.shape[:2], dtype=torch.bool)
        self._asks = ~torch.isneginf(log_prior)
        self._waiting: set[int] = set()
        self._screened: set[int] = set()
        self._absurd: dict[int, float] = {}
        self.evaluations = 0.0
        self.levels_done = 0.0

    @property
    def finished_rows(self) -> torch.Tensor:
        """Which samples are images, bool (N,)."""
        return finished_rows(self.cohorts, len(self.labels))

    @property
    def num_waiting(self) -> int:
        """Samples that did not move in the last round and are no images yet."""
        return sum(len(self.cohorts[number].rows) for number in self._waiting)

    @property
    def waits(self) -> dict[int, Wait]:
        """Why unfinished classes did not move in the last round, by class index; empty before a round."""
        found: dict[int, Wait] = {}
        for number in sorted(self._waiting):
            cohort = self.cohorts[number]
            if not self._asks[:, cohort.rows].any():
                found[cohort.label] = "no model fit to answer"
            else:
                found[cohort.label] = "left out by screening" if number in self._screened else "no answer"
        return found

    @property
    def levels_left(self) -> int:
        """Moves that the last cohort still needs."""
        return max(cohort.num_levels - cohort.level for cohort in self.cohorts)

    @property
    def timestep(self) -> int:
        """Lowest timestep among the unfinished cohorts; 0 when all are finished."""
        return min((cohort.timestep for cohort in self.cohorts if not cohort.finished), default=0)

    def questions(
        self, samples: torch.Tensor, server_round: int, wire_dtype: str, max_message_mb: float
    ) -> list[tuple[int, EpsilonRequest]]:
        """Return what to ask every silo, by its index, about the set as it stands: ``samples`` (N, C, H, W).

        A question is about one noise level, or about all levels of a window, and is cut where it is larger than
        ``max_message_mb``. Silos that are asked about everything share the tensors, which are sent once.
        """
        self._samples = samples
        self._answered[:] = False
        states = self._states(samples)
        most = rows_in(max_message_mb, prod(states.shape[1:]), wire_dtype)
        levels = list(self._indices_by_timestep())
        holders = self._asks.sum(0)
        numbers = sum(int((holders[indices % len(self.labels)] > 0).sum()) for _, indices in levels)
        self.evaluations = numbers / len(self.labels)
        asked: list[tuple[int, EpsilonRequest]] = []
        for together in [levels] if self._window > 1 else [[level] for level in levels]:
            shared: dict[int, EpsilonRequest] = {}
            for k in range(len(self.census)):
                of_silo = [(t, indices[self._asks[k, indices % len(self.labels)]]) for t, indices in together]
                everything = all(len(one[1]) == len(other[1]) for one, other in zip(of_silo, together, strict=True))
                for part, message in enumerate(cut(of_silo, most)):
                    request = shared.get(part) if everything else None
                    request = request or self._request(states, message, server_round, wire_dtype)
                    if everything:
                        shared[part] = request
                    asked.append((k, request))
        return asked

    def _states(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the state at every index; arbitrary where a cohort's window is shorter than the others'."""
        if self._window == 1:
            return samples
        states = samples.new_empty((self._epsilon.shape[1], *samples.shape[1:]))
        for cohort in self.cohorts:
            if cohort.finished:
                continue
            guesses = cohort.guesses(samples[cohort.rows], self._window)
            for indices, guess in zip(self._indices(cohort), guesses, strict=True):
                states[indices] = guess
        return states

    def _indices(self, cohort: Cohort) -> list[torch.Tensor]:
        """Return the indices (n,) of a cohort's states, for every level of its window."""
        levels = len(cohort.levels_ahead(self._window))
        return [offset * len(self.labels) + cohort.rows for offset in range(levels)]

    def _indices_by_timestep(self) -> Iterator[Level]:
        """Yield timesteps, noisiest first, with the indices of the states there in ascending order."""
        found: dict[int, list[torch.Tensor]] = {}
        for cohort in self.cohorts:
            for timestep, indices in zip(cohort.levels_ahead(self._window), self._indices(cohort), strict=True):
                found.setdefault(timestep, []).append(indices)
        for timestep in sorted(found, reverse=True):
            yield timestep, torch.cat(found[timestep]).sort().values

    def _request(
        self, states: torch.Tensor, message: list[Level], server_round: int, wire_dtype: str
    ) -> EpsilonRequest:
        indices = torch.cat([indices for _, indices in message])
        window = self._window > 1
        timesteps = [torch.full((len(indices),), timestep) for timestep, indices in message]
        return EpsilonRequest(
            samples=states if len(indices) == len(states) else states[indices],
            labels=self.labels[indices % len(self.labels)],
            timestep=None if window else message[0][0],
            timesteps=torch.cat(timesteps) if window else None,
            server_round=server_round,
            holders=self.census.holders,
            rows=indices,
            wire_dtype=wire_dtype,
        )

    def put(self, silo: int, indices: torch.Tensor, epsilon: torch.Tensor) -> None:
        """Keep a silo's answer (n, C, H, W) about the states with ``indices`` (n,)."""
        self._epsilon[silo].index_copy_(0, indices, epsilon)
        self._answered[silo, indices] = True

    def move(self, energy_scale: float | None, max_weight: float, seed: int) -> tuple[torch.Tensor, float]:
        """Move every cohort of which a holder gave a usable answer by one level at least; the others wait.

        Args:
            energy_scale: λ of energy weights; None: the prior, or the posterior.
            max_weight: largest weight of a silo.
            seed: of the run.

        Returns:
            The set (N, C, H, W), and the mean of the effective experts behind the moves; 0 if none moved.
        """
        # The result takes the room of the first silo's answers, which are used up cohort by cohort.
        moved = self._epsilon[0, : len(self.labels)]
        experts: list[torch.Tensor] = []
        waiting: set[int] = set()
        self._screened, self._absurd = set(), {}
        self.levels_done = 0.0
        for cohort in self.cohorts:
            samples = self._samples[cohort.rows]
            moved[cohort.rows], done = self._advance(cohort, samples, energy_scale, max_weight, seed)
            self.levels_done += len(done) * len(cohort.rows) / len(self.labels)
            experts += done
            if not done and not cohort.finished:
                waiting.add(cohort.number)
        self._report(waiting)
        for k, largest in sorted(self._absurd.items()):
            logger.warning("%s left out: predicts noise of size %.3g", self.census.members[k].name, largest)
        if self._screener is not None:
            self._screener.report()
        return moved, float(torch.cat(experts).mean()) if experts else 0.0

    def _advance(
        self, cohort: Cohort, samples: torch.Tensor, energy_scale: float | None, max_weight: float, seed: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Make a Picard iteration over a cohort's window, and move it past the levels that have converged.

        ``states[j]`` is the state at level j of the window as far as this iteration knows it, and final for the
        ``len(experts)`` levels that are done. A silo counts if it answered about all of the window. Its answers are
        screened where they decide a final state: at the first level, and at guesses that have converged. Other guesses
        lie off their noise level, where no check tells an honest network from another; answers there only decide what
        is asked next.

        Returns:
            The samples after the last level that is done (n, C, H, W), and the effective experts (n,) of every such
            level.
        """
        window = self._indices(cohort)
        if not window:
            return samples, []
        answered = self._answered[:, torch.cat(window)].all(1)
        states = [samples]
        sampler = cohort.state_dict()
        experts: list[torch.Tensor] = []
        equal: EqualGroups = ()
        for indices, guess in zip(window, cohort.guesses(samples, self._window), strict=True):
            epsilon = self._epsilon[:, indices]
            level = len(states) - 1
            done = len(experts) == level and (level == 0 or converged(states[-1], guess, cohort.noise_std))
            if done:
                answered = self._without_absurd(epsilon, answered)
            if done and self._screener is not None:
                known = answered
                answered, equal = self._screener.admit(cohort, guess, epsilon, known)
                if known.any() and not answered.any() and not experts:
                    self._screened.add(cohort.number)
            if not answered.any():
                break
            weights = bound_weights(cohort.weigh(epsilon, answered, energy_scale), max_weight, equal)
            moved = cohort.move(guess, epsilon, answered, weights, seed)
            states.append(picard_step(moved, states[-1], guess))
            if done:
                experts.append(effective_experts(weights))
                sampler = cohort.state_dict()
            elif not states[-1].isfinite().all():
                # An honest network's answer to an overflowed guess is nonsense, for which it would be left out.
                states.pop()
                break
        if experts:
            cohort.settle(sampler, states[len(experts) + 1 :])
        return states[len(experts)], experts

    def _without_absurd(self, epsilon: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """Return who answered (K,) without those whose answers (K, n, C, H, W) would overflow, screened or not."""
        kept = answered.clone()
        for k in torch.nonzero(answered).flatten().tolist():
            largest = max(abs(end.item()) for end in epsilon[k].aminmax())
            if largest > LARGEST_NOISE:
                self._absurd[k] = max(largest, self._absurd.get(k, 0.0))
                kept[k] = False
        return kept

    def _report(self, waiting: set[int]) -> None:
        """Log changes of what waits, by class index."""
        new = waiting - self._waiting
        if screened := self._labels_of(new & self._screened):
            logger.warning("class index %s waits: screening leaves out the answers of all its holders", screened)
        # Of classes that nobody is asked about, calibration has said why.
        asked = {number for number in new if self._asks[:, self.cohorts[number].rows].any()}
        if silent := self._labels_of(asked - self._screened):
            logger.warning("class index %s waits: no usable answer from its holders", silent)
        if back := self._labels_of(self._waiting - waiting):
            logger.info("class index %s goes on", back)
        self._waiting = waiting

    def _labels_of(self, numbers: set[int]) -> str:
        return ", ".join(map(str, sorted({self.cohorts[number].label for number in numbers})))

    def state_dict(self) -> dict[str, Any]:
        """Return where every cohort stands."""
        return {"cohorts": [cohort.state_dict() for cohort in self.cohorts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh set."""
        for cohort, known in zip(self.cohorts, state["cohorts"], strict=True):
            cohort.load_state_dict(known)
