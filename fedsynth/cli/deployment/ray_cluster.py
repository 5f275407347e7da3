"""An existing Ray cluster that simulated silos work on: what it has, and whether it can."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedsynth import __version__
from fedsynth.config import KEYS, RunConfig
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.text import printable

_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Cluster:
    """What simulated silos can have of a cluster, all its machines together.

    Attributes:
        nodes: machines.
        cpus: CPUs.
        gpus: GPUs.
    """

    nodes: int
    cpus: int
    gpus: int


def cluster_at(config: RunConfig, home: Path, environment: Mapping[str, str]) -> Cluster:
    """Return what the cluster at ``ray-address`` has.

    Args:
        config: with absolute paths.
        home: ``FLWR_HOME``, from where its machines read the app.
        environment: of the run's processes.

    Raises:
        UserError: it does not answer, lacks CPUs, or a machine of it has another fedsynth or does not see the folders.
    """
    address = config.run.ray_address
    with _marked(home) as of_home, _marked(Path(config.run.state_dir)) as of_state:
        seen = {of_home: f"FLWR_HOME = '{home}'", of_state: f"state-dir = '{config.run.state_dir}'"}
        seen |= _read_by_silos(config)
        machines = _ask(address, [*seen], environment)
    for machine in machines:
        where = f"ray-address = '{address}': machine {machine['address']}"
        if problem := machine.get("problem"):
            raise UserError(f"{where}: {printable(problem, 300)}; every machine needs the same Python environment")
        if machine["version"] != __version__:
            raise UserError(f"{where} has fedsynth {machine['version']}, this one {__version__}: install the same")
        for path in machine["missing"]:
            raise UserError(f"{where} does not see {seen[path]}: put it into a folder that all machines share")
    cluster = Cluster(len(machines), sum(int(m["cpus"]) for m in machines), sum(int(m["gpus"]) for m in machines))
    if not cluster.cpus:
        raise UserError(f"ray-address = '{address}': the cluster has no CPU for a silo: start its machines with some")
    return cluster


def _read_by_silos(config: RunConfig) -> dict[str, str]:
    """Return the other paths that silos read, with how a message names each."""
    flat = config.to_run_config()
    names = [name for name in flat if KEYS[name].facts.path and name not in ("output-dir", "state-dir")]
    return {str(flat[name]): f"{name} = '{flat[name]}'" for name in names if flat[name]}


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """Put a file into a folder while the block runs: another machine may have another folder of the same name."""
    mark = folder / f".{uuid4().hex}.part"
    with explained_writing(mark):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def _ask(address: str, paths: Sequence[str], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "fedsynth.cli.deployment.ray_probe", *paths]
    try:
        asked = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", timeout=_LIMIT_SECONDS, check=True
        )
        machines: list[dict[str, Any]] = json.loads(asked.stdout.strip().splitlines()[-1])
        return machines
    except subprocess.TimeoutExpired:
        why = f"no answer within {_LIMIT_SECONDS:g} s"
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
    except (ValueError, IndexError) as error:
        why = str(error)
    raise UserError(
        f"ray-address = '{address}': {printable(why, 300)}; start the cluster, and have this machine join it with 'ray"
        f" start --address={address}'"
    )
