"""The synthetic set of cooperative inference where silos compose: their equal statements certify every level."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import MetricRecordValues
from safetensors.torch import save_file

from fedsynth.config.methods import DfDSettings
from fedsynth.diffusion import codec_of, make_scheduler
from fedsynth.files import atomic_file
from fedsynth.messages import EpsilonAnswer, EpsilonRequest, MessageError, transport
from fedsynth.messages.transport import Arrays
from fedsynth.mixture import effective_experts
from fedsynth.mixture.constant_weights import asked_rows, constant_weights
from fedsynth.mixture.moves import LABELS, SAMPLES, moved
from fedsynth.output.audit_files import LAST_LEVEL
from fedsynth.replicas.predictions import signed_prediction
from fedsynth.replicas.statements import Terms
from strategies.base import Task
from strategies.conversation.ask import Question, ask
from strategies.conversation.exchange import Exchange
from strategies.conversation.replicas import Replication, SignedUpdate

CERTIFIED_SET = (
    "aggregators = '{aggregators}': the noise predictions of every round were composed by all {whom}, and their equal"
    " signed statements certify what came of it; every one of them could read the predictions and the images by class"
    " of all silos; the last move to images was the server's, and the audit makes it anew"
)
"""What the reader of the dataset is told."""


class CertifiedSet:
    """Samples on their way from noise to images, all at one noise level.

    A class of which no holder answers makes the round void: nothing moves alone, so that one id names where all stand.

    Args:
        task: the run's.
        replication: its aggregators.
        ready: indices of the silos that have a model.

    Attributes:
        labels: class of every sample (N,).
        level: moves made so far.
        asked_seconds: how long the last predictions took to come.
    """

    def __init__(self, task: Task, replication: Replication, ready: Iterable[int]) -> None:
        settings = task.config.settings
        assert isinstance(settings, DfDSettings)
        self.labels, self.level, self.asked_seconds = task.labels, 0, 0.0
        self._task, self._settings, self._replication, self._ready = task, settings, replication, sorted(ready)
        codec = codec_of(task.config, task.spec)
        self._scheduler = make_scheduler(task.config.recipe, settings.dfd_rounds, settings.sampler, codec.bound)
        self._timesteps: list[int] = self._scheduler.timesteps.tolist()
        self._last = Arrays()

    @property
    def levels_left(self) -> int:
        """Moves that are still needed."""
        return len(self._timesteps) - self.level

    @property
    def timestep(self) -> int:
        """Where the samples are; 0 when they are images."""
        return self._timesteps[self.level] if self.levels_left else 0

    @property
    def finished_rows(self) -> torch.Tensor:
        """Which samples are images, bool (N,)."""
        return torch.full((len(self.labels),), not self.levels_left)

    def move(
        self, exchange: Exchange, samples: torch.Tensor, server_round: int, needed: int, timeout: float | None
    ) -> tuple[torch.Tensor, dict[str, MetricRecordValues]]:
        """Have the silos predict, compose and certify, and move the samples (N, C, H, W) by one level.

        Args:
            exchange: the way to the silos.
            samples: the set as it stands.
            server_round: 1 for the first.
            needed: silos that must answer at least.
            timeout: seconds to wait for predictions; None: ``reply-timeout``.

        Returns:
            The set, as it was if the round is void, and what was measured.

        Raises:
            RunError: too few usable answers, or a second void round in a row.
        """
        replication, timestep = self._replication, self.timestep
        base = self._last or transport.encode_tensors({SAMPLES: samples, LABELS: self.labels})
        terms = replication.terms(server_round, base)
        answers = self._answers(exchange, samples, terms, needed, timeout)
        measured: dict[str, MetricRecordValues] = {
            "timestep": timestep,
            "client-seconds": sum(answer.seconds for answer in answers.values()),
        }
        counts = torch.stack([self._counts(k) for k in answers])
        lacking = ~torch.stack([asked_rows(self._settings.prior, own, self.labels) for own in counts]).any(0)
        if lacking.any():
            name = self._task.spec.classes[int(self.labels[lacking][0])]
            said = replication.void(server_round, f"class {name}: no holder answered, and all samples move together")
            return samples, {**measured, **said, "levels-done": 0.0}
        asked = transport.encode_tensors({SAMPLES: samples, LABELS: self.labels})
        made, said = replication.aggregate(terms, base, self._updates(answers, samples, timestep), asked)
        if made is None:
            return samples, {**measured, **said, "levels-done": 0.0}
        weights = constant_weights(self._settings.prior, counts, self.labels, self._settings.max_silo_weight)
        level = transport.decode_tensors(made)
        after = moved(self._scheduler, self.level, level, replication.carried, self._task.config.run.seed)
        self._last, self.level = made, self.level + 1
        experts = float(effective_experts(weights).mean())
        return after, {**measured, **said, "effective-experts": experts, "levels-done": 1.0}

    def write_last_level(self, folder: Path) -> None:
        """Write what was certified last, from which an auditor makes the images anew."""
        before = {f"before/{name}": values for name, values in self._replication.carried.items()}
        with atomic_file(folder / LAST_LEVEL) as path:
            save_file({**transport.decode_tensors(self._last), **before}, path)

    def state_dict(self) -> dict[str, Any]:
        """Return where the set stands."""
        return {"level": self.level, "last": transport.decode_tensors(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh set."""
        self.level, self._last = int(state["level"]), transport.encode_tensors(state["last"])

    def _answers(
        self, exchange: Exchange, samples: torch.Tensor, terms: Terms, needed: int, timeout: float | None
    ) -> dict[int, EpsilonAnswer]:
        """Return the signed predictions by silo, in the order of the census."""
        census, timestep = self._task.census, self.timestep
        parts: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        questions: list[Question[EpsilonAnswer]] = []
        for k in self._ready:
            rows = asked_rows(self._settings.prior, self._counts(k), self.labels)
            if not rows.any():
                continue
            # Silos that are asked about the same samples share the tensors, which are sent once.
            part = parts.setdefault(rows.numpy().tobytes(), (samples[rows], self.labels[rows]))
            request = EpsilonRequest(
                samples=part[0],
                labels=part[1],
                timestep=timestep,
                server_round=terms.round,
                holders=census.holders,
                base=terms.base,
            )
            questions.append((k, self._replication.question(request, k)))

        def check(silo: int, answer: EpsilonAnswer) -> None:
            if answer.counts is None or not torch.equal(answer.counts, self._counts(silo)):
                raise MessageError("its images by class are not those that it told before the rounds")
            update = self._update(silo, answer, samples, timestep)
            self._replication.check_update(silo, answer.statement, update, int(answer.counts.sum()), terms)

        # As many as aggregators ask for, who do not believe the server.
        needed = max(needed, len(census) // 2 + 1)
        begun = time.monotonic()
        answers = dict(ask(exchange, questions, census, needed=needed, timeout=timeout, check=check))
        self.asked_seconds = time.monotonic() - begun
        return {k: answers[k] for k in sorted(answers)}

    def _updates(
        self, answers: dict[int, EpsilonAnswer], samples: torch.Tensor, timestep: int
    ) -> Sequence[SignedUpdate]:
        members = self._task.census.members
        return [
            SignedUpdate(
                k,
                members[k].name,
                self._update(k, answer, samples, timestep),
                str(answer.statement),
                int(self._counts(k).sum()),
            )
            for k, answer in answers.items()
        ]

    def _update(self, silo: int, answer: EpsilonAnswer, samples: torch.Tensor, timestep: int) -> Arrays:
        counts = self._counts(silo)
        rows = asked_rows(self._settings.prior, counts, self.labels)
        update = signed_prediction(answer.epsilon, counts, samples[rows], self.labels[rows], timestep)
        return transport.encode_tensors(update)

    def _counts(self, silo: int) -> torch.Tensor:
        return torch.tensor(self._task.census.members[silo].label_counts)
