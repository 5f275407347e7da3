from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.warm import flower_internals, warm_executor
from clients.warm.flower_internals import Job
from clients.warm.warm_executor import Executor
from fedsynth import flower_version
from fedsynth.audit import read_audit
from fedsynth.cli.deployment.app import program_digest, staged_app

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

FIRST, SECOND = b"first bundle", b"second bundle"
NOT_PINNED = (
    "run 7 comes with program {}, which this silo has not pinned (silo-policy.toml, line programs, or --allow-fab)"
)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FakeRuntime:
    """Hands out tasks one after the other and keeps the replies; then it has the executor stop."""

    def __init__(self, *tasks: tuple[int, bytes, str]) -> None:
        self.tasks = list(tasks)
        self.replies: list[tuple[Message, str]] = []
        self.held: list[str] = []
        self.whenever_idle: Callable[[], None] = lambda: None
        self.node_config: dict[str, str] = {}
        self.broken_pulls = self.broken_pushes = 0

    def acquire(self) -> Job | None:
        if not self.tasks:
            self.whenever_idle()
            return None
        return Job(self.tasks[0][0], f"token {len(self.tasks)}")

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[None]:
        self.held.append(job.token)
        yield
        self.held.append(f"end of {job.token}")

    def pull(self) -> tuple[Message, Context, Run, Fab]:
        run_id, content, word = self.tasks.pop(0)
        if self.broken_pulls:
            self.broken_pulls -= 1
            raise RuntimeError("no message")
        message = Message(RecordDict({"config": ConfigRecord({"word": word})}), dst_node_id=1, message_type="query.say")
        context = Context(
            run_id=run_id, node_id=1, node_config=dict(self.node_config), state=RecordDict(), run_config={}
        )
        # Flower's own hash is what the SuperLink says it is: only the content can be trusted.
        return message, context, Run.create_empty(run_id), Fab(digest(FIRST), content, {})

    def push(self, reply: Message, context: Context, failure: str) -> None:
        if self.broken_pushes:
            self.broken_pushes -= 1
            raise RuntimeError("this task is over")
        self.replies.append((reply, failure))

    @property
    def words(self) -> list[str]:
        return [
            f"error {reply.error.code}" if reply.has_error() else str(reply.content["config"]["word"])
            for reply, _ in self.replies
        ]


class Silo:
    """An executor whose bundles all hold one ClientApp: it repeats a word in capitals, and fails with an error code."""

    def __init__(self, runtime: FakeRuntime, allowed: tuple[bytes, ...] = ()) -> None:
        self.runtime = runtime
        self.loaded: list[bytes] = []
        self.folders: list[Path] = []
        self.restarts: list[Job | None] = []
        self.say: Callable[[str], None] = lambda word: None
        self.executor = Executor(runtime, frozenset(map(digest, allowed)), self.restarts.append)
        runtime.whenever_idle = self.executor.stop

    def load(self, run: Run, fab: Fab, folder: Path) -> ClientApp:
        assert folder.is_dir()
        self.loaded.append(fab.content)
        self.folders.append(folder)
        app = ClientApp()

        @app.query("say")
        def say(message: Message, context: Context) -> Message:
            word = str(message.content["config"]["word"])
            self.say(word)
            if word.isdigit():
                return Message(Error(int(word), "as it says"), reply_to=message)
            return Message(RecordDict({"config": ConfigRecord({"word": word.upper()})}), reply_to=message)

        return app


@pytest.fixture
def silo(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Silo]:
    """A function that makes a silo from its tasks: run, bundle, word."""
    monkeypatch.setattr(warm_executor, "_forget_this_project", lambda: None)

    def make(*tasks: tuple[int, bytes, str], allowed: tuple[bytes, ...] = ()) -> Silo:
        made = Silo(FakeRuntime(*tasks), allowed)
        monkeypatch.setattr(flower_internals, "load_bundle", made.load)
        return made

    return make


