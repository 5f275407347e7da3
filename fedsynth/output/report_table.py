"""A table of the report that only some runs have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsynth.units import column_names


@dataclass(frozen=True, eq=False)
class ReportTable:
    """What a strategy found on its way, for a part of the page of its own; all text is plain text.

    Attributes:
        heading: Of that part.
        explanation: What the reader sees, in sentences.
        rows: Name -> column -> value; None is shown as none.
    """

    heading: str
    explanation: str
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return column_names(list(self.rows.values()))
