"""A silo's ClientApp in a process that stays.

``python -m clients.warm.warm_executor --supernode-address 127.0.0.1:9094``

A SuperNode starts a process for every message, which imports torch and loads the model anew. This process acquires the
tasks of a ``flower-supernode --isolation process`` instead and runs the ClientApp in itself.

The code it runs comes in the bundle that the SuperLink ships with the run. One process image serves one run: the next
run, and whatever follows an error that is no refusal, begin in a fresh interpreter under the same process id, so that
neither modules nor memory of one reach the other.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import ipaddress
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.warm import flower_internals as flower
from clients.warm.flower_internals import Job, SuperNodeGoneError
from fedsynth.errors import UserError
from fedsynth.logs import LineFormatter
from fedsynth.text import printable

logger = logging.getLogger("warm-executor")

_JOB_VARIABLE = "FEDSYNTH_WARM_JOB"
"""Hands a claimed task to the fresh interpreter: an environment is private to the user, a command line is not."""


class RefusedBundleError(UserError):
    """The app bundle of a run is not one that may run here."""


class Runtime(Protocol):
    """Where tasks come from."""

    def acquire(self) -> Job | None:
        """Claim the next task, if there is one."""
        ...

    def holding(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """Keep the claim alive."""
        ...

    def pull(self) -> tuple[Message, Context, flower.Run, flower.Fab]:
        """Fetch message, context, run and bundle of the job that is being held."""
        ...

    def push(self, reply: Message, context: Context, failure: str) -> None:
        """Deliver the reply; ``failure`` is empty for a task that went well."""
        ...


class Executor:
    """Runs tasks until it is told to stop.

    Args:
        runtime: where tasks come from.
        allowed: SHA-256 of the app bundles that may run here; empty: any.
        restart: called to go on in a fresh interpreter, with the job that is waiting.
    """

    def __init__(self, runtime: Runtime, allowed: frozenset[str], restart: Callable[[Job | None], None]) -> None:
        self._runtime, self._allowed, self._restart = runtime, allowed, restart
        self._folder = tempfile.TemporaryDirectory(prefix="fedsynth-bundle-")
        self._app: ClientApp | None = None
        self._run_id: int | None = None
        self._digest = ""
        self._worn = self._stopping = self._answering = False

    def stop(self, *_: object) -> None:
        """Stop after the current task, whose ClientApp is interrupted; a signal handler."""
        self._stopping = True
        if self._answering:
            raise SystemExit("the silo is being stopped")

    def serve(self, job: Job | None = None) -> None:
        """Run tasks until :meth:`stop`, beginning with ``job``.

        Raises:
            SuperNodeGoneError: the SuperNode does not answer any more.
        """
        with self._folder:
            job = self._serve(job)
        if not self._stopping:
            logger.info("going on in a fresh process: %s", "after an error" if self._worn else "another run")
            self._restart(job)

    def _serve(self, job: Job | None) -> Job | None:
        """Run tasks until it is time to stop or to restart; return the one for which a fresh process is due."""
        idle_since = time.monotonic()
        while not self._stopping:
            job = job or self._runtime.acquire()
            if self._worn or (job is not None and self._run_id not in (None, job.run_id)):
                return job
            if job is None:
                time.sleep(flower.poll_interval(idle_since, flower.LONGEST_POLL_INTERVAL))
                continue
            self._perform(job)
            job, idle_since = None, time.monotonic()
        return None

    def _perform(self, job: Job) -> None:
        with self._runtime.holding(job):
            try:
                message, context, run, fab = self._runtime.pull()
            except Exception as error:
                # Without heartbeats the SuperNode answers the message itself.
                logger.error("a task without input: %s", _said(error))
                return
            reply, failure = self._answer(message, context, run, fab)
            try:
                self._runtime.push(reply, context, failure)
            except Exception as error:
                logger.error("a reply that the SuperNode did not take: %s", _said(error))

    def _answer(self, message: Message, context: Context, run: flower.Run, fab: flower.Fab) -> tuple[Message, str]:
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        try:
            self._answering = True
            app = self._load(run, fab)
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = app(message=message, context=context)
        except RefusedBundleError as error:
            logger.error("refused: %s", error)
            _record(message, context, error)
            said = printable(f"{context.node_config.get('silo-name', f'node-{context.node_id}')}: {error}")
            return Message(Error(ErrorCode.INVALID_FAB, said), reply_to=message), said
        except BaseException as error:
            logger.error("the ClientApp failed", exc_info=error)
            self._worn = True
            return Message(Error(code, _said(error)), reply_to=message), _said(error)
        finally:
            self._answering = False
        # A device that an error has broken, or memory it holds, must not meet the next message; refusals break nothing.
        self._worn = reply.has_error() and reply.error.code != ErrorCode.MOD_FAILED_PRECONDITION
        return reply, ""

    def _load(self, run: flower.Run, fab: flower.Fab) -> ClientApp:
        digest = hashlib.sha256(fab.content).hexdigest()
        if self._allowed and digest not in self._allowed:
            raise RefusedBundleError(
                f"run {run.run_id} comes with program {digest}, which this silo has not pinned"
                " (silo-policy.toml, line programs, or --allow-fab)"
            )
        if self._app is None:
            logger.info("run %d, bundle %s", run.run_id, digest)
            _forget_this_project()
            self._app = flower.load_bundle(run, fab, Path(self._folder.name))
            self._run_id, self._digest = run.run_id, digest
        elif digest != self._digest:
            raise RefusedBundleError(f"run {run.run_id} has gone over from bundle {self._digest} to {digest}")
        return self._app


def _record(message: Message, context: Context, error: RefusedBundleError) -> None:
    """Enter a refusal into the silo's audit."""
    # Only here: it imports most of the project, this one's or that of the bundle that runs.
    from clients.journal import record_refusal

    try:
        record_refusal(message, context, error)
    except Exception as failure:
        logger.error("not in the audit: %s", _said(failure))


