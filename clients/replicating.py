"""A party of replicated rounds: silos check certificates and sign updates, aggregators combine those of all silos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from clients.context import SiloContext
from clients.summing import own_keys
from fedsynth.averaging import Layers
from fedsynth.averaging.checks import shape_and_dtype, size_problem
from fedsynth.averaging.participants import num_participants, participants
from fedsynth.averaging.rules import FROM_BASE, RULES, Updates, updates_needed
from fedsynth.config import AUTO
from fedsynth.config.methods import AveragingSettings, FedDiffuseSettings
from fedsynth.diffusion import PARTS, initial_unet, part_of
from fedsynth.diffusion.parts import reported_parts
from fedsynth.errors import UserError
from fedsynth.files import damage_named, write_json
from fedsynth.messages import AggregateAnswer, AggregateRequest, TrainRequest, transport
from fedsynth.messages.transport import Arrays
from fedsynth.privacy.sums.key_files import KNOWN_FILE, read_parties
from fedsynth.privacy.sums.key_text import keys_from_text, keys_hash, keys_text
from fedsynth.replicas.certificates import Chain, Parties, check_line
from fedsynth.replicas.content_ids import content_id
from fedsynth.replicas.envelopes import StatementError, sign
from fedsynth.replicas.statements import Aggregate, Contribution, Terms, Update
from fedsynth.roles import AGGREGATOR, SILO
from fedsynth.spec import ImageSpec

REPLICAS = "replicas"
"""Folder in the state folder, one file a run. Whoever removes it may sign two statements on one round."""
_ROUNDS_KEPT = 5
LAST_BITS = 1e-5
"""How far a first weight may be from what another CPU draws, absolutely and per unit of its size (our choice).

