"""Where a SuperLink is and how to reach it: the operator's link folder, and Flower's connections."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from fedsynth.cli.deployment.certificates import check_authority, check_numbers
from fedsynth.cli.deployment.flower import flower_home
from fedsynth.cli.deployment.machine import LOOPBACK
from fedsynth.errors import UserError
from fedsynth.files import atomic_file, write_json
from fedsynth.silo_names import SiloNames
from fedsynth.text import folder_of_name

CONNECTION = "link"
"""Name of the SuperLink in the ``config.toml`` of the ``FLWR_HOME`` that is used for it alone."""


@dataclass(frozen=True)
class LinkFolder:
    """What the operator keeps of a link.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def authority(self) -> Path:
        """Certificate of the authority: goes to every silo."""
        return self.path / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Key of the authority: signs server certificates."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The SuperLink's certificate."""
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        """The SuperLink's key."""
        return self.path / "server.key"

    @property
    def database(self) -> Path:
        """The SuperLink's state: registered silos, runs."""
        return self.path / "link.db"

    @property
    def home(self) -> Path:
        """``FLWR_HOME`` of the SuperLink and of the commands that talk to it."""
        return self.path / "flwr"

    @property
    def front(self) -> Path:
        """Configuration of the nginx before the SuperLink, where there is one."""
        return self.path / "nginx.conf"

    @property
    def front_work(self) -> Path:
        """Where that nginx keeps its logs and bodies that have not arrived in full."""
        return self.path / "nginx"

    @property
    def silo_names(self) -> SiloNames:
        """Which name belongs to which key."""
        return SiloNames(self.path / "silo-names.json")

    @property
    def settings(self) -> Path:
        """Host names and port."""
        return self.path / "link.json"

    def read(self) -> LinkSettings:
        """Return host names and port.

        Raises:
            UserError: the folder was not made by ``fedsynth link init``.
        """
        try:
            return LinkSettings(**json.loads(self.settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"'{self.path}' is no link folder: 'fedsynth link init --folder {self.path}' makes one"
            ) from None


@dataclass(frozen=True)
class LinkSettings:
    """What is fixed when a link is made.

    Attributes:
        hosts: names and addresses that the server certificate vouches for; the first is told to silos.
        port: that silos connect to.
        front: ``"nginx"`` where that stands before the SuperLink; empty where silos reach the SuperLink itself.
        superlink_port: of the SuperLink, on this machine alone, behind a front.
    """

    hosts: list[str]
    port: int
    front: str = ""
    superlink_port: int = 0

    def write(self, folder: LinkFolder) -> None:
        """Write ``link.json``."""
        write_json(folder.settings, asdict(self))

    @property
    def address(self) -> str:
        """Where silos find the SuperLink."""
        return join_address(self.hosts[0], self.port)

    @property
    def local_address(self) -> str:
        """Where commands on the same machine find it: behind a front, which would refuse them."""
        if self.front:
            return join_address("127.0.0.1", self.superlink_port)
        local = [host for host in self.hosts if host in LOOPBACK]
        return join_address(local[0] if local else self.hosts[0], self.port)


@dataclass(frozen=True)
class Connection:
    """How ``flwr`` reaches a SuperLink.

    Attributes:
        address: host and port.
        authority: certificate of the authority that vouches for it.
        home: ``FLWR_HOME`` that holds the connection.
    """

    address: str
    authority: Path
    home: Path

    def write(self) -> None:
        """Write ``config.toml`` of ``home``, where it differs.

        Raises:
            UserError: the folder cannot be written.
        """
        entry = {"address": self.address, "root-certificates": str(self.authority)}
        wanted = {"superlink": {"default": CONNECTION, CONNECTION: entry}}
        path = self.home / "config.toml"
        try:
            if path.is_file() and tomllib.loads(path.read_text(encoding="utf-8")) == wanted:
                return
            with atomic_file(path) as temporary:
                temporary.write_text(tomli_w.dumps(wanted), encoding="utf-8")
        except OSError as error:
            raise UserError(f"'{path}' cannot be written: {error.strerror}") from error


def connection_to(link: str, authority: Path | None) -> Connection:
    """Read what ``--superlink`` says: a link folder of this machine, or an address with ``--root-certificates``.

    Raises:
        UserError: it is neither, or the certificate cannot be used.
    """
    path = Path(link).expanduser().absolute()
    if path.is_dir():
        folder = LinkFolder(path)
        check_authority(folder.authority)
        return Connection(folder.read().local_address, folder.authority, folder.home)
    if ":" not in link:
        raise UserError(f"superlink = '{link}': there is no such link folder, and it is no HOST:PORT")
    check_address(link, "superlink")
    if authority is None:
        raise UserError(f"superlink = '{link}' is no folder; with an address give --root-certificates ca.crt too")
    check_authority(authority)
    home = flower_home() / "links" / folder_of_name(link)
    return Connection(link, authority.expanduser().absolute(), home)


def check_address(text: str, key: str) -> None:
    """Refuse what is no ``HOST:PORT``.

    Raises:
        UserError: says what is wrong.
    """
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise UserError(f"{key} = '{text}': must be HOST:PORT, such as link.example.org:9092, without https://")
    check_numbers(host)


def check_node_value(key: str, value: str) -> None:
    """Refuse what Flower's splitting of node configs, TOML between blanks, would tear.

    Raises:
        UserError: names key and value.
    """
    if '"' in value or "\\" in value or not value.isprintable():
        raise UserError(f"{key} = '{value}': quotes, backslashes and line breaks are not possible; rename it")


def join_address(host: str, port: int) -> str:
    """Write host and port together; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
