from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from clients.privacy_account import PrivacyAccount
from fedsynth.errors import UserError
from fedsynth.policy import PolicyError, SiloPolicy
from fedsynth.privacy.accounting import Geometric, Mechanism
from fedsynth.privacy.spending import Spending, read_account

STEPS = Mechanism(9.9, 0.5, 200)
"""A training of ε = 3."""


def account(folder: Path, run: str = "1", **lines: Any) -> PrivacyAccount:
    (folder / "silo").mkdir(exist_ok=True)
    return PrivacyAccount(folder / "state", SiloPolicy(**lines), run, folder / "silo" / "privacy-note.json")


def spendings(folder: Path) -> list[Spending]:
    with (folder / "state" / "privacy.jsonl").open("rb") as file:
        report = read_account(file)
    assert report.problems == []
    return report.spendings


def test_trainings_and_releases_of_all_runs_and_data_sets_add_up(tmp_path: Path) -> None:
    account(tmp_path, "1", privacy_epsilon=6.0).spend("counts", Geometric(2.0), "first")
    account(tmp_path, "2", privacy_epsilon=6.0).before_steps("first")(STEPS)
    silo = account(tmp_path, "3", privacy_epsilon=6.0)
    silo.before_steps("after images were added")(STEPS)
    training = pld.from_gaussian_mechanism(9.9, sampling_prob=0.5).self_compose(400)
    together = training.compose(pld.from_discrete_laplace_mechanism(0.5, 1)).get_epsilon_for_delta(1e-5)
    assert silo.left() == pytest.approx(6.0 - together, abs=1e-3)
    assert 0.5 < silo.left() < 6.0 - 3.0
    assert [(one.what, one.run, one.data) for one in spendings(tmp_path)] == [
        ("counts", "1", "first"),
        ("training", "2", "first"),
        ("training", "3", "after images were added"),
    ]


def test_beyond_the_budget_nothing_begins_and_what_is_left_is_said(tmp_path: Path) -> None:
    silo = account(tmp_path, privacy_epsilon=4.0)
    silo.spend("training", STEPS, "d")
    said = r"line 'privacy-epsilon = 4.0': training would bring ε to 4\.\d+ at privacy-delta = 1e-05; 3 is spent, 0\.99"
    with pytest.raises(PolicyError, match=said):
        silo.spend("training", STEPS, "other images")
    assert len(spendings(tmp_path)) == 1
    silo.spend("counts", Geometric(2.0), "d")
    # The same history at a smaller δ costs more.
    strict = account(tmp_path, privacy_epsilon=4.0, privacy_delta=1e-9)
    assert strict.left() == 0
    with pytest.raises(PolicyError, match=r"at privacy-delta = 1e-09; .* is spent, 0 left"):
        strict.spend("counts", Geometric(100.0), "d")
    assert account(tmp_path).left() == math.inf


def test_no_budget_holds_with_or_after_what_had_no_noise(tmp_path: Path) -> None:
    bounded = account(tmp_path, privacy_epsilon=100.0)
    with pytest.raises(PolicyError, match=r"privacy-epsilon = 100.0': statistics without noise"):
        bounded.spend("statistics", None, "d")
    free = account(tmp_path)
    for _ in range(3):
        free.spend("training", None, "d")
    account(tmp_path, run="2").spend("training", None, "d")
    assert [one.run for one in spendings(tmp_path)] == ["1", "2"], "once a run"
    assert bounded.left() == 0
    with pytest.raises(PolicyError, match="earlier answers about these images had no noise"):
        bounded.spend("counts", Geometric(50.0), "d")


def test_an_answer_that_an_earlier_version_told_is_accounted_for_once(tmp_path: Path) -> None:
    silo = account(tmp_path, privacy_epsilon=1.0)
    for _ in range(2):
        silo.told_before("counts", Geometric(0.5), "d")
    silo.told_before("counts", Geometric(0.5), "e")
    assert len(spendings(tmp_path)) == 2
    assert silo.left() == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from clients.privacy_account import PrivacyAccount
from fedsynth.policy import SiloPolicy
from fedsynth.privacy.accounting import Mechanism
account = PrivacyAccount(Path(sys.argv[1]), SiloPolicy(), "1")
account.before_steps("d")(Mechanism(9.9, 0.5, 200))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_steps_count_although_the_process_is_killed_before_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "state")]
    assert subprocess.run(command, check=False).returncode == -9
    assert [one.mechanism for one in spendings(tmp_path)] == [STEPS]
    with pytest.raises(PolicyError, match="3 is spent, "):
        account(tmp_path, privacy_epsilon=4.0).spend("training", STEPS, "d")


