"""Parties of a replicated run, with real keys, and statements as they make them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from fedsynth.privacy.sums import SecretKeys
from fedsynth.replicas.certificates import Ballot, Parties
from fedsynth.replicas.quorum import Rule
from fedsynth.replicas.statements import START, Aggregate, Contribution, Terms, Update

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing: the state of a rule without one."""


def an_id(word: str) -> str:
    """64 hexadecimal digits that begin with those of a word."""
    return word.encode().hex().ljust(64, "0")


@dataclass
class Hands:
    """Silos that aggregate."""

    m: int = 4
    rule: Rule = "byzantine"
    secrets: dict[str, SecretKeys] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k in range(self.m):
            self.secrets.setdefault(f"silo-{k}", SecretKeys.generate())

    @cached_property
    def parties(self) -> Parties:
        keys = {name: secret.public.signatures for name, secret in self.secrets.items()}
        return Parties("run-1", an_id("keys"), keys, keys, self.rule)

    def terms(self, server_round: int = 1, previous: str = START, base: str = "base") -> Terms:
        return Terms("run-1", server_round, an_id("keys"), previous, an_id(base))

    def roster(self, count: int | None = None) -> tuple[Contribution, ...]:
        names = list(self.secrets)[:count]
        return tuple(Contribution(name, an_id(f"update {k}"), 10 + k) for k, name in enumerate(names))

    def aggregate(self, terms: Terms, result: str = "result") -> Aggregate:
        return Aggregate(terms, "fedavg", {"num-rounds": 2}, self.roster(), an_id(result), NOTHING)

    def signed(self, name: str, statement: Aggregate | Update) -> str:
        """The envelope of a statement with a silo's signature."""
        key = self.secrets[name]
        if isinstance(statement, Update):
            return statement.signed(key, key.public.signatures)
        from fedsynth.replicas.envelopes import sign

        return sign(statement.payload, key, key.public.signatures)

    def ballot(self, terms: Terms) -> Ballot:
        return Ballot(self.parties, terms, self.roster())

    def certified(self, statement: Aggregate, signers: int | None = None) -> str:
        """A certificate, or what has too few signatures to be one."""
        from fedsynth.replicas.envelopes import merged

        names = list(self.secrets)[: self.parties.quorum if signers is None else signers]
        return merged(self.signed(name, statement) for name in names)

    def other_run(self) -> Parties:
        return replace(self.parties, run="run-2")
