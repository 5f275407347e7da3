from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from one_silo import Node
from real_silos import write_digits

import clients.models.local_model
from clients.train_ahead import main, train_ahead
from fedsynth.cli import main as command
from fedsynth.config import RunConfig, Scalar
from fedsynth.diffusion import ClassConditionalDDPMPipeline, noise_predictor
from fedsynth.errors import UserError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec

UNION = ImageSpec(1, 8, ("0", "1", "2", "3"))


def config_of(**changes: Scalar) -> RunConfig:
    tiny: dict[str, Scalar] = {"dataset": "silos", "block_out_channels": "8,8", "device": "cpu", "train_steps": 8}
    given = {**tiny, "copy_check": False, "early_stop": False, **changes}
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in given.items()})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("clinic"), (1, 2), 0)


@pytest.fixture(scope="module")
def model(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    train_ahead(images, "clinic", out, config_of())
    return out


def weights_of(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_model_is_a_diffusers_folder_that_knows_its_classes(model: Path) -> None:
    assert ClassConditionalDDPMPipeline.from_pretrained(model).config.classes == ["1", "2"]
    assert len(json.loads((model / "training.json").read_text())["losses"]) > 0
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"], "nothing is left beside it"


def test_silo_answers_with_it_in_a_run_of_more_classes(model: Path, images: Path, tmp_path: Path) -> None:
    settings = config_of(num_clients=1, train_steps=900, state_dir=str(tmp_path)).to_run_config()
    node = Node(settings, UNION, data_path=str(images), silo_name="clinic", model_path=str(model))
    assert node.metrics(wire.PREPARE, train_seconds=0.0)["label-counts"] == [0, 10, 11, 0]
    assert node.metrics(wire.PREPARE, train_seconds=5.0)["finished"] == 1
    x, labels = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(3)), torch.tensor([1, 2, 2, 1])
    arrays = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels})
    answer = node.ask(wire.EPSILON, arrays, timestep=500)
    epsilon = wire.decode(wire.array_record(answer, wire.EPSILON_RECORD)["epsilon"])
    own = noise_predictor(ClassConditionalDDPMPipeline.from_pretrained(model).unet)(x, 500, labels - 1)
    torch.testing.assert_close(epsilon, own)
    assert list(tmp_path.iterdir()) == [], "it trains nothing"


def test_same_images_and_keys_give_the_same_model_and_another_seed_another(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.train_ahead.SLICE_SECONDS", 1e-9)
    train_ahead(images, "clinic", tmp_path / "again", config_of())
    train_ahead(images, "clinic", tmp_path / "other", config_of(seed=1))
    assert weights_of(tmp_path / "again") == weights_of(model)
    assert weights_of(tmp_path / "other") != weights_of(model)


def test_interrupted_training_goes_on(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps = tmp_path / "model", []
    plain = clients.models.local_model.LocalModel.train_slice

    def interrupted(self: clients.models.local_model.LocalModel, seconds: float) -> object:
        training = plain(self, 1e-9)
        steps.append(training.steps)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return training

    monkeypatch.setattr(clients.models.local_model.LocalModel, "train_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_ahead(images, "clinic", out, config_of())
    assert not out.exists()
    train_ahead(images, "clinic", out, config_of())
    assert steps == list(range(1, 9)), "no step twice"
    assert weights_of(out) == weights_of(model)


def test_progress_is_told(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.train_ahead.SLICE_SECONDS", 1e-9)
    with caplog.at_level(logging.INFO, logger="fedsynth"):
        train_ahead(images, "clinic", tmp_path / "model", config_of(train_steps=3))
    said = [line for line in caplog.messages if line.startswith("training: step")]
    assert [line.split(",")[0] for line in said] == [f"training: step {k}/3 ({100 * k // 3} %)" for k in (1, 2, 3)]


def test_model_that_is_there_is_not_overwritten(model: Path, images: Path) -> None:
    with pytest.raises(UserError, match="exists: choose another folder, or remove it"):
        train_ahead(images, "clinic", model, config_of())


def order_in(folder: Path, data: Path) -> Path:
    said = {"data-path": str(data), "silo-name": "a", "out": str(folder / "out"), "config": config_of().to_run_config()}
    (folder / "order.json").write_text(json.dumps(said))
    return folder / "order.json"


def test_mistakes_are_one_line_and_a_status(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(order_in(tmp_path, tmp_path / "absent")) == 2
    assert "error: there is no folder" in caplog.text


def test_command_hands_over_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[dict[str, object]] = []

    def train(order: Path) -> int:
        orders.append(json.loads(order.read_text()))
        return 0

    monkeypatch.setattr("fedsynth.cli.train_local._train", train)
    monkeypatch.chdir(tmp_path)
    assert command(["train-local", "--data-path", "clinic", "--out", "model", "--train-steps", "7"]) == 0
    (order,) = orders
    assert (order["data-path"], order["out"]) == (str(tmp_path / "clinic"), str(tmp_path / "model"))
    assert order["silo-name"] == "clinic"
    assert isinstance(order["config"], dict)
    assert (order["config"]["train-steps"], order["config"]["dataset"]) == (7, "silos")
    assert f"fedsynth silo start --model-path {tmp_path / 'model'}" in capsys.readouterr().out
    assert command(["train-local", "--data-path", "clinic", "--out", "m", "--num-clients", "7"]) == 2
    assert "unknown option '--num-clients'" in capsys.readouterr().err
