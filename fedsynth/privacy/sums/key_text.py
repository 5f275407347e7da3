"""The public keys of all silos as one text, which parties compare by its hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from fedsynth.privacy.sums.keys import PublicKeys
from fedsynth.privacy.sums.terms import SumError
from fedsynth.text import printable, silo_name_problem


def keys_text(known: Mapping[str, PublicKeys]) -> str:
    """Return names and keys in their order, as JSON in one canonical form."""
    return json.dumps([[name, keys.text] for name, keys in known.items()], separators=(",", ":"), ensure_ascii=False)


def keys_hash(text: str) -> str:
    """Return the SHA-256 of what :func:`keys_text` returned, as hexadecimal digits."""
    return sha256(text.encode()).hexdigest()


def keys_from_text(text: str) -> dict[str, PublicKeys]:
    """Inverse of :func:`keys_text`.

    Raises:
        SumError: it is not that, a name is none that others could show, or two silos have one key.
    """
    try:
        rows = json.loads(text)
        known = {name: PublicKeys.from_text(keys) for name, keys in rows}
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SumError):
            raise
        raise SumError(f"no list of keys: {printable(error, 100)}") from error
    if problem := next(filter(None, map(silo_name_problem, known)), ""):
        raise SumError(problem)
    signing = {keys.signatures for keys in known.values()}
    if len(known) < len(rows) or len(signing) < len(known) or keys_text(known) != text:
        raise SumError("a list of keys in which a silo or a key stands twice")
    return known
