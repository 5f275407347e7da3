"""The operator's side of a deployment: certificates, registered silos, and the SuperLink itself.

``link init`` makes the folder, ``link register`` lets a silo in, ``link keys`` collects the silos' keys for secure
sums, ``link start`` runs Flower's SuperLink until it is stopped. Those that run a Flower command print it.
``link ledger`` deploys the contract that holds the heads of replicated runs.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import threading
import time
from pathlib import Path

from fedsynth.cli.deployment.certificates import (
    alternative_name,
    check_authority,
    check_certificate,
    check_public_key,
    fingerprint,
    make_authority,
    make_server_certificate,
)
from fedsynth.cli.deployment.front import check_front_folder, front_command, write_front
from fedsynth.cli.deployment.health import problem
from fedsynth.cli.deployment.link_folder import (
    CONNECTION,
    Connection,
    LinkFolder,
    LinkSettings,
    check_node_value,
    connection_to,
)
from fedsynth.cli.deployment.processes import environment_of, run_in_foreground, show
from fedsynth.cli.options import refuse_rest
from fedsynth.config.keys import parse
from fedsynth.config.run import Replicas
from fedsynth.disk import explained_writing
from fedsynth.errors import RunError, UserError
from fedsynth.heads import Ledger, LedgerError
from fedsynth.privacy.sums.key_files import KNOWN_FILE, read_parties, read_public, write_known
from fedsynth.silo_names import VARIABLE, Holder, key_fingerprint
from fedsynth.text import silo_name_problem

DEFAULT_PORT = 9092
MOST_PORT = 65535
LEDGER_PATIENCE = 120.0
"""Seconds to wait for the block that holds a contract."""
READY_LIMIT = 60.0
"""Seconds in which a SuperLink that starts is asked whether it answers."""
NO_FRONT = "none"
LOOPBACK = "127.0.0.1"

_REGISTERED = re.compile(r"SuperNode (\d+) registered")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``link init | register | keys | start | ledger``, each with its own options."""
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
    init.add_argument("--port", type=int, help=f"port that silos connect to (default: as before, or {DEFAULT_PORT})")
    init.add_argument(
        "--front",
        choices=("nginx", NO_FRONT),
        help="nginx: write its configuration; silos reach nginx, and only what they need, the SuperLink is reached from"
        " this machine alone (default: as before, or none)",
    )
    init.add_argument(
        "--superlink-port", type=int, help="port of the SuperLink behind a front (default: as before, or --port + 1)"
    )
    register = actions.add_parser("register", help="let a silo in by its public key", allow_abbrev=False)
    register.add_argument("key", type=Path, help="public key that 'fedsynth silo init' made at the silo")
    register.add_argument("--name", required=True, help="name of the silo, as its --silo-name says it")
    register.add_argument("--replace", action="store_true", help="the silo has a new key: remove its old one")
    _folder(register)
    _dry_run(register)
    keys = actions.add_parser("keys", help="collect the silos' keys for secure sums", allow_abbrev=False)
    keys.add_argument("silos", nargs="+", metavar="SILO=FILE", help="name of a silo, and sums.pub that it sent")
    keys.add_argument(
        "--aggregators",
        nargs="+",
        default=[],
        metavar="NODE=FILE",
        help="the same of nodes that aggregate and hold no images",
    )
    keys.add_argument("--replace", action="store_true", help="a silo has new keys: forget its old ones")
    _folder(keys)
    start = actions.add_parser("start", help="run the SuperLink until it is stopped", allow_abbrev=False)
    start.add_argument(
        "--bind", default=LOOPBACK, help="address to listen on; 0.0.0.0: all (default: this machine alone)"
    )
    _folder(start)
    _dry_run(start)
    ledger = actions.add_parser(
        "ledger", help="deploy the contract that holds the heads of replicated runs", allow_abbrev=False
    )
    ledger.add_argument("--ledger-url", required=True, metavar="URL", help="Ethereum node")
    ledger.add_argument(
        "--ledger-key-file",
        default="",
        metavar="FILE",
        help="private key of the account that alone may write (default: the node's own first account)",
    )


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the action that was asked for.

    Raises:
        UserError: something is missing, or would be overwritten.
        RunError: Flower refused.
    """
    refuse_rest(f"link {options.action}", rest)
    if options.action == "ledger":
        return _ledger(options)
    actions = {"init": _init, "register": _register, "keys": _keys, "start": _start}
    return actions[options.action](LinkFolder(options.folder.expanduser().absolute()), options)


def _init(folder: LinkFolder, options: argparse.Namespace) -> int:
    before = folder.read() if folder.settings.exists() else LinkSettings([], DEFAULT_PORT)
    settings = _settings(before, options)
    if settings.front:
        check_front_folder(folder.path)
    hosts = settings.hosts
    with explained_writing(folder.path):
        # An authority that silos trust already stays: only the server's own certificate is made anew.
        if not folder.authority.exists():
            folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            make_authority(folder.authority, folder.authority_key)
        make_server_certificate(hosts, folder.authority, folder.authority_key, folder.certificate, folder.key)
        if settings.front:
            write_front(folder, settings)
        settings.write(folder)
    if before.hosts:
        print("renewed: start the link again; silos need nothing new unless the address is another\n")
    print(
        f"link folder {folder.path}\nserver certificate for {', '.join(hosts)}\n"
        f"authority SHA-256 {fingerprint(folder.authority)}\n\n"
        f"send every silo {folder.authority} (over a channel you trust) and the address {settings.address}\n"
        f"{_how_to_start(folder, settings)}"
    )
    return 0


def _settings(before: LinkSettings, options: argparse.Namespace) -> LinkSettings:
    hosts = [*dict.fromkeys([*(options.host or before.hosts), "localhost", "127.0.0.1"])]
    port = before.port if options.port is None else options.port
    front = before.front if options.front is None else options.front.removeprefix(NO_FRONT)
    if not front and options.superlink_port is not None:
        raise UserError(
            "--superlink-port is for --front nginx: without a front, silos connect to the SuperLink's --port"
        )
    beside = port + 1 if port < MOST_PORT else port - 1
    inner = options.superlink_port or (before.superlink_port if before.superlink_port != port else 0) or beside
    settings = LinkSettings(hosts, port, front, inner if front else 0)
    _check_settings(settings)
    return settings


def _how_to_start(folder: LinkFolder, settings: LinkSettings) -> str:
    alone = {*settings.hosts} <= {"localhost", LOOPBACK}
    start = f"start:           fedsynth link start --folder {folder.path}"
    register = f"then, per silo:  fedsynth link register SILO.pub --name SILO --folder {folder.path}"
    if settings.front:
        return (
            f"{start}\n"
            f"and its front:   {shlex.join(front_command(folder))}\n{register}\n"
            f"Never send ca.key or server.key. Port {settings.port} gives silos what they need and no more. Whoever"
            f" reaches port {settings.superlink_port}, on this machine alone, can register silos and start runs."
        )
    return (
        f"{start}{'' if alone else ' --bind 0.0.0.0'}\n{register}\n"
        f"Never send ca.key or server.key. Let only silos and yourself reach port {settings.port}: whoever reaches it"
        " can register silos and start runs ('--front nginx' keeps those two to this machine)."
    )


def _check_settings(settings: LinkSettings) -> None:
    for host in settings.hosts:
        alternative_name(host)
    ports = {"port": settings.port, **({"superlink-port": settings.superlink_port} if settings.front else {})}
    for key, port in ports.items():
        if not 0 < port <= MOST_PORT:
            raise UserError(f"{key} = {port}: must be 1 to {MOST_PORT}")
    if settings.port == settings.superlink_port:
        raise UserError(f"superlink-port = {settings.superlink_port}: is nginx's, the silos'; give another")


def _register(folder: LinkFolder, options: argparse.Namespace) -> int:
    check_public_key(options.key)
    check_node_value("name", options.name)
    if problem := silo_name_problem(options.name):
        raise UserError(f"{problem}; give another --name")
    connection = connection_to(str(folder.path), None)
    key = key_fingerprint(options.key.read_bytes())
    _check_name_is_free(folder, options.name, key, options.replace)
    words = ("register", str(options.key.absolute()), CONNECTION, "--name", options.name)
    show(["flwr", "supernode", *words], folder.home)
    if options.dry_run:
        return 0
    connection.write()
    done = _supernode(folder, *words)
    if done.returncode and "already in use" in done.stdout:
        raise RunError(_registered_already(folder, options, key))
    if done.returncode:
        raise RunError(
            f"Flower did not register '{options.key}' at {connection.address}: does 'fedsynth link start' run?"
        )
    found = _REGISTERED.search(done.stdout)
    lost = folder.silo_names.bind(options.name, Holder(key, int(found[1]) if found else 0), options.replace)
    if lost is not None:
        _remove(folder, lost)
    return 0


def _keys(folder: LinkFolder, options: argparse.Namespace) -> int:
    folder.read()
    path = folder.path / KNOWN_FILE
    silos, aggregators = read_parties(path) if path.exists() else ({}, {})
    for section, words in ((silos, options.silos), (aggregators, options.aggregators)):
        for word in words:
            name, _, file = word.partition("=")
            if problem := silo_name_problem(name):
                raise UserError(f"{problem}; give SILO=FILE")
            public = read_public(Path(file).expanduser())
            if section.get(name, public) != public and not options.replace:
                raise UserError(f"'{name}' has other keys in '{path}'; if it has new ones, add --replace")
            section[name] = public
    with explained_writing(path):
        write_known(path, dict(sorted(silos.items())), dict(sorted(aggregators.items())))
    said = [(name, "", keys) for name, keys in sorted(silos.items())]
    said += [(name, " (aggregator)", keys) for name, keys in sorted(aggregators.items())]
    lines = "\n".join(f"  {name}{role}: SHA-256 {keys.fingerprint}" for name, role, keys in said)
    print(
        f"{path}\n{lines}\n\nsend it to every silo (over a channel you trust), which puts it into its folder and"
        " compares\nthe lines with the other silos: whoever replaces a key takes part in that silo's place. It acts"
        " when the silo\nis started again."
    )
    return 0


def _ledger(options: argparse.Namespace) -> int:
    replicas = parse(Replicas, {"ledger_url": options.ledger_url, "ledger_key_file": options.ledger_key_file})
    try:
        contract = Ledger(replicas.ledger_url, key_file=replicas.ledger_key_file).deploy(LEDGER_PATIENCE)
    except LedgerError as error:
        raise RunError(f"ledger-url = '{replicas.ledger_url}': {error}") from None
    print(
        f"contract {contract}\n\n"
        f"runs write there with --ledger-url {replicas.ledger_url} --ledger-contract {contract}\n"
        "tell every silo and auditor the address: by it they know which heads are the consortium's"
    )
    return 0


def _check_name_is_free(folder: LinkFolder, name: str, key: str, replace: bool) -> None:
    holder = folder.silo_names.read().get(name)
    if holder is not None and holder.key != key and not replace:
        raise UserError(
            f"name = '{name}': belongs to the key {holder.key} ('ssh-keygen -l' prints a key's); if that silo has lost"
            f" its key, or is gone, add --replace: the old key is removed then"
        )


def _registered_already(folder: LinkFolder, options: argparse.Namespace, key: str) -> str:
    """Return what to do about a key that Flower knows: it keeps a key's first name, and forgets no key."""
    anew = "needs a new pair: the silo removes silo.key, makes one with 'fedsynth silo init' and sends the new silo.pub"
    for name, holder in folder.silo_names.read().items():
        if holder.key == key:
            return (
                f"'{options.key}' is registered already, as '{name}', and a key keeps its name: either the silo starts"
                f" with --silo-name {shlex.quote(name)}, or it {anew}, which you register as '{options.name}'"
            )
    return f"'{options.key}' is registered already; one that was removed {anew}"


