"""A whole run in this process, silos included: what ``fedsynth run`` does, without Ray."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.keywords import flat
from fedsynth.api.quiet import quiet_diffusers
from fedsynth.api.run import Run
from fedsynth.cli.run import configuration
from fedsynth.config import REAL_SILOS, RunConfig, Scalar
from fedsynth.errors import UserError, unknown_choice
from fedsynth.logs import LineFormatter
from fedsynth.sides import make_sides_importable

logger = logging.getLogger("fedsynth")

Answer = Callable[[Message, Context], Message]

SILO_KEYS = {
    "data_path": "data-path",
    "model_path": "model-path",
    "policy_path": "policy-path",
    "autoencoder_path": "autoencoder-path",
    "base_model": "base-model",
    "group_column": "group-column",
}
"""What can be said of a silo of one's own -> key of its node config."""


def synthesise(
    settings: str | Path | RunConfig | Mapping[str, Any] | None = None,
    *,
    silos: Mapping[str, str | Path | Mapping[str, str | Path]] | None = None,
    progress: bool = True,
    **keywords: Any,
) -> Run:
    """Have silos make one synthetic dataset, in this process, and return the finished run.

    Everything is as after ``fedsynth run`` with the same settings: the same images, and the same folder on disk. The
    silos work one after the other, each with all of torch's threads; ``fedsynth run`` has them work side by side.

    Args:
        settings: a TOML file of configuration keys, a configuration, or a mapping of keys; None: the defaults. Every
            key and its range: ``docs/configuration.md``.
        silos: institutions with images of their own, by name, in place of shares of one dataset: the folder of a
            silo's images, one folder a class, or a mapping with that as ``data_path`` and, if wanted, ``model_path`` (a
            diffusers folder, in place of training), ``policy_path``, ``autoencoder_path``, ``base_model`` and
            ``group_column``, as for ``fedsynth silo start``. Without a policy of its own a silo keeps to the
            default.
        progress: whether lines on how far it is go where the logging of this program says, or to standard error if it
            says nothing; otherwise warnings only. ``log.txt`` in the run folder has all of them.
        **keywords: configuration keys in snake case; they go before those of ``settings``. ``strategy``, ``dataset``
            and ``sampler`` also take the class or function itself, if it stands at the top of a module; several words,
            such as ``classifiers``, may be a list. ``resume`` continues a run that was interrupted.

    Raises:
        UserError: settings, images or folders cannot be used, or other projects' packages hide ours; before anything is
            trained.
        RunError: too few silos gave a usable answer.
    """
    make_sides_importable()
    _check_types(settings, silos)
    given = {} if settings is None or isinstance(settings, str | Path) else flat(settings)
    file = Path(settings).expanduser() if isinstance(settings, str | Path) else None
    usual: dict[str, Scalar] = {} if silos is None else {"dataset": REAL_SILOS, "num-clients": len(silos)}
    chosen = {**given, **flat(keywords)}
    if not chosen.get("resume"):  # of a whole configuration
        chosen.pop("resume", None)
    config = configuration(file, chosen, usual)
    if config.run.ray_address:
        raise UserError(
            f"ray-address = '{config.run.ray_address}': here the silos work in this process; leave it out, or use"
            " 'fedsynth run'"
        )
    nodes = None if silos is None else _node_configs(silos, config)
    with _lines_shown(progress), quiet_diffusers():
        # Their import silences diffusers, as suits the processes of a deployment: here for the run only.
        import clients.app
        from strategies.app import run_synthesis

        with _interruptible(clients.app.app) as answer:
            grid = InProcessGrid(answer, config.to_run_config(), config.num_nodes, node_configs=nodes)
            folder = run_synthesis(grid, config)
    return Run(folder.path)


def _check_types(settings: object, silos: object) -> None:
    if not (settings is None or isinstance(settings, str | Path | RunConfig | Mapping)):
        raise UserError(
            f"settings: an object of {type(settings).__name__}: give a TOML file, a RunConfig or a mapping of keys"
        )
    if silos is not None and not (isinstance(silos, Mapping) and silos):
        got = "none is named" if isinstance(silos, Mapping) else f"an object of {type(silos).__name__}"
        raise UserError(f"silos: {got}: give a mapping of names to the folders of their images")


def _node_configs(
    silos: Mapping[str, str | Path | Mapping[str, str | Path]], config: RunConfig
) -> list[dict[str, str]]:
    """Return what Flower would tell each silo of itself.

    Raises:
        UserError: a word that says nothing of a silo, or a folder or file of one that is not there; all are named.
    """
    if config.data.dataset != REAL_SILOS:
        raise UserError(f"dataset = '{config.data.dataset}': with silos the images are theirs; leave out dataset")
    if config.run.num_clients != len(silos):
        raise UserError(f"num-clients = {config.run.num_clients}: there are {len(silos)} silos; leave out num-clients")
    made = []
    for name, said in silos.items():
        facts = dict(said) if isinstance(said, Mapping) else {"data_path": said}
        if wrong := [word for word in facts if word not in SILO_KEYS]:
            raise unknown_choice(f"word of silo '{name}'", wrong[0], SILO_KEYS)
        if "data_path" not in facts:
            raise UserError(f"silo '{name}' has no data_path: give the folder of its images")
        node = {SILO_KEYS[word]: str(value) for word, value in facts.items()}
        made.append({"silo-name": name, "state-path": str(Path(config.run.state_dir) / "silos"), **node})
    if missing := [said for node in made for said in _missing(node)]:
        raise UserError(f"there is no {'; no '.join(missing)}: correct the path, or put there what is meant")
    return made


def _missing(node: Mapping[str, str]) -> Iterator[str]:
    """Say which paths of a silo lead nowhere."""
    for word, key in SILO_KEYS.items():
        if word == "group_column" or key not in node:
            continue
        place = Path(node[key]).expanduser()
        if word == "policy_path":
            if not place.exists():
                yield f"file '{node[key]}' (silo '{node['silo-name']}', {word})"
        elif not place.is_dir():
            yield f"folder '{node[key]}' (silo '{node['silo-name']}', {word})"


@contextlib.contextmanager
def _lines_shown(progress: bool) -> Iterator[None]:
    """Send the run's lines where logging says, or to standard error; without ``progress`` warnings alone."""
    level, propagate, before = logger.level, logger.propagate, [*logger.handlers]
    logger.setLevel(logging.INFO)  # log.txt has them in any case
    if not (progress and logger.hasHandlers()):
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.INFO if progress else logging.WARNING)
        handler.setFormatter(LineFormatter("fedsynth %(asctime)s %(message)s", "%H:%M:%S"))
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
        logger.setLevel(level)


@contextlib.contextmanager
def _interruptible(app: Answer) -> Iterator[Answer]:
    """Have the silos answer in a thread of their own.

    Whatever goes wrong while a silo answers becomes an error answer, and the run goes on without that silo. Ctrl-C
    reaches the main thread alone, and there it ends the run.
    """
    # A new thread begins with OpenMP's own number of threads.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        yield lambda message, context: pool.submit(app, message, context).result()
