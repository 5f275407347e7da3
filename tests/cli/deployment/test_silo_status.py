from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hostile_text import HOSTILE, unshown
from real_silos import write_digits

from clients.ledger import Ledger
from clients.privacy_account import PrivacyAccount
from fedsynth.chain import START, chained
from fedsynth.cli import main
from fedsynth.cli.deployment.silo_connection import Connection, ConnectionNote, read_connection
from fedsynth.cli.deployment.silo_output import SuperNodeOutput
from fedsynth.files import write_json
from fedsynth.locks import locked
from fedsynth.policy import SiloPolicy
from fedsynth.privacy.spending import gaussian, note_file

INF = float("inf")


@pytest.fixture
def silo(project: Path) -> Path:
    """The folder of a silo that has its settings, and was never started."""
    write_digits(project / "images", (0, 1), 0, per_class=2)
    given = ["--superlink", "link.example.org:9092", "--silo-name", "north", "--data-path", "images"]
    assert main(["silo", "init", *given]) == 0
    return project / "silo"


def said(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[str]]]:
    """Exit status, and the lines by their first word."""
    capsys.readouterr()
    status = main(["silo", "status"])
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        found.setdefault(line[:8].strip(), []).append(line[9:])
    return status, found


def note(silo: Path, state: str = "connected", minutes: int = 0, **changes: Any) -> None:
    moment = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    policy = str(silo / "silo-policy.toml")
    connection = asdict(Connection("north", "link.example.org:9092", policy, since=moment, started=moment))
    write_json(silo / "state" / "connection.json", {**connection, "state": state, **changes})


def audited(silo: Path, *contents: dict[str, Any]) -> Path:
    path, last = silo / "state" / "north" / "audit.jsonl", START
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for content in contents:
            line, last = chained({"time": "2026-01-01T09:00:00.000+00:00", "run": "17", **content}, last)
            file.write(line)
    return path


