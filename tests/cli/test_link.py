from __future__ import annotations

import hashlib
import itertools
import ssl
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsynth.cli import main
from fedsynth.cli.deployment.certificates import fingerprint
from fedsynth.cli.deployment.link_folder import LinkFolder, check_address, connection_to
from fedsynth.errors import UserError
from fedsynth.privacy.sums import SecretKeys
from fedsynth.silo_names import Holder, key_fingerprint

Refused = Callable[..., str]


@pytest.fixture
def link(project: Path) -> LinkFolder:
    assert main(["link", "init", "--host", "link.example.org", "10.0.0.5", "--port", "19000"]) == 0
    return LinkFolder(project / "link")


def test_init_of_this_machine_alone_binds_nothing_else(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, bound in ((["link", "init"], False), (["link", "init", "--host", "link.example.org"], True)):
        assert main(words) == 0
        assert ("--bind 0.0.0.0" in capsys.readouterr().out) == bound


def test_init_says_what_to_send_and_what_to_keep(capsys: pytest.CaptureFixture[str], link: LinkFolder) -> None:
    said = capsys.readouterr().out
    assert f"send every silo {link.authority} (over a channel you trust) and the address link.example.org:19000" in said
    assert "Never send ca.key or server.key" in said
    assert "yourself reach port 19000: whoever reaches it can register silos and start runs" in said
    assert link.read().hosts == ["link.example.org", "10.0.0.5", "localhost", "127.0.0.1"]
    whole = hashlib.sha256(ssl.PEM_cert_to_DER_cert(link.authority.read_text())).hexdigest().upper()
    expected = ":".join(whole[place : place + 2] for place in range(0, 64, 2))
    assert fingerprint(link.authority) == expected
    assert f"authority SHA-256 {expected}" in said


def test_a_link_made_without_a_port_says_the_default(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "init"]) == 0
    said = capsys.readouterr().out
    assert "the address localhost:9092" in said
    assert "yourself reach port 9092: whoever" in said
    assert "None" not in said


