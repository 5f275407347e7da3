"""A silo that stays warm: ``python -m clients.warm.warm_silo [--allow-fab HASH] -- <options of flower-supernode>``.

Starts a SuperNode and the executor of its messages, and ends both when one of them ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from clients.warm.flower_internals import warm_path_problem
from clients.warm.warm_executor import add_arguments

TAKEN = ("--isolation", "--host", "--port", "--superexec-auth-secret-file", "--ssl-")
"""Options of ``flower-supernode`` that the warm path sets itself, by how they begin."""
GRACE_PERIOD = 15.0
"""Seconds in which a process may end by itself."""
_POLL_INTERVAL = 0.1

Processes = Mapping[str, "subprocess.Popen[bytes]"]


def main(words: Sequence[str] | None = None, log: TextIO = sys.stderr) -> int:
    """Run a silo until it is stopped.

    Returns:
        0 after SIGTERM or SIGINT; 2 for options that cannot be; otherwise the status of the process that ended by
        itself, 1 if that was 0.
    """
    options = _parser().parse_args(words)
    arguments = [word for word in options.supernode if word != "--"]
    problem = warm_path_problem()
    if problem and options.or_stock and not options.allow_fab:
        print(f"silo: {problem}. Going on without, as --or-stock says", file=log, flush=True)
        return supervise({"SuperNode": _started([_script("flower-supernode"), *arguments])}, log)
    if problem and options.or_stock:
        problem = f"{problem}. --or-stock cannot help: Flower's own path does not know --allow-fab"
    if taken := [word for word in arguments if word.startswith(TAKEN)]:
        problem = f"{taken[0].partition('=')[0]}: the warm path sets this option of flower-supernode itself"
    if problem:
        print(f"error: {problem}", file=log, flush=True)
        return 2
    with _pair(options, arguments) as processes:
        return supervise(processes, log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.warm.warm_silo", description=(__doc__ or "").split("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument(
        "--or-stock",
        action="store_true",
        help="on another version of Flower, go on without the warm path instead of refusing",
    )
    parser.add_argument("supernode", nargs=argparse.REMAINDER, help="after --: options of flower-supernode")
    return parser


@contextlib.contextmanager
def _pair(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Processes]:
    """Start SuperNode and executor, which know each other by a secret; none of them runs on afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedsynth-silo-") as folder, contextlib.ExitStack() as started:
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(secrets.token_bytes(32))
        processes: dict[str, subprocess.Popen[bytes]] = {}
        started.callback(stop, processes)
        shared = ["--superexec-auth-secret-file", str(secret)]
        port = _free_port()
        door = ["--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
        allowed = [word for digest in options.allow_fab for word in ("--allow-fab", digest)]
        # The executor is stopped first: the SuperNode still delivers its last answer.
        processes["executor"] = _module(
            "clients.warm.warm_executor",
            *("--supernode-address", f"127.0.0.1:{port}", *shared, *allowed),
            *("--preload", options.preload, "--parent-pid", str(os.getpid())),
        )
        processes["SuperNode"] = _module("clients.warm.flower_internals", *door, *shared, *arguments)
        yield processes


def _module(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    return _started([sys.executable, "-m", name, *arguments])


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal would reach both processes at once, before their order is kept.
    return subprocess.Popen(command, start_new_session=True)


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def supervise(processes: Processes, log: TextIO = sys.stderr) -> int:
    """Wait for a signal to stop or for the end of a process, stop the others, and return the exit status.

    Args:
        processes: by name, in the order in which to stop them.
        log: where to say why it ended.

    Returns:
        0 after SIGTERM or SIGINT; otherwise the status of the process that ended by itself (128 + signal), 1 if
        that was 0.
    """
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not asked and not (ended := [name for name in processes if processes[name].poll() is not None]):
            time.sleep(_POLL_INTERVAL)
        stop(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return 0
    status = processes[ended[0]].returncode
    print(f"error: the silo's {ended[0]} has ended by itself (status {status}); all of it is stopped", file=log)
    return 128 - status if status < 0 else status or 1


def stop(processes: Processes) -> None:
    """End processes one after the other; those that do not within ``GRACE_PERIOD`` are killed."""
    for process in processes.values():
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_PERIOD)
        if process.poll() is None:
            process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