CRASH, REFUSAL = str(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), str(ErrorCode.MOD_FAILED_PRECONDITION)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([(7, FIRST, "a"), (7, FIRST, "b"), (7, FIRST, "c")], ["A", "B", "C"]),
        ([(7, FIRST, REFUSAL), (7, FIRST, "a")], [f"error {REFUSAL}", "A"]),
        ([(7, FIRST, "a"), (7, SECOND, "b"), (7, FIRST, "c")], ["A", f"error {ErrorCode.INVALID_FAB}", "C"]),
    ],
    ids=["messages of a run meet the same app", "a refusal costs nothing", "a run cannot exchange its bundle"],
)
def test_one_process_answers(tasks: list[tuple[int, bytes, str]], words: list[str], silo: Callable[..., Silo]) -> None:
    here, tokens = silo(*tasks), len(tasks)
    here.executor.serve()
    assert here.runtime.words == words
    refused = [bool(failure) for _, failure in here.runtime.replies]
    assert refused == [word == f"error {ErrorCode.INVALID_FAB}" for word in words]
    assert here.loaded == [FIRST]
    assert here.runtime.held[:3] == [f"token {tokens}", f"end of token {tokens}", f"token {tokens - 1}"]
    assert here.restarts == []


def test_an_error_that_the_app_answers_costs_a_fresh_process_too(silo: Callable[..., Silo]) -> None:
    here = silo((7, FIRST, "a"), (7, FIRST, CRASH))
    here.runtime.whenever_idle = lambda: None
    here.executor.serve()
    assert here.runtime.words == ["A", f"error {CRASH}"]
    assert here.restarts == [None]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_crash_is_answered_and_costs_a_fresh_process(silo: Callable[..., Silo], kind: type[BaseException]) -> None:
    def crash(word: str) -> None:
        raise kind("for a reason")

    here = silo((7, FIRST, "a"), (7, FIRST, "b"))
    here.say = crash
    here.executor.serve()
    [(reply, failure)] = here.runtime.replies
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == failure == f"{kind.__name__}: for a reason"
    assert here.restarts == [Job(7, "token 1")]


def test_a_bundle_that_cannot_be_loaded_is_answered(silo: Callable[..., Silo], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run, fab: Fab, folder: Path) -> ClientApp:
        raise ModuleNotFoundError("No module named 'nothing'")

    here = silo((7, FIRST, "a"))
    monkeypatch.setattr(flower_internals, "load_bundle", fail)
    here.executor.serve()
    [(reply, _)] = here.runtime.replies
    assert reply.error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
    assert "No module named 'nothing'" in reply.error.reason


def test_another_run_gets_a_fresh_process(silo: Callable[..., Silo]) -> None:
    here = silo((7, FIRST, "a"), (8, SECOND, "b"))
    here.executor.serve()
    assert here.runtime.words == ["A"]
    assert here.restarts == [Job(8, "token 1")]
    assert here.loaded == [FIRST]
    assert not here.folders[0].exists(), "bundles leave nothing on disk"

    fresh = silo((8, SECOND, "b"))
    fresh.executor.serve(Job(8, "token of old"))
    assert fresh.runtime.words == ["B"]
    assert fresh.runtime.held[0] == "token of old"


def test_only_allowed_bundles_run(silo: Callable[..., Silo], caplog: pytest.LogCaptureFixture) -> None:
    here = silo((7, SECOND, "a"), (8, FIRST, "b"), allowed=(FIRST,))
    here.executor.serve()
    assert here.runtime.words == [f"error {ErrorCode.INVALID_FAB}", "B"]
    refusal = NOT_PINNED.format(digest(SECOND))
    # Whose it is stands first: before a silo has described itself, the server knows no name.
    assert here.runtime.replies[0][0].error.reason == here.runtime.replies[0][1] == f"node-1: {refusal}"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"refused: {refusal}"
    ]
    assert here.loaded == [FIRST]
    assert here.restarts == []


