"""What stands in for ``flwr run`` where only what goes in and what comes out matters."""

from __future__ import annotations

import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsynth.output import RunFolder


@dataclass
class FakeFlower:
    """Stands in for the ``flwr run`` process.

    Attributes:
        leave: what the run leaves in its folder: nothing, a log, results, or its configuration and status.
        raises: what happens to the process.
        commands: command lines it was started with.
    """

    leave: str = "results"
    raises: BaseException | None = None
    commands: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, command: list[str], *, env: dict[str, str], **how: bool) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.environments.append(env)
        folder = RunFolder(Path(self.settings["output-dir"]) / self.settings["run-name"])
        assert folder.path.is_dir()
        if self.leave != "nothing":
            folder.log.write_text("log")
        if self.leave == "results":
            folder.write_results({})
        if self.leave == "config":
            folder.write_config({"config": self.settings, "resolved": []})
            status = {"state": "running", "pid": 1, "round": 0, "rounds": 9, "updated": "2026-11-20T10:00:00+00:00"}
            folder.write_status(status)
        if self.raises is not None:
            raise self.raises
        return subprocess.CompletedProcess(command, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """The run config that Flower would read."""
        command = self.commands[-1]
        return tomllib.loads(Path(command[command.index("--run-config") + 1]).read_text())
