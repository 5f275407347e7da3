"""Real silos in this process: folders of digits with class sets of their own, and whole runs over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from acting_settings import acting
from flwr.app import Context, Message, RecordDict
from one_silo import policy_file
from PIL import Image
from tiny_runs import log_for_caplog, tiny_settings

import clients.app
import strategies.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import Scalar
from fedsynth.data import load_dataset
from fedsynth.output import RunFolder
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import write_known, write_secret

CLASSES: dict[str, Sequence[int]] = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}
"""Silo -> digits it holds."""


def write_digits(folder: Path, digits: Sequence[int], part: int, per_class: int = 12, size: int = 8) -> Path:
    """Write images of some digits as PNGs, one folder a class; other parts hold other images."""
    train, _ = load_dataset("digits", image_size=size)
    for digit in digits:
        rows = np.flatnonzero(train.labels == digit)[part * per_class : (part + 1) * per_class]
        (folder / str(digit)).mkdir(parents=True)
        for row in rows:
            Image.fromarray(train.images[row, :, :, 0]).save(folder / str(digit) / f"{row}.png")
    return folder


def write_few_labels(folder: Path, digits: Sequence[int], labelled: int, unlabelled: int) -> Path:
    """Write so many images of each digit in class folders, and so many of all digits without labels."""
    if digits and labelled:
        write_digits(folder, digits, 0, labelled)
    (folder / "unlabelled").mkdir(parents=True)
    train, _ = load_dataset("digits", image_size=8)
    for row in range(len(train) - unlabelled, len(train)):
        Image.fromarray(train.images[row, :, :, 0]).save(folder / "unlabelled" / f"{row}.png")
    return folder


def write_silos(folder: Path, classes: Mapping[str, Sequence[int]] = CLASSES) -> dict[str, Path]:
    """Write the images of every silo below ``folder``."""
    return {name: write_digits(folder / name, digits, part) for part, (name, digits) in enumerate(classes.items())}


def real_settings(folder: Path, **changes: Scalar) -> dict[str, Scalar]:
    """A tiny run config of real silos; changes in snake case."""
    given = acting({"copy_check": False, "early_stop": False}, {"dataset": "silos", **changes})
    return tiny_settings(folder, **given)


def keys_for_sums(folder: Path, names: Sequence[str], aggregators: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Make what 'silo init' and 'link keys' make, and return it as further node config by silo or aggregator."""
    secrets = {name: SecretKeys.generate() for name in (*names, *aggregators)}
    silos, others = ({name: secrets[name].public for name in part} for part in (names, aggregators))
    given = {}
    for name, keys in secrets.items():
        own = folder / name
        own.mkdir(parents=True)
        write_secret(own / "sums.key", keys)
        write_known(own / "silo-keys.json", silos, others)
        given[name] = {"sum-keys-path": str(own / "sums.key"), "known-keys-path": str(own / "silo-keys.json")}
    return given


def _holds(path: Path | None) -> dict[str, str]:
    return {"role": "aggregator"} if path is None else {"data-path": str(path)}


def run_real(
    settings: dict[str, Scalar],
    silos: Mapping[str, Path | None],
    tamper: Callable[[list[Message]], list[Message]] = lambda replies: replies,
    **node_config: Mapping[str, str],
) -> RunFolder:
    """Run the ServerApp against silos with folders of their own; further node config by silo, keys in kebab case.

    One without a folder aggregates.
    Without a ``policy-path`` of its own a silo allows everything.
    """
    folder = Path(str(settings["state-dir"])) / "silos"
    given = {"state-path": str(folder), "policy-path": policy_file(folder)}
    nodes = [{**_holds(path), "silo-name": name, **given, **node_config.get(name, {})} for name, path in silos.items()]
    grid = InProcessGrid(clients.app.app, settings, len(nodes), tamper, nodes)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    with log_for_caplog():
        strategies.app.app(grid, context)
    return RunFolder(Path(str(settings["output-dir"])) / str(settings["run-name"]))
