"""The heads of a replicated run on a ledger: sent after each round, and until all are there; no round waits for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from fedsynth.config.run import Replicas
from fedsynth.heads import Ledger, LedgerError

logger = logging.getLogger("fedsynth")

POLL = 0.1
"""Seconds between two looks for a block."""
LONGEST_WAIT = 60.0
"""Seconds that a run waits at its end until the last blocks hold its heads."""


class NotedHeads:
    """What a run has to write on its ledger. A ledger that is down costs a line in the log, and never a run.

    Args:
        ledger: where the heads go.

    Attributes:
        confirmed: rounds whose head the ledger holds.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._missing: dict[int, str] = {}
        self._sent: set[int] = set()
        self.confirmed: set[int] = set()

    def begin(self, heads: Iterable[tuple[int, str]]) -> None:
        """Start over with the heads of a run that continues; those that the ledger lacks are sent with the next."""
        self._missing, self._sent, self.confirmed = dict(heads), set(), set()

    def add(self, run_token: str, server_round: int, head: str) -> float:
        """Send a round's head, and what is missing; return the seconds that it took."""
        begun = time.monotonic()
        self._missing[server_round] = head
        self._catch_up(run_token)
        return time.monotonic() - begun

    def settle(self, run_token: str) -> str:
        """Wait until the ledger holds all heads, as long as it can be asked; return what there is to say of it."""
        deadline = time.monotonic() + LONGEST_WAIT
        while self._catch_up(run_token) and self._missing and time.monotonic() < deadline:
            time.sleep(POLL)
        total = len(self.confirmed | self._missing.keys())
        if self._missing:
            logger.warning(
                "ledger '%s' lacks the heads of rounds %s: resume the run when it is back, and they are written",
                self._ledger.url,
                ", ".join(map(str, sorted(self._missing))),
            )
        return f"{len(self.confirmed)} of {total} heads in contract {self._ledger.contract}"

    def _catch_up(self, run_token: str) -> bool:
        """Send every head that is missing and was not sent yet; return whether the ledger could be asked."""
        try:
            for server_round, head in sorted(self._missing.items()):
                found = self._ledger.head(run_token, server_round)
                if not found and server_round not in self._sent:
                    self._ledger.send(run_token, server_round, head)
                    self._sent.add(server_round)
                elif found:
                    self._compare(server_round, head, found)
        except LedgerError as error:
            logger.warning("ledger '%s': %s; what is missing is sent later", self._ledger.url, error)
            return False
        return True

    def _compare(self, server_round: int, head: str, found: str) -> None:
        del self._missing[server_round]
        if found == head:
            self.confirmed.add(server_round)
        else:
            logger.error("ledger '%s' holds another head of round %d: %s", self._ledger.url, server_round, found)


def check_ledger(replicas: Replicas) -> None:
    """Refuse a ledger on which no head could be written; one that cannot be reached now may be later.

    Raises:
        UserError: it is one, or the package web3 is not installed.
    """
    if not replicas.ledger_url:
        return
    try:
        ledger_of(replicas).check()
    except LedgerError as error:
        logger.warning("ledger '%s': %s; the run goes on, and heads are sent later", replicas.ledger_url, error)


def ledger_of(replicas: Replicas) -> Ledger:
    """Return the ledger that the configuration names.

    Raises:
        UserError: as :class:`Ledger`.
    """
    return Ledger(replicas.ledger_url, replicas.ledger_contract, replicas.ledger_key_file)
