"""What a silo does whose models or training states were damaged or mixed up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from damage import cut, flipped, without_directory
from one_silo import Node, epsilon_request, simulated

import clients.models.local_model
from clients.models.federated_model import PersonalTensors
from clients.models.local_model import LocalModel, load_network
from fedsynth.data import load_federation
from fedsynth.diffusion import codec_of, training
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.errors import UserError
from fedsynth.sealed import Seal

CPU = torch.device("cpu")


def model_of(node: Node, partition: int) -> LocalModel:
    silo = load_federation(node.config).silo(partition, node.config)
    return LocalModel(silo, node.spec, node.config, Path(node.config.run.state_dir) / f"silo-{partition}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State folder of two silos with finished models."""
    folder = tmp_path_factory.mktemp("silos")
    for partition in (0, 1):
        assert simulated(folder, partition).prepare().finished
    return folder


@pytest.fixture
def node(trained: Path, tmp_path: Path) -> Node:
    """Silo 1, its state folder a copy to be damaged."""
    shutil.copytree(trained / "state", tmp_path / "state")
    return simulated(tmp_path, 1)


def answer_of(node: Node) -> torch.Tensor:
    assert node.prepare().finished
    return node.ask(epsilon_request()).epsilon


FILES = ("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler/scheduler_config.json")
MORE_FILES = (*FILES, "model_index.json", "training.json", "integrity.json")


@pytest.mark.parametrize("name", MORE_FILES)
def test_damaged_model_is_set_aside_wherever_its_bytes_changed(name: str, node: Node) -> None:
    model = model_of(node, 1)
    path = model.folder / name
    content = path.read_bytes()
    expected = load_network(model.folder, CPU).state_dict()
    aside, held = model.folder.with_name(f"{model.key}.damaged"), 0
    for changed in (*flipped(content, 12), *cut(content, 4)):
        path.write_bytes(changed)
        again = model_of(node, 1)
        if again.finished:
            # Bytes of integrity.json that mean nothing.
            held += 1
            assert name == "integrity.json"
            for key, tensor in load_network(model.folder, CPU).state_dict().items():
                assert torch.equal(tensor, expected[key])
        else:
            aside.rename(model.folder)
        path.write_bytes(content)
    assert held <= 3


@pytest.mark.parametrize("damage", ["flipped", "weights of another silo", "model of another silo"])
def test_damaged_model_is_trained_again_and_answers_the_same(
    damage: str, node: Node, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer_of(simulated(trained, 1))
    folder, other = model_of(node, 1).folder, model_of(node, 0).folder
    if damage == "model of another silo":
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
    elif damage == "flipped":
        path = folder / FILES[0]
        path.write_bytes(next(flipped(path.read_bytes()[::-1], 1))[::-1])
    else:
        shutil.copy(other / FILES[0], folder / FILES[0])
    assert torch.equal(answer_of(node.again()), expected)
    assert "silo-1: model" in caplog.text
    assert "it is trained again, and this one is now" in caplog.text
    assert [path.name for path in folder.parent.iterdir() if path != folder] == [f"{folder.name}.damaged"]


def test_model_that_is_damaged_between_two_messages_is_refused(node: Node) -> None:
    assert node.prepare().finished
    path = node.own_model / FILES[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    reason = node.refusal(epsilon_request())
    assert f"model '{node.own_model}' is damaged: remove the folder to train it again" in reason


def test_model_of_an_earlier_version_is_found_without_its_checksums(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer_of(node.again())
    (model_of(node, 1).folder / "integrity.json").unlink()
    monkeypatch.setattr(clients.models.local_model, "train", None)
    assert torch.equal(answer_of(node), expected)


def test_models_and_training_states_of_another_format_say_so(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "it has format 1, and this fedsynth reads format 2: use the version that wrote it"
    monkeypatch.setattr(clients.models.local_model, "model_seal", lambda key: Seal("model", 2, key))
    assert not model_of(node, 1).finished
    assert f"cannot be used ({said})" in caplog.text
    model_of(node, 1).train_slice(1e-9)
    monkeypatch.setattr(training, "_seal", lambda owner: Seal("training state", 2, owner))
    caplog.clear()
    model_of(node, 1).train_slice(1e-9)
    assert f"training starts again ({said})" in caplog.text


def test_copy_check_of_another_model_is_made_again(node: Node) -> None:
    silos = [model_of(node, partition) for partition in (0, 1)]
    share = silos[1].copied_share()
    files = [model.folder / "copy_check.json" for model in silos]
    for content in (files[0].read_bytes(), *flipped(files[1].read_bytes(), 3)):
        files[1].write_bytes(content)
        assert model_of(node, 1).copied_share() == share


def test_damaged_training_starts_again_and_ends_in_the_same_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = simulated(tmp_path, 1)
    whole = simulated(tmp_path / "whole", 1)
    expected = answer_of(whole)
    parameters = list(load_network(whole.own_model, CPU).parameters())
    model_of(node, 0).train_slice(1e-9)
    model_of(node, 1).train_slice(1e-9)
    other, path = (next((tmp_path / "state" / f"silo-{k}").rglob("*.pt")) for k in (0, 1))
    content = path.read_bytes()
    for changed in (*flipped(content, 6), *cut(content, 2), without_directory(content), other.read_bytes()):
        path.write_bytes(changed)
        caplog.clear()
        model = model_of(node, 1)
        assert model.train_slice(1000.0).steps == 4
        assert "is damaged, training starts again" in caplog.text
        assert all(map(torch.equal, load_network(model.folder, CPU).parameters(), parameters))
        shutil.rmtree(model.folder)
    path.write_bytes(content)
    assert torch.equal(answer_of(node), expected)


def test_personal_tensors_are_those_of_this_silo_run_and_round(tmp_path: Path) -> None:
    values = {"w": torch.arange(8.0), "b": torch.tensor(1)}
    silos = [PersonalTensors(tmp_path / name, "run") for name in ("north", "south")]
    for number in (1, 2):
        silos[0].keep(number, values)
        silos[1].keep(number, values)
    path = tmp_path / "north" / "personal" / "run" / "round-00002.safetensors"
    content = path.read_bytes()
    others = [tmp_path / "south" / "personal" / "run" / path.name, path.with_name("round-00001.safetensors")]
    for changed in (*flipped(content), *cut(content, 10), *(other.read_bytes() for other in others)):
        path.write_bytes(changed)
        said, kept = f"weights '{path}' are damaged: start a new run", values
        try:
            kept = silos[0].before(3)
        except UserError as error:
            said = str(error)
        assert f"weights '{path}' are damaged: start a new run" in said
        assert all(torch.equal(kept[name], tensor) for name, tensor in values.items())


def test_damaged_model_is_no_model_path(node: Node) -> None:
    folder = node.own_model if node.prepare().finished else Path()
    held, codec = [node.spec.classes[0]], codec_of(node.config, node.spec)
    load_pretrained_model(folder, codec, node.config.recipe, held)
    path = folder / FILES[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    said = r"model-path = '.*': the model is damaged \(.*safetensors does not match its checksum\): copy it again"
    with pytest.raises(UserError, match=said):
        load_pretrained_model(folder, codec, node.config.recipe, held)
    (folder / "integrity.json").unlink()
    assert load_pretrained_model(folder, codec, node.config.recipe, held).serves.all()
