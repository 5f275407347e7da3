"""Run one synthesis, in simulation or on a link: a named setting, changed by options, through ``flwr run``.

With ``--superlink`` the silos are real: those that ``fedsynth silo start`` has connected to the SuperLink. Give its
link folder. The run folder is written by the SuperLink's machine: elsewhere, the last lines say how to fetch it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import tomli_w

from fedsynth.cli.deployment.app import program_digest, program_version, staged_app
from fedsynth.cli.deployment.flower import (
    SIMULATION,
    flower_environment,
    flower_home,
    prepare_home,
    stop_superlinks,
    superlinks,
)
from fedsynth.cli.deployment.flower_output import echoed, failure
from fedsynth.cli.deployment.link_folder import Connection, connection_to
from fedsynth.cli.deployment.link_run import link_command, run_on_link, where_it_lies
from fedsynth.cli.deployment.local_superlink import start_superlink
from fedsynth.cli.deployment.machine import prepare_machine
from fedsynth.cli.deployment.processes import guarded, kill_marked, show
from fedsynth.cli.deployment.ray_cluster import Cluster, cluster_at
from fedsynth.cli.options import ALL_KEYS, add_keys, given_keys, read_toml, refuse_rest
from fedsynth.cli.stopped_run import note_stop, read_state, wait_for_server
from fedsynth.cli.stopping import StoppedError
from fedsynth.cli.sweeps.run_process import MARK
from fedsynth.config import AUTO, KEYS, REAL_SILOS, RunConfig, Scalar
from fedsynth.disk import explained_writing
from fedsynth.errors import RunError, UserError
from fedsynth.files import atomic_file
from fedsynth.locks import locked
from fedsynth.output import RunFolder, default_name
from fedsynth.plugins import is_plugin
from fedsynth.spec import ImageSpec
from fedsynth.tracking import check_tracker

SWEEP_WORDS = frozenset({"base", "seeds", "grid", "zip", "method", "run"})
"""Words of a sweep file that are no configuration keys."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option a configuration key."""
    parser.add_argument("setting", nargs="?", type=Path, help="TOML file of configuration keys")
    parser.add_argument("--superlink", metavar="LINK", help="link folder of this machine, or HOST:PORT: real silos")
    parser.add_argument("--root-certificates", type=Path, metavar="CA", help="ca.crt, with HOST:PORT")
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what every silo would be asked, and of which program"
    )
    add_keys(parser, "[SETTING.toml] [--superlink LINK] [--dry-run]")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Check everything that can be checked without a silo, then run, and say where the results are.

    Raises:
        UserError: bad configuration or data.
        RunError: the run ended without results.
    """
    refuse_rest("run", rest, [*ALL_KEYS, "dry-run"])
    config = _configuration(options)
    check_tracker(config.run.tracker)
    connection = _connection(options, config)
    home = flower_home()
    spec = _checked(config, home, options.dry_run) if connection is None else None
    if options.dry_run:
        if connection is not None:
            print(f"program SHA-256 {program_digest()}\n  of {program_version()}")
        return _show_plan(config, spec)
    if connection is None:
        prepare_machine(home)
    resumed = Path(config.run.resume) if config.run.resume else None
    folder = RunFolder(resumed) if resumed else RunFolder.create(Path(config.run.output_dir), config.run.run_name)
    before, status = _last_change(folder.results), read_state(folder)
    output = home / "run-logs" / f"{folder.path.name}.txt"
    there = ""
    try:
        if connection is None:
            _simulate(config, home, output)
        else:
            command = link_command(staged_app(connection.home), _write_setting(config, connection.home))
            there = run_on_link(command, connection)
    except StoppedError as stopped:
        if stopped.said:
            raise
        wait_for_server(folder)
        said = note_stop(folder, status, stopped.name, _link_options(options))
        raise StoppedError(stopped.number, said) from None
    finally:
        if folder.path.is_dir() and not any(folder.path.iterdir()):
            folder.path.rmdir()
    if _last_change(folder.results) == before:
        if connection is not None and there:
            print(f"\n{where_it_lies(there, connection.address, folder.path)}")
            return 0
        raise RunError(f"the run ended without results{failure(None if connection else output, folder.log)}")
    print(f"\nrun folder {folder.path}\nreport     {folder.report}")
    return 0


def _checked(config: RunConfig, home: Path, dry_run: bool) -> ImageSpec | None:
    """Check that a simulation can begin; return format and classes of its images.

    None where a sweep has looked at them, and the ServerApp will: here torch alone would take seconds of each run.
    """
    if not dry_run:
        refuse_if_busy(home)
    return check_data(config) if dry_run or MARK not in os.environ else None


def _link_options(options: argparse.Namespace) -> str:
    """Return the options of ``fedsynth run`` that say where its silos are, as a shell takes them."""
    given = {"--superlink": options.superlink, "--root-certificates": options.root_certificates}
    return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None)


def _connection(options: argparse.Namespace, config: RunConfig) -> Connection | None:
    """Return how to reach the SuperLink of a run with real silos; None for a simulation.

    Raises:
        UserError: the SuperLink cannot be used, or one of ``superlink`` and ``dataset`` speaks of real silos alone.
    """
    dataset = config.data.dataset
    if options.superlink is None:
        if dataset == REAL_SILOS:
            raise UserError(f"dataset = '{dataset}': the silos are real; give --superlink LINK")
        return None
    if dataset != REAL_SILOS:
        raise UserError(f"dataset = '{dataset}': with --superlink the images are the silos' own; leave out --dataset")
    return connection_to(options.superlink, options.root_certificates)


def check_data(config: RunConfig) -> ImageSpec:
    """Load and share out the images, and build the network for them; return their format and classes.

    Raises:
        UserError: either cannot be done.
    """
    # Here and below: what needs no images, such as --help, would wait seconds for torch.
    from fedsynth.data import load_federation
    from fedsynth.diffusion import initial_unet

    spec = load_federation(config).spec
    initial_unet(config, spec)
    return spec


def _show_plan(config: RunConfig, spec: ImageSpec | None) -> int:
    from fedsynth.cli.planned import planned

    print(f"each of {config.run.num_clients} silos is asked at most")
    print("\n".join(f"  {line}" for line in planned(config, spec)[1]))
    return 0


def refuse_if_busy(home: Path) -> None:
    """Raise UserError while a SuperLink of this ``FLWR_HOME`` is running."""
    if superlinks(home):
        raise UserError(
            f"a local SuperLink of {home} is running: wait for its run; or end it with 'fedsynth stop', and go on with"
            " 'fedsynth run --resume' later"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration as processes with another working directory understand it."""
    flat = config.to_run_config()
    changes: dict[str, Scalar] = {key: _absolute(str(flat[key])) for key in flat if KEYS[key].facts.path and flat[key]}
    return RunConfig.from_run_config({**flat, **changes})


