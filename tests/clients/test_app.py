from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from hand_made import request_to

import clients.app
from clients.app import app, guarded
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.messages import wire


def context(**node_config: Any) -> Context:
    given = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(run_id=1, node_id=77, node_config=given, state=RecordDict(), run_config=RunConfig().to_run_config())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no images in class folder 'cat'"), "UserError: no images in class folder 'cat'"),
        (OSError(28, "No space left on device"), r"OSError: [Errno 28] No space left on device"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (MemoryError(), "MemoryError: "),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    ],
)
@pytest.mark.parametrize(
    ("node", "name"),
    [({"silo_name": "clinic"}, "clinic"), ({"partition_id": 4}, "silo-4"), ({}, "node-77")],
)
def test_whatever_happens_is_answered_with_silo_and_reason(
    error: BaseException, said: str, node: dict[str, Any], name: str
) -> None:
    @guarded
    def handle(message: Message, context: Context) -> Message:
        raise error

    request = request_to(77)
    answer = handle(request, context(**node))
    assert answer.has_error()
    assert answer.error.reason == f"{name}: {said}"
    assert answer.metadata.reply_to_message_id == request.metadata.message_id


def test_answers_pass_through() -> None:
    request = request_to(77)
    expected = Message(RecordDict(), reply_to=request)
    assert guarded(lambda message, context: expected)(request, context()) is expected
    assert guarded(clients.app.handle_train).__name__ == "handle_train"


@pytest.mark.parametrize("kind", [wire.PREPARE, wire.EPSILON, wire.SAMPLE, wire.TRAIN])
def test_every_message_type_has_a_handler_that_survives_an_empty_message(kind: str) -> None:
    answer = app(request_to(77, kind), context(silo_name="clinic"))
    assert answer.has_error()
    assert answer.error.reason.startswith("clinic: ")
    assert answer.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_bad_run_config_is_answered_too() -> None:
    broken = context(partition_id=0)
    broken.run_config["alpha"] = -1.0
    answer = app(request_to(77), broken)
    assert answer.error.reason.startswith("silo-0: UserError: alpha = -1.0")
    assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION, "a refusal"
