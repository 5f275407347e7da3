"""A silo's side of a deployment: its key, and the SuperNode that answers for it.

``silo init`` makes the key pair, writes a policy and keeps what the silo starts with, ``silo policy`` says what a
policy makes of a planned run, ``silo program`` by which hash a policy pins this version, ``silo start`` checks policy,
data, model, certificate and key and runs Flower's SuperNode until it is stopped. The Flower command is printed. ``silo
status`` says how the silo stands, ``silo audit`` prints what runs have asked of it, ``silo privacy`` what that has cost
its images.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

from fedsynth.cli.deployment import silo_audit, silo_policy, silo_privacy, silo_program, silo_settings, silo_status
from fedsynth.cli.deployment.app import with_sides
from fedsynth.cli.deployment.certificates import check_authority, check_private_key, fingerprint, make_silo_key
from fedsynth.cli.deployment.clock import check_clock
from fedsynth.cli.deployment.flower import free_ports
from fedsynth.cli.deployment.link_folder import check_address, check_node_value
from fedsynth.cli.deployment.processes import environment_of, run_in_foreground, show
from fedsynth.cli.deployment.silo_connection import CONNECTION_FILE, SILO_LOCK, Connection, ConnectionNote
from fedsynth.cli.deployment.silo_output import SuperNodeOutput
from fedsynth.cli.options import refuse_rest
from fedsynth.cli.stopping import SIGNALLED, SIGNALS
from fedsynth.config import RunConfig
from fedsynth.disk import check_writable, explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_file
from fedsynth.locks import locked
from fedsynth.policy import AGGREGATOR_ANSWERS, POLICY_FILE, SiloPolicy, document, read_policy
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import (
    KNOWN_FILE,
    PUBLIC_FILE,
    SECRET_FILE,
    known_others,
    read_parties,
    read_secret,
    write_secret,
)
from fedsynth.roles import AGGREGATOR
from fedsynth.spec import look_alikes
from fedsynth.text import check_silo_name

logger = logging.getLogger("fedsynth")

_AddArguments = Callable[[argparse.ArgumentParser], None]
GRACE_PERIOD, WARM_GRACE_PERIOD = 10.0, 40.0
"""Seconds in which a silo may end by itself: a warm one ends two processes, one after the other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``silo init | policy | program | start | status | audit | privacy``, each with its own options."""
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, said: str, add: _AddArguments | None = None) -> argparse.ArgumentParser:
        own: argparse.ArgumentParser = actions.add_parser(name, help=said, allow_abbrev=False)
        _folder(own)
        if add is not None:
            add(own)
        return own

    settings = silo_settings.add_arguments
    action("init", "make the silo's key pair and policy in a new folder, and keep options of start", settings)
    action("policy", "check a policy, alone or against a run", silo_policy.add_arguments)
    action("program", "the SHA-256 of the program that this version runs, to pin it in the policy")
    start = action("start", "answer for the silo until it is stopped", settings)
    start.add_argument("--allow-fab", action="append", default=[], metavar="HASH", help="refuse other bundles (--warm)")
    start.add_argument("--or-stock", action="store_true", help="go on without --warm on another version of Flower")
    start.add_argument("--dry-run", action="store_true", help="print the command only")
    said = "is the silo connected, what did it answer last, what is left of its ceilings"
    action("status", said, silo_status.add_arguments)
    action("audit", "what runs asked of the silo; checks its audit", silo_audit.add_arguments)
    action("privacy", "what ε the silo's images have spent, and what is left", silo_privacy.add_arguments)


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the action that was asked for.

    Raises:
        UserError: something is missing or cannot be used.
    """
    refuse_rest(f"silo {options.action}", rest)
    folder = options.folder.expanduser().absolute()
    if options.action == "status":
        return silo_status.status(folder, options)
    if options.action in ("audit", "privacy"):
        silo_settings.recall(folder, options, ["state-path"] if options.action == "audit" else ["state-path", "policy"])
    if options.action == "audit":
        return silo_audit.audit(folder, options)
    if options.action == "privacy":
        return silo_privacy.privacy(folder, options)
    if options.action == "policy":
        return silo_policy.check_policy(folder, options)
    if options.action == "program":
        return silo_program.show_program(folder)
    if options.action == "init":
        return _init(folder, silo_settings.given(options))
    silo_settings.check_folder(folder)
    silo_settings.complete(folder, options)
    return _start(folder, options)


