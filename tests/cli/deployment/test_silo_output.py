"""What a SuperNode's last words become, and that one which does not end is ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedsynth.cli.deployment.processes import run_in_foreground
from fedsynth.cli.deployment.silo_output import SuperNodeOutput

FAILED = "ERROR :     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("INFO :      SuperNode ID: 17\nINFO :      SuperNode ID: 17", "connected as north; waiting for runs"),
        (f"{FAILED}[code: 2004] No SuperNode found", "the silo's key is not registered at this link"),
        (f"{FAILED}[SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer", "ca.crt is not this link's"),
        ("a run's error with [code: 2004] in it", ""),
    ],
)
def test_the_words_are_said_once_and_plainly(lines: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fedsynth")
    reader = SuperNodeOutput("north")
    for line in lines.split("\n"):
        reader(line)
    assert [message.startswith(said) for message in caplog.messages] == [True] * bool(said)
    assert reader.is_ending == (FAILED in lines)


def test_a_command_that_says_it_ends_and_does_not_is_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"import sys, time; sys.stderr.write({FAILED + '[code: 2004] no key'!r} + chr(10)); time.sleep(600)"
    reader = SuperNodeOutput("north")
    assert run_in_foreground([sys.executable, "-c", code], dict(os.environ), tmp_path, 0.2, reader) == 1
    assert "send silo.pub to its operator" in caplog.text
    assert "[code: 2004] no key" in capfd.readouterr().err
