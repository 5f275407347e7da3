"""One secure sum of noise predictions over messages: ask, settle who is left, have the masks removed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import torch

from fedsynth.errors import RunError
from fedsynth.messages import (
    AgreeAnswer,
    AgreeRequest,
    MaskedAnswer,
    MaskedRequest,
    RevealAnswer,
    RevealRequest,
)
from fedsynth.privacy.sums import MaskedAnswer as Masked
from fedsynth.privacy.sums import PublicKeys, Revealed, ServerSide, SumError, Terms
from fedsynth.privacy.sums.noise import noise_terms, weights_of_samples
from strategies.conversation.ask import ask
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

ATTEMPTS = 3
"""Times that silos are asked before a sum is given up."""


@dataclass(frozen=True)
class NoiseQuestion:
    """What silos are asked together.

    Attributes:
        samples: x_t, float32 (n, C, H, W).
        labels: their classes, int64 (n,).
        timestep: of all samples.
        part: which of the messages about this timestep.
        weights: of every silo of the census in every class of ``labels``, sorted, (K, G).
        server_round: for the silos' logs.
        timeout: seconds to wait for answers; None: ``reply-timeout``.
    """

    samples: torch.Tensor
    labels: torch.Tensor
    timestep: int
    part: int
    weights: torch.Tensor
    server_round: int
    timeout: float | None


class SecureSum:
    """Sums of noise predictions that a server cannot take apart.

    Args:
        exchange: the way to the silos.
        census: the silos, with their public keys.
        run_token: names the run, the same when it is resumed.
        num_train_timesteps: T of the run.
        wire_dtype: precision of samples on the wire.
        members: names of the silos that take part; whoever drops out of a sum has left the run.

    Attributes:
        members: those who are left.
    """

    def __init__(
        self,
        exchange: Exchange,
        census: Census,
        run_token: str,
        num_train_timesteps: int,
        wire_dtype: str,
        members: Sequence[str],
    ) -> None:
        self.members = tuple(sorted(members))
        self._exchange, self._census, self._run_token = exchange, census, run_token
        self._num_train_timesteps, self._wire_dtype = num_train_timesteps, wire_dtype
        self._index = {member.name: k for k, member in enumerate(census)}
        self._seconds = 0.0

    def compose(self, question: NoiseQuestion) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return the silos' weighted mean prediction.

        Returns:
            Σ w_i ε_i / Σ w_i over those who survived, float32 (n, C, H, W); their weights, zero for the others (K, G);
            and the seconds that silos worked.

        Raises:
            RunError: too few silos answer, or those that do cannot agree on who is left.
        """
        seen = replace(question, samples=question.samples.to(getattr(torch, self._wire_dtype)).float())
        timestep, weights = question.timestep, question.weights
        self._seconds, why = 0.0, ""
        for _ in range(ATTEMPTS):
            try:
                total, survivors = self._attempt(seen)
            except (SumError, RunError) as error:
                why = str(error)
                logger.warning("timestep %d: no sum: %s", timestep, why)
                continue
            self.members = survivors
            left = torch.zeros_like(weights)
            chosen = [self._index[name] for name in survivors]
            left[chosen] = weights[chosen]
            of_samples = weights_of_samples(left.sum(0).tolist(), question.labels)
            return (total / of_samples[:, None, None, None]).float(), left / left.sum(0), self._seconds
        raise RunError(
            f"no secure sum at timestep {timestep} in {ATTEMPTS} attempts: {why}; resume when silos are back"
        )

    def _attempt(self, question: NoiseQuestion) -> tuple[torch.Tensor, tuple[str, ...]]:
        names = self.members
        keys = {name: self._keys_of(name) for name in names}
        rows = question.weights[[self._index[name] for name in names]].float()
        request = MaskedRequest(
            samples=question.samples,
            labels=question.labels,
            timestep=question.timestep,
            part=question.part,
            run_token=self._run_token,
            attempt=uuid4().hex,
            participants=names,
            keys=tuple(keys[name].text for name in names),
            weights=rows,
            server_round=question.server_round,
            wire_dtype=self._wire_dtype,
        )
        terms = noise_terms(
            run=request.run_token,
            attempt=request.attempt,
            samples=request.samples,
            labels=request.labels,
            timestep=request.timestep,
            part=request.part,
            num_train_timesteps=self._num_train_timesteps,
            keys=keys,
            weights=request.weights,
        )
        timeout = question.timeout
        server = ServerSide(terms, keys)
        self._collect(server, terms, request, timeout)
        self._settle(server)
        if server.dropped:
            gone = ", ".join(server.dropped)
            logger.warning("timestep %d: %s dropped out, for the rest of the run", question.timestep, gone)
            self._agree(server, terms, timeout)
        for _ in range(ATTEMPTS):
            self._reveal(server, terms, timeout)
            if not server.still_needed:
                break
        total = torch.from_numpy(server.total()).reshape(question.samples.shape)
        return total, server.survivors

    def _collect(self, server: ServerSide, terms: Terms, request: MaskedRequest, timeout: float | None) -> None:
        names = terms.participants

        def add(silo: int, answer: MaskedAnswer) -> None:
            name = self._name(silo)
            others = [other for other in names if other != name]
            masked = answer.masked.numpy().view("uint32")
            sealed = dict(zip(names, answer.sealed, strict=True))
            confirmations = dict(zip(others, answer.confirmations, strict=True))
            server.add_answer(name, Masked(masked, sealed, answer.commitment, confirmations))

        questions = [(self._index[name], request) for name in names]
        for _, answer in ask(
            self._exchange, questions, self._census, needed=terms.threshold, timeout=timeout, check=add
        ):
            self._seconds += answer.seconds

    def _settle(self, server: ServerSide) -> None:
        for name, why in server.close().items():
            logger.warning("%s left out of the sum: %s", name, why)
            self._exchange.reply_log.leave_out(self._census.members[self._index[name]].node_id, why)

    def _agree(self, server: ServerSide, terms: Terms, timeout: float | None) -> None:
        request = AgreeRequest(run_token=terms.run, attempt=terms.attempt, survivors=server.survivors)

        def add(silo: int, answer: AgreeAnswer) -> None:
            server.add_signature(self._name(silo), answer.signature)

        questions = [(self._index[name], request) for name in server.survivors]
        needed = terms.threshold
        for _ in ask(self._exchange, questions, self._census, needed=needed, timeout=timeout, check=add):
            pass

    def _reveal(self, server: ServerSide, terms: Terms, timeout: float | None) -> None:
        signatures = server.signatures
        questions = []
        for name in server.still_needed:
            sealed = server.sealed_for(name)
            request = RevealRequest(
                run_token=terms.run,
                attempt=terms.attempt,
                survivors=server.survivors,
                signers=tuple(signatures),
                signatures=tuple(signatures.values()),
                sealed=tuple(sealed[giver] for giver in server.survivors),
            )
            questions.append((self._index[name], request))

        def add(silo: int, answer: RevealAnswer) -> None:
            shares = dict(zip(server.survivors, answer.shares, strict=True))
            seeds = dict(zip(server.dropped, answer.seeds, strict=True))
            server.add_revealed(self._name(silo), Revealed(shares, seeds))

        for _ in ask(self._exchange, questions, self._census, needed=0, timeout=timeout, check=add):
            pass

    def _name(self, silo: int) -> str:
        return self._census.members[silo].name

    def _keys_of(self, name: str) -> PublicKeys:
        keys = self._census.members[self._index[name]].sum_keys
        if keys is None:
            raise RunError(
                f"{name} has no keys for secure sums: 'fedsynth silo init' and 'fedsynth link keys' make them"
            )
        return PublicKeys.from_text(keys)
