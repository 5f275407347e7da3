"""What a silo starts with: options of ``silo start``, and ``silo.toml`` in the silo's folder, which keeps them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tomli_w

from fedsynth.cli.deployment.link_folder import check_address
from fedsynth.cli.options import read_toml
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError, did_you_mean
from fedsynth.files import atomic_file
from fedsynth.flower_version import FLOWER_VERSION
from fedsynth.policy import POLICY_FILE
from fedsynth.roles import AGGREGATOR, SILO
from fedsynth.text import check_silo_name

SETTINGS_FILE = "silo.toml"
AUTHORITY_FILE = "ca.crt"

_TEXTS = {
    "superlink": ("HOST:PORT", "address that the operator sent"),
    "silo-name": ("NAME", "name that the key is registered under (default: the folder of the images)"),
    "role": ("ROLE", f"{SILO}, or {AGGREGATOR}: a node that holds no images, and aggregates (default: {SILO})"),
    "group-column": ("COLUMN", "column of metadata.csv, .jsonl or .parquet there that no hold-out splits"),
}
_PATHS = {
    "root-certificates": ("CA", f"certificate from the operator (default: {AUTHORITY_FILE} in the silo's folder)"),
    "data-path": ("IMAGES", "the silo's images, one folder per class"),
    "model-path": ("MODEL", "diffusers folder of a model trained before"),
    "autoencoder-path": ("FOLDER", "folder of the autoencoder, for runs in latents"),
    "init-from": ("MODEL", "folder of a public model, for runs that start from it"),
    "base-model": ("FOLDER", "folder of the base model, for runs that fine-tune one"),
    "policy": ("FILE", f"default: {POLICY_FILE} in the silo's folder"),
    "state-path": ("FOLDER", "where models are kept (default: state in the silo's folder)"),
}
_WARM = "warm"
_NAMES = (*_TEXTS, *_PATHS, _WARM)
_NEEDED = {SILO: ("superlink", "data-path"), AGGREGATOR: ("superlink", "silo-name")}
_OF_IMAGES = ("data-path", "model-path", "group-column")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that ``silo.toml`` can keep; None where it is not given."""
    for name, (metavar, text) in _TEXTS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    for name, (metavar, text) in _PATHS.items():
        parser.add_argument(f"--{name}", type=Path, metavar=metavar, help=text)
    parser.add_argument(
        f"--{_WARM}",
        action=argparse.BooleanOptionalAction,
        help=f"keep the model in memory between messages (Flower {FLOWER_VERSION})",
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a user gave, as ``silo.toml`` keeps it: paths are absolute.

    Raises:
        UserError: address or name cannot be used, or there are no images.
    """
    found = {name: value for name in _NAMES if (value := _of(options, name)) is not None}
    if "superlink" in found:
        check_address(found["superlink"], "superlink")
    if "silo-name" in found:
        check_silo_name(found["silo-name"])
    if "role" in found:
        check_role(found["role"])
    for name in _PATHS.keys() & found.keys():
        found[name] = str(found[name].expanduser().absolute())
    if "data-path" in found:
        check_images(Path(found["data-path"]))
    return found


def check_role(role: str) -> None:
    """Refuse what is neither a silo nor an aggregator.

    Raises:
        UserError: it is that.
    """
    if role not in (SILO, AGGREGATOR):
        raise UserError(f"role = '{role}': must be '{SILO}' or '{AGGREGATOR}'")


def check_images(path: Path) -> None:
    """Refuse a ``data-path`` that is no folder, before what reads images takes seconds to import.

    Raises:
        UserError: names it, and a folder beside it that may be meant.
    """
    if not path.expanduser().is_dir():
        raise UserError(f"data-path = '{path}': there is no folder{_beside(path.expanduser())}")


def check_folder(path: Path) -> None:
    """Refuse a silo's folder that is not there.

    Raises:
        UserError: names it, and a folder beside it that may be meant.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder '{path}'{_beside(path)}; 'fedsynth silo init' makes one")


def _beside(path: Path) -> str:
    parent = path.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(path.name, names)


def keep(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write ``silo.toml``: what it holds already, and ``settings``; return all of it.

    Raises:
        UserError: it cannot be read or written.
    """
    kept = {**read(folder), **settings}
    path = folder / SETTINGS_FILE
    if settings:
        with explained_writing(path), atomic_file(path) as temporary:
            temporary.write_text(tomli_w.dumps(kept), encoding="utf-8")
    return kept


def read(folder: Path) -> dict[str, Any]:
    """Return what ``silo.toml`` in a silo's folder holds; nothing where there is none.

    Raises:
        UserError: it cannot be read, or holds what no option is called.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        found = read_toml(path, "options of 'silo start'")
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    for name, value in found.items():
        if name not in _NAMES:
            raise UserError(f"'{path}': unknown '{name}'{did_you_mean(name, _NAMES)}; it holds {', '.join(_NAMES)}")
        if not isinstance(value, bool if name == _WARM else str):
            raise UserError(f"'{path}': {name} = {value!r}: must be {'true or false' if name == _WARM else 'text'}")
    return found


def recall(folder: Path, options: argparse.Namespace, names: Collection[str] = _NAMES) -> None:
    """Set those of the options that were not given to what ``silo.toml`` keeps; a relative path begins at ``folder``.

    Raises:
        UserError: as :func:`read`.
    """
    kept = read(folder)
    for name in names:
        if name in kept and _of(options, name) is None:
            setattr(options, name.replace("-", "_"), folder / kept[name] if name in _PATHS else kept[name])


def complete(folder: Path, options: argparse.Namespace) -> None:
    """Set all options of ``silo start``, from ``silo.toml`` and to what they are by default.

    Raises:
        UserError: one is missing that has no default. Also as :func:`read`.
    """
    recall(folder, options)
    options.role = options.role or SILO
    check_role(options.role)
    if options.role == AGGREGATOR and (idle := next((name for name in _OF_IMAGES if _of(options, name)), "")):
        raise UserError(f"{idle} with role = '{AGGREGATOR}': an aggregator holds no images; leave it out")
    for name in _NEEDED[options.role]:
        if _of(options, name) is None:
            raise UserError(
                f"{name} is not known: give --{name} here, or to 'fedsynth silo init', which keeps it in"
                f" '{folder / SETTINGS_FILE}'"
            )
    if options.role == SILO:
        check_images(options.data_path)
    options.root_certificates = options.root_certificates or folder / AUTHORITY_FILE
    options.silo_name, options.group_column = options.silo_name or "", options.group_column or ""
    options.warm = bool(options.warm)


def _of(options: argparse.Namespace, name: str) -> Any:
    return getattr(options, name.replace("-", "_"))
