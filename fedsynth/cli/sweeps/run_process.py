"""A run as a process of its own: started or gone on with, watched, and reaped with everything it started."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fedsynth.cli.deployment.flower_output import LINE_START
from fedsynth.cli.deployment.processes import guarded, kill_marked
from fedsynth.cli.stopping import StoppedError
from fedsynth.config import KEYS, RunConfig, Scalar
from fedsynth.errors import RunError
from fedsynth.output import RunFolder
from fedsynth.text import printable

MARK = "FEDSYNTH_RUN_FOLDER"
"""Variable in the environment of a run's processes by which all of them are found, far as they get from their parents:
Flower's SuperLink leaves its process group, and Ray's workers leave theirs."""

GRACE_PERIOD = 15.0
"""Seconds in which a run that was told to stop ends by itself."""

COMMAND = (sys.executable, "-m", "fedsynth.cli", "run")

_ENDED = "the run ended without results"
_ERROR = re.compile(r"\b(?:error|\w+Error|\w+Exception): ")


def finish_run(
    config: RunConfig,
    folder: RunFolder,
    console: Path | None = None,
    watch: Callable[[], None] = lambda: None,
    interval: float = 1.0,
) -> None:
    """Make a run that has no results yet, and wait for its end; afterwards nothing of it is running.

    A run that was interrupted after it wrote its configuration is resumed.

    Args:
        config: with absolute paths; its ``output-dir`` and ``run-name`` are the folder's if it is a new run.
        folder: the run's.
        console: file for what the run prints; None: it prints where we do.
        watch: called about every ``interval`` seconds.
        interval: in seconds.

    Raises:
        RunError: the run ended without results; the message is its last word.
    """
    end_processes(folder.path)
    words = _resume_words(config, folder) if folder.config.is_file() else _fresh_words(config, folder)
    with _output(console) as output, guarded(MARK, str(folder.path)):
        process = subprocess.Popen(
            [*COMMAND, *words],
            env={**os.environ, MARK: str(folder.path)},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        try:
            _wait(process, watch, interval)
        except StoppedError as stopped:
            # It says in its status that it was stopped, and by what.
            process.send_signal(stopped.number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_PERIOD)
            raise
        finally:
            end_processes(folder.path)
            process.wait()
    if not folder.results.is_file():
        raise RunError(_last_word(folder, console))


def end_processes(folder: Path) -> int:
    """Kill all processes that were started for the run in ``folder``; return how many there were.

    Killing loses nothing but the round in work: a run writes its files whole or not at all.
    """
    return kill_marked(str(folder), MARK)


def _fresh_words(config: RunConfig, folder: RunFolder) -> list[str]:
    folder.clear_torn_start()
    defaults = RunConfig().to_run_config()
    return [_option(key, value) for key, value in config.to_run_config().items() if value != defaults[key]]


def _resume_words(config: RunConfig, folder: RunFolder) -> list[str]:
    of_the_folder = {"resume", "run-name", "output-dir", "num-rounds", "train-steps"}
    free = [name for name, key in KEYS.items() if key.may_change and name not in of_the_folder]
    flat = config.to_run_config()
    return ["--resume", str(folder.path), *(_option(name, flat[name]) for name in free)]


def _option(key: str, value: Scalar) -> str:
    return f"--{key}={str(value).lower() if isinstance(value, bool) else value}"


@contextlib.contextmanager
def _output(console: Path | None) -> Iterator[IO[bytes] | None]:
    if console is None:
        yield None
        return
    console.parent.mkdir(parents=True, exist_ok=True)
    with console.open("wb") as file:
        yield file


def _wait(process: subprocess.Popen[bytes], watch: Callable[[], None], interval: float) -> None:
    while True:
        try:
            process.wait(interval)
            return
        except subprocess.TimeoutExpired:
            watch()


def _last_word(folder: RunFolder, console: Path | None) -> str:
    """Return why a run has no results: the last error in its log, or in what it printed, or the last line.

    What is printed goes to ``console``, otherwise to this process's own output, which cannot be read again.
    """
    said = [line for path in (console, folder.log) if path for line in _lines(path)]
    if known := [line.partition(f"{_ENDED}: ")[2] for line in said if f"{_ENDED}: " in line]:
        return known[-1]
    lines = [line for line in said if _ENDED not in line]
    errors = [line for line in lines if _ERROR.search(line)]
    silence = f"{_ENDED}, and without a word" if console else f"{_ENDED}: the reason stands above"
    return (errors or lines or [silence])[-1].removeprefix("error: ")


def _lines(path: Path) -> list[str]:
    """Return the lines of a log that say something, without the time of day."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\s*│\n│\s*", " ", text)  # Flower breaks its errors to fit a frame
    lines = [printable(LINE_START.sub("", line.strip(" │╭╮╰╯─"))) for line in text.splitlines()]
    return [line for line in lines if line]


def last_progress(console: Path) -> str:
    """Return the latest progress that a run printed, empty if there is none."""
    lines = [line for line in _lines(console) if re.search(r"\d+/\d+ \(\d+ %\)", line)]
    return lines[-1] if lines else ""
