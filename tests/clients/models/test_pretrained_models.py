from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from one_silo import SPEC, Node, settings_of, simulated
from pretrained_folders import save_model, unet_of
from tiny_runs import images_of, run_tiny, tiny_settings

import clients.models.local_model
import clients.models.pretrained_model
from clients.models.pretrained_model import LOSS_LEVELS
from experiments.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import (
    TrainingState,
    draw_initial_noise,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.messages import wire
from fedsynth.seeding import make_generator

DIGITS = tuple(map(str, range(10)))


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Callable[[str], Path]) -> Callable[..., Node]:
    """A silo with 'even' and 'odd' images and a model of its own, wider than the run's and with another schedule."""
    path, schedule = image_folder("clinic"), {"num_train_timesteps": 400, "beta_schedule": "squaredcos_cap_v2"}

    def open_clinic(classes: tuple[str, ...] = ("odd", "even", "prime"), **changes: Any) -> Node:
        model = save_model(
            tmp_path / "model",
            unet_of(block_out_channels=(16, 8), classes=3),
            classes,
            **schedule,
            prediction_type="v_prediction",
        )
        settings = settings_of(tmp_path, **changes)
        return Node(settings, SPEC, data_path=str(path), silo_name="clinic", model_path=str(model))

    return open_clinic


def model_of(node: Node, held: tuple[str, ...] = ("even", "odd")) -> Any:
    return load_pretrained_model(Path(str(node.context.node_config["model-path"])), SPEC, node.config.diffusion, held)


def questions(count: int = 5) -> dict[str, torch.Tensor]:
    x = torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    return {wire.SAMPLES: x, wire.LABELS: torch.arange(count) % 2, wire.NUMBERS: torch.arange(count)}


def epsilon(node: Node, asked: dict[str, torch.Tensor]) -> torch.Tensor:
    answer = node.ask(wire.EPSILON, wire.encode_tensors(asked), timestep=421)
    assert not answer.has_error(), answer.error.reason
    return wire.decode(wire.array_record(answer, wire.EPSILON_RECORD)[wire.EPSILON_RECORD])


def test_brought_model_is_ready_at_once_and_measured(
    clinic: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients.models.local_model, "train", None)
    node = clinic()
    metrics = node.metrics(wire.PREPARE, train_seconds=1e-9)
    loss = metrics["loss"]
    assert (metrics["steps"], metrics["finished"], metrics["train-seconds"]) == (4, 1, 0)
    assert (metrics["curve-steps"], metrics["curve-losses"]) == ([4], [loss])
    assert sum(metrics["label-counts"]) == metrics["num-examples"] == 9
    # Never trained, it predicts v near 0: ε = √(1-ᾱ) x, an error of ᾱ² + ᾱ(1-ᾱ) E[x_0²], a few tenths on average.
    assert 0.1 < loss < 0.5
    assert clinic().metrics(wire.PREPARE, train_seconds=1e-9)["loss"] == loss
    assert not (tmp_path / "state").exists()


