"""What of a machine gets in the way of Flower and Ray: what is set right for what we start, and what cannot."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsynth.disk import check_writable
from fedsynth.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT_VARIABLES = ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_SOCKET_BYTES = 107
"""Longest path of a Unix socket."""
_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to its temporary folder; the last number is a process id."""
MAX_TMPDIR_BYTES = _SOCKET_BYTES - len(_RAY_SOCKET)

_SHORT_ROOTS = ("/tmp", "/var/tmp", "/dev/shm")
WANTED_FILES, LEAST_FILES = 65_536, 1024


@dataclass(frozen=True)
class Adjustment:
    """Something in the environment that our processes are started with differently.

    Attributes:
        said: what it is, and what is done about it.
        changes: variables and their values; None: removed.
    """

    said: str
    changes: Mapping[str, str | None] = field(default_factory=dict)


def adjustments(environment: Mapping[str, str]) -> Iterator[Adjustment]:
    """Yield what our processes are started with differently, so that a simulation and a link work at all."""
    if address := environment.get("RAY_ADDRESS"):
        yield Adjustment(
            f"RAY_ADDRESS = '{address}' would send simulated silos to another Ray: runs leave it out, and take"
            " --ray-address",
            {"RAY_ADDRESS": None},
        )
    yield from _proxies(environment)
    yield from _temporary_folder(environment)


def adjusted(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with all :func:`adjustments`."""
    result = dict(environment)
    for adjustment in adjustments(environment):
        for name, value in adjustment.changes.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = value
    # What a terminal cannot show is replaced: "encoding:errors", where an empty encoding is the terminal's own.
    encoding, _, errors = result.get("PYTHONIOENCODING", "").partition(":")
    result["PYTHONIOENCODING"] = f"{encoding}:{errors or 'backslashreplace'}"
    return result


def problems(environment: Mapping[str, str], home: Path) -> Iterator[str]:
    """Yield what keeps a simulation from starting, each with what to do about it.

    Args:
        environment: of this process.
        home: ``FLWR_HOME``.
    """
    folder = _ray_folder(environment)
    if _unfit(folder) and _short_folder() is None:
        yield (
            f"temporary folder '{folder}': {_unfit(folder)}, and none of {', '.join(_SHORT_ROOTS)} can be written: set"
            f" RAY_TMPDIR to a folder with a path of at most {MAX_TMPDIR_BYTES} bytes"
        )
    for name in PORT_VARIABLES:
        if (port := environment.get(name)) and (reason := _port_problem(port)):
            yield f"{name} = '{port}': {reason}: unset it, and a free port is taken"
    if not _can_be_written(home):
        yield f"FLWR_HOME = '{home}': cannot be written: set it to a folder that can"


def prepare_machine(home: Path) -> None:
    """Before a simulation: say what it is started with differently, and allow it as many open files as it may have.

    Args:
        home: ``FLWR_HOME``.

    Raises:
        UserError: something keeps it from starting, the first of the :func:`problems`.
    """
    for problem in problems(os.environ, home):
        raise UserError(f"{problem} ('fedsynth doctor' checks this machine)")
    for adjustment in adjustments(os.environ):
        print(f"note: {adjustment.said}", flush=True)
    raise_file_limit()


def raise_file_limit() -> int:
    """Allow this process, and those it starts, as many open files as they may have; return how many.

    Flower and Ray hold a connection per process and silo, and many systems allow 1024 unless asked.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return most if soft == resource.RLIM_INFINITY else soft


def _proxies(environment: Mapping[str, str]) -> Iterator[Adjustment]:
    """Keep what is said on this machine from going through a proxy."""
    set_ones = sorted(name for name in environment if name.lower() in _PROXIES and environment[name])
    # Programs that know both prefer the small letters.
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    missing = [host for host in LOOPBACK if host not in hosts]
    if not set_ones or "*" in hosts or not missing:
        return
    value = ",".join([*hosts, *missing])
    yield Adjustment(
        f"{set_ones[0]} is set, and no_proxy lacks {', '.join(missing)}, so that Flower would look for its processes"
        " behind the proxy: runs add them to no_proxy",
        {"no_proxy": value, "NO_PROXY": value},
    )


def _temporary_folder(environment: Mapping[str, str]) -> Iterator[Adjustment]:
    folder = _ray_folder(environment)
    reason = _unfit(folder)
    short = _short_folder() if reason else None
    if short is not None:
        yield Adjustment(
            f"temporary folder '{folder}': {reason}: simulations keep Ray's files in '{short}' (RAY_TMPDIR)",
            {"RAY_TMPDIR": str(short)},
        )


def _ray_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp")


def _unfit(folder: Path) -> str:
    """Return why Ray cannot work in a folder; empty if it can."""
    size = len(os.fsencode(folder))
    if size > MAX_TMPDIR_BYTES:
        return f"its path has {size} bytes, and Ray's sockets leave it {MAX_TMPDIR_BYTES}"
    if not folder.is_absolute():
        return "it is no absolute path"
    return "" if _can_be_written(folder) else "it cannot be written"


def _can_be_written(folder: Path) -> bool:
    try:
        check_writable(folder / "file")
    except UserError:
        return False
    return True


def _short_folder() -> Path | None:
    """Return a folder with a short path that is this user's alone; None if none can be made."""
    for root in _SHORT_ROOTS:
        folder = Path(root) / f"fedsynth-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        if own and _can_be_written(folder):
            return folder
    return None


def _port_problem(port: str) -> str:
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        return "is no port"
    try:
        socket.create_server(("127.0.0.1", int(port))).close()
    except OSError as error:
        return f"cannot be used ({os.strerror(error.errno or 0)})"
    return ""
