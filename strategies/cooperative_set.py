"""The synthetic set of cooperative inference between two rounds: what to ask, what came back, where samples go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Message

from fedsynth import wire
from fedsynth.mixture import effective_experts
from fedsynth.mixture.flow_posterior import MOST, largest_divergence
from fedsynth.mixture.screening import bound_weights
from strategies.census import Census
from strategies.cohort import Cohort
from strategies.replies import claimed_name, divergence_estimate, noise_prediction, seconds_worked
from strategies.screening import EqualGroups, Screener

logger = logging.getLogger("fedsynth")


@dataclass(frozen=True)
class Question:
    """What one silo is asked in a round.

    Attributes:
        silo: position in the census.
        timestep: noise level of the samples.
        rows: their positions in the set, ascending.
        arrays: the samples and their labels.
    """

    silo: int
    timestep: int
    rows: torch.Tensor
    arrays: ArrayRecord


class CooperativeSet:
    """Samples on their way from noise to images, with room for one round of answers.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
        census: the silos.
        cohorts: the samples by class.
        log_prior: log prior weights (K, N); a silo is asked about samples it is not excluded from.
        screener: judges answers; None: whatever is finite counts.
        divergences: whether answers come with their divergence.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        shape: tuple[int, ...],
        census: Census,
        cohorts: list[Cohort],
        log_prior: torch.Tensor,
        screener: Screener | None = None,
        divergences: bool = False,
    ) -> None:
        self._screener = screener
        self.labels, self.census, self.cohorts = labels, census, cohorts
        self.arrays = ArrayRecord()
        # One room for all rounds. Untouched pages cost no memory: rows that nobody is asked about stay virtual.
        self._epsilon = torch.zeros((len(census), len(labels), *shape))
        self._divergence = torch.zeros((len(census), len(labels))) if divergences else None
        self._answered = torch.zeros((len(census), len(labels)), dtype=torch.bool)
        self._asks = ~torch.isneginf(log_prior)
        self._asked: dict[int, dict[int, torch.Tensor]] = {}
        self._waiting: set[int] = set()

    @property
    def finished_rows(self) -> torch.Tensor:
        """Which samples are images, bool (N,)."""
        finished = torch.zeros(len(self.labels), dtype=torch.bool)
        for cohort in self.cohorts:
            finished[cohort.rows] = cohort.finished
        return finished

    @property
    def num_waiting(self) -> int:
        """Samples that did not move in the last round and are no images yet."""
        return sum(len(cohort.rows) for cohort in self.cohorts if cohort.label in self._waiting)

    @property
    def num_asked(self) -> int:
        """Silos that are asked something in this round."""
        return len(self._asked)

    def name_of(self, reply: Message) -> str:
        """Name of the silo that answered, as the census has it, or as it calls itself."""
        k = self.census.position(reply)
        return claimed_name(reply) if k is None else self.census.members[k].name

    @property
    def levels_left(self) -> int:
        """Moves that the last cohort still needs."""
        return max(cohort.num_levels - cohort.level for cohort in self.cohorts)

    @property
    def timestep(self) -> int:
        """Where the foremost samples stand that are no images yet; 0 when all are."""
        return min((cohort.timestep for cohort in self.cohorts if not cohort.finished), default=0)

    def questions(self, arrays: ArrayRecord, wire_dtype: str) -> list[Question]:
        """Return what to ask every silo about the set as it stands in ``arrays``.

        Silos that are asked about everything share one record, which Flower uploads once.
        """
        self.arrays, self._asked = arrays, {}
        self._answered[:] = False
        samples = wire.peek(arrays[wire.SAMPLES])
        whole = arrays if wire_dtype == "float32" else None
        asked = []
        for timestep, rows in self._rows_by_timestep():
            for k in range(len(self.census)):
                mine = rows[self._asks[k, rows]]
                if not len(mine):
                    continue
                if len(mine) < len(self.labels):
                    record = self._record(samples, mine, wire_dtype)
                else:
                    record = whole = whole or self._record(samples, mine, wire_dtype)
                asked.append(Question(k, timestep, mine, record))
                self._asked.setdefault(k, {})[timestep] = mine
        return asked

    def _rows_by_timestep(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield timesteps, noisiest first, with the samples that stand there in ascending order."""
        rows: dict[int, list[torch.Tensor]] = {}
        for cohort in self.cohorts:
            if not cohort.finished:
                rows.setdefault(cohort.timestep, []).append(cohort.rows)
        for timestep in sorted(rows, reverse=True):
            yield timestep, torch.cat(rows[timestep]).sort().values

    def _record(self, samples: torch.Tensor, rows: torch.Tensor, wire_dtype: str) -> ArrayRecord:
        return wire.encode_tensors({wire.SAMPLES: samples[rows], wire.LABELS: self.labels[rows]}, wire_dtype)

    def read(self, reply: Message) -> float:
        """Put an answer in its silo's place; return the seconds the silo worked.

        Raises:
            ValueError: it cannot be used.
        """
        k = self.census.position(reply)
        asked = self._asked.get(-1 if k is None else k)
        if k is None or asked is None:
            raise ValueError("not asked")
        timestep = self._timestep_of(reply, asked)
        rows, seconds = asked[timestep], seconds_worked(reply)
        if self._divergence is not None:
            most = MOST * largest_divergence(self._epsilon[0, 0].numel(), self.cohorts[0].alpha_at(timestep))
            self._divergence[k, rows] = divergence_estimate(reply, len(rows), most)
        self._epsilon[k].index_copy_(0, rows, noise_prediction(reply, (len(rows), *self._epsilon.shape[2:])))
        self._answered[k, rows] = True
        return seconds

    @staticmethod
    def _timestep_of(reply: Message, asked: dict[int, torch.Tensor]) -> int:
        """Which of the silo's questions this answers; a silo with one question need not say."""
        given = wire.metrics(reply).get("timestep", next(iter(asked)) if len(asked) == 1 else None)
        # A list, which metrics may hold, cannot be looked up.
        if not isinstance(given, int) or given not in asked:
            raise ValueError(f"timestep = {given}: asked about {sorted(asked)}")
        return given

    def move(self, energy_scale: float | None, max_weight: float, seed: int) -> tuple[torch.Tensor, float]:
        """Move every cohort of which a holder gave a sound answer by one level; the others wait.

        Args:
            energy_scale: λ of energy weights; None: the prior, or the posterior.
            max_weight: largest weight of a silo.
            seed: of the run.

        Returns:
            The set (N, C, H, W), and the mean of the effective experts behind the moved samples; 0 if none moved.
        """
        samples = wire.peek(self.arrays[wire.SAMPLES])
        # The result takes the room of the first silo's answers, which are used up cohort by cohort.
        moved, experts, waiting = self._epsilon[0], [], set()
        for cohort in self.cohorts:
            answered, mine = self._answered[:, cohort.rows[0]], samples[cohort.rows]
            epsilon = self._epsilon[:, cohort.rows]
            moved[cohort.rows] = mine
            if cohort.finished:
                continue
            equal: EqualGroups = ()
            if self._screener is not None:
                answered, equal = self._screener.admit(cohort, mine, epsilon, answered)
            if not answered.any():
                waiting.add(cohort.label)
                continue
            weights = bound_weights(cohort.weigh(epsilon, answered, energy_scale), max_weight, equal)
            divergence = None if self._divergence is None else self._divergence[:, cohort.rows]
            moved[cohort.rows] = cohort.move(mine, epsilon, answered, weights, seed, divergence)
            experts.append(effective_experts(weights))
        self._report(waiting)
        if self._screener is not None:
            self._screener.report()
        return moved, float(torch.cat(experts).mean()) if experts else 0.0

    def _report(self, waiting: set[int]) -> None:
        """Log changes of what waits, by class index."""
        if new := sorted(waiting - self._waiting):
            logger.warning("class index %s waits: none of its holders answered", ", ".join(map(str, new)))
        if back := sorted(self._waiting - waiting):
            logger.info("class index %s goes on", ", ".join(map(str, back)))
        self._waiting = waiting

    def state_dict(self) -> dict[str, Any]:
        """Return where every cohort stands."""
        return {"cohorts": [cohort.state_dict() for cohort in self.cohorts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh set."""
        for cohort, known in zip(self.cohorts, state["cohorts"], strict=True):
            cohort.load_state_dict(known)
