from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import clients.journal
from clients.context import FULL, describe_silo, explained_state
from clients.journal import journal
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture(autouse=True)
def _lines_for_caplog(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(clients.journal, "log_to_stderr", lambda: None)
    logger = logging.getLogger("fedsynth")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


def context(**node_config: Any) -> Context:
    given = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(run_id=1, node_id=77, node_config=given, state=RecordDict(), run_config={})


REQUEST = wire.request(77, wire.EPSILON, {"server-round": 3, "timestep": 620})


def test_line_says_silo_message_round_level_and_seconds(caplog: pytest.LogCaptureFixture) -> None:
    with journal(REQUEST, context(data_path="x", silo_name="north")):
        pass
    assert caplog.messages == ["north: query.epsilon, round 3, level 620 answered after 0.0 s"]


def test_failure_is_told_and_goes_on_to_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError), journal(REQUEST, context(data_path="x", silo_name="north")):
        raise UserError("no model")
    assert caplog.messages == ["north: query.epsilon, round 3, level 620 failed: UserError: no model"]


def test_simulated_silos_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with journal(REQUEST, context(partition_id=0)):
        pass
    assert caplog.messages == []


def test_silo_describes_its_folder(image_folder: Callable[[str], Path]) -> None:
    silo = context(data_path=str(image_folder("clinic")))
    assert describe_silo(silo, RunConfig()) == ImageSpec(1, 8, ("even", "odd"))
    assert describe_silo(silo, RunConfig.from_run_config({"image-size": 16})).size == 16
    with pytest.raises(UserError, match="needs 'data-path' in the node config"):
        describe_silo(context(partition_id=0), RunConfig())


def test_unwritable_state_says_which_folder_and_what_to_do(tmp_path: Path) -> None:
    said = r"state folder .*: No space left on device: make room .* --state-path"
    with pytest.raises(UserError, match=said), explained_state(tmp_path):
        raise OSError(28, "No space left on device")


def test_full_disk_is_told_whatever_a_library_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [FULL - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    with pytest.raises(UserError, match="no space left on that disk"), explained_state(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    free[0] = FULL
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"), explained_state(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    with pytest.raises(UserError, match="as it was"), explained_state(tmp_path):
        raise UserError("as it was")
