"""One SuperLink and two warm silos on this machine.

The bundles' ClientApp lives in ``clients.app``, the name of this project's own: the silos' processes come from here,
and yet they must run what the SuperLink ships.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployed import LIMIT_SECONDS
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode

from experiments.benchmarks.loopback import Loopback

PROJECT = """
[project]
name = "tiny"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedsynth"
[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "clients.app:app"
[tool.flwr.app.config]
words = ""
output = ""
"""
CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from clients.voice import VOICE

app = ClientApp()
said = []


@app.query("say")
def say(message, context):
    word = message.content["config"]["word"]
    if word == "crash":
        raise SystemExit("as asked")
    said.append(word)
    answer = {"voice": VOICE, "name": context.node_config["name"], "pid": os.getpid(), "said": list(said)}
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)
"""
SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := sorted(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    rounds = [ask(grid, nodes, word) for word in context.run_config["words"].split(",")]
    Path(context.run_config["output"]).write_text(json.dumps(rounds))


def ask(grid, nodes, word):
    content = RecordDict({"config": ConfigRecord({"word": word})})
    pending = set(grid.push_messages([Message(content, node, "query.say") for node in nodes]))
    answers = {}
    while pending:
        for reply in grid.pull_messages(pending):
            pending.discard(reply.metadata.reply_to_message_id)
            error = {"code": reply.error.code, "reason": reply.error.reason} if reply.has_error() else None
            answers[str(reply.metadata.src_node_id)] = error or dict(reply.content["config"])
        time.sleep(0.05)
    return answers
"""

Answers = dict[str, dict[str, Any]]


def write_app(folder: Path, voice: str) -> tuple[Path, str]:
    """Write an app whose silos speak with ``voice``; return its folder and the hash of its bundle."""
    (folder / "clients").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "server.py").write_text(SERVER)
    (folder / "clients" / "__init__.py").touch()
    (folder / "clients" / "app.py").write_text(CLIENT)
    (folder / "clients" / "voice.py").write_text(f"VOICE = {voice!r}\n")
    return folder, hashlib.sha256(build_fab_from_disk(folder)).hexdigest()


@dataclass
class Deployment:
    """Two silos: ``open`` runs any bundle, ``closed`` the first one only."""

    silos: dict[str, subprocess.Popen[bytes]]
    logs: Path
    first: list[Answers]
    second: list[Answers]
    refused: str

    def of(self, name: str, answers: Answers) -> dict[str, Any]:
        node = next(node for node, answer in self.first[0].items() if answer["name"] == name)
        return answers[node]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    (one, allowed), (two, refused) = write_app(folder / "one", "first"), write_app(folder / "two", "second")
    with Loopback(folder) as federation:
        silos = {
            name: federation.start_silo(name, f'name="{name}"', warm=True, options=["--preload=", *options])
            for name, options in {"open": [], "closed": ["--allow-fab", allowed]}.items()
        }
        outputs = [folder / "first.json", folder / "second.json"]
        federation.run("run-1", one, {"words": "a,b,crash,c", "output": str(outputs[0])}, timeout=LIMIT_SECONDS)
        federation.run("run-2", two, {"words": "d,e", "output": str(outputs[1])}, timeout=LIMIT_SECONDS)
        first, second = (json.loads(output.read_text()) for output in outputs)
        yield Deployment(silos, folder, first, second, refused)


def test_one_process_answers_the_messages_of_a_run(deployment: Deployment) -> None:
    for name in deployment.silos:
        a, b = (deployment.of(name, answers) for answers in deployment.first[:2])
        assert a["said"] == ["a"]
        assert b["said"] == ["a", "b"]
        assert a["pid"] == b["pid"]
        assert a["voice"] == "first"


def test_a_crash_is_answered_and_the_silo_goes_on(deployment: Deployment) -> None:
    for name in deployment.silos:
        crashed, after = (deployment.of(name, answers) for answers in deployment.first[2:])
        assert crashed == {"code": ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "reason": "SystemExit: as asked"}
        # The same process with a fresh interpreter.
        assert after["said"] == ["c"]
        assert after["pid"] == deployment.of(name, deployment.first[0])["pid"]


def test_another_run_meets_nothing_of_the_one_before(deployment: Deployment) -> None:
    d, e = (deployment.of("open", answers) for answers in deployment.second)
    assert d["voice"] == e["voice"] == "second"
    assert d["said"] == ["d"]
    assert e["said"] == ["d", "e"]


def test_a_silo_refuses_a_bundle_that_it_does_not_allow(deployment: Deployment) -> None:
    for answers in deployment.second:
        answer = deployment.of("closed", answers)
        assert answer["code"] == ErrorCode.INVALID_FAB
        assert f"comes with program {deployment.refused}, which this silo has not pinned" in answer["reason"]
    log = (deployment.logs / "closed.log").read_text()
    assert log.count(f"program {deployment.refused}, which this silo has not pinned") == 2


def test_a_silo_whose_executor_is_killed_ends(deployment: Deployment) -> None:
    silo = deployment.silos["open"]
    children = psutil.Process(silo.pid).children()
    assert len(children) == 2
    os.kill(deployment.of("open", deployment.first[0])["pid"], signal.SIGKILL)
    assert silo.wait(LIMIT_SECONDS) == 128 + signal.SIGKILL
    assert not any(child.is_running() for child in children)
    said = "the silo's executor has ended by itself (status -9); all of it is stopped"
    assert said in (deployment.logs / "open.log").read_text()


def test_a_silo_that_is_asked_to_stop_ends_well(deployment: Deployment) -> None:
    silo = deployment.silos["closed"]
    children = psutil.Process(silo.pid).children()
    silo.terminate()
    assert silo.wait(LIMIT_SECONDS) == 0
    assert len(children) == 2
    assert not any(child.is_running() for child in children)