def _init(folder: Path, settings: dict[str, Any]) -> int:
    aggregates = {**silo_settings.read(folder), **settings}.get("role") == AGGREGATOR
    key, public, policy = folder / "silo.key", folder / "silo.pub", folder / POLICY_FILE
    sums_key, sums_public = folder / SECRET_FILE, folder / PUBLIC_FILE
    if key.exists() and not sums_key.exists():
        with explained_writing(folder):
            _make_sum_keys(sums_key, sums_public)
        silo_settings.keep(folder, settings)
        print(f"send the operator {sums_public}, the silo's keys for secure sums\nkeep {sums_key} to yourself")
        return 0
    if key.exists() and settings:
        silo_settings.keep(folder, settings)
        print(f"{folder / silo_settings.SETTINGS_FILE} has it; the key stays")
        return 0
    if key.exists():
        raise UserError(f"'{key}' exists: the SuperLink knows the silo by it; remove it only to be registered anew")
    with explained_writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_silo_key(key, public)
        if not sums_key.exists():
            _make_sum_keys(sums_key, sums_public)
        if not policy.exists():
            with atomic_file(policy) as temporary:
                allowed = SiloPolicy(answers=AGGREGATOR_ANSWERS) if aggregates else SiloPolicy()
                temporary.write_text(document(allowed), encoding="utf-8")
    advice = "".join(f"  {line}\n" for line in silo_policy.open_ends(read_policy(policy)))
    kept = silo_settings.keep(folder, settings)
    wanted = {"superlink": "HOST:PORT", **({} if aggregates else {"data-path": "IMAGES"}), "silo-name": "NAME"}
    missing = "".join(f" --{name} {word}" for name, word in wanted.items() if name not in kept)
    print(
        f"silo folder {folder}\n\nsend the operator {public}\nkeep {key} to yourself\n"
        f"for secure sums send {sums_public}, too, and keep {sums_key}\n"
        f"read {policy}: what this silo answers, and what that gives away\n{advice}\n"
        f"the operator registers the key under the silo's name, and sends back ca.crt: put it into {folder}; then\n"
        f"  fedsynth silo start --folder {folder}{missing}"
    )
    return 0


def _make_sum_keys(secret: Path, public: Path) -> None:
    keys = SecretKeys.generate()
    write_secret(secret, keys)
    with atomic_file(public) as temporary:
        temporary.write_text(f"{keys.public.text}\n", encoding="utf-8")


def _start(folder: Path, options: argparse.Namespace) -> int:
    check_address(options.superlink, "superlink")
    authority = options.root_certificates.expanduser()
    check_authority(authority)
    logger.info(
        "authority of the link: SHA-256 %s; compare it with the operator's, by telephone", fingerprint(authority)
    )
    check_private_key(folder / "silo.key")
    policy = acting_policy(folder, options.policy)
    _check_warm(options, policy)
    config = node_config(folder, options, policy)
    command = supernode_command(folder, options, config)
    environment = environment_of(folder / "flwr")
    if options.warm:
        environment = with_sides(environment)
    show(command, folder / "flwr", environment["PYTHONPATH"] if options.warm else "")
    if options.dry_run:
        return 0
    check_clock(options.superlink, authority)
    state = Path(config["state-path"])
    grace_period = WARM_GRACE_PERIOD if options.warm else GRACE_PERIOD
    with locked(state / SILO_LOCK, f"state folder '{state}'"):
        note = ConnectionNote(state / CONNECTION_FILE, _connection(options, config, policy))
        output = SuperNodeOutput(config["silo-name"], note)
        status = run_in_foreground(command, environment, folder, grace_period, output)
        if status - SIGNALLED in SIGNALS:
            note("stopped", f"by {Signals(status - SIGNALLED).name}")
            logger.info("stopped by %s", Signals(status - SIGNALLED).name)
        else:
            note("ended", f"status {status}: its log says why")
            if status:
                logger.error("the silo has ended (status %d): the lines above say why", status)
    return status


