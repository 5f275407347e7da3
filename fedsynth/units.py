"""Numbers as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def human_bytes(count: float) -> str:
    """Return a byte count in decimal units, e.g. ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def show(value: Any) -> str:
    """Return a measured value for a table: three digits for fractions, thousands separators, ``-`` for nothing."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, Real):
        return show_setting(value)
    if isinstance(value, Integral) or 100 <= abs(float(value)) < 1e12:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def rounded_up(value: float) -> str:
    """Return three digits after the point at most, rounded up: of an ε, a smaller number would be a false claim."""
    rounded = f"{value:.3f}"
    if float(rounded) < value:
        rounded = f"{value + 5e-4:.3f}"
    return rounded.rstrip("0").rstrip(".")


def show_setting(value: Any) -> str:
    """Return a setting exactly: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all rows; a key that earlier rows lack comes after the one it follows in its row, or last."""
    names: list[str] = []
    for row in rows:
        index = len(names)
        for name in row:
            if name not in names:
                names.insert(index, name)
            index = names.index(name) + 1
    return names
