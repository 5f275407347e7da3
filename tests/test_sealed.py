from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import cut, flipped, without_directory
from safetensors.torch import load_file, save_file

from fedsynth import sealed
from fedsynth.sealed import (
    OtherFormatError,
    Seal,
    SealError,
    check_folder,
    seal_folder,
    sealed_bytes,
    sealed_json,
    unsealed_bytes,
    unsealed_json,
)
from fedsynth.sealed_tensors import load_torch, read_tensors, save_torch, tensor_metadata

SEAL = Seal("thing", 1, "silo-0, round 3")
VALUE = {"seed": 1, "rate": 2e-4, "names": ["a", "é"], "none": None, "tuple": (1, 2)}
AS_READ = {**VALUE, "tuple": [1, 2]}
TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(7), "flag": torch.tensor([True, False])}


def write_torch(path: Path, seal: Seal) -> None:
    save_torch(path, {"tensors": TENSORS, "losses": [1, 0.1]}, seal)


def read_torch(path: Path, seal: Seal) -> object:
    content = load_torch(path, seal)
    return {name: tensor.tolist() for name, tensor in content["tensors"].items()}, content["losses"]


def write_json(path: Path, seal: Seal) -> None:
    path.write_text(json.dumps(sealed_json(VALUE, seal), indent=2))


def read_json(path: Path, seal: Seal) -> object:
    found = unsealed_json(json.loads(path.read_text()), seal, path)
    return {key: found.get(key) for key in AS_READ}


def write_tensors(path: Path, seal: Seal) -> None:
    save_file(TENSORS, path, tensor_metadata(TENSORS, seal))


def tensors_read(path: Path, seal: Seal) -> object:
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in read_tensors(path, seal).items()}


def write_bytes(path: Path, seal: Seal) -> None:
    path.write_bytes(sealed_bytes(b"content", seal))


def bytes_read(path: Path, seal: Seal) -> object:
    return bytes(unsealed_bytes(path.read_bytes(), seal))


Write, Read = Callable[[Path, Seal], None], Callable[[Path, Seal], object]
KINDS: dict[str, tuple[Write, Read]] = {
    "torch": (write_torch, read_torch),
    "json": (write_json, read_json),
    "safetensors": (write_tensors, tensors_read),
    "bytes": (write_bytes, bytes_read),
}
every_kind = pytest.mark.parametrize(("write", "read"), KINDS.values(), ids=KINDS)


@every_kind
def test_no_changed_byte_and_no_cut_is_ever_read_as_something_else(write: Write, read: Read, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, SEAL)
    whole, content = read(path, SEAL), path.read_bytes()
    noticed = 0
    for changed in (*flipped(content), *cut(content)):
        path.write_bytes(changed)
        try:
            assert read(path, SEAL) == whole
        except (SealError, json.JSONDecodeError, UnicodeDecodeError):
            noticed += 1
    # What is left are bytes without a meaning, such as spaces in JSON, or a seal's name.
    assert noticed > 0.8 * 2 * len(content)


@every_kind
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Seal("box", 1, SEAL.owner), "it is a thing, not a box"),
        (Seal("thing", 2, SEAL.owner), "it has format 1, and this fedsynth reads format 2: use the version that"),
        (Seal("thing", 1, "silo-1, round 3"), "it is of silo-0, round 3, not of silo-1, round 3"),
    ],
)
def test_another_content_format_and_owner_are_said(
    write: Write, read: Read, other: Seal, said: str, tmp_path: Path
) -> None:
    write(tmp_path / "file", SEAL)
    with pytest.raises(SealError, match=said) as error:
        read(tmp_path / "file", other)
    assert isinstance(error.value, OtherFormatError) == (other.format == 2)
    read(tmp_path / "file", Seal("thing", 1))  # anybody's


def test_files_stay_those_of_the_tools_they_are_for(tmp_path: Path) -> None:
    for name, (write, _) in KINDS.items():
        write(tmp_path / name, SEAL)
    assert torch.load(tmp_path / "torch", weights_only=True)["losses"] == [1, 0.1]
    assert json.loads((tmp_path / "json").read_text())["rate"] == 2e-4
    assert torch.equal(load_file(tmp_path / "safetensors")["w"], TENSORS["w"])
    array = tmp_path / "array.npy"
    np.save(array, np.arange(3))
    array.write_bytes(sealed_bytes(array.read_bytes(), SEAL))
    assert np.load(array).tolist() == [0, 1, 2]


def test_what_an_earlier_version_wrote_is_read_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "_said", set())
    caplog.set_level(logging.INFO, "fedsynth")
    torch.save({"tensors": TENSORS, "losses": [1, 0.1]}, tmp_path / "torch")
    (tmp_path / "json").write_text(json.dumps(VALUE))
    save_file(TENSORS, tmp_path / "safetensors")
    for name in ("torch", "json", "safetensors"):
        write, read = KINDS[name]
        found = [read(tmp_path / name, Seal(f"{name} thing", 1)) for _ in range(2)]
        write(tmp_path / "new", SEAL)
        assert found == [read(tmp_path / "new", SEAL)] * 2
    assert [record.getMessage().split("' ")[1] for record in caplog.records] == [
        f"is of an earlier version, without checksum: damage to such a {name} thing goes unnoticed"
        for name in ("torch", "json", "safetensors")
    ]


@pytest.mark.parametrize("with_seal", [True, False])
def test_damaged_directory_of_an_archive_is_noticed_even_without_a_seal(with_seal: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    write_torch(path, SEAL)
    if not with_seal:
        torch.save({"tensors": TENSORS, "losses": [1, 0.1]}, path)
    path.write_bytes(without_directory(path.read_bytes()))
    with pytest.raises(SealError):
        load_torch(path, SEAL)


def test_former_file_is_kept(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save_torch(tmp_path / "last", number, SEAL, tmp_path / "former")
    assert [load_torch(tmp_path / name, SEAL) for name in ("last", "former")] == [3, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_is_checked_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    seal_folder(tmp_path, SEAL)
    (tmp_path / "added").write_text("later")
    check_folder(tmp_path, SEAL)
    for path in (tmp_path / "unet" / "weights", tmp_path / "config.json"):
        content = path.read_bytes()
        for changed in (*flipped(content), *cut(content)):
            path.write_bytes(changed)
            with pytest.raises(SealError, match=f"{path.relative_to(tmp_path)} does not match its checksum"):
                check_folder(tmp_path, SEAL)
        path.unlink()
        with pytest.raises(SealError, match=f"it lacks {path.relative_to(tmp_path)}"):
            check_folder(tmp_path, SEAL)
        path.write_bytes(content)
    with pytest.raises(SealError, match="it is of silo-0, round 3, not of silo-1"):
        check_folder(tmp_path, Seal("thing", 1, "silo-1"))
    (tmp_path / "integrity.json").write_text('{"files": 3}')
    with pytest.raises(SealError, match=r"its integrity.json is damaged"):
        check_folder(tmp_path, SEAL)
