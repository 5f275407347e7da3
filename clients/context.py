"""From a Flower context to the silo behind it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context

from fedsynth.config import AUTO, RunConfig
from fedsynth.data import Federation, Silo, folder_silo, image_folder_spec, load_federation
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

FULL = 2**20
"""A disk with fewer bytes free is full: torch and safetensors do not say why they could not write."""


@lru_cache(maxsize=2)
def _federation(config: RunConfig) -> Federation:
    """The simulated silos' dataset, read once a process: one Ray actor serves many clients."""
    return load_federation(config)


def silo_name(context: Context) -> str:
    """Name of the silo in logs and answers: ``silo-name``, its folder, or ``silo-<partition-id>``."""
    node = context.node_config
    if "silo-name" in node:
        return str(node["silo-name"])
    if "data-path" in node:
        return Path(str(node["data-path"])).name
    return f"silo-{node['partition-id']}" if "partition-id" in node else f"node-{context.node_id}"


def is_simulated(context: Context) -> bool:
    """Whether the silo is a partition of a named dataset."""
    return "partition-id" in context.node_config and "data-path" not in context.node_config


def identity(context: Context) -> ConfigRecord:
    """The ``silo`` record of every answer."""
    if is_simulated(context):
        return ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
    return ConfigRecord({"silo-name": silo_name(context)})


def open_silo(context: Context, config: RunConfig, spec: ImageSpec) -> Silo:
    """Open the silo's own folder (``data-path`` of the node config), or its partition of the named dataset.

    Raises:
        UserError: neither is given, or the images cannot be used.
    """
    node = context.node_config
    if "data-path" in node:
        return folder_silo(
            Path(str(node["data-path"])),
            silo_name(context),
            holdout_fraction=config.data.holdout_fraction,
            seed=config.run.seed,
            image_size=spec.size,
            channels=spec.channels,
            classes=spec.classes,
            skip_bad_images=config.data.skip_bad_images,
        )
    if "partition-id" in node:
        partition = int(node["partition-id"])
        if partition >= config.run.num_clients:
            raise UserError(
                f"num-clients = {config.run.num_clients}, but there is a partition {partition}:"
                " set num-supernodes and num-clients to the same number"
            )
        return _federation(config).silo(partition, config)
    raise UserError(
        "node config holds neither 'data-path' nor 'partition-id': start with --node-config 'data-path=\"…\"'"
    )


def describe_silo(context: Context, config: RunConfig) -> ImageSpec:
    """Return format and class names of the silo's own folder; other sizes than ``image-size`` count as that one.

    Raises:
        UserError: it has no folder of its own, or that one cannot be used.
    """
    if "data-path" not in context.node_config:
        raise UserError("dataset = 'silos' needs 'data-path' in the node config: start with 'fedsynth silo start'")
    size = config.data.image_size
    return image_folder_spec(Path(str(context.node_config["data-path"])), None if size == AUTO else size)


def model_path(context: Context) -> Path | None:
    """The folder of the model that a silo brings along (``model-path`` of the node config), if it does."""
    given = str(context.node_config.get("model-path", ""))
    return Path(given).expanduser() if given else None


def state_folder(context: Context, config: RunConfig) -> Path:
    """Where this silo keeps its models: ``state-path`` of the node config, otherwise ``state-dir`` of the run."""
    silo = re.sub(r"[^\w.-]", "_", silo_name(context))
    return Path(str(context.node_config.get("state-path", config.run.state_dir))).absolute() / silo


@contextmanager
def explained_state(folder: Path) -> Iterator[None]:
    """Say in the block's stead that the state folder is full or cannot be written.

    Raises:
        UserError: an ``OSError`` of the block, or whatever a library made of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise _state_error(folder, error.strerror or str(error)) from error
    except UserError:
        raise
    except Exception as error:
        if folder.exists() and shutil.disk_usage(folder).free < FULL:
            raise _state_error(folder, "no space left on that disk") from error
        raise


def _state_error(folder: Path, reason: str) -> UserError:
    return UserError(f"state folder '{folder}': {reason}: make room there, or start the silo with another --state-path")