def _forget_this_project() -> None:
    """Make the import system forget this project's packages: they would hide the bundle's of the same names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("clients", "fedsynth")]:
        del sys.modules[name]


def _said(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}")


def _bundle_hash(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError(f"'{text}': must be the 64 hex digits that 'fedsynth silo program' prints")
    return text.lower()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that an executor has in common with whoever starts one."""
    parser.add_argument(
        "--allow-fab",
        metavar="HASH",
        type=_bundle_hash,
        action="append",
        default=[],
        help="SHA-256 of an app bundle that may run here; repeat for more (default: any bundle)",
    )
    parser.add_argument("--preload", default="torch,diffusers", help="modules to import before the first message")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.warm.warm_executor", description=(__doc__ or "").split("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument("--supernode-address", required=True, help="runtime API of the SuperNode, host:port")
    parser.add_argument("--root-certificates", type=Path, help="PEM of its CA (default: plain HTTP, loopback only)")
    parser.add_argument("--superexec-auth-secret-file", type=Path, help="the file that the SuperNode was given")
    parser.add_argument("--parent-pid", type=int, help="stop when this process is gone")
    return parser


def _problem(options: argparse.Namespace) -> str:
    host = options.supernode_address.rpartition(":")[0].strip("[]")
    loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and options.root_certificates is None:
        return f"--supernode-address = '{options.supernode_address}': give --root-certificates, or a loopback address"
    for path in filter(None, (options.root_certificates, options.superexec_auth_secret_file)):
        if not path.is_file():
            return f"{path}: no such file"
    return flower.warm_path_problem()


def main() -> int:
    """Run the executor; return its exit status: 0 stopped, 1 SuperNode gone, 2 cannot run like this."""
    options = _parser().parse_args()
    _log_to_stderr()
    if problem := _problem(options):
        logger.error("error: %s", problem)
        return 2
    try:
        _run(options)
    except SuperNodeGoneError as error:
        logger.error("error: %s", error)
        return 1
    return 0


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(name)s %(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _run(options: argparse.Namespace) -> None:
    flower.shorten_object_waits()
    known = (options.root_certificates, options.superexec_auth_secret_file)
    certificates, secret = (path.read_bytes() if path else None for path in known)
    runtime = flower.SuperNodeRuntime(options.supernode_address, certificates, secret)
    here = Path.cwd()
    executor = Executor(runtime, frozenset(options.allow_fab), lambda job: _go_on_afresh(here, job))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, executor.stop)
    if options.parent_pid is not None:
        flower.start_parent_process_monitor(options.parent_pid)
    job = _job_handed_over()
    if job is None:
        for module in filter(None, options.preload.split(",")):
            importlib.import_module(module)
    logger.info("ready for %s", " ".join(options.allow_fab) or "any bundle")
    executor.serve(job)


def _go_on_afresh(folder: Path, job: Job | None) -> None:
    environment = dict(os.environ)
    if job is not None:
        environment[_JOB_VARIABLE] = f"{job.run_id} {job.token}"
    os.chdir(folder)
    # A device that stays open through exec could keep its memory.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execve(sys.executable, sys.orig_argv, environment)


def _job_handed_over() -> Job | None:
    run_id, _, token = os.environ.pop(_JOB_VARIABLE, "").partition(" ")
    return Job(int(run_id), token) if token else None


if __name__ == "__main__":
    sys.exit(main())
