"""The small table at the end of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsynth.text import visible
from fedsynth.units import column_names, show


def terminal_table(rows: Mapping[str, Any]) -> str:
    """Lay out results as plain text, numbers to the right.

    Args:
        rows: Label to value, or label to a mapping from column name to value; both kinds may be mixed.
    """
    cells = {label: value if isinstance(value, Mapping) else {"value": value} for label, value in rows.items()}
    columns = column_names(list(cells.values()))
    lines = [["", *columns]] if columns != ["value"] else []
    lines += [[label, *(show(row[name]) if name in row else "" for name in columns)] for label, row in cells.items()]
    lines = [[visible(text) for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [False, *(not any(isinstance(row.get(name), str) for row in cells.values()) for name in columns)]
    text = []
    for line in lines:
        padded = zip(line, widths, numeric, strict=True)
        text.append(
            "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in padded).rstrip()
        )
    return "\n".join(text)
