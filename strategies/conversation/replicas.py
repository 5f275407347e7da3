"""Replicated rounds over messages: certificates out, signed statements in, and which of them agree."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedsynth.averaging.rules import FROM_BASE
from fedsynth.config import RunConfig
from fedsynth.config.methods import DfDSettings
from fedsynth.errors import RunError, UserError
from fedsynth.messages import AggregateAnswer, AggregateRequest, EpsilonRequest, MessageError, TrainRequest, transport
from fedsynth.messages.aggregate import joined
from fedsynth.messages.transport import Arrays
from fedsynth.output.audit_files import KEYS
from fedsynth.privacy.sums import PublicKeys
from fedsynth.privacy.sums.key_files import read_parties, write_known
from fedsynth.privacy.sums.key_text import keys_hash, keys_text
from fedsynth.replicas.certificates import MOST_VOID_ROUNDS, Ballot, Chain, Parties
from fedsynth.replicas.content_ids import content_id
from fedsynth.replicas.quorum import owners
from fedsynth.replicas.statements import Contribution, Terms, Update
from fedsynth.spec import ImageSpec
from strategies.conversation.ask import Question, ask
from strategies.conversation.audit_log import AuditLog
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.noted_heads import NotedHeads, ledger_of
from strategies.conversation.secure_sum import refuse_keyless
from strategies.conversation.waiting import round_timeout

logger = logging.getLogger("fedsynth")

CERTIFIED = (
    "aggregators = '{aggregators}': every round was combined by all {whom}, and their equal signed statements certify"
    " it; every one of them could read the single updates of all silos; the images were drawn by the server, from the"
    " certified model"
)
"""What the reader of the dataset is told."""
WHOM = {"silos": "silos", "nodes": "aggregators"}
"""Who aggregates, by ``aggregators``."""

LEAST_GRACE = 2.0
"""Seconds that a round waits at least for the other aggregators once a quorum agrees; at most as long again."""


R = TypeVar("R", TrainRequest, EpsilonRequest)
_Sent = tuple[Arrays, Arrays]
"""Weights after a round, and what the rule carries on."""


@dataclass(frozen=True)
class SignedUpdate:
    """A silo's usable answer.

    Attributes:
        silo: its index in the census.
        name: its name.
        arrays: its weights, or its noise predictions and what it was asked.
        statement: its signed word on them.
        images: behind them.
    """

    silo: int
    name: str
    arrays: Arrays
    statement: str
    images: int


class Replication:
    """The coordinator of a replicated run. What it says, silos and aggregators check; it decides nothing.

    Args:
        exchange: the way to the silos.
        census: the silos.
        config: the run's.
        spec: format and classes of its images.
        run_token: names the run, the same when it is resumed.
        audit: folder of the log; None: nothing is written.
        aggregators: nodes that aggregate; None: the silos do.

    Raises:
        RunError: a silo has no keys.
        UserError: the key file is not that of these silos.
    """

    def __init__(
        self,
        exchange: Exchange,
        census: Census,
        config: RunConfig,
        spec: ImageSpec,
        run_token: str,
        audit: Path | None = None,
        aggregators: Census | None = None,
    ) -> None:
        self._exchange, self._census, self._config, self._spec = exchange, census, config, spec
        self._aggregators = aggregators or census
        refuse_keyless(census)
        known, beside = _known_keys(census, aggregators, config)
        self._keys = keys_text(known, beside)
        silos, others = ({name: keys.signatures for name, keys in part.items()} for part in (known, beside))
        rule = config.replicas.replica_quorum
        self.parties = Parties(run_token, keys_hash(self._keys), silos, others or silos, rule)
        self.chain = Chain()
        self._certificates: list[tuple[int, str]] = []
        self._heard: dict[str, int] = {}
        self._voids = 0
        self._state = Arrays()
        self._slowest = 0.0
        self._log = AuditLog(audit) if audit is not None else None
        replicas = config.replicas
        self._noted = NotedHeads(ledger_of(replicas)) if replicas.ledger_url else None
        if audit is not None and not (audit / KEYS).exists():
            write_known(audit / KEYS, known, beside)

    @property
    def who(self) -> str:
        """Who aggregates, for a line of the log."""
        chosen = self._config.replicas.aggregators
        return f"aggregators = '{chosen}': every one of the {WHOM[chosen]}"

    @property
    def carried(self) -> dict[str, torch.Tensor]:
        """What the rule carries on from the last certified round."""
        return transport.decode_tensors(self._state)

    def question(self, request: R, silo: int) -> R:
        """Return a question with what its silo must see first."""
        name = self._census.members[silo].name
        return replace(request, run_token=self.parties.run, keys=self._keys, certificates=self._unheard(name))

    def terms(self, server_round: int, arrays: Arrays) -> Terms:
        """Return what every statement of a round must say."""
        base = content_id(transport.peek_tensors(arrays))
        return Terms(self.parties.run, server_round, self.parties.keys_hash, self.chain.head, base)

    def check_update(self, silo: int, statement: str | None, arrays: Arrays, images: int, terms: Terms) -> None:
        """Refuse an update that its silo has not signed as it is.

        Args:
            silo: its index in the census.
            statement: its signed word, as it came.
            arrays: what it sent.
            images: behind them.
            terms: of the round.

        Raises:
            ValueError: it is one.
        """
        name = self._census.members[silo].name
        if statement is None:
            raise MessageError("an update without a signed statement: install the same fedsynth at both")
        update = Update.read(statement, self.parties.silos)
        if update.terms != terms:
            raise MessageError("its statement is of another round, or of other weights than it was sent")
        line = Contribution(name, content_id(transport.peek_tensors(arrays)), images)
        if update.line != line:
            raise MessageError("its statement names other weights, images or another silo than its answer")
        self._heard[name] = self.chain.round

    def aggregate(
        self, terms: Terms, base: Arrays, updates: Sequence[SignedUpdate], asked: Arrays | None = None
    ) -> tuple[Arrays | None, dict[str, Any]]:
        """Have all aggregators combine a round's updates.

        Args:
            terms: of the round.
            base: the weights that it starts from.
            updates: usable answers in the order of the census.
            asked: samples and labels that they are about, where they are noise predictions.

        Returns:
            What was certified, None if the round is void; and what was measured.

        Raises:
            RunError: a second void round in a row, or nobody sends the weights that were certified.
        """
        roster = tuple(
            Contribution(update.name, content_id(transport.peek_tensors(update.arrays)), update.images)
            for update in updates
        )
        for update in updates:
            self._note("update", round=terms.round, silo=update.name, envelope=update.statement)
        request = AggregateRequest(
            run_token=terms.run,
            spec=self._spec,
            server_round=terms.round,
            base=terms.base,
            keys=self._keys,
            statements=tuple(update.statement for update in updates),
            updates=joined([update.arrays for update in updates]),
            # Whoever has seen no certificate compares the first weights with its own.
            base_arrays=base if asked or not self.chain.round or self._config.run.strategy in FROM_BASE else None,
            asked=asked,
            state=self._state or None,
        )
        ballot, order = Ballot(self.parties, terms, roster), self._owners(terms.round)
        begun = time.monotonic()
        sent = self._vote(ballot, request, order[0])
        measured = {"aggregators": sum(map(len, ballot.groups.values())), "certify-seconds": time.monotonic() - begun}
        self._name_dissent(ballot, terms.round)
        if ballot.result is None:
            votes = ", ".join(str(len(group)) for group in ballot.groups.values()) or "none"
            m, q = len(self.parties.aggregators), self.parties.quorum
            said = self.void(terms.round, f"equal statements: {votes}; {q} of {m} are needed")
            return None, {**measured, **said}
        certified = ballot.result.result, ballot.result.state
        arrays, self._state = sent.get(certified) or self._fetch(ballot, request, order)
        self._voids = 0
        self.chain.follow(ballot.certificate, self.parties)
        self._certificates.append((terms.round, ballot.certificate))
        self._note("certificate", round=terms.round, envelope=ballot.certificate, signers=list(ballot.signers))
        measured["signers"] = len(ballot.signers)
        if self._noted is not None:
            measured["ledger-seconds"] = self._noted.add(self.parties.run, terms.round, self.chain.head)
        return arrays, measured

    def certified(self) -> dict[str, Any]:
        """Return what the dataset's card says; a ledger has then got what it lacked, if it can be asked."""
        m, q = len(self.parties.aggregators), self.parties.quorum
        said = {
            "by": f"{len(self._certificates)} rounds, each by {q} or more of {m} aggregators ({self.parties.rule})",
            "head": self.chain.head,
            "keys": self.parties.keys_hash,
        }
        return said if self._noted is None else {**said, "ledger": self._noted.settle(self.parties.run)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {
            "certificates": [list(row) for row in self._certificates],
            "voids": self._voids,
            "state": transport.decode_tensors(self._state),
        }

    def load_state_dict(self, state: Mapping[str, Any], run_token: str) -> None:
        """Inverse of :meth:`state_dict`, of the run that goes by ``run_token``."""
        self.parties = replace(self.parties, run=run_token)
        self.chain, self._voids = Chain(), int(state["voids"])
        # Runs of earlier versions carry nothing on.
        self._state = transport.encode_tensors(state.get("state", {}))
        self._certificates = [(int(number), str(envelope)) for number, envelope in state["certificates"]]
        for _, envelope in self._certificates:
            self.chain.follow(envelope, self.parties)
        self._note("resumed", round=self.chain.round, head=self.chain.head)
        if self._noted is not None:
            self._noted.begin(self.chain.seen.items())

    def _vote(self, ballot: Ballot, request: AggregateRequest, owner: str) -> dict[tuple[str, str], _Sent]:
        """Ask all aggregators; return the weights that the owner sent and its state, by their content ids."""
        index = {member.name: k for k, member in enumerate(self._aggregators)}
        questions: list[Question[AggregateAnswer]] = [
            (
                index[name],
                replace(request, certificates=self._unheard(name), send_arrays=name == owner),
            )
            for name in self.parties.aggregators
        ]
        begun, agreed = time.monotonic(), math.inf

        def until() -> float:
            return agreed + max(LEAST_GRACE, agreed - begun)

        def check(aggregator: int, answer: AggregateAnswer) -> None:
            name = self._aggregators.members[aggregator].name
            try:
                ballot.add(name, answer.statement)
            except UserError as error:
                self._note(
                    "refused", round=request.server_round, aggregator=name, why=str(error), envelope=answer.statement
                )
                raise
            self._heard[name] = self.chain.round

        sent: dict[tuple[str, str], _Sent] = {}
        timeout = round_timeout(self._config.exchange, self._slowest)
        for _, answer in ask(
            self._exchange, questions, self._aggregators, needed=0, timeout=timeout, check=check, until=until
        ):
            if (found := _sent(answer)) is not None:
                sent[_ids(*found)] = found
            if ballot.result is not None and agreed == math.inf:
                agreed = time.monotonic()
            self._slowest = max(self._slowest, time.monotonic() - begun)
        return sent

    def _fetch(self, ballot: Ballot, request: AggregateRequest, order: Sequence[str]) -> _Sent:
        """Return the certified weights and state from the next of those who signed them."""
        assert ballot.result is not None
        index = {member.name: k for k, member in enumerate(self._aggregators)}
        for name in (name for name in order if name in ballot.signers):
            logger.warning("round %d: the owner did not send the weights; asking %s", request.server_round, name)
            question = replace(request, certificates=self._unheard(name), send_arrays=True)
            timeout = round_timeout(self._config.exchange, self._slowest)
            asked = [(index[name], question)]
            for _, answer in ask(self._exchange, asked, self._aggregators, needed=0, timeout=timeout):
                found = _sent(answer)
                if found is not None and _ids(*found) == (ballot.result.result, ballot.result.state):
                    return found
        raise RunError(
            f"round {request.server_round}: certified, but none of {', '.join(ballot.signers)} sends the weights;"
            " resume when one is back"
        )

    def _name_dissent(self, ballot: Ballot, server_round: int) -> None:
        for name, envelope in ballot.dissent.items():
            if ballot.result is not None:
                logger.warning("round %d: %s signed another result than the quorum", server_round, name)
            self._note("dissent", round=server_round, aggregator=name, envelope=envelope)

    def void(self, server_round: int, why: str) -> dict[str, int]:
        """Note that a round has no certificate; return what was measured.

        Args:
            server_round: 1 for the first.
            why: in words.

        Raises:
            RunError: it is the second in a row.
        """
        self._voids += 1
        self._note("void", round=server_round, why=why)
        stays = "the samples stay" if isinstance(self._config.settings, DfDSettings) else "the weights stay"
        logger.warning("round %d is void, %s as they were: %s", server_round, stays, why)
        if self._voids > MOST_VOID_ROUNDS:
            raise RunError(
                f"rounds {server_round - 1} and {server_round} are void: {why}. The log names who was silent or signed"
                " something else; resume without them, or when they are back"
            )
        return {"void": 1}

    def _owners(self, server_round: int) -> list[str]:
        names = list(self.parties.aggregators)
        return [names[k] for k in owners(server_round, len(names))]

    def _unheard(self, name: str) -> tuple[str, ...]:
        """Return the certificates that a silo has not said to have seen: all, if its last question is unanswered."""
        last = self._heard.pop(name, 0)
        return tuple(envelope for number, envelope in self._certificates if number > last)

    def _note(self, event: str, **content: Any) -> None:
        if self._log is not None:
            self._log.add(event, **content)


def _known_keys(
    census: Census, aggregators: Census | None, config: RunConfig
) -> tuple[dict[str, PublicKeys], dict[str, PublicKeys]]:
    """Return the keys of silos and of aggregators: from the key file, which each has; of simulated ones, as they say.

    Raises:
        UserError: the file is not that of these parties.
    """
    said, beside = (
        {member.name: PublicKeys.from_text(str(member.sum_keys)) for member in part}
        for part in (census, aggregators or ())
    )
    if not config.replicas.key_file:
        return said, beside
    silos, others = read_parties(Path(config.replicas.key_file).expanduser())
    known, told = {**silos, **(others if beside else {})}, {**said, **beside}
    differing = {name for name in known.keys() | told.keys() if known.get(name) != told.get(name)}
    differing |= silos.keys() ^ said.keys()
    if differing:
        whose, all_of_them = ("silos", "silos alone") if aggregators is None else ("parties", "parties alone")
        raise UserError(
            f"key-file = '{config.replicas.key_file}': not the keys of this run's {whose}"
            f" ({', '.join(sorted(differing))}): have 'fedsynth link keys' make a file of these {all_of_them}, and give"
            " it to all of them"
        )
    if list(known) != list(told):
        raise UserError(
            f"key-file = '{config.replicas.key_file}': not sorted by name, as 'fedsynth link keys' writes it"
        )
    return said, beside


def _sent(answer: AggregateAnswer) -> _Sent | None:
    return None if answer.arrays is None else (answer.arrays, answer.state or Arrays())


def _ids(arrays: Arrays, state: Arrays) -> tuple[str, str]:
    return content_id(transport.peek_tensors(arrays)), content_id(transport.peek_tensors(state))
