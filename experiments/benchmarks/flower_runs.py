"""Simulations through Flower, each with a Flower home of its own that is stopped at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from fedsynth.cli.deployment.flower import flower_environment, prepare_home, stop_superlinks
from fedsynth.config import Scalar
from fedsynth.errors import RunError
from fedsynth.output import RunFolder

_ECHO_APP = Path(__file__).with_name("echo_app")
_TEN_SILOS = "num-supernodes=10 client-resources-num-cpus=1 client-resources-num-gpus=0.0"


def synthesise(folder: Path, name: str, settings: Mapping[str, Scalar]) -> RunFolder:
    """Run ``fedsynth run`` with ``settings``; run folder, models and log go to ``folder``.

    Raises:
        RunError: the run failed; says where its log is.
    """
    paths = {"output-dir": str(folder / "runs"), "state-dir": str(folder / "models"), "run-name": name}
    setting = folder / f"{name}.toml"
    setting.write_text(tomli_w.dumps({**settings, **paths}), encoding="utf-8")
    _call([sys.executable, "-m", "fedsynth.cli", "run", str(setting)], folder, name)
    return RunFolder(folder / "runs" / name)


def echo_seconds(folder: Path, turns: int) -> dict[str, dict[str, list[float]]]:
    """Run the echo app; return seconds per round by rhythm and loop, ten rounds per turn.

    Raises:
        RunError: the run failed; says where its log is.
    """
    output = folder / "echo.json"
    config = f'turns={turns} output="{output}"'
    flags = ["--stream", "--federation-config", _TEN_SILOS, "--run-config", config]
    _call(["flwr", "run", str(_ECHO_APP), "local", *flags], folder, "echo")
    if not output.is_file():
        raise RunError(f"the echo app wrote no result; see {folder / 'echo.log'}")
    return dict(json.loads(output.read_text(encoding="utf-8")))


def _call(command: list[str], folder: Path, name: str) -> None:
    home = folder / "flwr-home"
    prepare_home(home)
    environment = {**flower_environment(), "FLWR_HOME": str(home)}
    log = folder / f"{name}.log"
    try:
        with log.open("wb") as file:
            done = subprocess.run(
                command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
    finally:
        stop_superlinks(home)
    if done.returncode:
        raise RunError(f"'{' '.join(command[:4])} …' failed; see {log}")
