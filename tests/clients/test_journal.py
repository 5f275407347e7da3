from __future__ import annotations

import logging

import pytest
from one_silo import context_of as context
from one_silo import epsilon_request

import clients.journal
from clients.journal import journal
from fedsynth.errors import UserError


@pytest.fixture(autouse=True)
def _lines_for_caplog(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(clients.journal, "log_to_stderr", lambda: None)
    caplog.set_level(logging.INFO, "fedsynth")


REQUEST = epsilon_request(620, server_round=3).to_message(77)


def test_line_says_silo_message_round_timestep_and_seconds(caplog: pytest.LogCaptureFixture) -> None:
    with journal(REQUEST, context(data_path="x", silo_name="north")) as entry:
        entry.start -= 2
    assert caplog.messages == ["north: query.epsilon, round 3, timestep 620 answered after 2.0 s"]


def test_failure_is_logged_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError), journal(REQUEST, context(data_path="x", silo_name="north")):
        raise UserError("no model")
    assert caplog.messages == ["north: query.epsilon, round 3, timestep 620 failed: UserError: no model"]


def test_simulated_silos_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with journal(REQUEST, context(partition_id=0)):
        pass
    assert caplog.messages == []
