"""Whose a silo's name is: a link remembers by which key a name was used first."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsynth.errors import UserError
from fedsynth.files import write_json
from fedsynth.locks import locked

VARIABLE = "FEDSYNTH_SILO_NAMES"
"""Environment variable by which a link tells the ServerApps that it starts where it remembers names."""

_WAIT = 30.0
"""Seconds to wait for another run that notes a name."""


@dataclass(frozen=True)
class Holder:
    """Who goes by a name.

    Attributes:
        key: fingerprint of the public key, as ``ssh-keygen -l`` prints it.
        node_id: the key's node at the SuperLink; 0 where it is not known.
    """

    key: str
    node_id: int = 0


class NameTakenError(UserError):
    """A name belongs to another key."""


class SiloNames:
    """The names of a link's silos, in a JSON file: name -> key.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_link(cls) -> SiloNames | None:
        """Return the memory of the link that has started this process; None where none has."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path)) if path else None

    def read(self) -> dict[str, Holder]:
        """Return who holds which name.

        Raises:
            UserError: the file is damaged.
        """
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: Holder(str(row["key"]), int(row["node_id"])) for name, row in rows.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"'{self.path}' cannot be read ({error}): restore it; without it every name is free for its next user"
            ) from error

    def bind(self, name: str, holder: Holder, replace: bool = False) -> Holder | None:
        """Remember that ``holder`` goes by ``name``.

        Args:
            name: of the silo.
            holder: its key and node.
            replace: whether the name may be another key's until now.

        Returns:
            Who has lost the name.

        Raises:
            NameTakenError: it belongs to another key.
            UserError: the file cannot be read or written.
        """
        with locked(self.path.with_suffix(".lock"), f"'{self.path}'", _WAIT):
            names = self.read()
            before = names.get(name)
            if before == holder:
                return None
            if before is not None and before.key != holder.key and not replace:
                raise NameTakenError(f"the name '{name}' belongs to the key {before.key}, and this one is {holder.key}")
            self._write({**names, name: holder})
        return before if before is not None and before.key != holder.key else None

    def _write(self, names: Mapping[str, Holder]) -> None:
        rows: dict[str, Any] = {name: asdict(names[name]) for name in sorted(names)}
        try:
            write_json(self.path, rows)
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be written: {error.strerror}") from error


def key_fingerprint(public: bytes) -> str:
    """Return the fingerprint of a public key, OpenSSH or PEM, as ``ssh-keygen -l`` prints it.

    Raises:
        ValueError: it is no key of a NIST curve.
    """
    ssh = public.startswith(b"ecdsa-")
    key = serialization.load_ssh_public_key(public) if ssh else serialization.load_pem_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("no public key of a NIST curve")
    encoded = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1]
    digest = hashlib.sha256(base64.b64decode(encoded)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