def _connection(options: argparse.Namespace, config: dict[str, str], policy: Path | None) -> Connection:
    pinned = read_policy(policy).programs if policy else ()
    return Connection(
        config["silo-name"], options.superlink, str(policy or ""), pinned=pinned, allowed=tuple(options.allow_fab)
    )


def acting_policy(folder: Path, given: Path | None) -> Path | None:
    """Return the policy that acts, checked; None for the default."""
    path = _absolute(given) if given else folder / POLICY_FILE
    if given is None and not path.exists():
        logger.warning("no '%s': the policy that 'fedsynth silo init' writes acts", path)
        return None
    policy = read_policy(path)
    logger.info("policy %s: answers %s", path, ", ".join(policy.answers))
    return path


def _check_warm(options: argparse.Namespace, policy: Path | None) -> None:
    # What may run here is decided before it runs: Flower's own way cannot, the warm one can.
    programs = read_policy(policy).programs if policy else ()
    if programs and not options.warm:
        raise UserError(f"{SiloPolicy(programs=programs).line('programs')} in '{policy}' needs --warm: add it")
    options.allow_fab = [*dict.fromkeys([*options.allow_fab, *programs])]
    if not options.warm and (options.allow_fab or options.or_stock):
        raise UserError(f"{'--allow-fab' if options.allow_fab else '--or-stock'} is for --warm: add it")
    if options.allow_fab and options.or_stock:
        raise UserError("--or-stock: Flower's own way does not know --allow-fab; leave one of them out")
    for digest in options.allow_fab:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError(f"allow-fab = '{digest}': must be the 64 digits that 'fedsynth silo program' prints")


def node_config(folder: Path, options: argparse.Namespace, policy: Path | None) -> dict[str, str]:
    """Check what the silo brings, and return it as the ClientApp will read it.

    Raises:
        UserError: images, model, autoencoder, public or base model, state folder or the silo's name cannot be used.
    """
    if options.role == AGGREGATOR:
        name, holds = options.silo_name, {"role": AGGREGATOR}
        logger.info("%s aggregates, and holds no images", name)
    else:
        data = _absolute(options.data_path)
        name, holds = options.silo_name or data.name, {"data-path": str(data)}
        _look_at_images(data, policy, options)
    check_silo_name(name)
    state = _absolute(options.state_path) if options.state_path else folder / "state"
    try:
        check_writable(state / "models")
    except UserError as error:
        raise UserError(f"state-path: {error}") from error
    if options.role != AGGREGATOR:
        _check_every_image(_absolute(options.data_path), state)
    given = {**holds, "silo-name": name, "state-path": str(state)}
    if policy is not None:
        given["policy-path"] = str(policy)
    given |= _sum_keys(folder, name)
    if options.group_column:
        given["group-column"] = options.group_column
    brought = {
        "model-path": (options.model_path, _model_folder),
        "autoencoder-path": (options.autoencoder_path, _autoencoder_folder),
        "init-from": (options.init_from, _public_folder),
        "base-model": (options.base_model, _base_folder),
    }
    given |= {key: str(check(_absolute(path))) for key, (path, check) in brought.items() if path}
    for key, value in given.items():
        check_node_value(key, value)
    return given


def _look_at_images(data: Path, policy: Path | None, options: argparse.Namespace) -> None:
    # Only here: the other actions would wait seconds for torchvision.
    from fedsynth.data import add_groups, image_folder_spec, list_images

    spec = image_folder_spec(data)
    logger.info("%s: %d classes (%s)", data, len(spec.classes), ", ".join(spec.classes))
    for names in look_alikes(spec.classes):
        logger.warning("classes %s: a run refuses them as one, unless its class-names lists all", ", ".join(names))
    if options.group_column:
        listing = list_images(data)
        add_groups(listing, options.group_column)
        groups = len({*listing.groups.values()})
        logger.info("%s: %d images in %d groups ('%s')", data, len(listing.groups), groups, options.group_column)
    _warn_of_few_images(data, policy, options)


