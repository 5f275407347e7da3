from __future__ import annotations

import shutil
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import fedsynth.cli.deployment.certificates as certificates
from fedsynth.cli.deployment.certificates import (
    alternative_name,
    check_authority,
    check_certificate,
    check_private_key,
    check_public_key,
    make_authority,
    make_server_certificate,
    make_silo_key,
)
from fedsynth.errors import UserError

HOSTS = ("link.example.org", "localhost", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, the server it vouches for, and another authority."""
    path = tmp_path_factory.mktemp("link")
    make_authority(path / "ca.crt", path / "ca.key")
    make_authority(path / "other.crt", path / "other.key")
    make_server_certificate(HOSTS, *(path / name for name in ("ca.crt", "ca.key", "server.crt", "server.key")))
    make_silo_key(path / "silo.key", path / "silo.pub")
    return path


def shake_hands(folder: Path, authority: str, host: str) -> None:
    """A TLS handshake in memory, by OpenSSL: raises what a client would meet."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "server.crt", folder / "server.key")
    client_side = ssl.create_default_context(cafile=str(folder / authority))
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(pipes[0], pipes[1], server_hostname=host)
    server = server_side.wrap_bio(pipes[1], pipes[0], server_side=True)
    for _ in range(6):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.getpeercert()


def test_the_server_is_reached_under_its_names_by_those_who_trust_its_authority(folder: Path) -> None:
    for host in HOSTS:
        shake_hands(folder, "ca.crt", host)
    for host in ("other.example.org", "127.0.0.2"):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
            shake_hands(folder, "ca.crt", host)
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(folder, "other.crt", "localhost")


def test_secrets_are_their_owner_s_alone(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert modes == dict.fromkeys(("ca.key", "other.key", "server.key", "silo.key"), 0o600)
    assert not [*folder.glob("*.part")]


def test_public_key_is_that_of_the_private_one_on_a_curve_that_flower_takes(folder: Path) -> None:
    secret = serialization.load_ssh_private_key((folder / "silo.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((folder / "silo.pub").read_bytes())
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    assert secret.public_key() == public
    assert secret.curve.name == "secp384r1"


@pytest.mark.parametrize("host", ["", "a b", "link:9092", "https://link", "-link", "link..org", "bücher.example"])
def test_hosts_that_are_neither_name_nor_address_are_refused(host: str) -> None:
    with pytest.raises(UserError, match="must be a host name such as"):
        alternative_name(host)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("010.0.0.5", "without leading zeros: 10.0.0.5"),
        ("10.0.0.256", "has four numbers of 0 to 255"),
        ("10.0.5", "has four numbers of 0 to 255"),
        ("192.168.001.007", "without leading zeros: 192.168.1.7"),
    ],
)
def test_mistyped_addresses_are_not_taken_for_host_names(host: str, said: str) -> None:
    with pytest.raises(UserError, match="is no host name") as caught:
        alternative_name(host)
    assert said in str(caught.value)


def test_names_with_digits_are_host_names(folder: Path) -> None:
    for host in ("10.example.org", "link1", "3com.example"):
        assert alternative_name(host).value == host


def test_server_certificate_is_no_authority(folder: Path) -> None:
    check_authority(folder / "ca.crt")
    check_certificate(folder / "server.crt")
    with pytest.raises(UserError, match=r"server\.crt' is a server's .*give the ca\.crt that the operator"):
        check_authority(folder / "server.crt")


def test_sound_files_pass_unless_others_may_read_a_key(folder: Path, tmp_path: Path) -> None:
    check_certificate(folder / "ca.crt")
    check_private_key(folder / "silo.key")
    check_public_key(folder / "silo.pub")
    shutil.copyfile(folder / "silo.key", tmp_path / "silo.key")
    (tmp_path / "silo.key").chmod(0o640)
    with pytest.raises(UserError, match="can be read by others: chmod 600"):
        check_private_key(tmp_path / "silo.key")


@pytest.mark.parametrize(
    ("check", "name", "said"),
    [
        (check_certificate, "absent", "No such file"),
        (check_certificate, "silo.pub", "is no PEM certificate"),
        (check_private_key, "absent", "'fedsynth silo init' makes one"),
        (check_private_key, "silo.pub", "is no OpenSSH key"),
        (check_public_key, "absent", "give the .pub file that the silo sent"),
        (check_public_key, "silo.key", "is a private key, which must never leave its silo"),
        (check_public_key, "ca.crt", "is no public key of a silo"),
    ],
)
def test_wrong_files_are_told_apart(folder: Path, check: Callable[[Path], None], name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(folder / name)
    assert str(folder / name) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "days"), [("ca.crt", -2), ("ca.crt", 3651), ("server.crt", 366)])
def test_certificate_out_of_its_time_names_this_machine_s_clock(
    folder: Path, name: str, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = datetime.now(UTC) + timedelta(days=days)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return wrong

    monkeypatch.setattr(certificates, "datetime", Clock)
    with pytest.raises(UserError, match=f"this machine's clock says {wrong:%Y-%m-%d %H:%M} UTC: set the clock"):
        check_certificate(folder / name)
