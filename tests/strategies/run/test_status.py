from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from flwr.app import ArrayRecord, MetricRecord
from hand_made import bare_reply, request_to

from fedsynth.errors import RunError
from fedsynth.output import RunFolder
from strategies.conversation.reply_log import ReplyLog
from strategies.run.rounds import Round, RoundStrategy
from strategies.run.status import StatusWriter


def asked() -> ReplyLog:
    reply_log = ReplyLog({5: "north", 6: "south"})
    reply_log.ask("train")
    return reply_log


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


def test_status_tells_state_rounds_and_silos(folder: RunFolder) -> None:
    reply_log = asked()
    writer = StatusWriter(folder, reply_log, 7)
    strategy = cast(RoundStrategy, SimpleNamespace(num_rounds=9))
    with writer.kept():
        writer.begin()
        assert json.loads(folder.status.read_text())["state"] == "running"
        reply_log.heard(5, bare_reply(request_to(5), loss=0.5))
        writer.observe(strategy)(Round(4, MetricRecord(), ArrayRecord(), 1.0))
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["round"], status["rounds"]) == ("finished", 4, 9)
    assert list(status["silos"]) == ["north"]
    assert status["silos"]["north"]["message"] == "train"
    assert status["silos"]["north"]["loss"] == 0.5


@pytest.mark.parametrize(("error", "said"), [(RunError("no silo"), "no silo"), (SystemExit(), "SystemExit")])
def test_status_of_a_run_that_fails_says_why(error: BaseException, said: str, folder: RunFolder) -> None:
    writer = StatusWriter(folder, asked(), 7)
    writer.begin()
    with pytest.raises(type(error)), writer.kept():
        raise error
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["error"]) == ("failed", said)


def test_status_of_a_run_that_ctrl_c_stops_says_how_to_go_on(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    writer = StatusWriter(folder, asked(), 7)
    writer.begin()
    with pytest.raises(KeyboardInterrupt), writer.kept():
        raise KeyboardInterrupt
    status = json.loads(folder.status.read_text())
    resume = "fedsynth run --resume run"
    assert (status["state"], status["signal"], status["resume"]) == ("stopped", "SIGINT", resume)
    assert "error" not in status
    assert f"stopped by SIGINT; go on with 'fedsynth run --resume {folder.path}'" in caplog.text


def test_status_that_cannot_be_written_does_not_end_a_run(folder: RunFolder) -> None:
    folder.status.mkdir()
    (folder.status / "in the way").write_text("")
    writer = StatusWriter(folder, asked(), 7)
    with writer.kept():
        writer.begin()


def test_run_that_is_refused_leaves_no_status(folder: RunFolder) -> None:
    with pytest.raises(RunError), StatusWriter(folder, asked(), 7).kept():
        raise RunError("other silos")
    assert not folder.status.exists()
