from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from one_silo import noisy_samples, settings_of
from tiny_autoencoders import kl_of

import clients.models.local_model
from clients.models.local_model import LocalModel, load_network
from fedsynth import __version__
from fedsynth.config import RunConfig
from fedsynth.data import LabelledImages, Silo, load_federation
from fedsynth.diffusion import (
    MIN_HELD_OUT,
    ClassConditionalDDPMPipeline,
    HeldOutLoss,
    TrainingState,
    early_stopping,
    initial_unet,
    noise_predictor,
    to_model_range,
    train,
)
from fedsynth.errors import UserError
from fedsynth.files import write_json
from fedsynth.sealed import Seal, sealed_json
from fedsynth.seeding import make_generator

CPU = torch.device("cpu")
# So large a rate that the loss goes up and down.
ROUGH: dict[str, Any] = {"train_steps": 24, "learning_rate": 0.1, "ema_decay": 0.3, "batch_size": 8}
QUESTIONS = noisy_samples(4), 500, torch.tensor([0, 3, 3, 9])


def config_of(**changes: Any) -> RunConfig:
    """Settings of a tiny network; changes in snake case."""
    return RunConfig.from_run_config(settings_of(Path(), **{"train_steps": 5, **changes}))


def model_of(state: Path, silo: int = 0, **changes: Any) -> LocalModel:
    """The model of one silo, its state below ``state``."""
    config = config_of(**changes)
    federation = load_federation(config)
    return LocalModel(federation.silo(silo, config), federation.spec, config, state)


def epsilon(model: LocalModel) -> torch.Tensor:
    """What a finished model answers to QUESTIONS."""
    return noise_predictor(load_network(model.folder, CPU), config_of().recipe)(*QUESTIONS)


@pytest.fixture
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check after every second step."""
    monkeypatch.setattr(early_stopping, "MIN_INTERVAL", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A finished model, trained in one slice."""
    model = model_of(tmp_path_factory.mktemp("whole"))
    model.train_slice(1000.0)
    return model


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_model_is_the_plain_training_of_its_silo_averaged(tmp_path: Path) -> None:
    model, config = model_of(tmp_path, 1), config_of()
    assert not model.finished
    training = model.train_slice(1000.0)
    assert model.finished
    assert torch.equal(epsilon(model_of(tmp_path, 1)), noise_predictor(training.unet, config.recipe)(*QUESTIONS))
    federation = load_federation(config)
    images = federation.silo(1, config).train
    generator = make_generator(0, "local-training", "silo-1")
    state = TrainingState(initial_unet(config, federation.spec), config.recipe, generator, 5)
    pixels, labels = to_model_range(images.images), torch.from_numpy(images.labels)
    losses = train(state, pixels, labels, config.training, 5)
    expected = state.averaged_unet().state_dict()
    loaded = load_network(model.folder, CPU).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    history = model.history()
    assert history["losses"] == losses
    assert history["steps"] == [1, 2, 3, 4, 5]
    assert history["seconds"] > 0


def test_slices_hash_the_images_of_an_open_silo_once_and_convert_batches_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, converted = [], []
    fingerprint = LabelledImages.fingerprint

    def counted_hash(images: LabelledImages) -> str:
        hashed.append(len(images))
        return fingerprint(images)

    def counted_conversion(images: np.ndarray) -> torch.Tensor:
        converted.append(len(images))
        return to_model_range(images)

    monkeypatch.setattr(LabelledImages, "fingerprint", counted_hash)
    monkeypatch.setattr("fedsynth.diffusion.codec.to_model_range", counted_conversion)
    config = config_of(batch_size=4)
    federation = load_federation(config)
    silo = federation.silo(0, config)
    for _ in range(3):
        LocalModel(silo, federation.spec, config, tmp_path).train_slice(1e-9)
    assert len(silo.holdout) >= MIN_HELD_OUT, "slices stop early, and convert the held-out pairs too"
    assert hashed == [len(silo.train), len(silo.holdout)]
    assert converted == [256, 4] * 3


def test_model_opens_with_diffusers_and_its_history_with_json(whole: LocalModel) -> None:
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(whole.folder)
    assert isinstance(pipeline, DiffusionPipeline)
    assert list(pipeline.config.classes) == [str(digit) for digit in range(10)]
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    assert {path.suffix for path in files_below(whole.folder)} == {".json", ".safetensors"}
    written = json.loads((whole.folder / "training.json").read_text())
    assert set(written) == {"seconds", "steps", "losses", "held-out-steps", "held-out-losses"}
    assert np.isfinite(written["losses"]).all()
    assert written["held-out-steps"] == [5]