Drawn numbers have other last bits there, some 1e-6."""


@dataclass
class _Memory:
    """What a silo remembers of a run.

    Attributes:
        chain: certificates that it has seen.
        updates: roster lines that it signed, by round: the last ones.
        signed: SHA-256 of the results that it signed, by round.
    """

    chain: Chain = field(default_factory=Chain)
    updates: dict[int, Contribution] = field(default_factory=dict)
    signed: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> _Memory:
        if not path.exists():
            return cls()
        with damage_named(path, "may have this silo sign a round's statement twice"):
            known = json.loads(path.read_text(encoding="utf-8"))
            updates = {int(number): Contribution(*line) for number, line in known["updates"].items()}
            signed = {int(number): str(found) for number, found in known["signed"].items()}
            return cls(Chain.from_dict(known["chain"]), updates, signed)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = sorted(self.updates)[-_ROUNDS_KEPT:]
        content: dict[str, Any] = {
            "chain": self.chain.to_dict(),
            "updates": {str(number): list(self.updates[number]) for number in kept},
            "signed": {str(number): found for number, found in self.signed.items()},
        }
        write_json(path, content)


class Replica:
    """A silo in one replicated run, for one message.

    A real silo goes by its own file of keys. A simulated one, which belongs to whoever runs the server, believes the
    keys that the server says.

    Args:
        silo: who is asked.
        run_token: names the run.
        keys: public keys of all silos, as the server says them.
        certificates: of the rounds since the last that the silo has heard of.

    Raises:
        UserError: other keys than the silo's own, or certificates that do not follow from those it has seen.
    """

    def __init__(self, silo: SiloContext, run_token: str, keys: str, certificates: Sequence[str]) -> None:
        self._silo = silo
        self._path = silo.state / REPLICAS / f"{sha256(run_token.encode()).hexdigest()[:32]}.json"
        with silo.explained_state():
            self._memory = _Memory.load(self._path)
        own = own_keys(silo)
        if own is None:
            raise UserError(f"no keys for signatures: 'fedsynth silo start' finds none, or no {KNOWN_FILE}")
        beside = silo.config.num_aggregators > 0
        if silo.sum_keys is not None and _known_text(silo.sum_keys[1], beside) != keys:
            raise UserError(
                f"the server's key-file is not this silo's {KNOWN_FILE} ('{silo.sum_keys[1]}'): have all parties use"
                " the same file"
            )
        silos, others = ({name: known.signatures for name, known in part.items()} for part in keys_from_text(keys))
        if bool(others) != beside:
            raise UserError(f"aggregators = '{silo.config.replicas.aggregators}' with keys of other parties than that")
        if (others if silo.is_aggregator else silos).get(silo.name) != own.public.signatures:
            role = AGGREGATOR if silo.is_aggregator else SILO
            raise UserError(f"the key file lacks the own key of this {role}, or has another one: have it made anew")
        self._own = own
        rule = silo.config.replicas.replica_quorum
        self.parties = Parties(run_token, keys_hash(keys), silos, others or silos, rule)
        self._follow(certificates)

    def _follow(self, certificates: Sequence[str]) -> None:
        chain = self._memory.chain
        before = chain.head
        try:
            for envelope in certificates:
                known = set(chain.seen)
                found = chain.follow(envelope, self.parties)
                mine = self._memory.updates.get(found.terms.round)
                if mine is not None and found.terms.round not in known:
                    check_line(mine, found.roster, found.terms.round)
        finally:
            if chain.head != before:
                # Also where its own update is missing: that is said once, and in the next round it takes part again.
                self._save()

    @property
    def certified_rounds(self) -> int:
        """Rounds that have a certificate."""
        return len(self._memory.chain.seen)

    def terms(self, server_round: int, base: str, is_first: Callable[[], bool] | None = None) -> Terms:
        """Return what every statement of a round says.

        Args:
            server_round: of the question.
            base: content id of what the round starts from.
            is_first: says whether that is what the run begins with, before the first certificate; None: that is checked
                elsewhere.

        Raises:
            StatementError: the round or the weights do not follow from the last certificate.
        """
        chain = self._memory.chain
        chain.check_next(server_round, base)
        if not chain.result and is_first is not None and not is_first():
            raise StatementError(
                f"round {server_round}: the weights are not those that this run begins with: install the same fedsynth"
                " and torch at all parties"
            )
        return Terms(self.parties.run, server_round, self.parties.keys_hash, chain.head, base)

    def checked_state(self, state: Layers) -> Layers:
        """Return what the rule carried on, as it came with the question.

        Raises:
            StatementError: it is not what the last certificate names.
        """
        chain = self._memory.chain
        if content_id(state) != (chain.state or content_id({})):
            raise StatementError(
                f"what the rule carries on is not what the certificate of round {chain.round} names"
                if chain.round
                else "the rule has nothing yet to carry on"
            )
        return state

    def signed_update(self, terms: Terms, arrays: Arrays, images: int) -> str:
        """Sign what this silo answers, one update a round.

        Raises:
            StatementError: it has signed another one.
        """
        line = Contribution(self._silo.name, content_id(transport.peek_tensors(arrays)), images)
        if self._memory.updates.setdefault(terms.round, line) != line:
            raise StatementError(
                f"this silo has signed another update of round {terms.round}: asked again, its training gave other bits"
            )
        self._save()
        return Update(terms, line).signed(self._own, self._own.public.signatures)

    def signed_result(self, statement: Aggregate) -> str:
        """Sign what a round makes, one result a round.

        Raises:
            StatementError: it has signed another one.
        """
        payload = statement.payload
        found = sha256(payload).hexdigest()
        if self._memory.signed.setdefault(statement.terms.round, found) != found:
            raise StatementError(f"this silo has signed another result of round {statement.terms.round}")
        self._save()
        return sign(payload, self._own, self._own.public.signatures)

    def answer(
        self,
        request: AggregateRequest,
        terms: Terms,
        roster: tuple[Contribution, ...],
        combined: Layers,
        carried: Layers,
    ) -> AggregateAnswer:
        """Return the signed word on what a round makes, with what it made where that is asked for.

        Args:
            request: the question.
            terms: of the round.
            roster: whose updates were combined.
            combined: what the round makes.
            carried: what the rule carries on.

        Raises:
            StatementError: this silo has signed another result.
        """
        config = self._silo.config
        if self._silo.name not in self.parties.aggregators:
            raise StatementError("this silo does not aggregate in this run: nodes of their own do")
        parameters = {**config.settings.model_dump(by_alias=True), "replica-quorum": self.parties.rule}
        ids = content_id(combined), content_id(carried)
        signed = self.signed_result(Aggregate(terms, config.run.strategy, parameters, roster, *ids))
        if not request.send_arrays:
            return AggregateAnswer(statement=signed)
        sent_state = transport.encode_tensors(carried) if carried else None
        return AggregateAnswer(statement=signed, arrays=transport.encode_tensors(combined), state=sent_state)

    def _save(self) -> None:
        with self._silo.explained_state():
            self._memory.save(self._path)


def _known_text(path: Path, beside: bool) -> str:
    silos, aggregators = read_parties(path)
    return keys_text(silos, aggregators if beside else None)


def replica_of(request: TrainRequest, silo: SiloContext) -> tuple[Replica, Terms]:
    """Return the silo as a party of the run that asks for training, with the terms of the round.

    Raises:
        UserError: the question says no keys, or something that it says does not hold.
    """
    if request.keys is None or request.run_token is None:
        given = f"aggregators = '{silo.config.replicas.aggregators}'"
        raise UserError(f"{given}: the question brings no keys and certificates; update the server")
    replica = Replica(silo, request.run_token, request.keys, request.certificates)
    base = content_id(transport.peek_tensors(request.arrays))
    is_first = partial(_are_first_weights, request.arrays, request.spec, silo)
    return replica, replica.terms(request.server_round, base, is_first)


def _are_first_weights(arrays: Arrays, spec: ImageSpec, silo: SiloContext) -> bool:
    """Whether weights are those that a run begins with, up to the last bits, which another CPU draws otherwise."""
    expected, found = initial_unet(silo.config, spec).state_dict(), transport.peek_tensors(arrays)
    return _shapes(found) == _shapes(expected) and all(
        torch.allclose(values, expected[name], rtol=LAST_BITS, atol=LAST_BITS) for name, values in found.items()
    )


def aggregate(request: AggregateRequest, silo: SiloContext) -> AggregateAnswer:
    """Check every update of a round, combine them as the run's strategy does, and sign what comes of it.

    Raises:
        UserError: a statement does not hold, an update is not what its silo signed, or too few silos are in the roster.
    """
    config = silo.config
    rule = RULES.get(config.run.strategy)
    if not config.replicated or rule is None:
        raise UserError(f"the run's strategy '{config.run.strategy}' is not aggregated at silos")
    replica = Replica(silo, request.run_token, request.keys, request.certificates)
    # Which weights these are, their id says; checked_base compares it.
    is_first = partial(_are_first_weights, request.base_arrays or Arrays(), request.spec, silo)
    terms = replica.terms(request.server_round, request.base, is_first)
    roster, models = [], []
    for envelope, arrays in zip(request.statements, request.each_update(), strict=True):
        line, model = checked_update(envelope, arrays, terms, replica.parties, config.exchange.max_silo_images)
        roster.append(line)
        models.append(model)
    drawn = _drawn(request.server_round, silo, list(replica.parties.silos))
    check_roster([line.silo for line in roster], request.server_round, silo, list(drawn))
    begins = not replica.certified_rounds
    base = checked_base(request) if begins or config.run.strategy in FROM_BASE else models[0]
    _check_layers(models, roster, base, drawn)
    state = replica.checked_state(transport.peek_tensors(request.state or Arrays()))
    combined, carried = rule(Updates(models, [line.images for line in roster], base, state), config.settings)
    if problem := next(filter(None, map(size_problem, combined.values())), ""):
        raise UserError(f"round {request.server_round}: the combined model {problem}")
    return replica.answer(request, terms, tuple(roster), combined, carried)


def checked_update(
    envelope: str, arrays: Arrays, terms: Terms, parties: Parties, most_images: int
) -> tuple[Contribution, Layers]:
    update, model = Update.read(envelope, parties.silos), transport.peek_tensors(arrays)
    silo = update.line.silo
    if update.terms != terms:
        raise StatementError(f"{silo}: its update is of another round, or of other weights than this round's")
    if content_id(model) != update.line.update:
        raise StatementError(f"{silo}: these are not the weights that it signed")
    if update.line.images > most_images:
        raise StatementError(f"{silo} claims {update.line.images} images: must be <= max-silo-images = {most_images}")
    if problem := next(filter(None, map(size_problem, model.values())), ""):
        raise StatementError(f"{silo}: a layer {problem}")
    return update.line, model


def checked_base(request: AggregateRequest) -> Layers:
    """Return what a round starts from, where the rule needs it or nothing is certified yet.

    Raises:
        UserError: it is not what the round's statements name.
    """
    base = transport.peek_tensors(request.base_arrays or Arrays())
    if content_id(base) != request.base:
        raise StatementError(f"round {request.server_round}: the weights that came are not those it starts from")
    return base


def _drawn(server_round: int, silo: SiloContext, known: list[str]) -> dict[str, tuple[str, ...]]:
    """Return who trains in a round, in the order of the key file, with the parts of the network that each reports."""
    settings, seed = silo.config.settings, silo.config.run.seed
    assert isinstance(settings, AveragingSettings)
    count = num_participants(len(known), settings.fraction_train, settings.min_train_nodes)
    drawn = participants(seed, server_round, len(known), count)
    method = settings.feddiffuse_method if isinstance(settings, FedDiffuseSettings) else "full"
    parts = reported_parts(method, seed, server_round, drawn)
    return {known[k]: parts[k] for k in drawn}


def check_roster(names: list[str], server_round: int, silo: SiloContext, drawn: list[str]) -> None:
    """Refuse a roster that the coordinator has chosen: silos of this round's draw, in order, and most of them."""
    config, settings = silo.config, silo.config.settings
    if names != [name for name in drawn if name in names]:
        raise StatementError(
            f"round {server_round}: the roster is not in the order of the key file, or names somebody who was not drawn"
        )
    replies = config.exchange.min_replies
    own = updates_needed(config.run.strategy, settings)
    least = max(len(drawn) // 2 + 1, own, 0 if replies == AUTO else min(replies, len(drawn)))
    if len(names) < least:
        raise StatementError(
            f"round {server_round}: a roster of {len(names)} silos, {least} of {len(drawn)} are needed"
        )


def _check_layers(
    models: Sequence[Layers],
    roster: Sequence[Contribution],
    base: Layers,
    drawn: Mapping[str, tuple[str, ...]],
) -> None:
    """Refuse an update of other layers than the base's, or than those of the parts that its silo is to report."""
    expected = _shapes(base)
    for model, line in zip(models, roster, strict=True):
        parts = drawn[line.silo]
        if _shapes(model) != {
            name: shape for name, shape in expected.items() if parts == PARTS or part_of(name) in parts
        }:
            raise StatementError(f"{line.silo}: its layers are not those that it was to train and report")


def _shapes(model: Layers) -> dict[str, tuple[tuple[int, ...], str, torch.dtype]]:
    return {name: (*shape_and_dtype(layer), layer.dtype) for name, layer in model.items()}
