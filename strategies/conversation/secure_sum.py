"""One secure sum over messages: ask, settle who is left, have the masks removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth.errors import RunError
from fedsynth.messages import (
    AgreeAnswer,
    AgreeRequest,
    MaskedAnswer,
    RevealAnswer,
    RevealRequest,
    SumRequest,
)
from fedsynth.privacy.sums import MaskedAnswer as Masked
from fedsynth.privacy.sums import PublicKeys, Revealed, ServerSide, SumError, Terms, sum_terms
from strategies.conversation.ask import ask
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

ATTEMPTS = 3
"""Times that silos are asked before a sum is given up."""


class Common(TypedDict):
    """The fields of a :class:`~fedsynth.messages.SumRequest` that are not the question itself."""

    run_token: str
    attempt: str
    participants: tuple[str, ...]
    keys: tuple[str, ...]
    weights: torch.Tensor


@dataclass(frozen=True)
class Summed:
    """A sum.

    Attributes:
        numbers: Σ over the survivors, modulo 2³²: uint32 (size,).
        weights: of the survivors, zero for the others (K, G), in the order of the census.
        survivors: their names, sorted.
        seconds: that silos worked.
    """

    numbers: NDArray[np.uint32]
    weights: torch.Tensor
    survivors: tuple[str, ...]
    seconds: float


class SecureSum:
    """Sums of answers that a server cannot take apart, whatever is asked.

    Args:
        exchange: the way to the silos.
        census: the silos, with their public keys.
        run_token: names the run, the same when it is resumed.
        members: names of the silos that take part; whoever drops out of a sum has left the run.

    Attributes:
        members: those who are left.
    """

    def __init__(self, exchange: Exchange, census: Census, run_token: str, members: Sequence[str]) -> None:
        self.members = tuple(sorted(members))
        self._exchange, self._census, self._run_token = exchange, census, run_token
        self._index = {member.name: k for k, member in enumerate(census)}
        self._seconds = 0.0

    def sum(
        self,
        what: str,
        step: int,
        weights: torch.Tensor,
        build: Callable[[Common], SumRequest],
        timeout: float | None = None,
        needed: int = 0,
    ) -> Summed:
        """Ask the members, and add up what they answer.

        Args:
            what: names the sum in the log and in errors, such as ``round 3``.
            step: rises within the run.
            weights: of every silo of the census in every group, (K, G).
            build: makes the question, which must hold its tensors in the precision that travels.
            timeout: seconds to wait for answers; None: ``reply-timeout``.
            needed: silos that must answer, where that is more than the sum needs.

        Raises:
            RunError: too few silos answer, or those that do cannot agree on who is left.
        """
        self._seconds, why = 0.0, ""
        for _ in range(ATTEMPTS):
            try:
                numbers, survivors = self._attempt(what, step, weights, build, timeout, needed)
            except (SumError, RunError) as error:
                why = str(error)
                logger.warning("%s: no sum: %s", what, why)
                continue
            self.members = survivors
            left = torch.zeros_like(weights)
            chosen = [self._index[name] for name in survivors]
            left[chosen] = weights[chosen]
            return Summed(numbers, left, survivors, self._seconds)
        raise RunError(f"no secure sum at {what} in {ATTEMPTS} attempts: {why}; resume when silos are back")

    def _attempt(
        self,
        what: str,
        step: int,
        weights: torch.Tensor,
        build: Callable[[Common], SumRequest],
        timeout: float | None,
        needed: int,
    ) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
        names = self.members
        keys = {name: self._keys_of(name) for name in names}
        request = build(
            {
                "run_token": self._run_token,
                "attempt": uuid4().hex,
                "participants": names,
                "keys": tuple(keys[name].text for name in names),
                "weights": weights[[self._index[name] for name in names]].float(),
            }
        )
        terms = sum_terms(request, step, keys)
        server = ServerSide(terms, keys)
        self._collect(server, terms, request, timeout, max(needed, terms.threshold))
        self._settle(server)
        if server.dropped:
            gone = ", ".join(server.dropped)
            logger.warning("%s: %s dropped out, for the rest of the run", what, gone)
            self._agree(server, terms, timeout)
        for _ in range(ATTEMPTS):
            self._reveal(server, terms, timeout)
            if not server.still_needed:
                break
        return server.numbers(), server.survivors

    def _collect(
        self, server: ServerSide, terms: Terms, request: SumRequest, timeout: float | None, needed: int
    ) -> None:
        names = terms.participants

        def add(silo: int, answer: MaskedAnswer) -> None:
            name = self._name(silo)
            others = [other for other in names if other != name]
            masked = answer.masked.numpy().view("uint32")
            sealed = dict(zip(names, answer.sealed, strict=True))
            confirmations = dict(zip(others, answer.confirmations, strict=True))
            server.add_answer(name, Masked(masked, sealed, answer.commitment, confirmations))

        questions = [(self._index[name], request) for name in names]
        for _, answer in ask(self._exchange, questions, self._census, needed=needed, timeout=timeout, check=add):
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
            raise RunError(_keyless(name))
        return PublicKeys.from_text(keys)


def refuse_keyless(census: Census) -> None:
    """Refuse silos without keys.

    Raises:
        RunError: names them.
    """
    if keyless := [member.name for member in census if member.sum_keys is None]:
        raise RunError(_keyless(", ".join(keyless)))


def _keyless(names: str) -> str:
    return (
        f"{names}: no keys for secure sums: 'fedsynth silo init' and 'fedsynth link keys' make them, and 'fedsynth silo"
        " start' finds them in the silo's folder"
    )
