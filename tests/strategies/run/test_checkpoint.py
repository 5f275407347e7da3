from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from acting_settings import acting
from flwr.app import Message
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from strategies.conversation.census import Census, Member
from strategies.run.checkpoint import NAME, Checkpoint

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


def test_no_checkpoint_before_the_first_round(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path) is None


def test_failed_writing_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint(1).save(tmp_path)
    worse = checkpoint(2)
    worse.strategy["unpicklable"] = lambda: None
    with pytest.raises(Exception, match="pickle"):
        worse.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_full_disk_is_named_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(1).save(tmp_path)

    def cut(content: object, file: BinaryIO) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(UserError, match=rf"cannot write '{tmp_path / NAME}': no space left on that disk: free some"):
        checkpoint(2).save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flipped(content: bytes) -> bytes:
    place = content.index(torch.full((9,), 2.0).numpy().tobytes())
    return content[:place] + b"\xff" + content[place + 1 :]


def something_else(content: bytes) -> bytes:
    return b"\x89PNG\r\n"


@pytest.mark.parametrize("damage", [torn, empty, flipped, something_else])
def test_damaged_checkpoint_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    checkpoint(size=1000).save(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"checkpoint '{path}' is damaged: remove it to start at round 1"):
        Checkpoint.load(tmp_path)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=r"last.pt' cannot be read: Is a directory"):
        Checkpoint.load(tmp_path)


def test_checkpoint_with_other_fields_is_damaged(tmp_path: Path) -> None:
    torch.save({"round": 1}, tmp_path / NAME)
    with pytest.raises(UserError, match="is damaged"):
        Checkpoint.load(tmp_path)


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"round": Path("/")}, tmp_path / NAME)
    with pytest.raises(UserError, match="is damaged"):
        Checkpoint.load(tmp_path)


def test_same_silos_in_another_order_pass() -> None:
    checkpoint().check_silos(census(south=[1, 2], north=[3, 0]))


@pytest.mark.parametrize("names", [("north",), ("north", "south", "west"), ("north", "west")])
def test_other_silos_are_refused(names: tuple[str, ...]) -> None:
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Scalar]]:
    """Settings of finished runs of two rounds by strategy."""
    base = tmp_path_factory.mktemp("finished")
    small: dict[str, Scalar] = {"num_samples": 10, "train_steps": 2, "dfd_rounds": 2, "num_clients": 2}
    named: list[dict[str, Scalar]] = [{"strategy": name, "run_name": name} for name in ("fedavg", "dfd")]
    runs = {str(own["strategy"]): tiny_settings(base, **acting(small, own)) for own in named}
    for settings in runs.values():
        run_tiny(settings, report=False)
    return runs


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path != folder.log}


def folder_of(settings: dict[str, Scalar]) -> RunFolder:
    return RunFolder(Path(str(settings["output-dir"])) / str(settings["run-name"]))


@pytest.mark.parametrize(
    ("strategy", "change", "said"),
    [
        ("fedavg", {"seed": 1}, r"seed = 1: the run to resume has 0; give the same, or start another run"),
        ("fedavg", {"strategy": "fedmedian"}, r"strategy = 'fedmedian': the run to resume has 'fedavg'"),
        ("fedavg", {"num-clients": 3}, r"num-clients = 3: the run to resume has 2"),
        ("fedavg", {"sample-from": "ema"}, r"sample-from = 'ema': the run to resume has 'raw'"),
        ("fedavg", {"num-rounds": 1}, r"num-rounds = 1: must be >= 2, the rounds '/.*/fedavg' has finished"),
        ("fedavg", {"num-rounds": "four"}, r"num-rounds = 'four': must be"),
        ("fedavg", {"resume": "/nowhere"}, r"'/nowhere' is no run folder \(it holds no config.json\)"),
        ("dfd", {"train-steps": 3}, r"train-steps = 3: the run to resume has 2"),
        ("dfd", {"num-rounds": 1}, r"num-rounds = 1: acts with strategy = 'fedavg', "),
        ("dfd", {"dfd-rounds": 4}, r"dfd-rounds = 4: the run to resume has 2"),
    ],
)
def test_what_is_not_the_run_is_refused_before_a_silo_is_asked(
    strategy: str, change: dict[str, Scalar], said: str, finished: dict[str, dict[str, Scalar]]
) -> None:
    settings = finished[strategy]
    folder = folder_of(settings)
    before = contents(folder)
    with pytest.raises(UserError, match=said):
        run_tiny({**settings, "resume": str(folder.path), **change}, ask_nobody, report=False)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b'{"config": {"seed"', r"config.json' is damaged: restore it, or start another run"),
        ("checkpoints/last.pt", b"PK", r"last.pt' is damaged: remove it to start at round 1"),
        ("metrics.jsonl", b'{"round": 1}\n\0\0\n', r"metrics.jsonl' is damaged: remove line 2"),
    ],
)
def test_damaged_file_is_named_before_a_silo_is_asked(
    file: str, content: bytes, said: str, finished: dict[str, dict[str, Scalar]]
) -> None:
    folder = folder_of(finished["fedavg"])
    path = folder.path / file
    whole = path.read_bytes()
    path.write_bytes(content)
    before = contents(folder)
    try:
        with pytest.raises(UserError, match=said):
            run_tiny({**finished["fedavg"], "resume": str(folder.path)}, ask_nobody, report=False)
        assert contents(folder) == before
    finally:
        path.write_bytes(whole)


def test_run_of_other_silos_is_refused_and_changes_nothing(finished: dict[str, dict[str, Scalar]]) -> None:
    settings = finished["fedavg"]
    folder = folder_of(settings)
    saved = Checkpoint.load(folder.checkpoints)
    assert saved is not None
    saved.silos = {"silo-0": saved.silos["silo-0"], "hospital": [1] * 10}
    saved.save(folder.checkpoints)
    folder.append_metrics({"round": 3})
    before = contents(folder)
    longer = {**settings, "resume": str(folder.path), "num-rounds": 3, "train-steps": 3}
    with pytest.raises(UserError, match=r"silos \['silo-0', 'silo-1'\] are connected, .* has \['hospital', 'silo-0'\]"):
        run_tiny(longer, report=False)
    assert contents(folder) == before
    assert "connect the same ones" in folder.log.read_text()
    assert json.loads(folder.config.read_text())["config"]["num-rounds"] == 2
