from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from hand_made import bare_reply, error_reply, request_to
from strategies.conversation.replies import sound

from fedsynth.errors import RunError
from fedsynth.output import RunFolder
from strategies.conversation.reply_log import LONGEST_REASON, Answers, ReplyLog
from strategies.run.rounds import Round, RoundStrategy
from strategies.run.status import StatusWriter


def from_superlink(request: Message, number: str) -> Message:
    """What Flower answers in the place of a node that is gone."""
    reply = error_reply(request, "Node Unavailable")
    reply.metadata.__dict__.update(_src_node_id=1, _reply_to_message_id=number)
    return reply


def asked(names: dict[int, str] | None = None) -> ReplyLog:
    reply_log = ReplyLog(names if names is not None else {5: "north", 6: "south"})
    reply_log.ask("train", {"a": 5, "b": 6})
    return reply_log


def test_answers_are_noted_with_time_and_loss() -> None:
    reply_log = asked()
    reply_log.heard(bare_reply(request_to(5), loss=0.25))
    reply_log.heard(bare_reply(request_to(6), loss=[0.25]))
    row = reply_log.row()
    assert list(row) == ["north", "south"]
    assert row["north"]["loss"] == 0.25
    assert 0 <= row["north"]["seconds"] < 5
    assert set(row["south"]) == {"seconds"}, "a loss that is no number is none"


def test_flower_s_own_error_is_put_down_to_the_silo_that_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    reply_log = asked()
    answers = Answers(iter([from_superlink(request_to(6), "b"), bare_reply(request_to(5))]), reply_log)
    assert len(list(sound(answers, 1, lambda reply: reply))) == 1
    assert "south left out: Node Unavailable" in caplog.text
    assert reply_log.row()["south"] == {"left-out": "Node Unavailable"}


def test_too_few_answers_name_the_silo_that_is_gone() -> None:
    answers = Answers(iter([from_superlink(request_to(6), "b")]), asked())
    with pytest.raises(RunError, match="0 usable answers, 1 needed: south: Node Unavailable"):
        list(sound(answers, 1, lambda reply: reply))


def test_reason_that_says_its_silo_is_not_told_twice(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers(iter([error_reply(request_to(5), "north: OSError: disk full")]), asked())
    list(sound(answers, 0, lambda reply: reply))
    assert "answer left out: north: OSError: disk full" in caplog.text


def test_long_reasons_are_cut() -> None:
    reply_log = asked()
    reply_log.leave_out(bare_reply(request_to(5)), "x" * 1000)
    assert len(reply_log.row()["north"]["left-out"]) == LONGEST_REASON


def test_silent_silos_are_named_and_the_next_exchange_starts_afresh() -> None:
    reply_log = asked({5: "north"})
    assert reply_log.missed([6, 5]) == "north, node-6"
    assert reply_log.row() == {"node-6": {"left-out": "no answer in time"}, "north": {"left-out": "no answer in time"}}
    reply_log.ask("evaluate", {"c": 5})
    assert reply_log.row() == {}
    reply_log.names = {5: "north"}
    last = reply_log.last()
    assert list(last) == ["north"], "those that take part"
    assert last["north"].message == "train"


def test_silos_are_told_by_name_once_it_is_known() -> None:
    reply_log = asked({})
    reply_log.heard(bare_reply(request_to(6)))
    assert list(reply_log.last()) == ["node-6"]
    reply_log.names = {6: "south"}
    assert list(reply_log.last()) == ["south"]
    assert list(reply_log.row()) == ["south"]


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
        reply_log.heard(bare_reply(request_to(5), loss=0.5))
        writer.observe(strategy)(Round(4, MetricRecord(), ArrayRecord(), 1.0))
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["round"], status["rounds"]) == ("finished", 4, 9)
    assert list(status["silos"]) == ["north"]
    assert status["silos"]["north"]["message"] == "train"
    assert status["silos"]["north"]["loss"] == 0.5


@pytest.mark.parametrize(
    ("error", "said"), [(RunError("no silo"), "no silo"), (KeyboardInterrupt(), "KeyboardInterrupt")]
)
def test_status_of_a_run_that_fails_says_why(error: BaseException, said: str, folder: RunFolder) -> None:
    writer = StatusWriter(folder, asked(), 7)
    writer.begin()
    with pytest.raises(type(error)), writer.kept():
        raise error
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["error"]) == ("failed", said)


def test_status_that_cannot_be_written_does_not_end_a_run(folder: RunFolder) -> None:
    folder.status.mkdir()
    (folder.status / "in the way").write_text("")
    writer, done = StatusWriter(folder, asked(), 7), []
    with writer.kept():
        writer.begin()
        done.append(True)
    assert done == [True]


def test_run_that_is_refused_leaves_no_status(folder: RunFolder) -> None:
    with pytest.raises(RunError), StatusWriter(folder, asked(), 7).kept():
        raise RunError("other silos")
    assert not folder.status.exists()
