"""Keys and certificates of a deployment: who the SuperLink is, and who the silos are."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsynth.errors import UserError
from fedsynth.files import atomic_file

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
"""Validity. The authority's is long: a new one has to reach every silo, a new server certificate none."""

_CLOCK_SKEW = timedelta(days=1)
"""Certificates are valid from so long ago, for machines whose clocks are behind."""


def make_authority(certificate: Path, key: Path) -> None:
    """Make a certificate authority that signs for ten years: PEM files, the key readable by its owner alone."""
    secret = ec.generate_private_key(ec.SECP384R1())
    name = _name("fedsynth link authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = (
        _builder(name, name, secret.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
    )
    _write_pair(builder.sign(secret, hashes.SHA384()), secret, certificate, key)


def make_server_certificate(
    hosts: Sequence[str], authority: Path, authority_key: Path, certificate: Path, key: Path
) -> None:
    """Make a server certificate for these host names and IP addresses, signed by the authority in its PEM files.

    Raises:
        UserError: a host is neither.
    """
    names = [alternative_name(host) for host in hosts]
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    secret = ec.generate_private_key(ec.SECP384R1())
    builder = (
        _builder(_name("fedsynth link"), issuer.subject, secret.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    _write_pair(builder.sign(signer, hashes.SHA384()), secret, certificate, key)


def alternative_name(host: str) -> x509.GeneralName:
    """Return the name under which a certificate vouches for ``host``, a host name or an IP address.

    Raises:
        UserError: ``host`` is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not host.isascii() or not all(_is_label(label) for label in labels):
        raise UserError(f"host '{host}': must be a host name such as link.example.org, or an IP address, without port")
    check_numbers(host)
    return x509.DNSName(host)


def check_numbers(host: str) -> None:
    """Refuse a mistyped IP address: most programs would read 010.0.0.5 as 8.0.0.5, or ask for a host of that name.

    Raises:
        UserError: ``host`` ends like an address and is none; a top-level domain is never all digits (RFC 3696, 2).
    """
    labels = host.split(".")
    if not labels[-1].isdigit():
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        plain = ".".join(str(int(label)) if label.isdigit() else label for label in labels)
        hint = f" without leading zeros: {plain}" if plain != host else ""
        raise UserError(
            f"host '{host}': is no host name, and an IP address has four numbers of 0 to 255{hint}"
        ) from None


def make_silo_key(key: Path, public: Path) -> None:
    """Make the key pair by which a SuperLink knows a silo: OpenSSH files, P-384, the key for its owner alone."""
    secret = ec.generate_private_key(ec.SECP384R1())
    encoding, public_format = serialization.Encoding, serialization.PublicFormat.OpenSSH
    no_password = serialization.NoEncryption()
    _write_secret(key, secret.private_bytes(encoding.PEM, serialization.PrivateFormat.OpenSSH, no_password))
    _write(public, secret.public_key().public_bytes(encoding.OpenSSH, public_format) + b"\n")


def check_authority(path: Path) -> None:
    """Refuse a file that is no certificate of an authority that is valid now, above all ``server.crt``.

    Raises:
        UserError: says which.
    """
    check_certificate(path)
    if not _is_authority(x509.load_pem_x509_certificate(path.read_bytes())):
        raise UserError(
            f"certificate '{path}' is a server's (server.crt?) and vouches for nobody else: give the ca.crt that the"
            " operator sent"
        )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        # Certificates of version 1 cannot say it; one that is signed by itself is its own authority.
        return certificate.issuer == certificate.subject


def check_certificate(path: Path) -> None:
    """Refuse a file that is no certificate, or one that is not valid now.

    Raises:
        UserError: says which, with the clock of this machine.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise UserError(f"certificate '{path}': {error.strerror}; give the ca.crt that the operator sent") from None
    except ValueError:
        raise UserError(f"certificate '{path}' is no PEM certificate: give the ca.crt that the operator sent") from None
    now, first, last = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise UserError(
            f"certificate '{path}' is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and this machine's clock says"
            f" {now:%Y-%m-%d %H:%M} UTC: set the clock, or ask the operator for a new one ('fedsynth link init')"
        )


def fingerprint(path: Path) -> str:
    """Return the SHA-256 fingerprint of a certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()


def check_private_key(path: Path) -> None:
    """Refuse a file that is no key of a silo, or that others may read.

    Raises:
        UserError: says which, and what to do.
    """
    try:
        secret = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UserError(f"key '{path}': {error.strerror}; 'fedsynth silo init' makes one") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"key '{path}' is no OpenSSH key without password: 'fedsynth silo init' makes one") from None
    if not isinstance(secret, ec.EllipticCurvePrivateKey):
        raise UserError(f"key '{path}': Flower takes keys of NIST curves only; 'fedsynth silo init' makes one")
    if path.stat().st_mode & 0o077:
        raise UserError(f"key '{path}' can be read by others: chmod 600 '{path}'")


def check_public_key(path: Path) -> None:
    """Refuse a file that is no public key of a silo.

    Raises:
        UserError: says why, above all when it is the private one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"public key '{path}': {error.strerror}; give the .pub file that the silo sent") from None
    if b"PRIVATE KEY" in content:
        raise UserError(f"'{path}' is a private key, which must never leave its silo: ask for its .pub, and a new pair")
    try:
        known = isinstance(serialization.load_ssh_public_key(content), ec.EllipticCurvePublicKey)
    except (ValueError, UnsupportedAlgorithm):
        known = False
    if not known:
        raise UserError(f"'{path}' is no public key of a silo: give the .pub file that 'fedsynth silo init' made")


def _is_label(label: str) -> bool:
    return 0 < len(label) < 64 and label.replace("-", "").isalnum() and not label.startswith("-")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _write_pair(signed: x509.Certificate, secret: ec.EllipticCurvePrivateKey, certificate: Path, key: Path) -> None:
    encoding, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write_secret(key, secret.private_bytes(encoding, traditional, serialization.NoEncryption()))
    _write(certificate, signed.public_bytes(encoding))


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def _write_secret(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary, os.fdopen(_create_private(temporary), "wb") as file:
        file.write(content)


def _create_private(path: Path) -> int:
    """Create a file that has its final permissions from the first moment on."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
