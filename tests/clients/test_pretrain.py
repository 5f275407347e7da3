from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from one_silo import Node, policy_file
from real_silos import write_digits

import clients.models.local_model
from clients.pretrain import Place, main, pretrain
from fedsynth.cli import main as command
from fedsynth.config import RunConfig, Scalar
from fedsynth.diffusion import ClassConditionalDDPMPipeline, noise_predictor
from fedsynth.errors import UserError
from fedsynth.messages import EpsilonRequest, PrepareRequest
from fedsynth.policy import PolicyError
from fedsynth.privacy import Geometric
from fedsynth.privacy.dp_training import mechanism_of
from fedsynth.privacy.spending import Spending, read_account
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
    pretrain(images, "clinic", out, config_of())
    return out


def weights_of(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_silo_answers_with_it_in_a_run_of_more_classes(model: Path, images: Path, tmp_path: Path) -> None:
    settings = config_of(num_clients=1, train_steps=900, state_dir=str(tmp_path)).to_run_config()
    own = {"silo_name": "clinic", "model_path": str(model), "policy_path": policy_file(tmp_path)}
    node = Node(settings, UNION, data_path=str(images), **own)
    assert node.ask(PrepareRequest(spec=UNION)).label_counts == (0, 10, 11, 0)
    assert node.prepare(5.0).finished
    x, labels = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(3)), torch.tensor([1, 2, 2, 1])
    epsilon = node.ask(EpsilonRequest(samples=x, labels=labels, timestep=500)).epsilon
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(model)
    assert pipeline.config.classes == ["1", "2"]
    own = noise_predictor(pipeline.unet, config_of().recipe)(x, 500, labels - 1)
    torch.testing.assert_close(epsilon, own)
    assert not (tmp_path / "clinic" / "models").exists(), "it trains nothing"
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"], "nothing is left beside it"


def test_interrupted_training_continues_with_progress_to_the_same_model(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
        pretrain(images, "clinic", out, config_of())
    assert not out.exists()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fedsynth"):
        pretrain(images, "clinic", out, config_of())
    assert steps == list(range(1, 9)), "no step twice"
    assert weights_of(out) == weights_of(model)
    said = [line.split(",")[0] for line in caplog.messages if line.startswith("training: step")]
    assert said == [f"training: step {k}/8 ({100 * k // 8} %)" for k in range(4, 9)]


def test_model_that_is_there_is_not_overwritten(model: Path, images: Path) -> None:
    with pytest.raises(UserError, match="exists: choose another folder, or remove it"):
        pretrain(images, "clinic", model, config_of())


def test_mistakes_are_one_line_and_a_status(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = tmp_path / "job.json"
    given = {"data-path": str(tmp_path / "absent"), "silo-name": "a", "out": str(tmp_path / "out")}
    job.write_text(json.dumps({**given, "config": config_of().to_run_config()}))
    assert main(job) == 2
    assert "error: there is no folder" in caplog.text


PRIVATE: dict[str, Scalar] = {
    "train_steps": 400,
    "dp_epsilon": 1.0,
    "dp_steps": 3,
    "dp_multiplicity": 1,
    "dp_sampling_rate": 1.0,
}


def test_private_training_is_in_the_silos_account_once_before_its_first_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "state", Path(policy_file(tmp_path, count_noise=2.0, privacy_epsilon=1.6)))
    plain, seen = clients.models.local_model.LocalModel.train_slice, []

    def interrupted(self: clients.models.local_model.LocalModel, seconds: float) -> object:
        training = plain(self, 1e-9)
        seen.append([(one.what, one.run) for one in spendings(tmp_path)])
        if len(seen) == 1:
            raise KeyboardInterrupt
        return training

    monkeypatch.setattr(clients.models.local_model.LocalModel, "train_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, "clinic", tmp_path / "model", config_of(**PRIVATE), place=place)
    pretrain(images, "clinic", tmp_path / "model", config_of(**PRIVATE), place=place)
    assert seen == [[("counts", "train-local"), ("training", "train-local")]] * 3
    counts, training = (one.mechanism for one in spendings(tmp_path))
    assert counts == Geometric(2.0)
    assert training == mechanism_of(config_of(**PRIVATE))
    with pytest.raises(PolicyError, match=r"line 'privacy-epsilon = 1.6': training would bring ε to .* left"):
        pretrain(images, "clinic", tmp_path / "other", config_of(**PRIVATE, seed=1), place=place)
    assert not (tmp_path / "other").exists()
    assert len(spendings(tmp_path)) == 2


def spendings(folder: Path) -> list[Spending]:
    with (folder / "state" / "clinic" / "privacy.jsonl").open("rb") as file:
        return read_account(file).spendings


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dp_delta": 0.5}, "dp-delta = 0.5: must be <= 1 / images of a silo"),
        ({}, "line 'count-noise = 0.0': exact counts are not private"),
    ],
)
def test_private_training_keeps_the_rules_of_private_runs(
    changes: dict[str, Scalar], problem: str, images: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path / "state", Path(policy_file(tmp_path, count_noise=2.0 if changes else 0.0)))
    with pytest.raises(UserError, match=problem):
        pretrain(images, "clinic", tmp_path / "model", config_of(**PRIVATE, **changes), place=place)
    with pytest.raises(UserError, match=r"dp-epsilon = 1.0: no privacy account is given"):
        pretrain(images, "clinic", tmp_path / "model", config_of(**PRIVATE))


def test_command_hands_over_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[dict[str, object]] = []

    def train(order: Path) -> int:
        orders.append(json.loads(order.read_text()))
        return 0

    monkeypatch.setattr("fedsynth.cli.train_local._train", train)
    monkeypatch.chdir(tmp_path)
    given = ["--data-path", "clinic", "--out", "model", "--train-steps", "7", "--group-column", "patient"]
    assert command(["train-local", *given]) == 0
    (order,) = orders
    assert (order["data-path"], order["out"]) == (str(tmp_path / "clinic"), str(tmp_path / "model"))
    assert (order["silo-name"], order["group-column"]) == ("clinic", "patient")
    assert isinstance(order["config"], dict)
    assert (order["config"]["train-steps"], order["config"]["dataset"]) == (7, "silos")
    assert f"fedsynth silo start --model-path {tmp_path / 'model'}" in capsys.readouterr().out
    assert "state-path" not in order
    assert command(["train-local", "--data-path", "clinic", "--out", "m", "--dp-epsilon", "9", "--folder", "mine"]) == 0
    assert (orders[1]["state-path"], orders[1]["policy-path"]) == (str(tmp_path / "mine" / "state"), "")
    policy_file(tmp_path / "mine")
    given = ["--data-path", "clinic", "--out", "m", "--dp-epsilon", "9", "--folder", "mine", "--state-path", "kept"]
    assert command(["train-local", *given]) == 0
    assert orders[2]["state-path"] == str(tmp_path / "kept")
    assert orders[2]["policy-path"] == str(tmp_path / "mine" / "silo-policy.toml")
    assert command(["train-local", "--data-path", "clinic", "--out", "m", "--num-clients", "7"]) == 2
    assert "unknown option '--num-clients'" in capsys.readouterr().err
