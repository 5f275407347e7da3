"""``ledger.json``: how often a silo has answered, in each run and in all; here it is read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from fedsynth.errors import UserError
from fedsynth.files import damage_named

LEDGER_FILE = "ledger.json"
"""Its name in a silo's state folder."""
LEDGER_FORMAT = 1

Counts = dict[str, float]


@dataclass
class Sums:
    """What was counted.

    Attributes:
        in_all: in all runs together.
        runs: by Flower's number of the run, in the order of their last change.
    """

    in_all: Counts = field(default_factory=dict)
    runs: dict[str, Counts] = field(default_factory=dict)


def read_ledger(path: Path) -> Sums:
    """Return what a ledger holds; nothing where there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    if not path.exists():
        return Sums()
    with damage_named(path, "lets all be asked again"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != LEDGER_FORMAT:
            raise UserError(
                f"'{path}' has format {content['format']!r}, this fedsynth reads {LEDGER_FORMAT}: install the version"
                " that wrote it"
            )
        sums = Sums(dict(content["in-all"]), {run: dict(counts) for run, counts in content["runs"].items()})
        for counts in (sums.in_all, *sums.runs.values()):
            if not all(isinstance(value, int | float) and value >= 0 for value in counts.values()):
                raise ValueError("a count is no number")
        return sums
