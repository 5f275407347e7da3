"""Signed statements: DSSE envelopes (Dead Simple Signing Envelope 1.0) around in-toto Statements v1, as JSON text.

Keys are Ed25519; a key's id is its 32 bytes in hexadecimal digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature, Signer, SSlibKey

from fedsynth.errors import UserError
from fedsynth.text import printable

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
LONGEST_ENVELOPE = 48 * 1024
"""Characters of an envelope: a line of an audit log must hold it."""


class StatementError(UserError):
    """A statement, certificate or chain of them that does not hold; says why."""


class Signs(Protocol):
    """A party's secret Ed25519 key."""

    def sign(self, text: bytes) -> bytes:
        """Return the signature under a text, 64 bytes."""


@dataclass(frozen=True)
class Signed:
    """What an envelope says.

    Attributes:
        payload: the statement's bytes, which were signed.
        predicate: what the statement claims.
        subject: content ids by name.
        signers: names of those whose signatures hold, sorted.
    """

    payload: bytes
    predicate: dict[str, Any]
    subject: dict[str, str]
    signers: tuple[str, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the payload, by which later statements name it; who signed it makes no difference."""
        return sha256(self.payload).hexdigest()


def statement(kind: str, subject: Mapping[str, str], predicate: Mapping[str, Any]) -> bytes:
    """Return an in-toto Statement v1 in one canonical form, so that equal statements are equal bytes.

    Args:
        kind: what is stated, such as ``update``.
        subject: content ids (SHA-256) by name.
        predicate: what is claimed; JSON without fractions.
    """
    named = [{"name": name, "digest": {"sha256": subject[name]}} for name in sorted(subject)]
    whole = {
        "_type": STATEMENT_TYPE,
        "subject": named,
        "predicateType": f"urn:fedsynth:{kind}:1",
        "predicate": dict(predicate),
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sign(payload: bytes, key: Signs, public: bytes) -> str:
    """Return the envelope of a payload with one signature.

    Args:
        payload: from :func:`statement`.
        key: who signs.
        public: its Ed25519 key, 32 bytes.
    """
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(_Signer(key, public))
    return _text(envelope)


def merged(envelopes: Iterable[str]) -> str:
    """Return one envelope with the signatures of several around the same payload.

    Raises:
        StatementError: there is none, or their payloads differ.
    """
    first, *others = [_envelope(text) for text in envelopes]
    for other in others:
        if other.payload != first.payload:
            raise StatementError("envelopes around different statements")
        first.signatures |= other.signatures
    first.signatures = {keyid: first.signatures[keyid] for keyid in sorted(first.signatures)}
    return _text(first)


def opened(envelope: str, kind: str, keys: Mapping[str, bytes], threshold: int = 1) -> Signed:
    """Verify an envelope, and return what it says.

    Args:
        envelope: JSON text from anywhere.
        kind: what it must state.
        keys: Ed25519 keys of those whose signatures count, by name.
        threshold: how many of them must have signed.

    Raises:
        StatementError: it is no such envelope, or too few signatures hold.
    """
    read = _envelope(envelope)
    if read.payload_type != PAYLOAD_TYPE:
        raise StatementError(f"payload type '{printable(read.payload_type, 60)}' is not {PAYLOAD_TYPE}")
    known = {public.hex(): name for name, public in keys.items()}
    if strangers := sorted(set(read.signatures) - set(known)):
        raise StatementError(f"signed by a key that is not in the key file: {printable(strangers[0], 20)}")
    signers = tuple(sorted(known[keyid] for keyid in read.signatures))
    if len(signers) < threshold or not signers:
        raise StatementError(f"{len(signers)} signatures, {threshold} needed")
    public_keys: list[Key] = [SSlibKey(keyid, "ed25519", "ed25519", {"public": keyid}) for keyid in known]
    try:
        # Not the threshold alone: a signature that does not hold must not stand beside those that do.
        read.verify(public_keys, len(signers))
    except (VerificationError, ValueError) as error:
        raise StatementError("a signature does not fit: text or signature is altered") from error
    predicate, subject = _said(read.payload, kind)
    return Signed(read.payload, predicate, subject, signers)


class _Signer(Signer):
    def __init__(self, key: Signs, public: bytes) -> None:
        self._key, self._keyid = key, public.hex()

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Signer:
        raise NotImplementedError

    @property
    def public_key(self) -> Key:
        return SSlibKey(self._keyid, "ed25519", "ed25519", {"public": self._keyid})

    def sign(self, payload: bytes) -> Signature:
        return Signature(self._keyid, self._key.sign(payload).hex())


def _text(envelope: Envelope) -> str:
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":"))


def _envelope(text: str) -> Envelope:
    """Read an envelope; one that is not in the form in which it is written is refused, so that no byte is loose."""
    if len(text) > LONGEST_ENVELOPE:
        raise StatementError(f"an envelope of {len(text):,} characters: must be <= {LONGEST_ENVELOPE:,}")
    try:
        envelope = Envelope.from_dict(json.loads(text))
        if _text(envelope) != text:
            raise StatementError("an envelope in another form than it is written in")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, StatementError):
            raise
        raise StatementError(f"no DSSE envelope: {printable(error, 100)}") from error
    return envelope


def _said(payload: bytes, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        whole = json.loads(payload)
        subject = {str(one["name"]): str(one["digest"]["sha256"]) for one in whole["subject"]}
        predicate = dict(whole["predicate"])
        stated = str(whole["predicateType"]).removeprefix("urn:fedsynth:").removesuffix(":1")
        if stated != kind or statement(kind, subject, predicate) != payload:
            raise StatementError(f"no statement of kind '{kind}', but '{printable(stated, 40)}'")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, StatementError):
            raise
        raise StatementError(f"no in-toto statement: {printable(error, 100)}") from error
    return predicate, subject
