from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from flwr.app import Message
from spoiled_answers import Tamper
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from strategies.conversation.census import Census, Member
from strategies.run.checkpoint import NAME, PREVIOUS, Checkpoint

SILOS = {"north": [3, 0], "south": [1, 2]}


def checkpoint(number: int = 2, size: int = 3) -> Checkpoint:
    arrays = {"weights": torch.full((size,), float(number)), "step": torch.tensor(number)}
    state = {"moments": {"m": {"weights": torch.full((size,), number, dtype=torch.float64)}}, "losses": [[1, 0.1]]}
    return Checkpoint(number, arrays, state, {"bytes_down": 10, "client_seconds": 0.5}, SILOS)


def census(**counts: list[int]) -> Census:
    return Census(Member(k, name, sum(held), held) for k, (name, held) in enumerate(counts.items()))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "new")
    loaded, expected = Checkpoint.load(tmp_path / "new"), checkpoint()
    assert loaded is not None
    assert (loaded.round, loaded.costs, loaded.silos) == (2, expected.costs, SILOS)
    for name, tensor in expected.arrays.items():
        assert torch.equal(loaded.arrays[name], tensor)
        assert loaded.arrays[name].dtype == tensor.dtype
    moments = loaded.strategy["moments"]["m"]["weights"]
    assert moments.dtype == torch.float64
    assert torch.equal(moments, expected.strategy["moments"]["m"]["weights"])
    assert loaded.strategy["losses"] == [[1, 0.1]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [NAME]


def unpicklable(worse: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    worse.strategy["unpicklable"] = lambda: None


def full_disk(worse: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(content: object, file: BinaryIO) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", cut)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(unpicklable, "local object"), (full_disk, rf"cannot write '.*/{NAME}': no space left on that disk: free some")],
)
def test_failed_writing_leaves_the_last_checkpoint(
    fault: Callable[[Checkpoint, pytest.MonkeyPatch], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Checkpoint.load(tmp_path) is None
    checkpoint(1).save(tmp_path)
    worse = checkpoint(2)
    fault(worse, monkeypatch)
    with pytest.raises(UserError if fault is full_disk else Exception, match=said):
        worse.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def flipped(content: bytes) -> bytes:
    place = content.index(torch.full((9,), 2.0).numpy().tobytes())
    return content[:place] + b"\xff" + content[place + 1 :]


def holding(saved: dict[str, object]) -> bytes:
    file = io.BytesIO()
    torch.save(saved, file)
    return file.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "flipped": flipped,
    "something else": lambda content: b"\x89PNG\r\n",
    "other fields": lambda content: holding({"round": 1}),
    "code": lambda content: holding({"round": Path("/")}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    checkpoint(size=1000).save(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=rf"checkpoint '{path}' is damaged: remove it to start at round 1"):
        Checkpoint.load(tmp_path)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=r"last.pt' cannot be read: Is a directory"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("names", [("north", "south", "west"), ("north", "west")])
def test_other_silos_are_refused(names: tuple[str, ...]) -> None:
    checkpoint().check_silos(census(south=[1, 2], north=[3, 0]))
    with pytest.raises(UserError) as error:
        checkpoint().check_silos(census(**{name: [1, 1] for name in names}))
    assert str(error.value) == (
        f"silos {list(names)} are connected, but the run to resume has ['north', 'south']:"
        " connect the same ones under the same names"
    )


def test_other_images_of_the_same_silos_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fedsynth")
    checkpoint().check_silos(census(north=[3, 1], south=[1, 2]))
    assert [record.getMessage() for record in caplog.records] == ["north held [3, 0] images per class, now [3, 1]"]


# What a run that cannot go on says, and what it leaves alone.


def ask_nobody(replies: list[Message]) -> list[Message]:
    raise AssertionError("a silo was asked")


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path != folder.log}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds."""
    small: dict[str, Scalar] = {"num_samples": 10, "train_steps": 2, "num_clients": 2, "strategy": "fedavg"}
    return run_tiny(tiny_settings(tmp_path_factory.mktemp("finished"), **small), report=False)


def refused(folder: RunFolder, said: str, tamper: Tamper = ask_nobody, **changes: Scalar) -> None:
    """The run does not go on, and its folder stays as it was."""
    before, settings = contents(folder), folder.read_config().to_run_config()
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    with pytest.raises(UserError, match=said):
        run_tiny({**settings, "resume": str(folder.path), **changed}, tamper, report=False)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 1, r"seed = 1: the run to resume has 0; give the same, or start another run"),
        ("num_rounds", 1, r"num-rounds = 1: must be >= 2, the rounds '/.*/run' has finished"),
        ("num_rounds", "four", r"num-rounds = 'four': must be"),
        ("dfd_rounds", 4, r"dfd-rounds = 4: acts with strategy = 'dfd' only"),
    ],
)
def test_what_is_not_the_run_is_refused_before_a_silo_is_asked(
    key: str, value: Scalar, said: str, finished: RunFolder
) -> None:
    refused(finished, said, **{key: value})


def test_steps_of_models_that_were_trained_before_the_rounds_are_fixed(tmp_path: Path) -> None:
    folder = run_tiny(tiny_settings(tmp_path, num_samples=10, train_steps=2, dfd_rounds=1), report=False)
    refused(
        folder,
        r"train-steps = 3: the run to resume has 2, and it may change only with a strategy that has num-rounds",
        train_steps=3,
    )
    refused(folder, r"dfd-rounds = 4: the run to resume has 1", dfd_rounds=4)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("checkpoints/last.pt", b"PK", r"last.pt' is damaged: remove it to start at round 1"),
        ("metrics.jsonl", b'{"round": 1}\n\0\0\n', r"metrics.jsonl' is damaged: remove line 2"),
    ],
)
def test_damaged_file_is_named_before_a_silo_is_asked(
    file: str, content: bytes, said: str, finished: RunFolder
) -> None:
    path, former = finished.path / file, finished.checkpoints / PREVIOUS
    whole, before = path.read_bytes(), former.read_bytes()
    path.write_bytes(content)
    if path.suffix == ".pt":
        former.write_bytes(content)
    try:
        refused(finished, said)
    finally:
        path.write_bytes(whole)
        former.write_bytes(before)


def test_run_of_other_silos_is_refused_and_changes_nothing(finished: RunFolder) -> None:
    saved = Checkpoint.load(finished.checkpoints)
    assert saved is not None
    saved.silos = {"silo-0": saved.silos["silo-0"], "hospital": [1] * 10}
    saved.save(finished.checkpoints)
    finished.append_metrics({"round": 3})
    said = r"silos \['silo-0', 'silo-1'\] are connected, .* has \['hospital', 'silo-0'\]"
    refused(finished, said, list, num_rounds=3, train_steps=3)
    assert "connect the same ones" in finished.log.read_text()
    assert json.loads(finished.config.read_text())["config"]["num-rounds"] == 2
