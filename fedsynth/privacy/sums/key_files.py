"""Files of the keys of secure sums: a silo's own, and ``silo-keys.json``, by which every silo knows the others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsynth.errors import UserError
from fedsynth.files import atomic_file, json_text, read_text, write_json
from fedsynth.privacy.sums.keys import PublicKeys, SecretKeys
from fedsynth.privacy.sums.terms import SumError
from fedsynth.text import printable, silo_name_problem

SECRET_FILE, PUBLIC_FILE = "sums.key", "sums.pub"
"""In a silo's folder: its own keys."""
KNOWN_FILE = "silo-keys.json"
"""Public keys of all silos, and of nodes that aggregate, the same file at every one of them."""
FORMAT = 1


def write_secret(path: Path, keys: SecretKeys) -> None:
    """Write secret keys so that their user alone can read them.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        # Its final permissions from the first moment on.
        private = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(private, "w", encoding="ascii") as file:
            file.write(f"{keys.secret.hex()}\n")


def read_secret(path: Path) -> SecretKeys:
    """Read secret keys.

    Raises:
        UserError: they cannot be read, or others can read them.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f"'{path}' can be read by others: chmod 600 '{path}'")
        return SecretKeys(bytes.fromhex(read_text(path).strip()))
    except OSError as error:
        raise UserError(f"'{path}': {error.strerror}; 'fedsynth silo init' makes it") from None
    except ValueError as error:
        if isinstance(error, UserError) and not isinstance(error, SumError):
            raise
        raise UserError(f"'{path}' holds no keys of secure sums: put back a copy of it") from None


def read_public(path: Path) -> PublicKeys:
    """Read the public keys of one silo.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return PublicKeys.from_text(read_text(path).strip())
    except OSError as error:
        raise UserError(f"'{path}': {error.strerror}; 'fedsynth silo init' makes it at the silo") from None
    except ValueError as error:
        raise UserError(f"'{path}': {error}") from None


def read_known(path: Path) -> dict[str, PublicKeys]:
    """Read the silos' keys in :data:`KNOWN_FILE`.

    Raises:
        UserError: it cannot be read, or is none.
    """
    return read_parties(path)[0]


def read_parties(path: Path) -> tuple[dict[str, PublicKeys], dict[str, PublicKeys]]:
    """Read the keys in :data:`KNOWN_FILE`: the silos', and those of aggregators that are none.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        content = json.loads(read_text(path))
        if content["format"] != FORMAT:
            raise UserError(f"'{path}' has format {content['format']!r}, this fedsynth reads {FORMAT}")
        silos, aggregators = (
            {str(name): PublicKeys.from_text(text) for name, text in section.items()}
            for section in (content["silos"], content.get("aggregators", {}))
        )
    except OSError as error:
        raise UserError(f"'{path}': {error.strerror}; 'fedsynth link keys' makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not what 'fedsynth link keys' writes: {printable(error, 200)}") from None
    if problem := next(filter(None, map(silo_name_problem, [*silos, *aggregators])), ""):
        raise UserError(f"'{path}': {problem}")
    return silos, aggregators


def write_known(
    path: Path, known: Mapping[str, PublicKeys], aggregators: Mapping[str, PublicKeys] | None = None
) -> None:
    """Write :data:`KNOWN_FILE`, in the order given: that in which a server counts its silos.

    Args:
        path: of the file.
        known: the silos' keys.
        aggregators: those of nodes that aggregate and are no silos.

    Raises:
        UserError: two parties have one name or one key.
        OSError: it cannot be written.
    """
    names: dict[PublicKeys, str] = {}
    for name, keys in (*known.items(), *(aggregators or {}).items()):
        if (other := names.setdefault(keys, name)) != name:
            raise UserError(f"'{other}' and '{name}' have the same keys: each silo has its own")
    if both := known.keys() & (aggregators or {}).keys():
        raise UserError(f"'{min(both)}' is a silo and an aggregator: they need two names, and two keys")
    write_json(path, _content(known, aggregators))


def known_bytes(known: Mapping[str, PublicKeys], aggregators: Mapping[str, PublicKeys] | None = None) -> bytes:
    """Return what :func:`write_known` writes."""
    return f"{json_text(_content(known, aggregators), indent=2)}\n".encode()


def _content(known: Mapping[str, PublicKeys], aggregators: Mapping[str, PublicKeys] | None) -> dict[str, Any]:
    sections = {"silos": known, **({"aggregators": aggregators} if aggregators else {})}
    texts = {word: {name: keys.text for name, keys in section.items()} for word, section in sections.items()}
    return {"format": FORMAT, **texts}


def known_others(path: Path, name: str, own: PublicKeys) -> dict[str, PublicKeys]:
    """Return the other silos' public keys, from a silo's own copy of the file.

    Raises:
        UserError: it cannot be read, or the silo itself stands there under other keys.
    """
    known = read_known(path)
    if known.pop(name, own) != own:
        raise UserError(f"'{path}' has other keys of '{printable(name)}' than this silo: have the file made anew")
    return known