def _check_every_image(data: Path, state: Path) -> None:
    from fedsynth.data import ImageCache, warn_of_damaged_images

    warn_of_damaged_images(data, ImageCache(state / "checked"))


def _sum_keys(folder: Path, name: str) -> dict[str, str]:
    """Return where the keys for secure sums are, checked; nothing where the operator has sent no file of all silos'."""
    own, known = folder / SECRET_FILE, folder / KNOWN_FILE
    if not known.exists():
        return {}
    keys = read_secret(own)
    others = known_others(known, name, keys.public)
    for silo, public in sorted(others.items()):
        logger.info("%s: keys for secure sums, SHA-256 %s; compare them with that silo", silo, public.fingerprint)
    aggregators = read_parties(known)[1]
    if aggregators.pop(name, keys.public) != keys.public:
        raise UserError(f"'{known}' has other keys of '{name}' than this aggregator: have the file made anew")
    for node, public in sorted(aggregators.items()):
        logger.info("%s, which aggregates: keys, SHA-256 %s; compare them with it", node, public.fingerprint)
    return {"sum-keys-path": str(own), "known-keys-path": str(known)}


def _warn_of_few_images(data: Path, policy: Path | None, options: argparse.Namespace) -> None:
    from fedsynth.data import largest_held_out_share

    acting = read_policy(policy) if policy else SiloPolicy()
    held_out = largest_held_out_share(RunConfig().data.holdout_fraction, bool(options.group_column))
    images = silo_policy.training_images(data, held_out)
    if options.model_path is None and images < acting.least_training_images:
        logger.warning(
            "about %d images to train on, and the policy says '%s': no model will be trained here",
            images,
            acting.line("least_training_images"),
        )


def supernode_command(folder: Path, options: argparse.Namespace, config: dict[str, str]) -> list[str]:
    """Return the command that runs the silo's SuperNode, alone or beside a process that keeps its model warm."""
    arguments = [
        *("--superlink", options.superlink),
        *("--root-certificates", str(_absolute(options.root_certificates))),
        *("--auth-supernode-private-key", str(folder / "silo.key")),
        *("--node-config", " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in config.items())),
    ]
    if options.warm:
        allowed = [word for digest in options.allow_fab for word in ("--allow-fab", digest)]
        stock = ["--or-stock"] if options.or_stock else []
        return [sys.executable, "-m", "clients.warm.warm_silo", *allowed, *stock, "--", *arguments]
    (port,) = free_ports(1)
    return ["flower-supernode", *arguments, "--port", str(port)]


def _model_folder(path: Path) -> Path:
    if not any((path / name).is_file() for name in ("unet/config.json", "config.json")):
        raise UserError(f"model-path = '{path}' holds no diffusers model: 'fedsynth train-local' makes one")
    return path


def _autoencoder_folder(path: Path) -> Path:
    from fedsynth.latent import read_autoencoder

    found = read_autoencoder(path, "autoencoder-path")
    logger.info("autoencoder %s: 1/%d of the side, SHA-256 %s", path, found.factor, found.digest)
    return path


def _public_folder(path: Path) -> Path:
    from fedsynth.diffusion.public_start import read_public_model

    found = read_public_model(path)
    classes = ", ".join(found.classes) or "no names of classes"
    logger.info("public model %s: %s, SHA-256 %s", path, classes, found.digest)
    return path


def _base_folder(path: Path) -> Path:
    from fedsynth.diffusion.base_model import read_base_model

    found = read_base_model(path)
    logger.info("base model %s: %d weights, SHA-256 %s", path, found.num_weights, found.digest)
    return path


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("silo"), help="the silo's folder (default: silo)")
