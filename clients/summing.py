"""A silo's part in secure sums: its keys, what it remembers of a run, and its answers to the three messages."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.context import SiloContext
from fedsynth.errors import UserError
from fedsynth.files import damage_named, write_json
from fedsynth.messages import AgreeAnswer, AgreeRequest, MaskedAnswer, RevealAnswer, RevealRequest, SumRequest
from fedsynth.privacy.sums import Memory, PublicKeys, SecretKeys, SiloSide, SumError, Terms, sum_terms
from fedsynth.privacy.sums.key_files import KNOWN_FILE, SECRET_FILE, known_others, read_secret, write_secret

SUMS = "sums"
"""Folder in the state folder, one file a run. Whoever removes it has a run's questions answered again."""


def own_keys(silo: SiloContext) -> SecretKeys | None:
    """Return the silo's secret keys; None of a real one that has none. A simulated one makes its own.

    Raises:
        UserError: they cannot be read or written.
    """
    if silo.sum_keys is not None:
        return read_secret(silo.sum_keys[0])
    if not silo.simulated:
        return None
    path = silo.state / SECRET_FILE
    with silo.explained_state():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_secret(path, SecretKeys.generate())
        return read_secret(path)


class _Record:
    """What a silo remembers of a run's sums, on its disk: neither a new process nor a resumed run is answered twice."""

    def __init__(self, state: Path, run_token: str) -> None:
        self._path = state / SUMS / f"{sha256(run_token.encode()).hexdigest()[:32]}.json"
        self.memory, self._terms, self.keys = Memory(), dict[str, Any](), dict[str, str]()
        if self._path.exists():
            with damage_named(self._path, "has this run's questions answered again"):
                known = json.loads(self._path.read_text(encoding="utf-8"))
                self.memory, self._terms, self.keys = Memory.from_dict(known["memory"]), known["terms"], known["keys"]

    def terms(self, attempt: str) -> Terms:
        """Return the terms of the last attempt that was answered.

        Raises:
            SumError: it is another one.
        """
        if self._terms.get("attempt") != attempt:
            raise SumError("a sum that this silo did not answer")
        lists = {key: tuple(self._terms[key]) for key in ("participants", "fingerprints")}
        return Terms(**{**self._terms, **lists, "weights": tuple(map(tuple, self._terms["weights"]))})

    def keep(self, memory: Memory, terms: Terms) -> None:
        """Write to the disk, which comes before an answer."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"memory": memory.to_dict(), "terms": asdict(terms), "keys": self.keys})


class _Part:
    """A silo's part in the sums of one run, for one message.

    A real silo goes by its own file of keys. A simulated one, which belongs to whoever runs the server, believes the
    keys that the server says.
    """

    def __init__(self, silo: SiloContext, run_token: str, said: dict[str, str] | None = None) -> None:
        self._silo = silo
        with silo.explained_state():
            self.record = _Record(silo.state, run_token)
        keys = own_keys(silo)
        if keys is None:
            raise UserError(f"no keys for secure sums: 'fedsynth silo start' finds none, or no {KNOWN_FILE}")
        if silo.sum_keys is None:
            self.record.keys = said or self.record.keys
            known = {name: PublicKeys.from_text(text) for name, text in self.record.keys.items()}
        else:
            known = known_others(silo.sum_keys[1], silo.name, keys.public)
        self.side = SiloSide(silo.name, keys, known, self.record.memory, silo.policy.least_holders)

    def keep(self, terms: Terms) -> None:
        with self._silo.explained_state():
            self.record.keep(self.side.memory, terms)


class SumQuestion:
    """A question of a secure sum that the silo has checked as a whole, before it computes anything.

    Args:
        request: the question.
        step: rises within a run; the same step may be asked again, about the same.
        silo: who is asked.

    Attributes:
        participants: whose answers are summed, sorted.
        row: the silo's weight in every group.
        again: whether this step was answered before, in an earlier attempt.

    Raises:
        UserError: an answer would not be hidden, was given before, or the keys are not those that the silo knows.
    """

    def __init__(self, request: SumRequest, step: int, silo: SiloContext) -> None:
        said = dict(zip(request.participants, request.keys, strict=True))
        self._part = _Part(silo, request.run_token, said)
        keys = {name: PublicKeys.from_text(text) for name, text in said.items()}
        self._terms = sum_terms(request, step, keys)
        self._part.side.check(self._terms)
        self.participants = self._terms.participants
        self.row = self._terms.row(silo.name)
        self.again = self._part.side.memory.step == step

    def answer(self, numbers: NDArray[np.uint32], num_examples: int = 0) -> MaskedAnswer:
        """Return weighted numbers modulo 2³² (``request.size``,) under masks, when the disk says that they leave."""
        answer = self._part.side.mask(self._terms, numbers)
        self._part.keep(self._terms)
        names = self._terms.participants
        return MaskedAnswer(
            masked=torch.from_numpy(answer.masked.view(np.int32)),
            sealed=tuple(answer.sealed[name] for name in names),
            commitment=answer.commitment,
            confirmations=tuple(answer.confirmations[name] for name in names if name in answer.confirmations),
            num_examples=num_examples,
        )


def agree(request: AgreeRequest, silo: SiloContext) -> AgreeAnswer:
    """Sign the list of survivors of the last sum that was answered, and no other list.

    Raises:
        SumError: another list was agreed to, or a sum over these silos would show an answer.
    """
    part = _Part(silo, request.run_token)
    terms = part.record.terms(request.attempt)
    signature = part.side.sign(terms, request.survivors)
    part.keep(terms)
    return AgreeAnswer(signature=signature)


def reveal(request: RevealRequest, silo: SiloContext) -> RevealAnswer:
    """Reveal what removes the masks from the sum of the survivors' answers.

    Raises:
        SumError: as :func:`agree`, or too few have signed the list.
    """
    part = _Part(silo, request.run_token)
    terms = part.record.terms(request.attempt)
    signatures = dict(zip(request.signers, request.signatures, strict=True))
    sealed = dict(zip(request.survivors, request.sealed, strict=True))
    revealed = part.side.reveal(terms, request.survivors, signatures, sealed)
    part.keep(terms)
    return RevealAnswer(
        shares=tuple(revealed.shares[name] for name in request.survivors),
        seeds=tuple(revealed.seeds[name] for name in terms.participants if name in revealed.seeds),
    )