def test_key_changes_with_all_that_training_depends_on(tmp_path: Path) -> None:
    config = config_of()
    federation = load_federation(config)
    silo = federation.silo(0, config)
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"train_steps": 6},
        {"block_out_channels": "8,16"},
        {"layers_per_block": 2},
        {"model": "small"},
        {"batch_size": 16},
        {"learning_rate": 1e-3},
        {"ema_decay": 0.9},
        {"oversample": True},
        {"recipe": "paper"},
        {"recipe": "paper", "beta_end": 0.03},
        {"prediction": "v"},
        {"schedule": "linear"},
        {"loss_weighting": "uniform"},
        {"snr_gamma": 2.0},
        {"optimizer": "adam"},
        {"warmup_steps": 1},
        {"learning_rate_decay": "constant"},
        {"codec": "unshuffle-2"},
        {"early_stop": False},
    ]
    keys = [LocalModel(silo, federation.spec, config_of(**change), tmp_path).key for change in [{}, *changes]]
    images = silo.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    pixel = Silo(silo.name, type(silo.train)(images, silo.train.labels, silo.train.classes), silo.holdout)
    others = [pixel, federation.silo(1, config), Silo(silo.name, silo.train, silo.train)]
    keys += [LocalModel(other, federation.spec, config, tmp_path).key for other in others]
    assert len(set(keys)) == len(keys)


def test_key_does_not_change_with_what_training_does_not_see(tmp_path: Path) -> None:
    config = config_of()
    federation = load_federation(config)
    silo = federation.silo(0, config)
    changes: list[dict[str, Any]] = [
        {"output_dir": "elsewhere", "run_name": "named", "state_dir": "elsewhere"},
        {"num_samples": 7, "labels": "observed", "sampling_steps": 3},
        {"strategy": "fedavg", "num_rounds": 2},
        {"dfd_preset": "paper", "dfd_rounds": 3, "recipe": "default"},
        {"recipe": "default", "prediction": "x0", "learning_rate": 1.5e-3, "codec": "pixels"},
        {"wire_dtype": "float16", "reply_timeout": 1.0},
        {"evaluate": False, "copy_check": False, "device": "auto"},
    ]
    keys = {LocalModel(silo, federation.spec, config_of(**change), tmp_path).key for change in [{}, *changes]}
    assert len(keys) == 1


def test_models_from_before_early_stopping_and_recipes_are_found_with_the_papers(tmp_path: Path) -> None:
    config = config_of(recipe="paper", early_stop=False, holdout_fraction=0.0)
    federation = load_federation(config)
    silo = federation.silo(0, config)
    training = {"train_steps": 5, "batch_size": 32, "learning_rate": 2e-4, "ema_decay": 0.995, "max_grad_norm": 1.0}
    before = {
        "fedsynth": __version__,
        "silo": "silo-0",
        "data": silo.fingerprint,
        "spec": [1, 8, *(str(digit) for digit in range(10))],
        "dataset": "digits",
        "seed": 0,
        "model": {"model": "auto", "block_out_channels": "8,8", "layers_per_block": "auto"},
        "training": {**training, "oversample": False, "mixed_precision": "no"},
        "diffusion": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    }
    key = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
    assert LocalModel(silo, federation.spec, config, tmp_path).key == key
    # Too few images to stop early by: the training is the same.
    assert model_of(tmp_path, recipe="paper", holdout_fraction=0.0).key == key
    few, no = {"recipe": "paper", "holdout_fraction": 0.05}, {"early_stop": False}
    assert model_of(tmp_path, **few).key == model_of(tmp_path, **few, **no).key


