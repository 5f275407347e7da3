from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from hostile_text import HOSTILE, SURROGATE
from one_silo import SPEC, policy_file
from one_silo import context_of as context

import clients.context
import clients.journal
from clients.app import answering, app
from clients.context import SiloContext
from fedsynth.config import RunConfig
from fedsynth.errors import FilesError, UserError
from fedsynth.messages import (
    REQUESTS,
    Answer,
    ConfusionRequest,
    DescribeAnswer,
    DescribeRequest,
    Request,
    SelectRequest,
    Sender,
    SynthesiseRequest,
    UploadRequest,
    sender_of,
)
from fedsynth.text import LONGEST_TEXT


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (UserError("no images"), "UserError: no images", ErrorCode.MOD_FAILED_PRECONDITION),
        (
            FilesError("jane-doe.png is torn", "1 image is torn"),
            "1 image is torn",
            ErrorCode.MOD_FAILED_PRECONDITION,
        ),
        (OSError(28, "full"), "OSError: [Errno 28] full", ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
        (KeyboardInterrupt(), "KeyboardInterrupt: ", ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
    ],
)
def test_whatever_happens_is_answered_with_silo_and_reason(error: BaseException, said: str, code: int) -> None:
    def handle(request: DescribeRequest, silo: SiloContext) -> Answer:
        raise error

    request = DescribeRequest().to_message(77)
    answer = answering(DescribeRequest, handle)(request, context(silo_name="clinic"))
    assert answer.has_error()
    assert (answer.error.reason, answer.error.code) == (f"clinic: {said}", code)
    assert answer.metadata.reply_to_message_id == request.metadata.message_id


@pytest.mark.parametrize("name", [HOSTILE, "x" * 65, SURROGATE, "north "])
def test_a_silo_whose_name_could_not_be_shown_answers_nothing(name: str) -> None:
    answer = app(DescribeRequest().to_message(77), context(data_path="x", silo_name=name))
    assert "UserError: silo-name = '" in answer.error.reason
    assert answer.error.reason.endswith("blanks at its ends; give another --silo-name")
    assert answer.error.reason.isprintable()
    assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION


def test_an_error_goes_out_as_one_bounded_line() -> None:
    def handle(request: DescribeRequest, silo: SiloContext) -> Answer:
        raise OSError(2, f"absent{SURROGATE}", HOSTILE)

    answer = answering(DescribeRequest, handle)(DescribeRequest().to_message(77), context(silo_name="clinic"))
    assert answer.error.reason.startswith(r"clinic: FileNotFoundError: [Errno 2] absent\ud800")
    assert answer.error.reason.isprintable()
    assert len(answer.error.reason) <= LONGEST_TEXT


def test_answers_say_who_gives_them_and_how_long_it_took() -> None:
    def handle(request: DescribeRequest, silo: SiloContext) -> DescribeAnswer:
        return DescribeAnswer(spec=SPEC, num_examples=3)

    answer = answering(DescribeRequest, handle)(DescribeRequest().to_message(77), context(partition_id=4))
    read = DescribeRequest().reader()(answer)
    assert read.sender == sender_of(answer) == Sender(4, "silo-4", 4)
    assert (read.spec, read.num_examples) == (SPEC, 3)
    assert read.seconds > 0


@pytest.mark.parametrize("request_type", REQUESTS)
def test_every_message_has_a_handler_that_refuses_an_empty_one(
    request_type: type[Request[Answer]], tmp_path: Path
) -> None:
    message = Message(RecordDict(), dst_node_id=77, message_type=request_type.kind)
    # What no policy has a word for yet, only a simulated silo reads at all.
    few_labels = request_type in (ConfusionRequest, SelectRequest, SynthesiseRequest)
    node = {"partition_id": 0} if few_labels else {"silo_name": "clinic", "policy_path": policy_file(tmp_path)}
    answer = app(message, context(**node))
    name = "silo-0" if few_labels else "clinic"
    assert answer.error.reason.startswith(f"{name}: MessageError: the server speaks a protocol before 1, this silo")
    assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION


@pytest.mark.parametrize(
    "lines", ["answers = []", "answers = [", "least-images = 1", f"plugins = {['m:n'] * 9999}", None]
)
def test_a_policy_that_cannot_be_is_told_without_its_path(lines: str | None, tmp_path: Path) -> None:
    home = tmp_path / "Anna's own disk"
    home.mkdir()
    policy = home / "silo-policy.toml"
    if lines is not None:
        policy.write_text(lines)
    own = context(silo_name="clinic", data_path=str(home / "images"), policy_path=str(policy))
    reason = app(DescribeRequest().to_message(77), own).error.reason
    assert reason.startswith("clinic: UserError: policy '…/silo-policy.toml': ")
    assert tmp_path.name not in reason
    assert "Anna" not in reason


def test_bad_run_config_is_answered_too() -> None:
    broken = context(partition_id=0)
    broken.run_config["alpha"] = -1.0
    answer = app(DescribeRequest().to_message(77), broken)
    assert answer.error.reason.startswith("silo-0: UserError: alpha = -1.0")
    assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION


def test_configuration_is_parsed_once_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    plain = RunConfig.from_run_config

    class Counting(RunConfig):
        @classmethod
        def from_run_config(cls, run_config: Any) -> RunConfig:  # type: ignore[override]
            parsed.append(1)
            return plain(run_config)

    monkeypatch.setattr(clients.context, "RunConfig", Counting)
    clients.context._config.cache_clear()
    for node in (context(partition_id=0), context(partition_id=1)):
        assert app(UploadRequest(spec=SPEC).to_message(77), node).has_error()
    assert len(parsed) == 1


def test_failure_of_a_real_silo_is_in_its_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clients.journal, "log_to_stderr", lambda: None)
    caplog.set_level(logging.INFO, "fedsynth")

    def handle(request: DescribeRequest, silo: SiloContext) -> Answer:
        raise SystemExit(3)

    north = context(data_path="x", silo_name="north", state_path=str(tmp_path))
    answer = answering(DescribeRequest, handle)(DescribeRequest().to_message(77), north)
    assert caplog.messages == ["north: query.describe failed: SystemExit: 3"]
    assert answer.error.reason == "north: SystemExit: the silo's log says why"


def test_a_crash_does_not_tell_how_many_images_there_are(tmp_path: Path) -> None:
    def handle(request: DescribeRequest, silo: SiloContext) -> Answer:
        np.empty((217, 10**7, 10**7, 3))
        raise AssertionError

    node = context(data_path="x", silo_name="north", state_path=str(tmp_path))
    answer = answering(DescribeRequest, handle)(DescribeRequest().to_message(77), node)
    assert "MemoryError" in answer.error.reason
    assert "217" not in answer.error.reason
