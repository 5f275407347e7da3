"""What a run sends to its ledger when; the ledger is a dictionary that may be down, or keep blocks back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fedsynth.heads import LedgerError
from strategies.conversation.noted_heads import NotedHeads


@dataclass
class Chain:
    url: str = "http://127.0.0.1:8545"
    contract: str = "0xa1"
    down: bool = False
    late: bool = False
    held: dict[int, str] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)

    def head(self, run_token: str, server_round: int) -> str:
        if self.down:
            raise LedgerError("it cannot be reached")
        return self.held.get(server_round, "")

    def send(self, run_token: str, server_round: int, head: str) -> None:
        self.sent.append(server_round)
        if not self.late:
            self.held[server_round] = head


def test_what_a_ledger_missed_is_sent_once_it_is_back_and_nothing_twice(caplog: pytest.LogCaptureFixture) -> None:
    chain: Any = Chain()
    noted = NotedHeads(chain)
    noted.add("run", 1, "a1")
    chain.down = True
    for number in (2, 3):
        noted.add("run", number, f"a{number}")
    assert caplog.text.count("it cannot be reached; what is missing is sent later") == 2
    assert noted.settle("run") == "0 of 3 heads in contract 0xa1"
    assert "lacks the heads of rounds 1, 2, 3: resume the run" in caplog.text
    chain.down = False
    noted.add("run", 4, "a4")
    assert noted.settle("run") == "4 of 4 heads in contract 0xa1"
    assert chain.sent == [1, 2, 3, 4]
    # A run that continues asks what is there, and sends the rest.
    del chain.held[4]
    again = NotedHeads(chain)
    again.begin([(1, "a1"), (2, "false"), (4, "a4")])
    assert again.settle("run") == "2 of 2 heads in contract 0xa1"
    assert chain.sent == [1, 2, 3, 4, 4]
    assert "holds another head of round 2: a2" in caplog.text


def test_a_run_waits_for_the_last_block_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    chain: Any = Chain(late=True)
    noted = NotedHeads(chain)
    noted.add("run", 1, "a1")
    looks: list[float] = []

    def block(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            chain.held[1] = "a1"

    monkeypatch.setattr("strategies.conversation.noted_heads.time.sleep", block)
    assert noted.settle("run") == "1 of 1 heads in contract 0xa1"
    assert (len(looks), chain.sent) == (3, [1])