def test_two_processes_train_one_model_in_turn(
    whole: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wait for the slice of a third: one of them goes on from there, the other finds the model finished."""
    may_work, working, done = threading.Event(), threading.Event(), list[int | None]()
    train_slice = LocalModel.train_slice

    def when_allowed(self: LocalModel, seconds: float) -> TrainingState:
        working.set()
        assert may_work.wait(60)
        return train_slice(self, seconds)

    def train(seconds: float) -> None:
        training = model_of(tmp_path).train_in_turn(seconds)
        done.append(None if training is None else training.steps)

    monkeypatch.setattr(LocalModel, "train_slice", when_allowed)
    threads = [threading.Thread(target=train, args=(seconds,)) for seconds in (1e-9, 1000.0, 1000.0)]
    for thread in threads:
        thread.start()
        assert working.wait(60)
    may_work.set()
    for thread in threads:
        thread.join(60)
    assert done == [1, 5, None]
    assert torch.equal(epsilon(model_of(tmp_path)), epsilon(whole))
    assert list(tmp_path.rglob("*.lock")) == []


def test_torn_checkpoint_means_training_from_the_start(
    whole: LocalModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_of(tmp_path).train_slice(1e-9)
    (checkpoint,) = tmp_path.rglob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-99])
    again = model_of(tmp_path)
    assert again.train_slice(1000.0).steps == 5
    assert torch.equal(epsilon(again), epsilon(whole))
    assert "silo-0: checkpoint" in caplog.text
    assert "damaged, training starts again" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "pickled"])
def test_damaged_model_is_named_with_what_to_do(damage: str, whole: LocalModel, tmp_path: Path) -> None:
    folder = tmp_path / "models" / whole.key
    shutil.copytree(whole.folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "pickled":
        torch.save(load_network(whole.folder, CPU).state_dict(), weights.with_suffix(".bin"))
    else:
        weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"model '.*{whole.key}' is damaged: remove the folder to train it again"):
        load_network(folder, CPU)


@pytest.mark.usefixtures("frequent_checks")
def test_saved_weights_are_those_of_the_best_check(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    model, config = model_of(tmp_path, **ROUGH), config_of(**ROUGH)
    training = model.train_slice(1000.0)
    history = model.history()
    losses = history["held-out-losses"]
    assert history["held-out-steps"] == [2 * (k + 1) for k in range(training.steps // 2)]
    assert history["steps"][-1] == training.steps <= 24
    silo = load_federation(config).silo(0, config)
    pairs = make_generator(0, "held-out-loss", silo.name)
    images, labels = to_model_range(silo.holdout.images), torch.from_numpy(silo.holdout.labels)
    held_out_loss = HeldOutLoss(images, labels, config.recipe, pairs)
    assert held_out_loss(load_network(model.folder, CPU)) == pytest.approx(min(losses), rel=1e-4)
    assert sorted(losses)[1] > 1.001 * min(losses), "for the test to mean anything"
    kept = history["held-out-steps"][losses.index(min(losses))]
    assert f"silo-0: training ended at step {training.steps} of 24, weights of step {kept:.0f} kept" in caplog.text


@pytest.mark.usefixtures("frequent_checks")
def test_early_stopping_in_slices_is_that_of_one_slice_even_when_slices_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**ROUGH, "train_steps": 5}
    whole = model_of(tmp_path / "whole", **settings)
    whole.train_slice(1000.0)
    number, failing, steps, seconds = 0, (2, 5), [], [0.0]
    # Another object each time, as in another process: only the disk connects the slices.
    while not (sliced := model_of(tmp_path / "sliced", **settings)).finished:
        number += 1
        if number in failing:
            before = {path: path.read_bytes() for path in files_below(tmp_path / "sliced")}
            with monkeypatch.context() as patched:
                patched.setattr(torch, "save", full_disk)
                patched.setattr(ClassConditionalDDPMPipeline, "save_pretrained", full_disk)
                with pytest.raises(OSError, match="No space left"):
                    sliced.train_slice(1e-9)
            assert {path: path.read_bytes() for path in files_below(tmp_path / "sliced")} == before
            sliced = model_of(tmp_path / "sliced", **settings)
        training = sliced.train_slice(1e-9)
        steps.append(training.steps)
        seconds.append(training.seconds)
    assert steps == [1, 2, 3, 4, 5]
    assert all(before < after for before, after in itertools.pairwise(seconds))
    assert torch.equal(epsilon(sliced), epsilon(whole))
    names = [{str(path.relative_to(model.folder)) for path in files_below(model.folder)} for model in (sliced, whole)]
    assert names[0] == names[1]
    assert files_below(tmp_path / "sliced") == files_below(sliced.folder), "no checkpoint is left"
    one, other = sliced.history(), whole.history()
    assert "damaged" not in caplog.text
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.usefixtures("frequent_checks")
def test_too_few_held_out_images_mean_the_whole_budget_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    settings = {**ROUGH, "train_steps": 3, "holdout_fraction": 0.05}
    while not (model := model_of(tmp_path, **settings)).finished:
        training = model.train_slice(1e-9)
    assert (training.steps, training.held_out_losses) == (3, [])
    assert set(model.history()) == {"seconds", "steps", "losses"}
    assert caplog.text.count("silo-0: 2 held-out images are too few to stop early by") == 1
    assert model.copied_share() is None


def test_copies_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"train_steps": 1, "holdout_fraction": 0.4}
    model = model_of(tmp_path, **settings)
    model.train_slice(1000.0)
    share = model.copied_share()
    assert share is not None
    assert 0 <= share <= 0.3, "noise is no copy"
    monkeypatch.setattr(clients.models.local_model, "copied_share", None)
    assert model_of(tmp_path, **settings).copied_share() == share
    assert model_of(tmp_path, **settings, copy_check=False).copied_share() is None


def test_what_an_earlier_version_counted_of_latents_is_counted_again(tmp_path: Path) -> None:
    kl_of().save_pretrained(tmp_path / "autoencoder")
    settings: dict[str, Any] = {"train_steps": 1, "holdout_fraction": 0.4, "autoencoder": str(tmp_path / "autoencoder")}
    model = model_of(tmp_path, **settings)
    model.train_slice(1000.0)
    share = model.copied_share()
    result = model.folder / "copy_check.json"
    write_json(result, sealed_json({"copied-share": 0.875}, Seal("copy check", 1, model.key)))
    assert model.copied_share() == share
    assert share != 0.875
