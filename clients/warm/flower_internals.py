"""Everything that uses Flower's internals, for one version of Flower: the warm path of a silo.

``python -m clients.warm.flower_internals …`` is ``flower-supernode …`` without its long sleeps, and nothing in it of a
run that was stopped reaches the next one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsynth.flower_version import FLOWER_VERSION, version_problem

try:
    from flwr.cli.install import install_from_fab
    from flwr.clientapp.utils import get_load_client_app_fn
    from flwr.common.constant import SubStatus
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
    from flwr.supercore.app_utils import start_parent_process_monitor
    from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
    from flwr.supercore.fab import Fab
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
    from flwr.supercore.retry import RetryInvoker, exponential
    from flwr.supercore.run import Run, RunNotRunningException
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output
except ImportError:
    if version("flwr") == FLOWER_VERSION:
        raise
    # Of any other version, warm_path_problem says what to do.

__all__ = [
    "Fab",
    "Job",
    "Run",
    "SuperNodeGoneError",
    "SuperNodeRuntime",
    "start_parent_process_monitor",
]

SHORTEST_POLL_INTERVAL, LONGEST_POLL_INTERVAL = 0.01, 0.5
"""Seconds."""
POLL_SHARE = 0.15
"""The poll interval as a share of the time waited so far: looking late costs at most 15 %, long waits few looks."""
START_TIMEOUT, ANSWER_TIMEOUT = 120.0, 15.0
"""Seconds that the SuperNode may take to start, and to answer again, before it counts as gone."""


class SuperNodeGoneError(RuntimeError):
    """The SuperNode does not answer any more, or not to this executor."""


def warm_path_problem() -> str:
    """Return why the warm path cannot run on this version of Flower and what to do; empty if it can."""
    return version_problem("the warm path", "run without --warm (slower, otherwise the same)")


@dataclass(frozen=True)
class Job:
    """A claimed task.

    Attributes:
        run_id: run it belongs to.
        token: what the SuperNode knows its holder by.
    """

    run_id: int
    token: str


class _TokenInterceptor:
    """Sends the token of the job at hand, so that one connection serves all jobs."""

    token = ""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[TASK_TOKEN_HEADER] = self.token
        return call_next(context)


class SuperNodeRuntime:
    """The runtime API of a SuperNode, as :class:`clients.warm.warm_executor.Runtime`.

    Args:
        address: ``host:port``.
        certificates: PEM of the CA behind its certificate; None: plain HTTP.
        secret: what its ``--superexec-auth-secret-file`` holds; None: it was started without.
    """

    def __init__(self, address: str, certificates: bytes | None, secret: bytes | None) -> None:
        self._seen, self._allowance = time.monotonic(), START_TIMEOUT
        self._token = _TokenInterceptor()
        retry = RetryInvoker(
            lambda: exponential(max_delay=2), httpx.TransportError, max_tries=None, max_time=ANSWER_TIMEOUT
        )
        self._polls = _client(address, certificates, [] if secret is None else [_superexec_signature(secret)], None)
        self._tasks = _client(address, certificates, [self._token], retry)

    def acquire(self) -> Job | None:
        """Claim the next task, if there is one.

        Raises:
            SuperNodeGoneError: no answer for long, or the secret is not the SuperNode's.
        """
        try:
            answer = self._polls.AcquireTask(AcquireTaskRequest(supported_task_types={TaskType.CLIENT_APP}))
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            self._bear(error)
            return None
        self._seen, self._allowance = time.monotonic(), ANSWER_TIMEOUT
        return Job(answer.task.run_id, answer.token) if answer.token else None

    def _bear(self, error: httpx.HTTPError) -> None:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
            message = "the SuperNode refuses this executor: give both the same --superexec-auth-secret-file"
            raise SuperNodeGoneError(message) from error
        silence = time.monotonic() - self._seen
        if silence > self._allowance:
            raise SuperNodeGoneError(f"the SuperNode has not answered for {silence:.0f} s: {error}") from error

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[None]:
        """Keep the claim alive, with heartbeats."""
        self._token.token = job.token
        sender = HeartbeatSender(self._heartbeat)
        sender.start()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # its thread has ended by itself
                sender.stop()

    def _heartbeat(self) -> bool:
        # Flower's own sends this process a SIGINT when the task is no longer wanted; here its push will fail instead.
        with contextlib.suppress(httpx.HTTPError):
            self._tasks.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        return True

    def pull(self) -> tuple[Message, Context, Run, Fab]:
        """Fetch message, context, run and bundle of the job that is being held."""
        return pull_task_input(self._tasks)

    def push(self, reply: Message, context: Context, failure: str) -> None:
        """Deliver the reply; ``failure`` is empty for a task that went well."""
        push_message(self._tasks, reply, context)
        push_task_output(self._tasks, context, SubStatus.FAILED if failure else SubStatus.COMPLETED, failure)


def _client(
    address: str, certificates: bytes | None, interceptors: Sequence[Any], retry: RetryInvoker | None
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address,
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
        retry_invoker=retry,
    )


def _superexec_signature(secret: bytes) -> SuperExecAuthHttpInterceptor:
    return SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"})


def load_bundle(run: Run, fab: Fab, folder: Path) -> ClientApp:
    """Unpack an app bundle below ``folder`` and import its ClientApp.

    The folder must be new: Flower's own is named after eight digits of the hash and taken as it is if it exists.
    """
    path = install_from_fab(fab.content, install_dir=folder, skip_prompt=True)
    load = get_load_client_app_fn(default_app_ref="", app_path=str(path), multi_app=True)
    return load(run.fab_id, run.fab_version, fab.hash_str)


def poll_interval(since: float, longest: float) -> float:
    """Return seconds to sleep before the next look for what has been awaited since ``since`` (monotonic seconds)."""
    return min(max(POLL_SHARE * (time.monotonic() - since), SHORTEST_POLL_INTERVAL), longest)


def shorten_object_waits() -> None:
    """Look again at once, not after 1 s, for objects of a message that are still on their way."""
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        pull.__kwdefaults__ = {**(pull.__kwdefaults__ or {}), "initial_backoff": SHORTEST_POLL_INTERVAL}


class PollingClock:
    """Stands in for ``time`` in the SuperNode's loop: a sleep lasts a share of the wait so far, at most as asked."""

    def __init__(self) -> None:
        self._asked, self._since = -1.0, 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep; as long as the loop asks for the same seconds, it is waiting for the same thing."""
        if seconds != self._asked:
            self._asked, self._since = seconds, time.monotonic()
        time.sleep(poll_interval(self._since, seconds))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class RunEndedError(RuntimeError):
    """The run of a message has ended before all of the message was here."""


def forgetting_ended_runs(receive: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return a ``_pull_and_store_message`` that removes a message, and its task, when the message's run has ended.

    Flower's own keeps both: a warm silo that claims the task waits for the rest of the message for ever.
    """

    def ended_as_failure(fetch: Callable[..., Any]) -> Callable[..., Any]:
        def fetched(*arguments: Any) -> Any:
            try:
                return fetch(*arguments)
            except RunNotRunningException as error:
                raise RunEndedError("its run has ended") from error

        return fetched

    def received(
        pull_object: Callable[..., Any], confirm_message_received: Callable[..., Any], **rest: Any
    ) -> int | None:
        return receive(
            pull_object=ended_as_failure(pull_object),
            confirm_message_received=ended_as_failure(confirm_message_received),
            **rest,
        )

    return received


