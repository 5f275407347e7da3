"""``audit.jsonl``: what a silo was asked and what it answered, one line per message, each chained to the one before.

See :mod:`fedsynth.chain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from fedsynth.chain import ChainReport, read_chain
from fedsynth.text import printable

AUDIT_FILE = "audit.jsonl"
"""Its name in a silo's state folder."""

Outcome = Literal["answered", "refused", "failed", "cut-off"]
"""``cut-off`` says that a crash tore the line before; the others, what became of a message."""

FEWEST = "least-holders"
"""Of what is asked, the one that is no amount: the fewest holders that the server stated of a class."""

_MOST_REASONS = 20


@dataclass
class RunTotals:
    """What one run asked, and what became of it.

    Attributes:
        first: time of its first message.
        last: time of its last message.
        answered: messages that were answered, by kind.
        asked: what they cost, such as samples, by word: sums, and of ``FEWEST`` the smallest.
        refused: messages that were refused, by kind and the policy's line or the reason.
        failed: messages that failed, by kind and reason.
        bytes_in: of all its messages.
        bytes_out: of the answers.
        seconds: of work.
        strategy: as its messages name it.
    """

    first: str = ""
    last: str = ""
    answered: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    strategy: str = ""

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count one message."""
        self.last = printable(entry.get("time", ""), 40)
        self.first = self.first or self.last
        self.strategy = printable(entry.get("strategy", ""), 64) or self.strategy
        self.bytes_in += _whole(entry.get("bytes-in"))
        self.bytes_out += _whole(entry.get("bytes-out"))
        seconds = entry.get("seconds")
        self.seconds += seconds if isinstance(seconds, int | float) and seconds >= 0 else 0.0
        if entry.get("outcome") == "answered":
            self.answered[printable(entry.get("message", ""), 40)] += 1
            asked = entry.get("asked")
            for word, amount in asked.items() if isinstance(asked, dict) else ():
                self._count(printable(word, 40), _whole(amount))
            return
        reasons = self.refused if entry.get("outcome") == "refused" else self.failed
        kind = printable(entry.get("message", ""), 40).removeprefix("query.")
        why = f"{kind}: {printable(entry.get('line') or entry.get('why', ''), 200)}"
        reasons[why if why in reasons or len(reasons) < _MOST_REASONS else "other reasons"] += 1

    def _count(self, word: str, amount: int) -> None:
        if word == FEWEST:
            self.asked[word] = min(amount, self.asked.get(word, amount))
        else:
            self.asked[word] += amount


@dataclass
class AuditReport(ChainReport):
    """What an audit says, and whether its chain holds.

    Attributes:
        runs: totals by run, in the order of their first message.
        last: the entry of the last message; empty where there was none.
    """

    runs: dict[str, RunTotals] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)


def read_audit(file: IO[bytes], noted: str = "") -> AuditReport:
    """Read an audit line by line, check its chain and add up what each run asked.

    Args:
        file: the audit, of any length: one line at a time is in memory.
        noted: hash of a line that was noted earlier; empty: none.
    """
    report = AuditReport()

    def take(entry: Mapping[str, Any]) -> None:
        report.last = entry
        report.runs.setdefault(printable(entry.get("run", ""), 40), RunTotals()).add(entry)

    read_chain(file, report, take, noted)
    return report


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