def test_renewal_keeps_the_authority_and_what_is_not_given(
    link: LinkFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = link.read()
    files = {path: path.read_bytes() for path in (link.authority, link.authority_key, link.certificate, link.key)}
    capsys.readouterr()
    assert main(["link", "init"]) == 0
    said = capsys.readouterr().out
    assert link.read() == before
    assert [path.name for path, content in files.items() if path.read_bytes() == content] == ["ca.crt", "ca.key"]
    assert "server certificate for link.example.org, 10.0.0.5, localhost, 127.0.0.1" in said
    assert "renewed: start the link again" in said
    assert "yourself reach port 19000: whoever" in said
    assert main(["link", "init", "--port", "19002"]) == 0
    assert link.read().address == "link.example.org:19002"
    assert main(["link", "init", "--host", "new.example.org"]) == 0
    assert link.read().address == "new.example.org:19002"


def test_start_prints_flower_s_command(link: LinkFolder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["link", "start", "--bind", "0.0.0.0", "--dry-run"]) == 0
    command = capsys.readouterr().out.split()
    assert command[0] == f"FLWR_HOME={link.home}"
    assert command[1:6] == ["flower-superlink", "--host", "0.0.0.0", "--port", "19000"]
    pairs = dict(itertools.pairwise(command))
    assert pairs["--ssl-ca-certfile"] == str(link.authority)
    assert pairs["--ssl-certfile"] == str(link.certificate)
    assert pairs["--ssl-keyfile"] == str(link.key)
    assert pairs["--database"] == str(link.database)
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(command)


def test_register_writes_the_connection_and_runs_flower(
    link: LinkFolder, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        commands.append((command, env))
        return subprocess.CompletedProcess(command, 0, "SuperNode 17 registered\n")

    monkeypatch.setattr("fedsynth.cli.link.subprocess.run", run)
    assert main(["silo", "init"]) == 0
    assert main(["link", "register", "silo/silo.pub", "--name", "St. Mary"]) == 0
    ((command, environment),) = commands
    assert command == ["flwr", "supernode", "register", str(project / "silo/silo.pub"), "link", "--name", "St. Mary"]
    assert environment["FLWR_HOME"] == str(link.home)
    connection = tomllib.loads((link.home / "config.toml").read_text())["superlink"]
    assert connection["link"] == {"address": "localhost:19000", "root-certificates": str(link.authority)}


def test_a_name_gets_another_key_only_when_the_operator_says_so(
    link: LinkFolder, project: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, 0, f"SuperNode {16 + len(commands)} registered successfully.\n")

    monkeypatch.setattr("fedsynth.cli.link.subprocess.run", run)
    for folder in ("old", "new"):
        assert main(["silo", "init", "--folder", folder]) == 0
    old, new = (key_fingerprint((project / folder / "silo.pub").read_bytes()) for folder in ("old", "new"))
    assert main(["link", "register", "old/silo.pub", "--name", "north"]) == 0
    assert link.silo_names.read() == {"north": Holder(old, 17)}
    # Anybody who says to be north and to have lost the key: the operator has to decide it.
    said = refused("link", "register", "new/silo.pub", "--name", "north")
    assert f"name = 'north': belongs to the key {old}" in said
    assert "add --replace: the old key is removed then" in said
    assert main(["link", "register", "new/silo.pub", "--name", "north", "--replace"]) == 0
    assert link.silo_names.read() == {"north": Holder(new, 18)}
    assert [words[0] for words in commands] == ["register", "register", "unregister"]
    assert commands[-1] == ["unregister", "17", "link"]


def test_start_tells_the_run_s_program_where_names_are_remembered(
    link: LinkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr("fedsynth.cli.link.run_in_foreground", lambda command, env, folder: given.append(env) or 0)
    monkeypatch.setattr("fedsynth.cli.link.READY_LIMIT", 0.0)
    assert main(["link", "start"]) == 0
    assert given[0]["FEDSYNTH_SILO_NAMES"] == str(link.path / "silo-names.json")


def test_register_that_flower_refuses_is_an_error(
    link: LinkFolder, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    assert main(["silo", "init"]) == 0
    advice = {
        "Connection refused": "Flower did not register 'silo/silo.pub' at localhost:19000: does 'fedsynth link start'",
        "[code: 23] Public key already in use.": "'silo/silo.pub' is registered already; one that was removed needs",
    }
    for reason, said in advice.items():
        answer = subprocess.CompletedProcess([], 1, reason)
        monkeypatch.setattr("fedsynth.cli.link.subprocess.run", lambda *words, answer=answer, **named: answer)
        assert said in refused("link", "register", "silo/silo.pub", "--name", "a", started=True)
    link.silo_names.bind("suoth", Holder(key_fingerprint(Path("silo/silo.pub").read_bytes()), 7))
    said = refused("link", "register", "silo/silo.pub", "--name", "south", started=True)
    assert "as 'suoth', and a key keeps its name: either the silo starts with --silo-name suoth, or it needs" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("start --folder absent", "is no link folder: 'fedsynth link init --folder"),
        ("init --port 70000", "port = 70000: must be 1 to 65535"),
        ("init --folder new --host link:9", "host 'link:9': must be a host name"),
        ("init --folder new --host 010.0.0.5", "host '010.0.0.5': is no host name"),
        ("register silo/silo.key --name a", "is a private key"),
        (
            "register silo/silo.pub --name " + "x" * 65,
            "must be 1 to 64 printable characters, without blanks at its",
        ),
        ('register silo/silo.pub --name a"b', "quotes, backslashes and line breaks"),
        ("start --dry-rnu", "unknown option '--dry-rnu'; 'fedsynth link start --help' lists all"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words: str, said: str, link: LinkFolder, refused: Refused) -> None:
    assert main(["silo", "init"]) == 0
    assert said in refused("link", *words.split())


def test_connection_by_address_has_a_home_of_its_own(link: LinkFolder, project: Path) -> None:
    connection = connection_to("link.example.org:19000", link.authority)
    connection.write()
    assert connection.home == project / ".flwr" / "links" / "link.example.org_19000"
    assert "link.example.org:19000" in (connection.home / "config.toml").read_text()


@pytest.mark.parametrize(
    ("link_name", "authority", "said"),
    [
        ("link.example.org:19000", None, "give --root-certificates ca.crt too"),
        ("absent", None, "no such link folder, and it is no HOST:PORT"),
        ("link.example.org:19000", "absent.crt", "certificate 'absent.crt': No such file"),
        ("link.example.org:19000", "link/server.crt", "'link/server.crt' is a server's"),
        (".", None, "ca.crt': No such file"),
    ],
)
def test_superlink_that_cannot_be_used_is_refused(
    link: LinkFolder, link_name: str, authority: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        connection_to(link_name, Path(authority) if authority else None)


@pytest.mark.parametrize("address", ["link", "link:", ":9092", "link:0", "link:65536", "https://link:9092", "link:x"])
def test_addresses_are_host_and_port(address: str) -> None:
    with pytest.raises(UserError, match="must be HOST:PORT, such as"):
        check_address(address, "superlink")


def test_addresses_with_leading_zeros_are_not_taken_for_octal_ones_or_for_names() -> None:
    for address in ("10.0.0.5:9092", "[2001:db8::5]:9092", "[::ffff:10.0.0.5]:9092", "link5:9092", "10.example:9092"):
        check_address(address, "superlink")
    for address in ("010.0.0.5:9092", "10.0.0.256:9092", "10.5:9092"):
        with pytest.raises(UserError, match="is no host name, and an IP address has four numbers"):
            check_address(address, "superlink")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=b.pub"], "'a' has other keys"),
        (["b=a.pub"], "'a' and 'b' have the same keys"),
        (["c=absent.pub"], "'absent.pub': No such file or directory"),
        (["c=text"], "128 hexadecimal digits"),
        (["=a.pub"], "silo-name = ''"),
        (["a"], "'.'"),
    ],
)
def test_keys_that_cannot_be_collected_change_nothing(
    words: list[str], said: str, link: LinkFolder, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (project / f"{name}.pub").write_text(f"{SecretKeys.generate().public.text}\n")
    (project / "text").write_text("no key")
    assert main(["link", "keys", "a=a.pub"]) == 0
    known = (link.path / "silo-keys.json").read_bytes()
    assert main(["link", "keys", *words]) == 2
    assert said in capsys.readouterr().err
    assert (link.path / "silo-keys.json").read_bytes() == known
    assert main(["link", "keys", "a=b.pub", "--replace"]) == 0
