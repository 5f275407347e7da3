"""The public keys of all silos, and of aggregators beside them, as one text, which parties compare by its hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from fedsynth.privacy.sums.keys import PublicKeys
from fedsynth.privacy.sums.terms import SumError
from fedsynth.roles import AGGREGATOR
from fedsynth.text import printable, silo_name_problem


def keys_text(known: Mapping[str, PublicKeys], aggregators: Mapping[str, PublicKeys] | None = None) -> str:
    """Return names and keys in their order, as JSON in one canonical form.

    Args:
        known: the silos'.
        aggregators: of nodes that aggregate and are no silos.
    """
    rows = [[name, keys.text] for name, keys in known.items()]
    rows += [[name, keys.text, AGGREGATOR] for name, keys in (aggregators or {}).items()]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def keys_hash(text: str) -> str:
    """Return the SHA-256 of what :func:`keys_text` returned, as hexadecimal digits."""
    return sha256(text.encode()).hexdigest()


def keys_from_text(text: str) -> tuple[dict[str, PublicKeys], dict[str, PublicKeys]]:
    """Inverse of :func:`keys_text`: the silos' keys, and those of aggregators that are none.

    Raises:
        SumError: it is not that, a name is none that others could show, or two parties have one name or key.
    """
    silos: dict[str, PublicKeys] = {}
    aggregators: dict[str, PublicKeys] = {}
    try:
        rows = json.loads(text)
        for name, keys, *role in rows:
            (aggregators if role else silos)[name] = PublicKeys.from_text(keys)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SumError):
            raise
        raise SumError(f"no list of keys: {printable(error, 100)}") from error
    known = {**silos, **aggregators}
    if problem := next(filter(None, map(silo_name_problem, known)), ""):
        raise SumError(problem)
    signing = {keys.signatures for keys in known.values()}
    if len(known) < len(rows) or len(signing) < len(known) or keys_text(silos, aggregators) != text:
        raise SumError("a list of keys in which a party or a key stands twice")
    return silos, aggregators