def test_what_is_not_on_the_disk_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = account(tmp_path, privacy_epsilon=4.0)
    silo.spend("counts", Geometric(2.0), "d")
    before = (tmp_path / "state" / "privacy.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedsynth.chained_file.os.fsync", full)
        with pytest.raises(UserError, match="No space left on device; nothing touches the images unaccounted for"):
            silo.spend("training", STEPS, "d")
    assert (tmp_path / "state" / "privacy.jsonl").read_bytes() == before


def test_a_line_that_a_crash_tore_is_closed_and_the_account_goes_on(tmp_path: Path) -> None:
    silo = account(tmp_path, privacy_epsilon=4.0)
    silo.spend("counts", Geometric(2.0), "d")
    with silo.path.open("ab") as file:
        file.write(b'{"data":"d","mecha')
    silo.spend("training", STEPS, "d")
    assert [one.what for one in spendings(tmp_path)] == ["counts", "training"]


def test_a_damaged_account_is_refused_by_line(tmp_path: Path) -> None:
    silo = account(tmp_path)
    for _ in range(3):
        silo.spend("training", STEPS, "d")
    whole = silo.path.read_bytes()
    damaged = whole.replace(b'"steps":200', b'"steps":002', 1)
    lines = whole.splitlines(keepends=True)
    for content, said in (
        (damaged, "line 1 is altered"),
        (b"".join([lines[0], lines[2]]), "entry 2 is missing before line 2"),
        (b"".join([*lines[:2], lines[2][:-3], b"\n"]), "its last line is altered, see 'fedsynth silo privacy'"),
    ):
        silo.path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            silo.spend("counts", Geometric(2.0), "d")
        assert silo.path.read_bytes() == content


@pytest.mark.parametrize("lost", ["cut", "older", "removed", "of another silo"])
def test_an_account_in_the_place_of_the_one_that_was_noted(tmp_path: Path, lost: str) -> None:
    silo = account(tmp_path, privacy_epsilon=9.0)
    silo.spend("counts", Geometric(2.0), "d")
    older = silo.path.read_bytes()
    silo.spend("training", STEPS, "d")
    whole = silo.path.read_bytes()
    if lost == "removed":
        silo.path.unlink()
    elif lost == "of another silo":
        silo.path.unlink()
        PrivacyAccount(silo.path.parent, SiloPolicy(), "9").spend("training", STEPS, "d")
    else:
        silo.path.write_bytes(older)
    for ask in (silo.left, lambda: silo.spend("training", STEPS, "d")):
        with pytest.raises(UserError, match=r"it is not the one of which .*privacy-note.json' was written, or"):
            ask()
    # Without a budget there is no promise to break; but the note is not written anew, and a budget set later sees it.
    account(tmp_path).spend("counts", Geometric(2.0), "d")
    with pytest.raises(UserError, match="it is not the one of which"):
        silo.spend("training", STEPS, "d")
    silo.path.write_bytes(whole)
    assert silo.left() < 6


def test_a_note_that_a_crash_left_behind_is_of_an_earlier_line(tmp_path: Path) -> None:
    silo = account(tmp_path, privacy_epsilon=9.0)
    note = tmp_path / "silo" / "privacy-note.json"
    silo.spend("counts", Geometric(2.0), "d")
    early = note.read_text()
    silo.spend("counts", Geometric(2.0), "d")
    note.write_text(early)
    silo.spend("counts", Geometric(2.0), "d")
    assert json.loads(note.read_text())["entry"] == 3
    note.write_text("{")
    with pytest.raises(UserError, match=r"privacy-note\.json' is damaged"):
        silo.spend("counts", Geometric(2.0), "d")


def test_a_note_that_cannot_be_written_keeps_nobody_from_working(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy may lie where the silo's account may not write, which is as good a protection of it."""
    (tmp_path / "file").touch()
    silo = PrivacyAccount(tmp_path / "state", SiloPolicy(privacy_epsilon=9.0), "1", tmp_path / "file" / "note.json")
    silo.spend("counts", Geometric(2.0), "d")
    assert "note.json' cannot be written" in caplog.text
    assert len(spendings(tmp_path)) == 1


def test_two_at_a_time_together_stay_within_the_budget(tmp_path: Path) -> None:
    def spend(run: str) -> int:
        done = 0
        for _ in range(3):
            with contextlib.suppress(PolicyError):
                account(tmp_path, run, privacy_epsilon=0.8).spend("counts", Geometric(4.0), "d")
                done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(spend, ("1", "2")))
    # Three releases of ε = 1/4 fit in, and a fourth does not. The lock is flock's, which keeps out processes alike.
    assert (sum(done), len(spendings(tmp_path))) == (3, 3)