def test_a_silo_that_was_never_started(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = said(capsys)
    assert status == 1
    assert lines["silo"] == [f"north, folder {silo}"]
    assert lines["link"] == [f"the silo does not run: 'fedsynth silo start --folder {silo}'"]
    assert lines["run"] == ["none has asked anything yet"]
    assert "noise queries: 2,000 of 2,000 in all runs" in lines["left"]
    assert not (silo / "state").exists(), "nothing is written"


def test_a_connected_silo_says_since_when_what_it_did_and_what_is_left(
    silo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (silo / "silo-policy.toml").write_text('noise-queries-in-all = 20\noptimiser-steps-in-all = "unlimited"\n')
    note(silo, minutes=125)
    audited(
        silo,
        {"run": "16", "message": "query.describe", "outcome": "answered", "seconds": 0.1},
        {"strategy": "dfd", "message": "query.describe", "outcome": "answered", "seconds": 0.1},
        {"strategy": "dfd", "message": "query.epsilon", "outcome": "answered", "seconds": 2.0, "round": 3},
    )
    ledger = Ledger(silo / "state" / "north" / "ledger.json")
    for run, count in (("16", 5), ("17", 3)):
        ledger.add(run, {"noise-queries": count, "optimiser-steps": 40}, dict.fromkeys(LIMITS, (INF, INF)))
    with locked(silo / "state" / "silo.lock", "it"):
        status, lines = said(capsys)
    assert status == 0
    (link,) = lines["link"]
    assert re.fullmatch(
        r"connected to link\.example\.org:9092 since \S+ \S+\+00:00 \(2 h 05 min ago\); started .*", link
    )
    assert lines["run"] == ["17 (dfd): answered 2, refused 0, failed 0; whether it has ended a silo is not told"]
    (last,) = lines["last"]
    assert last.startswith("epsilon, round 3: answered 2026-01-01 09:00:00+00:00 (")
    assert last.endswith("ago), after 2 s of work")
    assert lines["left"][0] == "noise queries: 12 of 20 in all runs, 97 of 100 in this run"
    assert "optimiser steps: 80 used, no ceiling in all runs, 19,960 of 20,000 in this run" in lines["left"]
    assert lines["left"][-1] == "privacy ε: the policy sets no budget"
    assert lines["program"] == ["not pinned: whatever a server sends runs here; see 'fedsynth silo program'"]


LIMITS = ("noise-queries", "optimiser-steps")


@pytest.mark.parametrize(
    ("state", "runs", "expected"),
    [
        ("connecting", True, "not connected: link.example.org:9092 has not taken the silo in since its start"),
        ("interrupted", True, "link.example.org:9092 is not reached since"),
        ("connected", False, "the silo does not run, and ended without a word"),
        ("refused", False, "the silo does not run: refused"),
        ("stopped", False, "the silo does not run: stopped"),
    ],
)
def test_what_is_not_connected_is_exit_status_1(
    state: str, runs: bool, expected: str, silo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(silo, state, why="its key is not registered")
    if runs:
        with locked(silo / "state" / "silo.lock", "it"):
            status, lines = said(capsys)
    else:
        status, lines = said(capsys)
    assert status == 1
    assert lines["link"][0].startswith(expected)
    assert ("its key is not registered" in lines["link"][0]) == (state in ("refused", "stopped"))


def test_a_policy_that_cannot_be_read_answers_nothing(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (silo / "silo-policy.toml").write_text("noise-querys-in-all = 20\n")
    note(silo)
    with locked(silo / "state" / "silo.lock", "it"):
        status, lines = said(capsys)
    assert status == 1
    (line,) = lines["policy"]
    assert line.startswith("BROKEN policy '")
    assert line.endswith("nothing is answered until it can be")
    assert lines["link"][0].startswith("connected"), "the rest is said all the same"
    assert "left" not in lines


def test_a_running_silo_is_told_by_what_it_was_started_with(
    silo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, other = "b" * 64, "a" * 64
    monkeypatch.setattr("fedsynth.cli.deployment.silo_status.program_digest", lambda: digest)
    note(silo)
    with locked(silo / "state" / "silo.lock", "it"):
        assert said(capsys)[0] == 0
        # Pinned afterwards: the process that runs now takes any program still.
        (silo / "silo-policy.toml").write_text(f'programs = ["{digest}"]')
        status, lines = said(capsys)
        assert status == 1
        assert lines["program"] == [
            "the policy's 'programs' were changed: they act after the next start",
            "not pinned: whatever a server sends runs here; see 'fedsynth silo program'",
        ]
        note(silo, pinned=[digest], allowed=[digest, other])
        status, lines = said(capsys)
        assert (status, lines["program"]) == (0, [f"pinned: SHA-256 {digest}, that of this version, and 1 more"])
        note(silo, policy="")
        status, lines = said(capsys)
        assert status == 1
        assert lines["policy"][0].endswith(f"{silo / 'silo-policy.toml'} acts after the next start")
    (silo / "silo-policy.toml").write_text(f'programs = ["{other}"]')
    assert said(capsys)[1]["program"] == ["pinned: 1, and that of this version is not among them"]


def test_the_budget_of_epsilon_and_an_account_that_is_gone(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = silo / "silo-policy.toml"
    policy.write_text("privacy-epsilon = 8.0\n")
    assert said(capsys)[1]["left"][-1] == "privacy ε: 8 of 'privacy-epsilon = 8.0'"
    state = silo / "state" / "north"
    state.mkdir(parents=True)
    account = PrivacyAccount(state, SiloPolicy(privacy_epsilon=8.0), "17", note_file(policy, "north"))
    account.spend("statistics", gaussian(4.0), "00")
    left = account.left()
    assert 6 < left < 8
    assert said(capsys)[1]["left"][-1] == f"privacy ε: {left:.4g} of 'privacy-epsilon = 8.0'"
    account.path.unlink()
    status, lines = said(capsys)
    assert status == 1
    assert lines["left"][-1].startswith("BROKEN there is no '")


def test_damage_is_named_and_the_rest_is_said(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = audited(silo, {"message": "train", "outcome": "answered"}, {"message": "train", "outcome": "answered"})
    path.write_bytes(path.read_bytes().replace(b'"train"', b'"grain"', 1))
    (path.parent / "ledger.json").write_text("{")
    (silo / "state" / "connection.json").write_text('{"state": 3}')
    status, lines = said(capsys)
    assert status == 1
    assert lines["audit"] == ["BROKEN line 1 is altered: no entry of a chain: see 'fedsynth silo audit'"]
    assert lines["left"][0].startswith("BROKEN '")
    assert lines["link"][0].startswith("BROKEN '")
    assert lines["last"][0].startswith("train: answered")


def test_what_the_other_side_wrote_is_shown_escaped(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"strategy": HOSTILE, "message": HOSTILE, "outcome": "refused", "why": HOSTILE, "run": HOSTILE}
    audited(silo, texts)
    note(silo, superlink=HOSTILE)
    capsys.readouterr()
    assert main(["silo", "status"]) == 1
    assert unshown(capsys.readouterr().out) == set()


def test_start_notes_what_its_supernode_says(tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    noted = ConnectionNote(path, Connection("north", "link:9092", pinned=("a",), allowed=("a", "b")))
    output = SuperNodeOutput("north", noted)

    def state_after(line: str) -> str:
        output(line)
        found = read_connection(path)
        assert found is not None
        assert (found.allowed, found.started <= found.since) == (("a", "b"), True)
        return found.state

    assert state_after("WARNING : Connection attempt failed, retrying in 1.20 seconds") == "connecting"
    assert state_after("INFO : Connection successful after 1.20 seconds and 2 tries.") == "connecting"
    assert state_after("INFO : SuperNode ID: 17") == "connected"
    assert state_after("WARNING : Connection attempt failed, retrying in 1.20 seconds") == "interrupted"
    assert state_after("INFO : Connection successful after 1.20 seconds and 2 tries.") == "connected"


def test_a_refusal_by_the_link_stays_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    noted = ConnectionNote(path, Connection("north", "link:9092"))
    output = SuperNodeOutput("north", noted)
    for line in ("ERROR :     Exit Code: 305", "[code: 2004] No SuperNode found"):
        output(line)
    noted("ended", "status 1")
    found = read_connection(path)
    assert found is not None
    assert (found.state, found.why.partition(":")[0]) == ("refused", "the silo's key is not registered at this link")


def test_a_note_that_cannot_be_written_ends_no_silo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    noted = ConnectionNote(tmp_path / "file" / "connection.json", Connection("north", "link:9092"))
    noted("connected")
    assert [message.partition(":")[0].count("cannot be written") for message in caplog.messages] == [1]


def test_start_leaves_the_note_that_status_reads(
    silo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    assert main(["link", "init"]) == 0
    monkeypatch.setattr("fedsynth.cli.silo.check_clock", lambda *_: None)
    seen: list[dict[str, list[str]]] = []

    def run(*given: Any) -> int:
        given[4]("INFO :      SuperNode ID: 17")
        seen.append(said(capsys)[1])
        return 128 + 15

    monkeypatch.setattr("fedsynth.cli.silo.run_in_foreground", run)
    assert main(["silo", "start", "--root-certificates", "link/ca.crt"]) == 128 + 15
    assert seen[0]["link"][0].startswith("connected to link.example.org:9092 since ")
    assert said(capsys)[1]["link"][0].startswith("the silo does not run: stopped ")
    assert json.loads((silo / "state" / "connection.json").read_text())["why"] == "by SIGTERM"
    assert "there is no folder" in refused("silo", "status", "--folder", "silos")
