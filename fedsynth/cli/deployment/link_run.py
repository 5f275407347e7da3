"""A run on a SuperLink that is already there: start it, follow its log, and stop it when the user does."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedsynth.cli.deployment.flower import app_folder
from fedsynth.cli.deployment.link_folder import CONNECTION, Connection
from fedsynth.cli.deployment.processes import environment_of, show

_STARTED = re.compile(r"Successfully started run (\d+)")


def link_command(setting: Path) -> list[str]:
    """Return the command that runs the app with the configuration in the file ``setting``."""
    return ["flwr", "run", str(app_folder()), CONNECTION, "--stream", "--run-config", str(setting)]


def run_on_link(command: Sequence[str], connection: Connection) -> None:
    """Run to the end. Interrupted, also by SIGTERM, it stops the run at the SuperLink, which would go on without us."""
    connection.write()
    environment = environment_of(connection.home)
    show(command, connection.home)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_id = ""
    try:
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                if found := _STARTED.search(line):
                    run_id = found[1]
    except KeyboardInterrupt:
        if run_id:
            subprocess.run(["flwr", "stop", run_id, CONNECTION], env=environment, check=False)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
