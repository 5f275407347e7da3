"""The operator's side of a deployment: certificates, registered silos, and the SuperLink itself.

``link init`` makes the folder, ``link register`` lets a silo in, ``link start`` runs Flower's SuperLink until it is
stopped. The last two print the Flower command that they run.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from fedsynth.cli.deployment.certificates import (
    alternative_name,
    check_certificate,
    check_public_key,
    fingerprint,
    make_authority,
    make_server_certificate,
)
from fedsynth.cli.deployment.link_folder import CONNECTION, LinkFolder, LinkSettings, check_node_value, connection_to
from fedsynth.cli.deployment.processes import environment_of, run_in_foreground, show
from fedsynth.cli.options import refuse_rest
from fedsynth.disk import explained_writing
from fedsynth.errors import RunError, UserError

DEFAULT_PORT = 9092


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``link init | register | start``, each with its own options."""
    actions = parser.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="make certificates and keys in a new folder", allow_abbrev=False)
    _folder(init)
    init.add_argument(
        "--host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="host names and addresses by which silos reach this machine (default: as before, or this machine alone)",
    )
    init.add_argument("--port", type=int, help=f"port of the SuperLink (default: as before, or {DEFAULT_PORT})")
    register = actions.add_parser("register", help="let a silo in by its public key", allow_abbrev=False)
    register.add_argument("key", type=Path, help="public key that 'fedsynth silo init' made at the silo")
    register.add_argument("--name", required=True, help="name of the silo")
    _folder(register)
    _dry_run(register)
    start = actions.add_parser("start", help="run the SuperLink until it is stopped", allow_abbrev=False)
    start.add_argument(
        "--bind", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: this machine alone)"
    )
    _folder(start)
    _dry_run(start)


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the action that was asked for.

    Raises:
        UserError: something is missing, or would be overwritten.
        RunError: Flower refused.
    """
    refuse_rest(f"link {options.action}", rest)
    actions = {"init": _init, "register": _register, "start": _start}
    return actions[options.action](LinkFolder(options.folder.expanduser().absolute()), options)


def _init(folder: LinkFolder, options: argparse.Namespace) -> int:
    before = folder.read() if folder.settings.exists() else LinkSettings([], DEFAULT_PORT)
    hosts = [*dict.fromkeys([*(options.host or before.hosts), "localhost", "127.0.0.1"])]
    settings = LinkSettings(hosts, before.port if options.port is None else options.port)
    _check_settings(settings)
    with explained_writing(folder.path):
        # An authority that silos trust already stays: only the server's own certificate is made anew.
        if not folder.authority.exists():
            folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            make_authority(folder.authority, folder.authority_key)
        make_server_certificate(hosts, folder.authority, folder.authority_key, folder.certificate, folder.key)
        settings.write(folder)
    if before.hosts:
        print("renewed: start the link again; silos need nothing new unless the address is another\n")
    print(
        f"link folder {folder.path}\nserver certificate for {', '.join(hosts)}\n"
        f"authority SHA-256 {fingerprint(folder.authority)}\n\n"
        f"send every silo {folder.authority} (over a channel you trust) and the address {settings.address}\n"
        f"let a silo in:   fedsynth link register SILO.pub --name SILO --folder {folder.path}\n"
        f"start:           fedsynth link start --folder {folder.path} --bind 0.0.0.0\n"
        f"Never send ca.key or server.key. Let only silos and yourself reach port {settings.port}: whoever reaches it"
        " can register silos and start runs."
    )
    return 0


def _check_settings(settings: LinkSettings) -> None:
    for host in settings.hosts:
        alternative_name(host)
    if not 0 < settings.port < 65536:
        raise UserError(f"port = {settings.port}: must be 1 to 65535")


def _register(folder: LinkFolder, options: argparse.Namespace) -> int:
    check_public_key(options.key)
    check_node_value("name", options.name)
    connection = connection_to(str(folder.path), None)
    command = ["flwr", "supernode", "register", str(options.key.absolute()), CONNECTION, "--name", options.name]
    show(command, folder.home)
    if options.dry_run:
        return 0
    connection.write()
    done = subprocess.run(
        command,
        env=environment_of(folder.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode and "already in use" in done.stdout:
        raise RunError(f"'{options.key}' is registered already; one that was removed needs a new pair")
    if done.returncode:
        raise RunError(
            f"Flower did not register '{options.key}' at {connection.address}: does 'fedsynth link start' run?"
        )
    return 0


def _start(folder: LinkFolder, options: argparse.Namespace) -> int:
    settings = folder.read()
    for path in (folder.authority, folder.certificate):
        check_certificate(path)
    command = superlink_command(folder, options.bind, settings.port)
    show(command, folder.home)
    return 0 if options.dry_run else run_in_foreground(command, environment_of(folder.home), folder.path)


def superlink_command(folder: LinkFolder, bind: str, port: int) -> list[str]:
    """Return the command that runs the SuperLink of a link folder."""
    return [
        *("flower-superlink", "--host", bind, "--port", str(port)),
        *("--ssl-ca-certfile", str(folder.authority)),
        *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.key)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--database", str(folder.database)),
    ]


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("link"), help="the link's folder (default: link)")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the command only")