def _fixed_besides(known: RunConfig) -> tuple[str, ...]:
    """Return the keys that a run may not change when it continues, as its own models were trained before the rounds."""
    in_rounds = is_plugin(known.run.strategy) or hasattr(known.settings, "num_rounds")
    return () if in_rounds else ("num-rounds", "train-steps")


def _last_change(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _configuration(options: argparse.Namespace) -> RunConfig:
    """Merge file, or the configuration of the run to resume, and options, with absolute paths and a run name."""
    real = {} if options.superlink is None else {"dataset": REAL_SILOS}
    return configuration(options.setting, given_keys(options), real)


def configuration(
    setting: Path | None, chosen: Mapping[str, Scalar], usual: Mapping[str, Scalar] = MappingProxyType({})
) -> RunConfig:
    """Return the configuration of a run: with absolute paths, a run name, and as many silos as are given.

    Args:
        setting: file of configuration keys; None: there is none.
        chosen: keys that go before those of the file, or before those of the run that ``resume`` names.
        usual: defaults, where neither says anything.

    Raises:
        UserError: a key, the file, or the run to resume cannot be used.
    """
    earlier, chosen = _run_to_resume(setting, chosen), {key: chosen[key] for key in chosen if key != "resume"}
    if earlier:
        earlier.refuse_changes(chosen, _fixed_besides(earlier.read_config()))
    given = {**usual, **(_continued(earlier, chosen) if earlier else read_setting(setting)), **chosen}
    config = with_absolute_paths(RunConfig.from_run_config(given))
    if "num-clients" not in given:
        config = _with_all_silos(config)
    if config.run.run_name == AUTO:
        run = config.run
        name = default_name(run.strategy, config.data.dataset, run.seed, datetime.now())
        config = RunConfig.from_run_config({**config.to_run_config(), "run-name": name})
    return config


def _with_all_silos(config: RunConfig) -> RunConfig:
    """Return the configuration with as many silos as the dataset itself has; as it is where it has none."""
    from fedsynth.data import natural_silos

    silos = natural_silos(config)
    return RunConfig.from_run_config({**config.to_run_config(), "num-clients": len(silos)}) if silos else config


def _run_to_resume(setting: Path | None, chosen: Mapping[str, Scalar]) -> RunFolder | None:
    """Return the folder that ``resume`` names.

    Raises:
        UserError: there is no run, or something else is given that it decides.
    """
    if "resume" not in chosen:
        return None
    if setting:
        raise UserError(f"--resume takes over the configuration of the run: leave out '{setting}'")
    for key in ("run-name", "output-dir"):
        if key in chosen:
            raise UserError(
                f"{key} = {chosen[key]!r}: a run continues in its own folder; leave out --{key} with --resume"
            )
    return RunFolder.open(Path(_absolute(str(chosen["resume"]))))


def _continued(earlier: RunFolder, chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the configuration of an earlier run; more rounds bring optimiser steps in proportion."""
    config, path = earlier.read_config(), earlier.path
    given = {**config.to_run_config(), "resume": str(path), "output-dir": str(path.parent), "run-name": path.name}
    if "num-rounds" in chosen and "train-steps" not in chosen and not config.private:
        had, wanted = given["num-rounds"], chosen["num-rounds"]
        if isinstance(had, int) and isinstance(wanted, int) and wanted > 0:
            given["train-steps"] = config.training.train_steps * wanted // had
    return given


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def read_setting(path: Path | None) -> dict[str, Any]:
    """Return the content of a setting file, of None nothing.

    Raises:
        UserError: there is no such file, it is not TOML, it is a sweep, or it names a run to resume.
    """
    if path is None:
        return {}
    try:
        setting = read_toml(path, "configuration keys")
    except UserError as error:
        raise UserError(f"setting '{path}': {error}") from None
    # A table [run] is no sweep's, which has [[run]]: it is refused as the unknown key that it is.
    if setting.keys() & SWEEP_WORDS and not isinstance(setting.get("run"), dict):
        raise UserError(f"setting '{path}' is a sweep: start it with 'fedsynth sweep {path}'")
    if setting.get("resume"):
        raise UserError(f"setting '{path}': resume = {setting['resume']!r}: give --resume and no setting file instead")
    return setting


def _command(config: RunConfig, home: Path, cluster: Cluster | None) -> list[str]:
    setting = _write_setting(config, home)
    resources = {
        "num-supernodes": config.num_nodes,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": gpu_share(config, cluster),
    }
    federation = " ".join(f"{key}={json.dumps(value)}" for key, value in resources.items())
    flags = ["--stream", "--federation-config", federation, "--run-config", str(setting)]
    return ["flwr", "run", str(staged_app(home)), "local", *flags]


def _write_setting(config: RunConfig, home: Path) -> Path:
    setting = home / "run-configs" / f"{config.run.run_name}.toml"
    with explained_writing(setting), atomic_file(setting) as temporary:
        temporary.write_text(tomli_w.dumps(config.to_run_config()), encoding="utf-8")
    return setting


def gpu_share(config: RunConfig, cluster: Cluster | None = None) -> float:
    """Share of a GPU each simulated silo gets: enough for all at once, 0 without CUDA.

    Ray keeps shares as float32, so that ten times 0.1 does not fit one GPU: the share is rounded down.
    """
    if config.run.device == "cpu":
        return 0.0
    if cluster is None:
        import torch

        gpus, cpus = torch.cuda.device_count() if torch.cuda.is_available() else 0, os.cpu_count() or 1
    else:
        gpus, cpus = cluster.gpus, cluster.cpus
    return min(1.0, int(9999 * gpus / min(config.num_nodes, cpus)) / 10000)


def _simulate(config: RunConfig, home: Path, output: Path) -> None:
    """Run to the end; afterwards, also after a signal, nothing runs that was started for it."""
    prepare_home(home)
    address = config.run.ray_address
    environment = flower_environment(address)
    cluster = cluster_at(config, home, environment) if address else None
    if cluster is not None:
        print(f"Ray cluster {address}: {cluster.nodes} machines, {cluster.cpus} CPUs, {cluster.gpus} GPUs")
    command, mark = _command(config, home, cluster), uuid4().hex
    show(command, home)
    print(f"Flower and Ray start, which takes some seconds; all they say: {output}", flush=True)
    environment[SIMULATION] = mark
    with locked(home / "run.lock", f"FLWR_HOME '{home}'"), guarded(SIMULATION, mark), echoed(output) as stream:
        try:
            # In sessions of their own: Ctrl-C in a terminal reaches this process alone, which ends the others.
            if start_superlink(home, environment, output):
                subprocess.run(
                    command, env=environment, check=False, stdout=stream, stderr=stream, start_new_session=True
                )
        except BaseException:
            # At once: silos that end one after the other would be left out of a round that is counted as finished.
            kill_marked(mark, SIMULATION)
            raise
        finally:
            stop_superlinks(home)