def _remove(folder: LinkFolder, holder: Holder) -> None:
    if not holder.node_id or _supernode(folder, "unregister", str(holder.node_id), CONNECTION).returncode:
        raise RunError(
            f"the name has its new key, and no run takes the old one, {holder.key}, by it; Flower did not remove that"
            f" (node {holder.node_id}), or it was removed before: 'flwr supernode list {CONNECTION}' shows"
        )


def _supernode(folder: LinkFolder, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``flwr supernode``, and print what it says."""
    done = subprocess.run(
        ["flwr", "supernode", *words],
        env=environment_of(folder.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    print(done.stdout, end="", flush=True)
    return done


def _start(folder: LinkFolder, options: argparse.Namespace) -> int:
    settings = folder.read()
    check_authority(folder.authority)
    check_certificate(folder.certificate)
    port = _port_behind_front(folder, settings, options.bind) if settings.front else settings.port
    command = superlink_command(folder, options.bind, port)
    show(command, folder.home)
    environment = {**environment_of(folder.home), VARIABLE: str(folder.silo_names.path)}
    if options.dry_run:
        return 0
    threading.Thread(
        target=_say_when_ready, args=(connection_to(str(folder.path), None), settings), daemon=True
    ).start()
    return run_in_foreground(command, environment, folder.path)


def _say_when_ready(connection: Connection, settings: LinkSettings) -> None:
    """Print one line once the SuperLink answers; Flower's own lines do not say what is next."""
    deadline = time.monotonic() + READY_LIMIT
    while problem(connection):
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)
    print(f"ready: silos connect to {settings.address}; Ctrl-C ends the link", flush=True)


def _port_behind_front(folder: LinkFolder, settings: LinkSettings, bind: str) -> int:
    if bind != LOOPBACK:
        raise UserError(
            f"bind = '{bind}': this link has a front, and whoever reaches the SuperLink past it can register silos and"
            " start runs: leave --bind out; 'fedsynth link init --front none' removes the front"
        )
    print(f"silos connect to port {settings.port}, to nginx, beside this:\n{shlex.join(front_command(folder))}\n")
    return settings.superlink_port


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
