"""A silo's identity in secure sums: an X25519 key for masks and an Ed25519 key for signatures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsynth.privacy.sums.terms import SumError

KEY_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class PublicKeys:
    """What others know of a silo.

    Attributes:
        masks: X25519, 32 bytes.
        signatures: Ed25519, 32 bytes.
    """

    masks: bytes
    signatures: bytes

    @classmethod
    def from_text(cls, text: object) -> Self:
        """Read what :attr:`text` wrote.

        Raises:
            SumError: it is not that.
        """
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise SumError(
                "a silo's public keys are 128 hexadecimal digits, as its sums.pub holds them (silo.pub is another key)"
            )
        return cls(*(bytes.fromhex(half) for half in (text[:64], text[64:])))

    @property
    def text(self) -> str:
        """Both keys as 128 hexadecimal digits."""
        return (self.masks + self.signatures).hex()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both, as hexadecimal digits: what people compare."""
        return sha256(self.masks + self.signatures).hexdigest()

    def has_signed(self, signature: bytes, text: bytes) -> bool:
        """Return whether a signature under ``text`` is this silo's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signatures).verify(signature, text)
        except InvalidSignature:
            return False
        return True


class SecretKeys:
    """What a silo alone knows.

    Args:
        secret: 64 bytes, the two private keys.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 2 * KEY_BYTES:
            raise SumError(f"secret keys of {len(secret)} bytes: must be {2 * KEY_BYTES}")
        self._masks = X25519PrivateKey.from_private_bytes(secret[:KEY_BYTES])
        self._signatures = Ed25519PrivateKey.from_private_bytes(secret[KEY_BYTES:])
        self._agreed: dict[bytes, bytes] = {}

    @classmethod
    def generate(cls) -> Self:
        """Draw new keys from the operating system's randomness."""
        halves = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        return cls(b"".join(half.private_bytes_raw() for half in halves))

    @property
    def secret(self) -> bytes:
        """The 64 bytes, to be kept in a file that nobody else reads."""
        return self._masks.private_bytes_raw() + self._signatures.private_bytes_raw()

    @cached_property
    def public(self) -> PublicKeys:
        """What others may know."""
        halves = self._masks.public_key(), self._signatures.public_key()
        return PublicKeys(*(half.public_bytes_raw() for half in halves))

    def sign(self, text: bytes) -> bytes:
        """Return the signature under a text, 64 bytes."""
        return self._signatures.sign(text)

    def derive(self, other: PublicKeys, purpose: str, *context: str) -> bytes:
        """Return the key of 32 bytes that these two silos share for one purpose, and in one context.

        HKDF-SHA256 (RFC 5869) of the X25519 secret (RFC 7748); the other silo derives the same.

        Raises:
            SumError: the other's key is one with which every secret is zero.
        """
        if (agreed := self._agreed.get(other.masks)) is None:
            try:
                agreed = self._masks.exchange(X25519PublicKey.from_public_bytes(other.masks))
            except ValueError:
                raise SumError("a public key with which no secret can be agreed on") from None
            self._agreed[other.masks] = agreed
        both = sorted([self.public.text, other.text])
        info = json.dumps(["fedsynth secure sum 1", purpose, *both, *context]).encode()
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(agreed)
