"""A run whose files were damaged, edited or mixed up: it goes on to the same result, or says why it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import cut, flipped, without_directory
from interrupted_runs import (
    Done,
    KilledError,
    Settings,
    assert_equal_runs,
    die,
    in_round,
    resumed,
    run,
    settings,
    whole_run,
)

from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from strategies.run import checkpoint
from strategies.run.checkpoint import NAME, PREVIOUS, Checkpoint


def killed_in_round_3(given: Settings) -> RunFolder:
    with pytest.raises(KilledError):
        run(given, in_round(3, die))
    return RunFolder(Path(str(resumed(given)["resume"])))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def stopped(base: Path) -> tuple[Settings, RunFolder]:
    given = settings(base, "fedavg", run_name="stopped")
    return given, killed_in_round_3(given)


@pytest.fixture
def copy(stopped: tuple[Settings, RunFolder], tmp_path: Path) -> tuple[Settings, RunFolder]:
    """A run that was killed in its third round, to be damaged."""
    given, folder = stopped
    shutil.copytree(folder.path, tmp_path / "runs" / folder.path.name)
    moved = {**given, "output-dir": str(tmp_path / "runs")}
    return moved, RunFolder(Path(str(resumed(moved)["resume"])))


def state_of(found: Checkpoint | None) -> tuple[Any, ...]:
    assert found is not None
    arrays = {name: tensor.tolist() for name, tensor in found.arrays.items()}
    return found.round, arrays, found.costs, found.silos, found.settings


@pytest.mark.parametrize("name", ["fedavg", "feddiffuse, udec"])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_ends_alike(
    name: str, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings(base, name, run_name=f"{name}, damaged")
    whole: Done = whole_run(given)
    folder = killed_in_round_3(given)
    path = folder.checkpoints / NAME
    path.write_bytes(next(flipped(path.read_bytes()[: path.stat().st_size // 2], 1)))
    assert_equal_runs(run(resumed(given)), whole)
    assert f"checkpoint '{path}' is damaged" in caplog.text
    assert f"going on from '{PREVIOUS}'" in caplog.text
    assert "resuming after round 1" in caplog.text


def test_every_damage_of_a_checkpoint_is_noticed(copy: tuple[Settings, RunFolder]) -> None:
    folder = copy[1].checkpoints
    last, former = folder / NAME, folder / PREVIOUS
    content, before = last.read_bytes(), former.read_bytes()
    expected = {state[0]: state for state in (state_of(Checkpoint.load(folder)),)}
    last.unlink()
    expected |= {state[0]: state for state in (state_of(Checkpoint.load(folder)),)}
    assert set(expected) == {1, 2}
    for changed in (*flipped(content, 30), *cut(content, 10), without_directory(content), before[:-1] + content):
        last.write_bytes(changed)
        found = state_of(Checkpoint.load(folder))
        assert found == expected[found[0]]
        former.write_bytes(changed)
        said = ""
        try:
            found = state_of(Checkpoint.load(folder))
        except UserError as error:
            said = str(error)
        # Without a word only where a byte of the seal itself made it no seal: what is sealed is whole.
        assert said.count("is damaged: remove it to start at round 1") == 2 or not said
        assert found == expected[found[0]]
        former.write_bytes(before)


def test_checkpoint_of_another_format_says_so(
    copy: tuple[Settings, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, folder = copy
    monkeypatch.setattr(checkpoint, "SEAL", checkpoint.Seal("run checkpoint", 2))
    said = r"checkpoint '.*last.pt': it has format 1, and this fedsynth reads format 2: use the version that wrote it"
    with pytest.raises(UserError, match=said):
        run(resumed(given))
    assert folder.config.is_file()


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("alpha", 0.7), ("learning-rate", 0.5)])
def test_edited_settings_are_refused(key: str, value: float, copy: tuple[Settings, RunFolder]) -> None:
    folder = copy[1]
    content = json.loads(folder.config.read_text())
    content["config"][key] = value
    folder.config.write_text(json.dumps(content))
    said = r"config.json' is damaged: restore it, or start another run \(.* checksum: it was damaged or edited\)"
    with pytest.raises(UserError, match=said):
        folder.read_config()


@pytest.mark.parametrize(("key", "value", "had"), [("seed", 1, 0), ("learning-rate", 0.5, "0.0015")])
def test_settings_of_another_run_are_refused(
    key: str, value: float, had: object, copy: tuple[Settings, RunFolder]
) -> None:
    given, folder = copy
    content = json.loads(folder.config.read_text())
    del content["integrity"]
    folder.write_config({**content, "config": {**content["config"], key: value}})
    said = rf"^{key} = {value} in config.json, but the run's checkpoint was made with {had}: restore config.json"
    with pytest.raises(UserError, match=said):
        run({**resumed(given), key: value})


def test_what_may_change_may_still_change(copy: tuple[Settings, RunFolder]) -> None:
    given, _ = copy
    folder, _ = run({**resumed(given), "num-rounds": 5, "train-steps": 5, "reply-timeout": 9.0})
    assert [row["round"] for row in folder.read_metrics()] == [1, 2, 3, 4, 5]


def test_run_of_an_earlier_version_goes_on(copy: tuple[Settings, RunFolder], base: Path) -> None:
    given, folder = copy
    content = json.loads(folder.config.read_text())
    del content["integrity"]
    folder.config.write_text(json.dumps(content))
    saved = Checkpoint.load(folder.checkpoints)
    assert saved is not None
    former = {key: value for key, value in vars(saved).items() if key != "settings"}
    torch.save(former, folder.checkpoints / NAME)
    (folder.checkpoints / PREVIOUS).unlink()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    plain = [{key: value for key, value in row.items() if key != "integrity"} for row in rows]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in plain))
    finished, _ = run(resumed(given))
    assert [row["round"] for row in finished.read_metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("file", ["config", "results", "partition", "status", "metrics"])
def test_files_of_a_run_are_read_as_written_or_not_at_all(file: str, copy: tuple[Settings, RunFolder]) -> None:
    folder = copy[1]
    folder.write_results({"strategy": "fedavg", "accuracy-mlp": 0.93, "rounds": 4})
    path: Path = getattr(folder, file)
    read = getattr(folder, f"read_{file}")
    whole, content = read(), path.read_bytes()
    for changed in (*flipped(content, 150), *cut(content, 20)):
        path.write_bytes(changed)
        said, found = path.name, whole
        try:
            found = read()
        except UserError as error:
            said = str(error)
        except (ValueError, TypeError):
            said = path.name if file == "status" else ""  # its reader names it
        assert path.name in said
        if isinstance(whole, dict):
            assert {key: found[key] for key in whole} == whole
        elif isinstance(whole, list):
            # A last line that is not whole is one that was being written.
            rows = [{key: row[key] for key in was} for row, was in zip(found, whole, strict=False)]
            assert rows == whole[: len(found)]
        else:
            assert found == whole
