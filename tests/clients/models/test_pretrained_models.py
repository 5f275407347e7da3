from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from one_silo import SPEC, Node, drawn_images, epsilon_request, policy_file, sample_request, settings_of, simulated
from pretrained_folders import save_model, unet_of
from tiny_runs import images_of, run_tiny, tiny_settings

import clients.models.local_model
import clients.models.pretrained_model
from clients.models.pretrained_model import LOSS_TIMESTEPS
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import (
    EncodedImages,
    TrainingState,
    codec_of,
    initial_unet,
    lasting_scheduler,
    make_scheduler,
    to_model_range,
    train,
)
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.diffusion.sampling import network_output
from fedsynth.messages import PrepareRequest, UploadRequest, transport
from fedsynth.seeding import make_generator

DIGITS = tuple(map(str, range(10)))


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Path) -> Callable[..., Node]:
    """A silo with 'even' and 'odd' images and a model of its own, wider than the run's and with another schedule."""
    path, schedule = image_folder, {"num_train_timesteps": 400, "beta_schedule": "squaredcos_cap_v2"}

    def open_clinic(classes: tuple[str, ...] = ("odd", "even", "prime"), **changes: Any) -> Node:
        model = save_model(
            tmp_path / "model",
            unet_of(block_out_channels=(16, 8), classes=3),
            classes,
            **schedule,
            prediction_type="v_prediction",
        )
        settings = settings_of(tmp_path, **changes)
        own = {"silo_name": "clinic", "model_path": str(model), "policy_path": policy_file(tmp_path)}
        return Node(settings, SPEC, data_path=str(path), **own)

    return open_clinic


def model_of(node: Node, held: tuple[str, ...] = ("even", "odd")) -> Any:
    return load_pretrained_model(
        Path(str(node.context.node_config["model-path"])), codec_of(node.config, SPEC), node.config.recipe, held
    )


