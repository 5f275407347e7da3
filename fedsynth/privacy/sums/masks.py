"""Masks, sealed shares, and shares of a seed: the primitives of a secure sum."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedsynth.privacy.sums.terms import SumError

SHARED_BYTES = 16
"""Length of a seed that is shared out, and of a share: pycryptodome's field is GF(2¹²⁸)."""
_NONCE_BYTES = 12


def mask(seed: bytes, size: int) -> NDArray[np.uint32]:
    """Return ``size`` numbers, uniform on 0 to 2³² - 1, that follow from a seed: AES-256-CTR under a key of its own.

    Args:
        seed: secret, for one mask only; :data:`SHARED_BYTES` or 32 bytes.
        size: how many numbers.
    """
    key = HKDF(SHA256(), 32, salt=None, info=b"fedsynth secure sum 1 mask").derive(seed)
    # The counter starts at zero: no two masks have the same key.
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), "<u4")


def fingerprint_of(seed: bytes) -> bytes:
    """Return 32 bytes by which a seed is recognised and from which it cannot be found."""
    return sha256(b"fedsynth secure sum 1 seed" + seed).digest()


def new_seed() -> bytes:
    """Draw a seed that can be shared out."""
    return secrets.token_bytes(SHARED_BYTES)


def share(seed: bytes, names: Sequence[str], needed: int) -> dict[str, bytes]:
    """Share a seed out (Shamir 1979): ``needed`` of the shares give it back, fewer say nothing.

    Args:
        seed: :data:`SHARED_BYTES` bytes.
        names: who gets one each; their order counts when shares are combined.
        needed: 2 to ``len(names)``.
    """
    shares = Shamir.split(needed, len(names), seed, ssss=False)
    return {name: value for name, (_, value) in zip(names, shares, strict=True)}


def combine(shares: Mapping[str, bytes], names: Sequence[str], needed: int) -> bytes:
    """Return the seed of :func:`share`; another value where a share was changed.

    Args:
        shares: ``needed`` or more, by name.
        names, needed: as for :func:`share`.

    Raises:
        SumError: fewer shares.
    """
    # The library wants exactly as many as are needed.
    some = [(number, shares[name]) for number, name in enumerate(names, 1) if name in shares][:needed]
    if len(some) < needed:
        raise SumError(f"{len(some)} shares of a seed, {needed} are needed")
    return bytes(Shamir.combine(some, ssss=False))


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypt and authenticate with AES-256-GCM."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return what :func:`seal` sealed; None if it was changed or the key is another."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        return None