def test_the_hash_that_a_silo_pins_is_that_of_the_bundle_that_a_run_ships(
    silo: Callable[..., Silo], tmp_path: Path
) -> None:
    shipped = build_fab_from_disk(staged_app(tmp_path))  # as 'flwr run' builds it
    here = silo((7, SECOND, "a"), (8, shipped, "b"))
    here.executor = Executor(here.runtime, frozenset([program_digest()]), here.restarts.append)
    here.runtime.whenever_idle = here.executor.stop
    here.executor.serve()
    assert here.runtime.words == [f"error {ErrorCode.INVALID_FAB}", "B"]


def test_a_refused_bundle_is_in_the_silo_s_audit(
    silo: Callable[..., Silo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = silo((7, SECOND, "a"), (7, FIRST, "b"), allowed=(FIRST,))
    here.runtime.node_config = {"data-path": "images", "silo-name": "north", "state-path": str(tmp_path)}
    here.executor.serve()
    with (tmp_path / "north" / "audit.jsonl").open("rb") as file:
        report = read_audit(file)
    assert report.problems == []
    said = f"say: RefusedBundleError: {NOT_PINNED.format(digest(SECOND))}"
    assert here.runtime.replies[0][1] == f"north: {NOT_PINNED.format(digest(SECOND))}"
    assert report.runs["7"].refused == {said: 1}

    (tmp_path / "file").touch()
    here = silo((7, SECOND, "a"), allowed=(FIRST,))
    here.runtime.node_config = {"data-path": "images", "silo-name": "north", "state-path": str(tmp_path / "file")}
    here.executor.serve()
    assert here.runtime.words == [f"error {ErrorCode.INVALID_FAB}"]
    assert "not in the audit: UserError: state folder" in caplog.text


def test_a_signal_interrupts_the_app_and_ends_the_executor(silo: Callable[..., Silo]) -> None:
    here = silo((7, FIRST, "a"), (7, FIRST, "b"))
    here.say = lambda word: signal.raise_signal(signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, here.executor.stop)
    try:
        here.executor.serve()
    finally:
        signal.signal(signal.SIGTERM, before)
    [(reply, _)] = here.runtime.replies
    assert reply.error.reason == "SystemExit: the silo is being stopped"
    assert here.restarts == []


def test_a_task_without_input_and_a_reply_that_nobody_takes_are_dropped(
    silo: Callable[..., Silo], caplog: pytest.LogCaptureFixture
) -> None:
    here = silo((7, FIRST, "a"), (7, FIRST, "b"), (7, FIRST, "c"))
    here.runtime.broken_pulls = here.runtime.broken_pushes = 1
    here.executor.serve()
    assert here.runtime.words == ["C"]
    assert "did not take: RuntimeError: this task is over" in caplog.text


def test_this_project_is_forgotten_before_a_bundle_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert {"clients", "clients.warm.warm_executor", "fedsynth.flower_version"} <= set(sys.modules)
    warm_executor._forget_this_project()
    assert not [name for name in sys.modules if name.partition(".")[0] in ("clients", "fedsynth")]
    assert "flwr" in sys.modules


@pytest.mark.parametrize(
    ("version", "options", "said"),
    [
        ("1.43.0", ["127.0.0.1:9"], "the warm path uses internals of Flower "),
        (None, ["10.0.0.1:9"], "--supernode-address = '10.0.0.1:9': give --root-certificates, or a loopback address"),
        (None, ["127.0.0.1:9", "--root-certificates", "/absent"], "/absent: no such file"),
        (None, ["127.0.0.1:9", "--superexec-auth-secret-file", "/absent"], "/absent: no such file"),
    ],
)
def test_what_the_executor_cannot_start_with_is_named(
    version: str | None,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if version:
        monkeypatch.setattr(flower_version, "version", lambda name: version)
    monkeypatch.setattr(sys, "argv", ["warm_executor", "--supernode-address", *options])
    assert warm_executor.main() == 2
    (line,) = caplog.messages
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize("text", ["0c5b900a", digest(FIRST) + "0", "z" * 64])
def test_a_part_of_a_hash_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["warm_executor", "--supernode-address", "127.0.0.1:9", "--allow-fab", text])
    with pytest.raises(SystemExit):
        warm_executor.main()
    assert f"'{text}': must be the 64 hex digits" in capsys.readouterr().err
