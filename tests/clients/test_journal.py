from __future__ import annotations

import logging
import re

import pytest
from hostile_text import HOSTILE
from one_silo import context_of as context
from one_silo import epsilon_request

import clients.journal
from clients.journal import journal
from fedsynth.errors import UserError


@pytest.fixture(autouse=True)
def _lines_for_caplog(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(clients.journal, "log_to_stderr", lambda: None)
    caplog.set_level(logging.INFO, "fedsynth")


def test_lines_stay_lines_whatever_the_error_quotes(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError), journal(REQUEST, context(data_path="x", silo_name="north")):
        raise UserError(HOSTILE)
    (line,) = caplog.messages
    assert line.startswith(r"north: query.epsilon, round 3, timestep 620 failed: UserError: x\n2026-01-01 00:00")
    assert line.isprintable()
    assert len(line) < 1200


REQUEST = epsilon_request(620, server_round=3).to_message(77)


def test_lines_of_real_silos_say_message_round_timestep_and_seconds_or_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    north = context(data_path="x", silo_name="north")
    with journal(REQUEST, north) as entry:
        entry.start -= 2
    with pytest.raises(UserError), journal(REQUEST, north):
        raise UserError("no model")
    with journal(REQUEST, context(partition_id=0)):
        pass
    # A busy machine may take a while between two looks at the clock.
    assert [re.sub(r"after [2-9]\.\d s", "after 2.0 s", message) for message in caplog.messages] == [
        "north: query.epsilon, round 3, timestep 620 answered after 2.0 s",
        "north: query.epsilon, round 3, timestep 620 failed: UserError: no model",
    ]