def test_loss_is_the_mean_error_over_stratified_levels(tmp_path: Path) -> None:
    federation = load_federation(RunConfig.from_run_config(settings_of(tmp_path)))
    silo = federation.silo(1, RunConfig.from_run_config(settings_of(tmp_path)))
    node = simulated(tmp_path, 1, train_steps=4)
    unet = initial_unet(node.config, node.spec)
    state = TrainingState(unet, node.config.training, make_generator(0, "test"))
    pixels, labels = to_model_range(silo.train.images), torch.from_numpy(silo.train.labels)
    train(state, pixels, labels, node.config.training, node.config.diffusion, 40)
    folder = save_model(tmp_path / "model", unet, node.spec.classes)
    brought = Node(node.context.run_config, node.spec, partition_id=1, model_path=str(folder))
    found = brought.metrics(wire.PREPARE, train_seconds=1.0)["loss"]

    held_out, held_labels = to_model_range(silo.holdout.images), torch.from_numpy(silo.holdout.labels)
    alphas, generator, errors = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), torch.Generator().manual_seed(5), []
    width = 1000 // LOSS_LEVELS
    for t in range(0, 1000, 25):
        noise = torch.randn(held_out.shape, generator=generator)
        noisy = (alphas[t] ** 0.5 * held_out + (1 - alphas[t]) ** 0.5 * noise).float()
        error = noise_predictor(unet)(noisy, t, held_labels) - noise
        errors.append(float(error.square().mean()))
    strata = np.array(errors).reshape(LOSS_LEVELS, width // 25)
    assert strata.min(axis=1).mean() * 0.8 < found < strata.max(axis=1).mean() * 1.2
    assert found < 0.9


def test_epsilon_and_samples_come_from_the_brought_model(clinic: Callable[..., Node]) -> None:
    node = clinic()
    node.metrics(wire.PREPARE, train_seconds=0.0)
    asked, model = questions(), model_of(node)
    expected = model.predict(asked[wire.SAMPLES], 421, asked[wire.LABELS])
    assert torch.equal(epsilon(node, asked), expected)
    assert not torch.equal(epsilon(node, {**asked, wire.LABELS: 1 - asked[wire.LABELS]}), expected)

    # Another process has the context alone.
    clients.models.pretrained_model._models._items.clear()
    assert torch.equal(epsilon(node, asked), expected)

    images = node.tensors(wire.SAMPLE, wire.encode_tensors(asked), sampler="ddpm")[wire.IMAGES]
    scheduler, generator = make_scheduler(node.config.diffusion, 3), make_generator(0, "sampling", "clinic")
    noise = draw_initial_noise(0, 20, (1, 8, 8))[:5]
    drawn = to_uint8(sample(model.predict, scheduler, noise, asked[wire.LABELS], generator))
    np.testing.assert_array_equal(images.numpy(), drawn)


def test_class_unknown_to_the_model_counts_no_image(clinic: Callable[..., Node]) -> None:
    node = clinic(("odd", "prime"))
    metrics = node.metrics(wire.PREPARE, train_seconds=0.0)
    even, odd = metrics["label-counts"]
    assert even == 0
    assert metrics["num-examples"] == odd == 4
    metrics = node.metrics(wire.PREPARE, train_seconds=1.0)
    assert np.isfinite(metrics["loss"])
    reason = node.ask(wire.EPSILON, wire.encode_tensors(questions()), timestep=5).error.reason
    assert reason.startswith("clinic: UserError: asked about class 'even', which the model in model-path does")


def test_strategy_that_asks_no_own_model_leaves_it_closed(clinic: Callable[..., Node]) -> None:
    node = clinic(("moon", "sun"), strategy="fedavg")
    assert node.metrics(wire.PREPARE, train_seconds=0.0)["num-examples"] == 9


def test_unusable_model_is_refused_before_any_training(clinic: Callable[..., Node]) -> None:
    node = clinic(("moon", "sun"))
    reason = node.ask(wire.PREPARE, train_seconds=0.0).error.reason
    path = node.context.node_config["model-path"]
    assert reason.startswith(
        f"clinic: UserError: model-path = '{path}': the model knows moon, sun, but this silo holds"
    )


def test_upload_of_another_architecture_is_refused_with_what_differs(clinic: Callable[..., Node]) -> None:
    node = clinic(strategy="fedddpm")
    node.metrics(wire.PREPARE, train_seconds=0.0)
    reason = node.ask(wire.UPLOAD).error.reason
    path = node.context.node_config["model-path"]
    assert reason.startswith(f"clinic: UserError: model-path = '{path}': strategy = 'fedddpm' has silos upload weights")
    differences = reason.partition("(")[2].partition(")")[0]
    assert {"block_out_channels", "num_class_embeds"} <= set(differences.split(", "))
    assert "what it predicts, its noise schedule or its classes" in differences


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_upload_of_the_run_s_own_architecture(kind: str, tmp_path: Path) -> None:
    node = simulated(tmp_path, 1, strategy="fedddpm")
    unet = initial_unet(RunConfig.from_run_config({**node.context.run_config, "seed": 9}), node.spec)
    folder = save_model(tmp_path / "model", unet, node.spec.classes, prediction_type=kind)
    brought = Node(node.context.run_config, node.spec, partition_id=1, model_path=str(folder))
    brought.metrics(wire.PREPARE, train_seconds=0.0)
    if kind != "epsilon":
        assert "differs from the run's (what it predicts" in brought.ask(wire.UPLOAD).error.reason
        return
    sent = brought.tensors(wire.UPLOAD)
    assert all(torch.equal(sent[name], value) for name, value in unet.state_dict().items())


class GridOfModels(InProcessGrid):
    """Gives the silos of :attr:`models` the model they bring."""

    models: dict[int, Path]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for partition, folder in self.models.items():
            self._contexts[100 + partition].node_config["model-path"] = str(folder)


@pytest.mark.parametrize("strategy", ["dfd", "pooled"])
def test_silos_of_three_architectures_make_one_dataset(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = tuple(reversed(DIGITS))
    wide = save_model(
        tmp_path / "wide", unet_of(block_out_channels=(16, 8, 8), classes=10), backwards, prediction_type="sample"
    )
    some = save_model(
        tmp_path / "some",
        unet_of(block_out_channels=(4, 8), classes=5, seed=1),
        DIGITS[:5],
        num_train_timesteps=400,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
    )
    monkeypatch.setattr(GridOfModels, "models", {0: wide, 2: some}, raising=False)
    monkeypatch.setattr(tiny_runs, "InProcessGrid", GridOfModels)
    settings = tiny_settings(tmp_path, strategy=strategy, samples_per_client=60)
    folder = run_tiny(settings, report=False)
    images = images_of(folder)
    assert len(images) == 30
    assert {Path(path).parts[1] for path in images} == {f"{digit}" for digit in DIGITS}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["silo-1"], "only one silo trains"
    log = (folder.path / "log.txt").read_text()
    assert "silo-0: own model ready" in log
    (counts,) = (line for line in log.splitlines() if "silo-2: " in line and "per class" in line)
    assert counts.endswith("0, 0, 0, 0, 0]")