def answering_in_turn(
    pull: Callable[..., int | None], push: Callable[..., None]
) -> tuple[Callable[..., int | None], Callable[..., None]]:
    """Return ``_pull_and_store_message`` and a ``_push_messages`` that pushes until what was pulled is answered.

    Flower's own loop pushes once for every message, whatever replies there are. A reply that came late, when its run
    had already been stopped, would be pushed in the place of the next message's: that run would wait for ever.
    """
    awaited = ""

    def pulled(receive: Callable[[], tuple[Message, Any] | None], **rest: Any) -> int | None:
        def noted() -> tuple[Message, Any] | None:
            nonlocal awaited
            if (received := receive()) is not None:
                awaited = received[0].metadata.message_id
            return received

        return pull(receive=noted, **rest)

    def pushed(send: Callable[..., Any], **rest: Any) -> None:
        answered: set[str] = set()

        def noted(reply: Message, *more: Any) -> Any:
            answered.add(reply.metadata.reply_to_message_id)
            return send(reply, *more)

        while awaited not in answered:
            push(send=noted, **rest)

    return pulled, pushed


def run_supernode() -> None:
    """Run ``flower-supernode`` without its fixed sleeps (3 s and 0.5 s) and undisturbed by runs that were stopped."""
    # Only here: the executor has no use for the web server behind it.
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    start_client_internal.time = PollingClock()  # type: ignore[assignment, attr-defined]
    start_client_internal._pull_and_store_message, start_client_internal._push_messages = answering_in_turn(
        forgetting_ended_runs(start_client_internal._pull_and_store_message), start_client_internal._push_messages
    )
    shorten_object_waits()
    start_parent_process_monitor(os.getppid())
    flower_supernode()


if __name__ == "__main__":
    run_supernode()
