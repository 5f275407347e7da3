"""Say how a run stands: silos, their last answers, rounds done, time left; by default of the newest run in 'runs'."""

from __future__ import annotations

import argparse
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsynth.cli.deployment.processes import is_alive
from fedsynth.cli.options import refuse_rest
from fedsynth.cli.stopped_run import STOPPED
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from fedsynth.progress import ago, duration
from fedsynth.text import printable

RECENT = 10
"""Rounds whose mean length tells the time left: early ones load networks, late ones ask fewer silos."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: the newest in 'runs')")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the state of a run; 1 if it has failed.

    Raises:
        UserError: there is no run, or its status is damaged.
    """
    refuse_rest("status", rest)
    folder = RunFolder.open(options.run) if options.run else _newest(Path("runs"))
    status, rows = read_status(folder), folder.read_metrics()
    state = state_of(status)
    for line in describe(folder, status, rows, state, datetime.now().astimezone()):
        print(printable(line))
    return int(state in ("failed", "gone"))


def read_status(folder: RunFolder) -> dict[str, Any]:
    """Return ``status.json`` of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        status = folder.read_status()
        for key in ("state", "pid", "round", "rounds", "updated"):
            if key not in status:
                raise ValueError(f"it says no {key}")
        return status
    except FileNotFoundError:
        raise UserError(f"'{folder.path}' has no status.json: the run has not begun, see {folder.log}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{folder.status}' is damaged: {error}; {folder.log} says more") from error


def state_of(status: Mapping[str, Any]) -> str:
    """Return ``running``, ``finished``, ``failed``, ``stopped``, or ``gone``: killed before it could say so."""
    state = str(status["state"])
    here = status.get("host") == socket.gethostname()
    return "gone" if state == "running" and here and not is_alive(int(status["pid"])) else state


def describe(
    folder: RunFolder, status: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], state: str, now: datetime
) -> Iterator[str]:
    """Yield the lines that say how a run stands.

    Args:
        folder: the run's.
        status: what ``status.json`` holds.
        rows: lines of ``metrics.jsonl``.
        state: what :func:`state_of` says.
        now: the time, with its zone.
    """
    yield f"run     {folder.path}"
    yield f"state   {_state_line(folder, status, state, now)}"
    done, total = int(status["round"]), int(status["rounds"])
    yield f"rounds  {done} of {total}{_time_left(rows, total - done) if state == 'running' else ''}"
    silos: Mapping[str, Mapping[str, Any]] = status.get("silos", {})
    width = max(map(len, silos), default=0)
    for name, was in silos.items():
        yield f"silo    {name:<{width}}  {_silo_line(was, now)}"
    if not silos:
        yield "silos   none has answered yet"


def _state_line(folder: RunFolder, status: Mapping[str, Any], state: str, now: datetime) -> str:
    if state == "failed":
        return f"failed: {status.get('error')}; 'fedsynth run --resume {folder.path}' goes on after the last round"
    if state == STOPPED:
        return f"stopped by {status.get('signal')}; go on with '{_resuming(folder, str(status.get('resume')))}'"
    if state == "gone":
        return f"its process is gone; 'fedsynth run --resume {folder.path}' goes on after the last round"
    if state == "finished":
        return f"finished: {folder.report}"
    return f"running, last sign of life {_ago(status['updated'], now)}"


def _resuming(folder: RunFolder, noted: str) -> str:
    """Return the command that was noted, for the folder where it lies now."""
    words = shlex.split(noted)
    return shlex.join([*words[:3], str(folder.path), *words[4:]])


def _silo_line(was: Mapping[str, Any], now: datetime) -> str:
    when = f"{was['message']} {_ago(was['at'], now)}"
    if "left-out" in was:
        return f"{when}: left out: {was['left-out']}"
    seconds, loss = was.get("seconds"), was.get("loss")
    took = "" if seconds is None else f", took {duration(seconds)}"
    return when + took + ("" if loss is None else f", loss {loss:.4g}")


def _time_left(rows: Sequence[Mapping[str, Any]], rounds: int) -> str:
    recent = [float(row["seconds"]) for row in rows[-RECENT:] if row.get("seconds") is not None]
    return f", about {duration(sum(recent) / len(recent) * rounds)} left" if recent else ", time left unknown"


def _ago(moment: str, now: datetime) -> str:
    return ago(datetime.fromisoformat(moment), now)


def _newest(root: Path) -> RunFolder:
    runs = [path.parent for path in root.glob("*/status.json")]
    if not runs:
        raise UserError(
            f"no run in '{root.absolute()}': give the folder of a run; one that was just started has none before its"
            " line 'run folder'"
        )
    return RunFolder.open(max(runs, key=lambda path: (path / "status.json").stat().st_mtime_ns))
