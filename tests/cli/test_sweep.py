from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsynth.cli import main
from fedsynth.cli.sweeps import first_guess, run_process
from fedsynth.cli.sweeps.first_guess import Speed
from fedsynth.cli.sweeps.run_process import MARK, end_processes, last_progress
from fedsynth.cli.sweeps.sweep_manifest import Entry, estimated_seconds, time_left
from fedsynth.output import RunFolder

FAKE = Path(__file__).parents[1] / "fake_run.py"
TEXT = """
seeds = [0, 1]
[[method]]
name = "DfD"
[[method]]
name = "averaging"
strategy = "fedavg"
"""
LABELS = ["DfD, seed 0", "averaging, seed 0", "k, seed 2"]
NAMES = ["DfD-0", "averaging-0", "DfD-1", "averaging-1"]


@pytest.fixture
def place(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a sweep file of two rows and two seeds, whose runs are :mod:`fake_run`."""
    monkeypatch.setattr(run_process, "COMMAND", (sys.executable, str(FAKE)))
    monkeypatch.setattr(first_guess, "measured_speed", lambda config, spec: Speed(0.01, 0.0001))
    monkeypatch.setattr(first_guess, "silos_at_once", lambda config: 2)
    (project / "runs").mkdir()
    (project / "s.toml").write_text(TEXT)
    yield project
    for name in NAMES:
        end_processes(project / "runs" / "s" / name)


def starts(place: Path) -> list[str]:
    file = place / "runs" / "starts"
    return file.read_text().splitlines() if file.exists() else []


def manifest(place: Path) -> list[dict[str, Any]]:
    return list(json.loads((place / "runs" / "s" / "sweep.json").read_text())["runs"])


def statuses(place: Path) -> list[str]:
    return [entry["status"] for entry in manifest(place)]


def alive(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(place)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_held(place: Path) -> int:
    held, deadline = place / "runs" / "held", time.monotonic() + 60
    while not held.exists() or not held.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(held.read_text())


def wait_until_ended(place: Path) -> None:
    deadline = time.monotonic() + 60
    while alive(place):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_another_process(*words: str) -> multiprocessing.process.BaseProcess:
    def work() -> None:
        sys.exit(main(words))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_every_run_is_made_once_and_known_by_what_it_computes(
    place: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    assert main(["sweep", "s.toml"]) == 0
    assert starts(place) == [f"fresh {name}" for name in NAMES]
    assert [(entry["folder"], entry["status"]) for entry in manifest(place)] == [(n, "finished") for n in NAMES]
    assert manifest(place)[1]["settings"]["strategy"] == "fedavg"
    assert all(RunFolder(place / "runs" / "s" / name).results.is_file() for name in NAMES)
    printed = capsys.readouterr().out
    assert "[2/4] averaging, seed 0: started, about 1 min 40 s\n" not in printed
    assert "[3/4] DfD, seed 1: started, about 1 min 40 s\n" in printed
    assert "2 of 4 finished, about 3 min 20 s left" in printed
    assert "4 of 4 runs finished" in printed
    text = TEXT.replace('"averaging"', '"renamed"').replace("seeds = [0, 1]", "seeds = [0, 1, 2]")
    (place / "s.toml").write_text(text)
    assert main(["sweep", "s.toml"]) == 0
    assert starts(place)[4:] == ["fresh DfD-2", "fresh renamed-2"]
    assert [entry["folder"] for entry in manifest(place)] == [*NAMES, "DfD-2", "renamed-2"]
    (place / "s.toml").write_text("batch-size = 7\n" + TEXT)
    said = refused("sweep", "s.toml")
    assert "DfD-0' holds a run with batch-size = 32, and DfD, seed 0 has 7: move that folder elsewhere" in said


def test_failed_runs_do_not_stop_the_rest_and_are_tried_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "s.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"DfD, seed 0 .* 1 min 10 s \(guess\)", printed), "2000 steps, 50 000 predictions, and 45 s"
    assert re.search(r"averaging, seed 1 .* 1 min 06 s \(guess\)", printed), "2000 steps, 10 000 predictions, and 45 s"
    assert "0 of 4 finished, about 4 min 32 s left; a guess: from some training steps" in printed
    assert not (place / "runs" / "s").exists()
    order = place / "runs" / "fail-averaging-0"
    order.touch()
    assert main(["sweep", "s.toml"]) == 1
    assert statuses(place) == ["finished", "failed", "finished", "finished"]
    assert manifest(place)[1]["reason"] == "no silo answered in averaging-0"
    printed = capsys.readouterr().out
    assert "[2/4] averaging, seed 0: failed: no silo answered in averaging-0; 1 of 4 finished, 1 failed" in printed
    console = place / "runs" / "s" / "logs" / "averaging-0.txt"
    assert f"failed: averaging, seed 0: no silo answered in averaging-0 (all it said: {console})" in printed
    assert "3 of 4 runs finished" in printed
    private = '[[method]]\nname="k"\nstrategy="pooled"\ndp-epsilon=10.0\n'
    (place / "s.toml").write_text(private)
    assert main(["sweep", "s.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 1 finished, time left unknown; no run of this sweep has finished yet" in printed
    assert "make one with --rows k --seeds 0, and ask again" in printed
    (place / "s.toml").write_text(TEXT.replace("[0, 1]", "[0, 1, 2]") + private)
    assert main(["sweep", "s.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    rows = {name: next(line for line in printed.splitlines() if line.startswith(name)) for name in LABELS}
    assert " finished" in rows["DfD, seed 0"]
    assert rows["DfD, seed 0"].endswith("1 min 40 s")
    assert " failed" in rows["averaging, seed 0"]
    assert rows["k, seed 2"].endswith("unknown")
    # Averaging 0 and 2, DfD 2 at 100 s, and three of a kind nobody knows at the mean of 100 s.
    assert "3 of 9 finished, about 10 min 00 s left; 3 runs of a kind that is not known yet" in printed
    assert len(starts(place)) == 4
    order.unlink()
    (place / "s.toml").write_text(TEXT)
    assert main(["sweep", "s.toml"]) == 0
    assert starts(place)[4:] == ["fresh averaging-0"]


def test_a_sweep_that_is_made_in_parts_ends_like_one_that_is_made_at_once(
    place: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    order = place / "runs" / "fail-averaging-0"
    order.touch()
    assert main(["sweep", "s.toml", "--seeds", "0"]) == 1
    assert starts(place) == [f"fresh {name}" for name in NAMES[:2]]
    assert statuses(place) == ["finished", "failed", "waiting", "waiting"]
    printed = capsys.readouterr().out
    assert "0 of 2 chosen runs (of 4) finished, time left unknown" in printed
    assert "1 of 4 runs finished" in printed
    order.unlink()
    assert main(["sweep", "s.toml", "--rows", "DfD"]) == 0
    assert starts(place)[2:] == ["fresh DfD-1"], "what failed elsewhere is not tried again"
    assert statuses(place) == ["finished", "failed", "finished", "waiting"]
    assert main(["sweep", "s.toml", "--rows", "averaging", "DfD", "--seeds", "1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs in " in printed
    assert "seed 0" not in printed
    assert "1 of 2 chosen runs (of 4) finished" in printed
    assert main(["sweep", "s.toml"]) == 0
    in_parts = manifest(place)
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0, 1]\noutput-dir = 'other'")
    (place / "other").mkdir()
    (place / "s.toml").write_text(text)
    assert main(["sweep", "s.toml"]) == 0
    at_once = json.loads((place / "other" / "s" / "sweep.json").read_text())["runs"]
    for entry in (*in_parts, *at_once):
        del entry["seconds"], entry["settings"]["output-dir"]
    assert in_parts == at_once
    words = "sweep", "s.toml"
    assert "--seeds '5': not in '" in refused(*words, "--seeds", "5")
    assert "did you mean 'DfD'? (rows: DfD, averaging)" in refused(*words, "--rows", "DfDs")
    (place / "s.toml").write_text(TEXT + "seeds = [7]")
    said = refused(*words, "--rows", "averaging", "--seeds", "1")
    assert "none of these rows" in said


def test_a_sweep_killed_in_the_middle_goes_on_where_it_was(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = place / "runs" / "hold-averaging-0"
    order.touch()
    sweep = in_another_process("sweep", "s.toml")
    held = wait_until_held(place)
    members = alive(place)
    assert held in [process.pid for process in members]
    assert len(members) == 2, "the run, and what it started in a session of its own"
    assert statuses(place) == ["finished", "running", "waiting", "waiting"]
    os.kill(int(sweep.pid or 0), signal.SIGKILL)
    sweep.join()
    wait_until_ended(place)
    order.unlink()
    assert main(["sweep", "s.toml"]) == 0
    assert alive(place) == []
    assert starts(place) == [f"fresh {NAMES[0]}", f"fresh {NAMES[1]}", "--resume averaging-0", *starts(place)[3:]]
    assert starts(place)[3:] == [f"fresh {name}" for name in NAMES[2:]]
    capsys.readouterr()
    assert main(["table", "runs/s"]) == 0
    broken = capsys.readouterr().out
    (place / "whole.toml").write_text(TEXT)
    main(["sweep", "whole.toml"])
    capsys.readouterr()
    assert main(["table", "whole.toml"]) == 0
    assert capsys.readouterr().out == broken


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_the_sweep_ends_its_run_with_all_its_processes(
    place: Path, request_to_end: signal.Signals, refused: Callable[..., str]
) -> None:
    (place / "runs" / "hold-DfD-0").touch()
    sweep = in_another_process("sweep", "s.toml")
    wait_until_held(place)
    if request_to_end == signal.SIGTERM:
        assert "s' is in use by" in refused("sweep", "s.toml")
        assert len(alive(place)) == 2
    os.kill(int(sweep.pid or 0), request_to_end)
    sweep.join(30)
    assert sweep.exitcode == 128 + request_to_end
    assert alive(place) == []
    assert statuses(place) == ["waiting"] * 4


def test_nothing_starts_before_options_and_the_data_of_all_runs_are_sound(
    place: Path, refused: Callable[..., str]
) -> None:
    assert "unknown option '--dry-rum': did you mean '--dry-run'?" in refused("sweep", "s.toml", "--dry-rum")
    (place / "s.toml").write_text(TEXT + 'dataset = "mnist"\ndata-root = "nowhere"\n')
    assert "averaging, seed 0: MNIST is missing or damaged" in refused("sweep", "s.toml")


def test_options_hold_for_all_runs_and_only_a_folder_of_a_torn_start_is_replaced(place: Path) -> None:
    torn, foreign = (place / "runs" / "s" / name for name in NAMES[:2])
    torn.mkdir(parents=True)
    (torn / "log.txt").write_text("waiting for silos")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    assert main(["sweep", "s.toml", "--batch-size", "9", "--membership-inference", "false"]) == 1
    assert starts(place)[0] == "fresh DfD-0"
    assert not (torn / "log.txt").exists()
    assert (foreign / "thesis.tex").read_text() == "mine"
    assert "is in the way" in manifest(place)[1]["reason"]
    assert statuses(place) == ["finished", "failed", "finished", "finished"]
    for name in NAMES[0], *NAMES[2:]:
        config = RunFolder(place / "runs" / "s" / name).read_config()
        assert config.training.batch_size == 9
        assert not config.evaluation.membership_inference
        assert config.run.state_dir == str(place / ".fedsynth")


def entry(row: str, strategy: str, status: str, seconds: float | None = None) -> Entry:
    return Entry(row, 0, row, row, {"strategy": strategy}, status, seconds=seconds)  # type: ignore[arg-type]


def test_time_is_that_of_the_row_then_of_the_strategy_then_of_all() -> None:
    entries = [
        entry("a", "krum", "finished", 10.0),
        entry("a", "krum", "finished", 20.0),
        entry("b", "krum", "finished", 90.0),
        entry("a", "krum", "waiting"),
        entry("c", "krum", "running"),
        entry("d", "dfd", "waiting"),
        entry("e", "dfd", "failed"),
    ]
    assert [estimated_seconds(e, entries) for e in entries[3:6]] == [15.0, 40.0, None]
    known = [15.0, 15.0, 90.0, 15.0, 40.0]
    assert time_left(entries, entries) == pytest.approx(15 + 40 + sum(known) / len(known))
    assert time_left(entries[4:5], entries) == pytest.approx(40)
    unknown = [entry("d", "dfd", "waiting")]
    assert time_left(unknown, unknown) is None
    guesses = {"d": 7.0, "c": 1.0}
    assert [estimated_seconds(e, entries, guesses) for e in entries[3:6]] == [15.0, 40.0, 7.0], "a guess comes last"
    assert time_left(entries, entries, guesses) == pytest.approx(15 + 40 + 7)


FRAME = "╭─ Error ─────────╮\n│ Failed to start │\n│ in 15 s. See log │\n╰─────────────────╯\n"


@pytest.mark.parametrize(
    ("console", "log", "said"),
    [
        ("fedsynth 10:11:12 error: bad weights\nerror: the run ended without results; see above\n", "", "bad weights"),
        ("Traceback\nKeyError: 'x'\nshutting down\n", "", "KeyError: 'x'"),
        ("A: a\nRuntimeError: b\nerror: the run ended without results: no Ray (more in x)\n", "", "no Ray (more in x)"),
        (FRAME + "error: the run ended without results\n", "", "Failed to start in 15 s. See log"),
        ("killed\n", "2026-11-20 10:11:12,345 ERROR error: silo 3 is away\n", "silo 3 is away"),
        ("error: east: \x1b[2J\u202e\n", "", r"east: \x1b[2J\u202e"),
        ("", "", "the run ended without results, and without a word"),
    ],
)
def test_the_last_word_of_a_failed_run(console: str, log: str, said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.log.write_text(log)
    (tmp_path / "console.txt").write_text(console)
    assert run_process._last_word(folder, tmp_path / "console.txt") == said
    in_terminal = run_process._last_word(RunFolder(tmp_path / "other"), None)
    assert in_terminal == "the run ended without results: the reason stands above"


def test_latest_progress(tmp_path: Path) -> None:
    path = tmp_path / "console.txt"
    assert last_progress(path) == ""
    path.write_text("fedsynth 10:00:00 round 1/20 (5 %), 1 s left\nfedsynth 10:00:05 round 2/20 (10 %), 1 s left\nx\n")
    assert last_progress(path) == "round 2/20 (10 %), 1 s left"
