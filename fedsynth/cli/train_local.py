"""Train a silo's own model ahead of any run, off-line: a diffusers folder for 'fedsynth silo start --model-path'.

Interrupted, the same command goes on where it stopped. The same images, name and keys give the same model. With
--dp-epsilon the silo's privacy account and policy act as in a run: give its folder, and the name that it starts under.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fedsynth.cli.deployment.app import with_sides
from fedsynth.cli.options import add_keys, given_keys, refuse_rest
from fedsynth.cli.silo import acting_policy
from fedsynth.config import REAL_SILOS, RunConfig, keys_of
from fedsynth.files import write_json
from fedsynth.policy import POLICY_FILE
from fedsynth.text import check_silo_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The images, where the model goes, and one option a key that decides how it is trained."""
    parser.add_argument("--data-path", required=True, type=Path, help="the silo's images, one folder per class")
    parser.add_argument("--out", required=True, type=Path, help="folder of the trained model; must not exist")
    parser.add_argument("--silo-name", default="", help="name of the silo (default: the folder of the images)")
    parser.add_argument("--group-column", default="", help="column of a table there, such as patient, never split")
    parser.add_argument("--folder", type=Path, default=Path("silo"), help="the silo's folder (default: silo)")
    parser.add_argument("--state-path", type=Path, help="the silo's --state-path (default: state in its folder)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help=f"default: {POLICY_FILE} in the silo's folder")
    add_keys(parser, "--data-path IMAGES --out FOLDER [--silo-name NAME]", keys_of("train-local"))


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Train in a process of its own, which is the silo's side of the project.

    Raises:
        UserError: bad configuration.
    """
    refuse_rest("train-local", rest)
    config = RunConfig.from_run_config({**given_keys(options, keys_of("train-local")), "dataset": REAL_SILOS})
    data, out, own = (path.expanduser().absolute() for path in (options.data_path, options.out, options.folder))
    name = options.silo_name or data.name
    order = {
        "data-path": str(data),
        "silo-name": name,
        "out": str(out),
        "config": config.to_run_config(),
        "group-column": options.group_column,
    }
    if config.private:
        check_silo_name(name)
        state = (options.state_path or own / "state").expanduser().absolute()
        order |= {"state-path": str(state), "policy-path": str(acting_policy(own, options.policy) or "")}
    with tempfile.TemporaryDirectory(prefix="fedsynth-") as folder:
        file = Path(folder) / "order.json"
        write_json(file, order)
        status = _train(file)
    if status == 0 and config.private:
        print("\n'fedsynth silo privacy' says what this has cost the images, together with all else")
    if status == 0:
        print(f"\nmodel {out}\nbring it along: fedsynth silo start --model-path {out} ...")
    return status


def _train(order: Path) -> int:
    command = [sys.executable, "-m", "clients.pretrain", str(order)]
    with subprocess.Popen(command, env=with_sides(os.environ)) as process:
        try:
            return process.wait()
        except BaseException:
            # Ctrl-C has reached it too; a signal to this process alone has not.
            process.terminate()
            print("\nthe same command goes on where it stops now", file=sys.stderr)
            raise