def test_pretrained_model_is_ready_at_once_and_measured(
    clinic: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients.models.local_model, "train", None)
    answer = clinic(recipe="paper").prepare(1e-9)
    loss = answer.loss
    assert loss is not None
    assert (answer.steps, answer.finished, answer.train_seconds) == (4, True, 0)
    assert answer.curve == [(4, loss)]
    assert sum(answer.label_counts) == answer.num_examples == 9
    # Never trained, it predicts v near 0: ε = √(1-ᾱ) x, an error of ᾱ² + ᾱ(1-ᾱ) E[x_0²], a few tenths on average.
    assert 0.1 < loss < 0.5
    assert clinic(recipe="paper").prepare(1e-9).loss == loss
    assert not (tmp_path / "state" / "clinic" / "models").exists(), "it trains nothing"


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_loss_is_the_recipe_s_mean_error_over_stratified_timesteps(recipe: str, tmp_path: Path) -> None:
    node = simulated(tmp_path, 1, recipe=recipe)
    silo = load_federation(node.config).silo(1, node.config)
    unet = initial_unet(node.config, node.spec)
    state = TrainingState(unet, node.config.recipe, make_generator(0, "test"), 20)
    pixels = EncodedImages(silo.train.images, codec_of(node.config, node.spec))
    train(state, pixels, torch.from_numpy(silo.train.labels), node.config.training, 20)
    folder = save_model(tmp_path / "model", unet, node.spec.classes, lasting_scheduler(node.config.recipe))
    found = Node(node.context.run_config, node.spec, partition_id=1, model_path=str(folder)).prepare().loss

    held_out, held_labels = to_model_range(silo.holdout.images), torch.from_numpy(silo.holdout.labels)
    alpha_bars = make_scheduler(node.config.recipe).alphas_cumprod.double().numpy()
    generator, errors = torch.Generator().manual_seed(5), []
    width = 1000 // LOSS_TIMESTEPS
    for t in range(0, 1000, 25):
        noise = torch.randn(held_out.shape, generator=generator)
        noisy = (alpha_bars[t] ** 0.5 * held_out + (1 - alpha_bars[t]) ** 0.5 * noise).float()
        predicted = network_output(unet)(noisy, t, held_labels)
        if recipe == "paper":
            errors.append(float((predicted - noise).square().mean()))
        else:
            snr = alpha_bars[t] / (1 - alpha_bars[t])
            errors.append(min(snr + 1, 5) * float((predicted.clamp(-1, 1) - held_out).square().mean()))
    strata = np.array(errors).reshape(LOSS_TIMESTEPS, width // 25)
    assert found is not None
    assert strata.min(axis=1).mean() * 0.8 < found < strata.max(axis=1).mean() * 1.2
    assert found < (0.9 if recipe == "paper" else 2)


def test_epsilon_and_samples_come_from_the_pretrained_model(clinic: Callable[..., Node]) -> None:
    node = clinic()
    node.ask(PrepareRequest(spec=SPEC))
    request, model = epsilon_request(), model_of(node)
    expected = model.predict(request.samples, 421, request.labels)
    assert torch.equal(node.ask(request).epsilon, expected)
    assert not torch.equal(node.ask(epsilon_request(labels=1 - request.labels)).epsilon, expected)

    # Another process has the context alone.
    clients.models.pretrained_model._models._items.clear()
    assert torch.equal(node.ask(request).epsilon, expected)

    images = node.ask(sample_request(node, [0, 1, 0], [4, 0, 1])).images
    expected_images = drawn_images(node, model.predict, [0, 1, 0], [4, 0, 1], "clinic")
    np.testing.assert_array_equal(images.numpy(), expected_images)


def test_class_unknown_to_the_model_counts_no_image(clinic: Callable[..., Node]) -> None:
    node = clinic(("odd", "prime"))
    answer = node.prepare()
    assert answer.label_counts == (0, 4)
    assert answer.num_examples == 4
    assert np.isfinite(answer.loss)
    reason = node.refusal(epsilon_request())
    assert reason.startswith("clinic: UserError: asked about class 'even', which the model")


def test_strategy_that_asks_no_own_model_leaves_it_closed(clinic: Callable[..., Node]) -> None:
    assert clinic(("moon", "sun"), strategy="fedavg").ask(PrepareRequest(spec=SPEC)).num_examples == 9


def test_unusable_model_is_refused_before_any_training(clinic: Callable[..., Node]) -> None:
    node = clinic(("moon", "sun"))
    assert node.refusal(PrepareRequest(spec=SPEC)).startswith(
        "clinic: UserError: model-path = '…/model': the model knows moon, sun, but this silo holds"
    )


def test_upload_of_another_architecture_is_refused_with_what_differs(clinic: Callable[..., Node]) -> None:
    node = clinic(strategy="fedddpm")
    node.ask(PrepareRequest(spec=SPEC))
    reason = node.refusal(UploadRequest(spec=SPEC))
    assert reason.startswith("clinic: UserError: model-path = '…/model': strategy = 'fedddpm' has silos upload weights")
    differences = reason.partition("(")[2].partition(")")[0]
    assert {"block_out_channels", "num_class_embeds"} <= set(differences.split(", "))
    assert "what it predicts, its noise schedule or its classes" in differences


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_upload_of_the_run_s_own_architecture(recipe: str, tmp_path: Path) -> None:
    node = simulated(tmp_path, 1, strategy="fedddpm", recipe=recipe)
    unet = initial_unet(RunConfig.from_run_config({**node.context.run_config, "seed": 9}), node.spec)
    folder = save_model(tmp_path / "model", unet, node.spec.classes, lasting_scheduler(node.config.recipe))
    pretrained = Node(node.context.run_config, node.spec, partition_id=1, model_path=str(folder))
    pretrained.ask(PrepareRequest(spec=node.spec))
    sent = transport.decode_tensors(pretrained.ask(UploadRequest(spec=node.spec)).arrays)
    assert all(torch.equal(sent[name], value) for name, value in unet.state_dict().items())


def test_silos_of_three_architectures_make_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    class GridOfModels(InProcessGrid):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for partition, folder in ((0, wide), (2, some)):
                self._contexts[100 + partition].node_config["model-path"] = str(folder)

    monkeypatch.setattr(tiny_runs, "InProcessGrid", GridOfModels)
    folder = run_tiny(tiny_settings(tmp_path, strategy="dfd"), report=False)
    images = images_of(folder)
    assert len(images) == 30
    assert {Path(path).parts[1] for path in images} == set(DIGITS)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["silo-1"], "only one silo trains"
    log = (folder.path / "log.txt").read_text()
    assert "silo-0: own model ready" in log
    (counts,) = (line for line in log.splitlines() if "silo-2: " in line and "per class" in line)
    assert counts.endswith("0, 0, 0, 0, 0]")
